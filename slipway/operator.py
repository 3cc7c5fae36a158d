"""The way to the running server's /admin, on loopback: Server and table, which every command that goes it shares.

The commands scripts/tokens and scripts/invite live here, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from slipway import commandline, knocks, settings, tokens
from slipway.errors import Problem, command

ROOT = Path(__file__).resolve().parent.parent
NO_SERVER = 3  # the exit code where none answers
TOKENS = """examples:
  scripts/tokens list                     every token, and its state
  scripts/tokens mint --subject ana --tools add --ttl 2h
  scripts/tokens revoke 3f2a9c…           by id, or by the token itself
  scripts/tokens revoke --subject ana     all of one person; --all of everybody
  scripts/tokens extend 3f2a9c… --ttl 1h  nothing is pasted again
"""
INVITES = """examples:
  scripts/invite new --uses 30 --ttl 3h   a code for a class
  scripts/invite new --tools add,whoami   and what its holders may call
  scripts/invite list                     the codes themselves are not kept
  scripts/invite revoke ACDE-3479         by the code, or the start of its id
"""


class Server:
    """The running server's /admin."""

    def __init__(self, config: settings.Settings, secret: tokens.Secret) -> None:
        # with replicas any of them will do, and one may be away
        ports = range(config.server_port, max(config.server_port, config.server_port_last) + 1)
        self._urls = [f"http://127.0.0.1:{port}/admin" for port in ports]
        self._secret = secret

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request with a token that lives a minute. Returns: the answer.

        Raises:
            Problem: no server answers, or it refuses.
        """
        with self._open(method, path, content, tokens.ADMIN_AUDIENCE) as answer:
            try:
                found: dict[str, Any] = json.load(answer)
            except ValueError:
                raise self._silent() from None
            return found

    def key(self, audience: str, ttl: int) -> str:
        """Return a token for one audience, good for that many seconds."""
        return tokens.mint(self._secret, subject="operator", scope="admin", ttl=ttl, audience=audience).token

    def url(self, path: str) -> str:
        """Return the URL of a path under /admin, at the first server."""
        return self._urls[0] + path

    def stream(self, path: str, audience: str) -> IO[bytes]:
        """Open a stream of events. Raises: Problem, as `ask`."""
        found: IO[bytes] = self._open("GET", path, None, audience)
        return found

    def _open(self, method: str, path: str, content: dict[str, Any] | None, audience: str) -> Any:
        token = self.key(audience, 60)
        # a proxy from the environment has no business on loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for url in self._urls:
            request = urllib.request.Request(  # noqa: S310 our own loopback address
                url + path, method=method, data=json.dumps(content).encode() if content is not None else None,
                headers={
                    "authorization": f"Bearer {token}", "content-type": "application/json",
                    "x-request-id": tokens.own_mark(self._secret),
                },
            )  # fmt: skip
            with contextlib.suppress(ConnectionRefusedError):
                return self._answer(opener, request)
        raise self._silent()

    def _silent(self) -> Problem:
        return Problem(f"No server answers at {self._urls[0]}.", "./scripts/up starts it", NO_SERVER)

    def _answer(self, opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> Any:
        try:
            return opener.open(request, timeout=20)
        except urllib.error.HTTPError as error:
            try:
                told = json.load(error)
            except ValueError:
                told = {}
            if error.code == 401:
                raise Problem(
                    "The running server does not know this secret.", "Restart it: ./scripts/down, then ./scripts/up"
                ) from None
            raise Problem(
                str(told.get("error", f"The server answers {error.code}.")),
                str(told.get("cure", "Restart it: ./scripts/down, then ./scripts/up")),
            ) from None
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ConnectionRefusedError):
                raise error.reason from None
            raise self._silent() from None


def _parser(name: str) -> argparse.ArgumentParser:
    is_tokens = name == "tokens"
    about = "Tokens of the running server." if is_tokens else "Invite codes of the running server."
    parser = commandline.parser(f"scripts/{name}", about, TOKENS if is_tokens else INVITES)
    verb = commandline.verbs(parser)
    verb("list", "list them")
    if is_tokens:
        mint = verb("mint", "make a token and print it alone")
        mint.add_argument("--subject", default="demo", help="whom it is for (demo)")
        mint.add_argument(
            "--limit", action="append", default=[], metavar="NAME=N",
            help=f"a limit of its own; again for more. Names: {', '.join(tokens.LIMITS)}",
        )  # fmt: skip
        mint.add_argument("--purpose", default="", help="what for; the list shows it")
        show = verb("show", "say all about one")
        show.add_argument("id")
        extend = verb("extend", "let one live longer, from now on")
        extend.add_argument("id")
        revoke = verb("revoke", "refuse one, all of a subject, or all, from the next request on")
        revoke.add_argument("id", nargs="?", default="")
        revoke.add_argument("--subject", default="")
        revoke.add_argument("--all", action="store_true")
        lives = [(mint, "1h"), (extend, "1h")]
        mint.add_argument("--tools", default="*", metavar="a,b", help="tools that it may call (*)")
    else:
        new = verb("new", "make a code and print it alone")
        new.add_argument("--uses", type=int, default=1, help="how many people may use it (1)")
        new.add_argument("--tools", default="*", metavar="a,b", help="tools that they may call (*)")
        new.add_argument("--token-ttl", default="8h", help="how long their tokens live (8h)")
        new.add_argument("--name", default="", help="what for; the list shows it")
        revoke = verb("revoke", "stop a code; tokens that it brought stay")
        revoke.add_argument("id")
        lives = [(new, "2h")]
    for each, default in lives:
        each.add_argument("--ttl", default=default, help=f"how long it lives: 30m, 1h30m, 2d ({default})")
    return parser


def _tokens(server: Server, chosen: argparse.Namespace, secret: tokens.Secret) -> tuple[dict[str, Any], str]:
    """Do what was asked about tokens. Returns: (the server's words, ours)."""
    match chosen.verb:
        case "list":
            answer = server.ask("GET", "/tokens")
            heads = ["id", "subject", "scope", "ends", "via", "state"]
            return answer, commandline.table(heads, map(_row, answer["tokens"]))
        case "mint":
            asked = {name: getattr(chosen, name) for name in ("subject", "tools", "ttl", "purpose")}
            asked["limits"] = [f"{name}={most}" for name, most in tokens.own_limits(chosen.limit).items()]
            answer = server.ask("POST", "/tokens", asked)
            return answer, answer["token"]
        case "show":
            answer = server.ask("GET", f"/tokens/{_id(chosen.id, secret)}")
            told = {name: knocks.printable(_moment(name, value), 10_000) for name, value in answer.items()}
            return answer, "\n".join(f"{name + ':':<13}{value}" for name, value in told.items())
        case "extend":
            answer = server.ask("POST", f"/tokens/{_id(chosen.id, secret)}/extend", {"ttl": chosen.ttl})
            return answer, f"{answer['jti']} of {answer['subject']} ends {ends(answer['ends_at'])}"
    given = [bool(chosen.id), bool(chosen.subject), chosen.all]
    if sum(given) != 1:
        raise Problem("Revoke what?", "Name a token's id, or --subject NAME, or --all", 2)
    if chosen.id:
        answer = server.ask("DELETE", f"/tokens/{_id(chosen.id, secret)}")
        whose = f" of {answer['subject']}" if answer["known"] else ", which was never used here,"
        return answer, f"{answer['jti']}{whose} is refused from now on"
    answer = server.ask("POST", "/tokens/revoke", {"subject": chosen.subject} if chosen.subject else {"all": True})
    what = f"of {chosen.subject}" if chosen.subject else "of everybody"
    return answer, f"every token {what} is refused from now on ({answer['revoked']} known ones were good)"


def _invites(server: Server, chosen: argparse.Namespace, _: tokens.Secret) -> tuple[dict[str, Any], str]:
    """Do what was asked about invites. Returns: (the server's words, ours)."""
    match chosen.verb:
        case "new":
            asked = {name: getattr(chosen, name) for name in ("uses", "tools", "ttl", "token_ttl", "name")}
            answer = server.ask("POST", "/invites", asked)
            return answer, answer["code"]
        case "revoke":
            answer = server.ask("DELETE", f"/invites/{urllib.parse.quote(chosen.id, safe='')}")
            return answer, "the code is refused from now on"
    answer = server.ask("GET", "/invites")
    rows = (
        [
            one["id"],
            f"{one['used']} of {one['uses']}",
            one["scope"],
            ends(one["expires_at"]),
            one["name"],
            one["state"],
        ]
        for one in answer["invites"]
    )
    return answer, commandline.table(["id", "used", "scope", "ends", "name", "state"], rows)


def _id(given: str, secret: tokens.Secret) -> str:
    """Return a token's id; of the token itself, where that was given: it may be all that one has of a leak."""
    if given.count(".") != 2:
        return urllib.parse.quote(given, safe="")
    try:
        return str(tokens.verify(secret, given.removeprefix("Bearer ").strip(), late=True)["jti"])
    except tokens.TokenRefused as refused:
        raise Problem(f"This is no token of ours: {refused}.", "scripts/mint --explain TOKEN says more", 2) from None


def _row(record: dict[str, Any]) -> list[str]:
    whose = record["subject"] + (f" ({record['purpose']})" if record["purpose"] else "")
    return [record["jti"], whose, record["scope"], ends(record["ends_at"]), record["via"], record["state"]]


def ends(when: float) -> str:
    left = int(when - time.time())
    return f"in {tokens.duration(left)}" if left > 0 else f"{tokens.duration(-left)} ago"


def _moment(name: str, value: object) -> str:
    if name.endswith(("_at", "_to")) and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else "never"
    return str(value)


def main(argv: list[str]) -> int:
    """Run one command: `tokens …` or `invite …`. Returns: the exit code."""
    name, *rest = argv
    chosen = _parser(name).parse_args(rest)
    config = settings.load(os.environ, ROOT / ".env")
    secret = tokens.read_secret(ROOT / config.secret_file)
    answer, text = (_tokens if name == "tokens" else _invites)(Server(config, secret), chosen, secret)
    sys.stdout.write((json.dumps(answer) if chosen.json else text) + "\n")
    return 0


if __name__ == "__main__":
    command(main)
