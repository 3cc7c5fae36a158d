"""A server one of whose arguments is repeated in a header (MCP 2026-07-28, Mcp-Param-*), and one that lists itself."""

from typing import Annotated, Any

from fastmcp import Context, FastMCP
from pydantic import Field

mcp: FastMCP[Any] = FastMCP("regions")


@mcp.tool
async def deploy(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """Deploy to a region."""
    return f"deployed to {region}"


@mcp.tool
async def find_tools(ctx: Context, like: str) -> list[str]:
    """Find tools by name."""
    return sorted(tool.name for tool in await ctx.fastmcp.list_tools() if like in tool.name)
