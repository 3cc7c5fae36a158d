"""Targets that misbehave, and callers who ask for what is not there: what is said, what goes on, what ends with us."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from slipway import settings, stack
from tests.conftest import ROOT, Stack, free_ports, wait_until
from tests.stack.test_targets import (
    ERAS,
    SDK,
    TALKATIVE,
    Make,
    connect,
    http,
    over_http,
    stacks,
    told,
)
from tests.test_loading import clean_environment

__all__ = ["http", "stacks"]
pytestmark = pytest.mark.slow

HEAD = "from fastmcp import FastMCP\n"
ONE = "mcp = FastMCP('bot')\n@mcp.tool\nasync def one() -> int:\n    return 1\n"


# --- asked for what is not there, or not allowed


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", ["file", "sdk", "command", "url", "several"])
async def test_what_is_unknown_is_called_unknown_and_disturbs_no_other_call(
    stacks: Callable[[str], Stack], kind: str, era: str
) -> None:
    prefix = "one_" if kind == "several" else ""
    async with connect(stacks(kind), era) as c:
        slow = {"name": f"{prefix}wait", "arguments": {"seconds": 1}}
        waiting = asyncio.ensure_future(c.call_tool(**slow)) if kind != "sdk" else None
        with pytest.raises(ToolError, match=r"(?i)unknown tool|not found"):
            await c.call_tool("no_such_tool", {})
        for ask in (c.get_prompt("no_such_prompt"), c.read_resource("memo:nothing-like-it")):
            with pytest.raises(MCPError) as caught:
                await ask
            assert "ended in the middle" not in str(caught.value)
        if waiting:
            assert (await waiting).data == "waited"


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("kind", ["sdk", "command", "url"])
async def test_a_missing_scope_is_called_so_whatever_the_target(
    stacks: Callable[[str], Stack], kind: str, era: str
) -> None:
    async with connect(stacks(kind), era, tools="talk") as c:
        with pytest.raises(ToolError, match="insufficient_scope"):
            await c.call_tool("add", {"a": 1, "b": 2})
        assert [tool.name for tool in await c.list_tools()] == ["talk"]


async def test_the_newest_era_is_told_why_an_sdk_server_cannot_ask(make_stack: Make, tmp_path: Path) -> None:
    ask = "\n@server.tool()\nasync def ask(ctx: Context) -> str:\n    return str(await ctx.session.list_roots())\n"
    (tmp_path / "sdk.py").write_text(SDK + ask)
    async with connect(make_stack(SLIPWAY_TARGET=str(tmp_path / "sdk.py")), "newest") as c:
        with pytest.raises(ToolError) as caught:
            await c.call_tool("ask", {})
    assert "ended in the middle" not in str(caught.value)


LOW = """
import mcp_types as mt
from mcp.server.lowlevel import Server

async def list_tools(context, params):
    return mt.ListToolsResult(tools=[mt.Tool(name="one", input_schema={"type": "object"})])

async def call_tool(context, params):
    return mt.CallToolResult(content=[mt.TextContent(type="text", text="low")])

async def read_resource(context, params):
    contents = [mt.TextResourceContents(uri=params.uri, text=f"read {params.uri}")]
    return mt.ReadResourceResult(contents=contents)

