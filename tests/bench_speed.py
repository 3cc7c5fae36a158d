"""What Slipway costs: each figure a ratio of servers that take turns in one run. Printed, never asserted.

`scripts/bench speed [--quick] [--json] [--plot FILE] [WORD …]`; words choose the scenarios. `scripts/bench --against REV`
compares this checkout with another commit. What the figures mean: docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from slipway import stack as stacks
from slipway.tunnels import TunnelOptions, open_tunnel
from tests import ngrok_agent
from tests.bench_client import request
from tests.bench_plot import Bar, plot
from tests.bench_run import SERVER, Client, Row, Run, Way, call, cost, listens, over
from tests.conftest import AUTHTOKEN, ROOT, Stack, certificate, free_ports, wait_until

ADD = {"a": 2, "b": 3}
STDIO = shlex.join([sys.executable, str(SERVER), "stdio"])
SUPERGATEWAY = "supergateway@4.0.0"
EVERY, EVENTS = 0.02, 100  # seconds between events; how many
UPSTREAMS = re.compile(r"dynamic a \{\$UPSTREAM.*?\n\t+\}", re.S)
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}


def straight(run: Run) -> Iterator[Row]:
    """1 and 2: the same tool, bare and with everything on, straight and through Caddy with TLS."""
    with contextlib.ExitStack() as stack:
        ways = {"bare": stack.enter_context(run.bare()), "shipped": stack.enter_context(run.bare(how="shipped"))}
        ways["frozen"] = stack.enter_context(run.bare(how="frozen"))
        _, ways["json"], ways["tls json"] = stack.enter_context(run.slipway(SLIPWAY_ANSWERS="json"))
        _, ways["stream"], ways["tls stream"] = stack.enter_context(run.slipway())
        rates, costs = run.turns(ways, dict.fromkeys(ways, call("handshake", "add", ADD)))
    for name, goal in (("json", 0.9), ("stream", None)):
        what = f"1 everything on, straight, {name} / bare JSON, calls/s"
        yield Row(what, over(rates[name], rates["bare"]), goal, note=cost(costs, name, "bare"))
    what = "1 the same, json / bare JSON that collects garbage as rarely"
    yield Row(what, over(rates["json"], rates["frozen"]), note=cost(costs, "json", "frozen"))
    for name, goal in (("tls json", 1.5), ("tls stream", None)):
        what = f"2 everything on, Caddy and TLS, {name[4:]} / mcp.run, calls/s"
        note = cost(costs, name, "shipped") + ", with Caddy's"
        yield Row(what, over(rates[name], rates["shipped"]), goal, note=note)


def stdio(run: Run) -> Iterator[Row]:
    """3: a stdio server through Slipway, beside the same in process and beside supergateway."""
    with contextlib.ExitStack() as stack:
        ways = {}
        _, ways["in process"], _ = stack.enter_context(run.slipway(SLIPWAY_ANSWERS="json"))
        _, ways["stdio"], _ = stack.enter_context(run.slipway(STDIO, SLIPWAY_ANSWERS="json"))
        for era in ("handshake", "newest"):
            rates, costs = run.turns(ways, dict.fromkeys(ways, call(era, "add", ADD)), 8)
            what = f"3 a stdio target / the same in process, {era} era, calls/s"
            yield Row(what, over(rates["stdio"], rates["in process"]), 0.5, note=cost(costs, "stdio", "in process"))
        what = "3 a stdio target / supergateway stateless, 1 client, calls/s"
        try:
            other = stack.enter_context(supergateway())
        except (AssertionError, OSError) as missing:
            yield Row(what, [], 100, note=f"supergateway does not run here: {missing}"[:100])
            return
        message = call("handshake", "add", ADD)
        figures, theirs = [], 0.0
        for _ in range(2):
            ours, _ = run.client.rate(ways["stdio"], run.seconds, 1, message)
            theirs, _ = run.client.rate(other, 3.0, 1, message)
            figures.append(ours / theirs)
        yield Row(what, figures, 100, note=f"supergateway has {theirs:.2f} calls/s: a process for each")


@contextlib.contextmanager
def supergateway() -> Iterator[Way]:
    """Run the neighbour, from npm."""
    (port,) = free_ports(1)
    command = [
        "npx",
        "-y",
        SUPERGATEWAY,
        "--stdio",
        STDIO,
        "--outputTransport",
        "streamableHttp",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )  # fmt: skip
    try:

        def up() -> bool:
            assert process.poll() is None, f"npx ended with {process.returncode}"
            return listens(port)

        wait_until(up, 60, "the start of supergateway")
        yield Way(f"http://127.0.0.1:{port}/mcp")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def events(run: Run) -> Iterator[Row]:
    """4: events through Caddy and the tunnel's stand-in beside a bare server's, and an idle stream's first byte."""
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(run.bare("several", "shipped"))
        served, _, _ = stack.enter_context(run.slipway(f"{SERVER}:several"))
        account = run.folder / "account"
        account.mkdir()
        cert, key = certificate(account)
        agent = ngrok_agent.write_executable(account / "ngrok")
        os.environ |= {
            "STANDIN_STATE": str(account / "state"), "STANDIN_CERT": str(cert), "STANDIN_KEY": str(key),
            "SSL_CERT_FILE": str(cert),
        }  # fmt: skip
        plain = f"http://127.0.0.1:{served.config.edge_port}"
        options = TunnelOptions(
            upstream=plain,
            authtoken=AUTHTOKEN,
            config_dir=account / "conf",
            ngrok_path=str(agent),
            startup_timeout=30,
        )
        tunnel = stack.enter_context(open_tunnel(options, lambda *_: None))
        public = Way(tunnel.public_url + "/mcp", [served.token()], str(cert))
        medians, tails, late, first = [], [], [], []
        for _ in range(3 if run.quick else 5):
            direct, whole = sorted(lags(bare)), sorted(lags(public))
            medians.append((statistics.median(whole) - statistics.median(direct)) * 1000)
            tails.append((whole[int(len(whole) * 0.99) - 1] - statistics.median(direct)) * 1000)
            late.append(float(sum(lag >= EVERY for lag in whole)))
        for _ in range(10):
            first.append(first_byte(public) * 1000)
    yield Row("4 an event through edge and tunnel, lag over direct, median", medians, 2, most=True, unit="ms")
    yield Row("4 the same, p99 over the direct median", tails, 10, most=True, unit="ms")
    yield Row(f"4 of {EVENTS} events, delayed to the next", late, 0, most=True, unit="")
    yield Row("4 first byte of an idle GET stream, through edge and tunnel", first, 50, most=True, unit="ms")


