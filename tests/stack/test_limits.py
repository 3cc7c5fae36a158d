"""Limits, times and bounds through real Caddy, in both eras: who is over one is told, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from slipway import stack as stacks
from slipway import tokens
from tests.conftest import ROOT, Stack, free_ports, wait_until

pytestmark = pytest.mark.slow

ERAS = {"handshake": "legacy", "newest": "auto"}
DOORS = ["server", "plain", "tls"]
STUBBORN = str(ROOT / "tests" / "servers" / "stubborn.py")
START = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
Make = Callable[..., Stack]


def client(stack: Stack, era: str, subject: str = "ana", **how: Any) -> Client[Any]:
    how = {"timeout": 40, **how}
    return Client(stack.tls_url, auth=stack.token(subject=subject), verify=stack.trust(), mode=ERAS[era], **how)


def url(stack: Stack, door: str) -> str:
    return {"server": stack.server_url, "plain": stack.edge_url, "tls": stack.tls_url}[door]


def bearer(stack: Stack, subject: str, **limits: int) -> dict[str, str]:
    token = tokens.mint(stack.secret, subject=subject, scope="tool:*", ttl=600, limits=limits).token
    return stack.bearer() | {"authorization": f"Bearer {token}"}


def message(method: str = "ping", id: int = 7, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stack with low bounds; each test has subjects of its own."""
    low = {
        "SLIPWAY_CALLS_BURST": "0", "SLIPWAY_CALLS_PER_MINUTE": "12", "SLIPWAY_CALLS_AT_ONCE": "2",
        "SLIPWAY_STREAMS_AT_ONCE": "2", "SLIPWAY_SESSIONS_AT_ONCE": "2", "SLIPWAY_TOOL_TIMEOUT": "1s",
        "SLIPWAY_TOOL_LIMITS": '{"wait_for": {"timeout": "60s"}, "letters": {"at_once": 1}}',
        "SLIPWAY_MAX_ANSWER": "1KB", "SLIPWAY_TARGET": STUBBORN,
    }  # fmt: skip
    running = Stack(tmp_path_factory.mktemp("stubborn"), low).start()
    yield running
    running.stop()


def until_refused(post: Callable[[], httpx2.Response], allowed: int) -> httpx2.Response:
    """Return the first answer that is not 200; on a minute's edge the window lets a few more pass."""
    for count in range(2 * allowed + 2):
        if (answer := post()).status_code != 200:
            assert count >= allowed
            return answer
    raise AssertionError(f"{2 * allowed + 2} were not refused")


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
@pytest.mark.parametrize("door", DOORS)
def test_over_the_limit_is_429_with_when_and_why_for_pages_too(stubborn: Stack, door: str, http2: bool) -> None:
    headers = bearer(stubborn, f"flood {door} {http2}")
    origin = {} if door == "server" else {"origin": "http://localhost:5173"}
    verify = stubborn.trust() if door == "tls" else True
    with httpx2.Client(http2=http2 and door == "tls", verify=verify, timeout=30) as http:
        last = until_refused(lambda: http.post(url(stubborn, door), headers=headers | origin, json=message()), 12)
    assert last.status_code == 429
    assert int(last.headers["retry-after"]) >= 1
    error = last.json()["error"]
    assert (last.json()["id"], error["data"]["limit"]) == (7, "calls_per_minute")
    assert "12 messages a minute" in error["message"]
    if origin:
        assert last.headers.get_list("access-control-allow-origin") == ["http://localhost:5173"]
        assert "Retry-After" in last.headers["access-control-expose-headers"]
    wait_until(lambda: any(line.get("limit") == "calls_per_minute" for line in stubborn.log("server")))
    line = next(line for line in stubborn.log("server") if line.get("limit"))
    assert line["outcome"] == "limited"


async def began(*files: Path) -> None:
    """Wait until the tools that wait for these files run."""
    while not all(file.with_name(file.name + ".began").exists() for file in files):
        await asyncio.sleep(0.02)