server = Server("low", on_list_tools=list_tools, on_call_tool=call_tool, on_read_resource=read_resource)
"""


@pytest.mark.parametrize("era", ERAS)
async def test_a_low_level_server_of_the_sdk_is_served_and_reads_more_than_it_lists(
    make_stack: Make, tmp_path: Path, era: str
) -> None:
    (tmp_path / "low.py").write_text(LOW)
    async with connect(make_stack(SLIPWAY_TARGET=str(tmp_path / "low.py")), era) as c:
        assert [tool.name for tool in await c.list_tools()] == ["one"]
        assert (await c.call_tool("one", {})).content[0].text == "low"
        assert (await c.read_resource("any://thing"))[0].text == "read any://thing"


GROWS = HEAD + (
    "mcp = FastMCP('grows')\n@mcp.tool\nasync def grow() -> str:\n"
    "    @mcp.resource('memo://new')\n    async def new() -> str:\n        return 'new'\n"
    "    @mcp.prompt(name='fresh')\n    async def fresh() -> str:\n        return 'fresh'\n    return 'grown'\n"
    "mcp.run(show_banner=False)\n"
)


@pytest.mark.parametrize("era", ERAS)
async def test_what_came_without_a_word_is_found(make_stack: Make, tmp_path: Path, era: str) -> None:
    (tmp_path / "grows.py").write_text(GROWS)
    command = f"{sys.executable} {tmp_path / 'grows.py'}"
    async with connect(make_stack(SLIPWAY_TARGET=command), era) as c:
        assert await c.list_resources() == [] and await c.list_prompts() == []
        await c.call_tool("grow")
        assert (await c.read_resource("memo://new"))[0].text == "new"
        assert "fresh" in str(await c.get_prompt("fresh"))


UPDATES = HEAD + (
    "import mcp_types as mt\nfrom fastmcp import Context\nmcp = FastMCP('updates')\n"
    "@mcp.resource('res://x')\nasync def x() -> str:\n    return 'x'\n"
    "@mcp.tool\nasync def touch(ctx: Context) -> str:\n"
    "    await ctx.session.send_resource_updated('res://x')\n    return 'touched'\n"
    "async def subscribed(context, params):\n    return mt.EmptyResult()\n"
    "low = mcp._mcp_server\n"
    "low.add_request_handler('resources/subscribe', mt.SubscribeRequestParams, subscribed)\n"
    "mcp.run(show_banner=False)\n"
)


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed")
async def test_an_update_names_the_resource_as_our_callers_know_it(make_stack: Make, tmp_path: Path) -> None:
    (tmp_path / "updates.py").write_text(UPDATES)
    servers = {name: {"command": sys.executable, "args": [str(tmp_path / "updates.py")]} for name in ("one", "two")}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    heard: list[str] = []

    async def on_message(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            heard.append(str(message.params.uri))

    stack = make_stack(SLIPWAY_TARGET=str(tmp_path / "mcp.json"))
    async with connect(stack, "handshake", message_handler=on_message) as c:
        await c.session.subscribe_resource("res://one/x")
        await c.call_tool("one_touch")
        wait = asyncio.get_running_loop().time() + 10
        while not heard and asyncio.get_running_loop().time() < wait:
            await asyncio.sleep(0.05)
    assert heard == ["res://one/x"]


# --- secrets


@pytest.mark.parametrize("era", ERAS)
async def test_a_key_in_the_urls_query_is_told_to_nobody(make_stack: Make, era: str) -> None:
    with over_http() as (url, process):
        stack = make_stack(SLIPWAY_TARGET=f"{url}?api_key=SUPERSECRET")
        said = ""
        async with connect(stack, era) as c:
            assert (await c.call_tool("add", {"a": 1, "b": 2})).data == 3
            process.kill()
            process.wait()
            for ask in (c.call_tool("add", {"a": 1, "b": 2}), c.list_tools(), c.read_resource("memo://about")):
                with pytest.raises(Exception, match="cannot be reached") as caught:
                    await ask
                said += str(caught.value)
    said += stack.text("server") + stack.text("caddy") + json.dumps(stack.log("server"))
    assert "SUPERSECRET" not in said


def test_caddy_gets_its_own_settings_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MY_API_WORD=mine\nSLIPWAY_TARGET=http://x.example/mcp?api_key=SUPERSECRET\n")
    monkeypatch.setenv("GITHUB_TOKEN", "theirs")
    config = settings.rooted(settings.load({}, tmp_path / ".env"), tmp_path)
    found = stack_environments(config, tmp_path)
    assert found["server"]["MY_API_WORD"] == "mine"
    assert not {"MY_API_WORD", "SLIPWAY_TARGET", "GITHUB_TOKEN"} & set(found["caddy"])
    assert "SUPERSECRET" not in str(found["caddy"])


def stack_environments(config: settings.Settings, root: Path) -> dict[str, dict[str, str]]:
    return {name: environment for name, (_, environment) in stack.children(config, root).items()}


def test_a_file_that_is_served_without_up_sees_nothing_of_the_shell_either(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(json.dumps(sorted(os.environ)))\n" + HEAD + ONE
    )
    more = {"GITHUB_TOKEN": "x", "NGROK_API_KEY": "x", "FASTMCP_LOG_LEVEL": "DEBUG", "EDITOR": "vi"}
    done = check(tmp_path, "bot.py", **more)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen").read_text())
    assert "PATH" in seen
    assert not [name for name in seen if name.startswith(("SLIPWAY_", "FASTMCP_", "NGROK_", "GITHUB_", "EDITOR"))]


def check(folder: Path, target: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(folder, SLIPWAY_STATE=str(folder / "s"), SLIPWAY_SECRET_FILE=str(folder / "k"))
    return subprocess.run(
        [sys.executable, ROOT / "server.py", "check", target],
        cwd=folder, env=environment | more, capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def test_what_a_target_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text("print('hello from the bot')\n" + HEAD + ONE)
    done = check(tmp_path, "bot.py")
    assert list(json.loads(done.stdout)["tools"]) == ["one"]
    assert "hello from the bot" in done.stderr


def test_a_target_may_have_an_examples_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "__init__.py").write_text("MINE = 7\n")
    (tmp_path / "bot.py").write_text("from examples import MINE\n" + HEAD + ONE)
    done = check(tmp_path, "bot.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(120)
def test_packages_are_installed_without_up_too(tmp_path: Path) -> None:
    (tmp_path / "fastmcp.json").write_text(
        json.dumps({"source": {"path": "bot.py"}, "environment": {"dependencies": ["humanize==4.13.0"]}})
    )
    (tmp_path / "bot.py").write_text("import humanize\n" + HEAD + ONE)
    done = check(tmp_path, "bot.py", PATH=f"{ROOT / '.venv' / 'uv' / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["tools"]) == ["one"]


# --- the start and the end


LIFESPAN = HEAD + (
    "import contextlib\n@contextlib.asynccontextmanager\nasync def lifespan(server):\n"
    "    raise RuntimeError('no database')\n    yield\n"
) + ONE.replace("FastMCP('bot')", "FastMCP('bot', lifespan=lifespan)")  # fmt: skip


@pytest.mark.parametrize("verb", ["check", "http"])
def test_a_lifespan_that_fails_is_said_at_start(tmp_path: Path, verb: str) -> None:
    (tmp_path / "bot.py").write_text(LIFESPAN)
    (port,) = free_ports(1)
    environment = clean_environment(
        tmp_path, SLIPWAY_STATE=str(tmp_path / "s"), SLIPWAY_SECRET_FILE=str(tmp_path / "k"), SERVER_PORT=str(port)
    )
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", verb, "bot.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 51, done.stderr
    assert "no database" in done.stderr and f"{tmp_path}/bot.py line 5" in done.stderr and "→" in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_edit_whose_lifespan_fails_is_not_served(make_stack: Make, tmp_path: Path) -> None:
    file = tmp_path / "bot.py"
    file.write_text(HEAD + ONE)
    stack = make_stack(SLIPWAY_TARGET=str(file))
    file.write_text(LIFESPAN)
    wait_until(lambda: told(stack, "the version before stays"), 20, "the line about the broken edit")
    async with connect(stack, "newest") as c:
        assert (await c.call_tool("one")).data == 1
    assert stack.processes["server"].poll() is None


@pytest.mark.parametrize("apart", [0.4, 1.6, 2.4, 3.2])
async def test_the_last_of_two_edits_is_served_whenever_it_comes(
    make_stack: Make, tmp_path: Path, apart: float
) -> None:
    file = tmp_path / "bot.py"
    slow = "import time\ntime.sleep(1)\n" + HEAD + ONE  # an import that takes its time
    file.write_text(slow)
    stack = make_stack(SLIPWAY_TARGET=str(file))
    file.write_text(slow.replace("return 1", "return 2"))
    await asyncio.sleep(apart)  # the moment of the second edit is what this test is about
    file.write_text(slow.replace("return 1", "return 3"))

    async def served() -> int:
        async with connect(stack, "newest") as c:
            return int((await c.call_tool("one")).data)

    deadline = asyncio.get_running_loop().time() + 30
    while await served() != 3:
        assert asyncio.get_running_loop().time() < deadline, "the last edit was never served"
        await asyncio.sleep(0.2)
    assert stack.processes["server"].poll() is None


STUBBORN = "import threading, time\nthreading.Thread(target=lambda: time.sleep(600)).start()\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_child_that_does_not_leave_by_itself_is_ended(make_stack: Make, tmp_path: Path, number: int) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN + TALKATIVE.read_text())
    stack = make_stack(SLIPWAY_TARGET=f"{sys.executable} {tmp_path / 'stubborn.py'}")
    async with connect(stack, "newest") as c:
        child = psutil.Process((await c.call_tool("pid")).data)
    os.kill(stack.processes["server"].pid, number)
    wait_until(lambda: not child.is_running() or child.status() == "zombie", 10, "the end of the child")
    assert stack.processes["server"].wait(10) == 128 + number


async def test_a_child_is_ended_also_while_it_starts(tmp_path: Path) -> None:
    mark = tmp_path / "mark.py"
    mark.write_text("import time\ntime.sleep(600)\n")
    (port,) = free_ports(1)
    environment = clean_environment(
        tmp_path, SLIPWAY_STATE=str(tmp_path / "s"), SLIPWAY_SECRET_FILE=str(tmp_path / "k"), SERVER_PORT=str(port)
    )
    command = [sys.executable, ROOT / "server.py", "http", f"{sys.executable} {mark}"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def child() -> psutil.Process | None:
        return next((each for each in psutil.Process(server.pid).children() if str(mark) in each.cmdline()), None)

    wait_until(child, 20, "the child")
    found = child()
    assert found
    server.terminate()
    assert server.wait(15) == 128 + signal.SIGTERM
    wait_until(lambda: not found.is_running(), 5, "the end of the child")
