"""Tokens and their secret: what is minted, what is refused and why, and what an operator is told."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from slipway import tokens
from slipway.errors import Problem

SECRET = tokens.Secret("k3y-0123456789abcdefghijklmnopqrstuvwxyz")
OTHER = tokens.Secret("0ther-0123456789abcdefghijklmnopqrstuvwxyz")


def forged(key: Any = None, algorithm: str = "HS256", drop: str = "", **changed: Any) -> str:
    claims = tokens.mint(SECRET, subject="ana", scope="tool:add", ttl=86_400).claims | changed
    claims.pop(drop, None)
    return jwt.encode(claims, SECRET.key() if key is None else key, algorithm)


def tampered(part: int) -> str:
    parts = forged().split(".")
    if part == 1:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
        claims["scope"] = "tool:*"
        parts[1] = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    else:
        parts[2] = ("A" if parts[2][0] != "A" else "B") + parts[2][1:]
    return ".".join(parts)


def test_a_minted_token_carries_exactly_the_agreed_claims_and_is_accepted() -> None:
    minted = tokens.mint(SECRET, subject="ana", scope="tool:add tool:countdown", ttl=3600)
    claims = tokens.verify(SECRET, minted.token)
    assert claims == minted.claims
    assert set(claims) == {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "scope", "client_id"}
    assert claims["exp"] - claims["iat"] == 3600


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (forged(exp=int(time.time()) - 90), "expired "),
        (forged(nbf=int(time.time()) + 80_000), "not valid yet"),
        (forged(iat=int(time.time()) + 80_000), "issued in the future"),
        *((forged(drop=name), f"claim {name} is missing") for name in tokens.REQUIRED_CLAIMS),
        (forged(iss="evil"), "wrong issuer"),
        (forged(aud="other"), "wrong audience"),
        (forged(aud=["slipway", "other"]), "wrong audience"),
        (forged(OTHER.key()), "wrong signature"),
        (forged(SECRET.key() + b"0" * 64, "HS512"), "wrong algorithm"),
        (forged("", "none"), "wrong algorithm"),
        (tampered(1), "wrong signature"),
        (tampered(2), "wrong signature"),
        (forged(padding="x" * 8200), "larger than 8192"),
        (forged(scope=["tool:add"]), "scope is no text"),
        (forged(sub=""), "sub is no text"),
        (forged(exp="never"), ""),
        (forged(exp=float("1e400")), ""),
        ("", "not a JWT"),
        ("a.b.c", "not a JWT"),
        ("é" * 20, ""),
    ],
)
def test_a_bad_token_is_refused_with_its_real_reason(token: str, reason: str) -> None:
    with pytest.raises(tokens.TokenRefused) as refused:
        tokens.verify(SECRET, token)
    assert reason in str(refused.value)


def test_no_garbage_gets_more_than_a_refusal() -> None:
    chance = random.Random(7)
    good = forged()
    for _ in range(3000):
        text = list(good if chance.random() < 0.7 else "".join(chr(chance.randrange(1, 0x2FF)) for _ in range(60)))
        for _ in range(chance.randrange(1, 5)):
            text[chance.randrange(len(text))] = chance.choice(["", ".", "=", "A", "\x00", "ÿ", "e30"])
        if "".join(text) == good:
            continue
        with pytest.raises(tokens.TokenRefused):
            tokens.verify(SECRET, "".join(text))
        assert isinstance(tokens.explain(SECRET, "".join(text))[0], str)


def test_deeply_nested_claims_are_refused_not_crashed_on() -> None:
    deep = base64.urlsafe_b64encode(("[" * 3000 + "]" * 3000).encode()).decode().rstrip("=")
    with pytest.raises(tokens.TokenRefused):
        tokens.verify(SECRET, f"{forged().split('.')[0]}.{deep[:8000]}.x")


def test_the_secret_is_made_once_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    first = tokens.ensure_secret(path)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(text.strip())) == 32
    path.chmod(0o644)
    assert tokens.ensure_secret(path).key() == first.key()
    assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_first_starts_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from slipway.tokens import *; print(ensure_secret(Path({str(tmp_path)!r})/'s').key())"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({run.communicate()[0] for run in runs}) == 1


def test_a_secret_that_another_start_is_just_writing_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch(0o600)
    timer = threading.Timer(0.3, lambda: file.write_text("0123456789abcdef" * 4))
    timer.start()
    assert tokens.ensure_secret(file).key() == b"0123456789abcdef" * 4
    timer.join()


@pytest.mark.parametrize("text", ["", "short", "dev-secret-do-not-use-in-production", "a" * 64, "abababababab" * 6])
def test_a_secret_that_is_short_or_known_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(Problem) as caught:
        tokens.Secret(text)
    assert caught.value.cure
    assert len(text) < 6 or text not in str(caught.value)


def test_a_missing_secret_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"scripts/up"):
        tokens.read_secret(tmp_path / "none")


def test_the_secret_has_no_printable_form() -> None:
    assert "k3y" not in f"{SECRET!r}{SECRET}"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800), (" 1H ", 3600)]
)
def test_a_time_to_live_is_read(text: str, seconds: int) -> None:
    assert tokens.parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "1", "h", "1w", "-1h", "1h x", "999d", "1.5h", "٣h", "9" * 5000 + "d"])
def test_a_bad_time_to_live_is_told_with_an_example(text: str) -> None:
    with pytest.raises(Problem, match="1h30m") as told:
        tokens.parse_ttl(text)
    assert len(told.value.cause) < 200


def test_tools_become_scopes() -> None:
    assert tokens.tool_scope("add, countdown,add") == "tool:add tool:countdown"
    assert tokens.tool_scope("*") == "tool:*"


@pytest.mark.parametrize("text", ["", ",", 'a"b', "a b", "x\ny", "ü"])
def test_bad_tool_names_are_told(text: str) -> None:
    with pytest.raises(Problem):
        tokens.tool_scope(text)


@pytest.mark.parametrize("subject", ["", "x" * 129, "a\nb", "\x1b[31m"])
def test_a_bad_subject_is_told(subject: str) -> None:
    with pytest.raises(Problem, match="subject"):
        tokens.mint(SECRET, subject=subject, scope="tool:*", ttl=60)


def test_an_explanation_says_what_and_how_long_and_why_but_not_the_token() -> None:
    good, old = forged(), forged(exp=int(time.time()) - 7200)
    text, accepted = tokens.explain(SECRET, f"Bearer {good}\n")
    assert accepted
    assert "ana" in text and "tool:add" in text and "accepted" in text
    assert good.split(".")[1] not in text
    text, accepted = tokens.explain(SECRET, old)
    assert not accepted
    assert "refused: expired 2 h ago" in text
    assert "signature was not checked" in tokens.explain(None, good)[0]


def test_a_hostile_token_cannot_command_the_terminal() -> None:
    text, _ = tokens.explain(SECRET, forged(sub="\x1b[2Jana", scope={"a": "\x07"}, jti=7))
    assert "\x1b" not in text and "\x07" not in text


def test_no_life_is_longer_than_the_longest() -> None:
    assert tokens.bounded_ttl("30d", "30d") == 30 * 86400
    with pytest.raises(Problem, match="longer than a token may live"):
        tokens.bounded_ttl("31d", "30d")
