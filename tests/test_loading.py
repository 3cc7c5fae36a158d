"""A target that cannot be served is said at start: cause, lines, cure and exit code, never a hang or a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slipway import targets
from slipway.errors import Problem
from slipway.proxy import loading
from tests.conftest import ROOT, clean_environment

MINE = "from fastmcp import FastMCP\n"
TOOL = "@{name}.tool\nasync def one() -> int:\n    return 1\n"


async def tools(target: str, folder: Path) -> set[str]:
    """Load and start the target, and return the names of its tools."""
    parsed = targets.parse(target, folder, {})
    environment = targets.clean_environment({"PATH": "/usr/bin:/bin"}, {})
    loaded = await loading.load(parsed, environment, folder / "log", lambda _: None, per_seat=True)
    async with loaded.running():
        return {tool.name for tool in await loaded.server.list_tools()}


async def problem(target: str, folder: Path) -> Problem:
    """Return why the target cannot be served."""
    with pytest.raises(Problem) as caught:
        await tools(target, folder)
    assert caught.value.cure
    return caught.value


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (MINE + "mcp = FastMCP('x')\n" + TOOL.format(name="mcp"), ""),
        (MINE + "odd_name = FastMCP('x')\n" + TOOL.format(name="odd_name"), ""),
        (MINE + "a = FastMCP('a')\nb = FastMCP('b')\n" + TOOL.format(name="b"), ":b"),
        (
            MINE
            + "def make():\n    m = FastMCP('x')\n    m.tool(one)\n    return m\nasync def one() -> int:\n    return 1\n",
            ":make",
        ),
        (
            MINE
            + "async def make():\n    m = FastMCP('x')\n    m.tool(one)\n    return m\nasync def one() -> int:\n    return 1\n",
            ":make",
        ),
        (
            "from mcp.server.mcpserver import MCPServer\napp = MCPServer('x')\n@app.tool()\nasync def one() -> int:\n    return 1\n",
            "",
        ),
        (
            MINE
            + "import helper\nmcp = FastMCP('x')\n"
            + TOOL.format(name="mcp")
            + "if __name__ == '__main__':\n    mcp.run()\n",
            "",
        ),
    ],
)
async def test_a_server_object_is_found(tmp_path: Path, content: str, suffix: str) -> None:
    (tmp_path / "bot.py").write_text(content)
    (tmp_path / "helper.py").write_text("x = 1\n")
    assert await tools(f"bot.py{suffix}", tmp_path) == {"one"}


@pytest.mark.parametrize(
    ("content", "suffix", "code", "told"),
    [
        (
            "import helper\n",
            "",
            51,
            ["line 1: import helper", "helper.py line 2: raise ValueError", "ValueError: oops"],
        ),
        ("def f(:\n", "", 51, ["line 1: def f(:", "invalid syntax"]),
        ("import no_such_package\n", "", 51, ["no_such_package", '"dependencies": ["no_such_package"]']),
        ("from mcp.server.fastmcp import FastMCP\n", "", 51, ["written for mcp 1", "uv run --with 'mcp<2'"]),
        (MINE + "mcp = FastMCP('x')\n\nmcp.run()\n", "", 51, ["line 4 calls run()", '__name__ == "__main__"']),
        ("import sys\nsys.exit('usage')\n", "", 51, ["line 2 ends the program"]),
        ("x = 1\n", "", 52, ["No MCP server was found"]),
        ("from starlette.applications import Starlette\napp = Starlette()\n", "", 52, ["app (starlette.Starlette)"]),
        (MINE + "a = FastMCP('a')\nb = FastMCP('b')\n", "", 52, ["several: a, b", "bot.py:a"]),
        (MINE + "mcp = FastMCP('a')\n", ":mpc", 52, ["mpc is not in it", "bot.py:mcp"]),
        ("mcp = 5\n", ":mcp", 52, ["builtins.int"]),
        ("def make():\n    return 5\n", ":make", 52, ["no factory"]),
    ],
)
async def test_a_file_that_cannot_be_served_is_said_with_its_lines(
    tmp_path: Path, content: str, suffix: str, code: int, told: list[str]
) -> None:
    (tmp_path / "bot.py").write_text(content)
    (tmp_path / "helper.py").write_text("\nraise ValueError('oops')\n")
    sys.modules.pop("helper", None)
    found = await problem(f"bot.py{suffix}", tmp_path)
    assert found.exit_code == code
    for words in told:
        assert words in str(found)
    assert "Traceback" not in str(found)


async def test_an_import_that_waits_for_ever_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "IMPORT_TIMEOUT", 0.3)
    (tmp_path / "bot.py").write_text("import threading\nthreading.Event().wait()\n")
    found = await problem("bot.py", tmp_path)
    assert "waits at line 2" in found.cause


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("sh -c 'echo one >&2; echo two >&2; exit 3'", "ended at once:\n  one\n  two"),
        ("true", "it said nothing"),
        ("./not-executable", "cannot be started"),
        ("echo hello", "ended at once"),
        ("cat", "does not speak MCP"),
    ],
)
async def test_a_command_that_ends_at_once_is_said_with_its_last_lines(
    tmp_path: Path, command: str, told: str
) -> None:
    (tmp_path / "not-executable").write_text("x")
    found = await problem(command, tmp_path)
    assert found.exit_code == 53
    assert told in found.cause


async def test_a_server_of_an_mcp_json_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text(
        json.dumps({"mcpServers": {"bad": {"command": "false"}, "two": {"command": "true"}}})
    )
    assert "bad ended at once" in (await problem("mcp.json", tmp_path)).cause


class Strange(BaseHTTPRequestHandler):
    """Answers every request with one status and one body."""

    status, kind, body = 200, "text/html", b"<h1>hello</h1>"

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("content-type", self.kind)
        self.send_header("location", "https://elsewhere.example/mcp")
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def strange(status: int, kind: str = "text/html", body: bytes = b"<h1>hello</h1>") -> Iterator[str]:
    handler = type("Handler", (Strange,), {"status": status, "kind": kind, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/mcp"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "body", "code", "told"),
    [
        (200, "text/html", b"<h1>hello</h1>", 54, "is no MCP server: it answers 200 text/html"),
        (404, "text/plain", b"no", 54, "answers 404"),
        (307, "text/plain", b"", 54, "redirects to https://elsewhere.example/mcp"),
        (401, "application/json", b"{}", 55, "wants credentials"),
        (403, "text/html", b"", 55, "answers 403"),
        (200, "application/json", b"x" * 1_000_000, 54, "is no MCP server"),
    ],
)
async def test_a_url_that_is_no_mcp_server_is_said(
    tmp_path: Path, status: int, kind: str, body: bytes, code: int, told: str
) -> None:
    with strange(status, kind, body) as url:
        found = await problem(url, tmp_path)
    assert found.exit_code == code
    assert told in found.cause


async def test_a_url_that_never_answers_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipway.proxy import remote

    monkeypatch.setattr(remote, "URL_TIMEOUT", 0.3)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # listens, and nobody accepts
    try:
        found = await problem(f"http://127.0.0.1:{server.server_port}/mcp", tmp_path)
    finally:
        server.server_close()
    assert found.exit_code == 54
    assert "no answer" in found.cause


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["check", "http"])
def test_server_py_ends_with_the_exit_code_and_no_traceback(tmp_path: Path, verb: str) -> None:
    (tmp_path / "bot.py").write_text("boom\n")
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", verb, "bot.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=clean_environment(tmp_path, SLIPWAY_STATE=str(tmp_path / "s"), SLIPWAY_SECRET_FILE=str(tmp_path / "k")),
    )  # fmt: skip
    assert done.returncode == 51
    assert f"{tmp_path}/bot.py line 1: boom" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_check_tells_what_would_be_served(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", "check", ROOT / "examples" / "hello.py"],
        capture_output=True, text=True, timeout=60, env=clean_environment(tmp_path, SLIPWAY_STATE=str(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["tools"]) == ["add"]


@pytest.mark.slow
def test_a_command_without_quotes_is_told_how_to_write_it(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "scripts" / "up", "npx", "-y", "some-server"],
        env=clean_environment(checkout), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "./scripts/up 'npx -y some-server'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "code", "told"),
    [
        ("bot.py", 51, "line 1: boom"),
        ("sh -c 'echo gone >&2'", 53, "gone"),
        ("http://127.0.0.1:9/mcp", 54, "cannot be reached"),
        ("nosuch.py", 50, "There is no file nosuch.py"),
        ("nosuch", 53, "neither a file nor a program"),
    ],
)
def test_up_ends_with_the_cause_the_cure_and_the_exit_code(
    checkout: Path, tmp_path: Path, target: str, code: int, told: str
) -> None:
    (tmp_path / "bot.py").write_text("boom\n")
    done = subprocess.run(
        [checkout / "scripts" / "up", target, "--local"], cwd=tmp_path, env=clean_environment(checkout),
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "→" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
