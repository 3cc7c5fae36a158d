"""An MCP endpoint inside a FastAPI application: /health and /mcp side by side, one lifespan, one middleware."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastmcp import FastMCP
from fastmcp.utilities.lifespan import combine_lifespans
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

mcp: FastMCP = FastMCP("notes-backend", mask_error_details=True)
state: dict[str, Any] = {"ready": False, "requests": 0}


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@mcp.tool
async def backend_status() -> dict[str, Any]:
    """Tell what the application around this endpoint knows."""
    return dict(state)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open what the application needs; here only a flag."""
    state["ready"] = True
    yield
    state["ready"] = False


class Counted:
    """Counts requests and says so; plain ASGI, because BaseHTTPMiddleware would hold streams back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, with one more header on the answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        state["requests"] += 1
        number = str(state["requests"])  # now: others may come in before the answer goes out

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-number"] = number
            await send(message)

        await self.app(scope, receive, marked)


# the endpoint's own path is /mcp, and it is mounted at the root: a mount at /mcp would make it /mcp/mcp, or redirect
# "auto" refuses strange Host and Origin headers on a loopback address: no web page may call what has no token
endpoint = mcp.http_app(path="/mcp", host_origin_protection="auto")
app = FastAPI(title="notes-backend", lifespan=combine_lifespans(lifespan, endpoint.lifespan))
app.add_middleware(Counted)


@app.get("/health")
async def health() -> dict[str, str]:
    """Tell that the application is alive."""
    return {"status": "ok"}


app.mount("/", endpoint)  # last: it takes every path that is left

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8010)
