"""State that outlives a restart, behind one key-value interface: files by default, Redis when REDIS_URL is set."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from key_value.aio.protocols.key_value import AsyncKeyValue
from key_value.aio.stores.filetree import FileTreeStore

from slipway.errors import Problem

PATIENCE = 4.0  # seconds in which a shared store must answer at start


def open_store(folder: Path, redis_url: str = "") -> AsyncKeyValue:
    """Return the store.

    Args:
        folder: for the files, mode 700; made where it is missing.
        redis_url: redis://… shares the state between replicas; "" means files, for one process.
    """
    if redis_url:
        from key_value.aio.stores.redis import RedisStore

        return RedisStore(url=redis_url)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # the library notes absolute paths beside its data; a container sees the same files under another one
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return FileTreeStore(data_directory=folder / "values", metadata_directory=folder / f"places-{where}")


async def tidy(store: AsyncKeyValue) -> None:
    """Delete what is over; files do not go by themselves."""
    if isinstance(store, FileTreeStore):
        await store.cull()


async def check(redis_url: str) -> None:
    """Find out at start whether a shared store answers.

    Raises:
        Problem: it does not; the URL's password is not repeated.
    """
    if not redis_url:
        return
    try:
        async with asyncio.timeout(PATIENCE):
            await open_store(Path(), redis_url).get("nothing", collection="check")
    except Exception as error:
        where = urlsplit(redis_url)
        raise Problem(
            f"Redis at {where.hostname}:{where.port or 6379} does not answer: {type(error).__name__}.",
            "Start it, or mend REDIS_URL in .env (empty means files, for one server)",
        ) from None
