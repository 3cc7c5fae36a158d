"""The command line of tokens: mint one and print it alone, or explain one. scripts/mint is its door."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slipway import commandline, settings, tokens
from slipway.errors import command

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """examples:
  scripts/mint --subject ana --tools add,countdown --ttl 1h
  scripts/mint --subject bot --limit calls_per_minute=2000
  scripts/mint --explain TOKEN     what it is, and why it would be refused
  pbpaste | scripts/mint --explain -
"""


def main(argv: list[str]) -> int:
    """Print a token, or what a given one is. Returns: 0, or 1 for a token that would be refused."""
    parser = commandline.parser("scripts/mint", "Prints a token and nothing else.", EXAMPLES)
    parser.add_argument("--subject", default="demo", help="whom it is for; whoami and the log say it (demo)")
    parser.add_argument("--tools", default="*", metavar="a,b", help="tools that it may call (*)")
    parser.add_argument("--ttl", default="1h", help="how long it lives: 30m, 1h30m, 2d (1h)")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=N",
        help=f"a limit of its own, instead of the settings'; again for more. Names: {', '.join(tokens.LIMITS)}",
    )  # fmt: skip
    parser.add_argument("--explain", metavar="TOKEN", help="say what a token is; - reads it from stdin")
    chosen = parser.parse_args(argv)
    config = settings.load(os.environ, ROOT / ".env")
    path = ROOT / config.secret_file
    if chosen.explain is not None:
        given = sys.stdin.read(1 << 20) if chosen.explain == "-" else chosen.explain
        text, accepted = tokens.explain(tokens.read_secret(path) if path.exists() else None, given)
        sys.stdout.write(text + "\n")
        return 0 if accepted else 1
    scope, ttl = tokens.tool_scope(chosen.tools), tokens.bounded_ttl(chosen.ttl, config.max_ttl)
    limits = tokens.own_limits(chosen.limit)
    minted = tokens.mint(tokens.ensure_secret(path), subject=chosen.subject, scope=scope, ttl=ttl, limits=limits)
    sys.stdout.write(minted.token + "\n")
    return 0


if __name__ == "__main__":
    command(main)
