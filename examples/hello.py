"""The smallest server: one tool. Copy it and put your own function in place of `add`."""

from __future__ import annotations

from fastmcp import FastMCP

mcp: FastMCP = FastMCP("hello", mask_error_details=True)


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


if __name__ == "__main__":
    mcp.run()
