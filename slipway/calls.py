"""The life of one tool call: who may make it, how many at once, how long, what its caller learns, how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as mt
from fastmcp.exceptions import FastMCPError, InsufficientScopeError, PromptError, ResourceError, ToolError
from fastmcp.server.dependencies import fastmcp_request_ctx, get_access_token, get_http_request
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import Tool, ToolResult
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from slipway import knocks
from slipway.limits import Limits
from slipway.metrics import Metrics

GRACE = 2.0  # seconds in which a cancelled tool may clean up before its caller is answered
MAX_TOLD = 4000  # characters of arguments and of a result in the audit log, where they are asked for

log = logging.getLogger("slipway")


@dataclass(frozen=True)
class Rule:
    """What holds for one tool, whoever calls it."""

    at_once: int = 0  # calls; 0 means any number
    timeout: float | None = None  # seconds; 0 means any time, None what holds for all


class Calls(Middleware):
    """Runs tools within their bounds, and notes how each call ended; the outermost of FastMCP's middleware."""

    def __init__(
        self,
        limits: Limits,
        rules: Mapping[str, Rule],
        metrics: Metrics,
        may_call: Callable[[str], None],
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
            metrics: counts and times the calls.
            may_call: raises InsufficientScopeError unless this caller may call this tool.
            timeout: seconds for a tool without one of its own; 0 means any time.
            max_answer: bytes of a result.
            show_errors: tell callers the text of unexpected exceptions.
            payloads: put arguments and results into the audit log.
        """
        self._limits = limits
        self._rules = rules
        self._metrics = metrics
        self._may_call = may_call
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
            knock = knocks.of(scope_of_request())
            where = f" The operator finds the reason in the log, at request {knock.request_id}." if knock else ""
            log.error("request %s: %s: %s", knock.request_id if knock else "?", type(cause).__name__, cause)
            raise type(error)(str(error).removesuffix(f": {cause}") + "." + where) from None

    async def on_list_tools(
        self,
        context: MiddlewareContext[mt.ListToolsRequest],
        call_next: CallNext[mt.ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        """Learn which tools exist."""
        tools = await call_next(context)
        self._metrics.learn(tool.name for tool in tools)
        return tools

    async def on_call_tool(
        self,
        context: MiddlewareContext[mt.CallToolRequestParams],
        call_next: CallNext[mt.CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Run a tool, if its caller may and there is a place for it, for as long as it may.

        Raises:
            InsufficientScopeError: the caller may not.
            ToolError: no place is free, its time is over, or its result is too large; the caller reads which.
        """
        name, scope, begun, outcome = context.message.name, scope_of_request(), time.perf_counter(), "error"
        knock = knocks.of(scope)
        try:
            self._may_call(name)
            result = await self._run(name, scope, lambda: call_next(context))
            self._metrics.learn([name])
            size = _size(result)
            if self._max_answer and size > self._max_answer:
                text = f"The result of {name!r} has {size} bytes; {self._max_answer} are the most. Ask for less."
                raise Bounded("answer", text)
            outcome = "error" if result.is_error else "ok"
            if knock and self._payloads:
                knock.result = _told([block.model_dump(mode="json") for block in result.content])
            return result
        except InsufficientScopeError as error:
            outcome = "forbidden"
            if knock:
                missing = " ".join(error.required_scopes)
                knock.reason, knock.code = f"insufficient_scope: {missing} is missing", "scope"
            raise
        except Bounded as bounded:
            outcome = bounded.outcome
            if knock:
                knock.reason, knock.limit = str(bounded), bounded.limit
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            if knock:
                knock.reason = f"tool error: {type(error).__name__}"
            raise
        finally:
            seconds = time.perf_counter() - begun
            if not scope.get("slipway.quiet"):
                self._metrics.call(name, outcome, _era(), seconds)
            if knock:
                if self._payloads and outcome != "forbidden":
                    knock.arguments = _told(context.message.arguments)
                knock.tool_ended(outcome, seconds)

    async def _run(
        self, name: str, scope: MutableMapping[str, Any], run: Callable[[], Awaitable[ToolResult]]
    ) -> ToolResult:
        rule, token = self._rules.get(name, Rule()), get_access_token()
        address = (scope.get("client") or ("",))[0]
        who = self._limits.identity(token.claims if token else None, "" if token else address)
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
                raise Bounded(over.limit, over.text)
            taken.append((what, key))
        until = anyio.CancelScope()

        async def within() -> ToolResult:
            with until:
                return await run()
            raise asyncio.CancelledError  # a scope that was cancelled swallows how it ended

        task = asyncio.ensure_future(within())
        # a thread cannot be stopped: its place is taken until it really ends
        task.add_done_callback(give_back)
        seconds = self._timeout if rule.timeout is None else rule.timeout
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds or None)
        except asyncio.CancelledError:
            await _end(task, until)
            raise
        if done:
            return task.result()
        await _end(task, until)
        raise Bounded("timeout", f"The tool {name!r} was cancelled: it took longer than {seconds:g} s.", "timeout")


class Bounded(ToolError):
    """A tool call that was refused or ended because of a bound; the text is for the caller."""

    def __init__(self, limit: str, text: str, outcome: str = "limited") -> None:
        super().__init__(text)
        self.limit = limit
        self.outcome = outcome


async def _end(task: asyncio.Future[Any], until: anyio.CancelScope) -> None:
    """Cancel, and give it a moment to clean up, even while we are cancelled ourselves."""
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
    if task in anyio.to_thread.current_default_thread_limiter().statistics().borrowers:
        # asyncio's own cancel would end the task beside its thread, which runs on and would be counted by nobody
        return until.cancel()
    task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait({task}, timeout=GRACE)


def scope_of_request() -> MutableMapping[str, Any]:
    """Return the scope of the HTTP request that carried this message, or {}."""
    try:
        # not the context variable: in a session the tool runs in the session's task, not in the request's
        return get_http_request().scope
    except RuntimeError:
        return {}


def _era() -> str:
    request = fastmcp_request_ctx.get()
    return "newest" if request and request.protocol_version in MODERN_PROTOCOL_VERSIONS else "handshake"


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
