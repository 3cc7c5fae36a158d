"""Makes a FastMCP server of a target: a Python file through FastMCP's loader, all else through proxies."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import mcp_types as mt
from fastmcp import FastMCP
from fastmcp.client.transports import FastMCPTransport
from fastmcp.server.dependencies import bind_request_context
from fastmcp.server.transforms.namespace import Namespace
from fastmcp.utilities.mcp_server_config.v1.sources.filesystem import FileSystemSource
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError

from slipway import targets
from slipway.errors import Problem
from slipway.proxy.children import Children
from slipway.proxy.remote import Remote
from slipway.proxy.upstreams import Upstream
from slipway.targets import Target

IMPORT_TIMEOUT = 50.0  # seconds; a file that imports large libraries may take long, one that waits for ever may not
SERVERS = (FastMCP, MCPServer, Server)
MODULE = "server_module"  # the name under which FastMCP's loader imports the file


class Loaded:
    """A server that is ready to be served, while `running()` lasts."""

    def __init__(
        self, server: FastMCP[Any], upstreams: Mapping[str, Upstream], describes: str, *, prefixed: bool = False
    ) -> None:
        self.server = server
        self._prefixed = prefixed
        self.describes = describes
        self._upstreams = upstreams

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start what stands behind the server, and end it.

        Raises:
            Problem: with the cause, the cure and an exit code of targets.py.
        """
        try:
            starts = [asyncio.ensure_future(upstream.start()) for upstream in self._upstreams.values()]
            await asyncio.gather(*starts, return_exceptions=True)
            for start in starts:
                start.result()  # the first that failed, in the order of the configuration
            if self._upstreams:
                self._complete()
            async with contextlib.AsyncExitStack() as stack:
                with _lifespan_told(self.describes):
                    # the HTTP apps share it; here it fails before anything is served
                    await stack.enter_async_context(self.server._lifespan_manager())
                yield
        finally:
            await asyncio.gather(*(upstream.close() for upstream in self._upstreams.values()))

    def _complete(self) -> None:
        """Take over what a mount does not carry: instructions, completions, and the newest era's list changes."""
        told = [upstream.instructions for upstream in self._upstreams.values() if upstream.instructions]
        if told and self._prefixed:
            self.server.instructions = "\n\n".join(told)
        if any(upstream.completes for upstream in self._upstreams.values()):
            self.server.add_completion_handler(self._completions)
        if any(upstream.subscribes for upstream in self._upstreams.values()):
            low = self.server._mcp_server
            low.add_request_handler("resources/subscribe", mt.SubscribeRequestParams, self._subscription)
            low.add_request_handler("resources/unsubscribe", mt.UnsubscribeRequestParams, self._subscription)
        bus = InMemorySubscriptionBus()
        for upstream in self._upstreams.values():
            upstream.bus = bus
        self.server._mcp_server.add_request_handler(
            "subscriptions/listen", mt.SubscriptionsListenRequestParams, ListenHandler(bus)
        )

    async def _completions(self, ref: Any, argument: Any, context: Any) -> mt.Completion | None:
        prompt = isinstance(ref, mt.PromptReference)
        upstream, own = self._whose(name=ref.name) if prompt else self._whose(uri=str(ref.uri))
        if not upstream or not upstream.completes:
            return None
        inner: Any = mt.PromptReference(name=own) if prompt else mt.ResourceTemplateReference(uri=own)
        return await upstream.complete(inner, argument, context)

    async def _subscription(self, context: Any, params: Any) -> mt.EmptyResult:
        with bind_request_context(context):
            upstream, own = self._whose(uri=str(params.uri))
            if not upstream or not upstream.subscribes:
                raise MCPError(mt.INVALID_PARAMS, f"{params.uri} cannot be subscribed to")
            await upstream.subscribe(own, str(params.uri), wanted=context.method == "resources/subscribe")
        return mt.EmptyResult()

    def _whose(self, name: str = "", uri: str = "") -> tuple[Upstream | None, str]:
        """Return the upstream of a public prompt name or resource URI, and its own name for it."""
        if not self._prefixed:
            return next(iter(self._upstreams.values())), name or uri
        for prefix, upstream in self._upstreams.items():
            space = Namespace(prefix)
            own = space._reverse_name(name) if name else space._reverse_uri(uri)
            if own:
                return upstream, own
        return None, ""


