"""Telemetry without a stack: labels are bounded, spans are clean, Trace Context is read as W3C says, files are valid."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from slipway import knocks, metrics, telemetry, traces
from slipway.metrics import Metrics
from slipway.sessions import Body
from tests.conftest import ROOT, program

DASHBOARD = ROOT / "deploy" / "observe" / "dashboards" / "slipway.json"
CONFIG = ROOT / "deploy" / "observe" / "prometheus.yml"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def series(found: Metrics, name: str) -> list[dict[str, str]]:
    """Return the labels of every series with this name."""
    return [s.labels for family in found.registry.collect() for s in family.samples if s.name == name]


class Trusting(Metrics):
    """The broken twin: what a caller names becomes a label."""

    def call(self, tool: str, outcome: str, era: str, seconds: float) -> None:
        self.learn([tool])
        super().call(tool, outcome, era, seconds)

    def refusal(self, reason: str) -> None:
        self._refusals.labels(reason).inc()


@pytest.mark.parametrize(("kind", "many"), [(Metrics, False), (Trusting, True)])
def test_callers_cannot_make_labels(kind: type[Metrics], many: bool) -> None:
    found = kind()
    for n in range(300):
        found.call(f"made-up-{n}", "error", "newest", 0.1)
        found.refusal(f"sentence {n}")
    assert (len(series(found, "slipway_calls_total")) > 2) is many
    assert (len(series(found, "slipway_refusals_total")) > 2) is many


def test_a_target_with_endless_tools_is_bounded_too() -> None:
    found = Metrics()
    for n in range(metrics.MAX_TOOLS + 200):
        found.learn([f"tool-{n}"])
        found.call(f"tool-{n}", "ok", "newest", 0.1)
    assert len(series(found, "slipway_calls_total")) == metrics.MAX_TOOLS + 1


def test_a_call_that_never_ran_has_no_duration() -> None:
    found = Metrics()
    found.learn(["add"])
    for outcome in ("forbidden", "limited"):
        found.call("add", outcome, "newest", 0.1)
    assert not series(found, "slipway_call_seconds_count")
    found.call("add", "invented", "newest", 0.1)
    assert {"tool": "add", "outcome": "error", "era": "newest"} in series(found, "slipway_calls_total")


@pytest.mark.parametrize(
    ("knock", "status", "reason"),
    [
        (knocks.Knock(), 200, None),
        (knocks.Knock(code="scope"), 200, "scope"),
        (knocks.Knock(limit="calls_per_minute"), 429, "limit"),
        (knocks.Knock(), 404, "not_found"),
        (knocks.Knock(), 418, "other"),
        (knocks.Knock(code="a caller's words"), 400, "other"),
        (knocks.Knock(), 499, None),
        (knocks.Knock(), 500, None),
        (knocks.Knock(), 503, "unavailable"),
    ],
)
def test_a_refusal_has_one_of_our_reasons(knock: knocks.Knock, status: int, reason: str | None) -> None:
    found = Metrics()
    knock.status = status
    found.answered(knock)
    assert [labels["reason"] for labels in series(found, "slipway_refusals_total")] == ([reason] if reason else [])
    assert bool(series(found, "slipway_limits_hit_total")) is bool(knock.limit)


def test_every_code_that_a_room_sets_is_in_the_list() -> None:
    used: set[str] = set()
    for path in (ROOT / "slipway").rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.keyword) and item.arg == "code" and isinstance(item.value, ast.Constant):
                used.add(str(item.value.value))
            if isinstance(item, ast.ClassDef) and item.name.startswith("Token"):
                used |= {
                    str(line.value.value) for line in item.body
                    if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
                }  # fmt: skip
    assert {"host", "origin", "token_expired", "token_revoked"} <= used
    assert {code for code in used if re.fullmatch("[a-z_]+", code)} <= metrics.CODES


@pytest.mark.parametrize(
    ("host", "more", "near"),
    [
        ("127.0.0.1:8000", {}, True),
        ("localhost", {}, True),
        ("[::1]:8000", {}, True),
        ("172.18.0.3:8000", {}, True),
        ("10.0.1.7:8000", {}, True),
        ("[fd00::2]:8000", {}, True),
        ("8.8.8.8", {}, False),
        ("demo.ngrok-free.app", {}, False),
        ("10.0.0.1.evil.example", {}, False),
        ("10.0.0.1@evil.example", {}, False),
        ("server:8000", {}, False),
        ("[::1", {}, False),
        ("", {}, False),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4"}, False),
        ("127.0.0.1", {"via": "1.1 Caddy"}, False),
        ("127.0.0.1", {"forwarded": "for=1.2.3.4"}, False),
        ("127.0.0.1", {"origin": "http://localhost:3000"}, False),
    ],
)
def test_who_is_near(host: str, more: dict[str, str], near: bool) -> None:
    assert telemetry._near(Headers({"host": host} | more)) is near


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (PARENT, True),
        (PARENT.replace("00-4", "cc-4") + "-what-the-future-will-be-like", True),
        (PARENT.upper(), False),
        (PARENT + "-more", False),
        ("ff" + PARENT[2:], False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-" + ID + "-" + "0" * 16 + "-01", False),
        (PARENT[:-1], False),
        ("", False),
        ("00-\x00", False),
        ("x" * 100_000, False),
    ],
)
def test_a_malformed_traceparent_is_ignored(given: str, kept: bool) -> None:
    assert telemetry.trace_id(telemetry.incoming(Headers({"traceparent": given, "tracestate": "a=1"}))) == (
        ID if kept else ""
    )


def test_two_traceparents_are_none() -> None:
    raw = [(b"traceparent", PARENT.encode()), (b"traceparent", PARENT.encode())]
    assert telemetry.trace_id(telemetry.incoming(Headers(raw=raw))) == ""


@pytest.mark.parametrize("meta", [None, [], {}, {"traceparent": 5}, {"traceparent": "x"}])
def test_a_meta_without_a_trace_has_none(meta: Any) -> None:
    assert telemetry.trace_id(telemetry.of_message({"params": {"_meta": meta}})) == ""


def finished(name: str, scope: str, clean: bool, attributes: dict[str, Any]) -> str:
    """Return all that is sent of a span that failed, as text."""
    sent = InMemorySpanExporter()
    behind = SimpleSpanProcessor(sent)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(traces.Clean(behind) if clean else behind)
    with provider.get_tracer(scope).start_as_current_span(
        name, attributes=attributes, set_status_on_exception=False
    ) as span:
        span.record_exception(ValueError("a secret"))
        span.set_status(Status(StatusCode.ERROR, "a secret"))
    return sent.get_finished_spans()[0].to_json()


@pytest.mark.parametrize("clean", [True, False])
def test_a_span_of_fastmcp_holds_no_text_of_an_error_no_uri_and_no_session(clean: bool) -> None:
    held = {"mcp.session.id": "a secret", "mcp.resource.uri": "notes://a secret", "enduser.id": "a secret",
            "fastmcp.component.key": "notes://a secret", "gen_ai.tool.name": "add"}  # fmt: skip
    text = finished("delegate notes://a secret", "fastmcp", clean, held)
    assert ("a secret" in text) is not clean
    assert "ValueError" in text and "add" in text and "ERROR" in text


def test_a_targets_own_span_keeps_its_attributes_but_no_text_of_an_error() -> None:
    text = finished("look up", "my.tool", True, {"rows": 3})
    assert '"rows": 3' in text
    assert "a secret" not in text


def test_a_long_name_does_not_fill_the_queue() -> None:
    assert len(finished("x" * 100_000, "fastmcp", True, {})) < 3000


def test_no_sdk_is_loaded_before_a_collector_is_set() -> None:
    code = "import sys, slipway.serving; print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'requests', 'google'))])"
    done = subprocess.run([ROOT / ".venv" / "bin" / "python", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- the files of profile observe


def queries() -> dict[str, list[str]]:
    """Return {panel: its queries}."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels}


