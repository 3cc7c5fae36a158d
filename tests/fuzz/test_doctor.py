"""What a hostile server may answer to the doctor: any bytes, any header, any JSON; the doctor names it and goes on."""

from __future__ import annotations

import asyncio
import json
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slipway.doctor import examine, report, streams, wire
from slipway.doctor.hops import Hop
from slipway.doctor.wire import Answer, Event
from slipway.errors import Problem
from tests.fuzz.inputs import ANY_TEXT, HOSTILE, JSON, commands_a_terminal, documents, objects

# reading the system's certificates takes longer than all the rest
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# --- bytes on the wire

BODIES = st.one_of(
    st.binary(max_size=200), documents(JSON), st.lists(st.sampled_from([b"data: {}", b"data:", b"id: 1", b"\n", b"\r\n", b"\r", b": x", b"event: a", b"data: {\"result\": {}}", b"\xff"]), max_size=12).map(b"".join),
)  # fmt: skip
HEADS = st.lists(st.sampled_from(
    [b"content-type: text/event-stream", b"content-type: application/json", b"content-encoding: gzip", b"content-encoding: deflate", b"transfer-encoding: chunked",
     b"content-length: 5", b"content-length: -1", b"content-length: 99999999999999999999", b"location: http://[", b"mcp-session-id: " + b"x" * 3000, b"x: \xff\xfe", b"connection: close"]
), max_size=5, unique=True)  # fmt: skip
ANSWERS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda status, heads, body: b"HTTP/1.1 " + status + b"\r\n" + b"".join(each + b"\r\n" for each in heads) + b"\r\n" + body,
              st.sampled_from([b"200 OK", b"200", b"404 x", b"999 x", b"000", b"1 x", b"100 Continue", b"204 x", b"301 x", b"-1", b"200 \x1b[2J"]), HEADS, BODIES),
)  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Any:
    """A loop for the whole module."""
    with asyncio.Runner() as made:
        yield made


async def _asked(answer: bytes) -> Answer:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    line = wire.Wire(NOBODY)
    try:
        return await line.ask(
            "POST", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", {}, b"{}", seconds=0.3
        )
    finally:
        await line.close()
        server.close()


@given(ANSWERS)
def test_any_bytes_are_an_answer_or_an_error_in_words(runner: asyncio.Runner, sent: bytes) -> None:
    answer = runner.run(_asked(sent))
    assert answer.status or answer.error
    assert len(answer.body) <= wire.MAX_BYTES
    assert not commands_a_terminal(answer.said() + answer.error, lines=False)
    assert isinstance(answer.result(), dict)
    assert len(answer.events) <= 10_000


@given(st.lists(BODIES, max_size=6))
def test_events_are_the_same_in_whichever_pieces_they_come(pieces: list[bytes]) -> None:
    whole, single, given_so = (Answer() for _ in range(3))
    wire._Lines(whole).feed(b"".join(pieces), 0.0)
    one, parts = wire._Lines(single), wire._Lines(given_so)
    for byte in b"".join(pieces):
        one.feed(bytes([byte]), 0.0)
    for piece in pieces:
        parts.feed(piece, 0.0)
    assert whole.events == single.events == given_so.events


def test_a_line_in_thousands_of_pieces_is_put_together_once() -> None:
    lines = wire._Lines(answer := Answer())
    for piece in [b"data: ", *[b"x"] * 50_000]:
        lines.feed(piece, 0.0)
    assert len(lines._rest) == 50_001
    lines.feed(b"\n\n", 0.0)
    assert answer.events == [Event(0.0, "", "x" * 50_000)]


@given(HOSTILE, st.integers(2, 200))
def test_foreign_text_is_shown_in_one_short_line(text: str, length: int) -> None:
    shown = wire.shown(text, length)
    assert len(shown) <= length
    assert not commands_a_terminal(shown, lines=False)
    shown.encode()


# --- a whole examination

