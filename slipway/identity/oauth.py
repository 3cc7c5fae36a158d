"""The OAuth 2.1 authorization server, for hosts that take no bearer: FastMCP's OAuthProvider over our own tokens.

Codes, tokens, refresh and revocation. Its HTTP side is endpoints.py, which programs may ask programs.py, the page on
which a person signs in consent.py.
"""

from __future__ import annotations

import time
from typing import Any

from fastmcp.server.auth import AccessToken, OAuthProvider
from mcp.server.auth.provider import AuthorizationCode, AuthorizationParams, AuthorizeError, RefreshToken, TokenError
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyUrl
from starlette.routing import Route

from slipway import tokens
from slipway.identity import redirects
from slipway.identity.endpoints import CONSENT, RESOURCE, SCOPES, Endpoints, address_of, base_of, current, is_ours
from slipway.identity.grants import CODE_LIFE, TRANSACTION_LIFE, Grant, Grants, digest, fresh
from slipway.identity.programs import Programs
from slipway.identity.verifier import SlipwayTokens

ACCESS_LIFE = 3600  # seconds
REMEMBERED = 100  # access tokens of a grant, the newest, to be ended with it
UNEXPIRED = 60  # access tokens of a grant at most; so none that is still good is among those that are forgotten


class SlipwayOAuth(OAuthProvider):
    """Our tokens by another door: the same subjects, scopes, ledger and verifier as a pasted one."""

    def __init__(self, verifier: SlipwayTokens, secret: tokens.Secret, grants: Grants) -> None:
        # the base URL is the caller's, at each request; this one only satisfies the constructor
        super().__init__(base_url="http://127.0.0.1")
        self._verifier = verifier
        self._secret = secret
        self._ledger = verifier.ledger
        self._grants = grants
        self._programs = Programs(grants, " ".join(SCOPES))

    def get_routes(self, mcp_path: str | None = None) -> list[Route]:
        """Return the routes of the authorization server."""
        return Endpoints(self, self._programs, self._revoke_of).routes()

    # --- clients

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        """Return the client of this id, or None."""
        return await self._programs.find(client_id, address_of(current.get()))

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        """Keep a client.

        Raises:
            RegistrationError: why not.
        """
        await self._programs.register(client_info, address_of(current.get()))

    # --- authorization

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        """Begin a sign-in. Returns: where the browser goes to.

        Raises:
            AuthorizeError: a resource that is not ours (RFC 8707), a challenge that is none.
        """
        base = base_of(current.get())
        if why := redirects.why_not(str(params.redirect_uri)):
            raise AuthorizeError("invalid_request", f"redirect_uri is refused: {why}")
        if params.resource and not is_ours(params.resource, base):
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
        return f"{CONSENT}?transaction={transaction}"

    async def begin_grant(
        self, transaction: dict[str, Any], *, subject: str, scope: str, life: int, since: float
    ) -> str:
        """Note that a person agreed.

        Args:
            since: when they were admitted; what is revoked from then on is revoked for them.
        Returns: the authorization code.
        """
        code, now = fresh(), time.time()
        grant = Grant(
            fresh(), transaction["client_id"], subject, scope, since, now + life,
            client_name=transaction["client_name"],
        )  # fmt: skip
        await self._grants.save(grant)
        await self._programs.signed_in(grant.client_id, life)
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
            if used:
                await self._grants.end(used["grant"])
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
        key = digest(authorization_code.code)
        async with self._grants.lock():
            kept = await self._grants.take("codes", key)
            grant = await self._grants.grant(kept["grant"]) if kept else None
            issued = await self._issue(grant) if grant and await self._grants.good(grant) else None
        if issued:
            return issued
        if kept is None and (used := await self._grants.find("used", key)):
            # shown twice in the same moment
            await self._grants.end(used["grant"])
        raise TokenError("invalid_grant", "The code was used, or is too old")

    async def _issue(self, grant: Grant) -> OAuthToken | None:
        """Give a new access token and a new refresh token, in place of the one before. The caller holds the lock.

        Returns: them, or None where the grant was revoked in this moment.
        """
        life = max(1, min(ACCESS_LIFE, int(grant.ends_at - time.time())))
        # the client's own id may be a URL of any length; the ledger and the log name the client by the grant
        minted = tokens.mint(self._secret, subject=grant.subject, scope=grant.scope, ttl=life, client_id="oauth")
        await self._ledger.add(minted.claims, via="oauth", purpose=grant.client_name, token=minted.token)
        if not await self._grants.good(grant):
            # a revocation that came before the token was noted does not hold for it by itself
            await self._ledger.revoke(minted.claims["jti"])
            return None
        refresh = fresh()
        grant.refresh = digest(refresh)
        grant.jtis = dict([*grant.jtis.items(), (minted.claims["jti"], minted.claims["exp"])][-REMEMBERED:])
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
            await self._grants.end(grant.id)
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
        key = digest(refresh_token.token)
        async with self._grants.lock():
            # nothing is raised in here: the SDK's errors are frozen, and a context manager cannot pass them on
            kept = await self._grants.find("refresh", key)
            grant = await self._grants.grant(kept["grant"]) if kept else None
            current, often, issued = grant is not None and grant.refresh == key, False, None
            if grant and current and await self._grants.good(grant):
                often = sum(ends > time.time() for ends in grant.jtis.values()) >= UNEXPIRED
                if not often:
                    if scopes and set(scopes) < set(grant.scope.split()):
                        grant.scope = " ".join(scopes)
                    issued = await self._issue(grant)
        if issued:
            return issued
        if grant and not current:
            await self._grants.end(grant.id)
        if often:
            raise TokenError("invalid_request", "Too many refreshes in an hour; the access token is still good")
        raise TokenError("invalid_grant", "The refresh token is not good any more")

    async def load_access_token(self, token: str) -> AccessToken | None:
        """Return the token's claims if it is good, by whichever door it came."""
        return await self._verifier.verify_token(token)

    async def _revoke_of(self, token: str, client_id: str) -> None:
        """End a refresh token's grant if it is this client's, or stop an access token, whose ever it is."""
        kept = await self._grants.find("refresh", digest(token))
        grant = await self._grants.grant(kept["grant"]) if kept else None
        if grant and grant.client_id == client_id:
            await self._grants.end(grant.id)
        elif not kept and (found := await self.load_access_token(token)):
            await self.revoke_token(found)

    async def revoke_token(self, token: Any) -> None:
        """Stop one access token; who shows it may."""
        if token.claims:
            await self._ledger.revoke(str(token.claims["jti"]))
