"""Who knocked: one record per request, written as JSON lines by server and edge, read back as lines for people.

Nothing here holds a token; arguments and results are in it only where a setting asks for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from datetime import datetime
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

MAX_LOG_BYTES = 5_000_000
MAX_LINE = 1_000_000  # bytes
KEPT = 3  # rotated files
MAX_WAITING = 10_000  # lines that are not written yet
GATHER = 0.02  # seconds in which lines come together that are written at once
FLUSH = 2.0  # seconds that the end waits for them


@dataclass(slots=True)  # an open stream keeps its own
class Knock:
    """One request: who, what, with which outcome, and why it was refused."""

    time: float = 0.0  # seconds since the epoch
    request_id: str = ""
    http: str = ""
    path: str = ""
    method: str = ""  # of JSON-RPC
    tool: str = ""
    client: str = ""
    era: str = ""
    subject: str = ""
    jti: str = ""
    status: int = 0
    ms: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    outcome: str = ""  # ok, error, cancelled, timeout, limited, forbidden, refused, left
    limit: str = ""  # the name of the limit that was reached
    code: str = ""  # why it was refused, in a word: one of metrics.CODES
    reason: str = ""
    trace_id: str = ""  # W3C Trace Context, 32 hex digits
    arguments: str = ""  # of the call, as its result: only where SLIPWAY_AUDIT_PAYLOADS asks for them
    result: str = ""
    door: str = ""  # tunnel or lan; "" is this machine
    progress: int = 0  # notifications of it that the answer carried
    resumed: bool = False  # it came with Last-Event-ID
    mark: str = ""  # of the token that a refused request showed, or one that was like it: tokens.mark

    # no part of the record, but what came with the request: a sessions.Body
    body: Any = field(default=None, repr=False, compare=False)
    _late: Callable[[Knock], None] | None = field(default=None, repr=False, compare=False)

    def written(self, late: Callable[[Knock], None]) -> None:
        """Note that the line of the request is written; what its tool does from now on needs another one."""
        self._late = late

    def tool_ended(self, outcome: str, seconds: float) -> None:
        """Note how the tool ended, after `seconds`; the client may have left before it."""
        self.outcome = outcome
        if self._late:
            self.ms = seconds * 1000
            self.reason = self.reason or "the tool ended after its client had left"
            self._late(self)


FIELDS = tuple(each.name for each in fields(Knock) if each.repr)
_KINDS: dict[str, Callable[[Any], Any]] = {name: type(getattr(Knock(), name)) for name in FIELDS}
_YEAR_5000 = 95_000_000_000.0  # seconds

current: ContextVar[Knock | None] = ContextVar("knock", default=None)


def of(scope: Any) -> Knock | None:
    """Return the record of a request. It is in `request.state`: one key more would double the size of each scope."""
    found: Knock | None = scope.get("state", {}).get("knock")
    return found


def note(scope: Any, reason: str, code: str = "") -> None:
    """Put on a request's record why it was refused."""
    if knock := of(scope):
        knock.reason, knock.code = reason, code or knock.code


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A rotated log of mode 600, the fresh file after a rotation too."""

    def _open(self) -> TextIOWrapper:
        return os.fdopen(
            os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8"
        )

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Tell whether the file is full; of several replicas another may have rotated it already."""
        if not super().shouldRollover(record):
            return False
        with contextlib.suppress(OSError):
            if self.stream and not os.path.samestat(os.stat(self.baseFilename), os.fstat(self.stream.fileno())):  # noqa: PTH116
                self.stream.close()
                self.stream = self._open()
                return bool(super().shouldRollover(record))
        return True


