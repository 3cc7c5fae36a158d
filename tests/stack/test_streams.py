"""Streams and sessions through real Caddy: event by event, a client that leaves, a server that dies in the middle."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from fastmcp import Client

from tests.conftest import ROOT, Stack, wait_until

pytestmark = pytest.mark.slow

ERAS = {"handshake": "legacy", "newest": "auto"}
START = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def client(stack: Stack, era: str, url: str = "", **how: object) -> Client:
    return Client(url or stack.tls_url, auth=stack.token(), verify=stack.trust(), mode=ERAS[era], timeout=20, **how)


def message(method: str, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def newest(**params: object) -> tuple[dict[str, str], dict[str, object]]:
    """Return headers and message of a tools/call in the newest era."""
    # a call without progress is answered as plain JSON
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": "p",
    }  # fmt: skip
    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": str(params["name"])}
    return headers, message("tools/call", **params, _meta=meta)


async def events(answer: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, object]]]:
    """Yield (event id, message) as they arrive."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("id:"):
            name = line[3:].strip()
        elif line.startswith("data:") and line[5:].strip():
            yield name, json.loads(line[5:])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("door", ["server", "plain", "tls"])
async def test_a_client_uses_everything_through_every_door(shared_stack: Stack, era: str, door: str) -> None:
    url = {"server": shared_stack.server_url, "plain": shared_stack.edge_url, "tls": shared_stack.tls_url}[door]
    steps: list[float] = []
    logs: list[object] = []

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        steps.append(progress)

    async def on_log(line: object) -> None:
        logs.append(line)

    async with client(shared_stack, era, url, log_handler=on_log) as c:
        assert {tool.name for tool in await c.list_tools()} >= {"add", "countdown", "whoami", "save_note"}
        assert (await c.call_tool("add", {"a": 2, "b": 3})).data == 5
        assert (await c.call_tool("whoami")).data == {"subject": "ana", "scopes": ["tool:*"]}
        done = await c.call_tool("countdown", {"n": 3, "seconds": 0.01}, progress_handler=on_progress)
        assert done.data == "liftoff"
        assert steps == [0, 1, 2, 3]
        assert "Slipway" in (await c.read_resource("slipway://about"))[0].text
        assert "ana" in (await c.get_prompt("introduce", {"name": "ana"})).messages[0].content.text
    # the newest revision sends log messages only to clients that ask for a level in each request's _meta
    assert era == "newest" or len(logs) == 3


@pytest.mark.parametrize("door", ["plain", "tls1", "tls2"])
@pytest.mark.parametrize("era", ERAS)
async def test_events_arrive_one_by_one_and_a_client_that_leaves_is_noticed(
    make_stack: Callable[..., Stack], era: str, door: str
) -> None:
    stack = make_stack()
    headers, call = newest(name="countdown", arguments={"n": 500, "seconds": 0.05})
    if era == "handshake":
        headers, call = (
            {},
            message(
                "tools/call", name="countdown", arguments={"n": 500, "seconds": 0.05}, _meta={"progressToken": "p"}
            ),
        )
    url = stack.edge_url if door == "plain" else stack.tls_url
    async with (
        httpx2.AsyncClient(verify=stack.trust(), http1=door != "tls2", http2=door == "tls2", timeout=20) as http,
        http.stream("POST", url, headers=stack.bearer() | headers, json=call) as answer,
    ):
        seen = 0
        async for _, event in events(answer):
            if event.get("method") == "notifications/progress":
                seen += 1
            if seen == 3:
                break  # the tool has 25 seconds to go: what we hold was not buffered
    await asyncio.to_thread(
        wait_until, lambda: "countdown(500) was cancelled" in stack.text("server"), 10, "cancelling"
    )


async def test_a_dropped_stream_is_resumed_with_every_missed_event(shared_stack: Stack) -> None:
    async with httpx2.AsyncClient(verify=shared_stack.trust(), http2=True, timeout=20) as http:
        opened = await http.post(
            shared_stack.tls_url, headers=shared_stack.bearer(), json=message("initialize", **START)
        )
        headers = shared_stack.bearer() | {
            "mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25",
        }  # fmt: skip
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await http.post(shared_stack.tls_url, headers=headers, json=ready)).status_code == 202
        call = message(
            "tools/call", name="countdown", arguments={"n": 8, "seconds": 0.1}, _meta={"progressToken": "p"}
        )
        steps: list[object] = []
        last = ""
        # httpx2 resets no HTTP/2 stream that it leaves: only a connection of its own is really dropped
        async with (
            httpx2.AsyncClient(verify=shared_stack.trust(), http2=True, timeout=20) as dropped,
            dropped.stream("POST", shared_stack.tls_url, headers=headers, json=call) as answer,
        ):
            async for name, event in events(answer):
                last = name
                if event.get("method") == "notifications/progress":
                    steps.append(event["params"]["progress"])
                if len(steps) == 3:
                    break
        # An EventSource comes back until it has its answer. Each time from the same event: a resume that arrives before
        # the server noticed the drop ends at once, and the SDK can miss an event between replay and live tail.
        begun, result = list(steps), None
        for _ in range(40):
            steps = list(begun)
            async with http.stream("GET", shared_stack.tls_url, headers=headers | {"last-event-id": last}) as answer:
                assert answer.status_code == 200
                async for _name, event in events(answer):
                    if event.get("method") == "notifications/progress":
                        steps.append(event["params"]["progress"])
                    if event.get("id") == 7:
                        result = event["result"]["content"][0]["text"]
                        break
            if result and len(steps) == 9:
                break
        assert result == "liftoff"
        assert steps == list(range(9))
        # nobody else's token opens this session
        stranger = {**headers, "authorization": f"Bearer {shared_stack.token(subject='eve')}", "last-event-id": last}
        assert (await http.get(shared_stack.tls_url, headers=stranger)).status_code == 405
        assert (await http.delete(shared_stack.tls_url, headers=headers)).status_code == 200


