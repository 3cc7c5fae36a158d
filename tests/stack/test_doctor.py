"""The doctor: silent on a healthy stack, right about each disease, and about servers and proxies of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slipway import settings, tokens
from slipway.doctor import __main__, examine, report, streams
from slipway.doctor.checks import CHECKS
from slipway.doctor.examine import Asked, Report
from slipway.doctor.wire import Answer
from slipway.errors import Problem
from tests import misbehaving, node_clients
from tests.conftest import ROOT, Stack, free_ports, program, wait_until

pytestmark = pytest.mark.slow

PREFLIGHTS = {"preflight-handshake", "preflight-resume", "preflight-newest", "preflight-param", "preflight-ngrok"}
READABLE = {"allow-origin-once", "session-readable", "401-readable", "404-readable"}
# disease → the checks that are not well at the hop that has it; every other hop must be silent
NAMED: dict[str, set[str]] = {
    "none": set(),
    "buffer-sse": {"post-stream", "get-stream"},
    "buffer-get": {"get-stream"},
    "hold-headers": {"get-stream"},
    "gzip-stream": {"compression"},
    "cut": {"idle"},
    "drop-expose": {"session-readable", "401-readable"},
    "double-origin": {*PREFLIGHTS, *READABLE, "well-known"},
    "no-cors-on-errors": {"401-readable", "404-readable"},
    "old-cors-list": PREFLIGHTS - {"preflight-handshake"},
    "foreign-allowed": {"foreign-refused"},
    "auth-preflight": PREFLIGHTS,
    "redirect-http": {"redirect", "arrived"},
    "strip-authorization": {"token"},
    "strip-mcp-headers": {"newest", "session"},
    "strip-last-event-id": {"resume"},
    "drop-session": {"headers", "session"},
    "no-challenge": {"headers", "challenge"},
    "rewrite-host": {"host"},
    "interstitial": {"interstitial"},
    "wrong-metadata": {"oauth"},
    "rate-limit": {"arrived", "429-readable"},
    "small-bodies": {"body-limit"},
    "expired-token": {"token"},
}


@contextlib.contextmanager
def diseased(stack: Stack, name: str, *certificate: Path) -> Iterator[str]:
    """Run the misbehaving proxy in front of a stack's edge. Yields: its URL."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.misbehaving", name, "--port", str(port)]
    tls = ["--certificate", *map(str, certificate)] if certificate else []
    with running([*command, *tls], port, env={**os.environ, **stack.environment}, cwd=ROOT):
        yield f"http{'s' if certificate else ''}://localhost:{port}/mcp"


@contextlib.contextmanager
def running(command: list[str], port: int, **how: object) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)  # type: ignore[call-overload]

    def listens() -> bool:
        assert process.poll() is None, command
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        wait_until(listens, 60, f"the start of {command[0]}")
        yield
    finally:
        process.terminate()
        process.wait()


def examined(stack: Stack | None, url: str = "", **asked: object) -> Report:
    """Run the doctor in this process; without a stack, as somebody who has none."""
    config = stack.config if stack else misbehaving.settings.load({"SLIPWAY_STATE": "/nowhere"}, None)
    question = Asked(url, **asked)  # type: ignore[arg-type]
    hops = examine.hops(config, ROOT, question, stack.secret if stack else None)
    return asyncio.run(examine.examine(hops))


def bad(found: Report, hop: str) -> set[str]:
    names = [each.name for each in found.hops]
    return {name for name, each in found.found[names.index(hop)].items() if each.verdict in ("failure", "warning")}


def told(found: Report, check: str, at: int = -1) -> str:
    each = found.found[at][check]
    return f"{each.verdict}: {each.saw} {each.cause} {each.cure}"


def test_the_doctor_is_silent_on_a_healthy_stack(shared_stack: Stack) -> None:
    found = examined(shared_stack, soak=3)
    assert [hop.name for hop in found.hops] == ["server", "edge", "tls"]
    assert found.first_trouble() == ("", [])
    well = {name for name, each in found.found[2].items() if each.verdict == "ok"}
    # the others cannot be asked on this machine, or not of our own server
    assert set(CHECKS) - well == {"name", "quota", "429-readable", "listen"}
    assert "All well: " in report.as_text(found)
    assert max(len(line) for line in report.table(found).splitlines()) <= 80
    assert found.clients["curl"].verdict == "works"
    assert "NODE_EXTRA_CA_CERTS" in found.clients["claude-code"].why
    assert found.clients["chatgpt"].verdict == "cannot"