class _Behind(logging.Handler):
    """A handler behind a queue and a thread: a disk or a terminal that takes no lines costs lines, and no call."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._thread = self._started()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._write, name="log", daemon=True)
        thread.start()
        return thread

    def emit(self, record: logging.LogRecord) -> None:
        if not self._thread.is_alive():
            # a target that configures logging closes the handlers of everybody
            self._thread = self._started()
        try:
            self._waiting.put_nowait(record.getMessage())
        except queue.Full:
            self._lost += 1

    def _write(self) -> None:
        """Write what comes, until None does."""
        taken: list[str | None] = []
        while None not in taken:
            taken = [first := self._waiting.get()]
            if first is not None:
                # what comes meanwhile is written with it: one by one, writing takes as long as half a call
                time.sleep(GATHER)
            size = len(first or "")
            # less at once than a file holds: it is looked at in between whether it is full
            with contextlib.suppress(queue.Empty):
                while size < MAX_LOG_BYTES // 100:
                    taken.append(self._waiting.get_nowait())
                    size += len(taken[-1] or "")
            lines = [line for line in taken if line is not None]
            if lost := self._lost:
                self._lost = 0
                told = {"time": now(), "client": "slipway", "reason": f"{lost} lines of this log were lost"}
                lines.insert(0, json.dumps(told))
            if lines:
                self._handler.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))
            for _ in taken:
                self._waiting.task_done()

    def flush(self) -> None:
        until = time.monotonic() + FLUSH
        while self._waiting.unfinished_tasks and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.005)

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
            self._thread.join(FLUSH)
        if not self._thread.is_alive():
            # not by the thread: who closes all handlers may hold the lock that closing takes
            with contextlib.suppress(OSError):
                self._handler.close()
        super().close()


def open_log(path: Path, *, also_stdout: bool = False) -> logging.Logger:
    """Return a logger that writes bare lines to a rotated file of mode 600, in threads of its own.

    Args:
        path: the file; rotated at 5 MB, three old ones kept.
        also_stdout: write the lines to stdout too, for `docker compose logs`.
    """
    logger = logging.getLogger(f"slipway.knocks.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if logger.handlers:
        return logger  # its threads write to this file already
    path.parent.mkdir(parents=True, exist_ok=True)
    # a full disk must not end a request
    logging.raiseExceptions = False
    logger.addHandler(_Behind(_PrivateFile(path, maxBytes=MAX_LOG_BYTES, backupCount=KEPT)))
    if also_stdout:
        logger.addHandler(_Behind(logging.StreamHandler(sys.stdout)))
    return logger


def kept(log: Path) -> list[Path]:
    """Return the files of a log that are there, the oldest first: we number what is rotated, Caddy dates it."""
    dated = sorted(log.parent.glob(f"{log.stem}-*{log.suffix}"))
    numbered = [log.with_name(f"{log.name}.{number}") for number in range(KEPT, 0, -1)]
    return [path for path in (*dated, *numbered, log) if path.exists()]


def write(logger: logging.Logger, knock: Knock) -> None:
    """Write one record as a JSON line, without its empty fields."""
    told = {name: value for name in FIELDS if (value := getattr(knock, name))}
    told["time"] = round(knock.time, 3)
    told["ms"] = round(knock.ms, 1)
    logger.info(json.dumps(told, ensure_ascii=True, separators=(",", ":")))


def announce(logger: logging.Logger, text: str) -> None:
    """Tell the operator of something that no request brought about, in the same log."""
    write(logger, Knock(time=now(), client="slipway", reason=text))


def printable(text: object, limit: int = 60) -> str:
    """Return text that cannot command a terminal: no control characters, at most `limit` characters."""
    return "".join(char for char in str(text)[:limit] if char.isprintable())


def from_edge(line: dict[str, Any]) -> Knock | None:
    """Turn a line of Caddy's access log into a record, if the edge itself refused the request; else None."""
    refused = line.get("refused")
    if not refused:
        return None
    request = line.get("request", {})
    if refused == "origin":
        refused = f"origin {line.get('origin', '')} is not in SLIPWAY_ALLOWED_ORIGINS"
    knock = Knock(
        outcome="refused",
        time=float(line.get("ts", 0)) - float(line.get("duration", 0)),
        http=str(request.get("method", "")),
        path=str(request.get("uri", "")).split("?")[0],
        request_id=str(line.get("request_id", "")),
        client=str(line.get("agent", "")),
        status=int(line.get("status", 0)),
        ms=float(line.get("duration", 0)) * 1000,
        reason=str(refused),
        code="origin" if line["refused"] == "origin" else "",
        door=door(str(request.get("host", ""))),
        mark=str(line.get("token", "")),
    )
    return _possible(knock)


