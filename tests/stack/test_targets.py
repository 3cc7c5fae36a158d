"""Servers that nobody here wrote, behind the real stack: each kind of target, both eras, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mcp_types as mt
import psutil
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError
from mcp.client.subscriptions import listen

from tests.conftest import ROOT, UNLIMITED, Stack, free_ports, wait_until

pytestmark = pytest.mark.slow

TALKATIVE = ROOT / "tests" / "servers" / "talkative.py"
COMMAND = f"{shlex.quote(sys.executable)} {shlex.quote(str(TALKATIVE))}"
ERAS = {"handshake": "legacy", "newest": "auto"}
SDK = """
from mcp.server.mcpserver import Context, MCPServer
server = MCPServer("sdk", instructions="Ask me anything.")
@server.tool()
async def add(a: int, b: int) -> int:
    return a + b
@server.tool()
async def talk(n: int, ctx: Context) -> str:
    for i in range(n):
        await ctx.info(f"log {i}")
        await ctx.report_progress(i + 1, n, f"step {i}")
    return "said"
@server.resource("memo://about")
async def about() -> str:
    return "about"
@server.resource("memo://{name}")
async def memo(name: str) -> str:
    return f"memo of {name}"
@server.prompt()
async def greet(name: str) -> str:
    return f"Greet {name}."
"""

Make = Callable[..., Stack]


@contextmanager
def over_http() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the talkative server in another process. Yields: its URL, the process."""
    (port,) = free_ports(1)
    process = serve_on(port)
    try:
        yield f"http://127.0.0.1:{port}/mcp", process
    finally:
        process.kill()
        process.wait()


