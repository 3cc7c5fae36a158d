"""The README's pictures, made from the real thing: ./scripts/up in a checkout of its own, and a small lab in Chromium.

Tokens, codes and QR codes in them are those of a throwaway run. scripts/docs writes them; nothing is drawn by hand.
"""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from fastmcp import Client
from playwright.sync_api import Browser, expect, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from slipway import settings
from tests.browser.test_lab import board_of
from tests.conftest import ROOT, Stack, clean_environment, copy_of_the_tree, wait_until
from tests.stack.test_lab import ADD, codes, join, new, send

PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
USUAL = {"server_port": 8000, "edge_port": 8080, "tls_port": 8443, "console_port": 8081}
GUESTS = ("Ana", "Ben", "Chloé", "Dmitri", "Emi", "Farid", "Greta", "Hugo")
ROWS = {
    "connected": {"title": "Connected", "when": {"path": "/mcp", "outcome": "ok"}},
    "called-add": {"title": "Called add", "when": {"tool": "add", "outcome": "ok"}},
    "saw-progress": {"title": "Saw progress", "when": {"progress": True}},
}


def run_up(checkout: Path) -> str:
    """Run ./scripts/up --local, knock twice, and return what it printed."""
    environment = clean_environment(checkout) | {"PYTHONUNBUFFERED": "1"}
    command = ["./scripts/up", "--local", "--client", "claude-code"]
    log = checkout.parent / "terminal.txt"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, COLUMNS))
    running = subprocess.Popen(command, cwd=checkout, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    threading.Thread(target=_copy, args=(ours, log), daemon=True).start()
    wait_until(log.exists, 20, "the first line")
    try:
        wait_until(lambda: "doctor " in log.read_text(), 120, "the examination")
        token = re.search(r"eyJ[\w.-]+", log.read_text())
        config = settings.load({}, checkout / ".env")
        accept = {"accept": "application/json, text/event-stream"}
        for headers in ({"authorization": f"Bearer {token[0] if token else ''}"}, {}):
            httpx2.post(
                f"http://127.0.0.1:{config.edge_port}/mcp", json=ADD, headers=accept | headers, trust_env=False
            )
        wait_until(lambda: "401" in log.read_text(), 20, "the refusal")
    finally:
        running.terminate()
        running.wait(30)
        subprocess.run(["./scripts/down"], cwd=checkout, env=environment, capture_output=True, timeout=60)
    text = log.read_text().replace("\r", "").replace(f"{checkout}/", "")
    for name, port in USUAL.items():
        text = text.replace(f":{getattr(config, name)}", f":{port}")
    text = re.sub(r"eyJ[\w.-]+", "eyJhbGciOiJIUzI1NiIs…", text)
    return f"$ {' '.join(command)}\n" + text[: text.index("\nended;")]


def _copy(terminal: int, log: Path) -> None:
    with log.open("ab") as output, suppress(OSError):  # a terminal whose program has ended
        while part := os.read(terminal, 4096):
            output.write(part)
            output.flush()


def terminal(text: str) -> str:
    """Return the text as an SVG of a terminal of 80 columns, without a font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in text.splitlines():
        # cut as a terminal cuts, in the middle of words
        for start in range(0, max(len(line), 1), COLUMNS):
            console.print(Text(line[start : start + COLUMNS], "bold" if line.startswith("$ ") else ""))
    plain = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="slipway", code_format=plain, unique_id="terminal")


async def _nothing(*_: Any) -> None:
    pass


def play(stack: Stack, given: list[str]) -> None:
    """Let the guests do what a lab asks for, some more than others."""

    async def one(number: int, token: str) -> None:
        mode = "auto" if number % 2 else "legacy"
        async with Client(stack.tls_url, auth=token, verify=stack.trust(), mode=mode, log_handler=_nothing) as client:
            await client.list_tools()
            for round in range(number % 4):
                await client.call_tool("add", {"a": round, "b": number})
            if number % 3 == 0:
                await client.call_tool("countdown", {"n": 2, "seconds": 0.01}, progress_handler=_nothing)

    async def everybody() -> None:
        await asyncio.gather(*(one(number, token) for number, token in enumerate(given, 1)))

    with ThreadPoolExecutor(1) as pool:  # Playwright's own loop is running in this thread
        pool.submit(asyncio.run, everybody()).result(120)


def lab(stack: Stack, browser: Browser) -> None:
    """Play a small lab and take the pictures of a seat's phone and of the instructor's board."""
    new(stack, title="MCP 101", seats=10, checkpoints=ROWS)
    own = codes(stack)
    phone: dict[str, Any] = {
        "viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2,
    }  # fmt: skip
    page = browser.new_context(ignore_https_errors=True, **phone).new_page()
    page.goto(f"{stack.tls_url[:-4]}/join?code={own[1]}")
    page.get_by_label("Your name").fill(GUESTS[0])
    page.get_by_role("button", name="Join").click()
    ana = (page.locator("pre").first.text_content() or "").strip()
    board = browser.new_context(viewport={"width": 1120, "height": 620}).new_page()
    board.goto(board_of(stack))
    given = [ana, *(join(stack, own[number], name) for number, name in enumerate(GUESTS[1:], 2))]
    play(stack, given)
    expect(page.locator("#state")).to_have_text(re.compile("Connected"), timeout=15_000)
    expect(board.locator("#counts")).to_contain_text("8 connected", timeout=15_000)
    send(stack, given[4][:-20])  # who copied not all of the token
    expect(board.locator("#counts")).to_contain_text("1 stuck", timeout=15_000)
    page.screenshot(path=PICTURES / "join.png")
    board.screenshot(path=PICTURES / "board.png")


def main() -> None:
    """Make all three."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        sys.exit(
            "The pictures need Chromium, and there is none.\n  → apt install chromium, then run the command again"
        )
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = run_up(copy_of_the_tree(Path(folder) / "slipway"))
        (PICTURES / "terminal.svg").write_text(terminal(text))
        stack = Stack(Path(folder)).start()
        try:
            with sync_playwright() as driver:
                sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
                browser = driver.chromium.launch(executable_path=chromium, args=sandbox)
                lab(stack, browser)
        finally:
            stack.stop()
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
