"""Opens the public URL, mints a token, prints the client configuration, then shows who knocks.

stdout is the product (configurations, or one JSON object with --json), stderr the story.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from slipway import venv

venv.enter("pyngrok")

import pyperclip
import segno

from slipway import commandline, edge, handout, knocks, opening, operator, settings, stack, tokens
from slipway.clients import CLIENTS
from slipway.doctor import report
from slipway.errors import Problem, command

ROOT = Path(__file__).resolve().parent
EXAMPLES = """examples:
  ./scripts/up                        everything, then this
  ./scripts/up my_server.py           the same with your own server
  ./scripts/up "npx -y some-server"   or with a command, a URL, an mcp.json
  python tunnel.py --client cursor > mcp.json
  python tunnel.py --tools add --ttl 30m
  python tunnel.py --json | jq -r .url
"""

INVITED = 10  # people that one run's code lets in; scripts/invite makes others
WARNING = 300  # seconds before the token's end

GO_PUBLIC = """
To go public:
  1. get an authtoken: dashboard.ngrok.com/get-started/your-authtoken (free)
  2. put it into .env:  NGROK_AUTHTOKEN=…
  3. ./scripts/up"""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises: SystemExit 2 with usage; Problem for a value that is no value."""
    about = "Opens the public URL, prints what clients need, shows who knocks."
    parser = commandline.parser("tunnel.py", about, EXAMPLES)
    add = parser.add_argument
    add("target", nargs="?", default="", metavar="TARGET",
        help="with ./scripts/up: file.py[:object], command, URL or mcp.json to serve")  # fmt: skip
    add("--client", nargs="+", action="extend", default=[], metavar="NAME", help="print for these clients, or: all")
    add("--name", default="slipway", help="name of the server in the configurations (slipway)")
    add("--subject", default="demo", metavar="NAME", help="whom the token is for; whoami and the log say it (demo)")
    add("--tools", default="*", metavar="a,b", help="tools that the token may call (*)")
    add("--ttl", default="1h", help="how long the token lives: 30m, 1h30m, 2d (1h)")
    add("--url", default="", metavar="https://my.domain", help="your own ngrok domain")
    add("--json", action="store_true", help="one JSON object on stdout, once ready")
    add("--qr", action="store_true", help="show the URL as a QR code")
    add("--copy", action="store_true", help="copy the first configuration to the clipboard")
    add("--list-clients", action="store_true", help="list the names for --client")
    add("--no-doctor", action="store_true", help="do not examine the way to the server after opening")
    add("--no-public", action="store_true", help="open no public URL")
    # for scripts/up: start server and edge first
    add("--up", action="store_true", help=argparse.SUPPRESS)
    add("--local", action="store_true", help="with ./scripts/up: run server and edge without Docker")
    chosen, more = parser.parse_known_args(argv)
    if more and chosen.target:
        whole = shlex.quote(shlex.join([chosen.target, *more]))
        raise Problem(f"{more[0]} is no option of ours.", f"A command is one argument: ./scripts/up {whole}", 2)
    parser.parse_args(argv)
    chosen.client = handout.choose(chosen.client)
    tokens.parse_ttl(chosen.ttl)
    tokens.tool_scope(chosen.tools)
    if chosen.target and not chosen.up:
        raise Problem("tunnel.py serves nothing itself.", f"./scripts/up {shlex.quote(chosen.target)}", 2)
    if chosen.url and not chosen.url.startswith("https://"):
        raise Problem(f"{chosen.url!r} is no https URL.", "Write --url https://my.domain", 2)
    return chosen


