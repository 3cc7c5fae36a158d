"""The served process: settings, target and uvicorn, from start to end, and anew when the target's files change."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastmcp import FastMCP
from watchfiles import awatch

from slipway import app, knocks, packages, settings, store, targets, tokens
from slipway.errors import Problem
from slipway.leaving import DRAIN, SETTLE, Draining, leave
from slipway.proxy import loading
from slipway.streams import SlowReaders

ROOT = Path(__file__).resolve().parent.parent
SHUTDOWN_GRACE = 3  # seconds; with leaving.py less than the 10 after which Docker kills
FORCE_AFTER = 9.0  # seconds
MAX_FILES = 65_536
GARBAGE = 10_000  # objects more than before, at which it is looked for; Python's 700 are half a call
CHECK_TIMEOUT = 130.0  # seconds
LISTENING = "SLIPWAY_LISTENING_FD"  # where a process that starts itself anew finds its socket
WHO_CACHES = (
    "claude.ai and ChatGPT keep the old list until the connector is refreshed, other clients until they reconnect"
)

log = logging.getLogger("slipway")
_inherited = os.environ.pop(LISTENING, "")
_environment_at_start = dict(os.environ)


def serve(mcp: FastMCP[Any], target: str = "") -> None:
    """Serve over Streamable HTTP until SIGINT or SIGTERM, as the settings in .env and the environment say.

    Args:
        mcp: what is served when neither `target` nor SLIPWAY_TARGET names something else.
        target: a file.py[:object], a command, a URL or an mcp.json; relative to the folder we are in.
    Raises:
        SystemExit: with cause and cure on stderr, when it cannot.
    """
    process = _Process(mcp, target)
    again = _guarded(process, process.run())
    if again is not None:
        # one program, one process id, one socket: no request is refused while we start anew
        os.set_inheritable(again, True)
        logging.shutdown()  # the lines that wait for their thread
        os.execve(sys.executable, sys.orig_argv, _environment_at_start | {LISTENING: str(again)})  # noqa: S606 our own command


def check(mcp: FastMCP[Any], target: str = "") -> None:
    """Load and start the target as `serve` would, print {"serves": …, "tools": {name: digest}}, and end it.

    Raises:
        SystemExit: with cause and cure on stderr, when it cannot be served.
    """
    process = _Process(mcp, target)
    sys.stdout.write(json.dumps(_guarded(process, process.check())) + "\n")


def _guarded(process: _Process, work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, whether that comes by itself, by a problem or by a signal; what stands behind us ends with us.

    Returns: what the work gives.
    Raises:
        SystemExit: after a problem was said, or with 128 and the number of the signal.
    """
    _plain_logging()
    ended: list[int] = []

    async def run() -> Any:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def end(number: int) -> None:
            if not ended:
                _end_by_force(number)
            ended.append(number)
            if process.stop:
                process.stop(number, None)
            else:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        return await task

    try:
        with asyncio.Runner(loop_factory=uvicorn.Config(None, log_config=None).get_loop_factory()) as runner:  # type: ignore[arg-type]
            found = runner.run(run())
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        raise SystemExit(problem.exit_code) from None
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise SystemExit(128 + (ended or [signal.SIGINT])[0]) from None
    if ended:
        raise SystemExit(128 + ended[0])
    return found