TOOLS = st.lists(
    st.one_of(
        objects(
            name=st.sampled_from(["countdown", "add", "echo"]),
            inputSchema=objects(properties=objects(n=JSON, seconds=JSON), type=JSON),
        ),
        JSON,
    ),
    max_size=3,
)
RESULTS = objects(
    protocolVersion=st.sampled_from(["2025-11-25", "2026-07-28", "1"]), capabilities=objects(tools=JSON), serverInfo=objects(name=HOSTILE, version=HOSTILE),
    tools=TOOLS, content=JSON, supportedVersions=JSON, resource=HOSTILE, authorization_servers=st.lists(HOSTILE, max_size=2), issuer=HOSTILE,
    authorization_endpoint=HOSTILE, registration_endpoint=HOSTILE, token_endpoint=HOSTILE, code_challenge_methods_supported=JSON,
)  # fmt: skip
CONTENTS = st.one_of(
    documents(st.builds(lambda result: {"jsonrpc": "2.0", "id": 1, "result": result}, RESULTS)), documents(RESULTS), documents(objects(error=objects(code=JSON, message=HOSTILE))),
    st.binary(max_size=60), HOSTILE.map(lambda text: text.encode("utf-8", "replace")),
)  # fmt: skip
FIELDS = st.lists(st.tuples(
    st.sampled_from(["content-type", "www-authenticate", "access-control-allow-origin", "access-control-allow-headers", "access-control-expose-headers", "access-control-allow-methods",
                     "vary", "location", "mcp-session-id", "server", "ngrok-error-code", "content-encoding", "retry-after", "cache-control", "alt-svc", "cf-ray"]),
    st.one_of(st.sampled_from(["text/event-stream", "application/json", "*", "http://localhost:8081", "null", 'Bearer resource_metadata="http://[/x"', 'Bearer realm="\x1b[2J"',
                               "ERR_NGROK_3200", "gzip", "https://other.example/x", "/mcp/", "9" * 100, "-1"]), ANY_TEXT),
), max_size=8)  # fmt: skip
EVENTS = st.lists(st.builds(Event, st.floats(0, 5), st.sampled_from(["", "1", "\x1b"]), st.one_of(
    st.sampled_from(['{"method": "notifications/progress"}', '{"result": {}}', '{"result": 5}', '{"error": {}}', "[", "[" * 5000]), HOSTILE, CONTENTS.map(lambda raw: raw.decode("utf-8", "replace"))
)), max_size=6)  # fmt: skip
SEEN = st.builds(
    Answer, status=st.sampled_from([200, 200, 200, 0, 202, 204, 301, 400, 401, 403, 404, 405, 413, 421, 429, 500, 502, 999]), headers=FIELDS, body=CONTENTS,
    http=st.sampled_from(["HTTP/1.1", "HTTP/2", "HTTP/1.0"]), to_head=st.floats(0, 10), to_byte=st.one_of(st.none(), st.floats(0, 10)), seconds=st.floats(0, 10),
    events=EVENTS, bytes_at=st.lists(st.floats(0, 10), max_size=4), error=st.sampled_from(["", "no answer in 10 s", "its certificate is not trusted (x)", "nothing listens there"]), left=st.booleans(),
)  # fmt: skip


class Hostile:
    """A wire on which the same few answers come again and again."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self.asked = answers, 0

    async def ask(self, method: str, url: str, headers: dict[str, str], content: bytes = b"", **how: Any) -> Answer:
        """Give the next one. Whatever is sent must be something that can be sent."""
        self.asked += 1
        for name, value in headers.items():
            (name + value).encode("ascii")
            assert not set(name + value) & {"\r", "\n", "\0"}
        return self.answers[self.asked % len(self.answers)]

    async def close(self) -> None:
        """Nothing is open."""


@given(st.lists(SEEN, min_size=1, max_size=5), st.booleans(), st.booleans())
@example([Answer(status=200, headers=[("ngrok-error-code", "\x1b[2J")])], False, False)
def test_no_server_ends_an_examination_or_commands_the_terminal_by_it(
    runner: asyncio.Runner, answers: list[Answer], ours: bool, token: bool
) -> None:
    async def examined() -> tuple[examine.Report, Hostile]:
        hop = Hop("url", "http://127.0.0.1:1/mcp", token="x.y.z" if token else "", ours=ours)
        await hop.wire.close()
        hostile = Hostile(answers)
        hop.wire = hostile  # type: ignore[assignment]
        return await asyncio.wait_for(examine.examine([hop]), 20), hostile

    with pytest.MonkeyPatch.context() as patched:
        at_once = SimpleNamespace(**{**vars(asyncio), "sleep": lambda _: asyncio.sleep(0)})
        patched.setattr(streams, "asyncio", at_once)
        patched.setattr(Hop, "trust", lambda _: NOBODY)
        found, hostile = runner.run(examined())
    assert hostile.asked < 200
    for text in (report.as_text(found), report.short(found)):
        assert not commands_a_terminal(text), [char for char in text if not char.isprintable() and char != "\n"]
    json.dumps(report.as_json(found)).encode()


@given(HOSTILE)
@example("\x1b[2J")
def test_any_url_is_asked_or_a_problem(text: str) -> None:
    try:
        url = examine.url_of(text)
    except Problem as problem:
        assert not commands_a_terminal(str(problem)), str(problem)
        return
    assert url.lower().startswith(("http://", "https://"))
    assert not commands_a_terminal(url, lines=False)
