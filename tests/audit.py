"""Known weaknesses of the pinned packages, by pip-audit, in bounded time. scripts/audit-deps is its door."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from slipway.errors import Problem, command

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-host.lock", "requirements-dev.lock", "requirements-uv.lock")
FOUND, NOBODY_ASKED = 1, 3
SECONDS = 120  # for all of it
ANSWER = 10  # seconds for one answer of the service


def audited(command: list[str], seconds: float) -> dict[str, Any]:
    """Run pip-audit. Returns: what it says, as JSON.

    Raises:
        Problem: it ended without a verdict.
    """
    cure = "Run it where the network lets you: ./scripts/audit-deps. No test needs it"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Problem(
            f"The advisory service osv.dev gave no verdict in {seconds:.0f} s.", cure, NOBODY_ASKED
        ) from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = None
    if not isinstance(told, dict) or done.returncode not in (0, 1):
        last = (done.stderr.strip() or "no reason was given").splitlines()[-1]
        raise Problem(f"The advisory service osv.dev cannot be asked: {last[:200]}", cure, NOBODY_ASKED)
    return told


def lines(told: dict[str, Any]) -> list[str]:
    """Return a line for each weakness: package, its id, and the version in which it is mended."""
    return [
        f"{each['name']} {each['version']}: {weak['id']}, mended in {', '.join(weak['fix_versions']) or 'no version yet'}"
        for each in told.get("dependencies", [])
        for weak in each.get("vulns", [])
    ]


def main(argv: list[str], command: list[str] | None = None, seconds: float = SECONDS) -> int:
    """Ask, and print what is known. Returns: 0, or 1 where something is."""
    argparse.ArgumentParser(
        "scripts/audit-deps", allow_abbrev=False,
        description="Asks osv.dev for known weaknesses of every package in the lock files. "
        "Exit code 1: there are some, 3: it could not be asked.", epilog="example: scripts/audit-deps",
    ).parse_args(argv)  # fmt: skip
    told = audited(
        command or [
            str(Path(sys.executable).with_name("pip-audit")), "--vulnerability-service", "osv", "--format", "json",
            "--progress-spinner", "off", "--timeout", str(ANSWER), "--disable-pip", "--require-hashes",
            *(word for lock in LOCKS for word in ("--requirement", lock)),
        ],
        seconds,
    )  # fmt: skip
    weak = sorted(set(lines(told)))
    for line in weak:
        sys.stdout.write(line + "\n")
    names = {each["name"] for each in told.get("dependencies", [])}
    sys.stderr.write(f"{len(weak)} known weaknesses in {len(names)} packages\n")
    if weak:
        raise Problem(
            "Pinned packages have known weaknesses.", "./scripts/lock takes newer ones, then ./scripts/test"
        )
    return 0


if __name__ == "__main__":
    command(main)
