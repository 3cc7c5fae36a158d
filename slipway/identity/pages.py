"""What every page has in common: the style, the headers, and a form's bond with the browser that it was shown in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from html import escape
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from slipway import knocks, tokens

WEB = Path(__file__).resolve().parent.parent / "web"
COOKIE = "slipway_browser"
MAX_FORM = 10_000  # bytes
TITLE = "MCP server"
STYLE = (WEB / "style.css").read_text(encoding="utf-8")


def template(name: str) -> Template:
    """Return a page of slipway/web."""
    return Template((WEB / name).read_text(encoding="utf-8"))


def safe(text: object, limit: int = 300) -> str:
    """Return text that cannot command a page: printable, cut, escaped."""
    return escape(knocks.printable(text, limit))


def problem(text: str) -> str:
    """Return the paragraph that says what is wrong, or nothing."""
    return f'<p class="problem" role="alert">{safe(text)}</p>' if text else ""


def note(request: Request, reason: str) -> None:
    """Tell the operator's log why a form was refused."""
    knock: knocks.Knock | None = request.scope.get("slipway.knock")
    if knock:
        knock.reason = reason


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Pages:
    """Answers with pages, and knows which form came from one of them."""

    def __init__(self, secret: tokens.Secret) -> None:
        self._secret = secret

    def answer(self, page: str, status: int = 200, *, form_action: str = "'self'", script: str = "") -> Response:
        """Return a page that nothing of another origin is part of, and that no other origin may frame.

        Args:
            form_action: where its forms may lead; browsers check the redirect that follows, too.
            script: the only script that runs, or "".
        """
        also = f"script-src {_hash(script)}; connect-src 'self'; " if script else ""
        policy = (
            f"default-src 'none'; style-src {_hash(STYLE)}; img-src data:; {also}form-action {form_action}; "
            "frame-ancestors 'none'; base-uri 'none'"
        )
        headers = {
            "content-security-policy": policy, "x-frame-options": "DENY", "referrer-policy": "no-referrer",
            "cache-control": "no-store", "x-content-type-options": "nosniff",
        }  # fmt: skip
        return HTMLResponse(page, status, headers=headers)

    def sorry(self, text: str, status: int = 400) -> Response:
        """Return a page of one sentence."""
        page = template("sorry.html").substitute(title=TITLE, style=STYLE, text=safe(text))
        return self.answer(page, status, form_action="'none'")

    def browser(self, request: Request) -> str:
        """Return what tells this browser from others: its cookie, or a fresh one for `remember`."""
        return request.cookies.get(COOKIE, "")[:100] or secrets.token_urlsafe(24)

    def remember(self, request: Request, answer: Response, browser: str, path: str) -> Response:
        """Set the cookie, for the pages under `path` and ten minutes."""
        answer.set_cookie(
            COOKIE, browser, max_age=600, path=path, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    def csrf(self, browser: str, purpose: str) -> str:
        """Return what a form must carry to be from our own page in that browser."""
        return hmac.new(self._secret.key(), f"form:{browser}:{purpose}".encode(), hashlib.sha256).hexdigest()

    async def form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form; {} where it is too large."""
        if len(await request.body()) > MAX_FORM:
            return {}
        return {name: str(value) for name, value in (await request.form()).items()}

    def ours(self, request: Request, form: dict[str, str], purpose: str) -> bool:
        """Tell whether the form was shown by us, in this browser, for this purpose."""
        browser = request.cookies.get(COOKIE, "")
        bound = bool(browser) and hmac.compare_digest(form.get("csrf", ""), self.csrf(browser[:100], purpose))
        return bound and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
