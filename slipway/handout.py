"""What a run hands out: the token and where to use it, as text to paste or as one JSON object. No network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from slipway import clients, tokens


@dataclass(frozen=True)
class Handout:
    """Everything a client needs to connect."""

    name: str
    url: str
    public: bool
    local_url: str
    ca_file: str
    minted: tokens.Minted
    invite: str
    console: str

    @property
    def join_url(self) -> str:
        """The page on which somebody gets a token of their own by the invite code; "" where there is no code."""
        return self.url.removesuffix("/mcp") + "/join" if self.invite else ""

    @property
    def console_url(self) -> str:
        """The browser console with URL and token in its fragment, which never leaves the browser."""
        also = "" if self.url == self.local_url else f"&also={quote(self.local_url, safe='')}"
        return f"{self.console}/#url={quote(self.url, safe='')}{also}&token={self.minted.token}"

    def endpoint(self) -> clients.Endpoint:
        """Return it as clients.py takes it: the local CA only where the URL is local."""
        ca = None if self.public else self.ca_file
        return clients.Endpoint(self.name, self.url, self.minted.token, ca, self.invite)

    def expires_at(self) -> str:
        """Return the time of expiry, ISO 8601 in UTC."""
        moment = datetime.fromtimestamp(self.minted.claims["exp"], UTC)
        return moment.isoformat().replace("+00:00", "Z")

    def as_json(self) -> str:
        """Return the one JSON object of `--json`, with every client."""
        snippets = {name: clients.render(name, self.endpoint()) for name in clients.CLIENTS}
        content: dict[str, Any] = {
            "url": self.url, "public": self.public, "local_url": self.local_url, "ca_file": self.ca_file,
            "token": self.minted.token, "subject": self.minted.claims["sub"], "scope": self.minted.claims["scope"],
            "expires_at": self.expires_at(), "invite": self.invite, "join_url": self.join_url,
            "console_url": self.console_url,
            "clients": {name: {"kind": s.kind, "path": s.path, "text": s.text} for name, s in snippets.items()},
        }  # fmt: skip
        return json.dumps(content)

    def as_text(self, names: list[str]) -> str:
        """Return the configurations of these clients; a single one stands alone, so that it can be piped."""
        if len(names) == 1:
            return clients.render(names[0], self.endpoint()).text
        parts = []
        for name in names:
            snippet = clients.render(name, self.endpoint())
            parts.append(f"── {clients.CLIENTS[name].title} · {snippet.path} ──\n{snippet.text}")
        parts.append(f"── the browser console · a link that holds the token ──\n{self.console_url}\n")
        return "\n".join(parts)

    def notes(self, names: list[str]) -> list[str]:
        """Return what these clients' users should know, each sentence once, with the clients that it is for."""
        found: dict[str, list[str]] = {}
        for name in names:
            if note := clients.render(name, self.endpoint()).note:
                found.setdefault(note, []).append(clients.CLIENTS[name].title)
        return [f"{', '.join(titles)}: {note}" for note, titles in found.items()]


def choose(wanted: list[str]) -> list[str]:
    """Return the clients to print: the short choice by default, `all`, or the named ones.

    Raises:
        clients.UnknownClient: with the close matches.
    """
    if not wanted:
        return list(clients.DEFAULT_CHOICE)
    if "all" in wanted:
        return list(clients.CLIENTS)
    for name in wanted:
        if name not in clients.CLIENTS:
            raise clients.UnknownClient(name)
    return list(dict.fromkeys(wanted))