def test_promtool_accepts_the_configuration() -> None:
    done = subprocess.run([program("promtool"), "check", "config", CONFIG], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_every_number_of_ours_has_a_panel() -> None:
    found = Metrics()
    text = " ".join(query for each in queries().values() for query in each)
    ours = {family.name for family in found.registry.collect() if family.name.startswith("slipway_")}
    assert len(ours) >= 7
    for name in ours | {"slipway_sessions", "slipway_tunnel_up", "slipway_redis_up"}:
        assert name in text, f"no panel shows {name}"


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """What Compose makes of the file with the profile."""
    done = subprocess.run(
        [program("docker"), "compose", "--env-file", ".env.example", "--profile", "observe", "config", "--format", "json"],
        cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/local/bin:/usr/bin:/bin", "SLIPWAY_UID": "10001", "SLIPWAY_GID": "10001"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_observes_is_hardened_and_on_loopback(composed: dict[str, Any], name: str) -> None:
    service = composed[name]
    assert service["profiles"] == ["observe"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(Path(volume["source"]).exists() for volume in service["volumes"])
    assert int(service["deploy"]["resources"]["limits"]["memory"]) and service["healthcheck"]
    assert re.fullmatch(r"[a-z/]+:v?[0-9.]+", service["image"])


def test_grafana_has_no_account_to_log_in_with(composed: dict[str, Any]) -> None:
    settings = composed["grafana"]["environment"]
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in settings if "PASSWORD" in name]


def test_nothing_observes_unless_it_is_asked_to() -> None:
    done = subprocess.run(
        [program("docker"), "compose", "config", "--services"], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "SLIPWAY_UID": "1", "SLIPWAY_GID": "1"},
    )  # fmt: skip
    assert set(done.stdout.split()) == {"server", "caddy"}, done.stderr


# --- guards and their broken twins, without a stack


async def served(path: str, **headers: str) -> str:
    """Return what Telemetry answers, or "handed on"."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"body": b"handed on"})

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    knock = knocks.Knock(body=Body(send))  # type: ignore[arg-type]
    scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "state": {"knock": knock}}
    await telemetry.Telemetry(app, Metrics())(scope, send, send)
    return b"".join(message.get("body", b"") for message in sent).decode()


@pytest.mark.parametrize("guarded", [True, False])
async def test_the_rule_of_who_is_near_is_what_keeps_strangers_out(
    guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not guarded:
        monkeypatch.setattr(telemetry, "_near", lambda _: True)
    assert "slipway_build_info" in await served("/metrics", host="127.0.0.1:8000")
    strange = await served("/metrics", host="demo.ngrok-free.app", x_forwarded_for="1.2.3.4")
    assert (strange == "handed on") is guarded


@pytest.mark.parametrize("guarded", [True, False])
async def test_baggage_goes_nowhere_unlike_with_the_default_propagator(guarded: bool) -> None:
    before = propagate.get_global_textmap()
    try:
        if guarded:
            await served("/mcp", host="127.0.0.1")
        else:
            propagate.set_global_textmap(
                CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
            )
        given = propagate.extract({"traceparent": PARENT, "baggage": "who=ana"})
        carrier: dict[str, str] = {}
        propagate.inject(carrier, given)
    finally:
        propagate.set_global_textmap(before)
    assert carrier["traceparent"] == PARENT
    assert ("baggage" in carrier) is not guarded
