"""The secret and the tokens it signs: make, mint, verify, explain. No network, no framework."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt

from slipway.errors import Problem

ISSUER = "slipway"
AUDIENCE = "slipway"
BOARD_AUDIENCE = "slipway-board"  # a token for the board may look, and do nothing
ADMIN_AUDIENCE = "slipway-admin"  # a token for /admin opens no tool, and a tool's token no /admin
ALGORITHM = "HS256"
MAX_TOKEN_BYTES = 8192
OTHERS = 2.0  # seconds that another first start may take to write the secret
MAX_TTL = 366 * 86400  # seconds
REQUIRED_CLAIMS = ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "scope", "client_id"]

LIMITS = (
    "calls_burst", "calls_per_minute", "calls_per_day", "calls_at_once", "streams_at_once", "sessions_at_once",
)  # fmt: skip

_WELL_KNOWN = {
    "dev-secret-do-not-use-in-production",
    "your-256-bit-secret-your-256-bit-secret",
    "a-string-secret-at-least-256-bits-long",
    "changemechangemechangemechangeme",
    "supersecretsupersecretsupersecret",
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class TokenRefused(Exception):
    """A token that must not pass; the message is the real reason, for the operator and never for the caller."""

    code = "token_invalid"  # the same in a word, one of a few


class TokenExpired(TokenRefused):
    """A token that is good but for its age."""

    code = "token_expired"


class TokenRevoked(TokenRefused):
    """A token that the operator took back."""

    code = "token_revoked"


class Secret:
    """The signing key, 256 bits or more (RFC 7518 §3.2). It has no printable form."""

    __slots__ = ("_key",)

    def __init__(self, text: str) -> None:
        key = text.strip()
        cure = "Remove the file, then ./scripts/up makes a good one (tokens signed with the old one stop working)"
        if key in _WELL_KNOWN or len(set(key)) < 8:
            raise Problem("The secret is one that everybody knows or can guess.", cure, 2)
        if len(key.encode()) < 32:
            raise Problem("The secret is shorter than 32 bytes.", cure, 2)
        self._key = key.encode()

    def key(self) -> bytes:
        """Return the raw key for PyJWT."""
        return self._key

    def __repr__(self) -> str:
        return "Secret(…)"


def read_secret(path: Path) -> Secret:
    """Read the secret.

    Raises:
        Problem: the file is missing, unreadable, too short, or holds a well-known secret.
    """
    try:
        return Secret(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"There is no secret at {path}.", "Run ./scripts/up once: it makes one", 2) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise Problem(
            f"The secret at {path} cannot be read: {reason}.",
            f"Make it readable for you: chmod 600 {path}",
            2,
        ) from None


def ensure_secret(path: Path) -> Secret:
    """Read the secret, or make it at the first start: 256 random bits, mode 600, never overwritten.

    Raises:
        Problem: as read_secret.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # O_EXCL: two first starts at once agree on one secret
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        until = time.monotonic() + OTHERS
        while not path.stat().st_size and time.monotonic() < until:
            time.sleep(0.01)  # whoever made it a moment ago is about to write it
    else:
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(secrets.token_hex(32) + "\n")
                stream.flush()
                os.fsync(stream.fileno())  # tokens are given out by it
        except OSError as error:
            path.unlink(missing_ok=True)  # an empty one would be refused ever after
            raise Problem(
                f"The secret {path} cannot be written: {error.strerror}.", "Make room, then ./scripts/up"
            ) from None
    return read_secret(path)


@dataclass(frozen=True)
class Minted:
    """A token and what it says."""

    token: str
    claims: dict[str, Any]


def mark(token: str) -> str:
    """Return what the edge's log holds of a token: 8 hex digits of a SHA-256, as Caddy's filter `hash` makes them."""
    return hashlib.sha256(f"Bearer {token}".encode()).hexdigest()[:8]


def parse_ttl(text: str) -> int:
    """Turn "90s", "15m", "1h", "2d" or "1h30m" into seconds.

    Raises:
        Problem: not a duration, zero, or more than a year.
    """
    # a number of thousands of digits is more than int() reads
    parts = re.findall(r"([0-9]{1,9})([smhd])", text.strip().lower())
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not 0 < seconds <= MAX_TTL:
        raise Problem(
            f"{text[:60]!r} is no time to live.", "Write it as 90s, 15m, 1h30m, 2h or 7d (366 days at most)", 2
        )
    return seconds


