"""The edge through real Caddy and uvicorn: CORS, public paths, body limit, words instead of silence."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from slipway import knocks
from tests.conftest import ROOT, Stack, wait_until

pytestmark = pytest.mark.slow

PAGE = "http://localhost:3000"
EXPOSED = {"mcp-session-id", "www-authenticate", "retry-after", "x-request-id"}
ASKED = (
    "authorization, content-type, accept, mcp-session-id, mcp-protocol-version, mcp-method, mcp-name, "
    "mcp-param-city, last-event-id, ngrok-skip-browser-warning"
)
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 2, "b": 3}}}
DOORS = ["plain", "tls1", "tls2"]


def ask(stack: Stack, door: str, method: str, path: str = "/mcp", **how: object) -> httpx2.Response:
    """Send one request: over plain HTTP as the tunnel does, or over TLS with HTTP/1.1 or HTTP/2."""
    base = (stack.edge_url if door == "plain" else stack.tls_url).removesuffix("/mcp")
    with httpx2.Client(verify=stack.trust(), http1=door != "tls2", http2=door == "tls2", timeout=20) as client:
        answer = client.request(method, base + path, **how)
    assert answer.http_version == ("HTTP/2" if door == "tls2" else "HTTP/1.1")
    return answer


def assert_readable_by_a_page(answer: httpx2.Response, origin: str = PAGE) -> None:
    """A browser lets the page read this answer and its headers: each CORS header stands exactly once."""
    assert answer.headers.get_list("access-control-allow-origin") == [origin]
    exposed = answer.headers.get_list("access-control-expose-headers")
    assert len(exposed) == 1
    assert {name.strip().lower() for name in exposed[0].split(",")} >= EXPOSED
    assert "Origin" in answer.headers["vary"]
    assert len(answer.headers.get_list("x-request-id")) == 1


def assert_preflight_passes(answer: httpx2.Response, origin: str = PAGE) -> None:
    assert answer.status_code == 204
    assert answer.headers.get_list("access-control-allow-origin") == [origin]
    allowed = {name.strip() for name in answer.headers.get("access-control-allow-headers", "").lower().split(",")}
    assert allowed >= {name.strip() for name in ASKED.split(",")}
    assert {"GET", "POST", "DELETE"} <= {
        m.strip() for m in answer.headers.get("access-control-allow-methods", "").split(",")
    }


def preflight(stack: Stack, door: str, origin: str, path: str = "/mcp") -> httpx2.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": ASKED}
    return ask(stack, door, "OPTIONS", path, headers=headers)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/.well-known/oauth-protected-resource/mcp"])
def test_a_preflight_is_answered_before_anything_asks_for_a_token(shared_stack: Stack, door: str, path: str) -> None:
    assert_preflight_passes(preflight(shared_stack, door, PAGE, path))


def test_a_preflight_that_asks_for_no_header_gets_the_usual_ones(shared_stack: Stack) -> None:
    headers = {"origin": PAGE, "access-control-request-method": "POST"}
    answer = ask(shared_stack, "plain", "OPTIONS", headers=headers)
    assert "mcp-session-id" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("status", "method", "path", "change"),
    [
        (200, "POST", "/mcp", {}),
        (200, "POST", "/mcp/", {}),
        (401, "POST", "/mcp", {"authorization": ""}),
        (401, "POST", "/mcp", {"authorization": "Bearer nonsense"}),
        (403, "POST", "/mcp", {"authorization": "no tool scope"}),
        (404, "GET", "/nowhere", {}),
        (404, "GET", "/.well-known/nothing", {}),
        (405, "PUT", "/mcp", {}),
        (413, "POST", "/mcp", {"content-length": "too much"}),
    ],
)
def test_a_page_can_read_every_answer(
    shared_stack: Stack, door: str, status: int, method: str, path: str, change: dict[str, str]
) -> None:
    headers = shared_stack.bearer() | {"origin": PAGE}
    content: dict[str, object] = {"json": CALL}
    if "content-length" in change:
        content = {"content": b"x" * 1_000_001}
    elif change.get("authorization") == "no tool scope":
        from slipway import tokens

        bare = tokens.mint(shared_stack.secret, subject="ana", scope="", ttl=60).token
        headers |= {"authorization": f"Bearer {bare}"}
    else:
        headers |= change
    if not headers["authorization"]:
        del headers["authorization"]
    answer = ask(shared_stack, door, method, path, headers=headers, **content)
    assert answer.status_code == status
    assert_readable_by_a_page(answer)
    assert answer.text


def test_a_page_can_read_the_421_of_a_foreign_host(shared_stack: Stack) -> None:
    headers = shared_stack.bearer() | {"origin": PAGE, "host": "evil.example"}
    answer = ask(shared_stack, "plain", "POST", headers=headers, json=CALL)
    assert answer.status_code == 421
    assert_readable_by_a_page(answer)
    assert "evil.example" in answer.text


def test_a_502_is_readable_and_says_what_to_do(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    stack.kill("server")
    answer = ask(stack, "tls2", "POST", headers=stack.bearer() | {"origin": PAGE}, json=CALL)
    assert answer.status_code == 502
    assert_readable_by_a_page(answer)
    assert answer.headers["retry-after"]
    assert "./scripts/up" in answer.json()["error"]


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "http://localhost.evil.example", "http://localhostx", "http://localhost:80@evil.example",
        "null", "https://127.0.0.1.evil.example", "http://127.0.0.1:8080.evil.example", "http://xlocalhost:1",
        "http://localhost:1,http://evil.example",
    ],
)  # fmt: skip
def test_a_foreign_origin_gets_403_and_the_setting_to_change(shared_stack: Stack, origin: str, method: str) -> None:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    answer = ask(shared_stack, "plain", method, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert "SLIPWAY_ALLOWED_ORIGINS" in answer.text
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["http://localhost", "https://localhost:1", "http://127.0.0.1:65535", "HTTP://LOCALHOST:5"]
)
def test_a_page_of_this_machine_may_call_from_any_port(shared_stack: Stack, origin: str) -> None:
    assert_preflight_passes(preflight(shared_stack, "plain", origin), origin)


def test_one_setting_adds_exact_origins_and_subdomains(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_ALLOWED_ORIGINS="https://app.example.com, https://*.lab.example ,http://[::1]:*")
    for origin in ("https://app.example.com", "https://a.lab.example", "https://a.b.lab.example", "http://[::1]:9"):
        assert_preflight_passes(preflight(stack, "tls1", origin), origin)
    for origin in (
        "http://app.example.com", "https://app.example.com:444", "https://appXexample.com", "https://lab.example",
        "https://a.lab.example.evil.example", "https://evil.example/.lab.example", PAGE,
    ):  # fmt: skip
        assert preflight(stack, "tls1", origin).status_code == 403, origin


def test_a_star_lets_any_page_in_on_request(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_ALLOWED_ORIGINS="*")
    assert_preflight_passes(preflight(stack, "plain", "https://any.example"), "https://any.example")


@pytest.mark.parametrize(
    ("cut", "put"),
    [
        ("\t\timport cors\n", ""),
        ("handle @preflight {", "@never path /never\n\t\t\thandle @never {"),
        ("\t\t\theader_down -X-Request-Id\n", ""),
    ],
)
def test_without_its_block_the_cors_check_goes_red(make_stack: Callable[..., Stack], cut: str, put: str) -> None:
    whole = (ROOT / "Caddyfile").read_text()
    assert cut in whole
    stack = make_stack(whole.replace(cut, put))

    def check() -> None:
        assert_preflight_passes(preflight(stack, "plain", PAGE))
        assert_readable_by_a_page(ask(stack, "plain", "POST", headers=stack.bearer() | {"origin": PAGE}, json=CALL))

    with pytest.raises(AssertionError):
        check()


def test_without_its_block_a_foreign_origin_would_pass(make_stack: Callable[..., Stack]) -> None:
    whole = (ROOT / "Caddyfile").read_text()
    stack = make_stack(whole.replace("handle @foreign {", "@never path /never\n\t\t\thandle @never {"))
    headers = stack.bearer() | {"origin": "http://evil.example"}
    assert ask(stack, "plain", "POST", headers=headers, json=CALL).status_code == 200


def raw_status(stack: Stack, path: str) -> int:
    """Ask for a path as it stands; a client library would tidy it."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(stack.edge_url).port or 0, timeout=10)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    connection.endheaders()
    with contextlib.closing(connection):
        return connection.getresponse().status


