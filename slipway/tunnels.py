"""The ngrok tunnel through pyngrok: open, watch, bring back, close. The only room that knows pyngrok."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml
from pyngrok import conf, ngrok
from pyngrok.exception import PyngrokError, PyngrokNgrokHTTPError, PyngrokNgrokInstallError
from pyngrok.log import NgrokLog

from slipway import ngrok_errors, processes

_DROPPED = ("session closed", "heartbeat timeout", "failed to reconnect", "session closing")
_BACK = ("tunnel session started", "client session established")
_PATIENCE = 10.0  # seconds that a call may take longer than the agent's start-up
_DOWNLOAD = 300.0  # seconds that a venue's network may take for the agent's 10 MB
_CLOSE_TIMEOUT = 3.0  # seconds
_PULSE = 5.0  # seconds between two looks at a running agent
_ANSWER = 4.0  # seconds that such a look may take
_MISSES = 3  # looks without an answer that make an agent a hung one
_MAX_DELAY = 30.0  # seconds between tries to bring a dead agent back

# without a handler Python prints pyngrok's errors, the agent's own lines, on stderr; we tell them in our words
logging.getLogger("pyngrok").addHandler(logging.NullHandler())

Result = TypeVar("Result")


@dataclass(frozen=True)
class TunnelOptions:
    """What to open.

    Attributes:
        upstream: a full URL; pyngrok turns host:port into http://localhost:host:port.
        authtoken: never logged, never on a command line; it goes into our ngrok.yml of mode 600.
        config_dir: folder of that file.
        url: the user's own domain, or None for the account's.
        ngrok_path: the agent, or None for PYNGROK_NGROK_PATH, or else pyngrok's own copy.
        startup_timeout: seconds that the agent may take to get ready.
    """

    upstream: str
    authtoken: str = field(repr=False)
    config_dir: Path
    url: str | None = None
    ngrok_path: str | None = None
    startup_timeout: int = 15


def users_authtoken() -> str:
    """Return the authtoken of the user's own ngrok.yml (`ngrok config add-authtoken`), or ""."""
    try:
        content = yaml.safe_load(Path(conf.DEFAULT_NGROK_CONFIG_PATH).read_text(encoding="utf-8")) or {}
        return str(content.get("authtoken") or content.get("agent", {}).get("authtoken") or "")
    except (OSError, yaml.YAMLError, AttributeError, UnicodeDecodeError):
        return ""


def end_agents(config_dir: Path) -> None:
    """End agents that use our ngrok.yml, an earlier run's orphans too."""
    for process in _agents(config_dir):
        with contextlib.suppress(psutil.Error):
            processes.end(process)


def _agents(config_dir: Path) -> list[psutil.Process]:
    """Return the agents started with our file: a recycled pid, or an editor of that file, looks different."""
    found, ours = [], ("--config", str(_config_path(config_dir)))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "--none" in line and ours in itertools.pairwise(line):
                found.append(process)
    return found


def _config_path(config_dir: Path) -> Path:
    return config_dir.resolve() / "ngrok.yml"


