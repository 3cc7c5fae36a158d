"""Each example over real HTTP with a token, in both protocol eras: its test is also its usage."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError

from examples import compliance, notes, search
from slipway import stack as stacks
from tests.conftest import ROOT, Stack, clean_environment, free_ports, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
ERAS = {"handshake": "legacy", "newest": "auto"}
KEY = "k3y-that-nobody-may-see"


def serve(stack: Stack, **extra: str) -> Stack:
    """Start server.py as it is, with the four examples mounted, and without the edge."""
    command, environment = stacks.children(stack.config, ROOT)["server"]
    environment = {k: v for k, v in environment.items() if not k.startswith("OPENSANCTIONS_")}
    with (stack.folder / "server.log").open("ab") as output:
        stack.processes["server"] = subprocess.Popen(
            command, env=environment | extra, stdout=output, stderr=output, start_new_session=True
        )
    url = stack.server_url.replace("/mcp", "/readyz")

    def ready() -> bool:
        assert stack.processes["server"].poll() is None, stack.text("server")
        try:
            return httpx2.get(url, timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(ready, 60, "the start of the server")
    return stack


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One server for all tests that need no other environment."""
    stack = Stack(tmp_path_factory.mktemp("desk"))
    try:
        yield serve(stack, SEARCH_STEP_SECONDS="0.02")
    finally:
        stack.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """A server of the test's own, with its own environment."""
    stack = Stack(tmp_path)
    yield lambda **extra: serve(stack, **extra)
    stack.stop()


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    """Both protocol eras, one after the other."""
    return str(request.param)


def connect(stack: Stack, subject: str = "ana", era: str = "newest", **how: Any) -> Client[Any]:
    """Connect with a token."""
    return Client(stack.server_url, auth=stack.token(subject=subject), mode=ERAS[era], timeout=30, **how)


async def call(client: Client[Any], tool: str, **arguments: Any) -> Any:
    """Call a tool and return its data, plain."""
    result = (await client.call_tool(tool, arguments)).structured_content
    return result["result"] if result and set(result) == {"result"} else result


async def saw(true: Callable[[], object], what: str) -> None:
    """Wait until true, off the event loop: the client's own messages go on."""
    await asyncio.to_thread(wait_until, true, 30, what)


@pytest.mark.parametrize("name", ["hello", "compliance", "notes", "search", "mounted"])
def test_an_example_is_what_a_user_would_write(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "slipway" not in text.lower()
    assert text.count("\n") < 200


@pytest.mark.parametrize(
    ("name", "tools"),
    [
        ("hello", {"add"}),
        ("compliance", {"lookup_sanctions_hit", "check_jurisdiction_risk", "summarize_alert"}),
        ("notes", {"save_note", "read_note", "list_notes", "search_notes", "reindex_notes"}),
        ("search", {"long_running_search"}),
    ],
)
async def test_an_example_speaks_stdio_and_leaves_nothing_behind(name: str, tools: set[str], tmp_path: Path) -> None:
    environment = clean_environment(tmp_path / "home", PYTHONDONTWRITEBYTECODE="1")
    environment.pop("DATA_DIR", None)
    folder = tmp_path / "here"
    folder.mkdir()
    command = [str(EXAMPLES / f"{name}.py")]
    transport = StdioTransport(sys.executable, command, env=environment, cwd=str(folder), keep_alive=False)
    async with Client(transport) as client:
        assert {tool.name for tool in await client.list_tools()} == tools
    assert not any(folder.iterdir())


# --- hello


async def test_hello_adds(desk: Stack, era: str) -> None:
    async with connect(desk, era=era) as client:
        assert await call(client, "add", a=2, b=3) == 5


# --- compliance


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("Vladimir Petrov", 1.0), ("PETROV, Vladimir", 1.0), ("Vladimír Pétrov", 1.0), ("Vladmir Petrov", 0.9),
        ("Bladimir Petrov", 0.9), ("Wladimir Petrow", 1.0), ("Jose Angel Sombra", 1.0), ("Jose Sombra", 0.8),
        ("muhammad karimi rad", 0.85), ("Karimi-Rad Mohammad", 0.9), ("Layla Alnoor Hassan", 0.85),
        ("Northwind Shadow Shipping", 0.85), ("NORTHWIND SHADOW SHIPPING LIMITED", 0.8),
    ],
)  # fmt: skip
async def test_a_name_is_found_as_a_screener_expects(desk: Stack, name: str, least: float) -> None:
    async with connect(desk) as client:
        answer = await call(client, "lookup_sanctions_hit", name=name)
    assert answer["hit"] is True
    assert least <= answer["matches"][0]["score"] <= 1
    assert answer["source"].startswith("sample list")
    assert "OPENSANCTIONS_API_KEY" in answer["note"]
    assert answer["from_cache"] is False


