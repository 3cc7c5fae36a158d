"""/admin/lab: what the instructor does to the running server's lab; /board: the page that shows its events."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slipway import events, tokens
from slipway.errors import Problem
from slipway.guards import from_this_machine
from slipway.identity import pages
from slipway.identity.admin import Handler, asked_for, guarded, private, text_of
from slipway.lab import checkpoints
from slipway.lab.board import summary
from slipway.lab.feed import Feed
from slipway.lab.seats import Labs

NO_LAB = {"error": "There is no lab.", "cure": './scripts/lab new "MCP 101" --seats 30 --for 3h'}


class Instructor:
    """The routes under /admin/lab."""

    def __init__(self, secret: tokens.Secret, labs: Labs, feed: Feed, *, max_ttl: str) -> None:
        self._secret = secret
        self._labs = labs
        self._feed = feed
        self._max_ttl = max_ttl

    def routes(self) -> list[Route]:
        """Return the routes. The board's key opens its events, and none of the others."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/admin/lab", self._show),
            ("POST", "/admin/lab", self._new),
            ("DELETE", "/admin/lab", self._end),
            ("GET", "/admin/lab/codes", self._codes),
            ("POST", "/admin/lab/extend", self._extend),
            ("POST", "/admin/lab/lock", self._lock),
            ("POST", "/admin/lab/seats/{number:int}/{verb}", self._seat),
        ]
        watched = guarded(self._secret, self._events, tokens.BOARD_AUDIENCE)
        return [
            *(Route(path, guarded(self._secret, handler), methods=[method]) for method, path, handler in table),
            Route("/admin/lab/events", watched, methods=["GET"]),
        ]

    async def _told(self, status: int = 200, **more: Any) -> Response:
        await self._feed.look()
        if self._feed.board is None:
            return JSONResponse(NO_LAB, 404)
        return private({"lab": self._feed.whole(named=True), **more}, status)

    async def _show(self, _: Request) -> Response:
        return await self._told()

    async def _new(self, request: Request) -> Response:
        asked = await asked_for(request)
        seats, roster, rows = asked.get("seats", 30), asked.get("roster", []), asked.get("checkpoints", {})
        if not isinstance(seats, int) or isinstance(seats, bool) or not isinstance(rows, dict):
            raise Problem("seats is no number, or checkpoints are no object.", "Send what ./scripts/lab new sends", 2)
        if not isinstance(roster, list) or not all(isinstance(name, str) for name in roster):
            raise Problem("The roster is no list of names.", 'Send "roster": ["Ana", "Ben"]', 2)
        checkpoints.parse(rows)
        lab = await self._labs.new(
            title=text_of(asked, "title", ""), seats=seats, roster=roster,
            life=tokens.bounded_ttl(text_of(asked, "for", "3h"), self._max_ttl),
            scope=tokens.tool_scope(text_of(asked, "tools", "*")),
            checkpoints=[[name, row] for name, row in rows.items()],
            url=text_of(asked, "url", ""), lan=asked.get("lan") is True,
        )  # fmt: skip
        return await self._told(201, code=self._labs.code(lab))

    async def _codes(self, _: Request) -> Response:
        lab = await self._labs.refresh()
        if lab is None:
            return JSONResponse(NO_LAB, 404)
        own = self._labs.codes(lab)
        seats = {seat.number: seat.subject for seat in lab.seats}
        return await self._told(
            code=self._labs.code(lab), cards=[{"seat": n, "name": seats[n], "code": code} for n, code in own.items()]
        )

    async def _extend(self, request: Request) -> Response:
        life = tokens.bounded_ttl(text_of(await asked_for(request), "for", "1h"), self._max_ttl)
        lab = await self._labs.refresh()
        if lab is None:
            return JSONResponse(NO_LAB, 404)
        until = max(lab.ends_at, time.time()) + life
        if until > lab.created_at + tokens.parse_ttl(self._max_ttl):
            raise Problem(
                f"No token may live longer than {self._max_ttl}.", "Ask for less, or set SLIPWAY_MAX_TTL", 2
            )
        await self._labs.extend(until)
        return await self._told()

    async def _lock(self, request: Request) -> Response:
        await self._labs.lock((await asked_for(request)).get("locked") is not False)
        return await self._told()

    async def _seat(self, request: Request) -> Response:
        number, verb = request.path_params["number"], request.path_params["verb"]
        if verb not in ("reset", "revoke"):
            return JSONResponse({"error": f"A seat cannot be {verb[:20]!r}.", "cure": "reset or revoke"}, 404)
        lab, who = await self._labs.clear(number, free=verb == "reset")
        return await self._told(who=who, code=self._labs.codes(lab).get(number, ""))

    async def _end(self, _: Request) -> Response:
        await self._feed.look()
        told = summary(self._feed.board) if self._feed.board else {}
        await self._labs.end()
        await self._feed.look()
        return private({"summary": told})

    async def _events(self, request: Request) -> Response:
        await self._feed.look()
        if self._feed.board is None:
            return JSONResponse(NO_LAB, 404)
        named = request.query_params.get("view") != "projector"
        return events.answer(self._feed.events(named=named))


def board() -> Route:
    """Return the route of the page on which the instructor sees every seat. It holds no data: it reads the events."""
    style = pages.STYLE + pages.text("board.css")
    # the console's module and ours become one script: a page whose policy names a hash loads no other file
    script = pages.text("console/sse.js").replace("\nexport ", "\n") + pages.text("board.js")
    page = pages.template("board.html").substitute(style=style, script=script)

    async def show(request: Request) -> Response:
        if not from_this_machine(request):
            return JSONResponse({"error": "not found"}, 404)
        return pages.closed(page, form_action="'none'", script=script, style=style)

    return Route("/board", show, methods=["GET"])
