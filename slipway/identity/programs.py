"""Which programs may ask for a sign-in: those that registered (RFC 7591), and those with a document of their own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastmcp.server.auth.cimd import CIMDClientManager, CIMDDocument
from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import OAuthClientInformationFull
from pydantic import ValidationError

from slipway.identity import redirects
from slipway.identity.grants import Grants, digest
from slipway.identity.redirects import RegisteredClient
from slipway.identity.throttle import Throttle

UNUSED_LIFE = 86400  # seconds that a registration is kept for a first sign-in
USED_LIFE = 90 * 86400  # seconds since somebody last signed in with it
MAX_METADATA = 8000  # characters
MAX_ID = 500  # characters
DOCUMENTS_AT = ("chatgpt.com", 443)  # where the best-known documents are; a connection is made, nothing is sent
ASK_AGAIN = 600.0  # seconds


class DocumentClient(RegisteredClient):
    """A client that its own document describes; FastMCP reads keys for private_key_jwt from it."""

    cimd_document: CIMDDocument


class Programs:
    """The clients of the authorization server. Anybody may register: what they may do is vetted here."""

    def __init__(self, grants: Grants, scope: str) -> None:
        self._grants = grants
        self.documents = CIMDClientManager(default_scope=scope)
        # a class comes from one address, and each of its programs registers by itself
        self._registrations = Throttle("register", per_address=120, overall=600, a_day=20_000)
        self._fetches = Throttle("document", per_address=20, overall=60)
        self._asked, self._reaches = -ASK_AGAIN, False

    async def find(self, client_id: str, address: str) -> RegisteredClient | None:
        """Return the client of this id, or None.

        Args:
            address: whose request it is; fetching documents is limited for each.
        """
        if len(client_id) > MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        if not self.documents.is_cimd_client_id(client_id):
            known = await self._grants.find("clients", digest(client_id))
            return RegisteredClient.model_validate(known) if known else None
        kept = await self._grants.find("documents", digest(client_id))
        if kept is None:
            kept = await self._fetch(client_id, address)
        return DocumentClient.model_validate(kept) if kept else None

    async def _fetch(self, client_id: str, address: str) -> dict[str, Any] | None:
        """Return the client that a document describes, vetted as a registration is, or None."""
        if not await self._fetches.admits(address):
            return None
        try:
            # FastMCP resolves, pins and vets the address, and follows no redirect
            found = await self.documents.get_client(client_id)
        except ValueError:  # what looks like a URL and is none
            found = None
        if found is None or any(map(redirects.why_not, found.cimd_document.redirect_uris)):
            return None
        document = found.cimd_document
        try:
            client = DocumentClient(
                client_id=client_id, redirect_uris=document.redirect_uris, client_name=document.client_name,
                token_endpoint_auth_method=document.token_endpoint_auth_method, cimd_document=document,
            )  # fmt: skip
        except ValidationError:
            return None
        kept = client.model_dump(mode="json", exclude_none=True)
        await self._grants.keep("documents", digest(client_id), kept, ASK_AGAIN)
        return kept

    async def fetchable(self) -> bool:
        """Tell whether we could fetch a document. Codex and others use one wherever it is said to work, and do not
        fall back to registration where it then does not: behind a firewall it must not be said.
        """
        if time.monotonic() > self._asked + ASK_AGAIN:
            self._asked = time.monotonic()
            self._reaches = await reaches(*DOCUMENTS_AT)
        return self._reaches

    async def register(self, client: OAuthClientInformationFull, address: str) -> None:
        """Keep a client.

        Raises:
            RegistrationError: a redirect URI that could send a code astray; too many registrations at once.
        """
        uris = [str(uri) for uri in client.redirect_uris or []]
        if not 1 <= len(uris) <= redirects.MAX_URIS:
            raise RegistrationError("invalid_redirect_uri", f"Give 1 to {redirects.MAX_URIS} redirect URIs")
        for uri in uris:
            if why := redirects.why_not(uri):
                raise RegistrationError("invalid_redirect_uri", f"A redirect URI is refused: {why}")
        kept = client.model_dump(mode="json", exclude_none=True)
        if len(str(kept)) > MAX_METADATA:
            raise RegistrationError("invalid_client_metadata", "The metadata is too large")
        if not await self._registrations.admits(address):
            raise RegistrationError("invalid_client_metadata", "Too many registrations. Wait a minute")
        # only who signs in with it is worth remembering for long
        await self._grants.keep("clients", digest(str(client.client_id)), kept, UNUSED_LIFE)

    async def signed_in(self, client_id: str, life: float) -> None:
        """Remember a registration for as long as a sign-in of that many seconds needs it, and then some."""
        if known := await self._grants.find("clients", digest(client_id)):
            await self._grants.keep("clients", digest(client_id), known, max(USED_LIFE, life))


async def reaches(host: str, port: int) -> bool:
    """Tell whether a TCP connection to that place is possible within two seconds."""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