async def load(
    target: Target, environment: Mapping[str, str], logs: Path, announce: Callable[[str], None], *, per_seat: bool
) -> Loaded:
    """Return the target as a server; what stands behind it starts later.

    Args:
        target: what to serve.
        environment: of its child processes.
        logs: folder for the children's stderr.
        announce: told in words when an upstream changes its lists.
        per_seat: one child for each seat, not one for all.
    Raises:
        Problem: the file cannot be imported, or holds no server.
    """
    if target.kind == "python":
        server = await load_python(target)
        if isinstance(server, FastMCP):
            return Loaded(server, {}, str(target.path))
        # the official SDK's servers have no mount of their own: they are spoken to in memory
        taken: Any = _Low(server) if isinstance(server, Server) else server
        remote = Remote(server.name, FastMCPTransport(taken), announce)
        return Loaded(remote.server, {server.name: remote}, str(target.path))

    def upstream(name: str, part: Target) -> Upstream:
        if part.kind == "url":
            return Remote.to(part, announce)
        return Children(name, part, dict(environment), logs / "target.log", announce, per_seat=per_seat)

    if target.kind != "config":
        one = upstream(target.label if target.kind == "url" else _short(target), target)
        return Loaded(one.server, {one.name: one}, target.shown)
    parts = {name: upstream(name, part) for name, part in target.parts.items()}
    if len(parts) == 1:
        one = next(iter(parts.values()))
        return Loaded(one.server, parts, f"{target.path.name}: {one.name}")
    whole: FastMCP[Any] = FastMCP("slipway", dereference_schemas=False)
    for name, part in parts.items():
        whole.mount(part.server, namespace=name)
    return Loaded(whole, parts, f"{target.path.name}: {', '.join(parts)}", prefixed=True)


def _short(target: Target) -> str:
    """Return the word of a command that names the server: "npx -y some-server" → "some-server"."""
    words = [word for word in target.command if not word.startswith("-")]
    named = words[1] if len(words) > 1 else words[0]
    return named.rstrip("/").rpartition("/")[2] or named


class _Low:
    """The official SDK's low-level server, as FastMCP's transport in memory takes one."""

    def __init__(self, server: Server[Any]) -> None:
        self._mcp_server, self.name = server, server.name


