"""/join: an attendee types the invite code and a name, and gets a token and the configuration for their client."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from html import escape
from typing import Any

import segno
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from slipway import clients, events, knocks, tokens
from slipway.identity import pages
from slipway.identity.admission import Admission, NotAdmitted
from slipway.identity.endpoints import address_of, base_of
from slipway.identity.grants import Grants, digest, fresh
from slipway.identity.invites import written
from slipway.identity.ledger import Ledger
from slipway.identity.pages import Pages
from slipway.lan import trust
from slipway.lan.note import Lan

PURPOSE = "join"
FIRST = "claude-code"  # the client whose configuration is open
WATCH = 4 * 3600.0  # seconds that a page may wait for what comes
RETRY = 15000  # milliseconds; each try is a request of the tunnel's quota
LOOK = 0.3  # seconds
PAGES = 5  # of one token that may wait at once: each holds one of the requests that all may have open
MANY = f"This page is open {PAGES} times already. Close the others, then load it again."


class Join:
    """The route /join."""

    def __init__(
        self, look: Pages, grants: Grants, admission: Admission, ledger: Ledger, secret: tokens.Secret,
        checkpoints: Callable[[str], dict[str, Any]], lan: Callable[[], Lan | None],
    ) -> None:  # fmt: skip
        """Take what it works on.

        Args:
            checkpoints: of a subject's seat, {"all": [{"id", "title"}], "reached": [id]}; {} for who has no seat.
            lan: where the edge is open in the local network, if it is.
        """
        self._pages = look
        self._grants = grants
        self._admission = admission
        self._ledger = ledger
        self._secret = secret
        self._checkpoints = checkpoints
        self._lan = lan
        self._waiting: Counter[str] = Counter()  # pages by the token that they wait for
        self._form_page = pages.template("join.html")
        self._done_page = pages.template("joined.html")
        self._script = pages.text("joined.js")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/join", self._show, methods=["GET"]), Route("/join", self._take, methods=["POST"])]

    async def _show(self, request: Request) -> Response:
        if watched := request.query_params.get("watch", "")[:100]:
            return await self._watch(request, watched)
        browser = self._pages.browser(request)
        answer = self._form(request, browser, code=request.query_params.get("code", ""))
        return self._pages.remember(request, answer, browser)

    def _form(
        self, request: Request, browser: str, told: str = "", code: str = "", name: str = "", status: int = 400
    ) -> Response:
        address = f"{base_of(request)}/join"
        page = self._form_page.substitute(
            title=pages.TITLE, style=pages.STYLE, problem=pages.problem(told),
            csrf=self._pages.csrf(browser, PURPOSE), code=pages.safe(code, 64), name=pages.safe(name, 64),
            address=pages.safe(address), qr=_qr(address),
        )  # fmt: skip
        return pages.closed(page, status if told else 200)

    async def _take(self, request: Request) -> Response:
        form = await self._pages.form(request)
        browser = self._pages.browser(request)
        if not self._pages.ours(request, form, PURPOSE):
            knocks.note(request.scope, "join refused: not from our own page in the same browser")
            return self._pages.sorry("This form is not from our page in this browser. Open the page again.", 403)
        return await self._pages.once(request, form, lambda: self._let_in(request, form, browser))

    async def _let_in(self, request: Request, form: dict[str, str], browser: str) -> Response:
        code, typed = form.get("code", ""), form.get("name", "")
        try:
            admitted = await self._admission.admit(code, typed, address_of(request), browser)
        except NotAdmitted as refused:
            answer = self._form(request, browser, str(refused), code, typed, refused.status)
            return pages.refused(request, answer, refused.reason, refused.seconds)
        minted = tokens.mint(
            self._secret, subject=admitted.subject, scope=admitted.scope, ttl=admitted.life, client_id="join"
        )
        await self._ledger.add(
            minted.claims, via="join", purpose=admitted.invite.name, token=minted.token, since=admitted.at
        )
        watch = fresh()
        await self._grants.keep("watches", digest(watch), {"jti": minted.claims["jti"]}, WATCH)
        return self._done(request, minted, watch, written(code))

    def _done(self, request: Request, minted: tokens.Minted, watch: str, code: str) -> Response:
        lan = self._lan()
        here = lan if lan and lan.url == base_of(request) else None
        ca = trust.FILE if here else None
        endpoint = clients.Endpoint("slipway", f"{base_of(request)}/mcp", minted.token, ca, invite=code)
        rows = sorted(clients.CLIENTS, key=lambda row: not clients.CLIENTS[row].default)
        page = self._done_page.substitute(
            title=pages.TITLE, style=pages.STYLE, script=self._script, name=pages.safe(minted.claims["sub"]),
            url=pages.safe(endpoint.url), token=pages.safe(minted.token, 10_000), watch=pages.safe(watch),
            scope=pages.safe(minted.claims["scope"].replace("tool:", "").replace(" ", ", ")),
            life=tokens.duration(minted.claims["exp"] - int(time.time())),
            clients="\n".join(_client(row, endpoint) for row in rows), certificate=_certificate(here),
        )  # fmt: skip
        return pages.closed(page, form_action="'none'", script=self._script)

    async def _watch(self, request: Request, watch: str) -> Response:
        """Stream until the token's first call came."""
        known = await self._grants.find("watches", digest(watch))
        if not known:
            return self._pages.sorry("Nothing is waited for here.", 404)
        if self._waiting[known["jti"]] >= PAGES:
            knocks.note(request.scope, "join page refused: it is open too often")
            return self._pages.sorry(MANY, 429)
        return events.answer(self._counted(known["jti"]))

    async def _counted(self, jti: str) -> AsyncIterator[str]:
        # who is cut off must not come back at once, thirty at a time
        yield f"retry: {RETRY}\n: waiting\n\n"
        if self._waiting[jti] >= PAGES:
            return  # several came in the same moment
        self._waiting[jti] += 1
        try:
            async for each in self._events(jti):
                yield each
        finally:
            self._waiting[jti] -= 1
            if not self._waiting[jti]:
                del self._waiting[jti]

    async def _events(self, jti: str) -> AsyncIterator[str]:
        begun = beat = time.monotonic()
        shown: dict[str, Any] = {}
        waiting = True
        while time.monotonic() - begun < WATCH:
            record = await self._ledger.get(jti)
            if record is None or await self._ledger.state(record) != "good":
                yield events.event("over", {})
                return
            # before "connected": a page that has none of them waits for nothing after it
            if (reached := self._checkpoints(record.subject)) != shown:
                shown = reached
                yield events.event("checkpoints", reached)
            if record.first_used_at and waiting:
                waiting = False
                yield events.event("connected", {})
            if not waiting and len(shown.get("reached", [])) == len(shown.get("all", [])):
                return  # nothing is left to tick off
            if time.monotonic() - beat > events.BEAT:
                beat = time.monotonic()
                yield ": still waiting\n\n"
            await asyncio.sleep(LOOK)  # over replicas the ledger has no event to wait for
        yield events.event("over", {})


