"""A hop: one address at which the same MCP endpoint can be asked, and the probes that several checks share."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from slipway.doctor.wire import Answer, Wire

HANDSHAKE = "2025-11-25"
NEWEST = "2026-07-28"
JSON_AND_STREAM = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
_ABOUT_US = {"name": "slipway-check", "version": "1"}
SECRET_FROM = 8  # characters; a shorter token may be a word of the protocol, and then no answer could be read
HELLO: dict[str, Any] = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": _ABOUT_US}

Verdict = Literal["ok", "warning", "failure", "not-applicable"]


@dataclass(frozen=True)
class Finding:
    """What a check says of one hop.

    Attributes:
        saw: what came back, in a few words.
        cause: why that is bad, in words; "" where it is not.
        cure: the next command, or the line of configuration to change.
    """

    verdict: Verdict
    saw: str
    cause: str = ""
    cure: str = ""


class NotApplicable(Exception):
    """Nothing can be said about this here, and why."""


def ok(saw: str) -> Finding:
    """All is well."""
    return Finding("ok", saw)


def warning(saw: str, cause: str, cure: str) -> Finding:
    """Some clients or some days will suffer."""
    return Finding("warning", saw, cause, cure)


def failure(saw: str, cause: str, cure: str) -> Finding:
    """Clients fail."""
    return Finding("failure", saw, cause, cure)


def plural(number: int, noun: str) -> str:
    """Return "1 tool", "2 tools"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_local(url: str) -> bool:
    """Tell whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost")


def _redact(answer: Answer, token: str) -> None:
    """Take the token out of an answer that echoes it: what is shown is cut, and nobody finds half a token later."""
    instead = "(token)"
    answer.body = answer.body.replace(token.encode(), instead.encode())
    answer.headers = [(name, value.replace(token, instead)) for name, value in answer.headers]
    answer.events = [replace(event, data=event.data.replace(token, instead)) for event in answer.events]
    answer.error = answer.error.replace(token, instead)


@dataclass
class Hop:
    """An address and how to ask it.

    Attributes:
        name: server, edge, tls, public or url.
        token: "" where there is none.
        origin: of the browser page that the CORS probes speak for.
        ca: the root certificate to trust beside the system's, or None.
        ours: whether Slipway serves it.
        before: the hop that this one forwards to, if it is one of ours.
        soak: seconds for which idle streams are held.
        strict: whether an origin was asked for, so that missing CORS is a failure also of a foreign server.
        refused: what we know against the token without asking, "" if nothing.
        mark: what the ids of our requests begin with.
        logged: (request id) → what our own logs wrote about the request, {} if nothing.
    """

    name: str
    url: str
    token: str = ""
    origin: str = "http://localhost:8081"
    ca: Path | None = None
    ours: bool = False
    before: Hop | None = None
    soak: int = 0
    strict: bool = False
    refused: str = ""
    mark: str = "doctor"
    logged: Callable[[str], dict[str, Any]] = lambda _: {}
    limited: list[Answer] = field(default_factory=list)
    found: dict[str, asyncio.Task[Finding]] = field(default_factory=dict)
    _known: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    # within a session two open requests may not have the same id
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.wire = Wire(self.trust())
        parts = urlsplit(self.url)
        self.secure, self.host = parts.scheme == "https", parts.hostname or ""
        self.base = f"{parts.scheme}://{parts.netloc}"
        self.path = parts.path or "/"
        self.loopback = is_local(self.url)

    @property
    def cors(self) -> bool:
        """Whether this hop is one that browsers talk to: our server leaves CORS to the edge."""
        return self.name != "server"

    def trust(self) -> ssl.SSLContext:
        """Return whose certificates are accepted: the system's, and the local authority's."""
        context = ssl.create_default_context()
        if self.ca and self.ca.exists():
            context.load_verify_locations(cafile=str(self.ca))
        return context

    async def well_before(self, check: str) -> bool:
        """Tell whether a check is well at the hop that this one forwards to."""
        if not self.before or check not in self.before.found:
            return False
        return (await asyncio.shield(self.before.found[check])).verdict == "ok"

    async def once(self, name: str, probe: Callable[[], Awaitable[Any]]) -> Any:
        """Run a probe once and give its answer to everyone who asks for it."""
        if name not in self._known:
            self._known[name] = asyncio.ensure_future(probe())
        return await asyncio.shield(self._known[name])

    async def ask(
        self, method: str, body: dict[str, Any] | None = None, *, path: str = "", token: bool = True,
        headers: dict[str, str] | None = None, **how: Any,
    ) -> Answer:  # fmt: skip
        """Send one request with a mark of its own.

        Args:
            path: another than the endpoint's.
            token: False leaves the token out.
        """
        sent = {"x-request-id": f"{self.mark}-{secrets.token_hex(8)}", **(headers or {})}
        if token and self.token:
            sent["authorization"] = f"Bearer {self.token}"
        content = json.dumps(body).encode() if body is not None else how.pop("content", b"")
        answer = await self.wire.ask(method, self.base + path if path else self.url, sent, content, **how)
        if len(self.token) >= SECRET_FROM:
            _redact(answer, self.token)
        if answer.status == 429:
            self.limited.append(answer)
        return answer

    async def post(
        self, method: str, params: dict[str, Any] | None = None, *, headers: dict[str, str] | None = None, **how: Any
    ) -> Answer:
        """Send a JSON-RPC request of the handshake era; a method that begins with "notifications/" has no id."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if not method.startswith("notifications/"):
            message["id"] = next(self._ids)
        return await self.ask("POST", message, headers=JSON_AND_STREAM | (headers or {}), **how)

    async def post_newest(self, method: str, params: dict[str, Any] | None = None, **how: Any) -> Answer:
        """Send a JSON-RPC request of the newest era."""
        params = dict(params or {})
        meta = "io.modelcontextprotocol/"
        params["_meta"] = {
            f"{meta}protocolVersion": NEWEST, f"{meta}clientCapabilities": {}, f"{meta}clientInfo": _ABOUT_US,
            **params.get("_meta", {}),
        }  # fmt: skip
        headers = {"mcp-protocol-version": NEWEST, "mcp-method": method, **(how.pop("headers", None) or {})}
        if name := params.get("name"):
            headers["mcp-name"] = str(name)
        return await self.post(method, params, headers=headers, **how)

    async def hello(self, *, token: bool = True, page: bool = False) -> Answer:
        """Open a session of the handshake era, once for each way to ask; whatever came back.

        Args:
            token: False leaves the token out.
            page: as a page of our origin does, in a browser: with Origin, over HTTP/2 where there is TLS.
        """

        async def probe() -> Answer:
            headers = {"origin": self.origin} if page else {}
            return await self.post("initialize", HELLO, token=token, headers=headers, http2=page)

        found: Answer = await self.once(f"hello {token} {page}", probe)
        return found

    async def reached(self) -> Answer:
        """Return the answer to `initialize`.

        Raises:
            NotApplicable: nothing answers, or with a redirect.
        """
        answer = await self.hello()
        if not answer.status:
            raise NotApplicable("nothing answers")
        if 300 <= answer.status < 400:
            raise NotApplicable("it redirects")
        if answer.status in (421, 429) or answer.status >= 500:
            raise NotApplicable(f"it answers {answer.status}")
        return answer

    async def admitted(self) -> Answer:
        """Return the answer to `initialize` if it was a good one.

        Raises:
            NotApplicable: the token was refused, or this is no MCP endpoint.
        """
        answer = await self.reached()
        if answer.status in (401, 403):
            raise NotApplicable("needs a token that is accepted" if self.token else "needs a token: --token")
        if answer.status != 200 or not answer.result():
            raise NotApplicable(f"it answers initialize with {answer.status}")
        return answer

    async def session(self) -> str:
        """Return the id of an open session, "" where the server keeps none.

        Raises:
            NotApplicable: as admitted.
        """
        answer = await self.admitted()
        return answer.header("mcp-session-id")[:256]

    async def in_session(self) -> dict[str, str]:
        """Return the headers of a request in the session, which is told that we are ready.

        Raises:
            NotApplicable: as admitted.
        """
        session = await self.session()
        headers = {"mcp-protocol-version": HANDSHAKE} | ({"mcp-session-id": session} if session else {})

        async def probe() -> Answer:
            return await self.post("notifications/initialized", headers=headers)

        await self.once("initialized", probe)
        return headers

    async def tools(self) -> list[dict[str, Any]]:
        """Return what tools/list gives in the handshake era.

        Raises:
            NotApplicable: as admitted.
        """
        headers = await self.in_session()

        async def probe() -> Answer:
            return await self.post("tools/list", headers=headers)

        answer: Answer = await self.once("tools", probe)
        found = answer.result().get("tools")
        return [tool for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []

    async def stranger(self, *, page: bool = False) -> Answer:
        """Send initialize without a token.

        Raises:
            NotApplicable: as reached.
        """
        await self.reached()
        return await self.hello(token=False, page=page)

    async def page(self) -> Answer:
        """Send initialize as a page of our origin does.

        Raises:
            NotApplicable: as reached.
        """
        await self.reached()
        return await self.hello(page=True)

    async def close(self) -> None:
        """End the session and the connections."""
        for task in self._known.values():
            if not task.done():
                task.cancel()
        opened = [task for name, task in self._known.items() if name.startswith("hello") and task.done()]
        for task in opened:
            if not task.cancelled() and not task.exception() and (id_ := task.result().header("mcp-session-id")):
                await self.ask("DELETE", headers={"mcp-session-id": id_[:256]}, seconds=3)
        await self.wire.close()
