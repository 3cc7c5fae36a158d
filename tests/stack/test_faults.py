"""Faults: server and edge are killed or hang, the network is cut, the disk is full. Whoever calls is told in bounded
time and goes on afterwards, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError
from mcp import Client as OfficialClient
from mcp.client.streamable_http import streamable_http_client

from slipway import stack
from tests.conftest import ROOT, Stack, free_ports, program, wait_until
from tests.stack.test_edge import DOORS, PAGE, assert_readable_by_a_page
from tests.stack.test_join import form
from tests.stack.test_oauth import Browser, _closed, invite, name
from tests.stack.test_streams import ERAS, client, events, message, newest
from tests.test_admin import ask, mint, status

__all__ = ["_closed"]
pytestmark = pytest.mark.slow

BOUND = 40.0  # seconds in which any caller must have been told; far more than it takes, far less than for ever
CADDYFILE = (ROOT / "Caddyfile").read_text()


def mutated(*pairs: tuple[str, str]) -> str:
    text = CADDYFILE
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


# a server that is gone is given up, and one that hangs is not waited for, as they always are, only sooner
GIVE_UP = ("lb_try_duration 3s", "lb_try_duration 500ms")
SILENCE = "read_timeout 45s"
IMPATIENT = (SILENCE, "read_timeout 2s")


def call_of(era: str, n: int, seconds: float) -> tuple[dict[str, str], dict[str, object]]:
    headers, call = newest(name="countdown", arguments={"n": n, "seconds": seconds})
    if era == "newest":
        return headers, call
    return {}, message(
        "tools/call", name="countdown", arguments={"n": n, "seconds": seconds}, _meta={"progressToken": "p"}
    )


async def read(answer: httpx2.Response, *, at_the_third: Callable[[], None] = lambda: None) -> None:
    """Read a stream to its end, and do something at its third event."""
    seen = 0
    async for _ in events(answer):
        seen += 1
        if seen == 3:
            at_the_third()


@contextlib.asynccontextmanager
async def caller(stack: Stack, kind: str, era: str) -> AsyncIterator[Callable[..., Any]]:
    """A real client that waits as long as it is told to: `call(tool, arguments, on_progress)`."""
    if kind == "fastmcp":
        how = {"auth": stack.token(), "verify": stack.trust(), "mode": ERAS[era], "timeout": 600}
        async with Client(stack.tls_url, **how) as c:

            async def call(tool: str, arguments: dict[str, Any], on_progress: Any = None) -> Any:
                return (await c.call_tool(tool, arguments, progress_handler=on_progress)).data

            yield call
        return
    headers = {"authorization": f"Bearer {stack.token()}"}
    async with (
        httpx2.AsyncClient(verify=stack.trust(), headers=headers, timeout=600) as http,
        OfficialClient(streamable_http_client(stack.tls_url, http_client=http), mode=ERAS[era]) as c,
    ):

        async def call(tool: str, arguments: dict[str, Any], on_progress: Any = None) -> Any:
            done = await c.call_tool(tool, arguments, progress_callback=on_progress)
            assert not done.is_error, done
            return done.structured_content["result"]

        yield call


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose processes are killed again and again; each test leaves it running."""
    running = Stack(tmp_path_factory.mktemp("broken"), caddyfile=mutated(GIVE_UP)).start()
    yield running
    running.stop()


def again(stack: Stack, which: str) -> None:
    stack.kill(which)
    stack.start(which)


# --- killed


@pytest.mark.parametrize(
    ("kind", "era", "which"),
    [
        ("fastmcp", "handshake", "server"), ("fastmcp", "newest", "server"), ("fastmcp", "newest", "caddy"),
        ("official", "handshake", "server"), ("official", "newest", "caddy"),
    ],
)  # fmt: skip
async def test_a_client_in_a_stream_that_is_killed_is_told_and_goes_on(
    broken: Stack, kind: str, era: str, which: str
) -> None:
    begun = asyncio.Event()

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        if progress >= 2:
            begun.set()

    async with caller(broken, kind, era) as call:
        running = asyncio.ensure_future(call("countdown", {"n": 500, "seconds": 0.2}, on_progress))
        await asyncio.wait_for(begun.wait(), BOUND)
        await asyncio.to_thread(again, broken, which)
        with pytest.raises(Exception, match="stream ended"):
            await asyncio.wait_for(running, BOUND)
        assert await asyncio.wait_for(call("add", {"a": 2, "b": 3}), BOUND) == 5