def test_the_list_of_diseases_is_complete() -> None:
    assert set(NAMED) == set(misbehaving.DISEASES)


@pytest.mark.parametrize("name", NAMED)
def test_each_disease_is_named_at_its_hop_and_nothing_else(shared_stack: Stack, name: str) -> None:
    with diseased(shared_stack, name) as url:
        found = examined(shared_stack, url, soak=4 if name == "cut" else 0)
    assert [hop.name for hop in found.hops] == ["server", "edge", "url"]
    assert bad(found, "server") | bad(found, "edge") == set()
    assert bad(found, "url") == NAMED[name]
    for check in NAMED[name]:
        each = found.found[-1][check]
        assert each.saw and each.cause and each.cure
    if name == "expired-token":
        assert "expired 24 h ago" in told(found, "token")


def test_a_redirect_from_https_to_http_is_called_what_it_is(shared_stack: Stack, tmp_path: Path) -> None:
    from tests.conftest import certificate

    cert, key = certificate(tmp_path)
    with diseased(shared_stack, "redirect-http", cert, key) as url:
        hops = examine.hops(shared_stack.config, ROOT, Asked(url), shared_stack.secret)
        hops = [hop if hop.name != "url" else _trusting(hop, cert) for hop in hops]
        found = asyncio.run(examine.examine(hops))
    assert "from https to http" in told(found, "redirect")


def _trusting(hop: examine.Hop, cert: Path) -> examine.Hop:
    made = examine.Hop(hop.name, hop.url, token=hop.token, ca=cert, ours=True, before=hop.before, logged=hop.logged)
    return made


def test_a_certificate_that_nobody_vouches_for_is_named(shared_stack: Stack, tmp_path: Path) -> None:
    from tests.conftest import certificate

    cert, key = certificate(tmp_path)
    with diseased(shared_stack, "none", cert, key) as url:
        found = examined(None, url)
        other = examined(None, url.replace("localhost", "127.0.0.1"))
    assert bad(found, "url") == {"reach", "tls"}
    assert "SSL_CERT_FILE" in told(found, "tls")
    assert found.clients["claude-code"].verdict == "cannot"
    assert bad(other, "url") == {"reach", "tls"}


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("nonsense", "not a JWT"),
        ("expired", "expired"),
        ("other secret", "wrong signature"),
        ("no tools", "insufficient_scope"),
    ],
)
def test_each_reason_why_a_token_is_refused_is_told(shared_stack: Stack, token: str, reason: str) -> None:
    import time

    import jwt

    claims = tokens.mint(shared_stack.secret, subject="ana", scope="tool:*", ttl=60).claims
    key = shared_stack.secret.key()
    given = {
        "nonsense": "nonsense",
        "expired": jwt.encode(claims | {"exp": int(time.time()) - 90}, key),
        "other secret": jwt.encode(claims, b"x" * 40),
        "no tools": tokens.mint(shared_stack.secret, subject="ana", scope="", ttl=60).token,
    }[token]
    found = examined(shared_stack, shared_stack.edge_url, token=given)
    assert reason in told(found, "token")
    assert "token" in bad(found, "edge")
    assert given not in report.as_text(found) + json.dumps(report.as_json(found)) or given == "nonsense"


def test_a_revoked_token_is_told_from_the_servers_log(make_stack: Callable[..., Stack]) -> None:
    from slipway import operator

    stack = make_stack()
    token = stack.token()
    operator.Server(stack.config, stack.secret).ask("POST", "/tokens/revoke", {"all": True})
    found = examined(stack, stack.edge_url, token=token)
    assert "revoked" in told(found, "token")


def test_an_origin_that_is_not_allowed_is_told_with_the_setting(shared_stack: Stack) -> None:
    found = examined(shared_stack, shared_stack.tls_url, origin="https://app.example")
    assert {"preflight-handshake", "origin"} <= bad(found, "tls")
    assert "https://app.example to SLIPWAY_ALLOWED_ORIGINS" in told(found, "preflight-handshake")
    assert found.clients["browser"].verdict == "cannot"