@pytest.mark.parametrize(
    "path",
    ["/", "/admin", "/admin/tokens", "/metrics", "/readyz", "/livez", "/mcpx", "/mcp/x", "/docs", "/.git/config",
     "/mcp/../readyz", "/mcp/%2e%2e/readyz", "/.well-known/../readyz", "/.well-known/%2e%2e/readyz", "//readyz"],
)  # fmt: skip
def test_a_path_that_is_not_public_never_reaches_the_server(shared_stack: Stack, path: str) -> None:
    before = len(shared_stack.log("server"))
    assert raw_status(shared_stack, path) in (400, 404)
    marked = [line for line in shared_stack.log("edge") if line.get("refused")]
    assert marked
    assert len([line for line in shared_stack.log("server")[before:] if "readyz" in str(line.get("path"))]) == 0


def test_the_health_of_the_server_is_public(shared_stack: Stack) -> None:
    assert ask(shared_stack, "tls2", "GET", "/healthz").text == "ok\n"


def test_a_foreign_host_on_the_tls_door_gets_a_sentence(shared_stack: Stack) -> None:
    answer = ask(shared_stack, "tls1", "GET", "/mcp", headers={"host": "foo.example"})
    assert answer.status_code == 421
    assert "localhost" in answer.text


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_over_the_limit_is_413_and_one_below_passes(shared_stack: Stack, door: str, chunked: bool) -> None:
    def sent(size: int) -> object:
        text = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"pad":"' + b"x" * (size - 60) + b'"}}'
        return iter([text[:5000], text[5000:]]) if chunked else text

    headers = shared_stack.bearer()
    too_big = ask(shared_stack, door, "POST", headers=headers, content=sent(1_000_200))
    assert too_big.status_code == 413
    assert "SLIPWAY_MAX_BODY" in too_big.text
    assert ask(shared_stack, door, "POST", headers=headers, content=sent(990_000)).status_code == 200


