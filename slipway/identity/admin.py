"""/admin: what the operator does to the running server, from this machine alone, by a token made from the secret."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slipway import knocks, tokens
from slipway.errors import Problem
from slipway.guards import from_this_machine
from slipway.identity.invites import Invites
from slipway.identity.ledger import Ledger
from slipway.identity.records import EVERYBODY, Record

MAX_BODY = 100_000  # bytes

Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """The routes under /admin."""

    def __init__(self, secret: tokens.Secret, ledger: Ledger, invites: Invites, *, max_ttl: str) -> None:
        """Take what they work on; `max_ttl` is the longest life of a token, as in "30d"."""
        self._secret = secret
        self._ledger = ledger
        self._invites = invites
        self._max_ttl = max_ttl

    def routes(self) -> list[Route]:
        """Return the routes."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/admin/tokens", self._list),
            ("POST", "/admin/tokens", self._mint),
            ("POST", "/admin/tokens/revoke", self._revoke_many),
            ("GET", "/admin/tokens/{jti}", self._show),
            ("DELETE", "/admin/tokens/{jti}", self._revoke),
            ("POST", "/admin/tokens/{jti}/extend", self._extend),
            ("GET", "/admin/invites", self._list_invites),
            ("POST", "/admin/invites", self._new_invite),
            ("DELETE", "/admin/invites/{id}", self._revoke_invite),
        ]
        return [Route(path, guarded(self._secret, handler), methods=[method]) for method, path, handler in table]

    async def _mint(self, request: Request) -> Response:
        asked = await asked_for(request)
        scope = tokens.tool_scope(text_of(asked, "tools", "*"))
        ttl = self._ttl(text_of(asked, "ttl", "1h"))
        given = asked.get("limits", [])
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise Problem("limits must be a list of texts.", 'Send "limits": ["calls_per_minute=600"]', 2)
        minted = tokens.mint(
            self._secret, subject=text_of(asked, "subject", "demo"), scope=scope, ttl=ttl, client_id="minted",
            limits=tokens.own_limits(given),
        )  # fmt: skip
        purpose = text_of(asked, "purpose", "")
        record = await self._ledger.add(minted.claims, via="minted", purpose=purpose, token=minted.token)
        return private({"token": minted.token, **await self._told(record)}, 201)

    def _ttl(self, text: str) -> int:
        return tokens.bounded_ttl(text, self._max_ttl)

    async def _told(self, record: Record) -> dict[str, Any]:
        return {**asdict(record), "ends_at": record.ends_at(), "state": await self._ledger.state(record)}

    async def _list(self, _: Request) -> Response:
        return private({"tokens": [await self._told(record) for record in await self._ledger.all()]})

    async def _show(self, request: Request) -> Response:
        record = await self._ledger.get(request.path_params["jti"])
        return private(await self._told(record)) if record else _unknown(request.path_params["jti"])

    async def _revoke(self, request: Request) -> Response:
        jti = request.path_params["jti"]
        if not (0 < len(jti) <= 128 and jti.isascii() and jti.isalnum()):
            raise Problem(f"{jti[:40]!r} is no token id.", "./scripts/tokens list shows them", 2)
        known = await self._ledger.revoke(jti)
        record = await self._ledger.get(jti)
        return private({"known": bool(known), **(await self._told(record) if record else {})})

    async def _revoke_many(self, request: Request) -> Response:
        asked = await asked_for(request)
        subject = text_of(asked, "subject", "")
        if not subject and asked.get("all") is not True:
            raise Problem("Neither a subject nor all was asked for.", "Name one, or say --all", 2)
        return private({"revoked": await self._ledger.revoke_before_now(subject or EVERYBODY)})

    async def _extend(self, request: Request) -> Response:
        jti, ttl = request.path_params["jti"], self._ttl(text_of(await asked_for(request), "ttl", "1h"))
        record = await self._ledger.get(jti)
        if not record:
            return _unknown(jti)
        if (state := await self._ledger.state(record)) not in ("good", "expired"):
            raise Problem(f"{jti} is {state}; that cannot be taken back.", "Mint another: ./scripts/tokens mint", 2)
        record = await self._ledger.extend(jti, int(time.time()) + ttl)
        return private(await self._told(record)) if record else _unknown(jti)

    async def _new_invite(self, request: Request) -> Response:
        asked = await asked_for(request)
        uses = asked.get("uses", 1)
        if not isinstance(uses, int) or isinstance(uses, bool) or not 1 <= uses <= 10_000:
            raise Problem("The number of uses must be 1 to 10000.", "Write --uses 30", 2)
        ttl, life = self._ttl(text_of(asked, "ttl", "2h")), self._ttl(text_of(asked, "token_ttl", "8h"))
        scope = tokens.tool_scope(text_of(asked, "tools", "*"))
        code, invite = await self._invites.new(
            uses=uses, ttl=ttl, scope=scope, token_ttl=life, name=text_of(asked, "name", "")
        )
        return private({"code": code, **invite.told()}, 201)

    async def _list_invites(self, _: Request) -> Response:
        return private({"invites": [invite.told() for invite in await self._invites.all()]})

    async def _revoke_invite(self, request: Request) -> Response:
        gone = await self._invites.revoke(request.path_params["id"])
        return (
            private({"revoked": True}) if gone else _answer(404, "There is no such invite.", "./scripts/invite list")
        )


def guarded(secret: tokens.Secret, handler: Handler, audience: str = tokens.ADMIN_AUDIENCE) -> Handler:
    """Return a handler for this machine alone, and for who shows a token for that audience."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        if not from_this_machine(request):
            return JSONResponse({"error": "not found"}, 404)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise tokens.TokenRefused("there is none")
            tokens.verify(secret, token, audience=audience)
        except tokens.TokenRefused as refused:
            knocks.note(request.scope, f"admin token refused: {refused}", "admin_token")
            return _answer(401, "The admin token is missing or not good.", "Use ./scripts/tokens on this machine")
        try:
            return await handler(request)
        except Problem as problem:
            return _answer(400, problem.cause, problem.cure)

    return answer


async def asked_for(request: Request) -> dict[str, Any]:
    body = await request.body()
    try:
        found = await request.json() if body else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(body) > MAX_BODY:
        raise Problem("The body is no JSON object.", "Send one, as ./scripts/tokens does", 2)
    return found


def text_of(asked: dict[str, Any], name: str, default: str) -> str:
    value = asked.get(name, default)
    # what cannot be printed could be kept, and then no list be shown: a lone surrogate has no UTF-8
    if not isinstance(value, str) or not value.isprintable():
        raise Problem(f"{name} must be text in one line.", f'Send "{name}": "…"', 2)
    return value


def private(content: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status, headers={"cache-control": "no-store"})


def _answer(status: int, cause: str, cure: str) -> Response:
    return JSONResponse({"error": cause, "cure": cure}, status)


def _unknown(jti: str) -> Response:
    return _answer(
        404, f"There is no token {knocks.printable(jti, 40)}.", "./scripts/tokens list shows the known ones"
    )
