"""A server that uses all of MCP, to be put behind Slipway: over stdio, or over HTTP on the port that is its argument."""

import asyncio
import os
import sys
from typing import Any

import mcp_types as mt
from fastmcp import Context, FastMCP

mcp: FastMCP[Any] = FastMCP("talkative", instructions="Ask me anything.", version="7.7")
count = 0


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@mcp.tool
async def bump() -> int:
    """Count calls of this process."""
    global count
    count += 1
    return count


@mcp.tool
async def pid() -> int:
    """Tell the process id."""
    return os.getpid()


@mcp.tool
async def environment() -> dict[str, str]:
    """Print what this process was given."""
    return dict(os.environ)


@mcp.tool
async def headers(ctx: Context) -> dict[str, str]:
    """Tell the HTTP headers of this request."""
    from fastmcp.server.dependencies import get_http_headers

    return get_http_headers(include_all=True)


@mcp.tool
async def talk(n: int, ctx: Context, name: str = "") -> str:
    """Send n log messages and n progress messages."""
    for index in range(n):
        await ctx.info(f"{name}log {index}")
        await ctx.report_progress(index + 1, n, f"{name}step {index}")
        await asyncio.sleep(0.02)
    return "said"


@mcp.tool
async def wait(seconds: float) -> str:
    """Wait, and tell stderr when cancelled."""
    print("waiting", file=sys.stderr, flush=True)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        print("the wait was cancelled", file=sys.stderr, flush=True)
        raise
    return "waited"


@mcp.tool
async def die() -> str:
    """End the process in the middle of the call."""
    os._exit(3)


@mcp.tool
async def ask_name(ctx: Context) -> str:
    """Elicit a name from the user."""
    result = await ctx.session.elicit_form(
        "What is your name?", {"type": "object", "properties": {"name": {"type": "string"}}}, ctx.request_id
    )
    return f"{result.action} {result.content}"


@mcp.tool
async def ask_model(question: str, ctx: Context) -> str:
    """Sample the client's model."""
    result = await ctx.session.create_message(
        [mt.SamplingMessage(role="user", content=mt.TextContent(type="text", text=question))],
        max_tokens=17, temperature=0.5, related_request_id=ctx.request_id,
    )  # fmt: skip
    return f"{result.model}: {result.content.text}"


@mcp.tool
async def ask_roots(ctx: Context) -> list[str]:
    """List the client's roots."""
    return [str(root.uri) for root in (await ctx.session.list_roots()).roots]


@mcp.tool
async def fail() -> str:
    """Raise an error."""
    raise ValueError("as you wished")


@mcp.tool
async def grow(ctx: Context) -> str:
    """Add a tool and say so."""

    @mcp.tool(name=f"grown_{len(await mcp.list_tools())}")
    async def grown() -> str:
        """A new tool."""
        return "new"

    await ctx.session.send_tool_list_changed()
    return "grown"


@mcp.resource("memo://about")
async def about() -> str:
    """A resource."""
    return "about"


@mcp.resource("memo://{name}")
async def memo(name: str) -> str:
    """A resource template."""
    return f"memo of {name}"


@mcp.prompt
async def greet(name: str) -> str:
    """A prompt."""
    return f"Greet {name}."


@mcp.completion
async def complete(ref: Any, argument: Any, context: Any) -> list[str]:
    """Complete names."""
    return [name for name in ("ana", "anton", "bo") if name.startswith(argument.value)]


if __name__ == "__main__":
    if sys.argv[1:]:
        mcp.run(transport="http", port=int(sys.argv[1]), show_banner=False)
    else:
        mcp.run(show_banner=False)
