"""Values as files, one each, written whole or not at all: the state of one server, readable after any kind of end.

And what one file holds while another process changes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

_PLAIN = re.compile(r"[A-Za-z0-9_]{1,150}")
T = TypeVar("T")
_LEFT = 60.0  # seconds after which a half-written file is nobody's any more


class Damaged(Exception):
    """There is a value, and it cannot be read: half a file, an empty one, or something else under its name."""


class Files:
    """A folder for each collection, a JSON file of mode 600 for each key.

    Work is done on threads: a disk may be slow, and the event loop is everybody's.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made with the first value."""
        self._folder = folder

    async def get(self, key: str, *, collection: str) -> dict[str, Any] | None:
        """Return a value, or None.

        Raises:
            Damaged: its file cannot be read. OSError: the disk cannot.
        """
        return await asyncio.to_thread(_read, self._path(collection, key))

    async def put(self, key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> None:
        """Keep a value; it is on the disk when this returns, and the one before is there until then.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        content: dict[str, Any] = {"version": 1, "key": key, "value": value}
        if ttl is not None:
            content["expires_at"] = (datetime.now(UTC) + timedelta(seconds=ttl)).isoformat()
        await asyncio.to_thread(_keep, self._path(collection, key), json.dumps(content))

    async def delete(self, key: str, *, collection: str) -> bool:
        """Delete a value. Returns: whether there was one."""
        try:
            await asyncio.to_thread(self._path(collection, key).unlink)
        except FileNotFoundError:
            return False
        return True

    async def keys(self, collection: str) -> list[str]:
        """Return the keys that have a file, those of damaged ones too."""
        folder = self._folder / collection
        return await asyncio.to_thread(lambda: [_key(path) for path in sorted(folder.glob("*.json"))])

    async def cull(self) -> None:
        """Delete what is over, and what a process that was killed left half written."""
        await asyncio.to_thread(self._cull)

    def _cull(self) -> None:
        for path in self._folder.glob("*/*.json"):
            with contextlib.suppress(Damaged, OSError):
                if _content(path) is None:
                    path.unlink()
        for path in self._folder.glob("*/*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT:
                    path.unlink()

    def _path(self, collection: str, key: str) -> Path:
        plain = key if _PLAIN.fullmatch(key) else f"-{hashlib.sha256(key.encode()).hexdigest()}"
        return self._folder / collection / f"{plain}.json"


def _key(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(path.read_bytes())["key"])
    return path.stem


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _content(path)
    except FileNotFoundError:
        return None


def _content(path: Path) -> dict[str, Any] | None:
    """Return what a file holds, or None where that is over. Raises: Damaged, OSError."""
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        value, until = content["value"], content.get("expires_at")
        if not isinstance(value, dict):
            raise TypeError
        if until and datetime.fromisoformat(until) <= datetime.now(UTC):
            return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Damaged(f"{path} holds no value") from None
    return value


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write(path, text)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file whole or not at all, whichever was there before; on the disk when this returns.

    Args:
        mode: who may read it, whatever the umask is.
    Raises:
        OSError: it cannot be written, or what is there is no file.
    """
    # the rename would put a file in the place of a device
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(fresh).chmod(mode)
        Path(fresh).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(fresh).unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot, and have the name on the disk anyway
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too must outlive a power cut
        finally:
            os.close(folder)


class Watched(Generic[T]):
    """What a file holds at this moment, for a process that runs on while it changes."""

    def __init__(self, path: Path, read: Callable[[], T]) -> None:
        """Take the file, and what reads it, also where there is none."""
        self._path = path
        self._read = read
        self._seen: tuple[int, int] | None = None
        self._held = read()

    def __call__(self) -> T:
        """Return it; the file is read only when it changed."""
        try:
            found = self._path.stat()
            # who replaces it may give it a time that was seen before, but no number of a file that is there
            now: tuple[int, int] | None = (found.st_ino, found.st_mtime_ns)
        except OSError:
            now = None
        if now != self._seen:
            self._seen, self._held = now, self._read()
        return self._held