def say(text: str) -> None:
    """Tell the story on stderr."""
    print(commandline.fitted(text, sys.stderr), file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Run until Ctrl-C or SIGTERM. Returns: the exit code."""
    chosen = arguments(argv)
    if chosen.list_clients:
        for name, client in CLIENTS.items():
            print(f"{name:<18} {client.title}{'' if client.bearer else ' (takes no bearer token)'}")
        return 0
    for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, _stop)
    watching = stack.up(local=chosen.local, target=chosen.target) if chosen.up else contextlib.nullcontext()
    config = settings.load(os.environ, ROOT / ".env")
    secret = tokens.read_secret(ROOT / config.secret_file)
    edge.check(config)
    scope, ttl = tokens.tool_scope(chosen.tools), tokens.bounded_ttl(chosen.ttl, config.max_ttl)
    minted = tokens.mint(secret, subject=chosen.subject, scope=scope, ttl=ttl)
    wanted = chosen.url or config.public_url
    with watching, opening.opened(config, ROOT, url=wanted, public=not chosen.no_public, say=say) as door:
        ca = edge.ca_file(config, ROOT)
        trusted, patience = (None, 15.0) if door.public else (ca, 5.0)
        mark = tokens.own_mark(secret)
        tools = edge.verify(door.url, minted.token, trusted, patience=patience, mark=mark)
        sheet = handout.Handout(
            chosen.name,
            door.url,
            door.public,
            edge.local_url(config),
            str(ca),
            minted,
            invite(config, secret, chosen),
            f"http://localhost:{config.console_port}",
        )
        logs = [knocks.Tail(ROOT / config.state / "log" / f"{name}.jsonl") for name in ("server", "edge")]
        hand_out(sheet, chosen, tools)
        if not door.public and not chosen.no_public:
            say(GO_PUBLIC)
        if not chosen.no_doctor:
            report.begin(config, ROOT, secret, say)
        watch(logs, minted, mark)
    return 0


def invite(config: settings.Settings, secret: tokens.Secret, chosen: argparse.Namespace) -> str:
    """Make a code for hosts that take no bearer and for people who join; "" where nobody has to sign in."""
    if config.anonymous:
        return ""
    asked = {"uses": INVITED, "ttl": chosen.ttl, "token_ttl": chosen.ttl, "tools": chosen.tools, "name": "tunnel.py"}
    return str(operator.Server(config, secret).ask("POST", "/invites", asked)["code"])


def hand_out(sheet: handout.Handout, chosen: argparse.Namespace, tools: list[str]) -> None:
    """Print the product and close stdout, so that a pipe sees its end while we go on watching."""
    claims, names = sheet.minted.claims, chosen.client
    print(sheet.as_json() if chosen.json else sheet.as_text(names).rstrip("\n"), flush=True)
    if not sys.stdout.isatty():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    say(f"\n{'public URL' if sheet.public else 'local URL':<11} {sheet.url}")
    left = tokens.duration(claims["exp"] - int(time.time()))
    say(f"token       {claims['sub']}, {claims['scope']}, expires in {left} (jti {claims['jti']})")
    if sheet.invite:
        if sheet.public:
            say(f"web         ChatGPT, claude.ai: add the URL above as a connector, sign in with {sheet.invite}")
        say(f"join        {sheet.join_url} with {sheet.invite}, for {INVITED} people")
    say(f"console     {sheet.console} (the link with the token is among the configurations, or in --json)")
    say(f"verified    a real call listed {len(tools)} tools: {', '.join(tools[:8])}")
    if not chosen.json:
        for note in sheet.notes(names):
            say(f"note        {note}")
    if chosen.qr:
        segno.make(sheet.url).terminal(out=sys.stderr, compact=True)
    if chosen.copy:
        try:
            pyperclip.copy(sheet.as_json() if chosen.json else sheet.as_text(names[:1]))
            say("copied to the clipboard")
        except pyperclip.PyperclipException:
            say("not copied: this machine has no clipboard program (Linux: apt install xclip or wl-clipboard)")


def watch(logs: list[knocks.Tail], minted: tokens.Minted, mark: str) -> None:
    """Print a line for everyone who knocks but ourselves, until a signal ends it."""
    say("\nwho knocks (Ctrl-C ends it):")
    claims = minted.claims
    # of one that lives so short it was just said
    warn_at = claims["exp"] - WARNING if claims["exp"] - claims["iat"] > WARNING else 0
    while True:
        for tail in logs:
            for knock in map(knocks.parse, tail.lines()):
                if knock and not knock.request_id.startswith(mark):
                    say(knocks.render(knock))
        if warn_at and time.time() > warn_at:
            warn_at, left = 0, claims["exp"] - int(time.time())
            # a laptop that slept may wake too late
            ends = f"expires in {tokens.duration(left)}" if left > 0 else "has expired"
            say(f"the token of {claims['sub']} {ends}: scripts/mint makes another")
        time.sleep(0.2)  # log files have no event to wait for that works on every system


def _stop(number: int, _: FrameType | None) -> None:
    # SystemExit, so that every `with` closes what it opened: after SIGTERM no atexit handler would run
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)
    say("\nended; server and edge stay up (./scripts/down stops them)")
    raise SystemExit(0)


if __name__ == "__main__":
    command(main)