def serve_on(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, TALKATIVE, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: [c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"], 20)
    return process


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    """The URL of a server in another process."""
    with over_http() as (url, _):
        yield url


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory, http: str) -> Iterator[Callable[[str], Stack]]:
    """One stack for each kind of target, started at its first use."""
    made: dict[str, Stack] = {}

    def of(kind: str) -> Stack:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            (folder / "sdk.py").write_text(SDK)
            servers = {"one": {"command": sys.executable, "args": [str(TALKATIVE)]}, "two": {"url": http}}
            (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
            target = {
                "file": str(TALKATIVE), "object": f"{TALKATIVE}:mcp", "sdk": str(folder / "sdk.py"),
                "command": COMMAND, "url": http, "several": str(folder / "mcp.json"),
            }[kind]  # fmt: skip
            made[kind] = Stack(folder, {"SLIPWAY_TARGET": target}).start()
        return made[kind]

    yield of
    for stack in made.values():
        stack.stop()


def connect(stack: Stack, era: str, subject: str = "ana", tools: str = "*", **how: Any) -> Client:
    token = stack.token(tools, subject=subject)
    return Client(stack.tls_url, auth=token, verify=stack.trust(), mode=ERAS[era], timeout=20, **how)


def processes_of(stack: Stack) -> list[psutil.Process]:
    """Return the talkative children of the stack's server."""
    server = psutil.Process(stack.processes["server"].pid)
    return [child for child in server.children(recursive=True) if str(TALKATIVE) in child.cmdline()]


def told(stack: Stack, text: str) -> bool:
    return any(text in str(line.get("reason", "")) for line in stack.log("server"))


# --- what passes through


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", ["file", "object", "sdk", "command", "url", "several"])
async def test_every_kind_of_target_is_served_in_both_eras(
    stacks: Callable[[str], Stack], kind: str, era: str
) -> None:
    steps: list[str | None] = []
    logs: list[str] = []

    async def on_progress(_: float, __: float | None, text: str | None) -> None:
        steps.append(text)

    async def on_log(line: Any) -> None:
        logs.append(line.data["msg"] if isinstance(line.data, dict) else line.data)

    prefix, place = ("one_", "one/") if kind == "several" else ("", "")
    async with connect(stacks(kind), era, log_handler=on_log) as c:
        names = {tool.name for tool in await c.list_tools()}
        assert {f"{prefix}add", f"{prefix}talk"} <= names
        assert kind != "several" or "two_add" in names
        assert (await c.call_tool(f"{prefix}add", {"a": 2, "b": 3})).content[0].text == "5"
        assert (await c.call_tool(f"{prefix}talk", {"n": 3}, progress_handler=on_progress)).content[0].text == "said"
        assert steps == ["step 0", "step 1", "step 2"]
        assert (await c.read_resource(f"memo://{place}about"))[0].text == "about"
        assert (await c.read_resource(f"memo://{place}zoe"))[0].text == "memo of zoe"
        assert str((await c.list_resource_templates())[0].uri_template) == f"memo://{place}{{name}}"
        assert "Greet ana" in (await c.get_prompt(f"{prefix}greet", {"name": "ana"})).messages[0].content.text
        assert "Ask me anything" in (c.instructions or "")
        if kind != "sdk":
            ref = mt.PromptReference(name=f"{prefix}greet")
            assert (await c.complete(ref, {"name": "name", "value": "an"})).values == ["ana", "anton"]
    # over HTTP the newest revision sends log messages only to callers that ask for a level
    assert era == "newest" or logs == ["log 0", "log 1", "log 2"]


@pytest.mark.parametrize("kind", ["file", "command", "url", "several"])
async def test_what_a_server_asks_reaches_the_callers_client(stacks: Callable[[str], Stack], kind: str) -> None:
    asked: list[Any] = []

    async def on_sample(messages: Any, params: Any, _: Any) -> mt.CreateMessageResult:
        asked.append((messages[0].content.text, params.max_tokens, params.temperature))
        content = mt.TextContent(type="text", text="because")
        return mt.CreateMessageResult(role="assistant", model="model-x", content=content)

    async def on_elicit(message: str, *_: Any) -> dict[str, str]:
        asked.append(message)
        return {"name": "Ana"}

    prefix = "one_" if kind == "several" else ""
    how: dict[str, Any] = {"sampling_handler": on_sample, "elicitation_handler": on_elicit, "roots": ["file:///r"]}
    async with connect(stacks(kind), "handshake", **how) as c:
        assert (await c.call_tool(f"{prefix}ask_model", {"question": "why?"})).data == "model-x: because"
        assert (await c.call_tool(f"{prefix}ask_name")).data == "accept {'name': 'Ana'}"
        assert (await c.call_tool(f"{prefix}ask_roots")).data == ["file:///r"]
    assert asked == [("why?", 17, 0.5), "What is your name?"]


@pytest.mark.parametrize("kind", ["command", "url"])
async def test_the_newest_era_is_told_that_its_client_cannot_be_asked(
    stacks: Callable[[str], Stack], kind: str
) -> None:
    async with connect(stacks(kind), "newest") as c:
        with pytest.raises(ToolError, match=r"asks its client nothing|back-channel|not supported|server-initiated"):
            await c.call_tool("ask_model", {"question": "why?"})
        assert (await c.call_tool("add", {"a": 1, "b": 1})).data == 2


@pytest.mark.parametrize("kind", ["command", "url", "several"])
async def test_a_changed_tool_list_is_passed_on_and_the_log_says_who_caches_it(
    make_stack: Make, http: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "mcp.json").write_text(
        json.dumps(
            {"mcpServers": {"one": {"command": sys.executable, "args": [str(TALKATIVE)]}, "two": {"url": http}}}
        )
    )
    stack = make_stack(SLIPWAY_TARGET={"command": COMMAND, "url": http, "several": str(tmp_path / "mcp.json")}[kind])
    heard: list[str] = []

    async def on_message(message: Any) -> None:
        heard.append(type(message).__name__)

    prefix = "one_" if kind == "several" else ""
    async with connect(stack, "handshake", message_handler=on_message) as c:
        before = {tool.name for tool in await c.list_tools()}
        await c.call_tool(f"{prefix}grow")
        while "ToolListChangedNotification" not in heard:
            await asyncio.sleep(0.02)
        (new,) = {tool.name for tool in await c.list_tools()} - before
        assert (await c.call_tool(new)).data == "new"
    wait_until(lambda: told(stack, "new: grown") and told(stack, "ChatGPT"), 10, "the line in the log")


async def test_the_newest_era_hears_of_a_changed_list_on_its_listen_stream(make_stack: Make) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    heard = asyncio.Event()

    async def on_message(message: Any) -> None:
        if isinstance(message, mt.ToolListChangedNotification):
            heard.set()

    async with (
        connect(stack, "newest", message_handler=on_message) as c,
        listen(c.session, tools_list_changed=True),
    ):
        await c.call_tool("grow")
        await asyncio.wait_for(heard.wait(), 10)


# --- what does not


@pytest.mark.parametrize("setting", ["file", "command"])
async def test_a_target_gets_no_secret_of_ours(
    make_stack: Make, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for name in ("NGROK_AUTHTOKEN", "FASTMCP_LOG_LEVEL", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "DEBUG")
    stack = make_stack(SLIPWAY_TARGET=str(TALKATIVE) if setting == "file" else COMMAND)
    async with connect(stack, "newest") as c:
        seen = (await c.call_tool("environment")).data
    assert seen["PATH"]
    assert not [name for name in seen if name.startswith(("SLIPWAY_", "NGROK_", "FASTMCP_", "GITHUB_"))]
    assert str(stack.config.secret_file) not in seen.values()


@pytest.mark.parametrize("era", ERAS)
async def test_our_callers_token_stays_here_and_the_targets_own_headers_go_upstream(
    make_stack: Make, http: str, era: str
) -> None:
    stack = make_stack(SLIPWAY_TARGET=http, SLIPWAY_TARGET_HEADERS='{"X-Api-Key": "k3y"}')
    async with connect(stack, era) as c:
        seen = (await c.call_tool("headers")).data
    assert seen["x-api-key"] == "k3y"
    assert "authorization" not in seen
    assert not [value for value in seen.values() if "ngrok" in value or "eyJ" in value]
    assert "k3y" not in stack.text("server")


async def test_scopes_speak_of_the_public_names(stacks: Callable[[str], Stack]) -> None:
    async with connect(stacks("several"), "handshake", tools="one_add") as c:
        assert [tool.name for tool in await c.list_tools()] == ["one_add"]
        with pytest.raises(ToolError, match="tool:two_add"):
            await c.call_tool("two_add", {"a": 1, "b": 2})
    async with connect(stacks("several"), "newest", tools="one_add") as c:
        assert (await c.call_tool("one_add", {"a": 1, "b": 2})).data == 3
    assert stacks("several").lines(tool="one_add", subject="ana")


# --- children


@pytest.mark.parametrize("era", ERAS)
async def test_every_seat_has_a_process_of_its_own(make_stack: Make, era: str) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    async with connect(stack, era, "ana") as ana, connect(stack, era, "bo") as bo:
        await asyncio.gather(*(c.call_tool("bump") for c in (ana, bo) for _ in range(5)))
        assert (await ana.call_tool("bump")).data == (await bo.call_tool("bump")).data == 6
        assert (await ana.call_tool("pid")).data != (await bo.call_tool("pid")).data
    async with connect(stack, era, "ana") as again:
        assert (await again.call_tool("bump")).data == 7
    assert len(processes_of(stack)) == 2


async def test_a_tool_that_only_one_seats_process_has_is_called_there(make_stack: Make) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    async with connect(stack, "handshake", "ana") as ana, connect(stack, "handshake", "bo") as bo:
        await ana.call_tool("grow")
        (new,) = {tool.name for tool in await ana.list_tools()} - {tool.name for tool in await bo.list_tools()}
        assert (await ana.call_tool(new)).data == "new"
        with pytest.raises(ToolError, match="Unknown tool"):
            await bo.call_tool(new)


async def test_shared_means_one_process_and_still_nobody_hears_anothers_messages(make_stack: Make) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND, SLIPWAY_TARGET_PROCESSES="shared")
    logs: dict[str, list[str]] = {"ana": [], "bo": []}
    steps: dict[str, list[str | None]] = {"ana": [], "bo": []}

    async def use(who: str, n: int) -> None:
        async def on_log(line: Any) -> None:
            logs[who].append(line.data["msg"])

        async def on_progress(_: float, __: float | None, text: str | None) -> None:
            steps[who].append(text)

        async with connect(stack, "handshake", who, log_handler=on_log) as c:
            await c.call_tool("talk", {"n": n, "name": who}, progress_handler=on_progress)
            assert (await c.call_tool("bump")).data

    await asyncio.gather(use("ana", 20), use("bo", 20))
    assert len(processes_of(stack)) == 1
    for who in logs:
        assert all(text.startswith(who) for text in logs[who])
        assert steps[who] == [f"{who}step {index}" for index in range(20)]
    await use("ana", 3)
    assert logs["ana"][-3:] == ["analog 0", "analog 1", "analog 2"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_child_that_is_killed_in_a_call_ends_it_in_words_and_is_there_for_the_next(
    make_stack: Make, era: str
) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    async with connect(stack, era) as c:
        call = asyncio.ensure_future(c.call_tool("wait", {"seconds": 60}))
        log = stack.config.state / "log" / "target.log"
        while "waiting" not in log.read_text():
            await asyncio.sleep(0.02)
        (child,) = processes_of(stack)
        child.kill()
        with pytest.raises(ToolError, match="ended in the middle of this request"):
            await asyncio.wait_for(call, 10)
        assert (await c.call_tool("add", {"a": 1, "b": 2})).data == 3
    (after,) = processes_of(stack)
    assert after.pid != child.pid


async def test_a_child_that_keeps_ending_is_given_a_rest(make_stack: Make) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    answers: list[str] = []
    async with connect(stack, "handshake") as c:
        while not any("keeps ending" in text for text in answers):
            assert len(answers) < 20
            answers.append(str((await c.call_tool("die", raise_on_error=False)).content[0].text))
    assert "Nothing was done" in answers[-1]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", ["command", "url"])
async def test_cancelling_reaches_the_target(make_stack: Make, tmp_path: Path, kind: str, era: str) -> None:
    (port,) = free_ports(1)
    log = tmp_path / "upstream.log"
    upstream = None
    if kind == "url":
        with log.open("wb") as output:
            upstream = subprocess.Popen([sys.executable, TALKATIVE, str(port)], stdout=output, stderr=output)
        wait_until(lambda: [c for c in psutil.Process(upstream.pid).net_connections() if c.status == "LISTEN"], 20)
    try:
        stack = make_stack(SLIPWAY_TARGET=COMMAND if kind == "command" else f"http://127.0.0.1:{port}/mcp")
        if kind == "command":
            log = stack.config.state / "log" / "target.log"
        async with connect(stack, era) as c:
            call = asyncio.ensure_future(c.call_tool("wait", {"seconds": 60}))
            while "waiting" not in log.read_text():
                await asyncio.sleep(0.02)
            call.cancel()
            while "the wait was cancelled" not in log.read_text():
                await asyncio.sleep(0.02)
            assert (await c.call_tool("add", {"a": 1, "b": 2})).data == 3
    finally:
        if upstream:
            upstream.kill()
            upstream.wait()


def test_a_childs_stderr_is_in_a_private_log(stacks: Callable[[str], Stack]) -> None:
    stacks("command")
    log = stacks("command").config.state / "log" / "target.log"
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_children_end_with_us(make_stack: Make, number: int) -> None:
    stack = make_stack(SLIPWAY_TARGET=COMMAND)
    async with connect(stack, "newest", "ana") as ana, connect(stack, "newest", "bo") as bo:
        await ana.call_tool("bump")
        await bo.call_tool("bump")
    left = processes_of(stack)
    assert len(left) == 2
    os.kill(stack.processes["server"].pid, number)
    wait_until(lambda: not any(child.is_running() for child in left), 10, "the end of the children")


# --- an upstream that comes and goes


@pytest.mark.parametrize("era", ERAS)
async def test_a_url_that_dies_is_said_and_works_again_when_it_is_back(make_stack: Make, era: str) -> None:
    with over_http() as (url, process):
        stack = make_stack(SLIPWAY_TARGET=url)
        async with connect(stack, era) as c:
            assert (await c.call_tool("bump")).data == 1
            process.kill()
            process.wait()
            told = await c.call_tool_mcp("bump", {}) if era == "newest" else None
            if told:
                assert told.is_error
                assert "Nothing was done" in told.content[0].text
            else:
                with pytest.raises(Exception, match="Nothing was done"):
                    await c.call_tool("bump")
            again = serve_on(int(url.split(":")[2].split("/")[0]))
            try:
                assert (await c.call_tool("bump")).data == 1
            finally:
                again.kill()
                again.wait()


# --- reload


async def test_an_edit_is_served_at_once_without_refusing_a_request(make_stack: Make, tmp_path: Path) -> None:
    file = tmp_path / "bot.py"
    file.write_text(
        "from fastmcp import FastMCP\nmcp = FastMCP('bot')\n@mcp.tool\nasync def one() -> int:\n    return 1\n"
    )
    stack = make_stack(SLIPWAY_TARGET=str(file), **UNLIMITED)
    pid = stack.processes["server"].pid
    failures: list[str] = []
    done = threading.Event()

    async def call_without_end() -> None:
        while not done.is_set():
            try:
                async with connect(stack, "newest") as c:
                    assert (await c.call_tool("one")).data == 1
            except Exception as error:
                failures.append(repr(error))
                return

    calls = [asyncio.ensure_future(call_without_end()) for _ in range(3)]
    async with connect(stack, "handshake") as kept:
        assert [tool.name for tool in await kept.list_tools()] == ["one"]
        file.write_text(file.read_text() + "@mcp.tool\nasync def two() -> int:\n    return 2\n")
        while not told(stack, "new: two"):
            await asyncio.sleep(0.05)
        assert told(stack, "claude.ai")
        while [tool.name for tool in await kept.list_tools()] != ["one", "two"]:
            await asyncio.sleep(0.05)
        assert (await kept.call_tool("two")).data == 2
    done.set()
    await asyncio.gather(*calls)
    assert failures == []
    assert stack.processes["server"].poll() is None
    assert stack.processes["server"].pid == pid
    good = file.read_text()
    file.write_text(good + "boom(\n")
    wait_until(
        lambda: told(stack, "cannot be served, the version before stays"), 20, "the line about the broken edit"
    )
    async with connect(stack, "newest") as c:
        assert (await c.call_tool("two")).data == 2
