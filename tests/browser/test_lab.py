"""The board and the join page in a real browser, with a real server, a real edge and thirty real MCP clients."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastmcp import Client
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import expect

from slipway import tokens
from tests.browser.conftest import Watched
from tests.conftest import Stack
from tests.stack.test_lab import ROWS, codes, join, new
from tests.stack.test_oauth import _closed

pytestmark = pytest.mark.slow
__all__ = ["_closed"]

SEATS = 30
ROUNDS = 12  # calls of each


async def _progress(*_: Any) -> None:
    pass


def call_all(stack: Stack, given: list[str]) -> None:
    """Let thirty clients, half of each era, call at once: some four hundred calls in a few seconds."""

    async def one(number: int, token: str) -> None:
        mode = "auto" if number % 2 else "legacy"
        async with Client(stack.tls_url, auth=token, verify=stack.trust(), mode=mode, timeout=60) as client:
            for round in range(ROUNDS):
                await client.call_tool("add", {"a": round, "b": number})
            await client.call_tool("countdown", {"n": 2, "seconds": 0.01}, progress_handler=_progress)

    async def everybody() -> None:
        await asyncio.gather(*(one(number, token) for number, token in enumerate(given)))

    thread = threading.Thread(target=asyncio.run, args=(everybody(),))
    thread.start()
    thread.join(120)
    assert not thread.is_alive()


def board_of(stack: Stack, view: str = "") -> str:
    key = tokens.mint(stack.secret, subject="o", scope="x", ttl=600, audience=tokens.BOARD_AUDIENCE).token
    return f"http://127.0.0.1:{stack.config.server_port}/board#key={key}{view}"


def test_thirty_clients_are_seen_on_the_board_and_one_of_them_on_the_join_page(
    make_stack: Callable[..., Stack], chromium: Chromium
) -> None:
    stack = make_stack()
    rows = {name: row for name, row in ROWS.items() if name != "fixed-403"}
    code = new(stack, title="MCP 101", seats=SEATS, checkpoints=rows)["code"]
    own = codes(stack)
    board, projector, attendee = (Watched(chromium, screen) for screen in ("desktop", "desktop", "phone"))
    board.page.goto(board_of(stack))
    projector.page.goto(board_of(stack, "&view=projector"))
    expect(board.page.locator("#title")).to_have_text("MCP 101")
    expect(projector.page.locator("#code")).to_have_text(f"code {code}")
    expect(projector.page.locator("#qr")).to_be_visible()
    expect(board.page.locator("#qr")).to_be_hidden()

    attendee.page.goto(f"{stack.tls_url[:-4]}/join?code={own[1]}")
    attendee.page.get_by_label("Your name").fill("Ana")
    attendee.page.get_by_role("button", name="Join").click()
    expect(attendee.page.locator("#state")).to_have_text(re.compile("Waiting for your first call"))
    shown = attendee.page.locator("pre").first.text_content() or ""
    given = [shown.strip(), *(join(stack, own[number], f"Guest {number}") for number in range(2, SEATS + 1))]
    expect(board.page.locator("#counts")).to_contain_text("30 joined")

    call_all(stack, given)
    for page in (board.page, projector.page):
        expect(page.locator("#counts")).to_contain_text("30 connected", timeout=15_000)
    calls = board.page.locator("#seats .calls")
    expect(calls).to_have_text([str(ROUNDS + 1)] * SEATS, timeout=15_000)
    expect(board.page.locator("#seats .sum").first).to_have_text("3/3")
    expect(attendee.page.locator("#state")).to_have_text(re.compile("Connected"))
    assert "Ana" in board.page.inner_text("body")
    assert "Ana" not in projector.page.content() and "Guest" not in projector.page.content()
    assert "Guest" not in attendee.page.content(), "nothing of one seat is visible to another"
    for each in (board, projector, attendee):
        assert not each.complaints
        each.context.close()
