"""Telemetry of a real stack: who may read the numbers, what they say, where traces come from and go to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError

from tests.collector import Collector
from tests.conftest import ROOT, Stack, free_ports, program, wait_until
from tests.test_telemetry import CONFIG, ID, PARENT, queries

pytestmark = pytest.mark.slow

MIRROR = ROOT / "tests" / "servers" / "mirror.py"
ERAS = pytest.mark.parametrize("mode", ["legacy", "auto"])


def ask(stack: Stack, method: str = "GET", **headers: str) -> httpx2.Response:
    """Ask the server itself for its numbers."""
    url = stack.server_url.replace("/mcp", "/metrics")
    return httpx2.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def numbers(stack: Stack) -> dict[str, float]:
    """Return {series: value}."""
    lines = (line for line in ask(stack).text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def counted(stack: Stack, **wanted: float) -> None:
    """Wait until refusals by these reasons are counted; a request counts when its answer is over, a moment later."""
    names = {f'slipway_refusals_total{{reason="{reason}"}}': value for reason, value in wanted.items()}

    def found() -> dict[str, float]:
        now = numbers(stack)
        return {name: now.get(name, 0) for name in names}

    wait_until(lambda: found() == names, 10, f"{names}")


def client(stack: Stack, mode: str = "auto", tools: str = "*", **headers: str) -> Client[Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Client(StreamableHttpTransport(stack.edge_url, headers=sent, auth=stack.token(tools)), mode=mode)


# --- who may read the numbers


def test_the_numbers_are_for_loopback_by_get_and_not_in_the_log(shared_stack: Stack) -> None:
    answer = ask(shared_stack)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'slipway_build_info{version="' in answer.text
    post = ask(shared_stack, "POST")
    assert (post.status_code, post.headers["allow"]) == (405, "GET")
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=answer.text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/metrics" not in [line["path"] for line in shared_stack.log("server") if line.get("status") == 200]


def test_the_edge_has_no_such_path(shared_stack: Stack) -> None:
    assert httpx2.get(shared_stack.edge_url.replace("/mcp", "/metrics")).status_code == 404
    with httpx2.Client(verify=shared_stack.trust()) as https:
        assert https.get(shared_stack.tls_url.replace("/mcp", "/metrics")).status_code == 404


def test_what_came_through_a_proxy_finds_nothing(shared_stack: Stack) -> None:
    for header in ("x-forwarded-for", "x-forwarded-host", "forwarded", "via"):
        assert ask(shared_stack, **{header: "1.2.3.4"}).status_code == 404
    assert ask(shared_stack, origin="http://localhost:3000").status_code == 404


def test_prometheus_may_ask_by_address_and_for_the_numbers_alone(shared_stack: Stack) -> None:
    assert ask(shared_stack, host="172.18.0.5:8000").status_code == 200
    assert httpx2.post(shared_stack.server_url, headers={"host": "172.18.0.5:8000"}).status_code == 421
    for host in ("demo.ngrok-free.app", "rebound.example:8000", "8.8.8.8"):
        assert ask(shared_stack, host=host).status_code == 421


def test_the_tunnels_host_finds_nothing(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    stack.config.public_url_file.write_text("https://demo.ngrok-free.app\n")
    assert ask(stack, host="demo.ngrok-free.app").status_code == 404
    assert numbers(stack)["slipway_tunnel_up"] == 1
    stack.config.public_url_file.unlink()
    assert numbers(stack)["slipway_tunnel_up"] == 0


# --- what they say


@ERAS
async def test_calls_are_counted_by_tool_outcome_and_era(make_stack: Callable[..., Stack], mode: str) -> None:
    stack = make_stack()
    era = "handshake" if mode == "legacy" else "newest"
    async with client(stack, mode) as caller:
        for _ in range(3):
            await caller.call_tool("add", {"a": 1, "b": 2})
        with pytest.raises(ToolError):
            await caller.call_tool("add", {"a": "x", "b": 2})
    async with client(stack, mode, tools="add") as caller:
        for tool in ("whoami", "made-up-by-a-stranger"):
            with pytest.raises(ToolError):
                await caller.call_tool(tool)
    found = numbers(stack)

    def calls(tool: str, outcome: str) -> float:
        return found.get(f'slipway_calls_total{{era="{era}",outcome="{outcome}",tool="{tool}"}}', 0)

    # logging is plain: JSON lines and lines of text, no boxes of rich
    assert "╭" not in stack.text("server")
    assert calls("add", "ok") == 3
    assert calls("add", "error") == 1
    assert calls("whoami", "forbidden") == 1
    assert calls("unknown", "forbidden") == 1
    assert found['slipway_call_seconds_count{tool="add"}'] == 4
    counted(stack, scope=2)
    text = ask(stack).text
    for told in ("stranger", "ana", "mcp-session", str(stack.folder), "warm-up"):
        assert told not in text


def test_refusals_are_counted_by_reason(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    expired = stack.token(ttl=1)
    wait_until(lambda: send(stack, expired) == 401, 10)
    send(stack, "")
    send(stack, "nonsense")
    httpx2.post(stack.server_url, headers={"host": "evil.example"})
    httpx2.post(stack.server_url, headers={"origin": "https://evil.example"})
    httpx2.get(stack.server_url.replace("/mcp", "/nothing"), headers=stack.bearer())
    httpx2.get(stack.server_url.replace("/mcp", "/admin/tokens"))
    counted(stack, token_expired=1, no_token=1, token_invalid=1, host=1, origin=1, not_found=1, admin_token=1)


def send(stack: Stack, token: str) -> int:
    headers = stack.bearer() | ({"authorization": f"Bearer {token}"})
    if not token:
        del headers["authorization"]
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    return httpx2.post(stack.server_url, headers=headers, json=body).status_code


def test_a_limit_that_is_hit_is_counted_by_its_name(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_CALLS_PER_MINUTE="2")
    assert [send(stack, stack.token()) for _ in range(4)] == [200, 200, 429, 429]
    deep = httpx2.post(stack.server_url, headers=stack.bearer(), content=b"[" * 1000)
    assert deep.status_code == 400
    counted(stack, limit=3)
    found = numbers(stack)
    assert found['slipway_limits_hit_total{limit="calls_per_minute"}'] == 2
    assert found['slipway_limits_hit_total{limit="json"}'] == 1
    assert found['slipway_requests_total{status="429"}'] == 2


async def test_a_tool_that_ran_out_of_time_is_counted_as_that(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_TOOL_TIMEOUT="1s")
    async with client(stack) as caller:
        with pytest.raises(ToolError):
            await caller.call_tool("countdown", {"n": 5})
    found = numbers(stack)
    assert found['slipway_calls_total{era="newest",outcome="timeout",tool="countdown"}'] == 1
    assert found['slipway_call_seconds_count{tool="countdown"}'] == 1


async def test_streams_and_sessions_are_counted_while_they_are_open(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()

    def open_now() -> tuple[float, float]:
        found = numbers(stack)
        return found['slipway_streams{method="GET"}'], found["slipway_sessions"]

    async with client(stack, "legacy") as caller:
        await caller.ping()
        wait_until(lambda: open_now() == (1, 1), 10, "a stream and a session")
    wait_until(lambda: open_now() == (0, 0), 10, "their end")


# --- traces


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@ERAS
async def test_the_callers_span_is_the_parent_of_ours_in_the_log_too_and_no_argument_is_told(
    make_stack: Callable[..., Stack], collector: Collector, mode: str
) -> None:
    more = {"SLIPWAY_TARGET": str(MIRROR), "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20key,x-team=demo"}
    stack = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **more)
    async with client(stack, mode, traceparent=PARENT, tracestate="a=1", x_request_id="mine") as caller:
        await caller.call_tool("mirror")
        with pytest.raises(ToolError):
            await caller.call_tool("mirror", {"text": "geheim"})
        await caller.read_resource("mirror://geheim")
        with pytest.raises(ToolError):
            await caller.call_tool("x" * 5000)
    wait_until(lambda: collector.named("resources/read", ID), 30, "the spans")
    spans = collector.named("tools/call mirror", ID)
    assert [span["parent"] for span in spans] == ["00f067aa0ba902b7"] * 2
    assert spans[0]["attributes"]["slipway.request_id"] == "mine"
    assert spans[0]["resource"]["service.name"] == "slipway" and spans[0]["resource"]["service.version"]
    assert spans[1]["status"] == 2 and spans[1]["attributes"]["error.type"]
    assert b"geheim" not in collector.raw and stack.token().encode()[:20] not in collector.raw
    assert all(len(span["name"]) <= 200 for span in collector.spans)
    assert collector.headers[0]["authorization"] == "Bearer key" and collector.headers[0]["x-team"] == "demo"
    assert {line["trace_id"] for line in stack.lines(method="tools/call")} == {ID}
    # our own probes at the start made none
    assert {span["trace"] for span in collector.spans} == {ID}


@ERAS
async def test_meta_is_the_parent_where_http_has_none_and_a_trace_of_ours_is_in_the_log(
    make_stack: Callable[..., Stack], collector: Collector, mode: str
) -> None:
    stack = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with client(stack, mode) as caller:
        await caller.call_tool("add", {"a": 1, "b": 2}, meta={"traceparent": PARENT})
        await caller.call_tool("whoami", meta={"traceparent": "00-nonsense"})
    wait_until(lambda: collector.named("tools/call whoami"), 30, "the spans")
    stack.lines(tool="whoami")
    lines = {line.get("tool"): line.get("trace_id") for line in stack.log("server")}
    assert lines["add"] == ID
    assert collector.named("tools/call whoami")[-1]["trace"] == lines["whoami"] != ID


async def test_without_a_collector_the_callers_trace_is_noted_and_a_malformed_one_is_not(shared_stack: Stack) -> None:
    for parent, noted in ((PARENT, ID), ("00-XYZ-1-01", None), (PARENT[:-2] + "zz", None)):
        name = f"probe-{parent[-4:]}"
        httpx2.post(shared_stack.edge_url, headers={"traceparent": parent, "x-request-id": name})
        line = shared_stack.lines(request_id=name)[0]
        assert line.get("trace_id") == noted


async def test_a_collector_that_is_gone_slows_nothing_and_is_told_once(make_stack: Callable[..., Stack]) -> None:
    (port,) = free_ports(1)
    stack = make_stack(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", SLIPWAY_CALLS_BURST="0", SLIPWAY_CALLS_PER_MINUTE="0"
    )

    async def call(many: int) -> None:
        async with client(stack) as caller:
            for _ in range(many):
                await caller.call_tool("add", {"a": 1, "b": 2})

    # more than the queue of 2048 spans holds
    await call(400)
    wait_until(lambda: "takes no spans" in stack.text("server"), 60, "the sentence")
    await call(100)
    back = Collector(port)
    try:

        def again() -> bool:
            httpx2.post(
                stack.server_url, headers=stack.bearer(), json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            )
            return "takes spans again" in stack.text("server")

        wait_until(again, 60, "the collector's return")
        assert back.spans
    finally:
        back.close()
    said = [line for line in stack.text("server").splitlines() if "opentelemetry" in line or "collector" in line]
    assert len(said) == 2, said
    await call(5)
    stack.processes["server"].terminate()
    assert stack.processes["server"].wait(8) == 128 + 15, "the end waits for no collector"


@pytest.fixture(params=["url", "command"])
def mirrored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The mirror as a target, elsewhere and as a command: (kind, target)."""
    if request.param == "command":
        yield "command", f"{sys.executable} {MIRROR}"
        return
    (port,) = free_ports(1)
    with (tmp_path / "mirror.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(MIRROR), str(port)], stdout=output, stderr=output, cwd=tmp_path
        )

    def up() -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/mcp").status_code < 500
        except httpx2.HTTPError:
            return False

    wait_until(up, 60, "the mirror")
    yield "url", f"http://127.0.0.1:{port}/mcp"
    process.terminate()
    process.wait(10)