def test_without_its_block_the_body_limit_is_gone(make_stack: Callable[..., Stack]) -> None:
    whole = (ROOT / "Caddyfile").read_text()
    stack = make_stack(
        whole.replace("max_size {$SLIPWAY_MAX_BODY:1MB}", "max_size 50MB").replace("error @announced 413", "")
    )
    answer = ask(stack, "plain", "POST", headers=stack.bearer(), content=b" " * 1_000_200)
    assert "SLIPWAY_MAX_BODY" not in answer.text


def test_a_flood_of_headers_is_refused_not_hung_on(shared_stack: Stack) -> None:
    headers = {f"x-{number}": "y" * 1000 for number in range(200)}
    assert ask(shared_stack, "plain", "GET", "/healthz", headers=headers).status_code == 431


@pytest.mark.parametrize("url", ["edge_url", "tls_url"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_one_curl_without_handshake_or_accept_header_gets_its_answer(
    shared_stack: Stack, url: str, slash: str
) -> None:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--cacert", shared_stack.ca_file, getattr(shared_stack, url) + slash,
         "-H", f"Authorization: Bearer {shared_stack.token()}", "-H", "Content-Type: application/json",
         "-d", '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","arguments":{"a":2,"b":3}}}'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert '"structuredContent":{"result":5}' in done.stdout, done.stderr


def test_no_log_holds_a_token_a_session_id_or_a_query(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    start = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "spy", "version": "1"}}
    headers = stack.bearer()
    opened = ask(
        stack,
        "tls2",
        "POST",
        headers=headers,
        json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": start},
    )
    session = opened.headers["mcp-session-id"]
    ask(stack, "plain", "POST", "/mcp?token=SECRETQUERY", headers=headers | {"mcp-session-id": session}, json=CALL)
    ask(
        stack,
        "plain",
        "POST",
        "/nowhere?token=SECRETQUERY",
        headers=headers | {"cookie": "a=SECRETCOOKIE"},
        json=CALL,
    )
    ask(stack, "plain", "POST", headers={"authorization": "Bearer SECRETBAD", "origin": "http://evil.example"})
    wait_until(lambda: len(stack.log("edge")) >= 4)
    written = [path for path in stack.folder.rglob("*") if path.is_file() and path.suffix in (".jsonl", ".log")]
    assert len(written) == 4
    for path in written:
        text = path.read_text()
        for secret in (headers["authorization"][7:], headers["authorization"].split(".")[1], session,
                       "SECRETQUERY", "SECRETCOOKIE", "SECRETBAD"):  # fmt: skip
            assert secret not in text, f"{secret} is in {path}"
    assert all(path.stat().st_mode & 0o077 == 0 for path in written if path.suffix == ".jsonl")


def test_what_the_edge_refused_becomes_a_line_for_the_operator(shared_stack: Stack) -> None:
    ask(shared_stack, "plain", "POST", headers={"origin": "http://knock.example", "user-agent": "page/1"})

    def shown() -> bool:
        lines = (shared_stack.config.state / "log" / "edge.jsonl").read_text().splitlines()
        rendered = [knocks.render(knock) for knock in map(knocks.parse, lines) if knock]
        return any("page/1" in line and "403" in line and "http://knock.example" in line for line in rendered)

    wait_until(shown, what="a line that names client, status and origin")


def test_nothing_listens_beyond_loopback(shared_stack: Stack) -> None:
    for process in shared_stack.processes.values():
        sockets = [c for c in psutil.Process(process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert sockets
        assert {c.laddr.ip for c in sockets} <= {"127.0.0.1", "::1"}


def test_the_caddyfile_is_formatted() -> None:
    caddy = ROOT / ".venv" / "bin" / "caddy"
    assert (
        subprocess.run([caddy, "fmt", Path(ROOT / "Caddyfile")], capture_output=True, text=True).stdout
        == (ROOT / "Caddyfile").read_text()
    )


def answers_to_one_request(port: int, method: str, path: str, size: int, *, chunked: bool = False) -> bytes:
    """Send one request whose body looks like other requests, and return all that comes back within a second."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = (inner * (size // len(inner) + 1))[:size]
    length = f"Content-Length: {size}"
    if chunked:
        length, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
    came = b""
    # a connection that is kept has no end to wait for
    with socket.create_connection(("127.0.0.1", port), 1) as connection, contextlib.suppress(OSError):
        connection.sendall(head.encode() + body)
        while piece := connection.recv(65_536):
            came += piece
    return came


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [150_000, 1_500_000, 3_000_000])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/mcp"), ("PUT", "/mcp"), ("GET", "/healthz"), ("POST", "/join"), ("GET", "/nowhere")],
)
def test_what_is_left_of_a_body_is_never_taken_for_a_request(
    shared_stack: Stack, method: str, path: str, size: int, chunked: bool
) -> None:
    came = answers_to_one_request(shared_stack.config.edge_port, method, path, size, chunked=chunked)
    assert came.count(b"HTTP/1.1 ") <= 1
    if method == "POST":
        assert came.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("limit", "passes", "refused"),
    [("2MiB", 2_000_000, 2_200_000), ("300KB", 299_000, 301_000), ("64KiB", 65_000, 66_000), ("5000B", 4900, 5100)],
)
def test_the_limit_is_what_the_setting_says(
    make_stack: Callable[..., Stack], limit: str, passes: int, refused: int
) -> None:
    stack = make_stack(SLIPWAY_MAX_BODY=limit)
    for size, status in ((passes, 400), (refused, 413)):
        assert ask(stack, "plain", "POST", headers=stack.bearer(), content=b" " * size).status_code == status


@pytest.mark.parametrize(("block", "chunked"), [("import one_answer", True), ("error @announced 413", False)])
def test_without_its_block_the_rest_of_a_body_is_answered_too(
    make_stack: Callable[..., Stack], block: str, chunked: bool
) -> None:
    stack = make_stack((ROOT / "Caddyfile").read_text().replace(block, ""))
    came = answers_to_one_request(stack.config.edge_port, "POST", "/mcp", 1_500_000, chunked=chunked)
    assert came.count(b"HTTP/1.1 ") == 2
