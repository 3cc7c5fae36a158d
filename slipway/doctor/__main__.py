"""The command line of the doctor: ./scripts/doctor [URL]."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from pathlib import Path

from slipway import commandline, settings, tokens
from slipway.doctor import examine, report
from slipway.errors import Problem, command
from slipway.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_SOAK = 3600  # seconds
_ORIGIN = re.compile(r"(null|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?/?)?", re.I | re.A)
EXAMPLES = """examples:
  ./scripts/doctor                               our own stack, hop by hop
  ./scripts/doctor https://host.example/mcp      any MCP server
  ./scripts/doctor --origin https://app.example  for the pages of this origin
  ./scripts/doctor --soak 150                    is an idle stream cut?
  ./scripts/doctor --json | jq .first_trouble
exit code: 0 no failure, 1 a failure, 2 a mistake in command or settings
"""


def _arguments(argv: list[str]) -> argparse.Namespace:
    about = "Asks every hop the same questions: where does it go wrong, why, what helps?"
    parser = commandline.parser("./scripts/doctor", about, EXAMPLES)
    add = parser.add_argument
    add("url", nargs="?", default="", metavar="URL", help="an MCP endpoint; without it: our own stack")
    add("--token", default="", help="the token to send; - reads it from stdin (default: a short one of our own)")
    add("--origin", default="", help="of the page that CORS is checked for (default: the console's)")
    add("--soak", type=int, default=0, metavar="SECONDS", help="hold an idle stream for so long")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--bundle", nargs="?", const="slipway-report.json", default="", metavar="FILE",
        help="write a report without secrets, to attach to a bug (slipway-report.json)")  # fmt: skip
    chosen = parser.parse_args(argv)
    if not 0 <= chosen.soak <= MAX_SOAK:
        raise Problem(f"--soak {chosen.soak} is out of range.", f"Write 0 to {MAX_SOAK} seconds, as in --soak 150", 2)
    return chosen


def _origin(text: str) -> str:
    """Return an origin as browsers send it. Raises: Problem."""
    if not _ORIGIN.fullmatch(text):
        raise Problem(f"{text[:100]!r} is no origin.", "Write scheme://host[:port], as in https://app.example.com", 2)
    return text.rstrip("/").lower()


def _secret(config: Settings) -> tokens.Secret | None:
    path = ROOT / config.secret_file
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # the reader says it in words
    return tokens.read_secret(path)


def main(argv: list[str]) -> int:
    """Examine. Returns: the exit code."""
    chosen = _arguments(argv)
    config = settings.load(os.environ, ROOT / ".env")
    secret = _secret(config)
    if not chosen.url and secret is None:
        raise Problem(
            "There is no stack here yet, and no URL was given.", "./scripts/up, or: ./scripts/doctor URL", 2
        )
    token = sys.stdin.readline().strip() if chosen.token == "-" else chosen.token  # noqa: S105 stdin
    token = token.removeprefix("Bearer ").strip()
    if not token.isascii() or not token.isprintable() or " " in token or len(token) > 16_384:
        raise Problem("What --token gives is no token.", "Copy it whole, without spaces", 2)
    url = examine.url_of(chosen.url) if chosen.url else ""
    asked = examine.Asked(url, token, _origin(chosen.origin), chosen.soak)
    hops = examine.hops(config, ROOT, asked, secret)
    if sys.stderr.isatty():
        extra = f" (holding a stream for {chosen.soak} s)" if chosen.soak else ""
        sys.stderr.write(f"examining {', '.join(hop.name for hop in hops)}{extra} …\n")
    found = asyncio.run(examine.examine(hops))
    sys.stdout.write((json.dumps(report.as_json(found)) if chosen.json else report.as_text(found)) + "\n")
    if chosen.bundle:
        report.write_bundle(found, Path(chosen.bundle), ROOT, ROOT / config.state / "log")
    return 1 if found.failures else 0


if __name__ == "__main__":
    command(main)