async def load_python(target: Target) -> FastMCP[Any] | MCPServer | Server[Any]:
    """Import the file and return its server object.

    Raises:
        Problem: it cannot be imported, waits while it is imported, or holds no server.
    """
    source = FileSystemSource(path=str(target.path), entrypoint=target.name or None)
    loggers = [logging.getLogger(name) for name in ("fastmcp", "FastMCP")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # it logs what we say in our own words
    sys.modules.pop(MODULE, None)
    try:
        with _no_run(target.path), _in_time(target.path):
            server = await source.load_server()
    except (Problem, KeyboardInterrupt):
        raise
    except SystemExit as ended:
        server = _the_only_server(target, ended)
    except BaseException as error:
        raise _import_problem(target.path, error) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    if not isinstance(server, SERVERS):
        raise _no_server(target, f"{target.name} is a {type(server).__module__}.{type(server).__name__}")
    return server


@contextlib.contextmanager
def _lifespan_told(whose: str) -> Iterator[None]:
    """Say in words that a server's own start failed.

    Raises:
        Problem: with the lines of the target's own files.
    """
    try:
        yield
    except Exception as error:
        others = (str(Path(__file__).parent.parent), sys.base_prefix)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
        own = [f for f in frames if "site-packages" not in f.filename]
        where = "".join(f"\n  {frame.filename} line {frame.lineno}: {frame.line}" for frame in own[-3:])
        raise Problem(
            f"{whose} fails as it starts, in its lifespan: {type(error).__name__}: {str(error)[:500]}{where}",
            "Mend it, then run the command again", targets.NO_IMPORT,
        ) from None  # fmt: skip


@contextlib.contextmanager
def _no_run(path: Path) -> Iterator[None]:
    """Refuse `mcp.run()` at module level, which would serve from within the import."""

    def refuse(*_: object, **__: object) -> None:
        line = next((f.lineno for f in traceback.extract_stack() if f.filename == str(path)), 0)
        raise Problem(
            f"{path} line {line} calls run() while it is imported.",
            'Put it under: if __name__ == "__main__":', targets.NO_IMPORT,
        )  # fmt: skip

    with contextlib.ExitStack() as stack:
        for owner in (FastMCP, MCPServer):
            for name in ("run", "run_async", "run_stdio_async", "run_http_async", "run_streamable_http_async"):
                if hasattr(owner, name):
                    stack.callback(setattr, owner, name, getattr(owner, name))
                    setattr(owner, name, refuse)
        yield


@contextlib.contextmanager
def _in_time(path: Path) -> Iterator[None]:
    def late(_: int, frame: Any) -> None:
        while frame and frame.f_code.co_filename != str(path):
            frame = frame.f_back
        line = frame.f_lineno if frame else "?"
        raise Problem(
            f"{path} is still being imported after {IMPORT_TIMEOUT:.0f} s; it waits at line {line}.",
            "Move what waits into a tool or a lifespan", targets.NO_IMPORT,
        )  # fmt: skip

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, IMPORT_TIMEOUT)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _import_problem(path: Path, error: BaseException) -> Problem:
    """Shorten a traceback to the user's own lines."""
    where, cure = "", f"Mend it, then run the command again (by hand: python {path})"
    if isinstance(error, SyntaxError) and error.filename:
        where = f"\n  {error.filename} line {error.lineno}: {(error.text or '').strip()}"
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(path.parent))]
        frames = [f for f in frames if "site-packages" not in f.filename]
        where = "".join(f"\n  {frame.filename} line {frame.lineno}: {frame.line}" for frame in frames[-4:])
    if isinstance(error, ModuleNotFoundError) and error.name and (error.name + ".").startswith("mcp.server.fastmcp."):
        cure = f"It is written for mcp 1. Serve it as a command: ./scripts/up \"uv run --with 'mcp<2' python {path}\""
    elif isinstance(error, ModuleNotFoundError) and error.name:
        wanted = f'{{"source": {{"path": "{path.name}"}}, "environment": {{"dependencies": ["{error.name}"]}}}}'
        cure = f"If a package is missing, name it in {path.parent / 'fastmcp.json'}: {wanted}"
    says = str(error) if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
    return Problem(f"{path} cannot be imported: {says[:500]}{where}", cure, targets.NO_IMPORT)


def _the_only_server(target: Target, ended: SystemExit) -> Any:
    """Return the one server that a file has under an unusual name; else say what was found."""
    module = sys.modules.get(MODULE) or ModuleType("")
    frames = traceback.extract_tb(ended.__traceback__)
    if any(frame.filename == str(target.path) for frame in frames):
        line = next(frame.lineno for frame in reversed(frames) if frame.filename == str(target.path))
        raise Problem(
            f"{target.path} line {line} ends the program while it is imported.",
            'Put it under: if __name__ == "__main__":', targets.NO_IMPORT,
        )  # fmt: skip
    found = {name: value for name, value in vars(module).items() if isinstance(value, SERVERS)}
    if target.name:
        known = sorted(name for name in vars(module) if not name.startswith("_"))
        close = list(found) or difflib.get_close_matches(target.name, known, n=1)
        factory = callable(getattr(module, target.name, None))
        what = "is no factory of a server" if factory else "is not in it"
        raise _no_server(target, f"{target.name} {what}", close)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise _no_server(target, f"it has several: {', '.join(found)}", list(found))
    others = [
        f"{name} ({type(value).__module__.split('.')[0]}.{type(value).__name__})"
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, type | ModuleType)
        and type(value).__module__.split(".")[0] not in ("builtins", "typing", "__future__")
    ]  # fmt: skip
    raise _no_server(target, f"it has {', '.join(others[:8])}" if others else "nothing like one is in it")


def _no_server(target: Target, found: str, close: list[str] | None = None) -> Problem:
    cure = (
        f"Name it: {target.path}:{close[0]}"
        if close
        else "Name the object, as in file.py:object, or make one: mcp = FastMCP(…)"
    )
    return Problem(f"No MCP server was found in {target.path}: {found}.", cure, targets.NO_SERVER)
