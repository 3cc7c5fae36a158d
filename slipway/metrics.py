"""What happens, in numbers: Prometheus metrics in a registry of their own.

No label tells who calls: there are only tools that exist, and words of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from slipway import __version__, knocks

MAX_TOOLS = 500  # names of tools that are told apart
SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
OUTCOMES = frozenset({"ok", "error", "cancelled", "timeout", "limited", "forbidden"})
# why a request was refused: what the place that refused says (knocks.Knock.code), else what the status says
BY_STATUS = {
    400: "bad_request", 401: "no_token", 403: "forbidden", 404: "not_found", 405: "method", 406: "accept",
    408: "slow_body", 413: "too_large", 415: "content_type", 421: "host", 429: "limit", 503: "unavailable",
}  # fmt: skip
CODES = frozenset({
    *BY_STATUS.values(), "token_expired", "token_revoked", "token_invalid", "no_tool_scope", "scope", "origin",
    "admin_token", "other",
})  # fmt: skip


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # twice the series, for nothing
        self.registry = registry = CollectorRegistry()
        self._tools: set[str] = set()
        prometheus_client.ProcessCollector(registry=registry)
        self._calls = Counter(
            "slipway_calls_total", "Tool calls by how they ended.", ["tool", "outcome", "era"], registry=registry
        )
        self._seconds = Histogram(
            "slipway_call_seconds", "How long tools ran.", ["tool"], buckets=SECONDS, registry=registry
        )
        self._requests = Counter(
            "slipway_requests_total", "HTTP requests that were answered, by status.", ["status"], registry=registry
        )
        self._refusals = Counter(
            "slipway_refusals_total", "Requests that were refused, by reason.", ["reason"], registry=registry
        )
        self._limits = Counter("slipway_limits_hit_total", "Limits that were hit.", ["limit"], registry=registry)
        self._streams = Gauge("slipway_streams", "Event streams that are open.", ["method"], registry=registry)
        info = Gauge("slipway_build_info", "The version that runs.", ["version"], registry=registry)
        info.labels(__version__).set(1)
        for method in ("GET", "POST"):
            self._streams.labels(method)

    def watch(self, name: str, text: str, look: Callable[[], float]) -> None:
        """Add a gauge whose value is looked up at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(look)

    def learn(self, tools: Iterable[str]) -> None:
        """Note tools that exist: calls of others are counted as "unknown", whatever they are called."""
        for name in tools:
            if len(self._tools) < MAX_TOOLS:
                self._tools.add(name)

    def call(self, tool: str, outcome: str, era: str, seconds: float) -> None:
        """Count a tool call.

        Args:
            outcome: one of OUTCOMES; another is an error.
            era: "newest" or "handshake".
            seconds: how long it took.
        """
        name = tool if tool in self._tools else "unknown"
        self._calls.labels(name, outcome if outcome in OUTCOMES else "error", era).inc()
        if outcome not in ("forbidden", "limited"):  # that never ran
            self._seconds.labels(name).observe(seconds)

    def refusal(self, reason: str) -> None:
        """Count a refusal, by one of CODES; another is "other"."""
        self._refusals.labels(reason if reason in CODES else "other").inc()

    def stream(self, method: str, change: int) -> None:
        """Note that an event stream opened (1) or closed (-1)."""
        self._streams.labels("GET" if method == "GET" else "POST").inc(change)

    def answered(self, knock: knocks.Knock) -> None:
        """Count a request whose answer is complete."""
        status = knock.status
        self._requests.labels(str(status)).inc()
        if knock.limit:
            self._limits.labels(knock.limit).inc()
        if knock.code or knock.limit:
            self.refusal(knock.code or "limit")
        elif 400 <= status < 499 or status == 503:
            self.refusal(BY_STATUS.get(status, "other"))

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)
