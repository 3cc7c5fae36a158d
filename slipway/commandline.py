"""How our command lines are laid out: a description, options, examples as they are typed, and verbs of a verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def parser(name: str, about: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with the examples, and which takes no shortened options."""
    return argparse.ArgumentParser(
        name, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip


def verbs(of: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """Return what adds a verb, which is found in `verb` and knows --json."""
    found = of.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        added = found.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="print what the server says, as JSON")
        return added

    return verb