@pytest.mark.parametrize("name", ["Maria Lopez", "Petrov", "Vladimir Ivanov", "Petar Vladimirov", "Hassan Noori"])
async def test_another_name_is_no_hit(desk: Stack, name: str) -> None:
    async with connect(desk) as client:
        answer = await call(client, "lookup_sanctions_hit", name=name)
    assert (answer["hit"], answer["matches"]) == (False, [])


@pytest.mark.parametrize("name", ["", "x" * 201, "?!-", "Vladimir Petrov " + "x " * 19])
async def test_what_is_no_name_is_refused(desk: Stack, name: str) -> None:
    async with connect(desk) as client:
        with pytest.raises(ToolError, match=r"name"):
            await client.call_tool("lookup_sanctions_hit", {"name": name})


async def test_who_screened_is_the_tokens_subject_and_no_argument(desk: Stack, era: str) -> None:
    alert = {"alert_id": "A-1", "customer": "Vladimir Petrov", "amount": 9e5, "currency": "EUR", "country": "Iran"}
    async with connect(desk, "analyst.demo@example.com", era) as client:
        for tool, arguments in (
            ("lookup_sanctions_hit", {"name": "Maria Lopez"}),
            ("check_jurisdiction_risk", {"country": "KP"}),
            ("summarize_alert", {"alert": alert}),
        ):
            answer = await call(client, tool, **arguments)
            assert answer["screened_by"] == "analyst.demo@example.com"
            with pytest.raises(ToolError, match="screened_by"):
                await client.call_tool(tool, arguments | {"screened_by": "somebody else"})
    assert desk.lines(tool="summarize_alert", subject="analyst.demo@example.com")


@pytest.mark.parametrize(
    ("country", "risk"),
    [("Iran", "high"), ("kp", "high"), ("Korea, North", "high"), ("RUS", "raised"), ("España", "standard")],
)
async def test_a_country_is_known_by_name_and_code(desk: Stack, country: str, risk: str) -> None:
    async with connect(desk) as client:
        answer = await call(client, "check_jurisdiction_risk", country=country)
    assert answer["risk"] == risk
    assert ("Check the spelling" in answer.get("note", "")) == (risk == "standard")


@pytest.mark.parametrize(
    ("customer", "amount", "country", "step"),
    [
        ("Vladimir Petrov", 5, "Spain", "escalate to an analyst"), ("Maria Lopez", 5, "Iran", "escalate to an analyst"),
        ("Maria Lopez", 1e5, "Spain", "escalate to an analyst"), ("Maria Lopez", 5, "Russia", "ask for documents"),
        ("Maria Lopez", 5, "Spain", "close with a note"),
    ],
)  # fmt: skip
async def test_an_alert_is_summarized_with_the_next_step(
    desk: Stack, customer: str, amount: float, country: str, step: str
) -> None:
    alert = {"alert_id": "A-7", "customer": customer, "amount": amount, "country": country, "reason": "Structuring."}
    async with connect(desk) as client:
        answer = await call(client, "summarize_alert", alert=alert)
        with pytest.raises(ToolError, match="amount"):
            await client.call_tool("summarize_alert", {"alert": alert | {"amount": -1}})
    assert answer["next_step"] == step
    assert answer["summary"].startswith(f"A-7: {customer}, ")
    assert answer["summary"].endswith("Structuring.")


