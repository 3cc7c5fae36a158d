"""State that outlives a restart, behind one key-value interface: files by default, Redis when REDIS_URL is set."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from key_value.aio.protocols.key_value import AsyncKeyValue
from key_value.aio.stores.filetree import FileTreeStore

from slipway.errors import Problem

PATIENCE = 4.0  # seconds in which a shared store must answer at start
RETRY = 0.2  # seconds
LOCK_LIFE = 10.0  # seconds after which the lock of a replica that died is free again
LOCK_LOOK = 0.02  # seconds between two looks at a lock that another replica holds


class Store:
    """Values by collection and key, and locks by name.

    Attributes:
        shared: whether other processes write to it too.
    """

    def __init__(self, values: AsyncKeyValue, redis: Any = None, *, shared: bool = False) -> None:
        """Take the values' store, and the Redis client whose locks hold over replicas, if there is one."""
        self._values = values
        self._redis = redis
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.shared = shared or redis is not None

    async def get(self, key: str, *, collection: str) -> dict[str, Any] | None:
        """Return a value, or None."""
        return await self._values.get(key, collection=collection)

    async def put(self, key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> None:
        """Keep a value, for `ttl` seconds or until it is deleted."""
        await self._values.put(key, value, collection=collection, ttl=ttl)

    async def delete(self, key: str, *, collection: str) -> bool:
        """Delete a value. Returns: whether there was one; of two who delete, one is told so."""
        return await self._values.delete(key, collection=collection)

    @contextlib.asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """Hold a lock, in this process and over replicas. It is not reentrant."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._locks[name])
            if self._redis:
                far = self._redis.lock(f"slipway-lock:{name}", timeout=LOCK_LIFE, sleep=LOCK_LOOK)
                await stack.enter_async_context(far)
            yield

    async def tidy(self) -> None:
        """Delete what is over; files do not go by themselves."""
        if isinstance(self._values, FileTreeStore):
            await self._values.cull()


def open_store(folder: Path, redis_url: str = "") -> Store:
    """Return the store.

    Args:
        folder: for the files, mode 700; made where it is missing.
        redis_url: redis://… shares the state between replicas; "" means files, for one process.
    """
    if redis_url:
        from key_value.aio.stores.redis import RedisStore
        from redis.asyncio import Redis

        client = Redis.from_url(redis_url, decode_responses=True)
        return Store(RedisStore(client=client), client)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # the library notes absolute paths beside its data; a container sees the same files under another one
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return Store(FileTreeStore(data_directory=folder / "values", metadata_directory=folder / f"places-{where}"))


async def check(redis_url: str) -> None:
    """Find out at start whether a shared store answers.

    Raises:
        Problem: it does not; the URL's password is not repeated.
    """
    if not redis_url:
        return
    state, failed = open_store(Path(), redis_url), "TimeoutError"
    with contextlib.suppress(TimeoutError):
        # in a swarm both start at once
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await state.get("nothing", collection="check")
                except Exception as error:
                    failed = type(error).__name__
                    await asyncio.sleep(RETRY)
                else:
                    return
    where = urlsplit(redis_url)
    raise Problem(
        f"Redis at {where.hostname}:{where.port or 6379} does not answer: {failed}.",
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
        async with asyncio.timeout(PATIENCE):
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
