"""Puts a FastMCP server behind our guards and routes: one ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread
import httpx2
from fastmcp import FastMCP
from fastmcp.server.event_store import EventStore
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from slipway import knocks, settings, store, telemetry, tokens
from slipway.audit import Audit
from slipway.calls import Calls, Rule
from slipway.files import Watched
from slipway.guards import Bounds, HostGuard, public_host
from slipway.identity.admin import Admin
from slipway.identity.admission import Admission
from slipway.identity.consent import Consent
from slipway.identity.grants import Grants
from slipway.identity.invites import Invites
from slipway.identity.join import Join
from slipway.identity.ledger import Ledger
from slipway.identity.names import Names
from slipway.identity.oauth import SlipwayOAuth
from slipway.identity.pages import Pages
from slipway.identity.verifier import Challenge, SlipwayTokens, ToolScopes
from slipway.lab.budget import Budget, plan
from slipway.lab.feed import Feed
from slipway.lab.routes import Instructor, board
from slipway.lab.seats import Labs
from slipway.lan import note
from slipway.lan.note import Lan
from slipway.limits import Allowance, Limits, PerIdentity, Sessions
from slipway.listing import OneTool
from slipway.metrics import Metrics
from slipway.sessions import AutoSessions
from slipway.streams import BoundedEvents, FirstByte

MCP_PATH = "/mcp"
_RAW_PATH = MCP_PATH.encode()
_ASCII = "".join(map(chr, range(33, 127)))
MAX_EVENTS_PER_STREAM = 1000
THREADS = 256
TIDY_EVERY = 600.0  # seconds


def build(mcp: FastMCP[Any], config: settings.Settings, secret: tokens.Secret) -> ASGIApp:
    """Return the ASGI app that serves `mcp` under /mcp, with /healthz, /readyz and /livez beside it.

    Args:
        mcp: the server; its auth and middleware are set here.
        config: the settings.
        secret: verifies the tokens.
    """
    redis_url = config.redis_url.get_secret_value()
    log = knocks.open_log(config.state / "log" / "server.jsonl", also_stdout=True)
    state = store.open_store(config.state / "data" / "identity", redis_url, serves_on=config.redis_away == "serve")
    state.say = functools.partial(knocks.announce, log)
    ledger = Ledger(state)
    invites = Invites(state, secret, redis_url)
    admin = Admin(secret, ledger, invites, max_ttl=config.max_ttl)
    grants = Grants(state, ledger)
    oauth = SlipwayOAuth(SlipwayTokens(secret, ledger), secret, grants)
    look, who = Pages(secret), Names(ledger, grants)
    labs = Labs(state, invites, ledger, who)
    lan = note.watched(config.state)
    hosts = _Hosts(config, lan)
    feed = Feed(labs, ledger, state, Budget(plan(config.plan)), config.state / "log", hosts.public_url)
    admission = Admission(invites, who, labs.seat)
    consent = Consent(look, oauth, grants, admission)
    join = Join(look, grants, admission, ledger, secret, feed.progress, lan)
    instructor = Instructor(secret, labs, feed, max_ttl=config.max_ttl)
    mcp.auth = None if config.anonymous else oauth
    idle = tokens.parse_ttl(config.session_idle)
    sessions = Sessions(idle)
    limits = Limits(_allowance(config), redis_url, away=lambda: state.away, own=labs.limits_of)
    metrics = _metrics(config, state, sessions)
    # in front of a target's own: what those answer by themselves must be allowed, and counts, too
    scopes = ToolScopes(anonymous=config.anonymous)
    mcp.middleware[:0] = [_calls(config, limits, metrics, scopes.may_call), scopes]
    mcp.middleware.append(OneTool())
    doors = [] if config.anonymous else [Middleware(Challenge)]

    def make(*, stateless: bool) -> Any:
        made = mcp.http_app(
            path=MCP_PATH,
            stateless_http=stateless,
            json_response=stateless and config.answers == "json",
            event_store=None if stateless else EventStore(BoundedEvents(), MAX_EVENTS_PER_STREAM, ttl=idle),
            middleware=[*doors, Middleware(PerIdentity, limits, sessions)],
            session_idle_timeout=idle,
        )
        made.add_exception_handler(store.Trouble, _told)
        return made

    kinds = {"stateful": [False], "stateless": [True], "auto": [False, True]}[config.sessions]
    apps = [make(stateless=stateless) for stateless in kinds]
    endpoint: ASGIApp = AutoSessions(*apps) if len(apps) == 2 else apps[0]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            # tools that are plain functions wait in threads; those of one subject must not use them up
            anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
            await _load_calls()  # before tracing begins: it is nobody's call
            collector, wants = config.otlp_endpoint, config.otlp_headers.get_secret_value()
            await stack.enter_async_context(telemetry.tracing(collector, wants))
            await ledger.load()
            for work in (_tidy(state), state.watch(), feed.run()):
                stack.callback(asyncio.create_task(work).cancel)
            for app in apps:
                await stack.enter_async_context(app.lifespan(app))
            await _warm_up(whole, secret)
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await ledger.noted()

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    was_ready = False

    async def asked() -> int:
        nonlocal was_ready
        # a purely stateful app lists nothing without a session, so there the opening of one is the proof
        status = await _ask(
            whole, secret, *(["initialize", _HELLO] if config.sessions == "stateful" else ["tools/list"])
        )
        was_ready = was_ready or status == 200
        return status

    async def readyz(_: Request) -> Response:
        status = await asked()
        return JSONResponse({"ready": status == 200, "answer": status}, 200 if status == 200 else 503)

    async def livez(_: Request) -> Response:
        # who starts us anew for what is not our fault, an absent Redis, only adds our own absence to it
        status = await asked()
        alive = status == 200 or (was_ready and state.away)
        return JSONResponse({"alive": alive, "answer": status}, 200 if alive else 503)

    pages = [] if config.anonymous else [*consent.routes(), *join.routes()]
    probes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/livez", livez)]
    lab_routes = [*instructor.routes(), board()]
    routes = [*probes, *admin.routes(), *lab_routes, *pages, Mount("/", endpoint)]
    told = {store.Trouble: _told}
    rest = Starlette(routes=routes, lifespan=lifespan, exception_handlers=told)
    inner = FirstByte(Straight(endpoint, rest))
    guarded = telemetry.Telemetry(HostGuard(inner, hosts), metrics)
    whole: ASGIApp = Audit(Bounds(guarded, config.requests_at_once), log, metrics, settings.size(config.max_body))
    return whole


def _metrics(config: settings.Settings, state: store.Store, sessions: Sessions) -> Metrics:
    metrics = Metrics()
    metrics.watch("slipway_sessions", "Sessions that are open.", lambda: len(sessions))
    metrics.watch("slipway_tunnel_up", "Whether a public URL is open.", lambda: config.public_url_file.exists())
    if config.redis_url.get_secret_value():
        metrics.watch("slipway_redis_up", "Whether Redis answers.", lambda: not state.away)
    return metrics


def _allowance(config: settings.Settings) -> Allowance:
    return Allowance(**{name: getattr(config, name) for name in tokens.LIMITS})


def _calls(config: settings.Settings, limits: Limits, metrics: Metrics, may_call: Callable[[str], None]) -> Calls:
    def seconds(text: str) -> float:
        return 0.0 if text == "0" else tokens.parse_ttl(text)

    rules = {
        name: Rule(rule.at_once, seconds(rule.timeout) if rule.timeout else None)
        for name, rule in settings.tool_bounds(config.tool_limits).items()
    }
    return Calls(
        limits, rules, metrics, may_call, timeout=seconds(config.tool_timeout),
        max_answer=settings.size(config.max_answer), show_errors=config.show_errors, payloads=config.audit_payloads,
    )  # fmt: skip


async def _told(request: Request, error: Exception) -> Response:
    """Answer a request that the state's trouble ends; to people in a sentence, without the braces."""
    assert isinstance(error, store.Trouble)  # noqa: S101 it is registered for nothing else
    knocks.note(request.scope, error.cause)
    answer = error.answer()
    if "text/html" in request.headers.get("accept", ""):
        return PlainTextResponse(f"{error}\n", 503, headers={"retry-after": str(error.seconds)})
    return answer


