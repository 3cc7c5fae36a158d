"""One examination: which hops there are, every check at each of them, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slipway import edge, tokens
from slipway.doctor import access, checks, cors, protocol, streams, transport, verdicts
from slipway.doctor.hops import Finding, Hop, is_local
from slipway.errors import Problem
from slipway.settings import Settings

PATIENCE = 60.0  # seconds for everything but the soak
LOG_TAIL = 512 * 1024  # bytes
LOG_PATIENCE = 2.0  # seconds until a request must stand in a log
SERVER_PATIENCE = 0.5  # seconds until the server must have written of what the edge passed on
TOKEN_LIFE = 900  # seconds

# in the order in which their checks are shown
for room in (transport, access, cors, protocol, streams):
    checks.CHECKS.update(room.check)


@dataclass(frozen=True)
class Asked:
    """What was asked for: the parameters of one examination.

    Attributes:
        url: "" means our own stack.
        token: "" means one of our own for our own stack, none elsewhere.
        origin: "" means the console's.
        soak: seconds.
    """

    url: str = ""
    token: str = ""
    origin: str = ""
    soak: int = 0


@dataclass(frozen=True)
class Report:
    """What was found: {check: finding} for each hop, in the order of the way, and the verdict for each client."""

    hops: list[Hop]
    found: list[dict[str, Finding]]
    clients: dict[str, verdicts.ClientVerdict]

    @property
    def failures(self) -> int:
        """How many checks failed, over all hops."""
        return sum(each.verdict == "failure" for group in self.found for each in group.values())

    def first_trouble(self) -> tuple[str, list[str]]:
        """Return the first hop with a warning or failure that the hop before has not, and the ids of these checks."""
        former: dict[str, Finding] = {}
        for hop, group in zip(self.hops, self.found, strict=True):
            bad = [
                name for name, each in group.items()
                if each.verdict in ("failure", "warning")
                and (name not in former or former[name].verdict in ("ok", "not-applicable"))
            ]  # fmt: skip
            if bad:
                return hop.name, bad
            former = group
        return "", []


def url_of(text: str) -> str:
    """Return a URL to ask, or say what is wrong with it.

    Raises:
        Problem: it is no http or https URL, or holds a password.
    """
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        near = text.isprintable() and 0 < len(text) < 300 and "://" not in text and not text.startswith("-")
        guess = f"https://{text}" if near else "https://…/mcp"
        raise Problem(f"{text[:100]!r} is no http or https URL.", f"Write it whole: ./scripts/doctor {guess}", 2)
    if parts.username or parts.password:
        raise Problem("The URL holds a password.", "Leave it out; --token carries what is needed", 2)
    return parts._replace(fragment="").geturl()


def hops(config: Settings, root: Path, asked: Asked, secret: tokens.Secret | None) -> list[Hop]:
    """Return the hops on the way to the URL that was asked for, nearest to the server first.

    Args:
        secret: ours, or None where there is no stack of ours.
    """
    ca, note = edge.ca_file(config, root), root / config.public_url_file
    public = note.read_text(encoding="utf-8").strip() + "/mcp" if note.exists() else ""
    own = {
        "server": f"http://127.0.0.1:{config.server_port}/mcp",
        "edge": f"http://127.0.0.1:{config.edge_port}/mcp",
        "tls": edge.local_url(config),
        **({"public": public} if public else {}),
    }
    url = asked.url.replace("//localhost:", "//127.0.0.1:") if asked.url.startswith("http://") else asked.url
    here = next((name for name, each in own.items() if each.rstrip("/") == url.rstrip("/")), "")
    ours = not asked.url or bool(here) or (secret is not None and _is_ours(config, root, asked))
    token = asked.token
    if ours and not token and secret:
        # short, for this run alone
        life = TOKEN_LIFE + asked.soak
        # it asks more in a second than anybody should
        limits = dict.fromkeys(tokens.LIMITS, 0)
        token = tokens.mint(
            secret, subject="doctor", scope="tool:*", ttl=life, client_id="doctor", limits=limits
        ).token
    shared: dict[str, Any] = {
        "token": token, "origin": asked.origin or f"http://localhost:{config.console_port}", "soak": asked.soak,
        "strict": bool(asked.origin), "refused": tokens.refusal(secret if ours else None, token) if token else "",
    }  # fmt: skip
    logs = root / config.state / "log"
    if not ours:
        return [Hop("url", asked.url, **shared, ca=ca if is_local(asked.url) else None)]
    if secret:
        shared["mark"] = tokens.own_mark(secret)
    shared |= {"ours": True, "logged": lambda request_id: _logged(logs, request_id)}
    names = list(own) if not asked.url else list(own)[: list(own).index(here) + 1] if here else ["server", "edge"]
    made: dict[str, Hop] = {}
    for name in names:
        before = made.get("server" if name == "edge" else "edge")
        made[name] = Hop(name, own[name], **shared, before=before, ca=ca if name == "tls" else None)
    if asked.url and not here:
        made["url"] = Hop("url", asked.url, **shared, before=made["edge"], ca=ca if is_local(asked.url) else None)
    return list(made.values())


def _is_ours(config: Settings, root: Path, asked: Asked) -> bool:
    """Tell whether a request to the URL arrives in our own logs."""

    async def probe() -> bool:
        hop = Hop("url", asked.url, ca=edge.ca_file(config, root) if is_local(asked.url) else None)
        try:
            # not the endpoint itself: what stands in front may redirect that
            answer = await hop.ask("GET", path="/slipway-doctor", token=False, seconds=5)
        finally:
            await hop.close()
        return bool(answer.status and _logged(root / config.state / "log", answer.request_id))

    return asyncio.run(probe())


def _logged(folder: Path, request_id: str) -> dict[str, Any]:
    """Return the line of the server's log about a request, or of the edge's, or {}."""
    begun = time.monotonic()
    while True:
        for name in ("server", "edge"):
            for line in (*tail(folder / f"{name}.jsonl.1"), *tail(folder / f"{name}.jsonl")):
                if request_id in line:
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        reason = found.get("reason") or found.get("refused")
                        # of what the edge passed on, it may write before the server does, whose line says more
                        if name == "server" or reason or time.monotonic() > begun + SERVER_PATIENCE:
                            return {"by": name, "reason": reason, **found}
        if time.monotonic() > begun + LOG_PATIENCE:
            return {}
        time.sleep(0.1)  # a log file has no event to wait for


def tail(path: Path) -> list[str]:
    """Return the last lines of a log, at most LOG_TAIL bytes; the first may be cut."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


async def examine(on_the_way: list[Hop]) -> Report:
    """Run every check at every hop, all hops at once."""
    try:
        for hop in on_the_way:
            checks.start(hop)
        async with asyncio.TaskGroup() as group:
            for hop in on_the_way:
                group.create_task(_finish(hop))
        found = [{name: _result(task) for name, task in hop.found.items()} for hop in on_the_way]
    finally:
        for hop in on_the_way:
            with contextlib.suppress(Exception):
                await hop.close()
    return Report(on_the_way, found, verdicts.judge(on_the_way[-1], found[-1]))


async def _finish(hop: Hop) -> None:
    _, late = await asyncio.wait(hop.found.values(), timeout=PATIENCE + hop.soak)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)


def _result(task: asyncio.Task[Finding]) -> Finding:
    if task.cancelled():
        return Finding("warning", "not finished in time", "It answers, but very slowly.", "Ask again later")
    return task.result()