@ERAS
@pytest.mark.parametrize("traced", [False, True])
async def test_an_upstream_learns_trace_and_request_id_and_nothing_else_of_the_caller(
    make_stack: Callable[..., Stack], collector: Collector, mirrored: tuple[str, str], mode: str, traced: bool
) -> None:
    kind, target = mirrored
    more = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if traced else {}
    stack = make_stack(SLIPWAY_TARGET=target, **more)
    sent = {"traceparent": PARENT, "tracestate": "a=1", "baggage": "who=ana", "x_request_id": "mine"}
    async with client(stack, mode, **sent) as caller:
        seen = (await caller.call_tool("mirror", meta={"baggage": "who=ana", "note": "kept"})).data
    meta = seen["meta"]
    assert meta["note"] == "kept" and "baggage" not in meta
    assert meta["traceparent"].split("-")[1] == ID and meta["tracestate"] == "a=1"
    if traced:
        wait_until(lambda: collector.named("tools/call mirror", ID), 30, "the spans")
        assert meta["traceparent"].split("-")[2] in {span["id"] for span in collector.spans}
    if kind == "url":
        headers = seen["headers"]
        assert headers["traceparent"].split("-")[1] == ID and headers["tracestate"] == "a=1"
        assert headers["x-request-id"] == "mine"
        assert not {"authorization", "baggage"} & set(headers)


