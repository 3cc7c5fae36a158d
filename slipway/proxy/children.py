"""A command as an MCP server: its child processes over stdio, one for each seat or one for all."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcp_types as mt
from fastmcp.client.transports import StdioTransport
from fastmcp.server.dependencies import get_access_token
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError

from slipway import knocks, targets
from slipway.errors import Problem
from slipway.proxy.line import Line, is_probe, seat
from slipway.proxy.relay import Relay
from slipway.proxy.upstreams import Upstream, causes
from slipway.targets import Target

START_TIMEOUT = 120.0  # seconds; npx and uvx download a package at its first start
MAX_CHILDREN = 40
IDLE = 1800.0  # seconds after which a seat's child is ended to make room
MAX_DELAY = 30.0  # seconds between two starts of a child that keeps ending
LAST_LINES = 12


class _Stderr:
    """The stderr of a child: into the target's log, and the last lines kept for error messages."""

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        reading, writing = os.pipe()
        self.writer = os.fdopen(writing, "w")
        self._reader = threading.Thread(target=self._read, args=(reading, name, logger), daemon=True)
        self._reader.start()

    def _read(self, reading: int, name: str, logger: logging.Logger) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
            while line := stream.readline(8192):
                if text := line.rstrip():
                    self.last.append(knocks.printable(text, 300))
                    logger.info("%s %s: %s", time.strftime("%Y-%m-%d %H:%M:%S"), name, self.last[-1])

    def close(self) -> None:
        self.writer.close()


class _Stdio(StdioTransport):
    """FastMCP's transport, which starts a child that ended at the next request: here ever more slowly."""

    def __init__(self, target: Target, environment: dict[str, str], stderr: _Stderr) -> None:
        program, *arguments = target.command
        super().__init__(
            program, arguments, env=environment, cwd=str(target.folder), keep_alive=True, log_file=stderr.writer
        )  # fmt: skip
        self.stderr = stderr
        self._begun, self._rest_until, self._delay = -math.inf, 0.0, 0.0

    def alive(self) -> bool:
        """Tell whether the child runs."""
        return self._connect_task is not None and not self._connect_task.done() and not self._is_session_dead()

    def opened(self) -> ClientSession | None:
        """Return the session with the child, once both have introduced themselves."""
        session = self._session
        return session if session and self.alive() and session.protocol_version else None

    async def connect(self, **options: Any) -> Any:
        """Start the child unless it runs.

        Raises:
            OSError: it ended too often and is given a rest.
        """
        if not self.alive():
            now = time.monotonic()
            if now < self._rest_until:
                raise OSError(f"it keeps ending; next start in {self._rest_until - now:.0f} s")
            lived_long = now - self._begun > 2 * MAX_DELAY
            self._delay = 0.0 if lived_long else min(self._delay * 2 or 0.5, MAX_DELAY)
            self._begun, self._rest_until = now, now + self._delay
        return await super().connect(**options)


class Children(Upstream):
    """A command: one long-lived child for each seat, or one for all."""

    def __init__(
        self, name: str, target: Target, environment: dict[str, str], log_file: Path,
        announce: Callable[[str], None], *, per_seat: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, announce)
        self._target = target
        self._environment = environment | dict(target.environment)
        self._log = knocks.open_log(log_file)
        self._per_seat = per_seat
        self._children: dict[str, Relay] = {}
        self._used: dict[str, float] = {}

    def _make(self, whose: str) -> Relay:
        stderr = _Stderr(f"{self.name}{f' ({whose})' if whose else ''}", self._log)
        transport = _Stdio(self._target, self._environment, stderr)
        # the handshake era: every stdio server speaks it, and only it carries what a server asks its client
        relay = Relay(transport, mode="legacy", init_timeout=START_TIMEOUT)
        return relay.on(Line(self.name, self.changed), transport.opened)

    async def client(self) -> Relay:
        """Return a client of the caller's child."""
        whose = seat() if self._per_seat else ""
        if get_access_token() is None or is_probe():
            # our own probes disturb nobody and need no child of their own
            whose = next(reversed(self._children), "")
        if whose not in self._children:
            if "" in self._children and self._per_seat:
                self._children[whose] = self._children.pop("")  # the one that start() began
            else:
                await self._make_room()
                if whose not in self._children:  # somebody else may have made it meanwhile
                    self._children[whose] = self._make(whose)
        self._used[whose] = time.monotonic()
        relay = self._children[whose]
        return relay.new().on(relay.line)  # type: ignore[attr-defined, no-any-return]

    def _same(self, line: Line) -> Relay:
        relay = next(relay for relay in self._children.values() if relay.line is line)
        return relay.new().on(line)  # type: ignore[attr-defined, no-any-return]

    async def _make_room(self) -> None:
        now = time.monotonic()
        idle = [whose for whose, relay in self._children.items() if not relay.line.busy()]
        for whose in sorted(idle, key=lambda whose: self._used.get(whose, 0)):
            if now - self._used.get(whose, 0) > IDLE or len(self._children) >= MAX_CHILDREN:
                self._used.pop(whose, None)
                await _end(self._children.pop(whose))
        if len(self._children) >= MAX_CHILDREN:
            raise MCPError(
                mt.INTERNAL_ERROR, f"all {MAX_CHILDREN} processes of {self.name} are busy. Try again shortly."
            )

    async def start(self) -> None:
        """Start the first child."""
        relay = self._children[""] = self._make("")
        transport: Any = relay.transport
        words, begun = self._target.text, time.monotonic()
        try:
            await self._introduce(relay.new().on(relay.line))  # type: ignore[attr-defined]
        except MCPError as error:
            await asyncio.sleep(0.1)  # its last words may still be on their way
            last = "".join(f"\n  {line}" for line in transport.stderr.last)
            alive, seconds = transport.alive(), time.monotonic() - begun
            await self.close()
            for cause in causes(error):
                if isinstance(cause, PermissionError | FileNotFoundError):
                    raise Problem(
                        f"{words} cannot be started: {cause.strerror}.", "Mend the command", targets.NO_COMMAND
                    ) from None
            what = f"did not answer in {seconds:.0f} s" if seconds >= START_TIMEOUT else "does not speak MCP"
            what = what if alive else "ended at once"
            raise Problem(
                f"{words} {what}{':' if last else '; it said nothing.'}{last}",
                "Run it by hand; an MCP server over stdio waits for input and prints nothing of its own on stdout",
                targets.NO_COMMAND,
            ) from None

    async def close(self) -> None:
        """End every child, all at once: each may take its time."""
        children, self._children = list(self._children.values()), {}
        await asyncio.gather(*map(_end, children), return_exceptions=True)


async def _end(relay: Relay) -> None:
    transport = relay.transport
    await transport.disconnect()  # type: ignore[attr-defined]
    transport.stderr.close()  # type: ignore[attr-defined]