def connect(way: Way) -> socket.socket:
    where = re.fullmatch(r"(https?)://([^:/]+):(\d+)/mcp", way.url)
    assert where
    plain = socket.create_connection((where[2], int(where[3])), 30)
    if where[1] == "http":
        return plain
    return ssl.create_default_context(cafile=way.ca).wrap_socket(plain, server_hostname=where[2])


def asked(way: Way, message: tuple[dict[str, str], str]) -> bytes:
    token = {"authorization": f"Bearer {way.tokens[0]}"} if way.tokens else {}
    return request(way.url, message[0] | token, message[1].encode())


def lags(way: Way) -> list[float]:
    """Return how many seconds after it was sent each event came."""
    headers, body = call("handshake", "tick", {"times": EVENTS, "every": EVERY})
    body = body.replace('"params": {', '"params": {"_meta": {"progressToken": 1}, ')
    found: list[float] = []
    came = b""
    with connect(way) as link:
        link.sendall(asked(way, (headers, body)))
        while len(found) < EVENTS:
            data = link.recv(65536)
            now = time.monotonic_ns()
            assert data, came
            came += data
            sent = re.findall(rb'"message":"(\d+)"', came)
            found += [(now - int(one)) / 1e9 for one in sent[len(found) :]]
    return found


def first_byte(way: Way) -> float:
    """Return how many seconds after it was asked for a session's idle stream had its first byte."""
    hello = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO})
    headers, _ = call("handshake", "add", ADD)
    came = b""
    with connect(way) as link:
        link.sendall(asked(way, (headers, hello)))
        while b"\r\n\r\n" not in came or b"protocolVersion" not in came:
            came += link.recv(65536)
    session = re.search(rb"(?i)mcp-session-id: (\w+)", came)
    assert session, came
    with connect(way) as link:
        ask = asked(way, (headers | {"mcp-session-id": session[1].decode()}, "")).replace(b"POST", b"GET", 1)
        begun, came = time.perf_counter(), b""
        link.sendall(ask)
        while not came.partition(b"\r\n\r\n")[2]:
            came += link.recv(65536)
        return time.perf_counter() - begun


