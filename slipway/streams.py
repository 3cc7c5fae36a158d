"""What the SDK's event streams lack: a first byte at once, so that no proxy holds their head back."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPENED = b": open\n\n"  # a comment, which every client passes over (HTML Living Standard, 9.2.6)


class FirstByte:
    """Sends a comment right after the head of an event stream.

    Some proxies and clients take an answer for begun only at its first body byte, and an idle stream's would be the
    SDK's ping after 15 seconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; add the comment to event streams."""

        async def opening(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start" and _streams(message):
                await send({"type": "http.response.body", "body": OPENED, "more_body": True})

        await self._app(scope, receive, opening if scope["type"] == "http" else send)


def _streams(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "").startswith(
        "text/event-stream"
    )
