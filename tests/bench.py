"""The figures: time to a configuration, time of compose up, the first call beside the tenth. Printed, never asserted."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastmcp import Client

from slipway import compose
from tests.conftest import Stack, clean_environment, copy_of_the_tree

RUNS = 5


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that it took."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def configuration(checkout: Path) -> float:
    """Time ./scripts/up --local from exec to the printed configuration, then end it."""
    begun = time.perf_counter()
    up = subprocess.Popen(
        [checkout / "scripts" / "up", "--local", "--json"], cwd=checkout, env=clean_environment(checkout),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert up.stdout
    json.loads(up.stdout.readline())
    took = time.perf_counter() - begun
    up.terminate()
    up.wait()
    return took


def down(checkout: Path) -> None:
    subprocess.run(
        [checkout / "scripts" / "down"],
        cwd=checkout,
        env=clean_environment(checkout),
        capture_output=True,
        check=True,
    )


def stack_up(checkout: Path) -> None:
    command = [checkout / ".venv/bin/python", "-m", "slipway.stack", "up"]
    subprocess.run(command, cwd=checkout, env=clean_environment(checkout), capture_output=True, check=True)


def compose_up(checkout: Path) -> None:
    command = ["docker", "compose", "up", "--wait"]
    subprocess.run(command, cwd=checkout, env=clean_environment(checkout), capture_output=True, check=True)


async def calls(stack: Stack, mode: str) -> list[float]:
    """Return the seconds of the first ten calls of a fresh server."""
    took = []
    async with Client(stack.tls_url, auth=stack.token(), verify=stack.trust(), mode=mode) as client:
        for _ in range(10):
            begun = time.perf_counter()
            await client.call_tool("add", {"a": 2, "b": 3})
            took.append(time.perf_counter() - begun)
    return took


def main() -> None:
    rows: list[tuple[str, list[float], str]] = []
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        checkout = copy_of_the_tree(Path(folder) / "slipway")
        configuration(checkout)
        rows.append(("up --local, already running", [configuration(checkout) for _ in range(RUNS)], ""))
        cold = []
        for _ in range(RUNS):
            down(checkout)
            cold.append(configuration(checkout))
        rows.append(("up --local, everything stopped", cold, "goal 3 s"))
        down(checkout)
        if not compose.missing():
            try:
                stack_up(checkout)
                times = []
                for _ in range(RUNS):
                    down(checkout)
                    times.append(timed(lambda: compose_up(checkout)))
                rows.append(("docker compose up --wait, images built", times, "goal 6 s"))
            finally:
                down(checkout)
                command = ["docker", "compose", "down", "--rmi", "local"]
                subprocess.run(command, cwd=checkout, env=clean_environment(checkout), capture_output=True)
        extra: dict[str, list[float]] = {"legacy": [], "auto": []}
        for run in range(RUNS):
            for mode, found in extra.items():
                place = Path(folder) / f"stack-{mode}-{run}"
                place.mkdir()
                stack = Stack(place).start()
                try:
                    took = asyncio.run(calls(stack, mode))
                finally:
                    stack.stop()
                found.append(took[0] - took[9])
        rows.append(("first call minus tenth, handshake era", extra["legacy"], "goal 0.050 s"))
        rows.append(("first call minus tenth, newest era", extra["auto"], "goal 0.050 s"))
    for what, seconds, goal in rows:
        spread = f"{min(seconds):.3f} … {max(seconds):.3f}"
        sys.stdout.write(f"{what:<40} median {statistics.median(seconds):7.3f} s   ({spread})   {goal}\n")


if __name__ == "__main__":
    main()