def bounded_ttl(text: str, longest: str) -> int:
    """Turn a duration into seconds, and hold it against SLIPWAY_MAX_TTL.

    Raises:
        Problem: no duration, or a longer one.
    """
    ttl, most = parse_ttl(text), parse_ttl(longest)
    if ttl > most:
        raise Problem(
            f"{text} is longer than a token may live ({duration(most)}).", "Ask for less, or set SLIPWAY_MAX_TTL", 2
        )
    return ttl


def tool_scope(tools: str) -> str:
    """Turn "add,countdown" or "*" into the scope "tool:add tool:countdown" or "tool:*".

    Raises:
        Problem: a name that cannot stand in a scope (RFC 6749 §3.3).
    """
    listed = [name.strip() for name in tools.split(",") if name.strip()]
    for name in listed:
        if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}", name):
            raise Problem(f"{name[:140]!r} is no tool name.", "Write --tools add,countdown or --tools '*'", 2)
    if not listed:
        raise Problem("No tool was named.", "Write --tools add,countdown or --tools '*'", 2)
    return " ".join(f"tool:{name}" for name in dict.fromkeys(listed))


def own_limits(given: Iterable[str]) -> dict[str, int]:
    """Turn ["calls_per_minute=600"] into {"calls_per_minute": 600}; 0 means any number.

    Raises:
        Problem: no such limit, or no number.
    """
    found: dict[str, int] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in LIMITS or not re.fullmatch(r"[0-9]{1,7}", number):
            raise Problem(f"{text!r} is no limit.", f"Write NAME=NUMBER; names: {', '.join(LIMITS)}", 2)
        found[name] = int(number)
    return found


def mint(
    secret: Secret, *, subject: str, scope: str, ttl: int, client_id: str = "pasted", audience: str = AUDIENCE,
    limits: dict[str, int] | None = None,
) -> Minted:  # fmt: skip
    """Sign a token.

    Args:
        secret: the signing key.
        subject: who it is for, as the audit and `whoami` will name them; 1 to 128 printable characters.
        scope: space-delimited scopes, as in "tool:add tool:countdown".
        ttl: seconds until it expires.
        client_id: by which door the holder came.
        audience: what it is for.
        limits: what its holder may do, where that differs from the settings, as own_limits() returns it.
    Raises:
        Problem: a subject that is empty, too long or unprintable; a token over 8 KB.
    """
    if not (0 < len(subject) <= 128 and subject.isprintable()) or subject == "*":
        raise Problem("The subject must be 1 to 128 printable characters, and not '*'.", "Write --subject ana", 2)
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER, "aud": audience, "sub": subject, "iat": now, "nbf": now, "exp": now + ttl,
        "jti": secrets.token_hex(8), "scope": scope, "client_id": client_id,
    } | ({"limits": limits} if limits else {})  # fmt: skip
    token = jwt.encode(claims, secret.key(), algorithm=ALGORITHM)
    if len(token) > MAX_TOKEN_BYTES:
        raise Problem("So many tools do not fit into a token.", "Write --tools '*'", 2)
    return Minted(token, claims)


def verify(secret: Secret, token: str, *, audience: str = AUDIENCE, late: bool = False) -> dict[str, Any]:
    """Check signature, algorithm, times, issuer, audience and that every claim is there.

    Args:
        audience: what the token must be for.
        late: do not look at `exp`; the caller has another end for it.
    Returns: the claims.
    Raises:
        TokenRefused: with the real reason; TokenExpired if that is only its age.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(f"larger than {MAX_TOKEN_BYTES} bytes")
    try:
        claims: dict[str, Any] = jwt.decode(
            token, secret.key(), algorithms=[ALGORITHM], issuer=ISSUER, audience=audience,
            options={"require": REQUIRED_CLAIMS, "strict_aud": True, "verify_exp": not late},
        )  # fmt: skip
    except jwt.ExpiredSignatureError as error:
        raise TokenExpired(_reason(error, token, audience)) from None
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise TokenRefused(_reason(error, token, audience)) from None
    for name in ("sub", "jti", "scope", "client_id"):
        if not isinstance(claims[name], str) or (name != "scope" and not claims[name]):
            raise TokenRefused(f"claim {name} is no text")
    limits = claims.get("limits", {})
    if not isinstance(limits, dict) or not all(
        n in LIMITS and type(limits[n]) is int and limits[n] >= 0 for n in limits
    ):
        raise TokenRefused("claim limits is none of ours")
    # servers keep the claims of thousands: what all say is kept once
    same = {name: sys.intern(claims[name]) for name in ("iss", "aud", "sub", "scope", "client_id")}
    return {sys.intern(name): same.get(name, value) for name, value in claims.items()}


def refusal(secret: Secret | None, token: str) -> str:
    """Say why a token will be refused, as far as it can be known here; "" if nothing speaks against it.

    Args:
        secret: ours; None judges a foreign token by its times alone, and one that is no JWT not at all.
    """
    try:
        if secret:
            verify(secret, token)
        else:
            jwt.decode(token, options={"verify_signature": False, "verify_exp": True, "verify_nbf": True})
    except TokenRefused as refused:
        return str(refused)
    except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
        return _reason(error, token, AUDIENCE)
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return ""
    return ""


def own_mark(secret: Secret) -> str:
    """Return what the request ids of our own probes begin with: nobody without the secret can hide behind it."""
    return "slipway-" + hmac.new(secret.key(), b"request ids of our own", "sha256").hexdigest()[:12]


def claimed_id(token: str) -> str:
    """Return the id that a token says it has, "" where it says none. Nothing is checked: never trust it."""
    try:
        return str(_unverified(token)[1].get("jti", ""))[:64] if len(token) <= MAX_TOKEN_BYTES else ""
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return ""


def _unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (header, claims) without any check, for messages only. Raises jwt.InvalidTokenError."""
    whole = jwt.decode_complete(token, options={"verify_signature": False})
    return whole["header"], whole["payload"]


