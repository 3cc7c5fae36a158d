"""Who calls, and what they may: our tokens as FastMCP's auth provider, and tool scopes as FastMCP middleware."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import mcp_types as mt
from fastmcp.exceptions import InsufficientScopeError
from fastmcp.server.auth import AccessToken, TokenVerifier
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import CallNext, MiddlewareContext
from fastmcp.tools.base import Tool
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from slipway import knocks, tokens
from slipway.identity.ledger import Ledger
from slipway.listing import ListsTools
from slipway.store import Trouble

TOOL_PREFIX = "tool:"
MAX_KNOWN = 2000
# all tokens have the same fields; a set of each one's own would be 728 bytes
_GIVEN = {"token", "client_id", "subject", "scopes", "expires_at", "claims"}

# why the token of this request could not be judged: FastMCP's authentication knows good and bad alone
_unjudged: ContextVar[Trouble | None] = ContextVar("unjudged", default=None)


class SlipwayTokens(TokenVerifier):
    """Verifies our tokens. The caller only learns `invalid_token`; the real reason goes into the knock record."""

    def __init__(self, secret: tokens.Secret, ledger: Ledger) -> None:
        super().__init__()
        self._secret = secret
        self.ledger = ledger
        # one object for all requests of a token: each of its sessions and streams keeps what it was opened with
        self._known: OrderedDict[str, AccessToken] = OrderedDict()

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the caller's access token, or None after noting why it is refused."""
        knock = knocks.current.get()
        _unjudged.set(None)
        try:
            claims, ends = await self._accepted(token)
        except Trouble as trouble:
            # neither accepted nor refused: a client must not throw a good token away
            _unjudged.set(trouble)
            if knock:
                knock.reason = trouble.cause
            return None
        except tokens.TokenRefused as refused:
            if knock:
                knock.reason, knock.code = f"token refused: {refused}", refused.code
                if not knock.subject:
                    # cut off while it was copied: who it was meant for is shown on a lab's board, and is no subject
                    knock.mark = self.ledger.mark_of(tokens.claimed_id(token))
            return None
        known = self._known.get(token)
        if not known or known.expires_at != ends:
            known = self._known[token] = AccessToken.model_construct(
                _GIVEN, token=token, client_id=claims["client_id"], subject=claims["sub"],
                scopes=[sys.intern(each) for each in claims["scope"].split()], expires_at=ends,
                claims=claims,
            )  # fmt: skip
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return known

    async def _accepted(self, token: str) -> tuple[dict[str, Any], int]:
        """Return the claims, and when it ends. Raises: TokenRefused with the real reason."""
        known = self._known.get(token)
        claims = known.claims if known else {}
        try:
            # only time and the ledger can change what is so of the very same token
            if not claims or not claims["nbf"] <= time.time() < claims["exp"]:
                claims = tokens.verify(self._secret, token)
            ends = int(claims["exp"])
        except tokens.TokenExpired:
            claims = tokens.verify(self._secret, token, late=True)
            _whose(claims)
            # not into the claims: an extension may be made shorter
            ends = await self.ledger.extended_to(claims["jti"])
            if ends <= time.time():
                raise
        _whose(claims)
        if reason := await self.ledger.refusal(claims):
            raise tokens.TokenRevoked(reason)
        await self.ledger.seen(claims)
        return claims, ends


class Challenge:
    """Answers what carries no usable token: 401 or 403 with a challenge (RFC 6750 §3) and a sentence to act on.

    Runs after FastMCP's authentication and before its own RequireAuthMiddleware, which stays as a second lock
    but answers with an empty body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer 401 without a token or with a refused one, 403 with one that has no tool scope, or hand on."""
        if scope["type"] != "http" or scope["path"] != "/mcp":
            return self._app(scope, receive, send)
        # where a host that takes no bearer finds the way to sign in (RFC 9728 §5.1); HostGuard checked the Host
        headers = Headers(raw=scope["headers"])
        origin = f"{scope['scheme']}://{headers.get('host', '').lower()}"
        where = f', resource_metadata="{origin}/.well-known/oauth-protected-resource/mcp"'
        user = scope.get("user")
        knock = knocks.of(scope)
        if isinstance(user, AuthenticatedUser):
            if any(name.startswith(TOOL_PREFIX) for name in user.scopes):
                return self._app(scope, receive, send)
            text = "This token opens no tool: it has no scope of the form tool:NAME."
            return self._refuse(
                scope, receive, send, knock, 403, "insufficient_scope", text, f', scope="tool:*"{where}'
            )
        if trouble := _unjudged.get():
            return trouble.answer()(scope, receive, send)
        given = headers.get("authorization", "")
        if given.lower().startswith("bearer "):
            text = "The bearer token is expired, not for this server, or not valid. Ask the operator for a new one."
            return self._refuse(scope, receive, send, knock, 401, "invalid_token", text, where)
        text = "Send a token: `Authorization: Bearer TOKEN`. The operator makes one with scripts/mint."
        return self._refuse(scope, receive, send, knock, 401, "", text, where)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, knock: knocks.Knock | None, status: int, error: str,
        text: str, more: str = "",
    ) -> None:  # fmt: skip
        # RFC 6750 §3.1: no error code when the request lacks any authentication information
        challenge = f'Bearer realm="slipway", error="{error}", error_description="{text}"{more}'
        if not error:
            challenge = f'Bearer realm="slipway"{more}'
        if knock and not knock.reason:
            knock.reason = "no token" if not error else f"{error}: {text}"
        if knock and not knock.code:
            knock.code = {"insufficient_scope": "no_tool_scope", "invalid_token": "token_invalid"}.get(
                error, "no_token"
            )
        content = {"error": error or "unauthorized", "error_description": text}
        headers = {"www-authenticate": challenge, "cache-control": "no-store"}
        await JSONResponse(content, status, headers)(scope, receive, send)


def _whose(claims: dict[str, Any]) -> None:
    """Note whose token it is, accepted or not: its signature is good."""
    if knock := knocks.current.get():
        knock.subject, knock.jti = claims["sub"], claims["jti"]


def may_call(scopes: Iterable[str], tool: str) -> bool:
    """Tell whether these scopes allow this tool: `tool:NAME` or `tool:*`."""
    scopes = set(scopes)
    return f"{TOOL_PREFIX}*" in scopes or f"{TOOL_PREFIX}{tool}" in scopes


class ToolScopes(ListsTools):
    """Lists a tool only for a token that carries its scope, and judges calls. Over stdio nobody installs it."""

    def __init__(self, *, anonymous: bool = False) -> None:
        self._anonymous = anonymous

    def _scopes(self) -> list[str]:
        token = get_access_token()
        return token.scopes if token else []

    async def on_list_tools(
        self,
        context: MiddlewareContext[mt.ListToolsRequest],
        call_next: CallNext[mt.ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        """Leave out what the caller may not call."""
        tools = await call_next(context)
        if self._anonymous:
            return tools
        scopes = self._scopes()
        return [tool for tool in tools if may_call(scopes, tool.name)]

    def may_call(self, tool: str) -> None:
        """Refuse a call without its scope, and say which scope is missing.

        Raises:
            InsufficientScopeError: the caller sees it as an error result (RFC 6750 §3.1 insufficient_scope).
        """
        if not self._anonymous and not may_call(self._scopes(), tool):
            missing = TOOL_PREFIX + tool
            raise InsufficientScopeError(
                [missing],
                message=f"insufficient_scope: this token may not call {tool!r}; it lacks the scope {missing}. "
                f"Ask the operator for a token made with: scripts/mint --tools {tool}",
            )
