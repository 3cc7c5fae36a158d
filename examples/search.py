"""A slow search: partial results as progress, a limit on how many run at once, and a clean end when cancelled."""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from typing import Annotated

from fastmcp import Context, FastMCP
from pydantic import Field

AT_ONCE = 4
SHELF = [
    "Streamable HTTP is one endpoint for requests and streams",
    "Server-sent events are lines of text, an empty line ends each",
    "A session id travels in the Mcp-Session-Id header",
    "Last-Event-ID resumes a stream that broke",
    "The newest protocol revision is stateless",
    "A bearer token travels in the Authorization header",
    "CORS is the browser's rule, not curl's",
    "A preflight asks before a browser sends",
    "A reverse proxy must not buffer event streams",
    "Progress needs a token in the request's _meta",
    "Cancelling a request must free what it holds",
    "A tunnel gives a laptop a public URL",
]

mcp: FastMCP = FastMCP("search", mask_error_details=True)
# a semaphore belongs to the event loop where somebody first waited for it
_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def slots() -> asyncio.Semaphore:
    """Return the places of this event loop."""
    return _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))


@mcp.tool
async def long_running_search(
    query: Annotated[str, Field(min_length=1, max_length=200)],
    ctx: Context,
    limit: Annotated[int, Field(ge=1, le=100)] = 10,
) -> list[str]:
    """Search a small shelf slowly; every match is reported as progress before the result comes."""
    step = float(os.environ.get("SEARCH_STEP_SECONDS", "0.2"))
    if slots().locked():
        await ctx.report_progress(0, len(SHELF), "waiting for a free slot")
    async with slots():
        found: list[str] = []
        finished = False
        try:
            await ctx.report_progress(0, len(SHELF), "searching")
            for index, line in enumerate(SHELF, start=1):
                await asyncio.sleep(step)
                news = f"{index} of {len(SHELF)} read"
                if query.casefold() in line.casefold():
                    found.append(line)
                    news = f"found: {line}"
                await ctx.report_progress(index, len(SHELF), news)
                if len(found) == limit:
                    break
            finished = True
            return found
        finally:
            # here a real search would close its cursor; the slot is freed by the `async with`
            if not finished:
                print("long_running_search was cancelled and cleaned up", file=sys.stderr, flush=True)


if __name__ == "__main__":
    mcp.run()
