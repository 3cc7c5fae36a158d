"""How much one identity may do, a second, a minute, a day and at once: counted here, or in Redis for all replicas.

Who is over a limit is told which one and when to go on; nobody else notices.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipway.counting import Limiter, network

PATIENCE = 0.5  # seconds in which the shared counters must answer
LISTENING = "subscriptions/listen"  # the newest era's stream (MCP 2026-07-28, Subscriptions)
MAX_HELD = 500  # refusals of one identity that are answered late
HELD = 1.0  # seconds at most
MAX_SESSIONS = 5000  # of everybody
_WORDS = {"calls_burst": "a second", "calls_per_minute": "a minute", "calls_per_day": "a day"}


@dataclass(frozen=True)
class Allowance:
    """What one identity may do; 0 means as much as it likes. The names are those of a token's `limits` claim."""

    calls_burst: int = 0  # messages within one second
    calls_per_minute: int = 0
    calls_per_day: int = 0
    calls_at_once: int = 0
    streams_at_once: int = 0
    sessions_at_once: int = 0


@dataclass(frozen=True)
class Identity:
    """Who calls: one subject over all its tokens, or one token that has limits of its own."""

    key: str
    allowed: Allowance


@dataclass(frozen=True)
class Over:
    """A limit that is reached."""

    limit: str
    wait: int  # seconds, at least 1
    text: str


class Limits:
    """The counters of everybody."""

    def __init__(
        self, default: Allowance, redis_url: str = "", *, away: Callable[[], bool] = lambda: False,
        own: Callable[[str], Mapping[str, int]] = lambda _: {},
    ) -> None:  # fmt: skip
        """Take what a token without limits of its own may do.

        Args:
            default: that.
            redis_url: redis://… counts rates over replicas.
            away: whether Redis is known not to answer, so that nobody waits for it.
            own: what differs for a subject over all its tokens, by the names of Allowance.
        """
        self._own = own
        self._default = default
        self._limiter = Limiter(SlidingWindowCounterRateLimiter, redis_url, away, PATIENCE)
        self.taken: Counter[tuple[str, str]] = Counter()  # (what, whose) → how many at this moment

    def identity(self, claims: dict[str, Any] | None, address: str = "") -> Identity | None:
        """Return who calls, or None for our own probes, which no limit holds.

        Args:
            claims: of the token; None where nobody needs one, then the address is who calls.
            address: the client's.
        """
        if claims is None:
            return Identity(f"address {network(address)}", self._default)
        if claims.get("client_id") == "self":
            return None
        own = claims.get("limits")
        if own:
            return Identity(f"token {claims['jti']}", replace(self._default, **own))
        own = self._own(claims["sub"])
        return Identity(f"subject {claims['sub']}", replace(self._default, **own) if own else self._default)

    async def count(self, who: Identity) -> Over | None:
        """Count a message. Returns: the limit that it is over, if one is."""
        for name, item in _items(who.allowed):
            # 0 if it is within the limit
            if wait := await self._limiter.ask(functools.partial(_count, item=item, key=who.key)):
                words = f"{item.amount} messages {_WORDS[name]}"
                return Over(name, wait, f"This token may send {words}. Wait {wait} s, then go on.")
        return None

    def take(self, what: str, key: str, most: int, whose: str = "This token") -> Over | None:
        """Take one of so many places; whoever got one gives it back. Returns: the limit, if none is free."""
        if most and self.taken[what, key] >= most:
            name = what.partition("_")[0]
            return Over(what, 1, f"{whose} has {most} {name} open, which is the most. Let one end, then try again.")
        self.taken[what, key] += 1
        return None

    def give_back(self, what: str, key: str) -> None:
        """Give a place back."""
        self.taken[what, key] -= 1
        if self.taken[what, key] <= 0:
            del self.taken[what, key]


@functools.lru_cache(1000)
def _items(allowed: Allowance) -> list[tuple[str, RateLimitItem]]:
    """Return what is counted, by its name."""
    kinds: list[tuple[str, type[RateLimitItem]]] = [
        ("calls_burst", RateLimitItemPerSecond), ("calls_per_minute", RateLimitItemPerMinute),
        ("calls_per_day", RateLimitItemPerDay),
    ]  # fmt: skip
    return [(name, kind(getattr(allowed, name))) for name, kind in kinds if getattr(allowed, name)]


async def _count(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, key: str) -> int:
    if await limiter.hit(item, key):
        return 0
    stats = await limiter.get_window_stats(item, key)
    return max(1, math.ceil(stats.reset_time - time.time()))


@dataclass
class _Session:
    """An open session: whose, since when nobody uses it, and what it takes to end it."""

    who: str
    user: Any
    auth: Any
    busy: int = 0
    since: float = 0.0


