"""A server whose tools misbehave: they take long, block threads, crash, and answer with too much."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError

mcp: FastMCP[Any] = FastMCP("stubborn")


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@mcp.tool
async def wait_for(file: str) -> str:
    """Say by a file that it began, then wait until a file is there."""
    await asyncio.to_thread(Path(file + ".began").touch)
    try:
        while not Path(file).exists():  # noqa: ASYNC240 a look that takes no time
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        print("wait_for was cancelled", file=sys.stderr, flush=True)
        raise
    return "there it is"


@mcp.tool
def block_until(file: str) -> str:
    """Block a thread until a file is there, 60 s at most."""
    for _ in range(3000):
        if Path(file).exists():
            break
        time.sleep(0.02)
    Path(file + ".ended").touch()
    return "unblocked"


@mcp.tool
async def crash() -> str:
    """Fail by accident, with words that are for nobody outside."""
    raise ValueError("the password is swordfish")


@mcp.tool
async def meant() -> str:
    """Fail in words for the caller."""
    raise ToolError("there is no such city") from ValueError("swordfish")


@mcp.resource("stubborn://crash")
async def crashing() -> str:
    """A resource that fails by accident."""
    raise ValueError("the password is swordfish")


@mcp.prompt
async def crashing_prompt() -> str:
    """A prompt that fails by accident."""
    raise ValueError("the password is swordfish")


@mcp.tool
async def letters(count: int) -> str:
    """Return so many letters."""
    return "x" * count


@mcp.tool
async def chatter(lines: int, ctx: Context) -> str:
    """Send so many log messages of 100 kB."""
    for _ in range(lines):
        await ctx.info("y" * 100_000)
    return "done"
