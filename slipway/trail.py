"""Reads the audit log: filters it, adds it up, follows it. scripts/audit is its door; audit.py writes the log."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from slipway import commandline, knocks, settings, tokens
from slipway.errors import Problem, command

ROOT = Path(__file__).resolve().parent.parent
LOOK = 0.2  # seconds between two looks at a log that is followed
EXAMPLES = """examples:
  scripts/audit                               the last 50 requests and refusals
  scripts/audit --subject ana --tool add      what she called
  scripts/audit --outcome refused --since 1h  who was refused, and why
  scripts/audit --count tool,outcome          how often; any of the fields
  scripts/audit --follow                      what comes, until Ctrl-C
  scripts/audit --json --all | jq .ms         every line as it is written

outcomes: ok, error, cancelled, timeout, limited, forbidden, refused, left
"""
FIELDS = ("subject", "tool", "client", "era", "outcome", "limit", "code", "jti", "method", "path", "status")


def _parser() -> argparse.ArgumentParser:
    about = "Who called what, with which outcome; who was refused, and why."
    parser = commandline.parser("scripts/audit", about, EXAMPLES)
    for name in ("subject", "tool", "client", "outcome", "limit", "jti"):
        parser.add_argument(f"--{name}", default="", help=f"only this {name}")
    parser.add_argument("--request", default="", metavar="ID", help="only the request with this X-Request-Id")
    parser.add_argument("--trace", default="", metavar="ID", help="only the requests of this trace")
    parser.add_argument(
        "--since", default="", metavar="30m", help="only the last 30 minutes, 2 hours (2h), days (3d)"
    )
    parser.add_argument("--calls", action="store_true", help="only tool calls")
    parser.add_argument("--last", type=int, default=50, metavar="N", help="the last N lines (50)")
    parser.add_argument("--all", action="store_true", help="every line that is kept")
    parser.add_argument("--count", default="", metavar="a,b", help=f"add up by: {', '.join(FIELDS)}")
    parser.add_argument("--follow", action="store_true", help="go on with what comes")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def _wanted(chosen: argparse.Namespace) -> Callable[[knocks.Knock], bool]:
    """Return whether a record is asked for."""
    exact = {name: getattr(chosen, name) for name in ("subject", "tool", "outcome", "limit", "jti")}
    exact |= {"request_id": chosen.request, "trace_id": chosen.trace}
    exact = {name: value for name, value in exact.items() if value}
    begin = time.time() - tokens.parse_ttl(chosen.since) if chosen.since else 0.0

    def wanted(knock: knocks.Knock) -> bool:
        return (
            knock.time >= begin
            and all(getattr(knock, name) == value for name, value in exact.items())
            and chosen.client.lower() in knock.client.lower()
            and (not chosen.calls or knock.method == "tools/call")
        )

    return wanted


def _kept(log: Path, tail: knocks.Tail) -> Iterator[knocks.Knock]:
    """Yield what a log and its rotated files hold, the oldest first; the tail goes on where this ends."""
    for path in knocks.kept(log):
        if path != log and not tail.holds(path):
            # it may be rotated away meanwhile
            with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as lines:
                yield from filter(None, map(knocks.parse, lines))
    seen = -1
    while tail.offset > seen:
        seen = tail.offset
        yield from filter(None, map(knocks.parse, tail.lines()))


def _print(knock: knocks.Knock, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({name: getattr(knock, name) for name in knocks.FIELDS}) + "\n")
    else:
        sys.stdout.write(knocks.render(knock) + "\n")


def _added_up(found: Iterable[knocks.Knock], names: list[str]) -> str:
    sums = Counter(tuple(getattr(knock, name) for name in names) for knock in found)
    return commandline.table(["calls", *names], ((count, *key) for key, count in sums.most_common()))


def main(argv: list[str]) -> int:
    """Print what was asked for. Returns: the exit code, 1 where nothing was found."""
    chosen = _parser().parse_args(argv)
    wanted = _wanted(chosen)
    config = settings.load(os.environ, ROOT / ".env")
    logs = [ROOT / config.state / "log" / name for name in ("server.jsonl", "edge.jsonl")]
    if not any(log.exists() for log in logs):
        raise Problem("There is no log yet.", "./scripts/up starts the server, which writes one")
    names = [name for name in chosen.count.split(",") if name]
    if unknown := set(names) - set(FIELDS):
        raise Problem(f"There is no field {', '.join(sorted(unknown))}.", f"Fields: {', '.join(FIELDS)}", 2)
    tails = [knocks.Tail(log, whole=True) for log in logs]
    kept = (knock for log, tail in zip(logs, tails, strict=True) for knock in _kept(log, tail))
    found = sorted(filter(wanted, kept), key=lambda knock: knock.time)
    if names:
        # a call whose client left before its tool ended has two lines; the second tells how it ended
        once = {(knock.request_id or id(knock), knock.time): knock for knock in found}
        sys.stdout.write(_added_up(once.values(), names) + "\n")
        return 0 if found else 1
    for knock in found if chosen.all else found[-chosen.last :] if chosen.last > 0 else []:
        _print(knock, as_json=chosen.json)
    sys.stdout.flush()
    while chosen.follow:
        for knock in filter(None, (knocks.parse(line) for tail in tails for line in tail.lines())):
            if wanted(knock):
                _print(knock, as_json=chosen.json)
        sys.stdout.flush()
        time.sleep(LOOK)
    if not found:
        sys.stderr.write("Nothing was found; --all looks at every line, scripts/audit --help shows the filters\n")
    return 0 if found else 1


if __name__ == "__main__":
    command(main)