@pytest.mark.parametrize("kind", ["fastmcp", "official"])
async def test_a_stream_of_a_session_outlives_the_edge(broken: Stack, kind: str) -> None:
    steps: list[float] = []
    begun = asyncio.Event()

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        steps.append(progress)
        if progress >= 2:
            begun.set()

    async with caller(broken, kind, "handshake") as call:
        running = asyncio.ensure_future(call("countdown", {"n": 40, "seconds": 0.1}, on_progress))
        await asyncio.wait_for(begun.wait(), BOUND)
        await asyncio.to_thread(again, broken, "caddy")
        # the clients come back with Last-Event-ID by themselves
        assert await asyncio.wait_for(running, BOUND) == "liftoff"
        assert steps == sorted(steps)
        assert steps[-1] == 40


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("era", ERAS)
async def test_a_stream_of_a_killed_server_ends_in_an_error_not_as_if_it_were_whole(
    broken: Stack, era: str, door: str
) -> None:
    headers, call = call_of(era, 500, 0.05)
    url = broken.edge_url if door == "plain" else broken.tls_url
    async with (
        httpx2.AsyncClient(verify=broken.trust(), http1=door != "tls2", http2=door == "tls2", timeout=600) as http,
        http.stream("POST", url, headers=broken.bearer() | headers, json=call) as answer,
    ):
        with pytest.raises(httpx2.RemoteProtocolError):
            await asyncio.wait_for(read(answer, at_the_third=lambda: broken.kill("server")), BOUND)
    # while it is away the edge says so, in words that a page can read
    refused = await asyncio.to_thread(asked, broken, door, broken.bearer() | headers, call)
    assert_told(refused)
    await asyncio.to_thread(broken.start, "server")


def asked(
    stack: Stack, door: str, headers: dict[str, str], call: object, timeout: float | None = BOUND
) -> httpx2.Response:
    url = stack.edge_url if door == "plain" else stack.tls_url
    with httpx2.Client(
        verify=stack.trust(), http1=door != "tls2", http2=door == "tls2", timeout=timeout, headers={"origin": PAGE}
    ) as http:
        return http.post(url, headers=headers, json=call)


def assert_told(answer: httpx2.Response, *codes: int) -> None:
    """The edge's own answer for a server that does not answer."""
    assert answer.status_code in (codes or (502, 503, 504)), answer.text
    assert "does not answer" in answer.json()["error"]
    assert "./scripts/up" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 0
    assert_readable_by_a_page(answer)


def test_who_supervises_starts_a_killed_edge_again_even_on_a_full_disk(broken: Stack, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("where the record should be, there is no folder")
    children = {"caddy": stack.children(broken.config, ROOT)["caddy"]}
    broken.kill("caddy")
    # /dev/full: each word of the log fails as on a full disk
    with Path("/dev/full").open("w") as full:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "slipway.supervisor"], cwd=ROOT, stdin=subprocess.PIPE, stdout=full, stderr=full
        )
        assert supervisor.stdin
        task = {"record": str(tmp_path / "taken" / "x"), "fingerprint": "", "folder": str(ROOT), "children": children}
        try:
            with supervisor.stdin as stream:
                stream.write(json.dumps(task).encode())
            for _ in range(2):
                wait_until(lambda: stack.answers(broken.config), BOUND, "the edge")
                (edge,) = psutil.Process(supervisor.pid).children()
                edge.kill()
                edge.wait(BOUND)
            wait_until(lambda: stack.answers(broken.config), BOUND, "the edge")
        finally:
            supervisor.terminate()
            supervisor.wait(BOUND)
    broken.start("caddy")


# --- hung


@contextlib.contextmanager
def paused(stack: Stack, which: str) -> Iterator[None]:
    """A process that is there, holds its sockets, and does nothing: SIGSTOP, as `docker pause` does."""
    stack.processes[which].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stack.processes[which].send_signal(signal.SIGCONT)


