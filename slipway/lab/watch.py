"""The board in a terminal: redrawn in place, and on a pipe a line for each change. How it looks is drawing.py's."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from slipway.knocks import printable
from slipway.lab.drawing import View, drawn

AWAY = "away"  # a comment in the stream, by `kept_open`
LONGEST_WAIT = 15.0  # seconds
EVERY = 1.0  # seconds between drawings where nothing happens: times go on
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen without a cursor, and back

Event = tuple[str, Any]


def watch(lines: Iterable[bytes], out: TextIO, *, colour: bool = True) -> bool:
    """Show the board until the lab ends or the stream does, or until Ctrl-C, which leaves the terminal as it was.

    Args:
        lines: the stream, as of an opened response or of `kept_open`.
        out: a terminal is redrawn; anything else gets a line for each change.
        colour: False where NO_COLOR is set.
    Returns:
        Whether the lab ended: False means that the stream broke off.
    """
    if out.isatty():
        return _live(lines, out, colour)
    board = View()
    for name, content in events(lines):
        for change in board.take(name, content):
            out.write(f"{time.strftime('%H:%M:%S')} {printable(change, 500)}\n")
        out.flush()
        if name == "end":
            return True
    return False


def kept_open(
    connect: Callable[[], Iterable[bytes]], wait: Callable[[float], object] = time.sleep
) -> Iterator[bytes]:
    """Yield the lines of a stream, and where it breaks off those of the next one; between them a word for `watch`.

    Args:
        connect: opens the stream. An OSError is tried again; a Problem, as which a refusal comes, is not.
        wait: sleeps for so many seconds.
    """
    failures = 0
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in connect():
                failures = 0
                yield line
        # an event that was cut in two ends here
        yield b"\n"
        yield f": {AWAY}\n".encode()
        wait(min(LONGEST_WAIT, 0.5 * 2**failures) * random.uniform(0.5, 1))  # noqa: S311 no secret
        failures += 1


def events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Turn the lines of an event stream into (event, content)."""
    name, data = "", ""
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            with contextlib.suppress(ValueError):  # half an event, of a stream that broke off
                yield name, json.loads(data)
            name, data = "", ""
        elif field == "event":
            name = value
        elif field == "data":
            data += value
        elif not field and value == AWAY:
            yield AWAY, None


def _live(lines: Iterable[bytes], out: TextIO, colour: bool) -> bool:
    board, waiting = View(), queue.Queue[Event | BaseException]()
    threading.Thread(target=_read, args=(lines, waiting), daemon=True).start()

    def picture(most: int = 0) -> list[str]:
        columns, rows = os.get_terminal_size(out.fileno())
        # a line that ends in the last column could lose its last letter to the erasing of the rest
        return drawn(board, (columns or 80) - 1, most or rows or 24, colour=colour, now=time.time())

    out.write(ENTER)
    try:
        while True:
            out.write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in picture()) + "\x1b[J")
            out.flush()
            for name, content in _next(waiting):
                board.take(name, content)
                if name in ("end", ""):
                    return name == "end"
    finally:
        # the last picture stays readable, whole
        out.write(LEAVE + "".join(f"{line}\n" for line in picture(10_000)))
        out.flush()


def _next(waiting: queue.Queue[Event | BaseException]) -> Iterator[Event]:
    """Yield what is there, after at most a second: many events are one drawing."""
    with contextlib.suppress(queue.Empty):
        event = waiting.get(timeout=EVERY)
        while True:
            if isinstance(event, BaseException):
                raise event
            yield event
            event = waiting.get_nowait()


def _read(lines: Iterable[bytes], waiting: queue.Queue[Event | BaseException]) -> None:
    try:
        for event in events(lines):
            waiting.put(event)
        waiting.put(("", None))
    except BaseException as error:  # whoever waits must hear of it
        waiting.put(error)
