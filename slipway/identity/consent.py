"""The page on which a person signs in for a program: an invite code and a name, no script, bound to this browser."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from mcp.server.auth.provider import construct_redirect_uri
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from slipway import knocks
from slipway.identity import pages
from slipway.identity.admission import Admission, NotAdmitted
from slipway.identity.endpoints import CONSENT, address_of, base_of
from slipway.identity.grants import Grants, digest
from slipway.identity.oauth import SlipwayOAuth
from slipway.identity.pages import Pages
from slipway.identity.verifier import TOOL_PREFIX, may_call

OVER = "This sign-in is over or was never begun. Go back to your program and connect again."


class Consent:
    """The route /oauth/consent."""

    def __init__(self, look: Pages, oauth: SlipwayOAuth, grants: Grants, admission: Admission) -> None:
        self._pages = look
        self._oauth = oauth
        self._grants = grants
        self._admission = admission
        self._page = pages.template("consent.html")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(CONSENT, self._show, methods=["GET"]), Route(CONSENT, self._decide, methods=["POST"])]

    async def _begun(self, request: Request, transaction: str) -> dict[str, Any] | None:
        """Return the sign-in, if it was begun at the URL by which this request came."""
        begun = await self._grants.find("transactions", digest(transaction))
        return begun if begun and begun["base"] == base_of(request) else None

    async def _show(self, request: Request) -> Response:
        transaction = request.query_params.get("transaction", "")[:100]
        begun = await self._begun(request, transaction)
        if not begun:
            return self._pages.sorry(OVER)
        browser = self._pages.browser(request)
        return self._pages.remember(request, self._form(begun, transaction, browser), browser)

    async def _decide(self, request: Request) -> Response:
        form = await self._pages.form(request)
        transaction, browser = form.get("transaction", "")[:100], self._pages.browser(request)
        if not self._pages.ours(request, form, transaction):
            knocks.note(request.scope, "consent refused: not from our own page in the same browser")
            return self._pages.sorry("This form is not from our page in this browser. Connect again.", 403)
        return await self._pages.once(request, form, lambda: self._take(request, form, transaction, browser))

    async def _take(self, request: Request, form: dict[str, str], transaction: str, browser: str) -> Response:
        begun = await self._begun(request, transaction)
        if not begun:
            return self._pages.sorry(OVER)
        if form.get("decision") == "deny":
            await self._grants.take("transactions", digest(transaction))
            return self._back(begun, error="access_denied", error_description="The person said no")
        typed = form.get("name", "")
        try:
            admitted = await self._admission.admit(form.get("code", ""), typed, address_of(request), browser)
        except NotAdmitted as refused:
            answer = self._form(begun, transaction, browser, str(refused), typed, refused.status)
            return pages.refused(request, answer, refused.reason, refused.seconds)
        if not await self._grants.take("transactions", digest(transaction)):
            await self._admission.give_back(admitted)
            return self._pages.sorry(OVER)
        scope = narrowed(admitted.scope, begun["scopes"])
        if not scope:
            await self._admission.give_back(admitted)
            return self._back(begun, error="invalid_scope", error_description="The invite opens none of these tools")
        code = await self._oauth.begin_grant(
            begun, subject=admitted.subject, scope=scope, life=admitted.life, since=admitted.at
        )
        return self._back(begun, code=code)

    def _back(self, begun: dict[str, Any], **told: str) -> Response:
        """Send the browser back to the program, with state and issuer (RFC 9207)."""
        url = construct_redirect_uri(begun["redirect_uri"], **told, state=begun["state"], iss=begun["base"])
        return RedirectResponse(url, 302, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"})

    def _form(
        self, begun: dict[str, Any], transaction: str, browser: str, told: str = "", name: str = "", status: int = 400
    ) -> Response:
        where, source = _origin(begun["redirect_uri"])
        page = self._page.substitute(
            title=pages.TITLE, style=pages.STYLE, problem=pages.problem(told),
            client=pages.safe(begun["client_name"]), redirect=pages.safe(where), name=pages.safe(name, 64),
            transaction=pages.safe(transaction), tools=pages.safe(_tools(begun["scopes"])),
            csrf=self._pages.csrf(browser, transaction),
        )  # fmt: skip
        # the browser also checks form-action against the redirect that follows the form
        return pages.closed(page, status if told else 200, form_action=f"'self' {source}")


def narrowed(invited: str, asked: list[str]) -> str:
    """Return the scope to give: what the invite opens, of it only what the program asked for, if it named any."""
    if not asked or f"{TOOL_PREFIX}*" in asked:
        return invited
    return " ".join(scope for scope in asked if may_call(invited.split(), scope.removeprefix(TOOL_PREFIX)))


def _tools(asked: list[str]) -> str:
    named = [scope.removeprefix(TOOL_PREFIX) for scope in asked]
    return "every tool that your invite opens" if not named or "*" in named else ", ".join(named)


def _origin(uri: str) -> tuple[str, str]:
    """Return where it leads, for a person to look at, and as a browser checks it: no path, no query."""
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"
    return shown, shown if parts.scheme in ("http", "https") else f"{parts.scheme}:"