@pytest.mark.parametrize("patience", ["2s", "45s"], ids=["as it is, with less patience", "the twin that waits on"])
@pytest.mark.parametrize("era", ERAS)
async def test_nobody_waits_for_ever_for_a_server_that_hangs(
    make_stack: Callable[..., Stack], era: str, patience: str
) -> None:
    stack = make_stack(caddyfile=mutated((SILENCE, f"read_timeout {patience}")))
    headers, call = call_of(era, 200, 0.1)
    headers |= stack.bearer()
    async with httpx2.AsyncClient(verify=stack.trust(), http2=True, timeout=BOUND if patience == "2s" else 5) as http:
        async with http.stream("POST", stack.tls_url, headers=headers, json=call) as answer:
            # in the middle of a stream, and before an answer, over HTTP/1.1 and HTTP/2
            with paused(stack, "server"):
                waiting = [asyncio.to_thread(asked, stack, door, headers, call, http.timeout.read) for door in DOORS]
                ends = await asyncio.gather(read(answer), *waiting, return_exceptions=True)
        if patience == "45s":
            assert [type(end) for end in ends] == [httpx2.ReadTimeout] * 4
            return
        assert isinstance(ends[0], httpx2.RemoteProtocolError)
        for end in ends[1:]:
            assert_told(end, 504)
        assert (await http.post(stack.tls_url, headers=headers, json=message("tools/list"))).status_code in (200, 400)
    assert (await asyncio.to_thread(asked, stack, "plain", headers, call_of(era, 1, 0)[1])).status_code == 200


def test_a_server_that_lives_is_never_silent_for_as_long_as_the_edge_waits() -> None:
    import sse_starlette
    from mcp.server import _streamable_http_modern

    pauses = [sse_starlette.EventSourceResponse.DEFAULT_PING_INTERVAL, _streamable_http_modern._SSE_PING_INTERVAL]
    assert max(pauses) * 2 < int(SILENCE.split()[1].removesuffix("s"))


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_to_a_server_that_was_paused_is_answered_when_it_goes_on(broken: Stack, era: str) -> None:
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        steps.append(progress)

    async with caller(broken, "fastmcp", era) as call:
        running = asyncio.ensure_future(call("countdown", {"n": 20, "seconds": 0.05}, on_progress))
        while not steps:
            await asyncio.sleep(0.01)
        with paused(broken, "server"):
            await asyncio.sleep(1)  # a pause has no event of its own; twenty steps would have come meanwhile
        assert await asyncio.wait_for(running, BOUND) == "liftoff"
        assert steps == list(range(21))


async def test_clients_of_a_paused_edge_go_on_with_it(broken: Stack) -> None:
    async with caller(broken, "fastmcp", "handshake") as one, caller(broken, "official", "newest") as other:
        with paused(broken, "caddy"):
            waiting = [asyncio.ensure_future(call("add", {"a": 2, "b": 3})) for call in (one, other)]
            await asyncio.wait(waiting, timeout=1)
            assert not any(task.done() for task in waiting)
        assert await asyncio.wait_for(asyncio.gather(*waiting), BOUND) == [5, 5]


# --- the network is cut


