"""Bounds that hold whoever calls: JSON that is dear, bodies that do not come, readers that do not read, too many at once."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipway import guards, knocks, sessions
from slipway.audit import Audit
from slipway.guards import Bounds, too_dear
from slipway.streams import SlowReaders


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[" * 64 + b"]" * 64, json.dumps({"text": "[" * 50_000 + '"{\\' * 50}).encode(),
        json.dumps([{}] * 19_000).encode(),
    ],
    ids=["none", "small", "deep", "brackets in a string", "wide"],
)  # fmt: skip
def test_what_is_cheap_to_read_passes(body: bytes) -> None:
    assert too_dear(body) == ""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" * 65 + b"]" * 65, "deeper"),
        (b'{"a":' * 500_000, "lists and objects"),
        (b"[" + b"[]," * 20_001 + b"[]]", "lists and objects"),
        (b"[" * 100, "deeper"),
        (b"[]" * 100 + b"[}", "deeper"),
    ],
    ids=["deep", "deepest", "wide", "open", "crossed"],
)
def test_what_is_dear_to_read_is_refused(body: bytes, why: str) -> None:
    assert why in too_dear(body)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 500_000, b'["' * 300_000, b'"\\' * 300_000 + b"[" * 100])
def test_no_body_makes_the_look_at_it_dear(body: bytes) -> None:
    too_dear(body)  # quadratic, this would take an hour


def ask(body: bytes = b"", path: str = "/mcp") -> tuple[Scope, list[Message]]:
    scope = {
        "type": "http", "method": "POST", "path": path, "headers": [(b"host", b"localhost")], "query_string": b"",
    }  # fmt: skip
    return scope, [{"type": "http.request", "body": body, "more_body": False}]


async def answer(app: ASGIApp, scope: Scope, given: list[Message]) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an app's answer; what is not given never comes."""
    sent: list[Message] = []

    async def receive() -> Message:
        if given:
            return given.pop(0)
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def ok(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def test_one_request_too_many_is_told_to_come_again_and_the_probes_still_pass(tmp_path: Any) -> None:
    full = asyncio.Event()

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/mcp":
            await full.wait()
        await ok(scope, receive, send)

    app = Audit(Bounds(busy, 1), knocks.open_log(tmp_path / "log"))
    first = asyncio.ensure_future(answer(app, *ask()))
    await asyncio.sleep(0)
    status, told = await answer(app, *ask())
    assert (status, "most" in told["error"]) == (503, True)
    for path in ("/healthz", "/readyz", "/livez", "/metrics"):
        assert (await answer(app, *ask(path=path)))[0] == 200
    # what /readyz and /livez ask of the whole app in turn: who is full is well, and is not to be started anew
    scope, given = ask()
    own = asyncio.ensure_future(answer(app, scope | {"slipway.quiet": True}, given))
    await asyncio.sleep(0)
    full.set()
    assert [(await each)[0] for each in (first, own)] == [200, 200]
    assert (await answer(app, *ask()))[0] == 200


async def test_a_body_that_does_not_come_is_given_up(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SECONDS", 0.05)
    app = Audit(ok, knocks.open_log(tmp_path / "log"))
    scope, _ = ask()
    status, told = await answer(app, scope, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert status == 408
    assert "again" in told["error"]


async def stream(_: Scope, __: Receive, send: Send) -> None:
    """Send more than any buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _part in range(400):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def served(app: ASGIApp) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", interface="asgi3", timeout_graceful_shutdown=1)
    )
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    return server, task, listening.getsockname()[1]


@pytest.mark.parametrize("guarded", [True, False])
async def test_who_does_not_read_is_cut_and_who_reads_gets_all(guarded: bool) -> None:
    ended: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await stream(scope, receive, send)
        except BaseException as error:
            ended.put_nowait(error)
            raise
        ended.put_nowait(None)

    server, task, port = await served(SlowReaders(inner, 0.3) if guarded else inner)
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if guarded:
            assert isinstance(await asyncio.wait_for(ended.get(), 20), OSError)
            async with httpx2.AsyncClient() as client:
                assert len((await client.get(f"http://127.0.0.1:{port}/")).content) == 40_000_000
        else:
            with pytest.raises(TimeoutError):  # the broken twin: it waits for good
                await asyncio.wait_for(ended.get(), 1.5)
    finally:
        writer.close()
        server.should_exit = True
        await task


async def test_a_refusal_keeps_no_body() -> None:
    scope, given = ask(b"[" * 100)
    body = sessions.Body(lambda: _next(given))
    await body.read()
    scope["state"] = {"knock": knocks.Knock(body=body)}
    status, _ = await answer(Bounds(ok, 0), scope, [])
    assert status == 400
    assert body.content == b""
    assert guards.MAX_DEPTH < 100


async def _next(given: list[Message]) -> Message:
    return given.pop(0)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_stream_that_is_cut_stands_in_the_log_with_its_limit(method: str, tmp_path: Any) -> None:
    async def cut(scope: Scope, _: Receive, send: Send) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b": open", "more_body": True})
        found = knocks.of(scope)
        assert found
        # as streams.SlowReaders does
        found.reason, found.limit = "cut", "slow_reader"
        raise OSError("cut")

    log = knocks.open_log(tmp_path / "log")
    scope, given = ask()
    with pytest.raises(OSError, match="cut"):
        await answer(Audit(cut, log), scope | {"method": method}, given)
    log.handlers[0].flush()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line.get("limit") for line in lines] == ([None] if method == "GET" else []) + ["slow_reader"]
    assert lines[-1]["reason"] == "cut"


def call(size: int) -> bytes:
    head = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "arguments": {"x": "'
    return head + b"x" * (size - len(head) - 4) + b'"}}}'


async def test_a_long_body_is_looked_at_as_a_short_one_is(tmp_path: Path) -> None:
    log = knocks.open_log(tmp_path / "log")
    app = Audit(Bounds(ok, 0), log, longest=3 << 20)
    assert (await answer(app, *ask(call(2 << 20))))[0] == 200
    log.handlers[0].flush()
    line = json.loads((tmp_path / "log").read_text())
    assert (line["method"], line["tool"], line["bytes_in"]) == ("tools/call", "add", 2 << 20)
    status, told = await answer(app, *ask(b"[" * (2 << 20)))
    assert (status, "lists and objects" in told["error"]) == (400, True)


async def test_a_body_that_nobody_saw_whole_reaches_no_tool(tmp_path: Path) -> None:
    app = Audit(Bounds(ok, 0), knocks.open_log(tmp_path / "log"), longest=2 << 20)
    assert (await answer(app, *ask(call(2 << 20))))[0] == 200
    half, rest = call(3 << 20)[: 2 << 20], b"x" * (1 << 20)
    for parts in ([call((2 << 20) + 1)], [half, rest]):
        scope, _ = ask()
        given = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
        status, told = await answer(app, scope, given)
        assert (status, "SLIPWAY_MAX_BODY" in told["error"]) == (413, True)