async def test_a_session_outlives_the_death_of_the_server(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    async with client(stack, "handshake") as c:
        assert (await c.call_tool("add", {"a": 1, "b": 1})).data == 2
        await asyncio.to_thread(stack.kill, "server")
        await asyncio.to_thread(stack.start, "server")
        assert (await c.call_tool("add", {"a": 2, "b": 2})).data == 4
        assert len(await c.list_tools()) > 3


async def test_a_call_made_while_the_server_restarts_is_held_and_answered(make_stack: Callable[..., Stack]) -> None:
    # a server that is back within the edge's three seconds; on a slow machine the client's own retry has to do
    stack = make_stack(
        caddyfile=(ROOT / "Caddyfile").read_text().replace("lb_try_duration 3s", "lb_try_duration 20s")
    )
    stack.kill("server")
    back = threading.Thread(target=stack.start, args=("server",))
    back.start()
    try:
        async with client(stack, "newest") as c:
            assert (await c.call_tool("add", {"a": 2, "b": 2})).data == 4
    finally:
        await asyncio.to_thread(back.join)


@pytest.mark.parametrize("mutation", ["", "write 1s"], ids=["as it is", "with a write timeout"])
async def test_no_timeout_of_the_edge_cuts_an_open_stream(make_stack: Callable[..., Stack], mutation: str) -> None:
    whole = (
        (ROOT / "Caddyfile")
        .read_text()
        .replace("read_header 10s", f"read_header 1s\n{mutation}")
        .replace("idle 5m", "idle 1s")
    )
    stack = make_stack(caddyfile=whole)
    headers, call = newest(name="countdown", arguments={"n": 12, "seconds": 0.2})
    done = False
    try:
        async with (
            httpx2.AsyncClient(timeout=20) as http,
            http.stream("POST", stack.edge_url, headers=stack.bearer() | headers, json=call) as answer,
        ):
            async for _, event in events(answer):
                done = done or event.get("id") == 7
    except httpx2.HTTPError:
        pass
    assert done != bool(mutation), "the twin with a write timeout must be cut"


async def test_an_event_stream_is_never_compressed(shared_stack: Stack) -> None:
    headers, call = newest(name="countdown", arguments={"n": 1, "seconds": 0})
    headers |= shared_stack.bearer() | {"accept-encoding": "gzip, br, zstd"}
    async with httpx2.AsyncClient(verify=shared_stack.trust(), timeout=20) as http:
        answer = await http.post(shared_stack.tls_url, headers=headers, json=call)
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-type"] == "text/event-stream"


async def test_a_session_hears_a_cancellation(shared_stack: Stack) -> None:
    async with httpx2.AsyncClient(verify=shared_stack.trust(), timeout=20) as http:
        opened = await http.post(
            shared_stack.tls_url, headers=shared_stack.bearer(), json=message("initialize", **START)
        )
        headers = shared_stack.bearer() | {
            "mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25",
        }  # fmt: skip
        await http.post(
            shared_stack.tls_url, headers=headers, json={"jsonrpc": "2.0", "method": "notifications/initialized"}
        )
        call = message(
            "tools/call", name="countdown", arguments={"n": 321, "seconds": 0.1}, _meta={"progressToken": "p"}
        )
        async with http.stream("POST", shared_stack.tls_url, headers=headers, json=call) as answer:
            async for _, event in events(answer):
                if event.get("method") == "notifications/progress":
                    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
                    await http.post(shared_stack.tls_url, headers=headers, json=cancel)
                if event.get("id") == 7:
                    assert "result" not in event
                    break
    await asyncio.to_thread(wait_until, lambda: "countdown(321) was cancelled" in shared_stack.text("server"), 10)


@pytest.mark.parametrize("door", ["server", "plain", "tls1", "tls2"])
def test_an_idle_stream_gives_a_byte_before_anything_happens(shared_stack: Stack, door: str) -> None:
    urls = {"server": shared_stack.server_url, "plain": shared_stack.edge_url}
    url = urls.get(door, shared_stack.tls_url)
    # the SDK's own ping would come after 15 s
    with httpx2.Client(
        verify=shared_stack.trust(), headers=shared_stack.bearer(), http2=door == "tls2", http1=door != "tls2",
        timeout=httpx2.Timeout(20, read=8),
    ) as http:  # fmt: skip
        session = http.post(url, json=message("initialize", **START)).headers["mcp-session-id"]
        with http.stream("GET", url, headers={"mcp-session-id": session}) as answer:
            assert next(answer.iter_raw()) == b": open\n\n"