class Wire:
    """A network between two programs: it carries every byte until it is cut."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._whole = threading.Event()
        self._whole.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, socket.socket() as far, contextlib.suppress(OSError):
            self._open += [near, far]
            self._whole.wait()
            far.connect(("127.0.0.1", self._to))
            back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
            back.start()
            self._carry(near, far)
            back.join()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := one.recv(65536):
                self._whole.wait()
                other.sendall(chunk)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Carry nothing any more, and tell nobody."""
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def reset(self) -> None:
        """End every connection at once, as a NAT does that was restarted."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.mend()
        self.reset()
        # on Linux it is this that ends an accept
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def wired(make_stack: Callable[..., Stack]) -> Iterator[tuple[Stack, Wire]]:
    """A stack with a wire between edge and server."""
    (port,) = free_ports(1)
    wire = Wire(port)
    text, ways = re.subn(r"\{\$UPSTREAM:127.0.0.1([: ])8000\}", rf"127.0.0.1\g<1>{wire.port}", mutated(IMPATIENT))
    assert ways == 1
    yield make_stack(caddyfile=text, SERVER_PORT=str(port)), wire
    wire.close()


@pytest.mark.parametrize("how", ["cut", "reset"])
@pytest.mark.parametrize("era", ERAS)
async def test_a_network_that_is_cut_behind_the_edge_is_told_and_mended(
    wired: tuple[Stack, Wire], era: str, how: str
) -> None:
    stack, wire = wired
    headers, call = call_of(era, 100, 0.05)
    async with caller(stack, "fastmcp", era) as real:
        async with (
            httpx2.AsyncClient(verify=stack.trust(), http2=True, timeout=600) as http,
            http.stream("POST", stack.tls_url, headers=stack.bearer() | headers, json=call) as answer,
        ):
            with pytest.raises(httpx2.RemoteProtocolError):
                await asyncio.wait_for(read(answer, at_the_third=wire.cut if how == "cut" else wire.reset), BOUND)
        if how == "cut":
            assert_told(await asyncio.to_thread(asked, stack, "plain", stack.bearer() | headers, call), 504)
        wire.mend()
        done = time.monotonic() + BOUND
        while True:
            with contextlib.suppress(Exception):
                assert await asyncio.wait_for(real("add", {"a": 2, "b": 3}), BOUND) == 5
                break
            await asyncio.sleep(0.1)
            assert time.monotonic() < done


@pytest.mark.parametrize("era", ERAS)
async def test_a_connection_that_is_reset_before_the_edge_costs_a_session_nothing(
    shared_stack: Stack, era: str
) -> None:
    wire = Wire(shared_stack.config.tls_port)
    begun = asyncio.Event()

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        if progress >= 2:
            begun.set()

    try:
        async with client(shared_stack, era, f"https://localhost:{wire.port}/mcp") as c:
            running = asyncio.ensure_future(
                c.call_tool("countdown", {"n": 20, "seconds": 0.1}, progress_handler=on_progress)
            )
            await asyncio.wait_for(begun.wait(), BOUND)
            wire.reset()
            if era == "handshake":
                assert (await asyncio.wait_for(running, BOUND)).data == "liftoff"
            else:
                # the newest era has nothing to come back to: its clients are told, and call again
                with pytest.raises(Exception, match="stream ended"):
                    await asyncio.wait_for(running, BOUND)
            assert (await asyncio.wait_for(c.call_tool("add", {"a": 2, "b": 3}), BOUND)).data == 5
    finally:
        wire.close()


# --- what was acknowledged is kept


def save(stack: Stack, title: str) -> bool:
    """Save a note. Returns: whether the server said that it did."""
    headers, call = newest(name="save_note", arguments={"title": title, "text": "kept"})
    answer = asked(stack, "tls1", stack.bearer() | headers, call)
    return answer.status_code == 200 and '"saved"' in answer.text


def notes_of(stack: Stack) -> set[str]:
    headers, call = newest(name="list_notes", arguments={})
    answer = asked(stack, "tls1", stack.bearer() | headers, call)
    return set(answer.json()["result"]["structuredContent"]["result"])


def test_what_was_acknowledged_before_a_kill_is_there_after_it(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    code = invite(stack, uses=500)
    to_revoke = [mint(stack) for _ in range(40)]
    minted: list[str] = []
    revoked: list[dict[str, Any]] = []
    joined: list[str] = []
    notes: list[str] = []
    killed = threading.Event()

    def until_the_end(act: Callable[[], object]) -> None:
        # whatever breaks off was not acknowledged
        while not killed.is_set():
            with contextlib.suppress(httpx2.HTTPError, AssertionError, KeyError, ValueError):
                act()

    def revoke() -> None:
        given = to_revoke[len(revoked) % len(to_revoke)]
        assert ask(stack, "DELETE", f"/tokens/{given['jti']}").status_code == 200
        revoked.append(given)

    def join() -> None:
        who = name()
        assert form(Browser(stack), code, who).status_code == 200
        joined.append(who)

    def note() -> None:
        title = f"note {len(notes)}"
        assert save(stack, title)
        notes.append(title)

    acts = [lambda: minted.append(mint(stack)["jti"]), revoke, join, note]
    threads = [threading.Thread(target=until_the_end, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(map(len, (minted, revoked, joined, notes))) >= 8, BOUND, "work")
    stack.kill("server")
    killed.set()
    for thread in threads:
        thread.join(BOUND)
    stack.start("server")
    listed = {record["jti"]: record for record in ask(stack, "GET", "/tokens").json()["tokens"]}
    assert set(minted) <= set(listed)
    assert [status(stack, given["token"]) for given in revoked] == [401] * len(revoked)
    assert set(joined) <= {record["subject"] for record in listed.values()}
    (kept,) = ask(stack, "GET", "/invites").json()["invites"]
    # one more may have been used and not told
    assert len(joined) <= kept["used"] <= len(joined) + 1
    assert set(notes) <= notes_of(stack)


def test_a_server_starts_over_damaged_state_and_opens_nothing_that_was_closed(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack()
    good, closed, of_bo = mint(stack), mint(stack), mint(stack, subject="bo")
    ask(stack, "DELETE", f"/tokens/{closed['jti']}")
    ask(stack, "POST", "/tokens/revoke", {"subject": "bo"})
    assert save(stack, "one")
    stack.kill("server")
    folder = stack.config.state / "data" / "identity" / "values"
    (folder / "tokens" / f"{closed['jti']}.json").write_bytes(b"")
    (folder / "tokens" / "index.json").write_bytes(b'{"version": 1, "val')
    (folder / "tokens" / "halfway.tmp").write_bytes(b"{")
    stack.start("server")
    assert [status(stack, each["token"]) for each in (good, closed, of_bo)] == [200, 401, 401]
    what = f"tokens/{closed['jti']} of the state is damaged"
    wait_until(lambda: any(what in str(line.get("reason")) for line in stack.log("server")), what="that it is told")
    assert ask(stack, "GET", f"/tokens/{closed['jti']}").json()["purpose"] == "its record is damaged"
    stack.kill("server")
    (folder / "cutoffs" / "index.json").write_bytes(b"\0\0\0")
    stack.start("server")
    assert [status(stack, each["token"]) for each in (good, closed, of_bo)] == [401, 401, 401]
    assert status(stack, mint(stack)["token"]) == 200


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `state` is a file system of 6 MB of its own."""
    state = tmp_path / "small" / "state"
    state.mkdir(parents=True)
    command = [program("mount"), "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(state)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        assert not os.environ.get("CI"), f"CI must be able to mount: {done.stderr}"
        pytest.skip(f"mount is not permitted: {done.stderr}")
    try:
        yield state.parent
    finally:
        subprocess.run([program("umount"), "--lazy", str(state)], check=True)


def fill(folder: Path) -> Path:
    """Write until there is no room for another byte."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as stream:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"x" * size)
    assert shutil.disk_usage(folder).free == 0
    return path


async def test_a_full_disk_ends_no_call_and_is_told_to_whoever_would_write(small_disk: Path) -> None:
    stack = Stack(small_disk).start()
    try:
        code = invite(stack)
        one, bo, closed = mint(stack), mint(stack, subject="bo"), mint(stack)
        ask(stack, "DELETE", f"/tokens/{closed['jti']}")
        browser = Browser(stack)
        async with caller(stack, "fastmcp", "handshake") as session, caller(stack, "official", "newest") as other:
            await session("save_note", {"title": "before", "text": "kept"})
            filler = fill(stack.config.state)
            for call in (session, other):
                assert await call("add", {"a": 2, "b": 3}) == 5
            # of a token that is seen for the first time, and cannot be noted
            assert status(stack, stack.token(subject="new"), stack.tls_url) == 200
            with pytest.raises(ToolError, match=r"notes cannot be used now: .* Nothing was changed"):
                await session("save_note", {"title": "more", "text": "x" * 50_000})
            refused = [
                ask(stack, "POST", "/tokens", {"subject": "x"}),
                ask(stack, "POST", "/invites", {"uses": 2}),
                ask(stack, "DELETE", f"/tokens/{one['jti']}"),
                ask(stack, "POST", "/tokens/revoke", {"subject": "bo"}),
                browser.register("https://app.example/back"),
                form(browser, code, name()),
            ]
            for answer in refused:
                assert answer.status_code == 503, answer.text
                assert "no space left on device" in answer.text
                assert int(answer.headers["retry-after"]) > 0
            for answer in refused[2:4]:
                assert "refuses" in answer.json()["error"]
            assert [status(stack, each["token"]) for each in (one, bo, closed)] == [401, 401, 401]

            filler.unlink()
            wait_until(lambda: "can be written again" in stack.text("server"), BOUND, "the word that there is room")
            await session("save_note", {"title": "after", "text": "kept"})
        assert form(browser, code, name()).status_code == 200
        said = [str(line["reason"]) for line in stack.log("server") if line.get("client") == "slipway"]
        assert len([line for line in said if "no space left" in line]) == 1, said

        # what could not be written then was written since; and a server starts on a full disk, too
        fill(stack.config.state)
        stack.kill("server")
        stack.start("server")
        assert [status(stack, each["token"]) for each in (one, bo, closed)] == [401, 401, 401]
        assert status(stack, stack.token()) == 200
    finally:
        stack.stop()
