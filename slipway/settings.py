"""Every setting: its name, default, help and check. Entry points load them once and pass them in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from dotenv.parser import parse_stream
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from slipway.errors import Problem

# A port of an origin pattern may be "*"; the host may start with "*.". Anything else is a typo, and a typo
# in an allow list should fail loudly, not match nothing in silence.
_ORIGIN = re.compile(
    r"(null|\*|[a-z][a-z0-9+.-]*://(\*\.)?(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:([0-9]{1,5}|\*))?)", re.I | re.A
)
_HOST = re.compile(r"(\*\.)?[a-z0-9.-]+|\[[0-9a-f:]+\]", re.I | re.A)
_COMPOSE_ONLY = (
    "NGROK_API_KEY", "SLIPWAY_UID", "SLIPWAY_GID", "SLIPWAY_INIT", "SLIPWAY_CADDYFILE_HASH",
    "COMPOSE_PROFILES", "SLIPWAY_REPLICAS", "SLIPWAY_IMAGE",
)  # fmt: skip
_OURS = ("SLIPWAY_", "NGROK_")
TARGET_NAMES = "SLIPWAY_TARGET_NAMES"  # which variables of a container are the target's, comma-separated

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


def _listed(form: re.Pattern[str], wrong: str) -> AfterValidator:
    def checked(value: str) -> str:
        items = [item for part in value.split(",") if (item := part.strip())]
        for item in items:
            if not form.fullmatch(item):
                raise ValueError(f"{item[:200]!r} is no {wrong}")
        return ",".join(items).lower()

    return AfterValidator(checked)


_ORIGINS = _listed(
    _ORIGIN,
    "origin: scheme://host[:port], without a path, as in "
    "https://app.example.com, https://*.example.com or http://localhost:*",
)
_HOSTS = _listed(_HOST, "host name: demo.example.com or *.example.com, without scheme or port")


def _life(value: str) -> str:
    parts = re.findall(r"([0-9]{1,9})([smhd])", value)
    seconds = sum(int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != value or not 0 < seconds <= 366 * 86400:
        raise ValueError("this is no time to live: write it as 90m, 8h or 30d (366 days at most)")
    return value


Life = Annotated[str, AfterValidator(_life)]
LifeOrNever = Annotated[str, AfterValidator(lambda value: value if value == "0" else _life(value))]


class ToolBound(BaseModel):
    """What one tool may take; "" and 0 are as for every other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    at_once: int = Field(0, ge=0)
    timeout: LifeOrNever = ""


def tool_bounds(value: str) -> dict[str, ToolBound]:
    """Return {tool: its bounds} of SLIPWAY_TOOL_LIMITS.

    Raises:
        ValueError: it is no such thing.
    """
    try:
        return _TOOL_BOUNDS.validate_json(value or "{}")
    except ValidationError as error:
        wrong = 'it is a JSON object of tools, each with "at_once" (a number) or "timeout" (30s, 2m), or both'
        where = error.errors()[0]["loc"]
        raise ValueError(f"at {str(where[0])[:100]!r}: {wrong}" if where else wrong) from None


_TOOL_BOUNDS = TypeAdapter(dict[str, ToolBound])


def _tools(value: str) -> str:
    tool_bounds(value)
    return value


