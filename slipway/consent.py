"""The page on which a person signs in for a program: an invite code and a name, no script, bound to this browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
import unicodedata
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from mcp.server.auth.provider import construct_redirect_uri
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from slipway import knocks, tokens
from slipway.grants import Grants, digest
from slipway.invites import InviteRefused, Invites, TooManyTries
from slipway.ledger import Ledger
from slipway.oauth import SlipwayOAuth, base_of

WEB = Path(__file__).resolve().parent / "web"
COOKIE = "slipway_signin"
MAX_FORM = 10_000  # bytes
TITLE = "MCP server"


class Names:
    """Who is who: a name belongs to the first who took it, until the last of their tokens is over."""

    def __init__(self, ledger: Ledger, grants: Grants) -> None:
        self._ledger = ledger
        self._grants = grants
        self._lock = asyncio.Lock()

    @staticmethod
    def can_be(name: str) -> bool:
        """Tell whether somebody can be called so."""
        return 0 < len(name) <= 64 and name.isprintable() and any(char.isalnum() for char in name)

    async def take(self, name: str, life: float) -> bool:
        """Take a name for so many seconds. Returns: False if it is somebody's; case makes no other name."""
        folded = unicodedata.normalize("NFKC", name).casefold()
        async with self._lock:
            if await self._grants.find("names", digest(folded)):
                return False
            for record in await self._ledger.all():
                if (
                    unicodedata.normalize("NFKC", record.subject).casefold() == folded
                    and record.ends_at() > time.time()
                ):
                    return False
            await self._grants.keep("names", digest(folded), {"taken": time.time()}, life)
        return True


class Consent:
    """The route /oauth/consent."""

    def __init__(
        self, oauth: SlipwayOAuth, grants: Grants, invites: Invites, ledger: Ledger, secret: tokens.Secret
    ) -> None:
        self._oauth = oauth
        self._grants = grants
        self._invites = invites
        self._names = Names(ledger, grants)
        self._secret = secret
        self._page = Template((WEB / "consent.html").read_text(encoding="utf-8"))
        self._style = (WEB / "style.css").read_text(encoding="utf-8")
        self._style_hash = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/oauth/consent", self._show, methods=["GET"]),
            Route("/oauth/consent", self._decide, methods=["POST"]),
        ]

    def _csrf(self, browser: str, transaction: str) -> str:
        return hmac.new(self._secret.key(), f"consent:{browser}:{transaction}".encode(), hashlib.sha256).hexdigest()

    async def _show(self, request: Request) -> Response:
        transaction = request.query_params.get("transaction", "")[:100]
        begun = await self._grants.find("transactions", digest(transaction))
        if not begun or begun["base"] != base_of(request):
            return self._sorry("This sign-in is over or was never begun. Go back to your program and connect again.")
        browser = request.cookies.get(COOKIE) or secrets.token_urlsafe(24)
        answer = self._form(begun, transaction, browser)
        answer.set_cookie(
            COOKIE, browser, max_age=600, path="/oauth", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def _decide(self, request: Request) -> Response:
        if len(await request.body()) > MAX_FORM:
            return self._sorry("The form is too large.", 413)
        form = {name: str(value) for name, value in (await request.form()).items()}
        transaction, browser = form.get("transaction", "")[:100], request.cookies.get(COOKIE, "")
        begun = await self._grants.find("transactions", digest(transaction))
        mine = browser and hmac.compare_digest(form.get("csrf", ""), self._csrf(browser, transaction))
        if not mine or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            _note(request, "consent refused: not from our own page in the same browser")
            return self._sorry("This form is not from our page in this browser. Go back and connect again.", 403)
        if not begun or begun["base"] != base_of(request):
            return self._sorry("This sign-in is over. Go back to your program and connect again.")
        if form.get("decision") == "deny":
            await self._grants.take("transactions", digest(transaction))
            return self._back(begun, error="access_denied", error_description="The person said no")
        name = " ".join(form.get("name", "").split())
        if not self._names.can_be(name):
            return self._form(begun, transaction, browser, "Type a name of 1 to 64 letters and digits.", name)
        try:
            invite = await self._invites.redeem(form.get("code", ""), request.client.host if request.client else "")
        except TooManyTries as many:
            _note(request, "invite code refused: too many tries")
            answer = self._form(begun, transaction, browser, str(many), name, 429)
            answer.headers["retry-after"] = str(many.seconds)
            return answer
        except InviteRefused as refused:
            _note(request, "invite code refused")
            return self._form(begun, transaction, browser, str(refused), name)
        # only who has a good code learns which names there are
        if not await self._names.take(name, invite.token_ttl):
            await self._invites.give_back(invite)
            why = "Somebody has this name already. Add a letter, or a word."
            return self._form(begun, transaction, browser, why, name)
        if not await self._grants.take("transactions", digest(transaction)):
            await self._invites.give_back(invite)
            return self._sorry("This sign-in is over. Go back to your program and connect again.")
        code = await self._oauth.begin_grant(begun, subject=name, scope=invite.scope, life=invite.token_ttl)
        return self._back(begun, code=code)

    def _back(self, begun: dict[str, Any], **told: str) -> Response:
        """Send the browser back to the program, with state and issuer (RFC 9207)."""
        url = construct_redirect_uri(begun["redirect_uri"], **told, state=begun["state"], iss=begun["base"])
        return RedirectResponse(url, 302, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"})

    def _form(
        self,
        begun: dict[str, Any],
        transaction: str,
        browser: str,
        problem: str = "",
        name: str = "",
        status: int = 400,
    ) -> Response:
        fields = {
            "client": begun["client_name"], "redirect": _origin(begun["redirect_uri"]), "transaction": transaction,
            "csrf": self._csrf(browser, transaction), "name": name[:64], "title": TITLE,
        }  # fmt: skip
        told = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
        shown = {name: escape(knocks.printable(value, 300)) for name, value in fields.items()}
        page = self._page.substitute(shown | {"problem": told, "style": self._style})
        # the browser also checks form-action against the redirect that follows the form
        return self._answer(page, status if problem else 200, f"'self' {_origin(begun['redirect_uri'])}")

    def _sorry(self, text: str, status: int = 400) -> Response:
        head = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        )
        body = f"<main><h1>{TITLE}</h1><p>{escape(text)}</p></main></html>"
        page = f"{head}<title>{TITLE}</title><style>{self._style}</style>{body}"
        return self._answer(page, status, "'none'")

    def _answer(self, page: str, status: int, form_action: str) -> Response:
        policy = (
            f"default-src 'none'; style-src 'sha256-{self._style_hash}'; form-action {form_action}; "
            "frame-ancestors 'none'; base-uri 'none'"
        )
        headers = {
            "content-security-policy": policy, "x-frame-options": "DENY", "referrer-policy": "no-referrer",
            "cache-control": "no-store", "x-content-type-options": "nosniff",
        }  # fmt: skip
        return HTMLResponse(page, status, headers=headers)


def _origin(uri: str) -> str:
    """Return what a person should look at, and a browser check: scheme and host, without path and query."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"


def _note(request: Request, reason: str) -> None:
    knock: knocks.Knock | None = request.scope.get("slipway.knock")
    if knock:
        knock.reason = reason
