"""Each example over real HTTP with a token: its test is also its usage."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError

from examples import compliance
from tests.conftest import ROOT, Stack, clean_environment, free_ports, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
ERAS = {"handshake": "legacy", "newest": "auto"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """server.py as it is, with the four examples mounted; the server alone, without the edge."""
    stack = Stack(tmp_path_factory.mktemp("desk"))
    serve(stack)
    yield stack
    stack.stop()


def serve(stack: Stack, **extra: str) -> None:
    """Start the server alone."""
    from slipway import stack as stacks

    command, environment = stacks.children(stack.config, ROOT)["server"]
    environment |= {"SEARCH_STEP_SECONDS": "0.02", **extra}
    with (stack.folder / "server.log").open("ab") as output:
        stack.processes["server"] = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = stack.server_url.replace("/mcp", "/readyz")

    def ready() -> bool:
        assert stack.processes["server"].poll() is None, stack.text("server")
        try:
            return httpx2.get(url, timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(ready, 30, "the start of the server")


def connect(stack: Stack, subject: str = "ana", era: str = "newest", **how: Any) -> Client:
    return Client(stack.server_url, auth=stack.token(subject=subject), mode=ERAS[era], timeout=20, **how)


@pytest.mark.parametrize("name", ["hello", "compliance", "notes", "search", "mounted"])
async def test_an_example_is_a_server_of_its_own_and_knows_nothing_of_slipway(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "slipway" not in text.lower()
    command = [str(EXAMPLES / f"{name}.py")]
    if name == "mounted":
        return  # it speaks HTTP alone, below
    environment = clean_environment(tmp_path, DATA_DIR=str(tmp_path))
    async with Client(StdioTransport(sys.executable, command, env=environment, keep_alive=False)) as client:
        assert await client.list_tools()


# --- hello


@pytest.mark.parametrize("era", ERAS)
async def test_hello_adds(desk: Stack, era: str) -> None:
    async with connect(desk, era=era) as client:
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5


# --- compliance


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("Vladimir Petrov", 1.0), ("PETROV, Vladimir", 1.0), ("Vladimír Pétrov", 1.0), ("Vladmir Petrov", 0.9),
        ("Wladimir Petrow", 1.0), ("Jose Angel Sombra", 1.0), ("muhammad karimi rad", 0.85),
        ("Northwind Shadow Shipping", 0.85),
    ],
)  # fmt: skip
async def test_a_name_is_found_as_a_screener_expects(desk: Stack, name: str, least: float) -> None:
    async with connect(desk) as client:
        answer = (await client.call_tool("lookup_sanctions_hit", {"name": name})).data
    assert answer["hit"] is True
    assert answer["matches"][0]["score"] >= least
    assert "made up" in answer["source"]
    assert "OPENSANCTIONS_API_KEY" in answer["note"]


@pytest.mark.parametrize("name", ["Maria Lopez", "Petrov", "Vladimir Ivanov", "Hassan Noori"])
async def test_another_name_is_no_hit(desk: Stack, name: str) -> None:
    async with connect(desk) as client:
        assert (await client.call_tool("lookup_sanctions_hit", {"name": name})).data["hit"] is False


@pytest.mark.parametrize("era", ERAS)
async def test_who_screened_is_the_tokens_subject_and_no_argument(desk: Stack, era: str) -> None:
    alert = {"alert_id": "A-1", "customer": "Vladimir Petrov", "amount": 9e5, "currency": "EUR", "country": "Iran"}
    async with connect(desk, "analyst.demo@example.com", era) as client:
        for tool, arguments in (
            ("lookup_sanctions_hit", {"name": "Maria Lopez"}),
            ("check_jurisdiction_risk", {"country": "KP"}),
            ("summarize_alert", {"alert": alert}),
        ):
            answer = (await client.call_tool(tool, arguments)).data
            assert answer["screened_by"] == "analyst.demo@example.com"
        assert (answer["next_step"], answer["risk"], answer["hit"]) == ("escalate to an analyst", "high", True)
        with pytest.raises(ToolError, match="screened_by"):
            await client.call_tool("lookup_sanctions_hit", {"name": "Maria Lopez", "screened_by": "somebody else"})
    lines = [line for line in desk.log("server") if line.get("tool") == "summarize_alert"]
    assert lines[-1]["subject"] == "analyst.demo@example.com"


async def test_compliance_has_two_resources_and_two_prompts(desk: Stack) -> None:
    async with connect(desk) as client:
        assert "hit" in (await client.read_resource("compliance://policy"))[0].text
        assert "Iran" in (await client.read_resource("compliance://jurisdictions"))[0].text
        assert {"screen_customer", "write_case_note"} <= {prompt.name for prompt in await client.list_prompts()}
        told = await client.get_prompt("screen_customer", {"name": "Ana", "country": "ES"})
        assert "lookup_sanctions_hit" in told.messages[0].content.text


class FakeApi(BaseHTTPRequestHandler):
    """Answers as OpenSanctions would, with the statuses that a test lines up."""

    statuses: list[int]
    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.headers["authorization"], body))
        status = self.statuses.pop(0) if self.statuses else 200
        result = {"id": "Q1", "caption": "Vladimir Petrov", "score": 0.93, "properties": {"topics": ["sanction"]}}
        answer = json.dumps(
            {"responses": {"q": {"results": [result]}}} if status == 200 else {"detail": "no"}
        ).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def api(*statuses: int) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Run the fake. Yields: its URL, what it was asked."""
    handler = type("Handler", (FakeApi,), {"statuses": list(statuses), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_with_a_key_the_api_is_asked_again_after_a_failure_and_remembered(tmp_path: Path) -> None:
    with api(503) as (url, asked):
        stack = Stack(tmp_path)
        serve(stack, OPENSANCTIONS_API_KEY="k3y", OPENSANCTIONS_URL=url)
        try:
            async with connect(stack) as client:
                first = (await client.call_tool("lookup_sanctions_hit", {"name": "Vladimir Petrov"})).data
                second = (await client.call_tool("lookup_sanctions_hit", {"name": "petrov vladimir"})).data
        finally:
            stack.stop()
    assert (first["source"], first["hit"], first["from_cache"]) == ("OpenSanctions", True, False)
    assert (second["source"], second["from_cache"]) == ("OpenSanctions", True)
    assert [header for header, _ in asked] == ["ApiKey k3y"] * 2
    assert asked[0][1]["queries"]["q"]["properties"]["name"] == ["Vladimir Petrov"]
    assert "k3y" not in json.dumps([first, second]) + stack.text("server")


@pytest.mark.parametrize("statuses", [(401,), (500, 500, 500), (200,)])
async def test_an_api_that_fails_gives_way_to_the_sample_list_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...]
) -> None:
    monkeypatch.setenv("OPENSANCTIONS_API_KEY", "k3y")
    monkeypatch.setattr(compliance, "LONGEST_WAIT", 0.01)
    with api(*statuses) as (url, asked):
        monkeypatch.setenv("OPENSANCTIONS_URL", url if statuses != (200,) else "http://127.0.0.1:9")
        async with Client(compliance.mcp) as client:
            answer = (await client.call_tool("lookup_sanctions_hit", {"name": f"José Sombra {statuses}"})).data
    assert "made up" in answer["source"]
    assert "did not answer" in answer["note"]
    assert len(asked) == (len(statuses) if statuses != (200,) else 0)
    assert "k3y" not in json.dumps(answer)


