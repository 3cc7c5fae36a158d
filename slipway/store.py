"""State that outlives a restart, behind one key-value interface: files by default, Redis when REDIS_URL is set.

And what it means that the state is away: a shared store that does not answer is asked by nobody but `watch` until it
is back, so that an outage costs no request more than one wait, and is told once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from slipway import connections
from slipway.connections import PATIENCE
from slipway.errors import Problem
from slipway.files import Damaged, Files

AT_START = 4.0  # seconds in which it must have begun to; in a swarm both start at once
RETRY = 0.2  # seconds
AT_ONCE = 500  # values that are asked for in one round trip: what an answer may take is bounded
LOCK_LIFE = 10.0  # seconds after which the lock of a replica that died is free again
LOCK_LOOK = 0.02  # seconds between two looks at a lock that another replica holds
LOOK = 1.0  # seconds between two looks at whether the store is there, and still the same
SETTLE = 3 * LOOK  # seconds in which every replica has written back what a store forgot
MARK = "slipway-mark"  # tells one life of a Redis from the next: one that restarts empty has another, or none

Result = TypeVar("Result")

log = logging.getLogger("slipway")
_restoring: ContextVar[bool] = ContextVar("restoring", default=False)


class Trouble(Exception):
    """The state cannot be read or written now; nothing was changed. Waiting helps, or the operator must.

    Attributes:
        cause, cure: for people.
        seconds: after which another try makes sense.
    """

    def __init__(self, cause: str, cure: str, seconds: int = 3) -> None:
        super().__init__(f"{cause} {cure}.")
        self.cause = cause
        self.cure = cure
        self.seconds = seconds

    def answer(self) -> JSONResponse:
        """Return the answer for a caller: 503 (RFC 9110 §15.6.4), the sentence, and when to try again."""
        headers = {"retry-after": str(self.seconds), "cache-control": "no-store"}
        return JSONResponse({"error": self.cause, "cure": self.cure}, 503, headers=headers)


class Values(Protocol):
    """What holds the values: Files, or a store of py-key-value-aio."""

    async def get(self, key: str, *, collection: str) -> dict[str, Any] | None:
        """Return a value, or None."""

    async def put(self, key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> Any:
        """Keep a value."""

    async def delete(self, key: str, *, collection: str) -> bool:
        """Delete a value."""


class Store:
    """Values by collection and key, and locks by name. Every method may raise Trouble.

    Attributes:
        shared: whether other processes write to it too.
        away: whether a shared store does not answer. It is asked again every second, by `watch`.
        serves_on: whether to go on meanwhile with what this process knows.
        on_return: called with whether the store lost its memory, once it can be written again.
        say: tells the operator.
    """

    def __init__(
        self, values: Values, redis: Any = None, *, shared: bool = False, where: str = "", serves_on: bool = False
    ) -> None:
        """Take the values' store, and the Redis client whose locks hold over replicas, if there is one."""
        self._values = values
        self._redis = redis
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._where = where
        of_redis = [connections.error()] if redis else []
        self._failures: tuple[type[Exception], ...] = (OSError, TimeoutError, *of_redis)
        self._mark = ""
        self._connections = 0  # made so far
        self._recognised = 0  # so many of them when we last began to look whose they are, and knew
        self._lost = False
        self._since = 0.0
        self._unwritable = ""
        self._known_damage: set[str] = set()
        self.shared = shared or redis is not None
        self.away = False
        self.serves_on = serves_on
        self.on_return: list[Callable[[bool], Awaitable[None]]] = []
        self.say: Callable[[str], None] = log.warning

    # --- values

    async def get(self, key: str, *, collection: str, instead: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return a value, or None.

        Args:
            instead: what to take in place of a value that is there and cannot be read.
        """
        try:
            return await self._reached(lambda: self._values.get(key, collection=collection))
        except (Damaged, ValueError, TypeError, KeyError) as error:
            self._damaged(f"{collection}/{key}", error)
            return instead

    async def get_many(
        self, keys: list[str], *, collection: str, instead: dict[str, Any] | None = None
    ) -> list[dict[str, Any] | None]:
        """Return values as `get` does, in their order; over Redis hundreds in one round trip."""
        found: list[dict[str, Any] | None] = []
        many: Any = self._values
        for part in (keys[first : first + AT_ONCE] for first in range(0, len(keys), AT_ONCE)):
            try:
                if self._redis:
                    found += await self._reached(functools.partial(many.get_many, part, collection=collection))
                    continue
            except (ValueError, TypeError, KeyError):
                pass  # which of them it is, is found out one by one
            found += [await self.get(key, collection=collection, instead=instead) for key in part]
        return found

    async def put(self, key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> None:
        """Keep a value, for `ttl` seconds or until it is deleted. When this returns, a kill loses nothing."""
        try:
            await self._reached(lambda: self._values.put(key, value, collection=collection, ttl=ttl))
        except Trouble as trouble:
            if not self.away and not self._unwritable:
                self._unwritable = trouble.cause
                self.say(f"{trouble.cause} What is known goes on; what is new is refused until it can be written")
            raise

    async def delete(self, key: str, *, collection: str) -> bool:
        """Delete a value. Returns: whether there was one; of two who delete, one is told so."""
        return await self._reached(lambda: self._values.delete(key, collection=collection))

    async def keys(self, collection: str) -> list[str]:
        """Return all keys of a collection, or [] where the store cannot tell."""
        if isinstance(self._values, Files):
            files = self._values
            return await self._reached(lambda: files.keys(collection))
        return []

    @contextlib.asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """Hold a lock, in this process and over replicas. It is not reentrant."""
        async with self._locks[name]:
            if not self._redis:
                yield
                return
            far = self._redis.lock(f"slipway-lock:{name}", timeout=LOCK_LIFE, sleep=LOCK_LOOK)
            # a replica may hold it, rightly, for longer than an answer may take
            if not await self._reached(lambda: far.acquire(blocking_timeout=LOCK_LIFE), LOCK_LIFE + PATIENCE):
                raise self._trouble("a lock is not given back")
            try:
                yield
            finally:
                # what was to be done is done or was refused; a lock that cannot be given back ends by itself
                with contextlib.suppress(*self._failures):
                    async with asyncio.timeout(PATIENCE):
                        await far.release()

    async def tidy(self) -> None:
        """Delete what is over; files do not go by themselves."""
        if isinstance(self._values, Files):
            with contextlib.suppress(OSError):
                await self._values.cull()

    # --- away

    async def watch(self) -> None:
        """Look, as long as this runs, whether the store is there and remembers; when it is back, call `on_return`."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                if self._redis:
                    await self._look()
                if self._unwritable:
                    await self._try_to_write()
            except Trouble:
                pass
            except Exception:
                # nobody else brings the store back: with this task, every request would be refused until a restart
                log.exception("Looking after the state failed; the next look is in a second")

    async def _reached(self, ask: Callable[[], Awaitable[Result]], patience: float = PATIENCE) -> Result:
        """Await an answer of the store. Raises: Trouble, within bounded time."""
        if self.away and not _restoring.get():
            raise self._trouble()
        try:
            async with asyncio.timeout(patience if self._redis else None):
                answer = await ask()
                # not only who connected looks: the answer of anybody may have come over a new connection
                if self._recognised < self._connections and not _restoring.get():
                    await self._recognise()
        except self._failures as error:
            self._fell(error)
            answered = bool(self._redis) and connections.is_an_answer(error)
            raise self._trouble(_words(error), answered=answered) from None
        if self._lost and not _restoring.get():
            raise self._trouble("it came back without its memory")
        return answer

    def _fell(self, error: Exception) -> None:
        """Note that a shared store does not answer; an answer that is an error is none of that."""
        if not self._redis or self.away or connections.is_an_answer(error):
            return
        self.away, self._since = True, time.monotonic()
        goes_on = (
            "serving on with what this server knows: revocations made elsewhere are not seen meanwhile"
            if self.serves_on
            else "requests get 503 until it does (SLIPWAY_REDIS_AWAY=refuse)"
        )
        self.say(f"Redis at {self._where} does not answer ({_words(error)}): {goes_on}")

    async def connected(self, connection: Any) -> None:
        """Set a new connection up, and remember to look whose it is."""
        await connection.on_connect()
        self._connections += 1

    async def _recognise(self) -> None:
        """Find out whether the Redis that we are connected to is the one that we knew."""
        made = self._connections
        await self._redis.set(MARK, secrets.token_hex(8), nx=True)
        mark = str(await self._redis.get(MARK))
        if self._mark and mark != self._mark and not self._lost:
            self._lost, self.away, self._since = True, True, self._since or time.monotonic()
        self._mark = mark
        self._recognised = max(self._recognised, made)

    async def _look(self) -> None:
        passed = _restoring.set(True)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._recognise()
        except self._failures as error:
            self._fell(error)
            return
        finally:
            _restoring.reset(passed)
        if self.away:
            await self._returned()

    async def _returned(self) -> None:
        """Write back what the store missed, and open again."""
        lost = self._lost
        passed = _restoring.set(True)
        try:
            for call in self.on_return:
                await call(lost)
        finally:
            _restoring.reset(passed)
        if lost:
            # another replica may know of revocations that we do not
            await asyncio.sleep(SETTLE)
        away = time.monotonic() - self._since
        self.away, self._lost, self._since, self._unwritable = False, False, 0.0, ""
        self.say(f"Redis at {self._where} answers again after {away:.0f} s")
        if lost:
            self.say(
                "Redis came back WITHOUT its memory. What the servers knew of revocations is written back; sign-ins, "
                "invites and names are lost. Run Redis with --appendonly yes"
            )

    async def _try_to_write(self) -> None:
        await self._reached(lambda: self._values.put("probe", {}, collection="check", ttl=60))
        for call in self.on_return:
            await call(False)
        self._unwritable = ""
        self.say("the state can be written again")

    def _trouble(self, why: str = "", *, answered: bool = False) -> Trouble:
        if self._redis:
            what = "answers with an error" if answered else "does not answer"
            cause = f"The shared state (Redis) {what}{f': {why}' if why else ''}."
            return Trouble(cause, "Wait, then try again. The operator can look after Redis at REDIS_URL")
        return Trouble(
            f"The state on the disk cannot be used: {why}.", "The operator can make room where SLIPWAY_STATE is", 30
        )

    def _damaged(self, what: str, error: Exception) -> None:
        if what not in self._known_damage:
            self._known_damage.add(what)
            self.say(f"{what} of the state is damaged and cannot be read ({type(error).__name__})")


def _words(error: Exception) -> str:
    if str(error).isprintable() and type(error).__name__ in ("ResponseError", "OutOfMemoryError", "ReadOnlyError"):
        return str(error).split(".")[0][:80]
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def open_store(folder: Path, redis_url: str = "", *, serves_on: bool = False) -> Store:
    """Return the store.

    Args:
        folder: for the files, mode 700; made where it is missing.
        redis_url: redis://… shares the state between replicas; "" means files, for one process.
        serves_on: what to do while Redis is away: go on with what this process knows, or refuse.
    """
    if redis_url:
        from key_value.aio.stores.redis import RedisStore
        from redis.asyncio import Redis

        where = urlsplit(redis_url)
        pool = connections.pool(redis_url, decode_responses=True)
        client = Redis.from_pool(pool)
        named = f"{where.hostname}:{where.port or 6379}"
        found = Store(RedisStore(client=client), client, where=named, serves_on=serves_on)
        pool.connection_kwargs["redis_connect_func"] = found.connected
        return found
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Store(Files(folder / "values"))


async def check(redis_url: str) -> None:
    """Find out at start whether a shared store answers.

    Raises:
        Problem: it does not; the URL's password is not repeated.
    """
    if not redis_url:
        return
    found, why = open_store(Path(), redis_url), "timed out"
    found.say = log.debug
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(AT_START):
            while True:
                try:
                    await found.get("nothing", collection="check")
                except Trouble as trouble:
                    why, found.away = trouble.cause, False
                    await asyncio.sleep(RETRY)
                else:
                    return
    where = urlsplit(redis_url)
    raise Problem(
        f"Redis at {where.hostname}:{where.port or 6379} does not answer: {why}",
        "Start it (ours: docker compose --profile scale up redis), or mend REDIS_URL in .env (empty: files)",
    )


async def claim(folder: Path) -> IO[bytes]:
    """Become the only process that keeps its state in the files of a folder.

    Returns: what holds the claim while it is open.
    Raises:
        Problem: another process has it; each would overlook what the other revokes.
    """
    held = _open_claim(folder)
    with contextlib.suppress(TimeoutError):
        # one that is just ending may still have it
        async with asyncio.timeout(AT_START):
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(LOCK_LOOK)
                except OSError:
                    return held  # a file system that knows no locks
                else:
                    return held
    held.close()
    raise Problem(
        "Another server keeps its state in the same files; with files there can be one.",
        "For several: REDIS_URL=redis://redis:6379/0 in .env, then docker compose --profile scale up",
    )


def _open_claim(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return (folder / "claim").open("wb")
