"""What is served: a Python file, a command, a URL or an mcp.json, read from SLIPWAY_TARGET. Starts nothing."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from slipway.errors import Problem

# exit codes of a target that cannot be served, so that scripts can tell them apart
NO_FILE, NO_IMPORT, NO_SERVER, NO_COMMAND, NO_ANSWER, NO_ACCESS, NO_CONFIG, NO_PACKAGES = range(50, 58)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KEPT = {
    "HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "XDG_", "npm_config_", "NPM_CONFIG_", "UV_", "PIP_", "PYENV_")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|_AUTH", re.I)
_SCRIPT = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723's own pattern
# ${NAME} of most hosts, ${env:NAME} of Cursor and VS Code
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Target:
    """One server to serve.

    Attributes:
        kind: which of the fields count.
        text: as it was written, for people.
        path: the Python file, or the mcp.json.
        name: the object in the Python file, or "" for the usual names.
        packages: what the Python file needs besides ours, as requirement specifiers.
        command: what to run, the program first.
        environment: what an mcp.json adds for its command.
        folder: where the command runs.
        url: of an HTTP server.
        headers: for that URL. Never printed.
        sse: whether the URL speaks the old HTTP+SSE transport (2024-11-05).
        parts: the servers of an mcp.json by name.
    """

    kind: Literal["python", "command", "url", "config"]
    text: str
    path: Path = Path()
    name: str = ""
    packages: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = Path()
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sse: bool = False
    parts: Mapping[str, Target] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What callers, errors and logs may call it: of a URL the host, since path and query may hold a key."""
        if self.kind != "url":
            return self.text
        return (urlsplit(self.url).hostname or "the upstream") if self.text == self.url else self.text

    @property
    def shown(self) -> str:
        """What the operator is told: of a URL all but its query, which may hold a key."""
        return urlsplit(self.url)._replace(query="", fragment="").geturl() if self.url else self.text

    def files(self) -> list[Path]:
        """Return the files on the command line or in the configuration whose change asks for a reload."""
        named = [self.folder / word for word in self.command if "/" in word or "." in word]
        own = [self.path] if self.kind in ("python", "config") else []
        if self.kind == "python":
            named.append(self.path.parent / "fastmcp.json")
        return (
            own
            + [path for path in named if _is_file(path)]
            + [p for part in self.parts.values() for p in part.files()]
        )

    def why_not_in_docker(self) -> str:
        """Say what ties it to this machine, or "" where a container can serve it."""
        if self.kind == "command":
            return f"{self.command[0]} runs on this machine"
        if self.kind == "url" and urlsplit(self.url).hostname in _LOOPBACK:
            return f"{self.shown} is on this machine's loopback"
        return next((why for part in self.parts.values() if (why := part.why_not_in_docker())), "")


def parse(text: str, folder: Path, environment: Mapping[str, str], headers: str = "") -> Target:
    """Read what SLIPWAY_TARGET says.

    Args:
        text: `file.py`, `file.py:object`, a command, a URL, or a .json file (mcp.json or fastmcp.json).
        folder: where relative paths and commands start.
        environment: for the ${NAME} in headers and in an mcp.json.
        headers: a JSON object of headers for a URL.
    Raises:
        Problem: no such file or command, an empty or broken mcp.json, headers that are no JSON object.
    """
    text = text.strip().replace("\t", " ")
    if not text.isprintable():
        raise Problem("The target has characters that neither a file nor a command has.", "Type it anew", 2)
    if re.match(r"https?://", text):
        return _url(text, text, _headers(headers, environment), sse=False)
    file, name = _file_and_object(text)
    path = _path(file, folder)
    if path.suffix == ".json":
        return _config(text, path, environment)
    if path.suffix == ".py" and (_is_file(path) or " " not in file):
        if not _is_file(path):
            raise _no_file(file, path)
        return _python(text, path, name)
    return _command(text, folder)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a word of a command may be longer than a file's name
        return False


def _path(written: str, folder: Path) -> Path:
    try:
        if not written.isprintable():
            raise ValueError
        return (folder / Path(written).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):  # no such user, links in a circle, characters that no name has
        raise Problem(f"{written[:100]!r} is no path.", "Mend it", NO_FILE) from None