async def call_often(me: Client[Any], times: int) -> None:
    for _ in range(times):
        await me.call_tool("add", {"a": 1, "b": 1})


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_reads_the_sentence_and_others_go_on(stubborn: Stack, era: str) -> None:
    async with client(stubborn, era, f"busy {era}") as busy, client(stubborn, era, f"calm {era}") as calm:
        with pytest.raises(MCPError, match="12 messages a minute"):
            await call_often(busy, 26)
        assert (await calm.call_tool("add", {"a": 1, "b": 1})).data == 2


def test_a_token_may_have_limits_of_its_own(stubborn: Stack) -> None:
    headers = bearer(stubborn, "own", calls_per_minute=14)
    last = until_refused(lambda: httpx2.post(stubborn.server_url, headers=headers, json=message(), timeout=30), 14)
    assert last.status_code == 429


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_too_many_at_once_is_told_to_wait_for_one(stubborn: Stack, era: str, tmp_path: Path) -> None:
    async with client(stubborn, era, f"parallel {era}") as me, client(stubborn, era, f"other {era}") as other:
        files = [tmp_path / name for name in ("one", "two")]
        running = [asyncio.create_task(me.call_tool("wait_for", {"file": str(file)})) for file in files]
        await began(*files)
        with pytest.raises(ToolError, match="This token has 2 calls open"):
            await me.call_tool("add", {"a": 1, "b": 1})
        assert (await other.call_tool("add", {"a": 1, "b": 1})).data == 2
        for file in files:
            file.touch()
        assert [(await one).data for one in running] == ["there it is"] * 2
        assert (await me.call_tool("add", {"a": 1, "b": 1})).data == 2


async def test_a_tool_has_places_of_its_own_over_everybody(make_stack: Make, tmp_path: Path) -> None:
    rules = json.dumps({"wait_for": {"at_once": 1}})
    running = make_stack(SLIPWAY_TOOL_LIMITS=rules, SLIPWAY_TARGET=STUBBORN, SLIPWAY_CALLS_BURST="0")
    file = tmp_path / "go"
    async with client(running, "newest", "a") as first, client(running, "newest", "b") as second:
        call = asyncio.create_task(first.call_tool("wait_for", {"file": str(file)}))
        await began(file)
        with pytest.raises(ToolError, match="'wait_for' has 1 calls open"):
            await second.call_tool("wait_for", {"file": str(file)})
        file.touch()
        await call


async def test_who_leaves_a_session_keeps_the_place_until_the_tool_ends(stubborn: Stack, tmp_path: Path) -> None:
    headers = bearer(stubborn, "leaver", calls_per_minute=0, calls_at_once=1)
    async with httpx2.AsyncClient(timeout=30) as http:
        opened = await http.post(stubborn.server_url, headers=headers, json=message("initialize", **START))
        headers |= {"mcp-session-id": opened.headers["mcp-session-id"]}
        call = message("tools/call", name="wait_for", arguments={"file": str(tmp_path / "go")})
        async with http.stream("POST", stubborn.server_url, headers=headers, json=call) as answer:
            assert answer.status_code == 200
            await began(tmp_path / "go")
        add = message("tools/call", id=8, name="add", arguments={"a": 1, "b": 1})
        assert "1 calls open" in (await http.post(stubborn.server_url, headers=headers, json=add)).text
        (tmp_path / "go").touch()
        while "1 calls open" in (answer := await http.post(stubborn.server_url, headers=headers, json=add)).text:
            await asyncio.sleep(0.02)
        assert '"2"' in answer.text

    def late() -> list[object]:
        lines = stubborn.log("server")
        return [line["outcome"] for line in lines if "after its client had left" in str(line.get("reason"))]

    wait_until(late)
    assert late() == ["ok"]


