"""The ledger of tokens against a model of three dictionaries, in any order of steps, over restarts and beside replicas."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from key_value.aio.stores.memory import MemoryStore

from slipway import store, tokens
from slipway.files import Files
from slipway.identity import ledger as room
from slipway.identity.ledger import EVERYBODY, Ledger
from slipway.identity.verifier import SlipwayTokens

SECRET = tokens.Secret("0123456789abcdef" * 4)
SUBJECTS = st.sampled_from(["ana", "bo", "operator"])


class TokensAndTheirState(RuleBasedStateMachine):
    """Mint, paste, use, revoke one, revoke many, extend, restart; time goes on by itself in between.

    The model keeps what an operator was told: which token is revoked, until when each is good, and from when on each
    subject is. Every token that was ever made is tried after every step.
    """

    made: Bundle[str] = Bundle("made")
    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.patched = pytest.MonkeyPatch()
        # every look at the clock is a later one, so that nothing happens in the same moment
        ticks = itertools.count(1)
        self.now = 1_800_000_000.0
        self.patched.setattr(time, "time", lambda: self.now + next(ticks) / 1e5)

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
                return cls.fromtimestamp(time.time(), tz)

        # PyJWT looks at another clock
        self.patched.setattr(jwt.api_jwt, "datetime", Clock)
        self.patched.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
        self.folder = tempfile.TemporaryDirectory()
        self.values: Any = MemoryStore() if self.shared else Files(Path(self.folder.name))
        self.open()
        self.ends: dict[str, float] = {}
        self.given_at: dict[str, float] = {}
        self.subject: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.cut: dict[str, float] = {}
        self.known: set[str] = set()

    def teardown(self) -> None:
        """End."""
        self.patched.undo()
        self.runner.close()
        self.folder.cleanup()

    def do(self, what: Any) -> Any:
        """Run it."""
        return self.runner.run(what)

    def open(self) -> None:
        """Open the ledger as a new process does."""
        self.ledgers = [Ledger(store.Store(self.values, shared=self.shared)) for _ in range(2 if self.shared else 1)]
        for ledger in self.ledgers:
            self.do(ledger.load())
        self.turn = itertools.cycle(self.ledgers)
        # they live as long as their server: what they remember of a token must not outlive it
        self.gates = itertools.cycle([SlipwayTokens(SECRET, ledger) for ledger in self.ledgers])

    def mint(self, subject: str, ttl: int) -> tokens.Minted:
        """Sign a token with our clock."""
        minted = tokens.mint(SECRET, subject=subject, scope="tool:*", ttl=ttl)
        token = minted.token
        self.ends[token], self.subject[token] = minted.claims["exp"], subject
        return minted

    @rule(target=made, subject=SUBJECTS, ttl=st.integers(1, 4000))
    def a_token_is_given_out(self, subject: str, ttl: int) -> str:
        minted = self.mint(subject, ttl)
        self.do(next(self.turn).add(minted.claims, via="minted"))
        self.given_at[minted.token] = time.time()
        self.known.add(minted.token)
        return minted.token

    @rule(target=made, subject=SUBJECTS, ttl=st.integers(1, 4000))
    def a_token_is_made_without_the_server(self, subject: str, ttl: int) -> str:
        minted = self.mint(subject, ttl)
        # whole seconds: it counts as old as the beginning of its second
        self.given_at[minted.token] = minted.claims["iat"]
        return minted.token

    @rule(token=made)
    def one_is_revoked(self, token: str) -> None:
        jti = jwt.decode(token, options={"verify_signature": False})["jti"]
        known = self.do(next(self.turn).revoke(jti))
        assert bool(known) == (token in self.known) or token in self.revoked
        self.revoked.add(token)
        self.known.add(token)

    @rule(subject=st.one_of(SUBJECTS, st.just(EVERYBODY)))
    def all_of_somebody_are_revoked(self, subject: str) -> None:
        self.do(next(self.turn).revoke_before_now(subject))
        self.cut[subject] = time.time()

    @rule(token=made, seconds=st.integers(1, 9000))
    def one_is_extended(self, token: str, seconds: int) -> None:
        claims = jwt.decode(token, options={"verify_signature": False})
        until = int(time.time()) + seconds
        record = self.do(next(self.turn).extend(claims["jti"], until))
        assert bool(record) == (token in self.known)
        if record:
            self.extended(token, claims["exp"], until)

    def extended(self, token: str, exp: float, until: float) -> None:
        """Extending counts for what is expired: nothing is taken away from what a token says itself."""
        self.ends[token] = max(exp, until)

    @rule(seconds=st.sampled_from([0.5, 30.0, 1000.0, 5000.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_server_starts_anew(self) -> None:
        self.open()

    @invariant()
    def each_token_is_accepted_exactly_if_the_model_says_so(self) -> None:
        for token, subject in self.subject.items():
            accepted = self.do(next(self.gates).verify_token(token)) is not None
            cut = max(self.cut.get(subject, 0.0), self.cut.get(EVERYBODY, 0.0))
            good = time.time() < self.ends[token] and token not in self.revoked and self.given_at[token] > cut
            assert accepted == good, (
                subject,
                self.ends[token] - time.time(),
                token in self.revoked,
                self.given_at[token] - cut,
            )
            if accepted:
                self.known.add(token)

    @invariant()
    def what_is_listed_is_what_is_known(self) -> None:
        listed = self.do(next(self.turn).all())
        assert len(listed) == len({record.jti for record in listed}) == len(self.known)
        assert all(self.do(next(self.turn).state(record)) for record in listed)
        assert room.KEPT > 9000  # nothing is forgotten meanwhile


class TokensOverReplicas(TokensAndTheirState):
    """The same, with two processes that share a store: each step is taken by one, each look by the other."""

    shared = True


TestTokens = TokensAndTheirState.TestCase
TestTokensOverReplicas = TokensOverReplicas.TestCase