def _reason(error: Exception, token: str, audience: str) -> str:
    text = str(error)
    match error:
        case jwt.ExpiredSignatureError():
            return f"expired {_when(_unverified(token)[1].get('exp'))}"
        case jwt.ImmatureSignatureError():
            claims = _unverified(token)[1]
            late = "iat" if "iat" in text else "nbf"
            what = "issued in the future" if late == "iat" else "not valid yet"
            return f"{what}: {late} is {_when(claims.get(late))}"
        case jwt.MissingRequiredClaimError():
            return f"claim {error.claim} is missing"
        case jwt.InvalidIssuerError():
            return f"wrong issuer: it must be {ISSUER!r}"
        case jwt.InvalidAudienceError():
            return f"wrong audience: it must be {audience!r}"
        case jwt.InvalidAlgorithmError():
            return f"wrong algorithm: only {ALGORITHM} is accepted"
        case jwt.InvalidSignatureError():
            return "wrong signature: changed on the way, or signed with another secret"
        case _:
            return "not a JWT" if isinstance(error, jwt.DecodeError) else f"malformed: {type(error).__name__}"


def _when(timestamp: object) -> str:
    if not isinstance(timestamp, int | float):
        return "at no valid time"
    try:
        moment = datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at no valid time"
    distance = duration(abs(int(timestamp - time.time())))
    return f"{distance} ago ({moment})" if timestamp <= time.time() else f"in {distance} ({moment})"


def duration(seconds: int) -> str:
    """Say a number of seconds as people do: "45 s", "12 min", "3 h", "5 d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def explain(secret: Secret | None, token: str) -> tuple[str, bool]:
    """Say what a token is, for how long, and why it would be refused. The text never contains the token.

    Returns: (lines of text, whether it would be accepted).
    """
    token = token.strip().removeprefix("Bearer ").strip()
    lines = []
    try:
        header, claims = _unverified(token[:MAX_TOKEN_BYTES])
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return "This is no JWT: three base64url parts with dots between them.\nrefused: not a JWT", False
    for name, value in {
        "subject": claims.get("sub"), "scope": claims.get("scope"), "issuer": claims.get("iss"),
        "audience": claims.get("aud"), "algorithm": header.get("alg"), "id (jti)": claims.get("jti"),
        "client": claims.get("client_id"), **({"limits": claims["limits"]} if "limits" in claims else {}),
    }.items():  # fmt: skip
        # repr: a hostile token must not write control characters to the terminal
        lines.append(
            f"{name + ':':<12}{value if isinstance(value, str) and value.isprintable() else repr(value)}"[:400]
        )
    for name, label in (("iat", "issued"), ("nbf", "valid from"), ("exp", "expires")):
        lines.append(f"{label + ':':<12}{_when(claims[name]) if name in claims else 'not said'}")
    if secret is None:
        return "\n".join([*lines, "There is no secret here, so the signature was not checked."]), False
    try:
        verify(secret, token)
    except TokenRefused as refused:
        return "\n".join([*lines, f"refused: {refused}"]), False
    return "\n".join([*lines, "accepted"]), True
