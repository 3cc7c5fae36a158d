"""The life of one tool call: how many at once, how long, what a caller learns of a failure, and how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as mt
from fastmcp.exceptions import FastMCPError, PromptError, ResourceError, ToolError
from fastmcp.server.dependencies import fastmcp_request_ctx, get_access_token, get_http_request
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import Tool, ToolResult
from mcp.shared.exceptions import MCPError

from slipway import knocks
from slipway.limits import Limits

GRACE = 2.0  # seconds in which a cancelled tool may clean up before its caller is answered
MAX_TOLD = 4000  # characters of arguments and of a result in the audit log, where they are asked for

log = logging.getLogger("slipway")


@dataclass(frozen=True)
class Rule:
    """What holds for one tool, whoever calls it."""

    at_once: int = 0  # calls; 0 means any number
    timeout: float | None = None  # seconds; 0 means any time, None what holds for all


class Calls(Middleware):
    """Runs tools within their bounds."""

    def __init__(
        self,
        limits: Limits,
        rules: Mapping[str, Rule],
        *,
        timeout: float,
        max_answer: int,
        show_errors: bool = False,
        payloads: bool = False,
    ) -> None:
        """Take the bounds.

        Args:
            limits: counts the calls that run.
            rules: by the tool's public name.
            timeout: seconds for a tool without one of its own; 0 means any time.
            max_answer: bytes of a result.
            show_errors: tell callers the text of unexpected exceptions.
            payloads: put arguments and results into the audit log.
        """
        self._limits = limits
        self._rules = rules
        self._timeout = timeout
        self._max_answer = max_answer
        self._show_errors = show_errors
        self._payloads = payloads

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Hand on; the text of an exception that nobody meant for callers stays here.

        Raises:
            FastMCPError: with a text for callers.
        """
        try:
            return await call_next(context)
        except (ToolError, ResourceError, PromptError) as error:
            cause = error.__cause__
            # FastMCP appends the text of what a tool raised by accident; what was raised as ToolError is meant
            accident = cause and not isinstance(cause, FastMCPError | MCPError) and str(error).startswith("Error ")
            if self._show_errors or not accident or not str(error).endswith(f": {cause}"):
                raise
            knock = _knock()
            where = f" The operator finds the reason in the log, at request {knock.request_id}." if knock else ""
            log.error("request %s: %s: %s", knock.request_id if knock else "?", type(cause).__name__, cause)
            raise type(error)(str(error).removesuffix(f": {cause}") + "." + where) from None

    async def on_call_tool(
        self,
        context: MiddlewareContext[mt.CallToolRequestParams],
        call_next: CallNext[mt.CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Run a tool, if there is a place for it, for as long as it may.

        Raises:
            ToolError: no place is free, its time is over, or its result is too large; the caller reads which.
        """
        name, knock, begun = context.message.name, _knock(), time.perf_counter()
        outcome = "error"
        try:
            result = await self._run(name, lambda: call_next(context))
            size = _size(result)
            if self._max_answer and size > self._max_answer:
                text = f"The result of {name!r} has {size} bytes; {self._max_answer} are the most. Ask for less."
                raise Bound("answer", text)
            outcome = "error" if result.is_error else "ok"
            if knock and self._payloads:
                knock.result = _told([block.model_dump(mode="json") for block in result.content])
            return result
        except Bound as bound:
            outcome = bound.outcome
            if knock:
                knock.reason, knock.limit = str(bound), bound.limit
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            if knock:
                if self._payloads:
                    knock.arguments = _told(context.message.arguments)
                knock.tool_ended(outcome, time.perf_counter() - begun)

    async def _run(self, name: str, run: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        rule, token = self._rules.get(name, Rule()), get_access_token()
        who = self._limits.identity(token.claims if token else None, "" if token else _address())
        places = [("calls_at_once", f"tool {name}", rule.at_once, f"The tool {name!r}")] if rule.at_once else []
        if who:
            places.append(("calls_at_once", who.key, who.allowed.calls_at_once, "This token"))
        taken: list[tuple[str, str]] = []

        def give_back(_: object = None) -> None:
            while taken:
                self._limits.give_back(*taken.pop())

        for what, key, most, whose in places:
            if over := self._limits.take(what, key, most, whose):
                give_back()
                raise Bound(over.limit, over.text)
            taken.append((what, key))
        task = asyncio.ensure_future(run())
        # a thread cannot be stopped: its place is taken until it really ends
        task.add_done_callback(give_back)
        seconds = self._timeout if rule.timeout is None else rule.timeout
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds or None)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if done:
            return task.result()
        await _end(task)
        raise Bound("timeout", f"The tool {name!r} was cancelled: it took longer than {seconds:g} s.", "timeout")


class OneTool(Middleware):
    """Lists the one tool that is called, where the SDK asks for all of them to look at one.

    Before each call of the newest era it does, since headers may repeat arguments (MCP 2026-07-28, Mcp-Param-*). It
    asks within the caller's request, so what the caller may not see is not found here either. The innermost of
    FastMCP's middleware: what others change in a list, they change in this one, too.
    """

    async def on_list_tools(
        self,
        context: MiddlewareContext[mt.ListToolsRequest],
        call_next: CallNext[mt.ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        """Look one up, or hand on."""
        knock, asked, server = _knock(), fastmcp_request_ctx.get(), context.fastmcp_context
        called = knock.body.message() if knock else {}
        # a tool that lists tools itself is asked for by tools/call, and gets all
        if not (asked and server and asked._srctx.method == "tools/list" and called.get("method") == "tools/call"):
            return await call_next(context)
        tool = await server.fastmcp.get_tool(called["params"]["name"])
        return [tool] if tool else []


class Bound(ToolError):
    """A tool call that was refused or ended because of a bound; the text is for the caller."""

    def __init__(self, limit: str, text: str, outcome: str = "limited") -> None:
        super().__init__(text)
        self.limit = limit
        self.outcome = outcome


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel, and give it a moment to clean up, even while we are cancelled ourselves."""
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
    with anyio.CancelScope(shield=True):
        await asyncio.wait({task}, timeout=GRACE)


def _knock() -> knocks.Knock | None:
    """Return the record of the HTTP request that carried this message."""
    try:
        # not the context variable: in a session the tool runs in the session's task, not in the request's
        return knocks.of(get_http_request().scope)
    except RuntimeError:
        return None


def _address() -> str:
    try:
        client = get_http_request().client
    except RuntimeError:
        return ""
    return client.host if client else ""


def _size(result: ToolResult) -> int:
    """Return the bytes of a result, nearly: of its texts and its base64 data."""
    size = 0
    for block in result.content:
        for value in (block, getattr(block, "resource", None)):
            for name in ("text", "data", "blob"):
                found = getattr(value, name, None)
                size += len(found) if isinstance(found, str) else 0
    if not result.content and result.structured_content:
        size = len(json.dumps(result.structured_content, default=str))
    return size


def _told(value: object) -> str:
    return json.dumps(value, default=str)[:MAX_TOLD]