async def _tidy(state: store.Store) -> None:
    """Delete what is over, now and again: what strangers began and nobody finished must not fill the disk."""
    while True:
        await state.tidy()
        await asyncio.sleep(TIDY_EVERY)


class _Hosts:
    """The host names that are ours at this moment: the setting's, the open tunnel's, and the local network's."""

    def __init__(self, config: settings.Settings, lan: Callable[[], Lan | None]) -> None:
        self._lan = lan
        self._set = [host for host in config.allowed_hosts.split(",") if host]
        self._tunnel = Watched(config.public_url_file, functools.partial(_tunnel, config.public_url_file))

    def public_url(self) -> str:
        """Return the open tunnel's URL, or ""."""
        return self._tunnel()[0]

    def __call__(self) -> list[str]:
        (_, host), lan = self._tunnel(), self._lan()
        return [*self._set, *([host] if host else []), *([lan.address] if lan else [])]


def _tunnel(file: Path) -> tuple[str, str]:
    """Return URL and host of the open tunnel, or ("", "")."""
    try:
        url = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        url = ""
    return url, public_host(url)


class Straight:
    """Takes /mcp past the routing of the rest: it costs each call time, and each open stream 5 KiB.

    And /mcp/ is /mcp here: a redirect would lose the body in curl and the token behind a proxy.
    """

    def __init__(self, endpoint: ASGIApp, rest: ASGIApp) -> None:
        self._endpoint = endpoint
        self._rest = rest

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand on, with the one path, and a query in ASCII: Starlette takes all other bytes for UTF-8."""
        if scope["type"] != "http":
            return self._rest(scope, receive, send)
        if not scope["query_string"].isascii():
            scope["query_string"] = quote(scope["query_string"], safe=_ASCII).encode()
        if scope["path"] not in (MCP_PATH, MCP_PATH + "/"):
            return self._rest(scope, receive, send)
        scope["path"], scope["raw_path"] = MCP_PATH, _RAW_PATH
        return self._endpoint(scope, receive, send)


_HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "slipway", "version": "0"}}


async def _ask(app: ASGIApp, secret: tokens.Secret, method: str, params: dict[str, Any] | None = None) -> int:
    """Send one JSON-RPC request through the whole app, in process. Returns: the HTTP status."""
    token = tokens.mint(secret, subject="slipway", scope="tool:*", ttl=60, client_id="self").token

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        scope["slipway.quiet"] = True
        await app(scope, receive, send)

    headers = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream"}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
    transport = httpx2.ASGITransport(app=quiet)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        answer = await client.post(MCP_PATH, json=message)
        if session := answer.headers.get("mcp-session-id"):
            await client.delete(MCP_PATH, headers={"mcp-session-id": session})
        return answer.status_code


async def _load_calls() -> None:
    """Load what a call that succeeds needs; none of the target's own tools may be called for it."""

    async def nothing() -> str:
        return ""

    tools: FastMCP[Any] = FastMCP("warm-up")
    tools.tool(nothing)
    await tools.call_tool("nothing")


async def _warm_up(app: ASGIApp, secret: tokens.Secret) -> None:
    """Load what FastMCP loads at the first call, so that no user waits for it: session, list, call, both paths."""
    await _ask(app, secret, "initialize", _HELLO)
    await _ask(app, secret, "tools/list")
    await _ask(app, secret, "tools/call", {"name": "slipway-warm-up", "arguments": {}})
