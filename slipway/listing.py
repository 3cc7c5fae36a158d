"""Lists of tools: what their middleware lets pass by, and the list of one that the SDK asks for before each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mcp_types as mt
from fastmcp.server.dependencies import fastmcp_request_ctx
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import Tool

from slipway import knocks
from slipway.calls import scope_of_request


class ListsTools(Middleware):
    """Middleware for lists of tools alone."""

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Let all but lists pass by: FastMCP would build five handlers for each call that do nothing."""
        if context.method != "tools/list":
            return await call_next(context)
        return await super().__call__(context, call_next)


class OneTool(ListsTools):
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
        knock, asked, server = knocks.of(scope_of_request()), fastmcp_request_ctx.get(), context.fastmcp_context
        called = knock.body.message() if knock else {}
        # a tool that lists tools itself is asked for by tools/call, and gets all
        if not (asked and server and asked._srctx.method == "tools/list" and called.get("method") == "tools/call"):
            return await call_next(context)
        tool = await server.fastmcp.get_tool(called["params"]["name"])
        return [tool] if tool else []
