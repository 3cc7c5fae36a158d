"""What the findings mean for each client: works, works with something, or cannot, because of something. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from slipway.clients import CLIENTS, TRUST, Client
from slipway.doctor.hops import Finding, Hop

# without these nobody connects
GATES = ("name", "reach", "tls", "redirect", "host")
# what a page needs, in the order in which it would meet them
PAGE = ("preflight-handshake", "allow-origin-once", "origin")


@dataclass(frozen=True)
class ClientVerdict:
    """works, works with `why`, or cannot because of `why`."""

    verdict: Literal["works", "works with", "cannot"]
    why: str = ""


def judge(hop: Hop, found: Mapping[str, Finding]) -> dict[str, ClientVerdict]:
    """Return {client: verdict} for every row of CLIENTS, and "browser" for a page of the hop's origin."""
    return {name: _client(row, hop, found) for name, row in CLIENTS.items()} | {"browser": _page(hop, found)}


def _bad(found: Mapping[str, Finding], *checks: str) -> Finding | None:
    return next((found[name] for name in checks if found[name].verdict == "failure"), None)


def _well(found: Mapping[str, Finding], name: str) -> bool:
    return found[name].verdict == "ok"


def _cannot(why: str) -> ClientVerdict:
    # a sentence becomes a clause, unless it begins with a name such as OAuth
    lower = why[:1].lower() + why[1:] if why[1:2].islower() or why[1:2] == " " else why
    return ClientVerdict("cannot", lower.replace(". (", " (").rstrip("."))


def _closed(found: Mapping[str, Finding]) -> str:
    """Say why nobody connects, "" if somebody does."""
    if shut := _bad(found, *GATES):
        return shut.cause
    if shut := _bad(found, "handshake"):
        return "" if _well(found, "newest") else shut.cause
    if not _well(found, "handshake") and not _well(found, "newest"):
        return "" if found["handshake"].saw.startswith("needs a token") else found["handshake"].saw
    return ""


def _limits(found: Mapping[str, Finding]) -> list[str]:
    """Return what everybody who connects has to live with."""
    limits = {
        "post-stream": "progress and logs late", "get-stream": "no messages from the server",
        "idle": "streams that are cut", "body-limit": "small arguments only",
    }  # fmt: skip
    return [text for name, text in limits.items() if _bad(found, name)]


def _client(row: Client, hop: Hop, found: Mapping[str, Finding]) -> ClientVerdict:
    if row.trust == "remote" and hop.loopback:
        return _cannot("it runs elsewhere and cannot reach this machine: open a public URL (./scripts/up)")
    if row.trust == "remote" and not hop.secure:
        return _cannot("it asks for https")
    if why := _closed(found):
        return _cannot(why)
    needed = _limits(found)
    anyone = found["challenge"].verdict == "warning" and found["challenge"].saw.startswith("200")
    if not row.bearer and not anyone:
        if not _well(found, "oauth"):
            return _cannot("it signs in by OAuth only, and " + (found["oauth"].cause or found["oauth"].saw))
        needed.append("sign-in by OAuth (scripts/invite makes codes)" if hop.ours else "sign-in by OAuth")
    elif row.bearer and not anyone and not hop.token:
        needed.append("a token" + (" or OAuth" if _well(found, "oauth") else ""))
    elif row.bearer and (refused := _bad(found, "token")):
        return _cannot(f"the token is refused ({refused.saw})")
    elif not anyone and not _well(found, "handshake") and not _well(found, "newest"):
        return _cannot(found["handshake"].saw)
    if hop.ca and hop.secure and (need := TRUST[row.trust][1]):
        needed.append(need.format(ca=shlex.quote(str(hop.ca))))
    elif hop.secure and row.trust in ("node", "given") and _bad(found, "trust"):
        return _cannot(found["trust"].cause)
    if _bad(found, "newest"):
        needed.append("the handshake era")
    return ClientVerdict("works with", "; ".join(needed)) if needed else ClientVerdict("works")


def _page(hop: Hop, found: Mapping[str, Finding]) -> ClientVerdict:
    if why := _closed(found):
        return _cannot(why)
    for name in PAGE:
        if found[name].verdict in ("failure", "warning"):
            return _cannot(f"{found[name].cause} ({name})")
    needed = _limits(found)
    if not hop.token and _well(found, "challenge"):
        needed.append("a token")
    elif _bad(found, "token"):
        return _cannot(f"the token is refused ({found['token'].saw})")
    if found["interstitial"].verdict == "warning":
        needed.append("the header ngrok-skip-browser-warning")
    if any(found[name].verdict in ("failure", "warning") for name in ("preflight-newest", "preflight-param")):
        needed.append("the handshake era")
    if found["session-readable"].verdict in ("failure", "warning"):
        needed.append("the newest era, or no session")
    if hop.ca and hop.secure:
        needed.append("the certificate accepted in the browser once")
    return ClientVerdict("works with", "; ".join(needed)) if needed else ClientVerdict("works")
