"""Secrets in the repository, in any state that it ever had: what detect-secrets finds, less what a person marked.

A line that only looks like a secret carries the mark `pragma: allowlist secret`, or the line before it
`pragma: allowlist nextline secret`; what is marked today is no finding in the history either.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import get_plugins, transient_settings

from slipway.errors import Problem

ROOT = Path(__file__).resolve().parent.parent
SHAPES = Path(__file__).with_name("secret_shapes.py")
FILTERS = [
    # what is written ${NAME}, name() or <name> is no secret itself, nor is "abcdefgh"
    "heuristic.is_indirect_reference", "heuristic.is_likely_id_string", "heuristic.is_not_alphanumeric_string",
    "heuristic.is_potential_uuid", "heuristic.is_prefixed_with_dollar_sign", "heuristic.is_sequential_string",
    "heuristic.is_templated_secret",
    # its integrity hashes are quoted, and nothing else is in it
    "heuristic.is_lock_file",
]  # fmt: skip
MARKS = "allowlist.is_line_allowlisted"
# looked at: they stood here once, and never were anybody's
PAST = {
    # tests/test_examples.py: a key of three letters
    "594a3a23e0955e7250d8ec7ac4068dc0909b2c30",  # pragma: allowlist secret
    # docker-compose.yml: a comment on secrets
    "7e5d66b75bff6a747871eface0ba21622c03bbff",  # pragma: allowlist secret
}
SKIPPED = {
    "IPPublicDetector",  # addresses are no secrets
}


def _git(root: Path, *arguments: str, told: bytes = b"") -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, input=told, capture_output=True, check=True)
    return done.stdout


def history(root: Path) -> dict[str, dict[str, None]]:
    """Return every line that each path ever had up to HEAD, once, in order of appearance."""
    names: dict[str, str] = {}
    for line in _git(root, "rev-list", "--objects", "HEAD").decode("utf-8", "replace").splitlines():
        blob, _, name = line.partition(" ")
        if name:
            names[blob] = name
    lines: defaultdict[str, dict[str, None]] = defaultdict(dict)
    rest = _git(root, "cat-file", "--batch", told="".join(f"{blob}\n" for blob in names).encode())
    while rest:
        head, _, rest = rest.partition(b"\n")
        blob, kind, size = head.decode().split()
        content, rest = rest[: int(size)], rest[int(size) + 1 :]
        if kind == "blob" and b"\0" not in content[:8000]:
            lines[names[blob]].update(dict.fromkeys(content.decode("utf-8", "replace").splitlines()))
    lines["commit messages"] = dict.fromkeys(_git(root, "log", "--format=%B").decode("utf-8", "replace").splitlines())
    return lines


@contextlib.contextmanager
def _detecting(*, marks: bool) -> Iterator[None]:
    """Set the library up: every detector that it has, and ours; with marks heeded or not."""
    with transient_settings({"plugins_used": [], "filters_used": []}) as settings:
        ours = [{"name": name, "path": SHAPES.as_uri()} for name in ("NgrokAuthtoken", "SlipwaySecret")]
        known = [{"name": each} for each in _detectors() if each not in SKIPPED]
        settings.configure_plugins([*known, *ours])
        get_mapping_from_secret_type_to_class.cache_clear()  # it was filled before ours were named
        filters = [*FILTERS, MARKS] if marks else FILTERS
        settings.configure_filters([{"path": f"detect_secrets.filters.{each}"} for each in filters])
        assert len(get_plugins()) == len(known) + len(ours)
        yield


def _detectors() -> Iterator[str]:
    for each in get_mapping_from_secret_type_to_class().values():
        if each.__module__.startswith("detect_secrets."):
            yield each.__name__


def found(root: Path) -> list[str]:
    """Return "path: kind" of every secret in the tracked files and their past that nobody marked as none."""
    tracked = [root / name for name in _git(root, "ls-files", "-z").decode().split("\0") if name]
    tracked = [path for path in tracked if path.is_file()]
    with _detecting(marks=True):
        now = {path: list(scan_file(str(path))) for path in tracked}
    with _detecting(marks=False):
        marked = PAST | {
            each.secret_hash
            for path in tracked if b"allowlist" in path.read_bytes()
            for each in scan_file(str(path))
        }  # fmt: skip
    marked -= {each.secret_hash for hits in now.values() for each in hits}
    findings = {f"{path.relative_to(root)}: {each.type}" for path, hits in now.items() for each in hits}
    with tempfile.TemporaryDirectory() as folder, _detecting(marks=True):
        for index, (name, lines) in enumerate(history(root).items()):
            # detectors go by the file's name
            past = Path(folder) / str(index) / Path(name).name
            past.parent.mkdir()
            past.write_text("\n".join(lines), encoding="utf-8")
            then = {f"{name}: {each.type}" for each in scan_file(str(past)) if each.secret_hash not in marked}
            findings |= {f"{each} (in the history)" for each in then - findings}
    return sorted(findings)


def main() -> int:
    """Print what is found. Returns: 0, or 1 where something is."""
    findings = found(ROOT)
    for each in findings:
        sys.stdout.write(each + "\n")
    if findings:
        raise Problem(
            "The repository holds what looks like a secret.",
            "Revoke it and take it out (SECURITY.md); a made-up one gets the mark: # pragma: allowlist secret",
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
