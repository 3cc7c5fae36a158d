"""Spans to an OTLP collector. Imported only where one is set, for the SDK costs time and memory to load.

FastMCP and the SDK of MCP make the spans; what leaves us is cleaned first. A collector that is gone costs nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import anyio.to_thread
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, format_trace_id
from opentelemetry.util.re import parse_env_headers

from slipway import __version__, knocks

TIMEOUT = 5.0  # seconds that the collector has for a batch
LAST_WORDS = 2.0  # seconds that our end waits for it
MAX_TEXT = 200  # characters of a name or an attribute: a queue of spans must stay small
# of the two libraries' spans; left out are session ids, URIs (a template's arguments are in them) and who calls
KEPT = frozenset({
    "mcp.method.name", "mcp.protocol.version", "fastmcp.server.name", "fastmcp.component.type",
    "fastmcp.provider.type", "gen_ai.tool.name", "gen_ai.prompt.name", "error.type", "rpc.response.status_code",
    "slipway.request_id",
})  # fmt: skip
LIBRARIES = ("fastmcp", "mcp-python-sdk")

log = logging.getLogger("slipway")


def start(endpoint: str, headers: str = "") -> Callable[[], Awaitable[None]]:
    """Set the process's tracer provider.

    Args:
        endpoint: the collector's base URL, as in http://127.0.0.1:4318 (OTLP over HTTP, spans go to /v1/traces).
        headers: "name=value,name=value", percent-encoded (OpenTelemetry, OTLP Exporter Configuration).
    Returns: what sends the last spans and ends it, in at most LAST_WORDS seconds.
    """
    # it tells every batch that fails; _Telling tells when that begins and when it is over
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    url = endpoint.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(url, headers=parse_env_headers(headers, liberal=True), timeout=TIMEOUT)
    provider = TracerProvider(
        resource=Resource.create({"service.name": "slipway", "service.version": __version__}),
        span_limits=SpanLimits(max_attribute_length=MAX_TEXT), shutdown_on_exit=False,
    )  # fmt: skip
    provider.add_span_processor(Clean(BatchSpanProcessor(_Telling(exporter, urlsplit(url).netloc))))
    trace.set_tracer_provider(provider)
    if trace.get_tracer_provider() is not provider:
        log.warning("the target has set up OpenTelemetry by itself: its spans and ours go where it says")

    async def stop() -> None:
        # the SDK would wait half a minute for a collector that is gone
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        await anyio.to_thread.run_sync(ending.join, LAST_WORDS)

    return stop


class Clean(SpanProcessor):
    """Puts the trace's id on the request's record and the request's id on the span, and hands on what is cleaned."""

    def __init__(self, behind: SpanProcessor) -> None:
        self._behind = behind

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note the ids."""
        knock = knocks.current.get()
        if knock:
            knock.trace_id = knock.trace_id or format_trace_id(span.get_span_context().trace_id)
            span.set_attribute("slipway.request_id", knock.request_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Hand on."""
        self._behind.on_end(cleaned(span))

    def shutdown(self) -> None:
        """Send what is left."""
        self._behind.shutdown()


def cleaned(span: ReadableSpan) -> ReadableSpan:
    """Return the span without what could hold an argument, a result or a session id: texts of exceptions, URIs."""
    scope, attributes, name = span.instrumentation_scope, dict(span.attributes or {}), span.name
    if scope and scope.name in LIBRARIES:
        attributes = {key: value for key, value in attributes.items() if key in KEPT}
        name = name.partition(" ")[0] if "://" in name else name
    events = [_without_text(event) if event.name == "exception" else event for event in span.events]
    return ReadableSpan(
        name=name[:MAX_TEXT], context=span.context, parent=span.parent, resource=span.resource, attributes=attributes,
        events=events, links=span.links, kind=span.kind, status=Status(span.status.status_code),
        start_time=span.start_time, end_time=span.end_time, instrumentation_scope=scope,
    )  # fmt: skip


def _without_text(event: Event) -> Event:
    kind = (event.attributes or {}).get("exception.type", "")
    return Event(event.name, {"exception.type": kind}, event.timestamp)


class _Telling(SpanExporter):
    """Tells once when the collector stops taking spans, and once when it takes them again."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter = exporter
        self._where = where
        self._well = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if (well := result is SpanExportResult.SUCCESS) != self._well:
            self._well = well
            said = "takes spans again" if well else "takes no spans; they are lost until it does. Start it, or mend"
            log.warning("the collector at %s %s%s", self._where, said, "" if well else " OTEL_EXPORTER_OTLP_ENDPOINT")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
