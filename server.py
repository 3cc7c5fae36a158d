"""The MCP server that is served: `python server.py` speaks stdio, `python server.py http` Streamable HTTP.

`python server.py http TARGET` serves another one: a file.py[:object], a command, a URL or an mcp.json.

Put your own tools here. `scripts/mint --tools NAME` makes a token for them; who calls is known before they run.
"""

import asyncio
import sys

from slipway import venv

venv.enter("fastmcp")

from fastmcp import Context, FastMCP
from fastmcp.server.dependencies import get_access_token

from examples import compliance, hello, notes, search
from slipway import __version__

mcp: FastMCP = FastMCP(
    "slipway",
    version=__version__,
    instructions="A demo server: add numbers, count down with progress, screen names, keep notes, search slowly.",
    # the text of an unexpected exception is the operator's; ToolError texts still reach the caller
    mask_error_details=True,
)
# the tutorials' servers, under the names of their tools; leave out what you do not want to show
for part in (hello, compliance, notes, search):
    mcp.mount(part.mcp)


@mcp.tool
async def countdown(n: int, ctx: Context, seconds: float = 1.0) -> str:
    """Count down from n to 0, one step every `seconds`, with progress and a log message at each step."""
    if not (0 <= n <= 1000 and 0 <= seconds <= 60):
        raise ValueError("n is 0 to 1000, seconds 0 to 60")
    try:
        for left in range(n, 0, -1):
            await ctx.report_progress(n - left, n, f"{left} to go")
            await ctx.info(f"{left}…")
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        print(f"countdown({n}) was cancelled", file=sys.stderr, flush=True)
        raise
    await ctx.report_progress(n, n, "liftoff")
    return "liftoff"


@mcp.tool
async def whoami() -> dict[str, str | list[str]]:
    """Tell who calls: the subject and scopes of the token."""
    token = get_access_token()
    if token is None:
        return {"subject": "anonymous", "scopes": []}
    return {"subject": token.claims["sub"], "scopes": token.scopes}


@mcp.resource("slipway://about", mime_type="text/plain")
async def about() -> str:
    """What this server is."""
    return f"Slipway {__version__}: an MCP server from a laptop to a public URL."


@mcp.prompt
async def introduce(name: str = "friend") -> str:
    """A first message that makes an agent try the tools."""
    return f"Say hello to {name}, then call whoami, add 2 and 3, and count down from 3."


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", *target] if len(target) < 2:
            from slipway.serving import serve

            serve(mcp, *target)
        case ["check", *target] if len(target) < 2:
            from slipway.serving import check

            check(mcp, *target)
        case [] | ["stdio"]:
            mcp.run(show_banner=False)
        case _:
            print("usage: python server.py [stdio | http [TARGET] | check [TARGET]]", file=sys.stderr)
            sys.exit(2)
