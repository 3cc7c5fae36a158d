"""A reverse proxy with one switch per disease: what proxies and tunnels do to MCP in the wild, for tests and labs.

`python -m tests.misbehaving NAME` (scripts/break NAME) puts it in front of the local edge until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slipway import venv

venv.enter("uvicorn")

import httpx2
import jwt
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from slipway import commandline, settings, tokens
from slipway.errors import Problem

PORT = 8090
CUT_AFTER = 2.0  # seconds
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}
Early = tuple[int, dict[str, str], bytes]
Chunks = AsyncIterator[bytes]


@dataclass(frozen=True)
class Disease:
    """One thing that goes wrong.

    Attributes:
        what: in words, for the learner.
        before: (request, headers) → an answer without asking the upstream, or None; it may change the headers.
        after: (request, status, headers) → what becomes of the answer's head; it changes the headers.
        body: (request, headers, chunks) → the chunks that the client gets.
        holds: whether the head waits for the first byte that the body gives.
    """

    what: str
    before: Callable[[Request, MutableHeaders], Early | None] | None = None
    after: Callable[[Request, int, MutableHeaders], None] | None = None
    body: Callable[[Request, Headers, Chunks], Chunks] | None = None
    holds: bool = False


def _stream(headers: Headers) -> bool:
    return "text/event-stream" in headers.get("content-type", "")


async def _buffered(request: Request, headers: Headers, chunks: Chunks) -> Chunks:
    """Give everything at the end, as a proxy with response buffering does."""
    if not _stream(headers):
        async for chunk in chunks:
            yield chunk
        return
    yield b"".join([chunk async for chunk in chunks])


async def _buffered_get(request: Request, headers: Headers, chunks: Chunks) -> Chunks:
    inner = _buffered(request, headers, chunks) if request.method == "GET" else chunks
    async for chunk in inner:
        yield chunk


async def _eventful(request: Request, headers: Headers, chunks: Chunks) -> Chunks:
    """Keep comments back until there is an event."""
    kept = b""
    async for chunk in chunks:
        kept += chunk
        if not _stream(headers) or b"data:" in kept:
            yield kept
            kept = b""
    if kept:
        yield kept


async def _cut(request: Request, headers: Headers, chunks: Chunks) -> Chunks:
    until = time.monotonic() + CUT_AFTER
    iterator = aiter(chunks)
    while True:
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic()) if _stream(headers) else None):
                chunk = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ConnectionAbortedError("cut on purpose") from None
        yield chunk


async def _gzipped(request: Request, headers: Headers, chunks: Chunks) -> Chunks:
    if headers.get("content-encoding") != "gzip" or not _stream(headers):
        async for chunk in chunks:
            yield chunk
        return
    packer = zlib.compressobj(wbits=31)
    async for chunk in chunks:
        if packed := packer.compress(chunk):
            yield packed
    yield packer.flush()


def _remove(*names: str) -> Callable[[Request, int, MutableHeaders], None]:
    def after(_: Request, __: int, headers: MutableHeaders) -> None:
        for name in names:
            if name in headers:
                del headers[name]

    return after


def _forget(*prefixes: str) -> Callable[[Request, MutableHeaders], None]:
    def before(_: Request, headers: MutableHeaders) -> None:
        for name in [name for name in headers if name.startswith(prefixes)]:
            del headers[name]

    return before


def _twice(_: Request, __: int, headers: MutableHeaders) -> None:
    if "access-control-allow-origin" in headers:
        headers.append("access-control-allow-origin", "*")


def _any_origin(request: Request, __: int, headers: MutableHeaders) -> None:
    if origin := request.headers.get("origin"):
        headers["access-control-allow-origin"] = origin
        headers["access-control-allow-headers"] = request.headers.get("access-control-request-headers", "*")
        headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
        headers["access-control-expose-headers"] = "Mcp-Session-Id, WWW-Authenticate, Retry-After, X-Request-Id"


def _old_list(_: Request, __: int, headers: MutableHeaders) -> None:
    if "access-control-allow-headers" in headers:
        headers["access-control-allow-headers"] = (
            "authorization, content-type, accept, mcp-session-id, mcp-protocol-version"
        )


def _no_cors_on_errors(_: Request, status: int, headers: MutableHeaders) -> None:
    if status >= 400:
        _remove("access-control-allow-origin", "access-control-expose-headers")(_, status, headers)


def _compress(request: Request, _: int, headers: MutableHeaders) -> None:
    if _stream(headers) and "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"


def _redirect(request: Request, _: MutableHeaders) -> Early | None:
    if request.url.path == "/mcp":
        return 307, {"location": f"http://{request.headers.get('host', '')}/mcp/"}, b""
    return None


def _refuse_preflight(request: Request, _: MutableHeaders) -> Early | None:
    return (401, {"www-authenticate": "Bearer"}, b"") if request.method == "OPTIONS" else None


def _wrong_host(_: Request, headers: MutableHeaders) -> None:
    headers["host"] = "inner.example"


def _interstitial(request: Request, _: MutableHeaders) -> Early | None:
    seen_as_browser = request.headers.get("user-agent", "").startswith("Mozilla/")
    if request.method == "GET" and seen_as_browser and "ngrok-skip-browser-warning" not in request.headers:
        page = b"<!doctype html><title>You are about to visit</title><p>ERR_NGROK_6024"
        return 200, {"content-type": "text/html", "ngrok-error-code": "ERR_NGROK_6024"}, page
    return None


def _wrong_metadata(request: Request, _: MutableHeaders) -> Early | None:
    if not request.url.path.startswith("/.well-known/"):
        return None
    inner = "http://127.0.0.1:8000"
    names = f'{{"resource": "{inner}/mcp", "issuer": "{inner}", "authorization_servers": ["{inner}"]}}'
    head = {"content-type": "application/json", "access-control-allow-origin": request.headers.get("origin", "*")}
    return 200, head, names.encode()


def _limited(request: Request, _: MutableHeaders) -> Early | None:
    return (429, {"retry-after": "7"}, b"slow down") if request.method == "POST" else None


def _small_bodies(request: Request, _: MutableHeaders) -> Early | None:
    size = int(request.headers.get("content-length") or 0)
    return (413, {}, b"too large") if size > 16_384 else None


def _expired(request: Request, headers: MutableHeaders) -> None:
    if "authorization" in headers:
        config = settings.rooted(settings.load(os.environ, ROOT / ".env"), ROOT)
        secret = tokens.read_secret(config.secret_file)
        claims = tokens.mint(secret, subject="yesterday", scope="tool:*", ttl=60).claims
        old = jwt.encode(claims | {"exp": int(time.time()) - 86_400}, secret.key(), algorithm=tokens.ALGORITHM)
        headers["authorization"] = f"Bearer {old}"


DISEASES: dict[str, Disease] = {
    "none": Disease("passes everything on, unchanged"),
    "buffer-sse": Disease("keeps event streams until they end", body=_buffered, holds=True),
    "buffer-get": Disease("keeps the GET stream until it ends; POST streams pass", body=_buffered_get),
    "hold-headers": Disease("keeps the head of a stream until its first event", holds=True, body=_eventful),
    "gzip-stream": Disease("compresses event streams", after=_compress, body=_gzipped),
    "cut": Disease(f"cuts every stream after {CUT_AFTER:.0f} s", body=_cut),
    "drop-expose": Disease("loses Access-Control-Expose-Headers", after=_remove("access-control-expose-headers")),
    "double-origin": Disease("adds a second Access-Control-Allow-Origin", after=_twice),
    "no-cors-on-errors": Disease("gives CORS headers on good answers only", after=_no_cors_on_errors),
    "old-cors-list": Disease("allows the headers of 2025 only", after=_old_list),
    "foreign-allowed": Disease("allows every origin", after=_any_origin, before=_forget("origin")),
    "auth-preflight": Disease("asks preflights for a token", before=_refuse_preflight),
    "redirect-http": Disease("sends /mcp to http://…/mcp/", before=_redirect),
    "strip-authorization": Disease("loses the Authorization header", before=_forget("authorization")),
    "strip-mcp-headers": Disease("loses the Mcp-* headers of requests", before=_forget("mcp-")),
    "strip-last-event-id": Disease("loses the Last-Event-ID header", before=_forget("last-event-id")),
    "drop-session": Disease("loses the Mcp-Session-Id of answers", after=_remove("mcp-session-id")),
    "no-challenge": Disease("loses WWW-Authenticate", after=_remove("www-authenticate")),
    "rewrite-host": Disease("gives the server another Host", before=_wrong_host),
    "interstitial": Disease("shows browsers a page of its own first", before=_interstitial),
    "wrong-metadata": Disease("gives OAuth metadata that name an inner address", before=_wrong_metadata),
    "rate-limit": Disease("answers every POST with 429, unreadable for pages", before=_limited),
    "small-bodies": Disease("refuses bodies over 16 KiB", before=_small_bodies),
    "expired-token": Disease("carries an expired token instead of the given one", before=_expired),
}


class Proxy:
    """The ASGI app: forwards to `upstream` (http://host:port), with one disease."""

    def __init__(self, upstream: str, disease: Disease) -> None:
        self._upstream = upstream
        self._disease = disease
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=5), trust_env=False, limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request, disease = Request(scope, receive), self._disease
        headers = MutableHeaders(scope=scope).mutablecopy()
        for name in HOP_BY_HOP & set(headers):
            del headers[name]
        if disease.before and (early := disease.before(request, headers)):
            status, head, content = early
            await send({"type": "http.response.start", "status": status, "headers": Headers(head).raw})
            await send({"type": "http.response.body", "body": content})
            return
        url = self._upstream + scope["raw_path"].decode() + ("?" + scope["query_string"].decode()).rstrip("?")
        asked = self._client.build_request(scope["method"], url, headers=headers.raw, content=await request.body())
        leaving = asyncio.create_task(_left(receive))
        answering = asyncio.create_task(self._answer(request, asked, send))
        try:
            await asyncio.wait([leaving, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (leaving, answering):
                if not task.done():
                    task.cancel()
        if answering.done() and not answering.cancelled():
            answering.result()

    async def _answer(self, request: Request, asked: httpx2.Request, send: Send) -> None:
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx2.HTTPError as error:
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": f"upstream: {error}".encode()})
            return
        try:
            kept = [(k.lower().encode(), v.encode()) for k, v in answer.headers.multi_items()]
            headers = MutableHeaders(raw=[(k, v) for k, v in kept if k.decode() not in HOP_BY_HOP])
            if self._disease.after:
                self._disease.after(request, answer.status_code, headers)
            head = {"type": "http.response.start", "status": answer.status_code, "headers": headers.raw}
            if not self._disease.holds:
                await send(head)
            chunks = answer.aiter_raw()
            body = self._disease.body(request, headers, chunks) if self._disease.body else chunks
            sent = not self._disease.holds
            async for chunk in body:
                if not sent:
                    sent = True
                    await send(head)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if not sent:
                await send(head)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """Put one disease in front of the local edge until Ctrl-C."""
    width = max(map(len, DISEASES))
    listed = "\n".join(f"  {name:<{width}}  {disease.what}" for name, disease in DISEASES.items())
    about = "Puts a misbehaving proxy in front of the local edge, until Ctrl-C."
    parser = commandline.parser("scripts/break", about, f"example: scripts/break buffer-sse\n\nnames:\n{listed}")
    parser.add_argument("name", choices=list(DISEASES), metavar="NAME", help="what goes wrong")
    parser.add_argument("--port", type=int, default=PORT, help=f"where it listens on 127.0.0.1 ({PORT})")
    # for tests: files of a certificate and its key
    parser.add_argument("--certificate", nargs=2, default=(None, None), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    ours = settings.load(os.environ, ROOT / ".env")
    try:
        # before the URL is told: who reads it may be quick
        listening = socket.create_server(("127.0.0.1", chosen.port))
    except OSError:
        raise Problem(f"Port {chosen.port} cannot be used.", "Choose another: --port 8091", 3) from None
    url = f"http://localhost:{chosen.port}/mcp"
    print(f"{chosen.name}: {DISEASES[chosen.name].what}", file=sys.stderr)
    print(url, flush=True)
    print(
        "Use this URL instead of the edge's, see what happens, then ask:\n"
        f"  ./scripts/doctor {url}\n  http://localhost:{ours.console_port}/#url={url}\nCtrl-C ends it.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    certificate, key = chosen.certificate
    proxy = Proxy(f"http://127.0.0.1:{ours.edge_port}", DISEASES[chosen.name])
    server = uvicorn.Server(uvicorn.Config(
        proxy, log_level="critical", lifespan="off", server_header=False,
        date_header=False, timeout_graceful_shutdown=1, ssl_certfile=certificate, ssl_keyfile=key,
    ))  # fmt: skip
    server.run(sockets=[listening])


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