class Sessions:
    """Which sessions are open. The SDK ends idle ones; one too many ends the one that was longest unused."""

    def __init__(self, idle: float) -> None:
        """Take the seconds after which the SDK ends an unused session."""
        self._idle = idle
        self._open: OrderedDict[str, _Session] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        """Return how many are open, of everybody."""
        self._forget_idle()
        return len(self._open)

    def _forget_idle(self) -> None:
        over = time.monotonic() - self._idle
        for name in [name for name, each in self._open.items() if not each.busy and each.since < over]:
            del self._open[name]

    def opened(self, name: str, who: str, scope: Scope) -> None:
        """Note a new session."""
        self._open[name] = _Session(who, scope.get("user"), scope.get("auth"), since=time.monotonic())

    def used(self, name: str, change: int) -> None:
        """Note that a request of a session begins (1) or has ended (-1)."""
        if found := self._open.get(name):
            found.busy += change
            found.since = time.monotonic()
            self._open.move_to_end(name)

    def ended(self, name: str) -> None:
        """Forget one."""
        self._open.pop(name, None)

    def too_many(self, who: str, most: int) -> list[tuple[str, Scope]]:
        """Return the sessions to end: (name, what its owner's requests carry)."""
        own = [name for name, each in self._open.items() if each.who == who]
        spare = own[: max(0, len(own) - most)] if most else []
        everybody = list(self._open)[: max(0, len(self._open) - MAX_SESSIONS)]
        names = dict.fromkeys([*spare, *everybody])
        return [(name, {"user": self._open[name].user, "auth": self._open[name].auth}) for name in names]


class PerIdentity:
    """Holds every identity to its allowance: 429 with Retry-After (RFC 6585 §4) and a sentence to act on.

    Runs behind authentication. Refusals are held back for up to a second: a client that floods and waits for each
    answer takes no time from the others.
    """

    def __init__(self, app: ASGIApp, limits: Limits, sessions: Sessions) -> None:
        """Take the app, and the counters, which several apps share."""
        self._app = app
        self._limits = limits
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 429 or hand on."""
        if scope["type"] != "http" or scope["path"] != "/mcp":
            return await self._app(scope, receive, send)
        user = scope.get("user")
        claims = getattr(user.access_token, "claims", {}) if isinstance(user, AuthenticatedUser) else None
        who = self._limits.identity(claims, (scope.get("client") or ("",))[0])
        if who is None:
            return await self._app(scope, receive, send)
        body = scope["state"]["knock"].body
        if scope["method"] == "POST" and not body.counted:
            # where sessions are "auto", a request may be shown to two apps
            body.counted = True
            if over := await self._limits.count(who):
                return await self._refuse(scope, send, who, over)
        method = body.message().get("method")
        streams = scope["method"] == "GET" or method == LISTENING
        if streams and (over := self._limits.take("streams_at_once", who.key, who.allowed.streams_at_once)):
            return await self._refuse(scope, send, who, over)
        named = Headers(raw=scope["headers"]).get("mcp-session-id", "")
        watching = _Watching(self, scope, send, who, named)
        self._sessions.used(named, 1)
        try:
            await self._app(scope, receive, watching)
        finally:
            if streams:
                self._limits.give_back("streams_at_once", who.key)
            self._sessions.used(named or watching.opened, -1)
            if watching.deleted:
                self._sessions.ended(named)

    async def opened(self, name: str, scope: Scope, who: Identity) -> None:
        """Note a new session, and end what is one too many by it."""
        self._sessions.opened(name, who.key, scope)
        self._sessions.used(name, 1)
        for name, owner in self._sessions.too_many(who.key, who.allowed.sessions_at_once):
            self._sessions.ended(name)
            await self._end({**scope, **owner}, name)

    async def _end(self, scope: Scope, name: str) -> None:
        """End a session as its owner would (MCP 2025-11-25, Transports, Session Management)."""

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_: Message) -> None:
            pass

        # who it is stands in the scope; FastMCP only asks whether there is a header
        headers = [(b"mcp-session-id", name.encode()), (b"authorization", b"Bearer -"), (b"accept", b"*/*")]
        await self._app({**scope, "method": "DELETE", "headers": headers}, receive, send)

    async def _refuse(self, scope: Scope, send: Send, who: Identity, over: Over) -> None:
        knock = scope["state"]["knock"]
        body = knock.body
        knock.reason, knock.limit = f"over the limit: {over.text}", over.limit
        request = body.message().get("id")
        body.forget()  # many may wait here
        if self._limits.taken["held", who.key] < MAX_HELD:
            self._limits.take("held", who.key, 0)
            try:
                await asyncio.sleep(min(over.wait, HELD))
            finally:
                self._limits.give_back("held", who.key)
        error = {"code": -32000, "message": over.text, "data": {"limit": over.limit, "retry_after": over.wait}}
        text = json.dumps({"jsonrpc": "2.0", "id": request, "error": error}).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(text)).encode()),
            (b"retry-after", str(over.wait).encode()), (b"cache-control", b"no-store"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": text})


class _Watching:
    """A `send` that learns from the answer which session was opened or ended; no function, see sessions._Replay."""

    __slots__ = ("_named", "_room", "_scope", "_send", "_who", "deleted", "opened")

    def __init__(self, room: PerIdentity, scope: Scope, send: Send, who: Identity, named: str) -> None:
        self._room = room
        self._scope = scope
        self._send = send
        self._who = who
        self._named = named
        self.opened = ""
        self.deleted = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self.deleted = self._scope["method"] == "DELETE"
            opened = "" if self._named else Headers(raw=message["headers"]).get("mcp-session-id", "")
            if opened:
                self.opened = opened
                await self._room.opened(opened, self._scope, self._who)
        await self._send(message)