async def test_compliance_has_two_resources_and_two_prompts(desk: Stack, era: str) -> None:
    async with connect(desk, era=era) as client:
        assert "hit" in (await client.read_resource("compliance://policy"))[0].text
        assert "Iran" in (await client.read_resource("compliance://jurisdictions"))[0].text
        assert {"screen_customer", "write_case_note"} <= {prompt.name for prompt in await client.list_prompts()}
        told = await client.get_prompt("screen_customer", {"name": "Ana", "country": "ES"})
        assert "lookup_sanctions_hit" in told.messages[0].content.text
        told = await client.get_prompt("write_case_note", {"alert_id": "A-1"})
        assert "summarize_alert" in told.messages[0].content.text


Asked = tuple[float, str, Any]  # when, the Authorization header, the body


class FakeApi(BaseHTTPRequestHandler):
    """Answers as OpenSanctions would, with the statuses and headers that a test lines up."""

    answers: list[tuple[int, dict[str, str]]]
    asked: list[Asked]
    result: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((time.monotonic(), self.headers["authorization"], body))
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        good = {"responses": {"q": {"status": 200, "results": [self.result]}}}
        answer = json.dumps(good if status == 200 else {"detail": self.headers["authorization"]}).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


FOUND = {
    "id": "Q1", "caption": "Vladimir Petrov", "schema": "Person", "score": 0.73, "match": True,
    "properties": {"name": ["Vladimir Petrov"], "topics": ["sanction"]},
}  # fmt: skip


