"""The page after joining: until when it waits, how often, and what it costs. Without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from slipway import store
from slipway.identity import join as room
from slipway.identity.grants import Grants, digest
from slipway.identity.join import PAGES, Join
from slipway.identity.ledger import Ledger
from slipway.identity.pages import Pages
from tests.test_ledger import SECRET, claims


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Join, Ledger, Grants]:
    kept = store.open_store(tmp_path)
    ledger = Ledger(kept)
    grants = Grants(kept, ledger)
    nobody: Any = None
    return Join(Pages(SECRET), grants, nobody, ledger, SECRET, lambda _: {}, lambda: None), ledger, grants


async def test_a_page_whose_token_a_cutoff_refuses_is_told_that_nothing_comes(
    joined: tuple[Join, Ledger, Grants],
) -> None:
    page, ledger, _ = joined
    one = claims()
    await ledger.add(one, via="join")
    await ledger.stop("ana")
    async with asyncio.timeout(5):
        told = [event async for event in page._events(one["jti"])]
    assert [event.split("\n")[0] for event in told] == ["event: over"]


async def test_one_token_holds_no_more_than_a_few_streams_and_gives_them_back(
    joined: tuple[Join, Ledger, Grants],
) -> None:
    page, ledger, grants = joined
    one = claims()
    await ledger.add(one, via="join")
    await grants.keep("watches", digest("w"), {"jti": one["jti"]}, 60)
    request = Request({"type": "http", "method": "GET", "path": "/join", "headers": [], "query_string": b""})

    async def opened() -> AsyncIterator[str]:
        stream = page._counted(one["jti"])
        assert (await anext(stream)).startswith("retry:")
        return stream

    streams = [await opened() for _ in range(PAGES + 1)]
    waiting = [asyncio.ensure_future(anext(stream, None)) for stream in streams]  # type: ignore[arg-type]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [None], "the last of many at once"
    refused = await page._watch(request, "w")
    assert (refused.status_code, b"times already" in refused.body) == (429, True)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not page._waiting
    assert (await page._watch(request, "w")).status_code == 200


def test_the_picture_of_an_address_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    make = room.segno.make

    def draw(address: str, **how: Any) -> Any:
        drawn.append(address)
        return make(address, **how)

    monkeypatch.setattr(room.segno, "make", draw)
    pictures = {room._qr("https://drawn-once.example/join") for _ in range(3)}
    assert (len(pictures), len(drawn)) == (1, 1)