async def test_a_stream_too_many_is_429_and_a_closed_one_makes_room(stubborn: Stack) -> None:
    headers = bearer(stubborn, "listener", calls_per_minute=0, sessions_at_once=0)
    async with httpx2.AsyncClient(timeout=30, verify=stubborn.trust()) as http:

        async def session() -> dict[str, str]:
            opened = await http.post(stubborn.tls_url, headers=headers, json=message("initialize", **START))
            return headers | {"mcp-session-id": opened.headers["mcp-session-id"]}

        three = [await session() for _ in range(3)]
        async with http.stream("GET", stubborn.tls_url, headers=three[0]):
            async with http.stream("GET", stubborn.tls_url, headers=three[1]):
                refused = await http.get(stubborn.tls_url, headers=three[2])
                assert refused.status_code == 429
                assert "2 streams open" in refused.json()["error"]["message"]
            while (await _status(http, stubborn.tls_url, three[2])) == 429:
                await asyncio.sleep(0.02)


async def _status(http: httpx2.AsyncClient, url: str, headers: dict[str, str]) -> int:
    async with http.stream("GET", url, headers=headers) as answer:
        return answer.status_code


def test_a_session_too_many_ends_the_one_that_was_longest_unused(make_stack: Make) -> None:
    running = make_stack(SLIPWAY_SESSIONS="stateful", SLIPWAY_SESSIONS_AT_ONCE="2")
    headers = running.bearer()
    with httpx2.Client(timeout=30) as http:
        names = []
        for _ in range(3):
            opened = http.post(running.server_url, headers=headers, json=message("initialize", **START))
            names.append(opened.headers["mcp-session-id"])
        codes = [
            http.post(running.server_url, headers=headers | {"mcp-session-id": name}, json=message()).status_code
            for name in names
        ]
    assert codes == [404, 200, 200]


async def test_a_flood_of_one_seat_does_not_stop_ten_others(make_stack: Make) -> None:
    running = make_stack(SLIPWAY_CALLS_PER_MINUTE="60", SLIPWAY_CALLS_BURST="0")
    done, codes = asyncio.Event(), []

    async def flood() -> None:
        headers = bearer(running, "flooder")
        call = message("tools/call", name="add", arguments={"a": 1, "b": 1})
        async with httpx2.AsyncClient(timeout=30, limits=httpx2.Limits(max_connections=64)) as http:

            async def one() -> None:
                while not done.is_set():
                    codes.append((await http.post(running.edge_url, headers=headers, json=call)).status_code)

            await asyncio.gather(*(one() for _ in range(64)))

    flooding = asyncio.create_task(flood())
    while 429 not in codes:
        await asyncio.sleep(0.01)

    async def seat(number: int) -> int:
        async with client(running, "newest" if number % 2 else "handshake", f"seat {number}") as me:
            return sum([(await me.call_tool("add", {"a": number, "b": n})).data == number + n for n in range(20)])

    assert await asyncio.gather(*(seat(number) for number in range(10))) == [20] * 10
    done.set()
    await flooding
    assert codes.count(200) <= 120  # of two minutes at most
    assert set(codes) == {200, 429}


@pytest.mark.parametrize("era", ERAS)
async def test_a_tool_past_its_time_is_cancelled_and_says_so(make_stack: Make, era: str, tmp_path: Path) -> None:
    running = make_stack(SLIPWAY_TOOL_TIMEOUT="1s", SLIPWAY_TARGET=STUBBORN)
    async with client(running, era) as me:
        with pytest.raises(ToolError, match="'wait_for' was cancelled: it took longer than 1 s"):
            await me.call_tool("wait_for", {"file": str(tmp_path / "never")})
        wait_until(lambda: "wait_for was cancelled" in running.text("server"))
        # a thread cannot be cancelled: its caller is answered all the same, and the event loop is free meanwhile
        file, ended = tmp_path / "thread", tmp_path / "thread.ended"
        slow = asyncio.create_task(me.call_tool("block_until", {"file": str(file)}))
        assert (await me.call_tool("add", {"a": 1, "b": 1})).data == 2
        with pytest.raises(ToolError, match="took longer than 1 s"):
            await slow
        assert not ended.exists()
        file.touch()

    def timeouts() -> int:
        return [line.get("outcome") for line in running.log("server")].count("timeout")

    wait_until(lambda: timeouts() == 2)