class _Process:
    """What is served, and by which settings."""

    def __init__(self, mcp: FastMCP[Any], target: str) -> None:
        self._mcp = mcp
        self._text = target
        self._log = logging.getLogger("slipway.none")
        self._since = 0  # nanoseconds since the epoch when the target was read
        self.stop: Callable[[int, Any], None] | None = None  # how a signal ends it, once it serves
        self._leaving: asyncio.Task[None] | None = None

    async def _load(self) -> tuple[settings.Settings, targets.Target | None, loading.Loaded]:
        self._since = time.time_ns()
        config = settings.rooted(settings.load(os.environ, ROOT / ".env"), ROOT)
        text, folder = (self._text, Path.cwd()) if self._text else (config.target, config.target_folder)
        own = settings.own_names(settings.read_env_file(ROOT / ".env"))
        named = os.environ.get(settings.TARGET_NAMES, "").split(",")
        own |= {name: os.environ[name] for name in named if name in os.environ}
        clean = targets.clean_environment(os.environ, own)
        self._log = knocks.open_log(config.state / "log" / "server.jsonl", also_stdout=True)
        os.environ.update({name: value for name, value in own.items() if name not in os.environ})
        if not text:
            return config, None, loading.Loaded(self._mcp, {}, "server.py")
        headers = config.target_headers.get_secret_value()
        target = targets.parse(text, folder, dict(os.environ) | own, headers)
        if target.kind == "python":
            # it runs in this process: nothing of ours is left for it to read, or to hand out
            data = {name: os.environ[name] for name in ("DATA_DIR",) if name in os.environ}
            os.environ.clear()
            os.environ.update(clean | data)
            for name in [name for name in sys.modules if name.partition(".")[0] == "examples"]:
                del sys.modules[name]  # ours, which server.py imported; its folder may have one of its own
            if uv := packages.installer(ROOT):
                packages.install(target, config.state, ROOT, log.info, uv)
            if (place := packages.installed(target, config.state)) and str(place) not in sys.path:
                sys.path.append(str(place))
        loaded = await loading.load(
            target, clean, config.state / "log", self._announce, per_seat=config.target_processes == "seat"
        )
        return config, target, loaded

    def _announce(self, text: str) -> None:
        knocks.announce(self._log, f"{text}; {WHO_CACHES}")

    async def check(self) -> dict[str, Any]:
        # what a target prints is no part of our answer
        with contextlib.redirect_stdout(sys.stderr):
            _, _, loaded = await self._load()
            async with loaded.running():
                return {"serves": loaded.describes, "tools": await _tools(loaded.server)}

    async def run(self) -> int | None:
        """Serve. Returns: the listening socket's descriptor when the target changed and we should start anew."""
        config, target, loaded = await self._load()
        redis_url = config.redis_url.get_secret_value()
        await store.check(redis_url)
        secret, anew = tokens.ensure_secret(config.secret_file), bool(_inherited)
        listening = _listen(config.server_host, config.server_port)
        claim = None if redis_url else await store.claim(config.state / "data" / "identity")
        async with loaded.running():
            tools = await _tools(loaded.server)
            whole = Draining(app.build(loaded.server, config, secret))
            _raise_open_files()
            if config.anonymous:
                log.warning("SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS is on: ANYONE with the URL can call every tool")
            address = f"http://{config.server_host}:{config.server_port}{app.MCP_PATH}"
            log.info("serving %s (%d tools) at %s", loaded.describes, len(tools), address)
            server = _Server(
                uvicorn.Config(
                    SlowReaders(whole), log_config=None, access_log=False, server_header=False, lifespan="on",
                    interface="asgi3", timeout_graceful_shutdown=SHUTDOWN_GRACE,
                )
            )  # fmt: skip
            kept = os.dup(listening.fileno())
            self._compare(tools, config.state / "log" / "tools.json", anew=anew)
            watching = asyncio.create_task(self._watch(target, server, whole))
            self.stop = functools.partial(self._stop, server, whole, listening)
            try:
                await server.serve(sockets=[listening])
            finally:
                watching.cancel()
                (changed,) = await asyncio.gather(watching, return_exceptions=True)
                if self._leaving:
                    self._leaving.cancel()
        if claim:
            claim.close()
        return kept if changed is True else None

    def _stop(
        self, server: uvicorn.Server, whole: Draining, listening: socket.socket, number: int, frame: Any
    ) -> None:
        """End by a signal: SIGTERM lets go first of what we hold, Ctrl-C and a second signal do not wait."""
        if number != signal.SIGTERM or whole.draining or not server.started:
            server.handle_exit(number, frame)
        else:
            self._leaving = asyncio.create_task(leave(server, whole, listening))

    def _compare(self, tools: dict[str, str], file: Path, *, anew: bool) -> None:
        """Tell how the tools differ from those served last, by this process or another."""
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            before = tools
        with (
            contextlib.suppress(OSError),
            os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out,
        ):
            json.dump(tools, out)
        new, gone = sorted(tools.keys() - before.keys()), sorted(before.keys() - tools.keys())
        other = sorted(name for name in before.keys() & tools.keys() if before[name] != tools[name])
        named = [("new", new), ("gone", gone), ("different", other)]
        parts = "; ".join(f"{word}: {', '.join(names)}" for word, names in named if names)
        if parts:
            self._announce(f"the tool list changed ({parts})")
        elif anew:
            knocks.announce(self._log, "the target changed and is served anew; its tools are the same")

    async def _watch(self, target: targets.Target | None, server: uvicorn.Server, whole: Draining) -> bool:
        """Wait until the target's files changed and can be served, then end the server. Returns: True."""
        files = _files(target)
        async for _ in _changes(files, self._since):
            tried = time.time_ns()
            if await self._servable():
                whole.draining = True
                await asyncio.sleep(DRAIN)
                if _newest(files) > tried and not await self._servable():
                    whole.draining = False  # saved once more, and broken
                    continue
                # who connects from now on waits in the socket's queue for our next self; whom we accepted is answered
                for listener in server.servers:
                    listener.close()
                await asyncio.sleep(SETTLE)
                server.should_exit = True
                return True
        return False

    async def _servable(self) -> bool:
        """Load the target in a process of its own. Returns: False after telling why that fails."""
        command = [sys.executable, str(ROOT / "server.py"), "check", *([self._text] if self._text else [])]
        process = await asyncio.create_subprocess_exec(
            *command, env=_environment_at_start,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, err = await asyncio.wait_for(process.communicate(), CHECK_TIMEOUT)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if not isinstance(error, TimeoutError):
                raise
            await process.wait()
            err = f"it is not ready after {CHECK_TIMEOUT:.0f} s, so it cannot be tried".encode()
        if process.returncode:
            lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
            why = next((line for line in lines if "cannot" in line or "line" in line), (lines or ["it ended"])[-1])
            log.warning(
                "the target changed but cannot be served, the version before stays:\n%s", "\n".join(lines[-12:])
            )
            knocks.announce(self._log, f"the target changed but cannot be served, the version before stays: {why}")
        return process.returncode == 0


class _Server(uvicorn.Server):
    """uvicorn without its signals: it dies of them again when it is done, and what stands behind us would be left."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to _guarded."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; what is there by then stays, so no collection of garbage has to look at it again."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)


def _files(target: targets.Target | None) -> set[Path]:
    """Return what is watched: what a Python target imported from its folder, or the files that the target names."""
    files = {path.resolve() for path in target.files()} if target else set()
    if target is None or target.kind == "python":
        home = target.path.parent if target else ROOT
        known = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        own = {Path(name).resolve() for name in known if name}
        files |= {path for path in own if path.is_relative_to(home) and "site-packages" not in path.parts}
    return files


async def _changes(files: set[Path], since: int) -> AsyncIterator[None]:
    """Yield whenever one of the files was written, also if that was before we looked.

    Args:
        since: nanoseconds since the epoch when the files were read.
    """
    if not files:
        await asyncio.Event().wait()
    # folders, not files: an editor writes a new file and renames it. Not their contents: that may be a whole home
    folders = {path.parent for path in files}
    watching = awatch(
        *folders, watch_filter=lambda _, path: Path(path) in files, recursive=False, step=100,
        yield_on_timeout=True, rust_timeout=1000,
    )  # fmt: skip
    async for changes in watching:
        newest = _newest(files)
        if changes or newest > since:
            since = max(since, newest)
            yield


def _newest(files: set[Path]) -> int:
    """Return when the latest of the files was written, in nanoseconds since the epoch."""
    # a time that is still to come would be later than every time at which we read the files
    found, now = [0], time.time_ns()
    for path in files:
        with contextlib.suppress(OSError):
            found.append(path.stat().st_mtime_ns)
    return max(when for when in found if when <= now)


async def _tools(server: FastMCP[Any]) -> dict[str, str]:
    """Return {name: digest of what clients see of it} of the tools."""

    def digest(tool: Any) -> str:
        seen = tool.to_mcp_tool().model_dump_json(by_alias=True, exclude_none=True)
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    return {tool.name: digest(tool) for tool in await server.list_tools(run_middleware=False)}


def _listen(host: str, port: int) -> socket.socket:
    if _inherited:
        return socket.socket(fileno=int(_inherited))
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise Problem(
            f"Port {port} on {host} cannot be used: {error.strerror}.",
            f"Stop what uses it (ss -ltnp 'sport = :{port}'), or set SERVER_PORT in .env",
        ) from None
    return listening


def _raise_open_files() -> None:
    """Let as many connections be open as the system allows us: the usual 1024 are fewer than our own bounds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft < wanted:
        # macOS says that there is no bound, and has one
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end_by_force(number: int) -> None:
    """End this process, if it is still there, before Docker kills it: a thread that runs a tool cannot be stopped."""

    def end() -> None:
        log.warning("a tool still runs in a thread and cannot be stopped: ending without it")
        logging.shutdown()
        os._exit(128 + number)

    watchdog = threading.Timer(FORCE_AFTER, end)
    watchdog.daemon = True
    watchdog.start()


def _plain_logging() -> None:
    """Log JSON-free plain lines to stderr; rich rendering costs a quarter of a logged request."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in ("fastmcp", "FastMCP", "mcp", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("mcp.server", "httpx2", "fastmcp.server.auth", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # its tracebacks are of the target's stray output, which line.py tells in a line
    logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)
