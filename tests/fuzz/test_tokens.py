"""Tokens, lives and scopes, against a judge that shares no code with ours."""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway import tokens
from slipway.errors import Problem
from tests.fuzz.inputs import HOSTILE, JSON, commands_a_terminal, deep, documents, objects

KEY = "0123456789abcdef" * 4
SECRET = tokens.Secret(KEY)
NOW = int(time.time())
NAMES = ("iss", "aud", "sub", "iat", "nbf", "exp", "jti", "scope", "client_id")
TIMES = st.sampled_from(
    [0, 1, NOW - 3600, NOW - 1, NOW + 3600, NOW + 10**7, 10**15, -(10**15), float(NOW + 60), "soon", True]
)
CLAIMS = objects(
    iss=st.sampled_from(["slipway", "slipway ", "Slipway"]), aud=st.sampled_from(["slipway", ["slipway"], "slipway-admin"]),
    sub=st.sampled_from(["ana", "", "\x1b[2J"]), iat=TIMES, nbf=TIMES, exp=TIMES,
    jti=st.sampled_from(["a1", ""]), scope=st.sampled_from(["tool:*", "", "tool:add tool:add"]), client_id=st.just("pasted"),
)  # fmt: skip
GOOD = {"iss": "slipway", "aud": "slipway", "sub": "ana", "iat": NOW, "nbf": NOW, "exp": NOW + 10**6, "jti": "a1",
        "scope": "tool:*", "client_id": "pasted"}  # fmt: skip
# most are one step from good: what is wrong in five places is refused for the first
ALMOST = st.one_of(CLAIMS, st.builds(lambda change: {**GOOD, **change}, CLAIMS), st.just(GOOD), JSON)
HEADERS = st.one_of(
    st.just({"alg": "HS256", "typ": "JWT"}),
    objects(alg=st.sampled_from(["HS256", "none", "HS512", "RS256", "hs256"])),
)


def b64(raw: bytes) -> str:
    """Return base64url as JWTs write it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@st.composite
def written(draw: st.DrawFn) -> str:
    """Return a token: of any header, any claims, signed well, by another key, or not at all; or any text."""
    if draw(st.integers(0, 5)) == 0:
        return draw(HOSTILE)
    head, body = b64(draw(documents(HEADERS))), b64(draw(documents(ALMOST)))
    signed = f"{head}.{body}"
    key = draw(st.sampled_from([KEY, KEY, KEY, KEY, "another" * 6, ""]))
    how = draw(st.sampled_from(["sha256"] * 5 + ["sha512", ""]))
    signature = b64(hmac.digest(key.encode(), signed.encode(), how)) if how else ""
    cut = draw(st.sampled_from([0] * 9 + [5]))
    return f"{signed}.{signature}"[cut:] + draw(st.sampled_from([""] * 9 + [".", " ", "=", "\n"]))


def good(token: str) -> bool:
    """Judge a token by hand: RFC 7515, 7519, and our nine claims."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > 8192:
        return False
    try:
        head, body, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
        header, claims = json.loads(head), json.loads(body)
    except (ValueError, RecursionError):
        return False
    mine = hmac.digest(KEY.encode(), ".".join(parts[:2]).encode(), "sha256")
    if not hmac.compare_digest(mine, signature) or not isinstance(header, dict) or header.get("alg") != "HS256":
        return False
    if not isinstance(claims, dict) or not all(name in claims for name in NAMES):
        return False
    texts = all(
        isinstance(claims[name], str) and (claims[name] or name == "scope")
        for name in ("sub", "jti", "scope", "client_id")
    )
    try:
        times = (
            int(claims["iat"]) <= time.time() + 1
            and int(claims["nbf"]) <= time.time() + 1
            and int(claims["exp"]) > time.time() - 1
        )
    except (ValueError, TypeError, OverflowError):
        return False
    return texts and times and claims["iss"] == claims["aud"] == "slipway"


def verdict(token: str, **how: Any) -> str:
    """Return "" for a token that is accepted, or the reason."""
    try:
        tokens.verify(SECRET, token, **how)
    except tokens.TokenRefused as refused:
        return str(refused)
    return ""


@given(written())
def test_no_token_is_accepted_that_the_specifications_refuse_and_nothing_but_a_refusal_is_raised(token: str) -> None:
    reason = verdict(token)
    assert reason or good(token)
    assert not commands_a_terminal(reason, lines=False)
    assert len(reason) < 300
    # an admin's token is none for a tool, and the other way round
    assert verdict(token, audience=tokens.ADMIN_AUDIENCE) or not good(token)
    verdict(token, late=True)


@given(written(), st.sampled_from([SECRET, None]))
def test_an_explanation_commands_no_terminal_and_does_not_repeat_the_token(
    token: str, secret: tokens.Secret | None
) -> None:
    text, accepted = tokens.explain(secret, token)
    assert not commands_a_terminal(text)
    assert len(text) < 5000
    assert KEY not in text
    if token.count(".") == 2 and len(token) > 40:
        assert token not in text
        assert token.split(".")[2] not in text or len(token.split(".")[2]) < 20
    assert accepted == text.endswith("\naccepted")
    if secret:
        assert accepted == (not verdict(token.strip().removeprefix("Bearer ").strip()))