class Settings(BaseModel):
    """What `.env` and the environment say, checked. The alias of a field is the name of its variable."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True)

    target: str = Field(
        "",
        alias="SLIPWAY_TARGET",
        description="What to serve: file.py[:object], a command, a URL or an mcp.json; empty means: server.py.",
    )
    target_folder: Path = Field(
        Path(),
        alias="SLIPWAY_TARGET_FOLDER",
        description="Where a relative target starts and a command runs; empty means: the checkout.",
    )
    target_headers: SecretStr = Field(
        SecretStr(""),
        alias="SLIPWAY_TARGET_HEADERS",
        description="Headers for a URL, as a JSON object; ${NAME} takes NAME from .env.",
    )
    target_processes: Literal["seat", "shared"] = Field(
        "seat",
        alias="SLIPWAY_TARGET_PROCESSES",
        description="seat: a command gets one process per caller; shared: one for all.",
    )
    server_host: str = Field("127.0.0.1", alias="SERVER_HOST", description="Address the server binds; loopback.")
    server_port: Port = Field(8000, alias="SERVER_PORT", description="Port of the MCP server, loopback only.")
    server_port_last: int = Field(
        0, ge=0, le=65535, alias="SERVER_PORT_LAST",
        description="With replicas in Docker: the last of their ports, from SERVER_PORT on.",
    )  # fmt: skip
    edge_port: Port = Field(8080, alias="EDGE_PORT", description="Plain HTTP port that the tunnel forwards to.")
    tls_port: Port = Field(8443, alias="TLS_PORT", description="HTTPS port for clients on this machine.")
    console_port: Port = Field(8081, alias="CONSOLE_PORT", description="Port of the browser console.")
    grafana_port: Port = Field(3000, alias="GRAFANA_PORT", description="Port of the dashboard (profile observe).")
    prometheus_port: Port = Field(9090, alias="PROMETHEUS_PORT", description="Port of Prometheus (profile observe).")
    ngrok_authtoken: SecretStr = Field(
        SecretStr(""),
        alias="NGROK_AUTHTOKEN",
        description="Your ngrok authtoken; empty means: no public URL.",
    )
    public_url: str = Field(
        "",
        alias="SLIPWAY_PUBLIC_URL",
        pattern=r"^(https://[^/\s]+/?)?$",
        description="Your own ngrok domain, https://…; empty means: the account's.",
    )
    sessions: Literal["auto", "stateful", "stateless"] = Field(
        "auto",
        alias="SLIPWAY_SESSIONS",
        description="auto: sessions that outlive restarts; stateful; stateless.",
    )
    answers: Literal["stream", "json"] = Field(
        "stream",
        alias="SLIPWAY_ANSWERS",
        description="Without a session: stream answers with progress; json is faster and has none.",
    )
    allowed_origins: Annotated[str, _ORIGINS] = Field(
        "http://localhost:*,https://localhost:*,http://127.0.0.1:*,https://127.0.0.1:*",
        alias="SLIPWAY_ALLOWED_ORIGINS",
        description="Browser origins that may call, comma-separated; https://*.example.com works, * means any.",
    )
    allowed_hosts: Annotated[str, _HOSTS] = Field(
        "",
        alias="SLIPWAY_ALLOWED_HOSTS",
        description="Host names to accept besides loopback and our tunnel's own.",
    )
    max_body: str = Field(
        "1MB",
        alias="SLIPWAY_MAX_BODY",
        pattern=r"^[0-9]{1,12}(B|KB|MB|KiB|MiB)$",
        description="Largest request body the edge lets through; more is 413.",
    )
    calls_burst: Count = Field(
        100, alias="SLIPWAY_CALLS_BURST", description="Messages one subject may send within a second; 0: any number."
    )
    calls_per_minute: Count = Field(
        600, alias="SLIPWAY_CALLS_PER_MINUTE", description="Messages one subject may send in a minute."
    )
    calls_per_day: Count = Field(
        20_000, alias="SLIPWAY_CALLS_PER_DAY", description="Messages one subject may send in a day."
    )
    calls_at_once: Count = Field(
        16, alias="SLIPWAY_CALLS_AT_ONCE", description="Tool calls of one subject that run at once."
    )
    streams_at_once: Count = Field(
        16, alias="SLIPWAY_STREAMS_AT_ONCE", description="Event streams one subject may keep open."
    )
    sessions_at_once: Count = Field(
        32, alias="SLIPWAY_SESSIONS_AT_ONCE", description="Sessions of one subject; one more ends the longest unused."
    )
    requests_at_once: Count = Field(
        4000, alias="SLIPWAY_REQUESTS_AT_ONCE", description="Requests and streams open at once, of everybody."
    )
    session_idle: Life = Field(
        "30m",
        alias="SLIPWAY_SESSION_IDLE",
        description="How long a session lives that nobody uses.",
    )
    tool_timeout: LifeOrNever = Field(
        "5m",
        alias="SLIPWAY_TOOL_TIMEOUT",
        description="After which time a tool call is cancelled; 0: never.",
    )
    tool_limits: Annotated[str, AfterValidator(_tools)] = Field(
        "",
        alias="SLIPWAY_TOOL_LIMITS",
        description='Bounds of single tools, as JSON: {"search": {"at_once": 2, "timeout": "30s"}}.',
    )
    max_answer: str = Field(
        "4MB",
        alias="SLIPWAY_MAX_ANSWER",
        pattern=r"^[0-9]{1,12}(B|KB|MB|KiB|MiB)$",
        description="Largest result of a tool; a larger one becomes an error.",
    )
    show_errors: bool = Field(
        False, alias="SLIPWAY_SHOW_ERRORS", description="true tells callers the texts of unexpected exceptions."
    )
    audit_payloads: bool = Field(
        False, alias="SLIPWAY_AUDIT_PAYLOADS", description="true writes arguments and results into the audit log."
    )
    plan: str = Field(
        "free",
        alias="SLIPWAY_PLAN",
        pattern=r"^(free|none|((requests|per_minute)=[0-9]{1,12}|gb=[0-9]{1,9}([.][0-9]{1,3})?)"
        r"(,((requests|per_minute)=[0-9]{1,12}|gb=[0-9]{1,9}([.][0-9]{1,3})?)){0,2})$",
        description="Your ngrok plan, shared by a lab's seats: free, none, or requests=100000,gb=5,per_minute=20000.",
    )
    max_ttl: Life = Field(
        "30d",
        alias="SLIPWAY_MAX_TTL",
        description="Longest life of a token: 8h, 30d; nobody can ask for more.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        alias="REDIS_URL",
        description="redis://… shares revocations and invites between replicas; empty means files.",
    )
    redis_away: Literal["refuse", "serve"] = Field(
        "refuse",
        alias="SLIPWAY_REDIS_AWAY",
        description="Redis away: refuse with 503 until it is back, or serve on with what each server knows.",
    )
    otlp_endpoint: str = Field(
        "",
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        pattern=r"^(https?://[^/\s@]+(/[^\s?#]*)?)?$",
        description="Where traces go, by OTLP over HTTP: http://127.0.0.1:4318; empty means: none.",
    )
    otlp_headers: SecretStr = Field(
        SecretStr(""),
        alias="OTEL_EXPORTER_OTLP_HEADERS",
        description="What the collector wants with them: name=value,name=value.",
    )
    anonymous: bool = Field(
        False,
        alias="SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS",
        description="true lets ANYONE with the URL call every tool, without a token.",
    )
    state: Path = Field(Path(".slipway"), alias="SLIPWAY_STATE", description="Folder of secret, local CA and logs.")
    secret_file: Path = Field(
        Path(".slipway/secret"),
        alias="SLIPWAY_SECRET_FILE",
        description="File of mode 600 with the signing secret.",
    )

    @property
    def public_url_file(self) -> Path:
        """The file in which tunnel.py leaves the public URL while the tunnel is open."""
        return self.state / "run" / "public_url"


def size(text: str) -> int:
    """Turn "1MB" or "64KiB" into bytes."""
    number = text.rstrip("BKMi")
    unit = {"B": 1, "KB": 1000, "MB": 1000**2, "KiB": 1 << 10, "MiB": 1 << 20}[text.removeprefix(number)]
    return int(number) * unit


def names() -> dict[str, str]:
    """Return {variable name: help} of every setting."""
    return {field.alias or name: field.description or "" for name, field in Settings.model_fields.items()}


def read_env_file(path: Path) -> dict[str, str]:
    """Read a `.env` file as python-dotenv does, but refuse what it would pass over in silence.

    Args:
        path: the file; a missing one is empty.
    Returns: {name: value}.
    Raises:
        Problem: a line that is no assignment, or a name that is a misspelt setting.
    """
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            f"{path.name} cannot be read: {error}", f"Mend {path.name}, or start from .env.example", 2
        ) from None
    for binding in bindings:
        line = binding.original.line
        if binding.error or (binding.key is not None and binding.value is None):
            raise Problem(
                f"{path.name} line {line} is no NAME=value.",
                f"Mend line {line} of {path.name} (quote a value that has spaces), then run the command again",
                2,
            )
        if binding.key is None:
            continue
        _refuse_typo(binding.key, f"{path.name} line {line}")
        found[binding.key] = binding.value or ""
    return found


def own_names(values: Mapping[str, str]) -> dict[str, str]:
    """Return what `.env` holds for the target: the names that are no settings of Slipway."""
    ours = {*names(), *_COMPOSE_ONLY}
    return {name: value for name, value in values.items() if name not in ours}


def _refuse_typo(name: str, where: str) -> None:
    known = [*names(), *_COMPOSE_ONLY]
    if name in known:
        return
    if name.startswith("FASTMCP_"):
        # a FastMCP server that runs in this folder would read it by itself, and serve otherwise than it is asked to
        cure = "Remove it; set it in the server's own code, or in the env of its mcp.json"
        raise Problem(f"{where}: {name} is FastMCP's own setting, which no target gets from here.", cure, 2)
    close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
    if close or name.startswith(_OURS):
        meant = f"did you mean {close[0]}?" if close else "Slipway has no such setting."
        raise Problem(f"{where}: {name} is unknown; {meant}", "Mend the name; .env.example lists them all", 2)


def load(environ: Mapping[str, str], env_file: Path | None = None) -> Settings:
    """Merge the environment over `.env` and check every value. An empty value means the default.

    Args:
        environ: usually os.environ.
        env_file: usually Path(".env"); None reads no file.
    Raises:
        Problem: with the name of the setting, what is wrong with it, and where to mend it.
    """
    values = read_env_file(env_file) if env_file else {}
    known = names()
    values |= {name: environ[name] for name in known if name in environ}
    if nul := next((name for name, value in values.items() if "\0" in value), ""):
        raise Problem(f"{nul} holds a NUL character, which no program can be given.", f"Mend {nul} in .env", 2)
    if half := next((name for name in sorted(known) if _half(values.get(name, ""))), ""):
        raise Problem(f"{half} holds half a character, which no file can be named by.", f"Mend {half} in .env", 2)
    try:
        return Settings.model_validate({name: value for name, value in values.items() if name in known and value})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        what = first["msg"].removeprefix("Value error, ")
        raise Problem(f"{name}: {what}.", f"Mend {name} in .env ({known.get(name, '')})", 2) from None


def _half(value: str) -> bool:
    """Tell whether a text has a surrogate other than those that stand for a byte of the environment (PEP 383)."""
    return any("\ud800" <= char < "\udc80" or "\udcff" < char <= "\udfff" for char in value)


def rooted(config: Settings, root: Path) -> Settings:
    """Return the settings with their paths made absolute, relative ones taken from the checkout."""
    paths = {name: root / getattr(config, name) for name in ("state", "secret_file", "target_folder")}
    return config.model_copy(update=paths)


def environment(config: Settings, root: Path) -> dict[str, str]:
    """Return {variable name: value} for a child process, with absolute paths and without any secret."""
    values: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, SecretStr):
            continue
        text = str((root / value).resolve()) if isinstance(value, Path) else str(value)
        values[field.alias or name] = text.lower() if isinstance(value, bool) else text
    return values