def cold(run: Run) -> Iterator[Row]:
    """5: from exec to the first answered call, and what is imported for it."""
    bare, ours = [], []
    for _ in range(3 if run.quick else 5):
        (port,) = free_ports(1)
        command = [sys.executable, str(SERVER), "json", str(port), "one"]
        bare.append(answered(command, dict(os.environ), Way(f"http://127.0.0.1:{port}/mcp")))
        ours.append(answered(*ready(run)))
    for index, what, goal in ((0, "exec to the first answered call", 1.3), (1, "the same, CPU", None)):
        mine, other = ([each[index] for each in all_of] for all_of in (ours, bare))
        note = f"{statistics.median(mine):.2f} s beside {statistics.median(other):.2f} s"
        yield Row(f"5 {what} / bare", over(mine, other), goal, most=True, note=note)
    command, environment, way = ready(run)
    log = run.folder / "imports"
    with log.open("w") as out:
        _, _, before = answered(command, environment | {"PYTHONPROFILEIMPORTTIME": "1"}, way, out)
    lines = [line.split("|") for line in log.read_text().splitlines() if line.startswith("import time:")]
    times = [(part[2].strip(), int(part[0].split(":")[1])) for part in lines if "self" not in part[0]]
    own = sum(took for name, took in times if name.split(".")[0] in ("slipway", "examples"))
    share = own / sum(took for _, took in times) * 100
    yield Row("5 import time of our own modules, share of all", [share], 10, most=True, unit="%")
    later = [name for name, _ in times[before:]]
    yield Row(
        "5 modules imported by the first call", [float(len(later))], 0, most=True, unit="", note=" ".join(later)
    )


def ready(run: Run) -> tuple[list[str], dict[str, str], Way]:
    """Return what starts a server of ours, and the way to it."""
    place = run.place()
    made = Stack(place, {"SLIPWAY_TARGET": f"{SERVER}:one", "SLIPWAY_ANSWERS": "json"}, root=run.code)
    for folder in ("log", "run"):
        (made.config.state / folder).mkdir(parents=True)
    command, environment = stacks.children(made.config, run.code)["server"]
    return command, environment, Way(made.server_url, [made.token()])


def answered(
    command: list[str], environment: dict[str, str], way: Way, log: Any = subprocess.DEVNULL
) -> tuple[float, float, int]:
    """Start it, call it, end it.

    Returns: the seconds to the answer, the CPU seconds to it, and how many lines of `log` were there before.
    """
    lines = 0
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        while True:
            assert process.poll() is None, command
            try:
                with connect(way) as link:
                    if log is not subprocess.DEVNULL:
                        text = Path(log.name).read_text()
                        lines = sum(
                            line.startswith("import time:") and "self" not in line for line in text.splitlines()
                        )
                    link.sendall(asked(way, call("handshake", "add", ADD)))
                    came = b""
                    while b"5" not in came.partition(b"\r\n\r\n")[2]:
                        came += link.recv(65536)
                    assert b" 200 " in came[:20], came
                    used = psutil.Process(process.pid).cpu_times()
                    return time.perf_counter() - begun, used.user + used.system, lines
            except ConnectionRefusedError:
                time.sleep(0.003)
    finally:
        process.terminate()
        process.wait()


def replicas(run: Run) -> Iterator[Row]:
    """6: one replica and two behind one edge, on a tool that waits, and on one that computes."""
    whole = (ROOT / "Caddyfile").read_text()
    extra = {"SLIPWAY_ANSWERS": "json"}
    with contextlib.ExitStack() as stack:
        second, _, _ = stack.enter_context(run.slipway(f"{SERVER}:several", **extra))
        common = {"SLIPWAY_SECRET_FILE": str(second.config.secret_file), **extra}
        (own,) = free_ports(1)
        to = f"to 127.0.0.1:{own} 127.0.0.1:{second.config.server_port}"
        both, changed = UPSTREAMS.subn(to, whole)
        assert changed, "the Caddyfile names its upstreams in another way"
        first, _, _ = stack.enter_context(
            run.slipway(f"{SERVER}:several", caddyfile=both, SERVER_PORT=str(own), **common)
        )
        ways = {"one": Way(second.edge_url, [second.token()]), "two": Way(first.edge_url, [first.token()])}
        for way in ways.values():
            way.pids = [second.processes["server"].pid]
        for name, message, clients, goal, lasts in (
            ("waits (2 s, in a thread)", call("newest", "wait", {"seconds": 2.0}), 560, 1.7, 2.0),
            ("computes (5 ms)", call("newest", "compute", {"rounds": 80_000}), 16, None, 0.0),
        ):
            rates, _ = run.turns(ways, dict.fromkeys(ways, message), clients, 3 * lasts, 2, lasts)
            note = f"{statistics.median(rates['two']):.0f} beside {statistics.median(rates['one']):.0f} calls/s"
            what = f"6 two replicas / one, a tool that {name}, calls/s"
            yield Row(what, over(rates["two"], rates["one"]), goal, note=note)