# --- Prometheus itself


async def test_the_real_prometheus_scrapes_us_and_every_panel_of_the_dashboard_has_data(
    make_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = make_stack(SLIPWAY_CALLS_PER_MINUTE="60")
    (port,) = free_ports(1)
    text = CONFIG.read_text()
    found = text.index("    dns_sd_configs:")
    target = stack.server_url.removeprefix("http://").removesuffix("/mcp")
    text = text[:found] + f"    static_configs: [{{targets: ['{target}']}}]\n"
    (tmp_path / "prometheus.yml").write_text(text.replace("10s", "1s"))
    with (tmp_path / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output,
        )  # fmt: skip

    def query(text: str) -> list[Any]:
        try:
            answer = httpx2.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": text}, timeout=20)
        except httpx2.HTTPError:
            return []
        if answer.status_code == 503:  # it listens before its storage is open
            return []
        found: list[Any] = answer.json()["data"]["result"]
        return found

    try:
        wait_until(lambda: query('up{job="slipway"} == 1'), 60, "the first scrape")
        for mode in ("legacy", "auto"):
            async with client(stack, mode) as caller:
                await caller.call_tool("add", {"a": 1, "b": 2})
                with pytest.raises(ToolError):
                    await caller.call_tool("add", {"a": "x", "b": 2})
        send(stack, "")
        while send(stack, stack.token()) != 429:
            pass

        def missing() -> list[str]:
            def with_window(expression: str) -> str:
                return expression.replace("$__rate_interval", "1m")

            return [
                f"{title}: {json.dumps(each)}" for title, exprs in queries().items() for each in exprs
                if not query(with_window(each)) and title != "Redis"
            ]  # fmt: skip

        wait_until(lambda: not missing(), 30, f"data for {missing()}")
    finally:
        process.terminate()
        process.wait(20)
