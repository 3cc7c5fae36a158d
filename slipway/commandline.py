"""How our command lines are laid out: help with examples, verbs of a verb, facts below each other, tables."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import TextIO

from slipway import knocks

_FACT = re.compile(r"[a-z][\w ]{10} \S", re.I)  # "token       demo, …": a label, and what it says from column 12 on


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


def fitted(text: str, stream: TextIO) -> str:
    """Return the text with long facts wrapped between words where a terminal reads it; a pipe gets a line a fact."""
    if not stream.isatty():
        return text
    wide = shutil.get_terminal_size().columns
    return "\n".join(
        wrapped(line, wide) if len(line) > wide and _FACT.match(line) else line for line in text.split("\n")
    )


def wrapped(line: str, wide: int, indent: str = " " * 12) -> str:
    """Return a line as several of a width, all but the first with an indent; words stay whole, to be copied."""
    return textwrap.fill(line, wide, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return rows in columns; no cell can command a terminal."""
    lines = [[knocks.printable(cell) or "-" for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