def _file_and_object(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", text)
    return (match[1], match[2]) if match else (text, "")


def _python(text: str, path: Path, name: str) -> Target:
    """Read what the file needs: from a fastmcp.json beside it, and from its inline metadata (PEP 723)."""
    wanted: list[str] = []
    beside = path.parent / "fastmcp.json"
    if beside.is_file():
        try:
            environment = json.loads(beside.read_text(encoding="utf-8-sig")).get("environment") or {}
            wanted += map(str, environment.get("dependencies") or [])
            if environment.get("requirements"):
                lines = (path.parent / environment["requirements"]).read_text(encoding="utf-8").splitlines()
                wanted += [line.split(" #")[0].strip() for line in lines if re.match(r"[A-Za-z0-9]", line)]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise Problem(f"{beside} cannot be read: {error}.", "Mend it: it is a JSON file", NO_CONFIG) from None
        for unsupported in ("project", "editable", "python"):
            if environment.get(unsupported):
                raise Problem(
                    f"{beside} asks for {unsupported!r}, which needs a Python environment of its own.",
                    f'Serve it as a command: ./scripts/up "uv run fastmcp run {beside}"', NO_PACKAGES,
                )  # fmt: skip
    if path.is_file() and (block := _SCRIPT.search(path.read_text(encoding="utf-8", errors="replace"))):
        try:
            metadata = tomllib.loads("".join(line[2:] for line in block["content"].splitlines(keepends=True)))
        except tomllib.TOMLDecodeError as error:
            raise Problem(f"The script block of {path} is no TOML: {error}.", "Mend it", NO_CONFIG) from None
        wanted += map(str, metadata.get("dependencies") or [])
    # they are here already, in the versions that Slipway is tested with
    ours = re.compile(r"(fastmcp|mcp)(\[[^]]*\])?\s*($|[<>=~!].*)")
    return Target("python", text, path=path, name=name, packages=tuple(w for w in wanted if not ours.fullmatch(w)))


def _no_file(written: str, path: Path) -> Problem:
    there = sorted(item.name for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.7)
    cure = f"Did you mean {path.parent / close[0]}?" if close else "Mend the path; it starts at the folder you are in"
    return Problem(f"There is no file {path if Path(written).is_absolute() else written}.", cure, NO_FILE)


def _command(text: str, folder: Path) -> Target:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Problem(f"The command {text!r} cannot be read: {error}.", "Mend its quotes", NO_COMMAND) from None
    if not words:
        raise Problem("The target is empty.", "Name a file.py, a command, a URL or an mcp.json", 2)
    _find(words[0], folder)
    return Target("command", text, command=tuple(words), folder=folder)


def _find(program: str, folder: Path, written: str = "") -> None:
    if "/" in program:
        found: object = _is_file(folder / program)
    else:
        found = shutil.which(program)
    if not found:
        known = {"npx": "Install Node.js (nodejs.org)", "uvx": "Install uv (docs.astral.sh/uv)"}
        known |= {"node": known["npx"], "npm": known["npx"], "uv": known["uvx"]}
        raise Problem(
            f"There is neither a file nor a program {(written or program)[:200]!r}.",
            known.get(program, "Install it, or mend the name: a target is file.py, a command, a URL or an mcp.json"),
            NO_COMMAND,
        )


def _url(text: str, url: str, headers: dict[str, str], *, sse: bool, written: str = "") -> Target:
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        # as it was written: what a ${NAME} brought may be a secret
        raise Problem(f"{(written or url)[:200]!r} is no URL of a server.", "Write it as https://host/mcp", 2)
    if parts.username or parts.password:
        raise Problem(
            "The target's URL holds a password, which would end up in logs.",
            'Put it into .env: SLIPWAY_TARGET_HEADERS=\'{"Authorization": "Basic …"}\'', 2,
        )  # fmt: skip
    return Target("url", text, url=url, headers=headers, sse=sse or parts.path.rstrip("/").endswith("/sse"))


def _headers(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        # the text may be a secret: it is not repeated
        cure = 'Write it as SLIPWAY_TARGET_HEADERS=\'{"Authorization": "Bearer …"}\''
        raise Problem("SLIPWAY_TARGET_HEADERS is no JSON object of strings.", cure, 2)
    where = "SLIPWAY_TARGET_HEADERS"
    return _sound({name: _expand(value, environment, where) for name, value in found.items()}, where)


def _sound(headers: dict[str, str], where: str) -> dict[str, str]:
    for name, value in headers.items():
        # RFC 9110 §5.1, §5.5; the HTTP client would refuse them at the first call, in words for programmers
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise Problem(f"{where}: {name[:60]!r} is no name of a header.", "Mend it", 2)
        if not re.fullmatch(r"[\t\x20-\x7e]*", value):
            raise Problem(f"{where}: the value of {name} has characters that no header has.", "Mend it", 2)
    return headers


def _config(text: str, path: Path, environment: Mapping[str, str]) -> Target:
    if not _is_file(path):
        raise _no_file(text, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(f"{path.name} cannot be read: {error}.", "Mend it: it is a JSON file", NO_CONFIG) from None
    if not isinstance(content, dict):
        content = {}
    source = content.get("source")
    if isinstance(source, dict) and source.get("path"):
        file, name = _file_and_object(str(source["path"]))
        python = _path(file, path.parent)
        if not _is_file(python):
            raise _no_file(file, python)
        return _python(text, python, str(source.get("entrypoint") or name))
    servers = content.get("mcpServers") or content.get("servers") or {}
    if not isinstance(servers, dict) or not servers:
        cure = 'Write one as {"mcpServers": {"name": {"command": "npx", "args": ["-y", "some-server"]}}}'
        raise Problem(f"{path.name} holds no server.", cure, NO_CONFIG)
    parts = {name: _entry(name, entry, path, environment) for name, entry in servers.items()}
    return Target("config", text, path=path, parts=parts)


def _entry(name: str, entry: Any, path: Path, environment: Mapping[str, str]) -> Target:
    where = f"{path.name}: {name}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name):
        raise Problem(f"{where!r} cannot prefix a tool's name.", "Name it with letters, digits, _ and -", NO_CONFIG)
    if not isinstance(entry, dict) or not (entry.get("command") or entry.get("url") or entry.get("serverUrl")):
        raise Problem(f"{where} has neither a command nor a url.", "Give it one of them", NO_CONFIG)

    def texts(value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            return {}
        return {str(key): _expand(str(item), environment, where) for key, item in value.items()}

    if entry.get("command"):
        arguments = entry.get("args") or []
        if not isinstance(arguments, list):
            raise Problem(f"{where}: args is no list.", 'Write it as "args": ["…"]', NO_CONFIG)
        words = [_expand(str(word), environment, where) for word in [entry["command"], *arguments]]
        folder = _path(str(entry.get("cwd") or "."), path.parent)
        _find(words[0], folder, str(entry["command"]))
        return Target("command", name, command=tuple(words), environment=texts(entry.get("env")), folder=folder)
    kind = entry.get("type") or entry.get("transport") or ""
    written = str(entry.get("url") or entry["serverUrl"])
    url = _expand(written, environment, where)
    return _url(name, url, _sound(texts(entry.get("headers")), where), sse=kind == "sse", written=written)


def _expand(value: str, environment: Mapping[str, str], where: str) -> str:
    """Put variables in for ${NAME} and ${NAME:-default}."""

    def put(match: re.Match[str]) -> str:
        found = environment.get(match[1], match[2])
        if found is None:
            raise Problem(f"{where} asks for ${{{match[1]}}}, which is not set.", f"Put {match[1]}=… into .env", 2)
        return found

    expanded = _VARIABLE.sub(put, value)
    if "\0" in expanded:
        raise Problem(f"{where} holds a NUL character, which no program can be given.", "Mend it", 2)
    return expanded


def clean_environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a target's process: what programs need to run, and what `.env` has for it.

    A tool may print its environment to any caller, so nothing else of the user's shell gets in, and nothing of ours.

    Args:
        environ: ours.
        own: the names in `.env` that are no settings of Slipway.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES)) and not _SECRET.search(name)
    }
    return kept | {name: value for name, value in own.items() if not name.startswith("FASTMCP_")}
