"""The OAuth 2.1 authorization server, for hosts that take no bearer: FastMCP's OAuthProvider over our own tokens.

Discovery, registration, authorization, tokens and revocation; the page on which a person signs in is consent.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastmcp.server.auth import AccessToken, OAuthProvider
from fastmcp.server.auth.auth import TokenHandler
from fastmcp.server.auth.cimd import CIMDClientManager
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from mcp.server.auth.handlers.authorize import AuthorizationHandler
from mcp.server.auth.handlers.register import RegistrationHandler
from mcp.server.auth.middleware.client_auth import AuthenticationError, ClientAuthenticator
from mcp.server.auth.provider import (
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    RefreshToken,
    RegistrationError,
    TokenError,
)
from mcp.server.auth.settings import ClientRegistrationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyUrl
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slipway import tokens
from slipway.identity import redirects
from slipway.identity.grants import CODE_LIFE, TRANSACTION_LIFE, UNUSED_CLIENT_LIFE, Grant, Grants, digest, fresh
from slipway.identity.redirects import RegisteredClient
from slipway.identity.verifier import SlipwayTokens

ACCESS_LIFE = 3600  # seconds
SCOPES = ["tool:*"]
REGISTRATIONS = RateLimitItemPerMinute(120)
RESOURCE = "/mcp"
DOCUMENTS_AT = (
    "chatgpt.com",
    443,
)  # where the best-known client documents are; a connection is made, nothing is sent
FETCH_MEMORY = 600.0  # seconds

_base: ContextVar[str] = ContextVar("base")

Handler = Callable[[Request], Awaitable[Response]]


def base_of(request: Request) -> str:
    """Return the URL by which the caller reached us.

    The Host was checked by HostGuard; the scheme comes from the edge, whose X-Forwarded-Proto alone uvicorn believes.
    X-Forwarded-Host and Forwarded are never looked at.
    """
    return f"{request.url.scheme}://{request.headers.get('host', '').lower()}"


class SlipwayOAuth(OAuthProvider):
    """Our tokens by another door: the same subjects, scopes, ledger and verifier as a pasted one."""

    def __init__(self, verifier: SlipwayTokens, secret: tokens.Secret, grants: Grants) -> None:
        # the base URL is the caller's, at each request; this one only satisfies the constructor
        super().__init__(base_url="http://127.0.0.1")
        self._verifier = verifier
        self._secret = secret
        self._ledger = verifier.ledger
        self._grants = grants
        self._cimd = CIMDClientManager(default_scope=" ".join(SCOPES))
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._asked, self._reaches = -FETCH_MEMORY, False

    # --- routes

    def get_routes(self, mcp_path: str | None = None) -> list[Route]:
        """Return the routes: the SDK's handlers under /oauth, and metadata that names the caller's own host."""
        options = ClientRegistrationOptions(enabled=True, default_scopes=SCOPES)
        authenticator = ClientAuthenticator(self)
        resource, server = "/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server"
        table: list[tuple[str, str, Handler]] = [
            ("GET", resource, self._resource_metadata),
            ("GET", resource + RESOURCE, self._resource_metadata),
            ("GET", server, self._server_metadata),
            ("GET", "/oauth/authorize", self._authorize),
            ("POST", "/oauth/authorize", self._authorize),
            ("POST", "/oauth/token", TokenHandler(self, authenticator).handle),
            ("POST", "/oauth/register", RegistrationHandler(self, options).handle),
            ("POST", "/oauth/revoke", self._revocation(authenticator)),
        ]
        return [Route(path, _here(handler), methods=[method]) for method, path, handler in table]

    async def _resource_metadata(self, request: Request) -> Response:
        """Answer with RFC 9728 metadata."""
        base = base_of(request)
        return _document(
            {
                "resource": base + RESOURCE,
                "authorization_servers": [base],
                "scopes_supported": SCOPES,
                "bearer_methods_supported": ["header"],
                "resource_name": "Slipway",
            }
        )

    async def _server_metadata(self, request: Request) -> Response:
        """Answer with RFC 8414 metadata."""
        base = base_of(request)
        methods = ["none", "client_secret_post", "client_secret_basic"]
        return _document(
            {
                "issuer": base,
                "authorization_endpoint": f"{base}/oauth/authorize",
                "token_endpoint": f"{base}/oauth/token",
                "registration_endpoint": f"{base}/oauth/register",
                "revocation_endpoint": f"{base}/oauth/revoke",
                "scopes_supported": SCOPES,
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "token_endpoint_auth_methods_supported": methods,
                "revocation_endpoint_auth_methods_supported": methods,
                "code_challenge_methods_supported": ["S256"],
                "client_id_metadata_document_supported": await self._fetches(),
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _fetches(self) -> bool:
        """Tell whether we could fetch a client's document. Codex and others use one wherever it is said to work, and
        do not fall back to registration where it then does not: behind a firewall it must not be said.
        """
        if time.monotonic() > self._asked + FETCH_MEMORY:
            self._asked = time.monotonic()
            self._reaches = await reaches(*DOCUMENTS_AT)
        return self._reaches

    def _revocation(self, authenticator: ClientAuthenticator) -> Handler:
        """Return the revocation endpoint (RFC 7009); the SDK's asks a public client for a secret."""

        async def revoke(request: Request) -> Response:
            try:
                client = await authenticator.authenticate_request(request)
            except AuthenticationError as error:
                return JSONResponse({"error": "invalid_client", "error_description": error.message}, 401)
            given = str((await request.form()).get("token", ""))
            kept = await self._grants.find("refresh", digest(given))
            grant = await self._grants.grant(kept["grant"]) if kept else None
            if grant and grant.client_id == client.client_id:
                await self._grants.end(grant)
            elif not kept and (token := await self.load_access_token(given)):
                await self.revoke_token(token)
            # whoever asks about a token that is not theirs, or none, learns nothing
            return JSONResponse({}, headers={"cache-control": "no-store"})

        return revoke

    async def _authorize(self, request: Request) -> Response:
        """Refuse a redirect URI of a dangerous kind before all else: a client's own document may list one."""
        given = request.query_params if request.method == "GET" else await request.form()
        uri = str(given.get("redirect_uri") or "")
        if uri and (why := redirects.why_not(uri)):
            return JSONResponse(
                {"error": "invalid_request", "error_description": f"redirect_uri is refused: {why}"}, 400
            )
        return await AuthorizationHandler(self).handle(request)

    # --- clients

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        """Return a registered client, or the one that a client-id metadata document describes."""
        if self._cimd.is_cimd_client_id(client_id):
            found: OAuthClientInformationFull | None = await self._cimd.get_client(client_id)
            return found
        known = await self._grants.find("clients", digest(client_id))
        return RegisteredClient.model_validate(known) if known else None

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        """Keep a client.

        Raises:
            RegistrationError: a redirect URI that could send a code astray; too many registrations at once.
        """
        uris = [str(uri) for uri in client_info.redirect_uris or []]
        if not 1 <= len(uris) <= redirects.MAX_URIS:
            raise RegistrationError("invalid_redirect_uri", f"Give 1 to {redirects.MAX_URIS} redirect URIs")
        for uri in uris:
            if why := redirects.why_not(uri):
                raise RegistrationError("invalid_redirect_uri", f"A redirect URI is refused: {why}")
        if not await self._limiter.hit(REGISTRATIONS, "register"):
            raise RegistrationError("invalid_client_metadata", "Too many registrations. Wait a minute")
        kept = client_info.model_dump(mode="json", exclude_none=True)
        if len(str(kept)) > 20_000:
            raise RegistrationError("invalid_client_metadata", "The metadata is too large")
        # anybody may register; only who signs in with it is worth remembering
        await self._grants.keep("clients", digest(str(client_info.client_id)), kept, UNUSED_CLIENT_LIFE)

    # --- authorization

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        """Begin a sign-in. Returns: where the browser goes to.

        Raises:
            AuthorizeError: a resource that is not ours (RFC 8707), a challenge that is none.
        """
        base = _base.get()
        if params.resource and params.resource.rstrip("/") not in (base, base + RESOURCE):
            raise AuthorizeError("invalid_target", f"The resource here is {base}{RESOURCE}")
        if not 43 <= len(params.code_challenge) <= 128:
            raise AuthorizeError("invalid_request", "code_challenge must be an S256 challenge (RFC 7636)")
        transaction = fresh()
        await self._grants.keep(
            "transactions",
            digest(transaction),
            {
                "client_id": client.client_id,
                "client_name": (client.client_name or str(client.client_id))[:100],
                "redirect_uri": str(params.redirect_uri),
                "explicit": params.redirect_uri_provided_explicitly,
                "state": params.state,
                "scopes": params.scopes or [],
                "challenge": params.code_challenge,
                "resource": params.resource,
                "base": base,
            },
            TRANSACTION_LIFE,
        )
        return f"/oauth/consent?transaction={transaction}"

    async def begin_grant(self, transaction: dict[str, Any], *, subject: str, scope: str, life: int) -> str:
        """Note that a person agreed. Returns: the authorization code."""
        code, now = fresh(), time.time()
        grant = Grant(
            fresh(), transaction["client_id"], subject, scope, now, now + life, client_name=transaction["client_name"]
        )
        await self._grants.save(grant)
        kept = {
            name: transaction[name] for name in ("client_id", "redirect_uri", "explicit", "challenge", "resource")
        }
        await self._grants.keep("codes", digest(code), kept | {"grant": grant.id, "ends": now + CODE_LIFE}, CODE_LIFE)
        # remembered for longer than the code lives: whoever shows it twice ends the grant
        await self._grants.keep("used", digest(code), {"grant": grant.id}, life)
        return code

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        """Return a code that is good for this client. One that was used before ends its grant (OAuth 2.1 §4.1.3)."""
        kept = await self._grants.find("codes", digest(authorization_code))
        if kept is None:
            used = await self._grants.find("used", digest(authorization_code))
            if used and (grant := await self._grants.grant(used["grant"])):
                await self._grants.end(grant)
            return None
        grant = await self._grants.grant(kept["grant"])
        if kept["client_id"] != client.client_id or grant is None:
            return None
        return AuthorizationCode(
            code=authorization_code, scopes=grant.scope.split(), expires_at=kept["ends"], client_id=kept["client_id"],
            code_challenge=kept["challenge"], redirect_uri=AnyUrl(kept["redirect_uri"]),
            redirect_uri_provided_explicitly=kept["explicit"], resource=kept["resource"], subject=grant.subject,
        )  # fmt: skip

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        """Give the tokens of a code, once.

        Raises:
            TokenError: somebody else was faster, or the grant ended.
        """
        kept = await self._grants.take("codes", digest(authorization_code.code))
        grant = await self._grants.grant(kept["grant"]) if kept else None
        if grant is None or not await self._grants.good(grant):
            raise TokenError("invalid_grant", "The code was used, or is too old")
        return await self._issue(grant)

    async def _issue(self, grant: Grant) -> OAuthToken:
        """Give a new access token and a new refresh token, in place of the one before."""
        life = max(1, min(ACCESS_LIFE, int(grant.ends_at - time.time())))
        # the client's own id may be a URL of any length; the ledger and the log name the client by the grant
        minted = tokens.mint(self._secret, subject=grant.subject, scope=grant.scope, ttl=life, client_id="oauth")
        await self._ledger.add(minted.claims, via="oauth", purpose=grant.client_name)
        refresh = fresh()
        grant.refresh = digest(refresh)
        grant.jtis = [*grant.jtis, minted.claims["jti"]][-100:]
        await self._grants.save(grant)
        await self._grants.keep("refresh", grant.refresh, {"grant": grant.id}, max(1.0, grant.ends_at - time.time()))
        return OAuthToken(
            access_token=minted.token, token_type="Bearer", expires_in=life, scope=grant.scope, refresh_token=refresh  # noqa: S106
        )  # fmt: skip

    # --- later

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        """Return a refresh token that is good for this client; one that was rotated away ends its grant."""
        kept = await self._grants.find("refresh", digest(refresh_token))
        grant = await self._grants.grant(kept["grant"]) if kept else None
        if grant is None or grant.client_id != client.client_id:
            return None
        if grant.refresh != digest(refresh_token):
            # the thief or the owner: one of them has the new one, and nobody can tell which
            await self._grants.end(grant)
            return None
        if not await self._grants.good(grant):
            return None
        return RefreshToken(
            token=refresh_token, client_id=grant.client_id, scopes=grant.scope.split(), expires_at=int(grant.ends_at),
            subject=grant.subject,
        )  # fmt: skip

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        """Rotate.

        Raises:
            TokenError: the token was used in the same moment, or its grant ended.
        """
        async with self._grants.lock:
            kept = await self._grants.find("refresh", digest(refresh_token.token))
            grant = await self._grants.grant(kept["grant"]) if kept else None
            if grant is None or grant.refresh != digest(refresh_token.token) or not await self._grants.good(grant):
                raise TokenError("invalid_grant", "The refresh token is not good any more")
            if scopes and set(scopes) < set(grant.scope.split()):
                grant.scope = " ".join(scopes)
            return await self._issue(grant)

    async def load_access_token(self, token: str) -> AccessToken | None:
        """Return the token's claims if it is good, by whichever door it came."""
        return await self._verifier.verify_token(token)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the caller's access token, or None after noting why it is refused."""
        return await self._verifier.verify_token(token)

    async def revoke_token(self, token: Any) -> None:
        """Stop one access token; who shows it may."""
        if token.claims:
            await self._ledger.revoke(str(token.claims["jti"]))


async def reaches(host: str, port: int) -> bool:
    """Tell whether a TCP connection to that place is possible within two seconds."""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _here(handler: Handler) -> Handler:
    """Let the provider know, in the handler's own context, by which URL it was called."""

    async def handle(request: Request) -> Response:
        _base.set(base_of(request))
        return await handler(request)

    return handle


def _document(content: dict[str, Any]) -> Response:
    # another tunnel, another URL: nobody may keep it
    return JSONResponse(content, headers={"cache-control": "no-store"})
