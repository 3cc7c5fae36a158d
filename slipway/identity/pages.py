"""What every page has in common: the style, the headers, and a form's bond with the browser that it was shown in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from slipway import knocks, tokens

WEB = Path(__file__).resolve().parent.parent / "web"
COOKIE = "slipway_browser"
COOKIE_LIFE = 30 * 86400  # seconds; whoever took a name comes back to it, and a page may stay open overnight
MAX_FORM = 10_000  # bytes
TWICE = 60.0  # seconds in which a form that is sent again gets the same answer
TITLE = "MCP server"


def text(name: str) -> str:
    """Return a file of slipway/web."""
    return (WEB / name).read_text(encoding="utf-8")


STYLE = text("style.css")


def template(name: str) -> Template:
    """Return a page of slipway/web."""
    return Template(text(name))


def safe(text: object, limit: int = 300) -> str:
    """Return text that cannot command a page: printable, cut, escaped."""
    return escape(knocks.printable(text, limit))


def problem(text: str) -> str:
    """Return the paragraph that says what is wrong, or nothing."""
    return f'<p class="problem" role="alert">{safe(text)}</p>' if text else ""


def refused(request: Request, answer: Response, reason: str, seconds: int) -> Response:
    """Return the answer to a form that was refused: with the reason in the log, and when to try again."""
    if reason:
        knocks.note(request.scope, reason)
    if seconds:
        answer.headers["retry-after"] = str(seconds)
    return answer


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def closed(
    page: str, status: int = 200, *, form_action: str = "'self'", script: str = "", style: str = STYLE
) -> Response:
    """Return a page that nothing of another origin is part of, and that no other origin may frame.

    Args:
        page: the page; `script` and `style` are in it, word for word.
        status: the HTTP status.
        form_action: where its forms may lead; browsers check the redirect that follows, too.
        script: the only script that runs, or "".
        style: the only style that applies.
    """
    also = f"script-src {_hash(script)}; connect-src 'self'; " if script else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; img-src data:; {also}form-action {form_action}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    headers = {
        "content-security-policy": policy, "x-frame-options": "DENY", "referrer-policy": "no-referrer",
        "cache-control": "no-store", "x-content-type-options": "nosniff",
    }  # fmt: skip
    return HTMLResponse(page, status, headers=headers)


class Pages:
    """Answers with pages, and knows which form came from one of them."""

    def __init__(self, secret: tokens.Secret) -> None:
        self._secret = secret
        self._taken: dict[str, asyncio.Future[Response]] = {}

    def sorry(self, text: str, status: int = 400) -> Response:
        """Return a page of one sentence."""
        page = template("sorry.html").substitute(title=TITLE, style=STYLE, text=safe(text))
        return closed(page, status, form_action="'none'")

    def browser(self, request: Request) -> str:
        """Return what tells this browser from others: its cookie, or a fresh one for `remember`."""
        return request.cookies.get(COOKIE, "")[:100] or secrets.token_urlsafe(24)

    def remember(self, request: Request, answer: Response, browser: str) -> Response:
        """Set the cookie. Lax, not Strict: a program's link leads here from another site, and must not replace it."""
        answer.set_cookie(
            COOKIE, browser, max_age=COOKIE_LIFE, path="/", httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    def csrf(self, browser: str, purpose: str) -> str:
        """Return what a form must carry to be from our own page in that browser."""
        return hmac.new(self._secret.key(), f"form:{browser}:{purpose}".encode(), hashlib.sha256).hexdigest()

    async def form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form; {} where it is too large, or in parts, as no page of ours sends it."""
        in_parts = request.headers.get("content-type", "").lower().startswith("multipart/")
        if len(await request.body()) > MAX_FORM or in_parts:
            return {}
        return {name: str(value) for name, value in (await request.form()).items()}

    def ours(self, request: Request, form: dict[str, str], purpose: str) -> bool:
        """Tell whether the form was shown by us, in this browser, for this purpose."""
        browser = request.cookies.get(COOKIE, "")
        bound = bool(browser) and hmac.compare_digest(
            form.get("csrf", "").encode(), self.csrf(browser[:100], purpose).encode()
        )
        return bound and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"

    async def once(self, request: Request, form: dict[str, str], take: Callable[[], Awaitable[Response]]) -> Response:
        """Take a form, unless it was taken a moment ago: a double click gets the first one's answer.

        What was refused is not remembered, so that it can be sent again.
        """
        what = "\n".join([request.url.path, request.cookies.get(COOKIE, ""), *map(str, sorted(form.items()))])
        key = hashlib.sha256(what.encode()).hexdigest()
        if key not in self._taken:
            self._taken[key] = asyncio.ensure_future(take())
            asyncio.get_running_loop().call_later(TWICE, self._taken.pop, key, None)
        taken = self._taken[key]
        try:
            answer = await asyncio.shield(taken)
        except Exception:
            self._taken.pop(key, None)
            raise
        if answer.status_code >= 400:
            self._taken.pop(key, None)
        return answer
