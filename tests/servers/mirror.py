"""A server that shows what it is sent with a call: the HTTP headers, where there are any, and `_meta`."""

from __future__ import annotations

import os
import sys
from typing import Any

from fastmcp import Context, FastMCP
from fastmcp.server.dependencies import get_http_headers

mcp: FastMCP[Any] = FastMCP("mirror")


@mcp.tool
async def mirror(ctx: Context, text: str = "") -> dict[str, Any]:
    """Show headers and `_meta`; a text is an error that holds it."""
    if text:
        raise ValueError(f"told {text}")
    meta = ctx.request_context.meta if ctx.request_context else None
    return {"headers": get_http_headers(include_all=True), "meta": dict(meta or {})}


@mcp.resource("mirror://{name}")
async def named(name: str) -> str:
    """A resource whose URI holds an argument."""
    return name


if __name__ == "__main__":
    if sys.argv[1:]:
        mcp.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
    else:
        os.environ["FASTMCP_LOG_LEVEL"] = "ERROR"
        mcp.run(show_banner=False)