@pytest.mark.parametrize("era", ERAS)
async def test_what_went_wrong_by_accident_is_the_operators_alone(make_stack: Make, era: str) -> None:
    running = make_stack(SLIPWAY_TARGET=STUBBORN)
    async with client(running, era) as me:
        with pytest.raises(ToolError) as told:
            await me.call_tool("crash")
        assert "swordfish" not in str(told.value)
        number = str(told.value).rpartition("at request ")[2].rstrip(".")
        with pytest.raises(ToolError, match=r"^there is no such city$"):
            await me.call_tool("meant")
        for asking in (me.read_resource("stubborn://crash"), me.get_prompt("crashing_prompt")):
            with pytest.raises(MCPError) as told_too:
                await asking
            assert "swordfish" not in str(told_too.value)
    wait_until(lambda: f"request {number}: ValueError: the password is swordfish" in running.text("server"))
    assert running.lines(request_id=number)


async def test_a_setting_shows_callers_what_went_wrong(make_stack: Make) -> None:
    running = make_stack(SLIPWAY_TARGET=STUBBORN, SLIPWAY_SHOW_ERRORS="true")
    async with client(running, "newest") as me:
        with pytest.raises(ToolError, match="swordfish"):
            await me.call_tool("crash")


@pytest.mark.parametrize("era", ERAS)
async def test_a_result_that_is_too_large_becomes_an_error(stubborn: Stack, era: str) -> None:
    async with client(stubborn, era, f"large {era}") as me:
        assert len((await me.call_tool("letters", {"count": 900})).data) == 900
        with pytest.raises(ToolError, match="2000 bytes; 1000 are the most"):
            await me.call_tool("letters", {"count": 2000})


@pytest.mark.parametrize("door", DOORS)
def test_json_that_is_dear_to_read_is_refused_before_it_is_read(shared_stack: Stack, door: str) -> None:
    verify = shared_stack.trust() if door == "tls" else True
    with httpx2.Client(verify=verify, timeout=30) as http:
        for body in (b"[" * 500_000, b"[" + b"[]," * 300_000 + b"[]]"):
            refused = http.post(url(shared_stack, door), headers=shared_stack.bearer(), content=body)
            assert refused.status_code == 400
            assert "error" in refused.json()


def test_a_blocked_thread_does_not_keep_the_server_from_ending(make_stack: Make, tmp_path: Path) -> None:
    running = make_stack(SLIPWAY_TARGET=STUBBORN)
    call = message("tools/call", name="block_until", arguments={"file": str(tmp_path / "never")})
    with httpx2.stream("POST", running.server_url, headers=running.bearer(), json=call, timeout=30):
        running.processes["server"].terminate()
        # the tool blocks for a minute, Docker kills after ten seconds
        assert running.processes["server"].wait(30) == 143
    assert "cannot be stopped" in running.text("server")
    assert not (tmp_path / "never.ended").exists()


def test_a_terminal_that_takes_no_lines_holds_no_call(tmp_path: Path) -> None:
    running = Stack(tmp_path)
    command, environment = stacks.children(running.config, ROOT)["server"]
    reading, writing = os.pipe()
    (running.config.state / "log").mkdir(parents=True)
    with (tmp_path / "server.log").open("ab") as errors:
        process = subprocess.Popen(command, env=environment, stdout=writing, stderr=errors)
    try:
        os.close(writing)

        def ready() -> bool:
            try:
                return httpx2.get(running.server_url.replace("/mcp", "/readyz"), timeout=5).status_code == 200
            except httpx2.HTTPError:
                return False

        wait_until(ready, 60)
        headers = bearer(running, "ana", calls_per_minute=0, calls_burst=0) | {"user-agent": "x" * 100}
        with httpx2.Client(timeout=20) as http:
            # a pipe holds 64 KiB, a line has a fifth of a kilobyte
            for _ in range(600):
                assert http.post(running.server_url, headers=headers, json=message()).status_code == 200
    finally:
        os.close(reading)
        process.terminate()
        process.wait(20)
    assert len(running.log("server")) >= 600