@contextmanager
def api(*answers: tuple[int, dict[str, str]], result: Any = FOUND) -> Iterator[tuple[str, list[Asked]]]:
    """Run the fake. Yields: its URL, what it was asked and when."""
    asked: list[Asked] = []
    handler = type("Handler", (FakeApi,), {"answers": list(answers), "asked": asked, "result": result})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_with_a_key_the_api_is_asked_again_after_a_failure_and_remembered(start: Callable[..., Stack]) -> None:
    with api((503, {})) as (url, asked):
        stack = start(OPENSANCTIONS_API_KEY=KEY, OPENSANCTIONS_URL=url)
        async with connect(stack) as client:
            first = await call(client, "lookup_sanctions_hit", name="Vladimir Petrov")
            second = await call(client, "lookup_sanctions_hit", name="petrov vladimir")
    assert (first["source"], first["hit"], first["from_cache"]) == ("OpenSanctions", True, False)
    assert first["matches"] == [{"id": "Q1", "name": "Vladimir Petrov", "score": 0.73, "programs": ["sanction"]}]
    assert (second["source"], second["hit"], second["from_cache"]) == ("OpenSanctions", True, True)
    assert [header for _, header, _ in asked] == [f"ApiKey {KEY}"] * 2
    assert asked[0][2] == {"queries": {"q": {"schema": "LegalEntity", "properties": {"name": ["Vladimir Petrov"]}}}}
    assert KEY not in json.dumps([first, second]) + stack.text("server")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process has a key, no remembered answers, and little patience."""
    monkeypatch.setenv("OPENSANCTIONS_API_KEY", KEY)
    monkeypatch.setattr(compliance, "_cache", {})
    monkeypatch.setattr(compliance, "LONGEST_WAIT", 0.01)
    return monkeypatch


@pytest.mark.parametrize(
    ("statuses", "result", "why", "tries"),
    [
        ([401], FOUND, "HTTP 401", 1), ([500, 429, 503], FOUND, "HTTP 503", 3), ([302], FOUND, "HTTP 302", 1),
        ([], None, "TypeError", 1), ([], FOUND | {"properties": None}, "AttributeError", 1),
    ],
)  # fmt: skip
async def test_an_api_that_fails_gives_way_to_the_sample_list_and_it_is_said(
    key: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], statuses: list[int], result: Any, why: str, tries: int
) -> None:
    with api(*[(status, {"location": "/elsewhere"}) for status in statuses], result=result) as (url, asked):
        key.setenv("OPENSANCTIONS_URL", url)
        await says_the_sample_list(why, capfd)
    assert len(asked) == tries


@pytest.mark.parametrize(("url", "why"), [("http://127.0.0.1:9", "ConnectError"), ("http://x:y", "InvalidURL")])
async def test_an_api_that_cannot_be_reached_gives_way_too(
    key: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, why: str
) -> None:
    key.setenv("OPENSANCTIONS_URL", url)
    await says_the_sample_list(why, capfd)


async def says_the_sample_list(why: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with Client(compliance.mcp) as client:
        answer = await call(client, "lookup_sanctions_hit", name="Vladimir Petrov")
    assert answer["source"].startswith("sample list")
    assert answer["hit"] is True
    assert f"did not answer ({why})" in answer["note"]
    told = capfd.readouterr().err
    assert answer["note"] in told
    assert KEY not in json.dumps(answer) + told


async def test_the_apis_own_verdict_decides_not_its_score(key: pytest.MonkeyPatch) -> None:
    with api(result=FOUND | {"match": False}) as (url, _):
        key.setenv("OPENSANCTIONS_URL", url)
        assert (await compliance.lookup_sanctions_hit("Vladimir Petrov"))["hit"] is False


async def test_retry_after_is_obeyed_within_reason(key: pytest.MonkeyPatch) -> None:
    key.setattr(compliance, "LONGEST_WAIT", 1.2)
    with api((429, {"retry-after": "1"}), (429, {"retry-after": "86400"})) as (url, asked):
        key.setenv("OPENSANCTIONS_URL", url)
        answer = await compliance.lookup_sanctions_hit("Vladimir Petrov")
    assert answer["source"] == "OpenSanctions"
    first, second, third = (when for when, _, _ in asked)
    assert second - first >= 1  # it would be 0.4 without
    assert 1.2 <= third - second < 20


async def test_an_api_that_drips_is_given_up(key: pytest.MonkeyPatch) -> None:
    key.setattr(compliance, "DEADLINE", 0.05)
    key.setattr(compliance, "LONGEST_WAIT", 60)
    with api((429, {"retry-after": "60"})) as (url, _):
        key.setenv("OPENSANCTIONS_URL", url)
        answer = await compliance.lookup_sanctions_hit("Vladimir Petrov")
    assert "did not answer (TimeoutError)" in answer["note"]


async def test_the_cache_forgets_and_stays_small(key: pytest.MonkeyPatch) -> None:
    key.setattr(compliance, "CACHE_SIZE", 2)
    with api() as (url, asked):
        key.setenv("OPENSANCTIONS_URL", url)
        for name in ("Ana Uno", "Bo Dos", "Cy Tres"):
            await compliance.lookup_sanctions_hit(name)
            assert len(compliance._cache) <= 2
        assert (await compliance.lookup_sanctions_hit("Cy Tres"))["from_cache"] is True
        key.setattr(compliance, "CACHE_TTL", 0)
        assert (await compliance.lookup_sanctions_hit("Cy Tres"))["from_cache"] is False
    assert len(asked) == 4


# --- notes


async def test_notes_are_the_callers_own_and_survive_a_restart(start: Callable[..., Stack], era: str) -> None:
    stack = start()
    async with connect(stack, "ana", era) as ana, connect(stack, "bo", era) as bo:
        await call(ana, "save_note", title="plan ä b", text="buy a boat")
        await call(bo, "save_note", title="plan ä b", text="sell a boat")
        await call(ana, "save_note", title="secret", text="of ana")
        assert await call(ana, "read_note", title="plan ä b") == "buy a boat"
        assert await call(bo, "read_note", title="plan ä b") == "sell a boat"
        assert await call(bo, "list_notes") == ["plan ä b"]
        assert await call(bo, "search_notes", query="ana") == []
        assert await call(bo, "reindex_notes") == "Indexed 1 notes."
        with pytest.raises(ToolError, match="no note"):
            await bo.call_tool("read_note", {"title": "secret"})
        stack.kill("server")
        serve(stack)
        assert await call(ana, "list_notes") == ["plan ä b", "secret"]
        assert (await ana.read_resource("notes://plan%20%C3%A4%20b"))[0].text == "buy a boat"
        assert (await bo.read_resource("notes://plan%20%C3%A4%20b"))[0].text == "sell a boat"
        with pytest.raises(Exception, match="no note"):
            await bo.read_resource("notes://secret")
        found = await call(ana, "search_notes", query="BOAT buy")
        assert found == [{"title": "plan ä b", "snippet": "[buy] a [boat]"}]


async def test_a_retry_with_the_same_key_writes_once(desk: Stack, era: str) -> None:
    async with connect(desk, f"retry-{era}", era) as client, connect(desk, f"other-{era}", era) as other:
        note = {"title": "once", "text": "one", "idempotency_key": "k1"}
        results = await asyncio.gather(*(call(client, "save_note", **note) for _ in range(5)))
        assert sorted(result["repeated"] for result in results) == [False, True, True, True, True]
        await call(client, "save_note", title="once", text="two")
        assert await call(client, "save_note", **note) == {"saved": "once", "repeated": True}
        assert await call(client, "read_note", title="once") == "two"
        for changed in ({"text": "three"}, {"title": "twice"}):
            with pytest.raises(ToolError, match="another note"):
                await client.call_tool("save_note", note | changed)
        assert await call(client, "list_notes") == ["once"]
        assert (await call(other, "save_note", **note))["repeated"] is False


@pytest.mark.parametrize(
    "query",
    ['"', "AND OR NOT", "*", "title:x", "NEAR(a b)", "(((", "--", "'; DROP TABLE notes", "els*", "a\0b", "^x"],
)
async def test_a_query_is_words_and_never_an_operator(desk: Stack, query: str) -> None:
    async with connect(desk, "query") as client:
        await call(client, "save_note", title="y", text="something else")
        assert await call(client, "search_notes", query=query) == []
        assert await call(client, "search_notes", query="else something") != []


@pytest.mark.parametrize("title", ["100% #1?", "%2F", "日本 語", "a&b=c", 'it\'s "so"'])
async def test_a_title_may_hold_anything_that_a_uri_can_quote(desk: Stack, title: str, era: str) -> None:
    async with connect(desk, f"quoted-{era}", era) as client:
        await call(client, "save_note", title=title, text=f"text of {title}")
        assert (await client.read_resource("notes://" + quote(title, safe="")))[0].text == f"text of {title}"


@pytest.mark.parametrize("title", ["", "a/b", "x" * 201, "new\nline", "a\0b", "..", ".", "  "])
async def test_a_title_that_could_not_be_a_uri_is_refused(desk: Stack, title: str) -> None:
    async with connect(desk, "titles") as client:
        with pytest.raises(ToolError, match="title"):
            await client.call_tool("save_note", {"title": title, "text": "t"})
        assert await call(client, "list_notes") == []


@pytest.mark.parametrize("text", ["x" * 100_001, "ä" * 50_001])
async def test_a_note_has_at_most_a_hundred_thousand_bytes(desk: Stack, text: str) -> None:
    async with connect(desk, "long") as client:
        with pytest.raises(ToolError, match=r"100000|bytes"):
            await client.call_tool("save_note", {"title": "long", "text": text})
        await call(client, "save_note", title="longest", text="x" * 100_000)
        assert await call(client, "list_notes") == ["longest"]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Notes of this process, in a folder of their own."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return monkeypatch


async def test_the_files_are_their_owners_alone(local: pytest.MonkeyPatch, tmp_path: Path) -> None:
    await notes.save_note("a", "text")
    with notes.database() as db:  # WAL's two files are there while somebody reads or writes
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}  # noqa: ASYNC240
    assert modes == dict.fromkeys(["notes.sqlite3", "notes.sqlite3-wal", "notes.sqlite3-shm"], 0o600)


async def test_a_caller_has_a_limit_of_notes_and_may_still_change_them(local: pytest.MonkeyPatch) -> None:
    local.setattr(notes, "MAX_NOTES", 2)
    for title in ("a", "b", "a"):
        await notes.save_note(title, "text")
    with pytest.raises(ToolError, match="which is the limit"):
        await notes.save_note("c", "text", "key")
    assert await notes.list_notes() == ["a", "b"]
    local.setattr(notes, "MAX_NOTES", 3)
    assert (await notes.save_note("c", "text", "key"))["repeated"] is False  # what was refused may be tried again


async def test_a_changed_note_is_found_by_its_new_words_alone(local: pytest.MonkeyPatch) -> None:
    await notes.save_note("a", "old words")
    await notes.save_note("a", "new words")
    assert await notes.search_notes("old") == []
    assert [match["title"] for match in await notes.search_notes("words")] == ["a"]


async def test_without_fts5_notes_are_found_all_the_same(local: pytest.MonkeyPatch) -> None:
    local.setattr(notes, "has_fts5", lambda _: False)
    await notes.save_note("Plan", "buy a boat, 100%")
    await notes.save_note("other", "sell a car")
    assert [match["title"] for match in await notes.search_notes("BOAT plan")] == ["Plan"]
    assert await notes.search_notes("%_boat") == []
    local.undo()


@pytest.mark.filterwarnings("ignore:The logging capability is deprecated")  # the newest revision's advice to ctx.info
async def test_reindexing_mends_what_was_written_without_an_index(local: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as without:
        without.setattr(notes, "has_fts5", lambda _: False)
        await notes.save_note("a", "word")
    assert await notes.search_notes("word") == []
    async with Client(notes.mcp, mode="legacy") as client:
        await client.call_tool("reindex_notes")
    assert await notes.search_notes("word") == [{"title": "a", "snippet": "[word]"}]


async def test_reindexing_tells_of_every_note(desk: Stack) -> None:
    logs: list[str] = []
    steps: list[tuple[float, float | None, str | None]] = []

    async def on_log(line: Any) -> None:
        logs.append(line.data["msg"])

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, total, message))

    async with connect(desk, "indexer", "handshake", log_handler=on_log) as client:
        for title in ("a", "b", "c"):
            await call(client, "save_note", title=title, text="word")
        assert (await client.call_tool("reindex_notes", {}, progress_handler=on_progress)).data == "Indexed 3 notes."
        assert len(await call(client, "search_notes", query="word")) == 3
    assert steps == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]
    assert logs == ["indexed a", "indexed b", "indexed c"]


# --- search


async def test_partial_results_come_before_the_result(desk: Stack, era: str) -> None:
    heard: list[str] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async with connect(desk, era=era) as client:
        arguments = {"query": "header", "limit": 2}
        result = await client.call_tool("long_running_search", arguments, progress_handler=on_progress)
    assert result.data is not None and len(result.data) == 2
    assert [text for text in heard if text.startswith("found:")] == [f"found: {line}" for line in result.data]
    assert heard[0] == "searching"


@pytest.mark.parametrize("arguments", [{"query": ""}, {"query": "x" * 201}, {"query": "x", "limit": 0}])
async def test_a_search_has_limits(desk: Stack, arguments: dict[str, Any]) -> None:
    async with connect(desk) as client:
        with pytest.raises(ToolError, match=r"query|limit"):
            await client.call_tool("long_running_search", arguments)


async def test_a_cancelled_search_cleans_up_and_gives_its_slot_to_the_one_that_waits(
    start: Callable[..., Stack], era: str
) -> None:
    stack = start(SEARCH_STEP_SECONDS="3600")  # none ends by itself
    heard: dict[int, list[str]] = {number: [] for number in range(search.AT_ONCE + 1)}

    def begin(client: Client[Any], number: int) -> asyncio.Task[Any]:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            heard[number].append(message or "")

        searching = client.call_tool("long_running_search", {"query": "zebra"}, progress_handler=on_progress)
        return asyncio.ensure_future(searching)

    async with connect(stack, era=era) as client:
        tasks = [begin(client, number) for number in range(search.AT_ONCE)]
        await saw(lambda: all(heard[number] for number in range(search.AT_ONCE)), "the start of the searches")
        last = search.AT_ONCE
        tasks.append(begin(client, last))
        await saw(lambda: heard[last] == ["waiting for a free slot"], "the wait for a slot")
        assert "cleaned up" not in stack.text("server")
        tasks[0].cancel()
        await saw(lambda: stack.text("server").count("was cancelled and cleaned up") == 1, "the clean-up")
        await saw(lambda: heard[last] == ["waiting for a free slot", "searching"], "the freed slot")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await saw(lambda: stack.text("server").count("was cancelled and cleaned up") == len(tasks), "every clean-up")


def test_the_slots_work_on_one_event_loop_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_STEP_SECONDS", "0")

    async def crowd() -> list[list[str]]:
        async with Client(search.mcp) as client:
            calls = [call(client, "long_running_search", query="cors") for _ in range(search.AT_ONCE * 2)]
            return list(await asyncio.gather(*calls))

    for _ in range(2):
        assert all(len(found) == 1 for found in asyncio.run(crowd()))


# --- mounted


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[str]:
    """The FastAPI application as its own program; its port is the one thing changed."""
    (port,) = free_ports(1)
    program = (EXAMPLES / "mounted.py").read_text().replace("port=8010", f"port={port}")
    assert f"port={port}" in program
    (tmp_path / "mounted.py").write_text(program)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, tmp_path / "mounted.py"], stdout=output, stderr=output)
    try:
        wait_until(lambda: "running on" in log.read_text() or process.poll() is not None, 60, "its start")
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)


PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT = {"accept": "application/json, text/event-stream"}


async def test_tools_inside_fastapi_see_the_application(mounted: str, era: str) -> None:
    async with Client(f"{mounted}/mcp", mode=ERAS[era]) as client:
        assert await call(client, "add", a=2, b=3) == 5
        status = await call(client, "backend_status")
    assert status["ready"] is True  # the application's own lifespan ran beside the endpoint's
    assert status["requests"] >= 1


def test_the_endpoint_is_at_mcp_itself_beside_the_other_routes(mounted: str) -> None:
    health = httpx2.get(f"{mounted}/health")
    direct = httpx2.post(f"{mounted}/mcp", json=PING, headers=ACCEPT)
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert direct.status_code == 400 and "session" in direct.text.lower()  # MCP's own answer, no redirect
    assert (health.headers["x-request-number"], direct.headers["x-request-number"]) == ("1", "2")
    assert httpx2.post(f"{mounted}/mcp/mcp", json=PING, headers=ACCEPT).status_code == 404


@pytest.mark.parametrize(("name", "value"), [("host", "evil.example"), ("origin", "https://evil.example")])
def test_a_web_page_cannot_reach_the_endpoint_that_has_no_token(mounted: str, name: str, value: str) -> None:
    answer = httpx2.post(f"{mounted}/mcp", json=PING, headers=ACCEPT | {name: value})
    assert answer.status_code in (403, 421)


async def test_requests_that_overlap_have_numbers_of_their_own() -> None:
    from examples import mounted as module

    entered, leave = asyncio.Barrier(3), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await entered.wait()
        await leave.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    seen: list[bytes] = []

    async def send(message: Any) -> None:
        seen.extend(value for name, value in message["headers"] if name == b"x-request-number")

    app: Any = module.Counted(slow)
    both = [asyncio.ensure_future(app({"type": "http"}, None, send)) for _ in range(2)]
    await entered.wait()
    leave.set()
    await asyncio.gather(*both)
    assert len(set(seen)) == 2
