"""Checks of who is let in: the challenge, the given token, and the OAuth metadata."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from slipway.doctor.checks import Checks
from slipway.doctor.hops import Finding, Hop, NotApplicable, failure, is_local, ok, warning
from slipway.doctor.wire import Answer, shown

check = Checks()

_SPEC = "RFC 6750 §3, RFC 9728 §5.1"


@check("challenge")
async def challenge(hop: Hop) -> Finding:
    """Ask without a token: 401 with a challenge that names the resource metadata."""
    answer = await hop.stranger()
    named = answer.header("www-authenticate")
    if answer.status == 200:
        return warning(
            "200 without a token", "Anyone who finds this URL can call every tool.",
            "Set SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS=false in .env" if hop.ours else "Ask for a token",
        )  # fmt: skip
    if answer.status != 401:
        return warning(
            answer.said(), "Without a token the answer is not 401, so no client knows that it should sign in.",
            f"Answer 401 with WWW-Authenticate ({_SPEC})",
        )  # fmt: skip
    if "bearer" not in named.lower():
        return failure(
            "401 without WWW-Authenticate", "Clients that sign in by OAuth find no way to begin.",
            f"Let the challenge through, on the server and every proxy ({_SPEC})",
        )  # fmt: skip
    if not answer.resource_metadata():
        return ok("401 Bearer, without resource_metadata: tokens only, no OAuth")
    return ok("401 Bearer with resource_metadata")


@check("token")
async def token(hop: Hop) -> Finding:
    """Send the token, and find out why it is refused if it is."""
    answer = await hop.reached()
    if not hop.token:
        raise NotApplicable("none was given: --token")
    if answer.status not in (401, 403):
        anyone = (await hop.stranger()).status == 200
        return ok("accepted" if not anyone else "not asked for")
    cure = "Make another: scripts/mint" if hop.ours else "Get another token"
    named = answer.header("www-authenticate").lower()
    reason = str((await asyncio.to_thread(hop.logged, answer.request_id)).get("reason") or "")
    if hop.refused:
        return failure(f"{answer.status}: {shown(hop.refused)}", "The token is refused for this reason.", cure)
    if reason and "no token" not in reason:
        return failure(f"{answer.status}: {shown(reason)}", "The server's log names this reason.", cure)
    if answer.status == 403:
        if "insufficient_scope" in named:
            return failure("403 insufficient_scope", "The token does not allow any tool here.", cure)
        return failure(answer.said(), "Something in front refuses the request.", "Read its words; see host")
    if "error=" not in named:
        return failure(
            "401, as if there were no token", "The Authorization header does not arrive: a hop takes it away.",
            "Let the proxy pass Authorization on (nginx: no proxy_set_header Authorization; Apache: "
            "CGIPassAuth On)",
        )  # fmt: skip
    if await hop.well_before("token"):
        return failure(
            "401 invalid_token", "One hop before, the same token is accepted: this one sends another in its place.",
            "Let the proxy pass Authorization on, unchanged",
        )  # fmt: skip
    return failure("401 invalid_token", "The server knows another secret, or the token is over or revoked.", cure)


@check("oauth")
async def oauth(hop: Hop) -> Finding:
    """Read the protected resource's and the authorization server's metadata, and hold them against the URL."""
    await hop.reached()
    path = "/.well-known/oauth-protected-resource"
    named = (await hop.stranger()).resource_metadata()
    answer = await hop.ask("GET", path=path + hop.path.rstrip("/"))
    if answer.status == 404:
        answer = await hop.ask("GET", path=path)
    if answer.status != 200 or not answer.json():
        if named:
            return failure(
                f"metadata: {answer.said()}", "The challenge names OAuth metadata that cannot be read.",
                "Let /.well-known/* through to the server",
            )  # fmt: skip
        raise NotApplicable("no OAuth here: tokens only")
    resource = answer.json()
    claimed = {"resource": str(resource.get("resource", "")), "challenge": named or hop.url}
    servers = resource.get("authorization_servers")
    issuer = str(servers[0]) if isinstance(servers, list) and servers else ""
    if issuer and urlsplit(issuer).netloc == urlsplit(hop.url).netloc:
        claimed |= await _authorization_server(hop, issuer)
    wrong = {key: value for key, value in claimed.items() if not _agrees(hop, value)}
    if (issuer and not (issuer.startswith("https://") or is_local(issuer))) or (
        is_local(issuer) and not hop.loopback
    ):
        wrong["authorization server"] = issuer
    if wrong:
        key, value = next(iter(wrong.items()))
        return failure(
            f"{key}: {shown(value, 70)}",
            f"OAuth clients refuse metadata that names another address than {hop.base}.",
            "Let the proxy keep the Host header and X-Forwarded-Proto; build the metadata from the public address",
        )  # fmt: skip
    return ok("names this address" if issuer else "no authorization server named")


async def _authorization_server(hop: Hop, issuer: str) -> dict[str, str]:
    at = urlsplit(issuer).path.rstrip("/")
    answer: Answer = await hop.ask("GET", path="/.well-known/oauth-authorization-server" + at)
    found: dict[str, Any] = answer.json()
    names = ("issuer", "authorization_endpoint", "token_endpoint")
    return {name: str(found.get(name, "nothing")) for name in names} if answer.status == 200 else {}


def _agrees(hop: Hop, url: str) -> bool:
    """Tell whether a URL is of this hop's host, over TLS where the hop is."""
    parts = urlsplit(url)
    return parts.hostname == hop.host and (parts.scheme == "https" or not hop.secure)
