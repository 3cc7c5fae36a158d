"""State that outlives a restart, behind one key-value interface: files by default, Redis when REDIS_URL is set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from key_value.aio.protocols.key_value import AsyncKeyValue
from key_value.aio.stores.filetree import FileTreeStore


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
