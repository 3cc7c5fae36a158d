"""Tool calls without a server: places, times, and what stands in the audit log and the metrics of how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import pytest
from fastmcp import FastMCP
from fastmcp.exceptions import InsufficientScopeError, ToolError
from fastmcp.server.http import set_http_request
from starlette.requests import Request

from slipway import calls
from slipway.calls import Calls, Rule
from slipway.knocks import Knock
from slipway.limits import Allowance, Limits
from slipway.metrics import Metrics


class House:
    """A server with one tool, and what is remembered of its calls."""

    def __init__(
        self,
        tool: Callable[..., Any],
        may_call: Callable[[str], None] = lambda _: None,
        rule: Rule | None = None,
        **bounds: Any,
    ) -> None:
        self.limits, self.metrics, self.knock = Limits(Allowance(calls_at_once=1)), Metrics(), Knock()
        self.mcp: FastMCP[Any] = FastMCP("house")
        self.mcp.tool(tool, name="tool")
        bounds = {"timeout": 0.0, "max_answer": 0} | bounds
        self.mcp.add_middleware(Calls(self.limits, {"tool": rule or Rule()}, self.metrics, may_call, **bounds))

    async def call(self, **arguments: Any) -> Any:
        """Call the tool with a record of its own."""
        self.knock = Knock()
        scope = {"type": "http", "headers": [], "client": ("1.2.3.4", 5), "state": {"knock": self.knock}}
        with set_http_request(Request(scope)):
            return await self.mcp.call_tool("tool", arguments)

    def counted(self) -> list[tuple[str, str]]:
        """Return (tool, outcome) of each call that was counted."""
        found = [s for family in self.metrics.registry.collect() for s in family.samples]
        return [(s.labels["tool"], s.labels["outcome"]) for s in found if s.name == "slipway_calls_total"]


async def add(a: int = 1) -> int:
    return a + 1


@contextlib.asynccontextmanager
async def blocking() -> AsyncIterator[tuple[Callable[[], None], threading.Event, threading.Event]]:
    """Give a tool that blocks its thread, whether it began, and what lets it end."""
    began, go = threading.Event(), threading.Event()

    def tool() -> None:
        began.set()
        go.wait(60)

    try:
        yield tool, began, go
    finally:
        go.set()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("rule", [Rule(), Rule(at_once=1)], ids=["caller's", "tool's"])
@pytest.mark.parametrize("how", ["timeout", "left"])
async def test_a_blocked_threads_place_is_taken_until_the_thread_ends_and_its_caller_is_answered_at_once(
    how: str, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE", 1000.0)
    async with blocking() as (tool, began, go):
        house = House(tool, rule=rule, timeout=0.05 if how == "timeout" else 0.0)
        call = asyncio.create_task(house.call())
        if how == "left":
            await until(began.is_set)
            call.cancel()
        with pytest.raises(ToolError if how == "timeout" else asyncio.CancelledError):
            async with asyncio.timeout(20):
                await call
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 1
        with pytest.raises(ToolError, match="1 calls open"):
            await house.call()
        go.set()
        await until(lambda: not house.limits.taken)
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_a_tool_that_is_cancelled_may_clean_up_and_wait_for_it() -> None:
    steps: list[str] = []

    async def tool() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await anyio.to_thread.run_sync(steps.append, "cleaned up")

    house = House(tool, timeout=0.05)
    with pytest.raises(ToolError, match="took longer"):
        await house.call()
    assert steps == ["cleaned up"]
    assert not house.limits.taken


async def test_the_log_holds_why_a_call_was_ended_or_refused_by_a_bound() -> None:
    async def tool(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "x" * 100

    house = House(tool, timeout=0.05, max_answer=10)
    with pytest.raises(ToolError):
        await house.call(seconds=60)
    assert (house.knock.outcome, house.knock.limit) == ("timeout", "timeout")
    assert "took longer than 0.05 s" in house.knock.reason
    with pytest.raises(ToolError):
        await house.call(seconds=0)
    assert (house.knock.outcome, house.knock.limit) == ("limited", "answer")
    assert "has 100 bytes" in house.knock.reason
    house.limits.take("calls_at_once", "address 1.2.3.4", 1)
    with pytest.raises(ToolError):
        await house.call(seconds=0)
    assert (house.knock.outcome, house.knock.limit) == ("limited", "calls_at_once")
    assert "1 calls open" in house.knock.reason
    assert set(house.counted()) == {("unknown", "timeout"), ("tool", "limited")}


async def test_what_a_tool_raises_is_named_and_its_text_is_not() -> None:
    async def tool() -> None:
        raise ValueError("swordfish")

    house = House(tool)
    with pytest.raises(ToolError):
        await house.call()
    assert (house.knock.outcome, house.knock.reason) == ("error", "tool error: ToolError")


async def test_a_forbidden_call_needs_no_place_and_leaves_no_arguments() -> None:
    def never(tool: str) -> None:
        raise InsufficientScopeError([f"tool:{tool}"])

    house = House(add, never, payloads=True)
    house.limits.take("calls_at_once", "address 1.2.3.4", 1)
    with pytest.raises(InsufficientScopeError):
        await house.call(a=471100000117)
    assert (house.knock.outcome, house.knock.code) == ("forbidden", "scope")
    assert house.knock.reason == "insufficient_scope: tool:tool is missing"
    assert house.knock.arguments == ""
    assert house.counted() == [("unknown", "forbidden")]


async def test_a_call_outside_of_a_request_is_counted_and_one_of_ours_is_not() -> None:
    house = House(add, payloads=True)
    await house.mcp.call_tool("tool", {})
    assert house.counted() == [("tool", "ok")]
    with set_http_request(Request({"type": "http", "headers": [], "slipway.quiet": True})):
        await house.mcp.call_tool("tool", {})
    assert house.counted() == [("tool", "ok")]
    await house.call(a=5)
    assert (house.knock.outcome, house.knock.arguments) == ("ok", '{"a": 5}')
    assert '"6"' in house.knock.result