def test_the_cache_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    compliance._cache[compliance.folded("Old Name")] = (time.monotonic() - compliance.CACHE_TTL - 1, {"hit": True})
    assert compliance._remembered("Old Name") is None


# --- notes


@pytest.mark.parametrize("era", ERAS)
async def test_notes_are_the_callers_own_and_survive_a_restart(tmp_path: Path, era: str) -> None:
    stack = Stack(tmp_path)
    serve(stack)
    async with connect(stack, "ana", era) as ana, connect(stack, "bo", era) as bo:
        await ana.call_tool("save_note", {"title": "plan ä b", "text": "buy a boat"})
        await bo.call_tool("save_note", {"title": "plan ä b", "text": "sell a boat"})
        assert (await ana.call_tool("read_note", {"title": "plan ä b"})).data == "buy a boat"
        with pytest.raises(ToolError, match="no note"):
            await bo.call_tool("read_note", {"title": "other"})
        assert (await bo.call_tool("search_notes", {"query": "buy"})).structured_content == {"result": []}
        stack.kill("server")
        serve(stack)
        assert (await ana.call_tool("list_notes")).data == ["plan ä b"]
        assert (await ana.read_resource("notes://plan%20%C3%A4%20b"))[0].text == "buy a boat"
        found = (await ana.call_tool("search_notes", {"query": "BOAT buy"})).structured_content["result"]
        assert found == [{"title": "plan ä b", "snippet": "[buy] a [boat]"}]
    file = stack.config.state / "data" / "notes.sqlite3"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stack.stop()


