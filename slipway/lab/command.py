"""scripts/lab: opens a lab on the running server, shows it, changes it, ends it. Through /admin, on loopback."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import IO, Any

import segno

from slipway import commandline, edge, files, knocks, settings, tokens
from slipway.errors import Problem, command
from slipway.lab import cards, checkpoints
from slipway.lab.watch import events, kept_open, watch
from slipway.lan import door, network, trust
from slipway.operator import NO_SERVER, Server

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINTS = ROOT / "labs" / "checkpoints.toml"
KEY_LIFE = 12 * 3600  # seconds that the board's key opens the board
EXAMPLES = """examples:
  scripts/lab new "MCP 101" --seats 30 --for 3h  seats, codes, the board
  scripts/lab new "MCP 101" --roster names.csv   a seat for each name
  scripts/lab new "MCP 101" --labs 01,03 --tools add,countdown
  scripts/lab new "MCP 101" --lan                in the local network, no tunnel
  scripts/lab cards                              a card to print for each seat
  scripts/lab watch                              the board, here
  scripts/lab list                               who sits where, what is wrong
  scripts/lab reset 7                            free a seat, with a new code
  scripts/lab lock                               nobody new gets in
  scripts/lab end                                stop all its tokens, forget it
"""


def _parser() -> argparse.ArgumentParser:
    about = "A workshop on the running server: thirty seats, one instructor."
    parser = commandline.parser("scripts/lab", about, EXAMPLES)
    verb = commandline.verbs(parser)
    new = verb("new", "open a lab")
    new.add_argument("title", metavar="TITLE", help='what it is called, as in "MCP 101"')
    new.add_argument("--seats", type=int, metavar="N", help="how many (30, or the names of the roster)")
    new.add_argument("--for", dest="life", default="3h", metavar="3h", help="how long it lasts: 90m, 3h, 2d (3h)")
    new.add_argument("--tools", default="*", metavar="a,b", help="tools that its tokens may call (*)")
    new.add_argument("--roster", metavar="FILE", help="names, one a line, or a CSV file with a column `name`")
    new.add_argument("--checkpoints", metavar="FILE", default="", help="what to tick off (labs/checkpoints.toml)")
    new.add_argument(
        "--lan", nargs="?", const="", metavar="ADDRESS",
        help="serve the room without a tunnel: TLS on this machine's address in the local network",
    )  # fmt: skip
    new.add_argument("--labs", metavar="01,03", default="", help="only the checkpoints of these labs")
    verb("list", "show the seats")
    verb("watch", "show the board here; Ctrl-C ends it")
    printed = verb("cards", "write printable cards, with the codes")
    printed.add_argument("--out", metavar="FILE", default="", help="where to (.slipway/lab/cards.html)")
    printed.add_argument("--pdf", action="store_true", help="also as PDF, by an installed browser")
    extend = verb("extend", "let it last longer: its codes and its tokens")
    extend.add_argument("life", metavar="1h", help="by how much")
    for name, help in (
        ("reset", "free a seat: its tokens stop, it gets a new code"),
        ("revoke", "close a seat: its tokens and its code stop"),
    ):
        verb(name, help).add_argument("seat", type=int, metavar="SEAT")
    verb("lock", "let nobody new in")
    verb("unlock", "let people in again")
    verb("end", "stop every token of the lab and forget it").add_argument(
        "--yes", action="store_true", help="do not ask"
    )
    return parser


def _roster(file: str) -> list[str]:
    """Return the names of a file: of its column `name`, else the first of each line."""
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise Problem(f"The roster {file} cannot be read: {why}.", "Write one name a line", 2) from None
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = heads.index("name") if "name" in heads else 0
    names = [row[column].strip() for row in (rows[1:] if "name" in heads else rows) if len(row) > column]
    if not any(names):
        raise Problem(f"The roster {file} has no names.", "Write one name a line", 2)
    return [name for name in names if name]


def _checkpoints(file: str, labs: str) -> dict[str, Any]:
    rows = checkpoints.read(Path(file) if file else CHECKPOINTS)
    wanted = {number.strip() for number in labs.split(",") if number.strip()}
    if unknown := wanted - {row.get("lab", "") for row in rows.values()}:
        known = sorted({row.get("lab", "") for row in rows.values()} - {""})
        raise Problem(f"No lab is called {', '.join(sorted(unknown))}.", f"There are: {', '.join(known)}", 2)
    return {name: row for name, row in rows.items() if not wanted or row.get("lab") in wanted}


def _new(server: Server, chosen: argparse.Namespace, config: settings.Settings) -> tuple[dict[str, Any], str]:
    roster = _roster(chosen.roster) if chosen.roster else []
    asked = {
        "title": chosen.title, "seats": (len(roster) or 30) if chosen.seats is None else chosen.seats,
        "for": chosen.life, "tools": chosen.tools, "roster": roster,
        "checkpoints": _checkpoints(chosen.checkpoints, chosen.labs),
    }  # fmt: skip
    lan, there = None, False
    if chosen.lan is not None:
        address = network.address(chosen.lan)
        there = _is_there(server, chosen.title)
        lan = door.open_(config, address)
    url = lan.url if lan else edge.local_url(config).removesuffix("/mcp")
    try:
        answer = server.ask("POST", "/lab", asked | {"url": url, "lan": lan is not None})
    except BaseException:
        if lan:
            door.close(config)
        raise
    lab, code = answer["lab"], answer["code"]
    board = f"{server.url('').removesuffix('/admin')}/board#key={server.key(tokens.BOARD_AUDIENCE, KEY_LIFE)}"
    answer |= {"board_url": board, "projector_url": f"{board}&view=projector"}
    lines = [
        f"lab         {lab['title']}, {len(lab['seats'])} seats, until {_moment(lab['ends_at'])}",
        f"join        {lab['join_url']} with {code}, which is the code for all",
        f"board       {board}",
        "projector   the button on the board shows it without names, with the QR code",
        "cards       ./scripts/lab cards prints a code for each seat: hand out those, or show the one for all",
    ]
    if there:
        lines.append("note        it was there already: only its address is new, seats and codes are as they were")
    if lan:
        lines += [f"note        {text}" for text in door.warnings(lan)]
        lines += ["", trust.trust_text(lan.url, lan.fingerprint), "", trust.unreachable_text(lan.url)]
    elif lab["join_url"].startswith("https://localhost"):
        lines.append("note        no public URL is open: only this machine can join. ./scripts/up opens one")
    return answer, "\n".join(lines)


def _is_there(server: Server, title: str) -> bool:
    """Tell, before anything is opened, whether this lab of the local network goes on, at another address.

    Raises:
        Problem: there is another lab.
    """
    there: dict[str, Any] = {}
    with contextlib.suppress(Problem):
        there = server.ask("GET", "/lab")["lab"]
    if there and not (there["lan"] and there["title"] == title.strip() and there["ends_at"] > time.time()):
        raise Problem(f"There is a lab already: {there['title']}.", "./scripts/lab end", 2)
    return bool(there)


def _moment(when: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(when))


def _show_qr(answer: dict[str, Any]) -> None:
    url = f"{answer['lab']['join_url']}?code={answer['code']}"
    sys.stdout.write("\n")
    segno.make(url, error="m").terminal(out=sys.stdout, compact=True)
    sys.stdout.write(f"{url}\n")


def _list(answer: dict[str, Any]) -> str:
    lab = answer["lab"]
    total = len(lab["checkpoints"])
    rows = [
        [row["seat"], row["name"], row["state"], row["client"], row["calls"], row["errors"],
         f"{len(row['checkpoints'])}/{total}" if total else "", row["stuck"]]
        for row in lab["seats"]
    ]  # fmt: skip
    locked = ", locked" if lab["locked"] else ""
    head = f"{knocks.printable(lab['title'], 80)}: until {_moment(lab['ends_at'])}{locked}; {lab['join_url']}"
    warning = lab["budget"]["warning"]
    return "\n".join([
        head, *([f"quota: {warning}"] if warning else []),
        commandline.table(["seat", "name", "state", "client", "calls", "errors", "reached", "stuck"], rows),
    ])  # fmt: skip


def _end(server: Server, chosen: argparse.Namespace, config: settings.Settings) -> tuple[dict[str, Any], str]:
    lab = server.ask("GET", "/lab")["lab"]
    if not chosen.yes and sys.stdin.isatty():
        sys.stderr.write(f"End {lab['title']!r} and stop the tokens of {len(lab['seats'])} seats? [y/N] ")
        sys.stderr.flush()
        if not sys.stdin.readline().strip().lower().startswith("y"):
            raise Problem("Nothing was ended.", "./scripts/lab end --yes ends it without asking", 1)
    name = re.sub(r"[^a-z0-9]+", "-", lab["title"].lower()).strip("-") or "lab"
    file = _folder(config) / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{name}.json"
    answer = server.ask("DELETE", "/lab")
    told = answer["summary"]
    # the lab is gone: nothing else may fail before this is kept
    files.write(file, json.dumps(told, indent=1) + "\n")
    for each in ("cards.html", "cards.pdf"):
        file.with_name(each).unlink(missing_ok=True)
    if door.close(config):
        sys.stderr.write("the edge answers on loopback only, as before\n")
    return answer, "\n".join([
        f"ended       {lab['title']}: every token and code of it is refused from now on",
        f"joined      {told['joined']} of {told['seats']} seats; {told['calls']} calls, {told['errors']} errors",
        f"summary     {file} (numbers by seat, no names)",
        "kept        the audit log, and what the tools themselves stored",
    ])  # fmt: skip


def _cards(server: Server, chosen: argparse.Namespace, config: settings.Settings) -> tuple[dict[str, Any], str]:
    answer = server.ask("GET", "/lab/codes")
    lab = answer["lab"]
    file = Path(chosen.out) if chosen.out else _folder(config) / "cards.html"
    page = cards.html(lab["title"], lab["join_url"], [cards.Card(**card) for card in answer["cards"]], lab["ends_at"])
    try:
        files.write(file, page)
    except OSError as error:
        raise Problem(f"{file} cannot be written: {error.strerror}.", "Name another: --out cards.html", 2) from None
    text = f"cards       {file} ({len(answer['cards'])} codes, for your eyes: print it, cut it, hand it out)"
    if chosen.pdf:
        cards.pdf(file, file.with_suffix(".pdf"))
        text += f"\nPDF         {file.with_suffix('.pdf')}"
    return answer, text


def _watch(server: Server, *, as_json: bool) -> int:
    """Show the board until the lab ends, or its events as JSON lines. Returns: the exit code."""
    opened = False

    def connect() -> IO[bytes]:
        nonlocal opened
        try:
            stream = server.stream("/lab/events", tokens.BOARD_AUDIENCE)
        except Problem as problem:
            if opened and problem.exit_code == NO_SERVER:
                raise ConnectionError from None  # it was there, and will be again
            raise
        opened = True
        return stream

    if not as_json:
        watch(kept_open(connect), sys.stdout, colour=not os.environ.get("NO_COLOR"))
        return 0
    for name, content in events(kept_open(connect)):
        sys.stdout.write(json.dumps({"event": name, "content": content}) + "\n")
        sys.stdout.flush()
        if name == "end":
            break
    return 0


def _folder(config: settings.Settings) -> Path:
    folder = ROOT / config.state / "lab"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _do(server: Server, chosen: argparse.Namespace, config: settings.Settings) -> tuple[dict[str, Any], str]:
    """Do what was asked. Returns: (the server's words, ours)."""
    match chosen.verb:
        case "new":
            return _new(server, chosen, config)
        case "cards":
            return _cards(server, chosen, config)
        case "end":
            return _end(server, chosen, config)
        case "extend":
            answer = server.ask("POST", "/lab/extend", {"for": chosen.life})
            lab = answer["lab"]
            return answer, f"{lab['title']} goes on until {_moment(lab['ends_at'])}; no token is pasted again"
        case "lock" | "unlock":
            answer = server.ask("POST", "/lab/lock", {"locked": chosen.verb == "lock"})
            return answer, "nobody new gets in" if answer["lab"]["locked"] else "people may join again"
        case "reset" | "revoke":
            answer = server.ask("POST", f"/lab/seats/{chosen.seat}/{chosen.verb}", {})
            whose = f" of {answer['who']}" if answer["who"] else ""
            code = f"; its new code: {answer['code']}" if answer["code"] else ""
            return answer, f"seat {chosen.seat}{whose}: its tokens are refused from now on{code}"
    answer = server.ask("GET", "/lab")
    return answer, _list(answer)


def main(argv: list[str]) -> int:
    """Run one command. Returns: the exit code."""
    chosen = _parser().parse_args(argv)
    config = settings.load(os.environ, ROOT / ".env")
    server = Server(config, tokens.read_secret(ROOT / config.secret_file))
    if chosen.verb == "watch":
        return _watch(server, as_json=chosen.json)
    answer, text = _do(server, chosen, config)
    sys.stdout.write((json.dumps(answer) if chosen.json else commandline.fitted(text, sys.stdout)) + "\n")
    if chosen.verb == "new" and not chosen.json:
        _show_qr(answer)
    return 0


if __name__ == "__main__":
    command(main)
