"""The cards on the tables: for each seat its code, large and as a QR code, and three steps. To print, and as PDF."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import segno

from slipway.errors import Problem
from slipway.knocks import printable

PER_PAGE = 8
PATIENCE = 60.0  # seconds for a browser that prints
NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge",
    "brave-browser", "brave", "chrome",
)  # fmt: skip
MACOS = tuple(
    f"/Applications/{name}.app/Contents/MacOS/{name}"
    for name in ("Google Chrome", "Chromium", "Microsoft Edge", "Brave Browser")
)
WEB = Path(__file__).resolve().parent.parent / "web"


@dataclass(frozen=True)
class Card:
    """One seat's card. Who has no name yet is called by the seat."""

    seat: int
    name: str
    code: str


def html(title: str, join_url: str, cards: Sequence[Card], ends_at: float) -> str:
    """Return the page, eight cards on a sheet. It holds the codes: write it with `files.write`.

    Args:
        title: the lab's.
        join_url: of the join page; with ?code=… it fills the code in.
        cards: in the order of printing.
        ends_at: when the codes end, in seconds since the epoch.
    """
    until = time.strftime("until %a %d %b, %H:%M", time.localtime(ends_at))
    style = (WEB / "cards.css").read_text(encoding="utf-8")
    done = [_card(title, join_url, card, until) for card in cards]
    sheets = "\n".join(
        f'<section class="sheet">\n{"".join(done[at : at + PER_PAGE])}</section>'
        for at in range(0, len(done), PER_PAGE)
    )
    # the file is opened by a browser with the rights of a local file
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_safe(title, 100)}: cards</title>\n"
        f'<meta http-equiv="content-security-policy" content="{policy}">\n<style>\n{style}</style>\n'
        f"</head>\n<body>\n{sheets}\n</body>\n</html>\n"
    )


def _card(title: str, join_url: str, card: Card, until: str) -> str:
    link = f"{join_url}?code={quote(card.code, safe='')}"
    # error correction M: a fold or a coffee stain may cover a seventh of it
    image = segno.make(link, error="m").svg_data_uri(border=2, scale=4)
    seat, name = f"Seat {card.seat}", _safe(card.name, 60)
    about = f"{seat} · {until}" if name else until
    return (
        f"<article><header><b>{_safe(title, 60)}</b><span>{about}</span></header>\n"
        f'<h2>{name or seat}</h2><p class="code">{_safe(card.code, 20)}</p>'
        f'<img src="{escape(image)}" alt="QR code of the join page with this code">\n'
        f"<ol><li>Open <b>{_safe(join_url.removeprefix('https://'), 200)}</b> or scan</li>"
        "<li>Type the code and your name</li>"
        "<li>Paste what you get into your client</li></ol></article>\n"
    )


def _safe(text: str, limit: int) -> str:
    return escape(printable(text, limit))


def browser() -> str:
    """Return the path of a browser that can print, or ""."""
    found = (shutil.which(name) for name in NAMES)
    return next(filter(None, found), "") or next((place for place in MACOS if Path(place).is_file()), "")


def pdf(html_file: Path, pdf_file: Path, *, program: str | None = None, patience: float = PATIENCE) -> None:
    """Print the page into a PDF of mode 600, by a browser of this machine without a window.

    Args:
        html_file: what `html` returned.
        pdf_file: replaced when all went well.
        program: the browser; None looks for one.
        patience: seconds that it may take.
    Raises:
        Problem: there is no browser, or it does not print.
    """
    program = browser() if program is None else program
    cure = f"Open {html_file} in any browser, and print it to a PDF"
    if not program:
        raise Problem("There is no Chromium, Chrome, Edge or Brave here that could write the PDF.", cure)
    # not in /tmp: a browser from a snap sees another one. A profile of its own: one that is open has it locked
    with tempfile.TemporaryDirectory(
        prefix=".print-", dir=pdf_file.resolve().parent, ignore_cleanup_errors=True
    ) as folder:
        fresh = Path(folder) / "cards.pdf"
        command = [
            program, "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--no-pdf-header-footer", f"--user-data-dir={folder}/profile", f"--print-to-pdf={fresh}",
            # as root Chromium refuses to start with its sandbox
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            html_file.resolve().as_uri(),
        ]  # fmt: skip
        _run(command, patience, cure)
        if not fresh.is_file() or not fresh.read_bytes().startswith(b"%PDF"):
            raise Problem(f"{program} wrote no PDF.", cure)
        fresh.chmod(0o600)
        fresh.replace(pdf_file)


def _run(command: list[str], patience: float, cure: str) -> None:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise Problem(f"{command[0]} does not start: {error.strerror}.", cure) from None
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        raise Problem(f"{command[0]} did not print in {patience:.0f} seconds.", cure) from None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser with all its processes, also after an exception or Ctrl-C."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait()