async def test_a_retry_with_the_same_key_writes_once(desk: Stack) -> None:
    async with connect(desk, "retry") as client:
        note = {"title": "once", "text": "one", "idempotency_key": "k1"}
        results = await asyncio.gather(*(client.call_tool("save_note", note) for _ in range(5)))
        assert sorted(result.data["repeated"] for result in results) == [False, True, True, True, True]
        await client.call_tool("save_note", {"title": "once", "text": "two"})
        assert (await client.call_tool("save_note", note)).data["repeated"] is True
        assert (await client.call_tool("read_note", {"title": "once"})).data == "two"
        with pytest.raises(ToolError, match="another note"):
            await client.call_tool("save_note", note | {"text": "three"})


@pytest.mark.parametrize(
    "query", ['"', "AND OR NOT", "*", "title:x", "NEAR(a b)", "(((", "--", "'; DROP TABLE notes"]
)
async def test_a_query_is_words_and_never_an_operator(desk: Stack, query: str) -> None:
    async with connect(desk, "query") as client:
        await client.call_tool("save_note", {"title": "x", "text": "something else"})
        assert (await client.call_tool("search_notes", {"query": query})).structured_content == {"result": []}


@pytest.mark.parametrize("title", ["", "a/b", "x" * 201, "new\nline"])
async def test_a_title_that_could_not_be_a_uri_is_refused(desk: Stack, title: str) -> None:
    async with connect(desk, "titles") as client:
        with pytest.raises(ToolError):
            await client.call_tool("save_note", {"title": title, "text": "t"})
        assert (await client.call_tool("list_notes")).data == []


async def test_reindexing_tells_of_every_note(desk: Stack) -> None:
    logs: list[str] = []
    steps: list[tuple[float, float | None]] = []

    async def on_log(line: Any) -> None:
        logs.append(line.data["msg"])

    async def on_progress(progress: float, total: float | None, _: str | None) -> None:
        steps.append((progress, total))

    async with connect(desk, "indexer", "handshake", log_handler=on_log) as client:
        for title in ("a", "b", "c"):
            await client.call_tool("save_note", {"title": title, "text": "word"})
        assert (await client.call_tool("reindex_notes", {}, progress_handler=on_progress)).data == "Indexed 3 notes."
        assert len((await client.call_tool("search_notes", {"query": "word"})).structured_content["result"]) == 3
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert logs == ["indexed a", "indexed b", "indexed c"]


# --- search


@pytest.mark.parametrize("era", ERAS)
async def test_partial_results_come_before_the_result(desk: Stack, era: str) -> None:
    heard: list[str | None] = []

    async def on_progress(_: float, __: float | None, text: str | None) -> None:
        heard.append(text)

    async with connect(desk, era=era) as client:
        found = (
            await client.call_tool(
                "long_running_search", {"query": "header", "limit": 2}, progress_handler=on_progress
            )
        ).data
    assert [text for text in heard if text and text.startswith("found:")] == [f"found: {line}" for line in found]
    assert len(found) == 2
    assert heard[-1] == f"found: {found[-1]}"


@pytest.mark.parametrize("era", ERAS)
async def test_a_cancelled_search_cleans_up_and_frees_its_slot(tmp_path: Path, era: str) -> None:
    stack = Stack(tmp_path)
    serve(stack, SEARCH_STEP_SECONDS="0.1")
    running, waiting = asyncio.Event(), asyncio.Event()

    async def on_progress(_: float, __: float | None, text: str | None) -> None:
        running.set()
        if text and "waiting" in text:
            waiting.set()

    def search(client: Client) -> asyncio.Future[Any]:
        call = client.call_tool("long_running_search", {"query": "zebra"}, progress_handler=on_progress)
        return asyncio.ensure_future(call)

    async with connect(stack, era=era) as client:
        calls = [search(client) for _ in range(4)]
        await running.wait()
        last = search(client)
        await asyncio.wait_for(waiting.wait(), 20)
        calls[0].cancel()
        while "cancelled and cleaned up" not in stack.text("server"):
            await asyncio.sleep(0.02)
        assert (await last).data == []
        await asyncio.gather(*calls[1:])
    stack.stop()


# --- mounted


async def test_an_endpoint_inside_fastapi(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "examples.mounted:app", "--port", str(port)]
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: "running on" in (tmp_path / "log").read_text(), 20, "its start")
        health = httpx2.get(f"{url}/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        async with Client(f"{url}/mcp", mode="legacy") as client:
            assert (await client.call_tool("backend_status")).data["ready"] is True
        direct = httpx2.post(
            f"{url}/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"},
            headers={"accept": "application/json, text/event-stream"},
        )  # fmt: skip
        assert direct.status_code != 307
        assert int(direct.headers["x-request-number"]) > int(health.headers["x-request-number"])
        assert httpx2.post(f"{url}/mcp/mcp", json={}).status_code == 404
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)
