"""What the speed is measured with: the same tools bare, behind Slipway and over stdio.

`python speed.py stdio | json PORT NAME | frozen PORT NAME | shipped PORT NAME`; NAME is one of the three servers below.
"""

import asyncio
import sys
import time

from fastmcp import Context, FastMCP

one: FastMCP = FastMCP("one")
many: FastMCP = FastMCP("many")
several: FastMCP = FastMCP("several")


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


for server in (one, many, several):
    server.tool(add)
for number in range(50):
    many.tool(add, name=f"add_{number}")


@several.tool
def wait(seconds: float) -> str:
    """Wait in a thread, as a tool does that asks another service; so many at once as the server has threads."""
    time.sleep(seconds)
    return "5"


@several.tool
async def compute(rounds: int) -> str:
    """Compute, and hold the event loop for as long."""
    sum(number * number for number in range(rounds))
    return "5"


@several.tool
async def tick(ctx: Context, times: int, every: float) -> str:
    """Send events; each tells when, by this machine's monotonic clock."""
    for number in range(times):
        await asyncio.sleep(every)
        await ctx.report_progress(number + 1, times, str(time.monotonic_ns()))
    return "5"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["json" | "frozen" as how, port, name]:
            import gc

            import uvicorn

            if how == "frozen":
                # as Slipway has it
                gc.freeze()
                gc.set_threshold(10_000)
            app = globals()[name].http_app(stateless_http=True, json_response=True)
            uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="warning", access_log=False)
        case ["shipped", port, name]:
            globals()[name].run(transport="http", stateless_http=True, port=int(port), show_banner=False)
        case _:
            one.run(show_banner=False)
