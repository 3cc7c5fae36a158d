"""The authorization server's HTTP side: metadata that names the caller's own URL, and the SDK's handlers, limited."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from fastmcp.server.auth import OAuthProvider
from fastmcp.server.auth.auth import PrivateKeyJWTClientAuthenticator, TokenHandler
from mcp.server.auth.handlers.authorize import AuthorizationHandler
from mcp.server.auth.handlers.register import RegistrationHandler
from mcp.server.auth.middleware.client_auth import AuthenticationError
from mcp.server.auth.settings import ClientRegistrationOptions
from mcp.shared.auth import OAuthClientInformationFull
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slipway.identity.programs import Programs
from slipway.identity.throttle import Throttle

SCOPES = ["tool:*"]
RESOURCE = "/mcp"
CONSENT = "/oauth/consent"
MAX_STATE = 2000  # characters of what a program wants back, which we keep meanwhile

# the request that the provider is asked about: the SDK does not hand it on
current: ContextVar[Request] = ContextVar("request")

Handler = Callable[[Request], Awaitable[Response]]


def base_of(request: Request) -> str:
    """Return the URL by which the caller reached us.

    The Host was checked by HostGuard; the scheme comes from the edge, whose X-Forwarded-Proto alone uvicorn believes.
    X-Forwarded-Host and Forwarded are never looked at.
    """
    return f"{request.url.scheme}://{request.headers.get('host', '').lower()}"


def address_of(request: Request) -> str:
    """Return the address that a request came from, as the edge tells it."""
    return request.client.host if request.client else ""


def is_ours(resource: str, base: str) -> bool:
    """Tell whether a resource indicator (RFC 8707) names this server."""
    return resource.rstrip("/") in (base, base + RESOURCE)


class Endpoints:
    """The routes of the authorization server."""

    def __init__(
        self, provider: OAuthProvider, programs: Programs, revoke: Callable[[str, str], Awaitable[None]]
    ) -> None:
        """Take the provider that the SDK's handlers ask, the programs, and what ends a token of a client."""
        self._provider = provider
        self._programs = programs
        self._end = revoke
        self._sign_ins = Throttle("authorize", per_address=120, overall=1200)

    def routes(self) -> list[Route]:
        """Return the routes: the SDK's handlers under /oauth, and metadata under /.well-known."""
        options = ClientRegistrationOptions(enabled=True, default_scopes=SCOPES)
        resource, server = "/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server"
        table: list[tuple[str, str, Handler]] = [
            ("GET", resource, self._resource_metadata),
            ("GET", resource + RESOURCE, self._resource_metadata),
            ("GET", server, self._server_metadata),
            ("GET", "/oauth/authorize", self._authorize),
            ("POST", "/oauth/authorize", self._authorize),
            ("POST", "/oauth/token", self._token),
            ("POST", "/oauth/register", RegistrationHandler(self._provider, options).handle),
            ("POST", "/oauth/revoke", self._revoke),
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
        fetchable = await self._programs.fetchable()
        methods += ["private_key_jwt"] if fetchable else []
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
                "client_id_metadata_document_supported": fetchable,
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _client_of(self, request: Request) -> OAuthClientInformationFull:
        """Return the client that a request to the token or revocation endpoint comes from.

        Raises:
            AuthenticationError: there is none, or its secret or assertion is not good.
        """
        form = await request.form()
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and "client_id" not in form:
            # RFC 6749 §2.3.1: the header alone names the client; the SDK looks for it in the body
            try:
                name = unquote(base64.b64decode(credentials).decode().partition(":")[0])
            except ValueError:
                raise AuthenticationError("The Basic credentials cannot be read") from None
            request._form = FormData([*form.multi_items(), ("client_id", name)])
        endpoint = f"{base_of(request)}/oauth/token"
        inner = PrivateKeyJWTClientAuthenticator(self._provider, self._programs.documents, endpoint)
        return await inner.authenticate_request(request)

    async def _token(self, request: Request) -> Response:
        """Answer at the token endpoint; a resource that is not ours is refused (RFC 8707 §2.2)."""
        resource = str((await request.form()).get("resource") or "")
        if resource and not is_ours(resource, base_of(request)):
            return _error("invalid_target", f"The resource here is {base_of(request)}{RESOURCE}")
        asked: Any = SimpleNamespace(authenticate_request=self._client_of)
        answer: Response = await TokenHandler(self._provider, asked).handle(request)
        return answer

    async def _revoke(self, request: Request) -> Response:
        """Answer at the revocation endpoint (RFC 7009); the SDK's asks a public client for a secret."""
        try:
            client = await self._client_of(request)
        except AuthenticationError as error:
            return _error("invalid_client", error.message, 401)
        await self._end(str((await request.form()).get("token", "")), str(client.client_id))
        # whoever asks about a token that is not theirs, or none, learns nothing
        return JSONResponse({}, headers={"cache-control": "no-store"})

    async def _authorize(self, request: Request) -> Response:
        """Begin a sign-in: to our own page, or to where the error is told."""
        if not await self._sign_ins.admits(address_of(request)):
            return _error("temporarily_unavailable", "Too many sign-ins at once. Wait a minute", 429)
        given = request.query_params if request.method == "GET" else await request.form()
        if any(len(str(given.get(name) or "")) > MAX_STATE for name in ("state", "resource", "scope")):
            return _error("invalid_request", f"state, resource and scope may have {MAX_STATE} characters each")
        answer = await AuthorizationHandler(self._provider).handle(request)
        where = answer.headers.get("location", "")
        # anybody may register any website: no link of ours leads there before a person agreed (RFC 9700 §4.11.2)
        if urlsplit(where).scheme == "https":
            return _error("invalid_request", "The program's request for a sign-in is faulty. Nothing was given to it")
        return answer


def _here(handler: Handler) -> Handler:
    """Let the provider know, in the handler's own context, which request it is about; refuse forms in parts."""

    async def handle(request: Request) -> Response:
        current.set(request)
        # RFC 6749 appendix B knows one encoding; in parts, the sender chooses the charset, and some give no text
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            return _error("invalid_request", "Send the form as application/x-www-form-urlencoded")
        return await handler(request)

    return handle


def _error(code: str, text: str, status: int = 400) -> Response:
    return JSONResponse({"error": code, "error_description": text}, status, headers={"cache-control": "no-store"})


def _document(content: dict[str, Any]) -> Response:
    # another tunnel, another URL: nobody may keep it
    return JSONResponse(content, headers={"cache-control": "no-store"})