@given(written(), st.sampled_from([SECRET, None]))
def test_why_a_token_will_be_refused_is_always_a_text(token: str, secret: tokens.Secret | None) -> None:
    reason = tokens.refusal(secret, token)
    assert not commands_a_terminal(reason)
    if secret:
        assert bool(reason) == bool(verdict(token))


@pytest.mark.parametrize("depth", [500, 900, 950, 980, 990, 1000, 1500, 2900])
@pytest.mark.parametrize("where", ["header", "sub", "exp"])
def test_a_deep_token_is_refused_and_explained_at_every_depth(depth: int, where: str) -> None:
    head, body = '{"alg":"HS256"}', json.dumps(GOOD)
    if where == "header":
        head = f'{{"alg":"HS256","x":{deep(depth)}}}'
    else:
        body = json.dumps(GOOD | {where: 0}).replace(f'"{where}": 0', f'"{where}": {deep(depth)}')
    signed = f"{b64(head.encode())}.{b64(body.encode())}"
    token = f"{signed}.{b64(hmac.digest(KEY.encode(), signed.encode(), 'sha256'))}"
    assert verdict(token) or where == "header"
    assert tokens.refusal(SECRET, token) or where == "header"
    assert not commands_a_terminal(tokens.explain(SECRET, token)[0])


@given(
    st.text(min_size=1, max_size=40), st.sampled_from(["*", "add", "add,countdown"]), st.integers(1, tokens.MAX_TTL)
)
def test_what_is_minted_is_accepted_and_says_what_was_asked(subject: str, tools: str, ttl: int) -> None:
    try:
        minted = tokens.mint(SECRET, subject=subject, scope=tokens.tool_scope(tools), ttl=ttl)
    except Problem:
        assert not subject.isprintable() or subject == "*"
        return
    claims = tokens.verify(SECRET, minted.token)
    assert claims == minted.claims
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (subject, ttl)
    assert good(minted.token)


@given(st.integers(0, 400), st.sampled_from("ABab01-_. ="))
def test_a_token_that_was_changed_anywhere_is_another_token_or_none(place: int, char: str) -> None:
    token = tokens.mint(SECRET, subject="ana", scope="tool:add", ttl=600).token
    place %= len(token)
    changed = token[:place] + char + token[place + 1 :]
    try:
        claims = tokens.verify(SECRET, changed)
    except tokens.TokenRefused:
        return
    # the last character of base64 has bits that mean nothing
    assert claims == tokens.verify(SECRET, token)


@given(st.text())
def test_a_secret_is_taken_or_refused_and_never_shown(text: str) -> None:
    try:
        secret = tokens.Secret(text)
    except Problem as problem:
        assert len(text) < 10 or text.strip() not in str(problem)
        return
    assert len(text.strip().encode()) >= 32
    assert repr(secret) == str(secret) == "Secret(…)"


# --- lives and scopes

LIVES = st.one_of(
    HOSTILE, st.lists(st.tuples(st.integers(0, 10**7), st.sampled_from(["s", "m", "h", "d", "D", "w", "", " "])), max_size=4)
    .map(lambda parts: "".join(f"{number}{unit}" for number, unit in parts)),
)  # fmt: skip


@given(LIVES)
def test_a_life_is_a_sum_of_its_parts_or_a_problem(text: str) -> None:
    plain = text.strip().lower()
    size = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    sums = 0
    if re.fullmatch(r"([0-9]{1,9}[smhd])+", plain):
        sums = sum(int(number) * size[unit] for number, unit in re.findall(r"([0-9]+)(.)", plain))
    try:
        seconds = tokens.parse_ttl(text)
    except Problem as problem:
        assert not 0 < sums <= tokens.MAX_TTL
        assert not commands_a_terminal(problem.cause)
        assert len(problem.cause) < 400
    else:
        assert seconds == sums


@given(LIVES, LIVES)
def test_no_life_is_longer_than_the_longest(text: str, longest: str) -> None:
    try:
        assert tokens.bounded_ttl(text, longest) <= tokens.parse_ttl(longest)
    except Problem as problem:
        assert not commands_a_terminal(problem.cause)


@given(st.integers(-(10**12), 10**12))
def test_a_duration_is_a_number_and_a_unit(seconds: int) -> None:
    assert re.fullmatch(r"-?\d+ (s|min|h|d)", tokens.duration(seconds))


@given(
    st.one_of(
        HOSTILE,
        st.lists(st.one_of(HOSTILE, st.sampled_from(["add", "*", " add ", "a b", 'a"'])), max_size=5).map(",".join),
    )
)
def test_a_scope_is_made_of_the_names_and_of_nothing_else(tools: str) -> None:
    names = list(dict.fromkeys(name.strip() for name in tools.split(",") if name.strip()))
    sound = names and all(len(n) <= 128 and all("!" <= c <= "~" and c not in '"\\' for c in n) for n in names)
    try:
        scope = tokens.tool_scope(tools)
    except Problem as problem:
        assert not sound
        assert not commands_a_terminal(problem.cause)
        assert len(problem.cause) < 1000
    else:
        assert sound
        assert scope.split(" ") == [f"tool:{name}" for name in names]