def tools(run: Run) -> Iterator[Row]:
    """7: a call on a server with 51 tools beside one."""
    for era in ("handshake", "newest"):
        with contextlib.ExitStack() as stack:
            ways = {}
            for name in ("one", "many"):
                _, ways[name], _ = stack.enter_context(run.slipway(f"{SERVER}:{name}", SLIPWAY_ANSWERS="json"))
                ways[f"bare {name}"] = stack.enter_context(run.bare(name))
            _, costs = run.turns(ways, dict.fromkeys(ways, call(era, "add", ADD)))
        bare = statistics.median(over(costs["bare many"], costs["bare one"]))
        note = f"bare {bare:.2f} x; {cost(costs, 'many', 'one')}"
        what = f"7 a call with 51 tools / with one, {era} era, CPU"
        yield Row(what, over(costs["many"], costs["one"]), 1.2, most=True, note=note)


SCENARIOS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "straight": straight, "stdio": stdio, "events": events, "cold": cold, "replicas": replicas, "tools": tools,
}  # fmt: skip


def compared(run: Run, other: Path, rev: str) -> Iterator[Row]:
    """Compare this checkout's Slipway with another's, in turns."""
    for name, target, era, through in (
        ("straight, handshake era", f"{SERVER}:one", "handshake", 1),
        ("straight, newest era", f"{SERVER}:one", "newest", 1),
        ("straight, newest era, 51 tools", f"{SERVER}:many", "newest", 1),
        ("Caddy and TLS, handshake era", f"{SERVER}:one", "handshake", 2),
        ("a stdio target, handshake era", STDIO, "handshake", 1),
    ):
        ways = {}
        with contextlib.ExitStack() as stack:
            for which, code in (("ours", ROOT), ("theirs", other)):
                run.code = code
                ways[which] = stack.enter_context(run.slipway(target))[through]
            rates, costs = run.turns(ways, dict.fromkeys(ways, call(era, "add", ADD)))
        yield Row(
            f"{name} / {rev}, calls/s", over(rates["ours"], rates["theirs"]), note=cost(costs, "ours", "theirs")
        )
    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(3):
        for which, code in (("ours", ROOT), ("theirs", other)):
            run.code = code
            took[which].append(answered(*ready(run))[0])
    yield Row(f"exec to the first answered call / {rev}, seconds", over(took["ours"], took["theirs"]))


@contextlib.contextmanager
def worktree(rev: str, folder: Path) -> Iterator[Path]:
    """Check a commit out beside us, with our packages."""
    place = folder / "other"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, rev], cwd=ROOT, check=True)
    try:
        (place / ".venv").symlink_to(ROOT / ".venv")
        yield place
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def main(argv: list[str]) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser("scripts/bench", description="Ratios of servers that take turns.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", type=Path, default=ROOT / ".slipway" / "speed.svg", help="where the SVG goes")
    parser.add_argument("--against", metavar="REV", help="compare with another commit")
    parser.add_argument("words", nargs="*", metavar="WORD", help=f"some of: {', '.join(SCENARIOS)}")
    chosen = parser.parse_args(argv)
    rows: list[Row] = []
    client = Client()
    try:
        with tempfile.TemporaryDirectory(prefix="slipway-speed-") as folder, contextlib.ExitStack() as stack:
            run = Run(Path(folder), chosen.quick, client)

            def all_rows() -> Iterator[Row]:
                if chosen.against:
                    other = stack.enter_context(worktree(chosen.against, Path(folder)))
                    yield from compared(run, other, chosen.against)
                    return
                for word in chosen.words or SCENARIOS:
                    yield from SCENARIOS[word](run)

            for row in all_rows():
                rows.append(row)
                sys.stderr.write(row.line() + "\n")
    finally:
        client.close()
    if rows:
        shown = [Bar(row.what, row.median, row.goal, row.most, row.unit) for row in rows if row.figures]
        chosen.plot.parent.mkdir(parents=True, exist_ok=True)
        chosen.plot.write_text(plot(shown))
    if chosen.json:
        told = {
            row.what: {"median": row.median, "goal": row.goal, "figures": row.figures, "note": row.note}
            for row in rows
        }
        sys.stdout.write(json.dumps(told) + "\n")
    elif not sys.stdout.isatty() or not sys.stderr.isatty():
        sys.stdout.write("".join(row.line() + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