def test_a_misspelt_bound_of_a_tool_is_told_at_the_start() -> None:
    done = subprocess.run(
        [ROOT / ".venv/bin/python", ROOT / "server.py", "http"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"SLIPWAY_TOOL_LIMITS": '{"add": {"at_onec": 2}}', "SERVER_PORT": str(free_ports(1)[0])},
    )  # fmt: skip
    assert done.returncode == 2
    assert "SLIPWAY_TOOL_LIMITS" in done.stderr
    assert "at_once" in done.stderr


def hurried(stack: Stack) -> Stack:
    """Start a stack whose server waits a second where it would wait half a minute."""
    children = stacks.children

    def patched(*given: Any) -> Any:
        found = children(*given)
        command, environment = found["server"]
        code = (
            "import runpy, sys; from slipway import sessions, streams; sessions.MAX_SECONDS = streams.PATIENCE = 1.0;"
            "sys.argv = ['server.py', 'http']; sys.orig_argv = [sys.executable, *sys.argv];"
            f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'server.py')!r}, run_name='__main__')"
        )
        return found | {"server": ([command[0], "-c", code], environment)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "children", patched)
        return stack.start()


@pytest.fixture(scope="module")
def hurry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = hurried(Stack(tmp_path_factory.mktemp("hurry"), {"SLIPWAY_TARGET": STUBBORN}))
    yield running
    running.stop()


def half_a_body(stack: Stack, door: str, *, chunked: bool) -> socket.socket:
    """Send the head of a request and the first byte of its body."""
    port = {"plain": stack.config.edge_port, "tls": stack.config.tls_port, "server": stack.config.server_port}[door]
    link = socket.create_connection(("127.0.0.1", port), timeout=20)
    if door == "tls":
        link = stack.trust().wrap_socket(link, server_hostname="localhost")
    lines = [f"{name}: {value}" for name, value in (stack.bearer() | {"host": "localhost"}).items()]
    lines.append("transfer-encoding: chunked" if chunked else "content-length: 5000")
    body = "1\r\n{\r\n" if chunked else "{"
    link.sendall(("POST /mcp HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n" + body).encode())
    return link


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("door", DOORS)
def test_a_body_that_does_not_come_is_answered_and_its_connection_closed(
    hurry: Stack, door: str, chunked: bool
) -> None:
    with half_a_body(hurry, door, chunked=chunked) as link:
        answer = b""
        while part := link.recv(4096):  # to the end of the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive" in answer


def test_without_its_line_the_edge_would_wait_for_the_rest_of_the_body(tmp_path: Path) -> None:
    broken = (ROOT / "Caddyfile").read_text().replace("match status 408", "match status 499")
    running = hurried(Stack(tmp_path, caddyfile=broken))
    try:
        with half_a_body(running, "plain", chunked=False) as link:
            wait_until(lambda: any(line.get("limit") == "slow_body" for line in running.log("server")))
            link.settimeout(1)
            with pytest.raises(TimeoutError):
                link.recv(1)
    finally:
        running.stop()


@pytest.mark.parametrize("door", DOORS)
async def test_who_does_not_read_a_stream_is_cut_and_its_tool_ends(hurry: Stack, door: str) -> None:
    def cut() -> int:
        return sum(line.get("limit") == "slow_reader" for line in hurry.log("server"))

    before = cut()
    call = message("tools/call", name="chatter", arguments={"lines": 400})
    verify = hurry.trust() if door == "tls" else True
    async with httpx2.AsyncClient(timeout=30, verify=verify) as http:
        async with http.stream("POST", url(hurry, door), headers=bearer(hurry, "sleepy"), json=call) as answer:
            assert answer.status_code == 200
            while cut() == before:  # nothing is read meanwhile
                await asyncio.sleep(0.05)
        assert (await http.post(url(hurry, door), headers=bearer(hurry, "sleepy"), json=message())).status_code == 200
