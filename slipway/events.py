"""Server-sent events of our own pages (HTML Living Standard, 9.2): one as text, and the answer that carries them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

BEAT = 15.0  # seconds of silence after which a comment is sent, against proxies that cut a silent stream


def event(name: str, content: Any) -> str:
    """Return one event whose data is JSON."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


def answer(events: AsyncIterator[str]) -> StreamingResponse:
    """Return the answer that sends each event at once: no proxy may keep, pack or gather them."""
    headers = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