class Tunnel:
    """An open tunnel. A thread watches its agent and brings it back when it dies."""

    def __init__(self, options: TunnelOptions, on_event: Callable[[str, str], None]) -> None:
        self._options = options
        self._on_event = on_event
        self._closing = threading.Event()
        self._config: conf.PyngrokConfig | None = None
        self._watcher: threading.Thread | None = None
        self._api_url = ""
        self._online = False
        self._dropped = False
        self.public_url = ""

    def _configure(self) -> conf.PyngrokConfig:
        path = _config_path(self._options.config_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.parent.chmod(0o700)
        path.chmod(0o600)  # before the authtoken is in it
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            web_port = probe.getsockname()[1]
        agent = {
            "authtoken": self._options.authtoken, "web_addr": f"127.0.0.1:{web_port}",
            # nothing is recorded: whoever reaches the agent's port could read Authorization headers
            "inspect_db_size": -1,
        }  # fmt: skip
        path.write_text(yaml.safe_dump({"version": "3", "agent": agent}), encoding="utf-8")
        config = conf.PyngrokConfig(
            ngrok_path=self._options.ngrok_path,
            config_path=str(path),
            log_event_callback=self._on_log,
            startup_timeout=self._options.startup_timeout,
            # Ctrl-C must not reach the agent before our clean close
            start_new_session=True,
        )
        # pyngrok fills it from the environment and would put it on the command line, which `ps` shows
        config.auth_token = None
        return config

    def open(self) -> None:
        """Start the agent and open the endpoint.

        Raises:
            TunnelError: with cause, cure and exit code.
        """
        end_agents(self._options.config_dir)
        _spare_loopback_from_proxies()
        logging.getLogger("pyngrok.process.ngrok").addFilter(self._redact)
        # pyngrok tells of its download on stdout, which is the product's
        with contextlib.redirect_stdout(sys.stderr):
            self._bounded(self._install, _DOWNLOAD, ngrok_errors.NO_AGENT)
        self.public_url = self._bounded(self._connect, self._options.startup_timeout + _PATIENCE)
        self._online = True
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _install(self) -> None:
        try:
            ngrok.install_ngrok(self._configure())
        except PyngrokNgrokInstallError:
            raise ngrok_errors.TunnelError(*ngrok_errors.NO_AGENT) from None

    def _connect(self) -> str:
        """Start an agent, open the endpoint. Returns: its URL."""
        # anew each time: somebody may have taken the last one's port
        self._config = self._configure()
        if os.name == "posix":
            self._config.ngrok_path = str(self._launcher(self._config.ngrok_path))
        wanted: dict[str, Any] = {"url": self._options.url} if self._options.url else {}
        connected = ngrok.connect(
            self._options.upstream,
            name="slipway",
            pyngrok_config=self._config,
            inspect=False,
            **wanted,
        )
        self._api_url = str(connected.api_url)
        return str(connected.public_url).rstrip("/")

    def _launcher(self, agent: str) -> Path:
        """Write a script that becomes the agent: pyngrok would let it echo the authtoken on our stderr."""
        path = self._options.config_dir.resolve() / "agent"
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(agent)} "$@" 2>/dev/null\n', encoding="utf-8")
        path.chmod(0o700)
        return path

    def _redact(self, record: logging.LogRecord) -> bool:
        # pyngrok's records are the agent's lines as they are, with line ends written \r\n
        record.msg = ngrok_errors.redact(re.sub(r"\\[rn]", " ", str(record.msg)), self._options.authtoken)
        return True

    def _bounded(
        self,
        call: Callable[[], Result],
        seconds: float,
        late: ngrok_errors.Row = ngrok_errors.SILENT,
    ) -> Result:
        """Run a pyngrok call that may hang for ever: it reads the agent's output without a time limit.

        Raises:
            TunnelError: what the call met, or the row `late` after so many seconds.
        """
        begun, running = time.monotonic(), _started(call)
        try:
            concurrent.futures.wait([running], seconds)
            waited_out = not running.done() or time.monotonic() - begun >= self._options.startup_timeout
        finally:
            if not running.done() or running.exception():
                end_agents(self._options.config_dir)  # its end of file also ends the thread
        error = running.exception() if running.done() else None
        if running.done() and not error:
            return running.result()
        if not error or (waited_out and "unable to start" in str(error)):
            raise ngrok_errors.TunnelError(*late)
        if not isinstance(error, PyngrokError | OSError):
            raise error
        raise ngrok_errors.explain(_all_that_was_said(error), self._options.authtoken) from None

    def _on_log(self, line: NgrokLog) -> None:
        text = f"{line.msg or ''} {getattr(line, 'err', None) or ''}"
        if self._closing.is_set() or not self.public_url:
            return
        if self._online and any(word in text for word in _DROPPED):
            self._online, self._dropped = False, True
            self._say("dropped", "the agent lost its session with ngrok; it reconnects by itself")
        elif self._dropped and any(word in text for word in _BACK):
            self._online, self._dropped = True, False
            self._say("back", f"{self.public_url} is online again")

    def _say(self, kind: str, message: str) -> None:
        # a terminal that is gone must end neither our watch nor pyngrok's reading of the agent
        with contextlib.suppress(Exception):
            self._on_event(kind, message)

    def _watch(self) -> None:
        """Wait for the agent's end; unless we closed it, open again, ever more slowly."""
        while not self._closing.is_set():
            trouble = self._wait_for_trouble()
            if self._closing.is_set():
                return
            self._online = self._dropped = False
            self._say("died", f"the ngrok agent {trouble}; opening again")
            self._reopen()

    def _wait_for_trouble(self) -> str:
        """Return what became of the agent, once something did."""
        running = _agents(self._options.config_dir)
        misses = 0
        while running and misses < _MISSES:
            try:
                running[0].wait(_PULSE)
                return "ended"
            except psutil.TimeoutExpired:
                misses = 0 if self._answers() else misses + 1
            except psutil.Error:
                return "ended"
        for agent in running:
            with contextlib.suppress(psutil.Error):
                agent.kill()  # it hears no request, so it would not hear SIGTERM
        return "hung" if running else "ended"

    def _answers(self) -> bool:
        try:
            ngrok.api_request(f"{self._api_url}/api/status", timeout=_ANSWER)
        except (PyngrokNgrokHTTPError, ValueError):
            return True
        except (PyngrokError, OSError):
            return False
        return True

    def _reopen(self) -> None:
        """Try until the endpoint is open again or we close."""
        delay = 0.5
        while not self._closing.is_set():
            try:
                end_agents(self._options.config_dir)
                self._attempt(self._forget)
                url = self._bounded(self._connect, self._options.startup_timeout + _PATIENCE)
            except ngrok_errors.TunnelError as error:
                self._say("waiting", f"{error.cause} Next try in {delay:.0f} s.")
                self._closing.wait(delay)
                delay = min(delay * 2, _MAX_DELAY)
                continue
            before, self.public_url = self.public_url, url
            self._online = True
            if before == url:
                self._say("back", f"{url} is online again")
            else:
                self._say("moved", f"the URL is now {url} (it was {before}): clients need the new one")
            return

    def close(self) -> None:
        """Take the endpoint offline and end the agent. Never raises, never hangs, never leaves an agent."""
        self._closing.set()
        self._attempt(self._disconnect)
        end_agents(self._options.config_dir)
        # it may wait for pyngrok's lock, which an unfinished start holds
        self._attempt(self._forget)
        if self._watcher:
            self._watcher.join(_CLOSE_TIMEOUT)
            end_agents(self._options.config_dir)  # what it was just starting
        logging.getLogger("pyngrok.process.ngrok").removeFilter(self._redact)

    def _forget(self) -> None:
        """Let pyngrok forget the agent, so that it starts another."""
        if self._config:
            ngrok.kill(self._config)

    @staticmethod
    def _attempt(call: Callable[[], None]) -> None:
        """Run what may hang or fail for at most _CLOSE_TIMEOUT seconds."""
        concurrent.futures.wait([_started(call)], _CLOSE_TIMEOUT)

    def _disconnect(self) -> None:
        if self._config and self.public_url and self._online:
            ngrok.disconnect(self.public_url, self._config)


@contextlib.contextmanager
def open_tunnel(options: TunnelOptions, on_event: Callable[[str, str], None]) -> Iterator[Tunnel]:
    """Open a tunnel for the length of a block.

    Args:
        on_event: called from other threads with (kind, message); kinds: dropped, back, died, waiting, moved.
    Raises:
        TunnelError: with cause, cure and exit code.
    """
    tunnel = Tunnel(options, on_event)
    try:
        tunnel.open()
        yield tunnel
    finally:
        tunnel.close()


def _started(call: Callable[[], Result]) -> concurrent.futures.Future[Result]:
    """Start a call on a thread that keeps nobody from ending, as an executor's would."""
    outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _all_that_was_said(error: BaseException) -> str:
    """Endpoint errors carry their code in the body only, start-up errors in the text."""
    logs = [str(getattr(line, "err", "") or "") for line in getattr(error, "ngrok_logs", None) or []]
    parts = [type(error).__name__, str(error), getattr(error, "body", ""), getattr(error, "ngrok_error", ""), *logs]
    return "\n".join(str(part) for part in parts if part)


def _spare_loopback_from_proxies() -> None:
    """Keep pyngrok's calls to the agent on loopback off the proxy: its urllib asks the environment."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost"]))