def test_a_dead_server_and_a_dead_edge_are_told_apart(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    stack.kill("server")
    found = examined(stack)
    assert "reach" in bad(found, "server") & bad(found, "edge")
    assert "nothing listens" in told(found, "reach", 0)
    assert "does not" in told(found, "reach", 1)
    assert found.first_trouble()[0] == "server"
    assert found.clients["claude-code"].verdict == "cannot"


# servers and proxies that are not ours


PLAIN = """
import asyncio, sys
from fastmcp import Context, FastMCP
mcp = FastMCP("plain")
@mcp.tool
async def countdown(n: int, ctx: Context, seconds: float = 1.0) -> str:
    for step in range(n + 1):
        await ctx.report_progress(step, n)
        await asyncio.sleep(seconds)
    return "liftoff"
if len(sys.argv) > 1:
    mcp.run(transport="http", port=int(sys.argv[1]), show_banner=False)
else:
    mcp.run(show_banner=False)
"""
NO_CORS = PREFLIGHTS | {"allow-origin-once", "session-readable", "404-readable"}
WELL = {"handshake", "session", "post-stream", "get-stream", "compression", "redirect", "body-limit"}


def well(found: Report) -> set[str]:
    return {name for name, each in found.found[-1].items() if each.verdict == "ok"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A plain FastMCP server, without Slipway."""
    path = tmp_path_factory.mktemp("plain") / "plain.py"
    path.write_text(PLAIN)
    (port,) = free_ports(1)
    with running([sys.executable, str(path), str(port)], port):
        yield port


def test_the_doctor_is_right_about_a_plain_fastmcp(plain: int) -> None:
    found = examined(None, f"http://localhost:{plain}/mcp")
    assert bad(found, "url") == NO_CORS | {"slash", "challenge"}
    assert well(found) >= WELL | {"newest"}
    assert found.failures == 0, "it never promised to be open to browsers"
    assert found.clients["claude-code"].verdict == "works"
    assert found.clients["browser"].verdict == "cannot"
    strict = examined(None, f"http://localhost:{plain}/mcp", origin="https://app.example")
    assert strict.found[-1]["preflight-handshake"].verdict == "failure"


NGINX = """daemon off; pid {0}/pid; error_log {0}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d;
  scgi_temp_path {0}/e;
  server {{ listen 127.0.0.1:{1}; location / {{ proxy_pass http://127.0.0.1:{3}; proxy_set_header Host $http_host; }} }}
  server {{ listen 127.0.0.1:{2}; location / {{ proxy_pass http://127.0.0.1:{3}; proxy_set_header Host $http_host;
    proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types *; gzip_proxied any; }} }}
}}
"""


@pytest.mark.parametrize("upstream", ["slipway", "plain"])
def test_the_doctor_is_right_about_nginx(shared_stack: Stack, plain: int, tmp_path: Path, upstream: str) -> None:
    nginx = program("nginx")
    usual, deaf = free_ports(2)
    behind = shared_stack.config.edge_port if upstream == "slipway" else plain
    (tmp_path / "nginx.conf").write_text(NGINX.format(tmp_path, usual, deaf, behind))
    with running(
        [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "log")], usual
    ):
        stack = shared_stack if upstream == "slipway" else None
        good, ill = (examined(stack, f"http://localhost:{port}/mcp") for port in (usual, deaf))
    # its buffering is on by default, and switched off by the header that our server sends
    assert not bad(good, "url") & {"post-stream", "get-stream", "compression"}
    assert "413" in told(good, "body-limit") or "refused" in told(good, "body-limit")
    assert "compression" in bad(ill, "url")
    if upstream == "slipway":
        assert bad(good, "url") <= {"slash"}
    else:
        assert "get-stream" in bad(ill, "url")


@pytest.mark.node
def test_the_doctor_is_right_about_the_typescript_sdks_server() -> None:
    folder = node_clients.installed()
    (port,) = free_ports(1)
    with running([node_clients.node(folder), str(folder / "server.mjs"), str(port)], port, cwd=folder):
        found = examined(None, f"http://localhost:{port}/mcp")
    assert well(found) >= WELL
    assert bad(found, "url") == NO_CORS | {"challenge"}
    assert "typescript" in told(found, "handshake")
    assert "handshake era only" in told(found, "newest")


@pytest.mark.node
def test_the_doctor_is_right_about_mcp_proxy(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    (port,) = free_ports(1)
    command = [
        program("uvx"),
        "mcp-proxy@0.13.0",
        "--port",
        str(port),
        "--",
        *shlex.split(f"{sys.executable} {path}"),
    ]
    with running(command, port):
        found = examined(None, f"http://localhost:{port}/mcp")
    assert {"handshake", "session", "get-stream"} <= well(found)
    assert "post-stream" not in bad(found, "url")
    assert "challenge" in bad(found, "url")


# whatever answers is hostile


def _raw(answer: bytes, then: bytes = b"", repeat: bool = False) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        connection.sendall(answer)
        while repeat and then:
            connection.sendall(then)

    return act


def _json(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
BOMB = zlib.compress(b"\0" * 50_000_000)
HOSTILE: dict[str, Callable[[socket.socket], None]] = {
    "no HTTP": _raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "headers without end": _raw(b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 8000 + b"\r\n", True),
    "a body without end": _raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b"[" * 65_536, True),
    "events without end": _raw(STREAM, b"id: 1\ndata: {}\n\n" * 4000, True),
    "a line without end": _raw(STREAM, b"data: " + b"x" * 65_536, True),
    "a bomb": _raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
        % len(BOMB)
        + BOMB
    ),
    "a wrong encoding": _raw(STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"no gzip"),
    "deep JSON": _raw(_json("[" * 100_000)),
    "control characters": _raw(
        b"HTTP/1.1 401 \x1b[31mno\r\nWWW-Authenticate: Bearer resource_metadata=\"http://\x1b]0;evil\x07/\"\r\n"
        b"Content-Length: 12\r\n\r\n\x1b[2J\x1b[1;1H\x07\x00\r\n"
    ),
    "shapes that nobody foresaw": _raw(_json('{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":[],"serverInfo":7,"tools":[1,{"name":[]}]}}')),
    "errors of odd shapes": _raw(_json('{"jsonrpc":"2.0","id":1,"error":[1,2]}')),
    "a redirect to itself": _raw(b"HTTP/1.1 302 Found\r\nLocation: /mcp\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to a file": _raw(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
    "a wrong length": _raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{}"),
    "nothing": lambda connection: connection.settimeout(0.01),
}  # fmt: skip


@contextlib.contextmanager
def hostile(act: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer every connection on a port with `act`, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            connection.recv(65_536)
            act(connection)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_neither_hangs_nor_breaks_nor_paints_the_terminal(name: str) -> None:
    with hostile(HOSTILE[name]) as port:
        found = examined(None, f"http://localhost:{port}/mcp", token="not-for-you")
    text = report.as_text(found)
    assert found.failures
    assert found.clients["claude-code"].verdict == "cannot"
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "not-for-you" not in text


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 403 No\r\nContent-Length: 999\r\n\r\nI will not take the header Authorization: Bearer {}",
        'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {{"jsonrpc": "2.0", "id": 1, "error": '
        '{{"message": "I will not take the header Authorization with the words Bearer {}"}}}}\n\n',
        "HTTP/1.1 302 Found\r\nLocation: /this/is/a/long/way/to/some/other/endpoint/?token={}\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["body", "event", "header"],
)
def test_of_a_token_that_a_server_echoes_not_even_a_part_is_shown(answer: str) -> None:
    token = tokens.mint(tokens.Secret("abcdefghijklmnop" * 3), subject="ana", scope="tool:*", ttl=60).token
    with hostile(_raw(answer.format(token).encode())) as port:
        found = examined(None, f"http://localhost:{port}/mcp", token=token)
    text = report.as_text(found) + json.dumps(report.as_json(found))
    assert "(token)" in text
    assert token[:8] not in text


@pytest.mark.parametrize(
    ("left", "told"), [(True, "warning: not over in 10 s"), (False, "failure: cut after 10.0 s")]
)
def test_a_call_that_outlasts_our_patience_is_not_blamed_on_a_proxy(left: bool, told: str) -> None:
    found = streams._paced(Answer(status=200, seconds=10.0, left=left))
    assert f"{found.verdict}: {found.saw}" == told


# the command


def doctor(
    stack: Stack | None, *arguments: str, stdin: str = "", cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(stack.environment if stack else {})}
    return subprocess.run(
        [sys.executable, "-m", "slipway.doctor", *arguments],
        env=environment, cwd=cwd, capture_output=True, text=True, input=stdin, timeout=120,
    )  # fmt: skip


def test_the_command_prints_a_table_or_one_object_and_says_so_by_its_exit_code(shared_stack: Stack) -> None:
    text, one = doctor(shared_stack), doctor(shared_stack, "--json")
    assert (text.returncode, one.returncode) == (0, 0), text.stdout + text.stderr
    assert "All well" in text.stdout and not text.stderr
    content = json.loads(one.stdout)
    assert content["ok"] is True and content["first_trouble"] is None
    assert [hop["name"] for hop in content["hops"]] == ["server", "edge", "tls"]
    assert set(content["hops"][0]["checks"]) == set(CHECKS)
    (port,) = free_ports(1)
    dead = doctor(shared_stack, f"http://localhost:{port}/mcp", "--json")
    assert dead.returncode == 1
    assert json.loads(dead.stdout)["first_trouble"]["checks"] == ["reach"]


def test_a_token_from_stdin_is_used_and_never_shown(shared_stack: Stack, tmp_path: Path) -> None:
    token = shared_stack.token()
    done = doctor(
        shared_stack, shared_stack.edge_url, "--token", "-", "--bundle", "out.json", stdin=token + "\n", cwd=tmp_path
    )
    assert done.returncode == 0
    bundle = tmp_path / "out.json"
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    text = bundle.read_text()
    assert token not in done.stdout + done.stderr + text
    assert "eyJ" not in text and str(Path.home()) not in text
    content = json.loads(text)
    assert content["report"]["ok"] is True and content["logs"]["server"] and content["packages"]["fastmcp"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["localhost:8080/mcp"], "https://localhost:8080/mcp"),
        (["ftp://host.example/mcp"], "no http or https URL"),
        (["http://a:b@host.example/mcp"], "password"),
        (["http://host.example:99999/mcp"], "no http or https URL"),
        (["http://[::1/mcp"], "no http or https URL"),
        (["--origin", "app.example"], "no origin"),
        (["--origin", "http://["], "no origin"),
        (["--origin", "https://u:p@app.example"], "no origin"),
        (["--origin", "https://app.example?x"], "no origin"),
        (["--origin", "https://app.example/path"], "no origin"),
        (["--soak", "-1"], "out of range"),
        (["--soak", "99999"], "out of range"),
        (["--token", "two words"], "no token"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_with_the_cure(
    shared_stack: Stack, arguments: list[str], says: str
) -> None:
    done = doctor(shared_stack, *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "→" in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    "origin", ["", "null", "https://app.example", "HTTP://[::1]:8081/", "chrome-extension://abc"]
)
def test_what_browsers_send_is_an_origin(origin: str) -> None:
    assert __main__._origin(origin) == origin.lower().rstrip("/")


def test_a_secret_that_cannot_be_used_is_told_and_not_taken_for_none(shared_stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "weak").write_text("abcdefghijkl\n")
    environment = {**os.environ, **shared_stack.environment, "SLIPWAY_SECRET_FILE": str(tmp_path / "weak")}
    done = subprocess.run(
        [sys.executable, "-m", "slipway.doctor"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "shorter than 32 bytes" in done.stderr


def test_a_secret_that_cannot_even_be_looked_for_is_told() -> None:
    config = settings.load({"SLIPWAY_SECRET_FILE": "x" * 300}, None)
    with pytest.raises(Problem, match="cannot be read"):
        __main__._secret(config)


def test_a_name_that_nobody_knows_is_told_at_once(shared_stack: Stack) -> None:
    done = doctor(shared_stack, "https://no-such-host.invalid/mcp")
    assert done.returncode == 1
    assert "name" in done.stdout and "unknown to this machine's DNS" in " ".join(done.stdout.split())


def test_of_a_request_that_the_edge_passed_on_the_servers_line_is_taken(tmp_path: Path) -> None:
    (tmp_path / "edge.jsonl").write_text(
        '{"request": {}, "request_id": "one"}\n{"refused": "origin", "request_id": "two"}\n'
    )
    line = '{"request_id": "one", "reason": "token refused: expired"}\n'
    later = threading.Timer(0.25, lambda: (tmp_path / "server.jsonl").write_text(line))
    later.start()
    assert examine._logged(tmp_path, "one")["reason"] == "token refused: expired"
    assert examine._logged(tmp_path, "two")["by"] == "edge"
    later.join()
