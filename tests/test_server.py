"""server.py and its app without the edge: stdio, refusals, scopes, sessions, and words instead of tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import jwt
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from slipway import tokens
from tests.conftest import ROOT, Stack, clean_environment, wait_until

pytestmark = pytest.mark.slow

START = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "probe", "version": "9"}}


def post(stack: Stack, method: str, headers: dict[str, str] | None = None, **params: object) -> httpx2.Response:
    with httpx2.Client(timeout=10) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return client.post(stack.server_url, headers=stack.bearer() | (headers or {}), json=body)


async def test_stdio_speaks_the_protocol_and_nothing_else(tmp_path: Path) -> None:
    transport = StdioTransport(
        sys.executable, [str(ROOT / "server.py")], env=clean_environment(tmp_path), keep_alive=False
    )
    async with Client(transport) as client:
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5
        assert (await client.call_tool("whoami")).data["subject"] == "anonymous"


def test_an_unknown_transport_gets_the_usage() -> None:
    done = subprocess.run([sys.executable, ROOT / "server.py", "sse"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize(
    ("setting", "code", "told"),
    [
        ("SERVER_PORT", 1, "cannot be used"),
        ("SLIPWAY_SESSIONS", 2, "SLIPWAY_SESSIONS"),
        ("SLIPWAY_SECRET_FILE", 2, "everybody knows"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_two_lines(
    shared_stack: Stack, tmp_path: Path, setting: str, code: int, told: str
) -> None:
    (tmp_path / "known").write_text("dev-secret-do-not-use-in-production")
    bad = {
        "SERVER_PORT": str(shared_stack.config.server_port),
        "SLIPWAY_SESSIONS": "x",
        "SLIPWAY_SECRET_FILE": str(tmp_path / "known"),
    }
    environment = clean_environment(
        tmp_path, SLIPWAY_STATE=str(tmp_path / "state"), SLIPWAY_SECRET_FILE=str(tmp_path / "secret")
    )
    environment[setting] = bad[setting]
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", "http"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == code
    assert told in done.stderr
    assert done.stderr.count("\n") == 2
    assert "→" in done.stderr


def test_a_redis_that_does_not_answer_is_said_without_its_password(tmp_path: Path) -> None:
    environment = clean_environment(
        tmp_path, SLIPWAY_STATE=str(tmp_path / "state"), SLIPWAY_SECRET_FILE=str(tmp_path / "secret"),
        REDIS_URL="redis://:s3cret@127.0.0.1:9/0",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", "http"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "Redis at 127.0.0.1:9 does not answer" in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def operator_saw(stack: Stack, request_id: str, reason: str) -> bool:
    return any(line["request_id"] == request_id and reason in line["reason"] for line in stack.log("server"))


def test_callers_learn_invalid_token_and_the_operator_the_reason(shared_stack: Stack) -> None:
    claims = tokens.mint(shared_stack.secret, subject="ana", scope="tool:*", ttl=60).claims
    key = shared_stack.secret.key()
    bad = {
        "expired": jwt.encode(claims | {"exp": int(time.time()) - 9}, key),
        "not valid yet": jwt.encode(claims | {"nbf": int(time.time()) + 99}, key),
        "issued in the future": jwt.encode(claims | {"iat": int(time.time()) + 99}, key),
        "claim exp is missing": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key),
        "wrong issuer": jwt.encode(claims | {"iss": "x"}, key),
        "wrong audience": jwt.encode(claims | {"aud": "x"}, key),
        "wrong algorithm": jwt.encode(claims, key + b"x" * 64, "HS512"),
        "wrong signature": jwt.encode(claims, key + b"x"),
        "larger than 8192": jwt.encode(claims | {"pad": "x" * 8200}, key),
        "not a JWT": "rubbish",
    }
    answers = {}
    for reason, token in bad.items():
        answer = post(
            shared_stack, "tools/list", {"authorization": f"Bearer {token}", "x-request-id": reason.replace(" ", "-")}
        )
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith('Bearer realm="slipway", error="invalid_token"')
        answers[reason] = answer.text + answer.headers["www-authenticate"]
        named = reason.replace(" ", "-")
        wait_until(partial(operator_saw, shared_stack, named, reason), what=f"a line that says {reason}")
    assert len(set(answers.values())) == 1


def test_without_a_token_the_challenge_has_no_error_code(shared_stack: Stack) -> None:
    for header in ("", "Basic YTpi"):
        answer = post(shared_stack, "tools/list", {"authorization": header})
        assert answer.status_code == 401
        where = shared_stack.server_url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp")
        assert answer.headers["www-authenticate"] == f'Bearer realm="slipway", resource_metadata="{where}"'
        assert "scripts/mint" in answer.text


def test_a_token_without_any_tool_scope_gets_403_insufficient_scope(shared_stack: Stack) -> None:
    token = tokens.mint(shared_stack.secret, subject="ana", scope="other", ttl=60).token
    answer = post(shared_stack, "tools/list", {"authorization": f"Bearer {token}"})
    assert answer.status_code == 403
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert 'scope="tool:*"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_scopes_decide_what_is_listed_and_what_may_be_called(shared_stack: Stack, mode: str) -> None:
    async with Client(shared_stack.server_url, auth=shared_stack.token("add"), mode=mode) as client:
        assert [tool.name for tool in await client.list_tools()] == ["add"]
        refused = await client.call_tool("countdown", {"n": 1}, raise_on_error=False)
        assert refused.is_error
        assert "tool:countdown" in refused.content[0].text
        unknown = await client.call_tool("no-such-tool", raise_on_error=False)
        assert unknown.is_error


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_text_of_an_unexpected_exception_stays_with_the_operator(shared_stack: Stack, mode: str) -> None:
    async with Client(shared_stack.server_url, auth=shared_stack.token(), mode=mode) as client:
        failed = await client.call_tool("countdown", {"n": -1}, raise_on_error=False)
        assert failed.is_error
        assert "0 to 1000" not in failed.content[0].text


def test_both_spellings_answer_without_a_redirect(shared_stack: Stack) -> None:
    with httpx2.Client(timeout=10) as client:
        for url in (shared_stack.server_url, shared_stack.server_url + "/"):
            answer = client.post(
                url, headers=shared_stack.bearer(), json={"jsonrpc": "2.0", "id": 1, "method": "ping"}
            )
            assert answer.status_code == 200


def test_alive_and_ready_are_told_apart(shared_stack: Stack) -> None:
    base = shared_stack.server_url.removesuffix("/mcp")
    with httpx2.Client(timeout=10) as client:
        assert client.get(base + "/healthz").text == "ok\n"
        assert client.get(base + "/readyz").json() == {"ready": True, "answer": 200}
        assert client.get(base + "/livez").json() == {"alive": True, "answer": 200}


def test_the_host_of_an_open_tunnel_is_ours_at_once_and_no_longer(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_ALLOWED_HOSTS="*.lab.example")
    host = {"host": "demo.ngrok-free.app"}
    refused = post(stack, "ping", host)
    assert refused.status_code == 421
    assert "demo.ngrok-free.app" in refused.text
    stack.config.public_url_file.write_text("https://demo.ngrok-free.app\n")
    assert post(stack, "ping", host).status_code == 200
    stack.config.public_url_file.unlink()
    assert post(stack, "ping", host).status_code == 421
    assert post(stack, "ping", {"host": "a.lab.example:8443"}).status_code == 200
    assert post(stack, "ping", {"host": "lab.example"}).status_code == 421


def test_a_page_that_goes_around_the_edge_is_refused(shared_stack: Stack) -> None:
    assert post(shared_stack, "ping", {"origin": "https://evil.example"}).status_code == 403
    assert post(shared_stack, "ping", {"origin": "http://localhost:6274"}).status_code == 200


@pytest.mark.parametrize(
    ("mode", "forgotten", "single"), [("auto", 200, 200), ("stateful", 404, 400), ("stateless", 200, 200)]
)
def test_the_modes_of_sessions_are_what_their_names_say(
    make_stack: Callable[..., Stack], mode: str, forgotten: int, single: int
) -> None:
    stack = make_stack(SLIPWAY_SESSIONS=mode)
    opened = post(stack, "initialize", **START)
    assert ("mcp-session-id" in opened.headers) == (mode != "stateless")
    assert post(stack, "tools/list").status_code == single
    assert post(stack, "tools/list", {"mcp-session-id": "0" * 32}).status_code == forgotten
    if mode != "stateless":
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        with httpx2.Client(timeout=10) as client:
            assert client.delete(stack.server_url, headers=stack.bearer() | session).status_code == 200
        assert post(stack, "tools/list", session).status_code == forgotten


@pytest.mark.parametrize(("answers", "kind"), [("stream", "text/event-stream"), ("json", "application/json")])
def test_outside_a_session_a_call_is_answered_as_the_setting_says(
    make_stack: Callable[..., Stack], answers: str, kind: str
) -> None:
    stack = make_stack(SLIPWAY_ANSWERS=answers)
    called = post(stack, "tools/call", name="add", arguments={"a": 2, "b": 3})
    assert called.headers["content-type"].startswith(kind)
    assert '"5"' in called.text
    session = {"mcp-session-id": post(stack, "initialize", **START).headers["mcp-session-id"]}
    within = post(stack, "tools/call", session, name="add", arguments={"a": 2, "b": 3})
    assert within.headers["content-type"].startswith("text/event-stream")


async def test_headers_that_repeat_an_argument_are_checked_for_who_may_call_the_tool(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(SLIPWAY_TARGET=str(ROOT / "tests" / "servers" / "regions.py"))

    def deploy(region: str, tools: str = "*") -> httpx2.Response:
        headers = {
            "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "deploy",
            "mcp-param-region": region, "authorization": f"Bearer {stack.token(tools)}",
        }  # fmt: skip
        names = {"protocolVersion": "2026-07-28", "clientCapabilities": {}}
        meta = {f"io.modelcontextprotocol/{name}": value for name, value in names.items()}
        return post(stack, "tools/call", headers, name="deploy", arguments={"region": "eu"}, _meta=meta)

    assert "deployed to eu" in deploy("eu").text
    wrong = deploy("us")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, -32020)
    # who may not call it learns nothing of its arguments
    assert "insufficient_scope" in deploy("us", "find_tools").text
    async with Client(stack.server_url, auth=stack.token()) as client:
        # a tool that lists tools is no look at one tool
        assert (await client.call_tool("find_tools", {"like": ""})).data == ["deploy", "find_tools"]
        assert len(await client.list_tools()) == 2


def test_another_subject_gets_nothing_of_a_session(shared_stack: Stack) -> None:
    opened = post(shared_stack, "initialize", **START)
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    eve = session | {"authorization": f"Bearer {shared_stack.token(subject='eve')}"}
    answer = post(shared_stack, "tools/call", eve, name="whoami", arguments={})
    assert '"subject":"eve"' in answer.text
    with httpx2.Client(timeout=10) as client:
        assert client.get(shared_stack.server_url, headers=shared_stack.bearer() | eve).status_code == 405
    assert post(shared_stack, "tools/list", session).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]',
     b'{"jsonrpc":"2.0","id":1,"method":["initialize"],"params":7}', b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"clientInfo":[]}}',
     b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":{"x":1}}}', b"\xff\xfe\x00"],
)  # fmt: skip
def test_nonsense_gets_an_answer_and_never_a_traceback(shared_stack: Stack, body: bytes) -> None:
    with httpx2.Client(timeout=10) as client:
        answer = client.post(shared_stack.server_url, headers=shared_stack.bearer(), content=body)
    assert answer.status_code < 500
    assert "Traceback" not in answer.text


def test_the_log_knows_the_client_era_tool_and_subject_of_a_session(shared_stack: Stack) -> None:
    opened = post(shared_stack, "initialize", **START)
    session = {
        "mcp-session-id": opened.headers["mcp-session-id"],
        "x-request-id": "who-1",
        "mcp-protocol-version": "2025-11-25",
    }
    post(shared_stack, "tools/call", session, name="add", arguments={"a": 41, "b": 1})
    (line,) = shared_stack.lines(request_id="who-1")
    assert (line["client"], line["era"], line["tool"], line["subject"]) == ("probe 9", "2025-11-25", "add", "ana")
    assert "41" not in json.dumps({k: v for k, v in line.items() if k not in ("time", "ms", "jti", "bytes_out")})


def test_anonymous_is_loud_and_works_without_a_token(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS="true")
    answer = post(stack, "tools/call", {"authorization": ""}, name="add", arguments={"a": 1, "b": 1})
    assert answer.status_code == 200
    assert "ANYONE" in stack.text("server")


def test_sigterm_ends_the_server_with_a_stream_open(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    with httpx2.Client(timeout=30) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "countdown", "arguments": {"n": 900, "seconds": 1}, "_meta": {"progressToken": 1}}}  # fmt: skip
        with client.stream("POST", stack.server_url, headers=stack.bearer(), json=body) as answer:
            next(answer.iter_lines())
            stack.processes["server"].terminate()
            assert stack.processes["server"].wait(9) is not None
    assert "countdown(900) was cancelled" in stack.text("server")


def test_the_secret_is_made_by_a_plain_start(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.config.secret_file.unlink()
    stack.start()
    try:
        assert stack.config.secret_file.stat().st_mode & 0o777 == 0o600
        assert stack.config.secret_file.stat().st_size == 65
    finally:
        stack.stop()
