"""What tunnel.py says while it watches; test_tunnel.py has the whole of it."""

from __future__ import annotations

import time

import pytest

import tunnel
from slipway import tokens


@pytest.mark.parametrize(
    ("life", "old", "told"),
    [
        (120, 0, ""),
        (3600, 0, ""),
        (3600, 3450, "the token of ana expires in 2 min: scripts/mint makes another"),
        (3600, 4000, "the token of ana has expired: scripts/mint makes another"),
    ],
)
def test_the_end_of_a_token_is_told_once_and_as_it_is(
    monkeypatch: pytest.MonkeyPatch, life: int, old: int, told: str
) -> None:
    said: list[str] = []
    now = time.time()
    claims = {"sub": "ana", "iat": int(now) - old, "exp": int(now) - old + life}
    looks = iter(range(3))

    def sleep(_: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tunnel, "say", said.append)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        tunnel.watch([], tokens.Minted("token", claims), "mark")
    assert said[1:] == ([told] if told else [])