def parse(raw: str) -> Knock | None:
    """Read one log line of the server or the edge; None for what is neither or for what needs no line."""
    try:
        line = json.loads(raw)
        if "request" in line:
            return from_edge(line)
        return _possible(Knock(**{name: kind(line[name]) for name, kind in _KINDS.items() if name in line}))
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return None


def _possible(knock: Knock) -> Knock:
    """Return a record whose numbers can be shown. Raises: ValueError for others, NaN among them."""
    if not (0 <= knock.time < _YEAR_5000 and 0 <= knock.status < 1000 and 0 <= knock.ms < _YEAR_5000):
        raise ValueError("no time, no status or no duration")
    return knock


def render(knock: Knock) -> str:
    """Render one line for the terminal: time, client, era, method or tool, status, milliseconds, subject, reason."""
    what = f"{knock.method} {knock.tool}".strip() or f"{knock.http} {knock.path}"
    moment = datetime.fromtimestamp(knock.time).strftime("%H:%M:%S")
    if not knock.status:
        return f"{moment} {printable(knock.reason, 500)}"
    line = (
        f"{moment} {printable(knock.client or 'unknown client', 24):<15} {printable(knock.era, 10):<10} "
        f"{printable(what, 40):<20} {knock.status:>3} {knock.ms:>5.0f} ms"
    )
    if knock.subject:
        line += f" {printable(knock.subject, 32)}"
    if knock.reason:
        line += f"\n         ↳ {printable(knock.reason, 300)}"
    return line


class Tail:
    """Follow a log file over rotation, truncation and a file that is not there yet.

    Args:
        whole: from its beginning, not from its end.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path = path
        self._stream = self._open()
        self._offset = self._stream.seek(0, os.SEEK_SET if whole else os.SEEK_END) if self._stream else 0
        self._rest = b""

    def __del__(self) -> None:
        if self._stream:
            self._stream.close()

    @property
    def offset(self) -> int:
        """How many bytes of the file were read, or passed over at the beginning."""
        return self._offset

    def holds(self, path: Path) -> bool:
        """Tell whether this is the file that is being read, under whatever name."""
        with contextlib.suppress(OSError):
            return bool(self._stream and os.path.samestat(path.stat(), os.fstat(self._stream.fileno())))
        return False

    def _open(self) -> FileIO | None:
        with contextlib.suppress(OSError):
            return FileIO(self._path)
        return None

    def lines(self) -> Iterator[str]:
        """Yield the complete lines that came since the last call. A line of over 1 MB is given up."""
        if self._moved():
            # what was written between our last look and a rotation stands in the file that we have open
            while self._stream and (chunk := self._stream.read(MAX_LINE)):
                yield from self._whole(chunk)
            if fresh := self._open():
                if self._stream:
                    self._stream.close()
                self._stream, self._offset, self._rest = fresh, 0, b""
        if self._stream:
            if os.fstat(self._stream.fileno()).st_size < self._offset:
                self._offset, self._rest = self._stream.seek(0), b""
            yield from self._whole(self._stream.read(MAX_LINE))

    def _moved(self) -> bool:
        """Tell whether another file has the name of the one that we have open."""
        try:
            now = self._path.stat()
        except OSError:
            return False
        return not self._stream or not os.path.samestat(now, os.fstat(self._stream.fileno()))

    def _whole(self, chunk: bytes) -> Iterator[str]:
        self._offset += len(chunk)
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE:
            self._rest = b""
        for line in whole:
            yield line.decode("utf-8", "replace")


def door(host: str) -> str:
    """Return by which door a request came whose Host this is: "" on this machine, "lan" by an address, "tunnel"."""
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    if name in ("localhost", "127.0.0.1", "[::1]", "::1", "", "server") or name.startswith("127."):
        return ""
    return "lan" if name.endswith((".local", "]")) or name.replace(".", "").isdigit() else "tunnel"


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(given: str | None) -> str:
    """Return the given id if it is safe to repeat in logs and headers, else a fresh one of 128 bits."""
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def now() -> float:
    """Return the wall clock in seconds; one place, so that a test can set it."""
    return time.time()