@functools.lru_cache(64)
def _qr(address: str) -> str:
    """Return an address as a picture. To draw it takes as long as a call, and anybody may open the page."""
    return str(segno.make(address, error="m").svg_data_uri(scale=4, border=2))


def _certificate(lan: Lan | None) -> str:
    """Return the part of the page about the local authority, where it is what vouches for our URL."""
    if not lan:
        return ""
    return (
        f'<h2>First, the certificate</h2><p><a class="install" href="{trust.PATH}" download="{trust.FILE}">'
        f"Download {trust.FILE}</a></p><p>Compare its SHA-256 fingerprint with the one that the instructor shows:</p>"
        f"<dl><dd><code>{pages.safe(lan.fingerprint)}</code></dd></dl>"
        f'<p class="hint">Where a configuration names {trust.FILE}, write the whole path of your download.</p>'
        f'<details><summary>Trust it, by system</summary><pre tabindex="0">'
        f"{escape(trust.trust_text(lan.url, lan.fingerprint))}</pre></details>"
    )


def _client(name: str, endpoint: clients.Endpoint) -> str:
    """Return one client's configuration as a part of the page."""
    row, snippet, link = clients.CLIENTS[name], clients.render(name, endpoint), clients.deeplink(name, endpoint)
    title = pages.safe(row.title)
    install = f'<p><a class="install" href="{pages.safe(link, 20_000)}">Install in {title}</a></p>' if link else ""
    hint = f'<p class="hint">{pages.safe(snippet.note, 600)}</p>' if snippet.note else ""
    text = "\n".join(pages.safe(line, 20_000) for line in snippet.text.splitlines())
    return (
        f'<details name="client"{" open" if name == FIRST else ""}><summary>{title}</summary>'
        f'<p class="hint">{pages.safe(snippet.path)}</p>{install}<pre tabindex="0">{text}</pre>'
        f'<button type="button" class="copy quiet">Copy</button>{hint}</details>'
    )
