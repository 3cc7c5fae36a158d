"""How requests are observed: /metrics, and W3C Trace Context in and out.

The numbers are in metrics.py, counted by audit.py and calls.py; the spans are in traces.py.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, format_trace_id, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from slipway import knocks
from slipway.metrics import Metrics

PATH = "/metrics"
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "via", "origin")
_W3C = TraceContextTextMapPropagator()
# the parent of our own probes: it is not sampled, so nothing that comes of it is
_UNSEEN = set_span_in_context(NonRecordingSpan(SpanContext(1, 1, is_remote=True)), Context())


class Telemetry:
    """Answers /metrics, and makes the caller's trace the parent of ours.

    Stands where a request has its record and its body is known to be no danger to read. The Host rule of /metrics is
    its own: Prometheus finds replicas by address, and a literal address cannot be rebound by DNS. Whoever comes
    through a proxy finds nothing.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        # the default would pass baggage on as well, which is the caller's own
        propagate.set_global_textmap(_W3C)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or hand on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"] == PATH and _near(Headers(raw=scope["headers"])):
            return await self._tell(scope, receive, send)
        token = otel_context.attach(_parent(scope))
        try:
            await self._app(scope, receive, send)
        finally:
            otel_context.detach(token)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            answer = Response("GET alone\n", 405, {"allow": "GET"}, "text/plain")
        else:
            headers = {"content-type": CONTENT_TYPE_PLAIN_0_0_4, "cache-control": "no-store"}
            answer = Response(self._metrics.text(), headers=headers)
        await answer(scope, receive, send)


@contextlib.asynccontextmanager
async def tracing(endpoint: str, headers: str = "") -> AsyncIterator[None]:
    """Send FastMCP's spans to a collector for the length of a block; "" costs nothing, not even an import."""
    if not endpoint:
        yield
        return
    from slipway import traces

    stop = traces.start(endpoint, headers)
    try:
        yield
    finally:
        await stop()


def incoming(headers: Headers) -> Context:
    """Return the context with the caller's span as the parent; a header that is malformed or twice there is none.

    Source: W3C Trace Context, 3.2.2 and 3.3. `tracestate` without a good `traceparent` counts for nothing.
    """
    if len(headers.getlist("traceparent")) != 1:
        return otel_context.get_current()
    carrier = {"traceparent": headers["traceparent"], "tracestate": ",".join(headers.getlist("tracestate"))}
    return _W3C.extract(carrier, otel_context.get_current())


def trace_id(context: Context | None) -> str:
    """Return the 32 hex digits of a context's trace, or ""."""
    span = get_current_span(context).get_span_context()
    return format_trace_id(span.trace_id) if span.is_valid else ""


def outgoing() -> dict[str, str]:
    """Return the headers that tie a request of ours to the one that is being answered: trace and request id."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    if knock := knocks.current.get():
        headers["x-request-id"] = knock.request_id
    return headers


def of_message(message: dict[str, Any]) -> Context:
    """Return the context with the parent that `params._meta` names (MCP SEP-414), if it does."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    given = {name: meta.get(name) for name in ("traceparent", "tracestate")} if isinstance(meta, dict) else {}
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    return _W3C.extract(texts, Context()) if texts else Context()


def _near(headers: Headers) -> bool:
    """Tell whether a request comes from this machine or from the containers' network, by a literal address."""
    if any(name in headers for name in _FORWARDED):
        return False
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _parent(scope: Scope) -> Context:
    """Return the context with the caller's span as the parent, and note its trace."""
    knock: knocks.Knock = scope["state"]["knock"]
    parent = _UNSEEN if scope.get("slipway.quiet") else incoming(Headers(raw=scope["headers"]))
    if not trace_id(parent):
        # FastMCP would do so itself, but for what it asks itself in between
        parent = of_message(knock.body.message())
    knock.trace_id = trace_id(parent)
    return parent
