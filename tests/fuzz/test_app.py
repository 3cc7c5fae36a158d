"""The whole app in one process, from raw ASGI requests: whatever comes, no error of ours, nothing told, nothing poisoned."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from fastmcp import FastMCP
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from slipway import app as room
from slipway import knocks, settings, tokens
from slipway.guards import PROBES
from slipway.identity import pages
from slipway.identity.pages import Pages
from tests.fuzz.inputs import ANY_TEXT, HEADER, HOSTILE, JSON, commands_a_terminal, deep, documents, objects

SECONDS = 20.0
SECRET = tokens.Secret("0123456789abcdef" * 4)
TOKEN = tokens.mint(SECRET, subject="ana", scope="tool:probe", ttl=86400).token
NARROW = tokens.mint(SECRET, subject="bo", scope="tool:other", ttl=86400).token
ADMIN = tokens.mint(SECRET, subject="operator", scope="admin", ttl=86400, audience=tokens.ADMIN_AUDIENCE).token
CODE = "ACDE-3479"
UNLIMITED = dict.fromkeys(["SLIPWAY_CALLS_BURST", "SLIPWAY_CALLS_PER_MINUTE", "SLIPWAY_CALLS_PER_DAY"], "0")
Headers = list[tuple[bytes, bytes]]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class House:
    """The app, running in a loop of its own, and what its one tool was called with."""

    app: ASGIApp
    log: Path
    runner: asyncio.Runner
    called: list[Any] = field(default_factory=list, repr=False)

    def ask(
        self, method: str = "POST", path: str = "/mcp", body: bytes | list[bytes] = b"", headers: Headers | None = None,
        *, query: bytes = b"", token: str = TOKEN, host: bytes = b"localhost",
    ) -> Answer:  # fmt: skip
        """Send one request, and look at what no answer may have."""
        before = self.log.stat().st_size
        answer = self.runner.run(
            asyncio.wait_for(self._ask(method, path, body, headers or [], query, token, host), SECONDS)
        )
        assert answer.status < 500, f"{method} {path}: {answer.status} {answer.body[:300]!r}"
        assert SECRET.key() not in answer.body
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
        for name, value in answer.headers.items():
            assert not set(name + value) & {"\r", "\n", "\0"}
        self.lines = []
        if path not in PROBES:
            # a thread writes the log; conftest's wait_until looks less often than the requests come
            deadline = time.monotonic() + 10
            while not self._logged(before, answer.headers["x-request-id"]):
                assert time.monotonic() < deadline, "the request is not in the log"
                time.sleep(0.001)
        for line in self.lines:
            assert not commands_a_terminal(line)
            assert len(line) < 20_000
            assert TOKEN not in line
            assert ADMIN not in line
        return answer

    def _logged(self, before: int, request_id: str) -> bool:
        with self.log.open("rb") as stream:
            stream.seek(before)
            text = stream.read().decode("ascii")
        self.lines = [line for line in text.splitlines() if request_id in line]
        return bool(self.lines) and text.endswith("\n")

    async def _ask(
        self, method: str, path: str, body: Any, headers: Headers, query: bytes, token: str, host: bytes
    ) -> Answer:
        given = [(b"host", host), *headers]
        if token and not any(name == b"authorization" for name, _ in given):
            given.append((b"authorization", f"Bearer {token}".encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": quote(path).encode(), "query_string": query, "root_path": "", "headers": given,
            # limits are counted by address
            "client": (f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(256)}", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        pieces = [body] if isinstance(body, bytes) else body or [b""]
        waiting = [
            {"type": "http.request", "body": each, "more_body": n < len(pieces) - 1} for n, each in enumerate(pieces)
        ]
        done, sent = asyncio.Event(), list[Message]()

        async def receive() -> Message:
            if waiting:
                return waiting.pop(0)
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            content = dict(message.get("headers", []))
            if content.get(b"content-type", b"").startswith(b"text/event-stream") and method == "GET":
                done.set()  # who asked for a stream leaves
            if message["type"] == "http.response.body" and not message.get("more_body"):
                done.set()

        await self.app(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        return Answer(
            start["status"], {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The app of a server with two tools."""
    state = tmp_path_factory.mktemp("state")
    called: list[Any] = []
    mcp: FastMCP[Any] = FastMCP("probe")

    @mcp.tool
    def probe(x: Any = None) -> str:
        """Note that it was called."""
        called.append(x)
        return "done"

    @mcp.tool
    def other() -> str:
        """Be there."""
        return "done"

    with pytest.MonkeyPatch.context() as patched:
        # whoever looks for the line of a request looks behind those before it: not in a log that is rotated meanwhile
        patched.setattr(knocks, "MAX_LOG_BYTES", 0)
        app = room.build(mcp, settings.load({"SLIPWAY_STATE": str(state), **UNLIMITED}), SECRET)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        came: asyncio.Queue[Message] = asyncio.Queue()
        went: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        life = loop.create_task(app(scope, came.get, went.put))  # type: ignore[arg-type]
        came.put_nowait({"type": "lifespan.startup"})
        assert runner.run(asyncio.wait_for(went.get(), 30))["type"] == "lifespan.startup.complete"
        yield House(app, state / "log" / "server.jsonl", runner, called)
        came.put_nowait({"type": "lifespan.shutdown"})
        runner.run(asyncio.wait_for(life, 30))


# --- anything at all

PATHS = st.one_of(
    st.sampled_from(["/mcp", "/mcp/", "/join", "/healthz", "/oauth/authorize", "/oauth/token", "/oauth/register", "/oauth/revoke", "/oauth/consent",
                     "/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-authorization-server", "/admin/tokens", "/admin/invites", "/metrics", ""]),
    HOSTILE.map(lambda text: "/" + text.encode("utf-8", "replace").decode()),
)  # fmt: skip
NAMES = st.sampled_from(
    [b"accept", b"content-type", b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"last-event-id", b"x-request-id",
     b"user-agent", b"origin", b"cookie", b"authorization", b"content-length", b"transfer-encoding", b"x-forwarded-for", b"content-encoding",
     b"x-forwarded-host", b"sec-fetch-site", b"expect", b"upgrade"]
)  # fmt: skip
VALUES = st.one_of(HEADER, st.sampled_from(
    [b"application/json", b"application/json, text/event-stream", b"*/*", b"text/event-stream", b"multipart/form-data; boundary=x", b"2025-11-25", b"2026-07-28",
     b"tools/call", b"probe", b"null", b"Basic eDp5", b"Basic !", b"Bearer", b"Bearer x", b"-1", b"chunked", b"gzip", b"9" * 5000, b"http://localhost:1"]
))  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
METHODS = st.sampled_from(["GET", "POST", "POST", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "get", "X"])


@given(
    METHODS,
    PATHS,
    HEADERS,
    st.one_of(st.binary(max_size=100), documents(JSON)),
    st.binary(max_size=60),
    st.sampled_from([TOKEN, NARROW, ADMIN, ""]),
)
def test_whatever_is_asked_is_answered_without_an_error_of_ours(
    house: House, method: str, path: str, headers: Headers, body: bytes, query: bytes, token: str
) -> None:
    # it streams until a first call comes, and no other way ends it
    assert house.ask(method, path, body, headers, query=query.replace(b"watch", b""), token=token)


# --- messages

META = objects(**{
    "io.modelcontextprotocol/clientInfo": objects(name=HOSTILE, version=HOSTILE), "io.modelcontextprotocol/protocolVersion": st.just("2026-07-28"),
    "io.modelcontextprotocol/clientCapabilities": st.just({}), "progressToken": JSON,
})  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0"]), "method": st.one_of(st.sampled_from(["tools/call"] * 3 + ["tools/list", "initialize", "ping", "logging/setLevel",
        "notifications/cancelled", "notifications/initialized", "resources/read", "prompts/get", "completion/complete"]), HOSTILE, JSON)},
    optional={"id": st.one_of(st.integers(), HOSTILE, JSON), "params": st.one_of(objects(
        name=st.sampled_from(["probe", "other", "Probe", "probe "]), arguments=objects(x=JSON), protocolVersion=HOSTILE, clientInfo=objects(name=HOSTILE, version=JSON),
        capabilities=JSON, uri=HOSTILE, cursor=HOSTILE, level=HOSTILE, _meta=META,
    ), JSON)},
)  # fmt: skip
GOOD_CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "probe", "arguments": {"x": 0}}}
SPEAKS = [(b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
ERA = st.sampled_from(
    [[], [], [(b"mcp-protocol-version", b"2025-11-25")], [(b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"tools/call"), (b"mcp-name", b"probe")],
     [(b"mcp-session-id", b"x")], [(b"mcp-method", b"tools/list")]]
)  # fmt: skip
TEXTS = st.one_of(
    documents(MESSAGES),
    documents(st.builds(lambda change: GOOD_CALL | change, MESSAGES)),
    documents(st.lists(MESSAGES, max_size=2)),
)


def call(x: str) -> bytes:
    """Return a call of the tool with this text of JSON as its argument."""
    return json.dumps(GOOD_CALL).replace('"x": 0', f'"x": {x}').encode()


@given(TEXTS, ERA, st.sampled_from([TOKEN, TOKEN, NARROW, ""]), st.integers(1, 40))
@example(call("9" * 4999), [], TOKEN, 1)
@example(call("9" * 3999), [], TOKEN, 1)
@example(call("1e400"), [], TOKEN, 1)
@example(call("NaN"), [], TOKEN, 1)
@example(call('"\\ud800"'), [], TOKEN, 1)
@example(call("0").replace(b'"name"', b'"name": "other", "name"'), [], TOKEN, 1)
@example(call("0").replace(b'"probe"', b'"probe", "name": "other"'), [], NARROW, 1)
@example(call("0").replace(b'"method"', b'"method": "tools/list", "method"'), [], TOKEN, 1)
@example(call("0").replace(b"probe", b"pr\\u006fbe"), [], TOKEN, 1)
@example(json.dumps(GOOD_CALL).encode("utf-16"), [], TOKEN, 1)
@example(json.dumps(GOOD_CALL).encode("utf-8-sig"), [], TOKEN, 1)
@example(call("0") + b"\x00", [], TOKEN, 1)
@example(call("0").replace(b"done", b"\xff"), [], TOKEN, 1)
@example(b" " * 1_100_000 + call("0"), [], TOKEN, 1)
def test_no_call_passes_without_its_scope_nor_past_the_log(
    house: House, body: bytes, era: Headers, token: str, pieces: int
) -> None:
    before = len(house.called)
    size = len(body) // pieces + 1
    house.ask(body=[body[at : at + size] for at in range(0, len(body), size)], headers=[*SPEAKS, *era], token=token)
    if len(house.called) == before:
        return
    assert token == TOKEN
    if len(body) <= 1 << 20:
        (line,) = [json.loads(line) for line in house.lines]
        assert (line["method"], line["tool"], line["subject"]) == ("tools/call", "probe", "ana")


@pytest.mark.parametrize("depth", [100, 190, 220, 800, 900, 930, 950, 960, 970, 980, 985, 990, 995, 1200, 50_000])
@pytest.mark.parametrize("where", ["method", "name", "x", "clientInfo", "protocolVersion", "id", "jsonrpc"])
def test_no_depth_of_a_message_is_an_error_of_ours(house: House, depth: int, where: str) -> None:
    params = {"name": "probe", "arguments": {"x": 0}, "clientInfo": {"name": 0}, "protocolVersion": 0}
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    key = "name" if where == "clientInfo" else where
    at = text.rindex(f'"{key}": ') + len(key) + 4
    value = re.match(r'"[^"]*"|\d', text[at:])
    assert value
    house.ask(body=(text[:at] + deep(depth) + text[at + value.end() :]).encode(), headers=SPEAKS)


# --- signing in

CALLBACK = "http://localhost:7777/callback"
CLIENTS = objects(
    redirect_uris=st.lists(st.one_of(st.just(CALLBACK), HOSTILE, st.sampled_from(["https://a.example/cb", "javascript:x", "cursor://x"])), max_size=3),
    client_name=HOSTILE, scope=st.one_of(HOSTILE, st.just("tool:*")), token_endpoint_auth_method=st.sampled_from(["none", "client_secret_post", "x"]),
    grant_types=st.lists(st.sampled_from(["authorization_code", "refresh_token", "password"])), client_uri=HOSTILE, jwks=JSON, software_id=HOSTILE,
    logo_uri=HOSTILE, contacts=st.lists(HOSTILE, max_size=2), response_types=st.lists(st.sampled_from(["code", "token"]), max_size=2),
)  # fmt: skip


@given(documents(CLIENTS))
@example(b'{"redirect_uris": ["http://localhost/x"], "client_name": "\\ud800"}')
@example(
    b'{"redirect_uris": ["http://localhost/x"], "scope": "\\ud800", "contacts": ["\\udfff"], "extra": "\\ud800"}'
)
@example(deep(100_000).encode())
def test_any_registration_is_kept_as_asked_or_refused(house: House, body: bytes) -> None:
    answer = house.ask(path="/oauth/register", body=body, headers=[(b"content-type", b"application/json")], token="")
    told = json.loads(answer.body)
    assert answer.status in (201, 400, 413, 422, 429)
    if answer.status == 201:
        assert told["client_id"]
        for uri in told["redirect_uris"]:
            assert not uri.lower().startswith(("javascript:", "data:"))
    else:
        assert told["error"]


@pytest.fixture(scope="module")
def client_id(house: House) -> str:
    """A program that registered."""
    body = json.dumps({"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}).encode()
    answer = house.ask(path="/oauth/register", body=body, headers=[(b"content-type", b"application/json")], token="")
    return str(json.loads(answer.body)["client_id"])


@pytest.fixture(scope="module")
def code(house: House) -> str:
    """An invite code that many may use."""
    body = json.dumps({"uses": 10_000, "tools": "probe"}).encode()
    return str(json.loads(house.ask(path="/admin/invites", body=body, token=ADMIN).body)["code"])


CHARSETS = [
    "utf-8",
    "utf-16",
    "utf-7",
    "unicode_escape",
    "raw_unicode_escape",
    "idna",
    "punycode",
    "undefined",
    "rot13",
    "hex",
    "zlib",
    "no-such",
    "\x00",
]
WAYS = st.sampled_from(["form"] * 4 + ["multipart"] * 3 + ["file", "json", "none", "broken"])


@st.composite
def forms(draw: st.DrawFn, **fields: st.SearchStrategy[Any]) -> tuple[Headers, bytes, dict[str, str]]:
    """Return a form with these fields, or others, or doubled ones, in one of the ways in which forms are sent."""
    content = draw(
        st.fixed_dictionaries({}, optional={name: st.one_of(good, good, HOSTILE) for name, good in fields.items()})
    )
    pairs = [(name, str(value)) for name, value in content.items()]
    pairs += draw(st.lists(st.tuples(st.sampled_from([*fields, "x"]), HOSTILE), max_size=1))
    encoded = [(name.encode("utf-8", "replace"), value.encode("utf-8", "replace")) for name, value in pairs]
    match way := draw(WAYS):
        case "form":
            return (
                [(b"content-type", b"application/x-www-form-urlencoded")],
                urlencode(encoded).encode() + draw(st.sampled_from([b"", b"", b"&%ff=%ff", b"&&=="])),
                content,
            )
        case "multipart" | "file" | "broken":
            kind = b'; filename="f"' if way == "file" else b""
            extra = draw(st.sampled_from([b"", b"\\ud800", b"+2AA-", b"\xff"]))
            parts = [
                b'--x\r\nContent-Disposition: form-data; name="'
                + name.replace(b'"', b"")
                + b'"'
                + kind
                + b"\r\n\r\n"
                + value
                + extra
                + b"\r\n"
                for name, value in encoded
            ]
            charset = draw(st.sampled_from(CHARSETS)).encode()
            end = b"--x--\r\n" if way != "broken" else draw(st.binary(max_size=10))
            return (
                [(b"content-type", b"multipart/form-data; boundary=x; charset=" + charset)],
                b"".join(parts) + end,
                content,
            )
        case "json":
            return [(b"content-type", b"application/json")], json.dumps(content).encode(), content
    return [], urlencode(encoded).encode(), content


# RFC 7636, appendix B
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"  # pragma: allowlist secret


def part(name: bytes, value: bytes) -> bytes:
    """Return a form of one field in parts."""
    return b'--x\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n--x--\r\n"


ESCAPES = [(b"content-type", b"multipart/form-data; boundary=x; charset=unicode_escape")]
UNDEFINED = [(b"content-type", b"multipart/form-data; boundary=x; charset=undefined")]


@given(st.booleans(), forms(
    response_type=st.just("code"), client_id=st.sampled_from(["ours", "https://a.example/doc.json", "https://[/", "http://x", ""]), redirect_uri=st.sampled_from([CALLBACK, "https://evil.example/cb"]),
    code_challenge=st.just(CHALLENGE), code_challenge_method=st.sampled_from(["S256", "plain"]), state=HOSTILE, scope=st.sampled_from(["tool:*", "tool:add", "openid"]),
    resource=st.sampled_from(["http://localhost/mcp", "https://evil.example", "http://[", "x" * 3000]),
))  # fmt: skip
@example(True, (ESCAPES, part(b"state", b"\\ud800"), {}))
@example(True, (UNDEFINED, part(b"state", b"x"), {}))
def test_a_request_for_a_sign_in_leads_to_our_page_or_to_a_registered_place(
    house: House, client_id: str, posted: bool, form: tuple[Headers, bytes, dict[str, str]]
) -> None:
    headers, body, _ = form
    body = body.replace(b"ours", client_id.encode())
    if posted:
        answer = house.ask(path="/oauth/authorize", body=body, headers=headers, token="")
    else:
        answer = house.ask("GET", "/oauth/authorize", query=body, token="")
    where = answer.headers.get("location", "/oauth/consent?")
    assert where.startswith(("/oauth/consent?", CALLBACK)), where
    assert answer.status in (200, 302, 400, 401, 415, 422, 429)


GRANTS = forms(
    grant_type=st.sampled_from(["authorization_code", "refresh_token", "password"]), client_id=st.just("ours"), code=HOSTILE, redirect_uri=st.just(CALLBACK),
    code_verifier=st.just("x" * 50), refresh_token=HOSTILE, resource=st.sampled_from(["http://localhost/mcp", "https://evil.example"]), token=st.one_of(HOSTILE, st.just(NARROW[:-3])),
    client_secret=HOSTILE, scope=HOSTILE, client_assertion=HOSTILE, client_assertion_type=st.sampled_from(["urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "x"]),
)  # fmt: skip
BASIC = st.one_of(
    st.just([]), st.binary(max_size=30).map(lambda raw: [(b"authorization", b"Basic " + base64.b64encode(raw))]), HEADER.map(lambda raw: [(b"authorization", b"Basic " + raw)])
)  # fmt: skip


@given(st.sampled_from(["/oauth/token", "/oauth/revoke"]), GRANTS, BASIC)
@example("/oauth/revoke", (ESCAPES, part(b"token", b"\\ud800"), {}), [])
@example("/oauth/token", (ESCAPES, part(b"code", b"\\ud800"), {}), [])
@example("/oauth/token", (UNDEFINED, part(b"code", b"x"), {}), [])
def test_nothing_made_up_is_exchanged_for_a_token(
    house: House, client_id: str, path: str, form: tuple[Headers, bytes, dict[str, str]], basic: Headers
) -> None:
    headers, body, _ = form
    answer = house.ask(
        path=path, body=body.replace(b"ours", client_id.encode()), headers=[*headers, *basic], token=""
    )
    assert answer.status in (200, 400, 401, 415, 422, 429)
    assert b"access_token" not in answer.body
    assert answer.status != 200 or path == "/oauth/revoke"


BROWSER = "a-browser-of-this-test"


def bound(purpose: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """Return the form as our page would send it from this browser."""
    csrf = Pages(SECRET).csrf(BROWSER, purpose).encode()
    if b"multipart" in dict(headers).get(b"content-type", b""):
        body = b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n' + csrf + b"\r\n" + body
    else:
        body = b"csrf=" + csrf + b"&" + body
    return [*headers, (b"cookie", f"{pages.COOKIE}={BROWSER}".encode())], body


@given(
    forms(
        code=st.sampled_from(["good", "ACDE-3479", ""]),
        name=st.one_of(st.text(min_size=1, max_size=10), st.sampled_from(["ana", "Zoë"])),
    ),
    st.booleans(),
)
@example((ESCAPES, part(b"name", b"\\ud800"), {}), True)
@example((ESCAPES, part(b"x", b"\\ud800"), {}), True)
@example((UNDEFINED, part(b"name", b"x"), {}), True)
def test_who_joins_has_a_code_and_a_name_and_the_page_holds_no_markup_of_theirs(
    house: House, code: str, form: tuple[Headers, bytes, dict[str, str]], ours: bool
) -> None:
    headers, body, content = form
    if ours:
        headers, body = bound("join", headers, body)
    answer = house.ask(path="/join", body=body.replace(b"good", code.encode()), headers=headers, token="")
    assert answer.status in (200, 400, 403, 415, 422, 429)
    page = answer.body.decode()
    if "eyJ" in page:
        assert ours
        # a field that was sent twice counts by its last
        assert code in page
        assert b"good" in body
    for value in content.values():
        assert "<" not in value or value not in page


@given(forms(transaction=st.sampled_from(["t", ""]), decision=st.sampled_from(["deny", "allow"]), code=st.sampled_from(["good", "x"]), name=ANY_TEXT), st.booleans(),
       st.one_of(st.binary(max_size=30), st.just(b"transaction=t")))  # fmt: skip
@example((ESCAPES, part(b"transaction", b"\\ud800"), {}), True, b"")
@example((UNDEFINED, part(b"transaction", b"x"), {}), True, b"")
def test_no_form_signs_anybody_in_without_a_sign_in_that_was_begun(
    house: House, code: str, form: tuple[Headers, bytes, dict[str, str]], ours: bool, query: bytes
) -> None:
    headers, body, _ = form
    if ours:
        headers, body = bound("t", headers, body)
    answer = house.ask(path="/oauth/consent", body=body.replace(b"good", code.encode()), headers=headers, token="")
    assert answer.status in (400, 403, 415, 422, 429)
    assert house.ask("GET", "/oauth/consent", query=query, token="").status == 400


# --- the operator's side

ASKED = objects(
    subject=HOSTILE, tools=st.one_of(HOSTILE, st.sampled_from(["*", "add,probe"])), ttl=st.one_of(HOSTILE, st.sampled_from(["1h", "9" * 5000 + "d"])), purpose=HOSTILE,
    all=JSON, uses=st.integers(), token_ttl=st.sampled_from(["1h", "1m"]), name=HOSTILE,
)  # fmt: skip
IDS = st.one_of(
    st.sampled_from(["abc123", "a" * 128, "٣" * 128, "\U00010400" * 128, "..", "index"]),
    HOSTILE.map(lambda text: re.sub("[/\ud800-\udfff]", "", text) or "x"),
)
ROUTES = st.sampled_from([("POST", "/admin/tokens"), ("POST", "/admin/tokens/revoke"), ("POST", "/admin/invites"), ("DELETE", "/admin/tokens/{}"), ("GET", "/admin/tokens/{}"),
                          ("POST", "/admin/tokens/{}/extend"), ("DELETE", "/admin/invites/{}")])  # fmt: skip


def sane(house: House) -> None:
    """Look whether what was kept can be shown."""
    for path in ("/admin/tokens", "/admin/invites"):
        assert house.ask("GET", path, token=ADMIN).status == 200


@given(ROUTES, IDS, st.one_of(documents(ASKED), documents(JSON)))
@example(("POST", "/admin/tokens"), "", b'{"purpose": "\\ud800"}')
@example(("POST", "/admin/tokens"), "", b'{"ttl": "' + b"9" * 5000 + b'd"}')
@example(("POST", "/admin/tokens/revoke"), "", b'{"subject": "\\ud800"}')
@example(("POST", "/admin/invites"), "", b'{"name": "\\ud800"}')
@example(("DELETE", "/admin/tokens/{}"), "٣" * 128, b"")
@example(("DELETE", "/admin/tokens/{}"), "\U00010400" * 128, b"")
@example(("POST", "/admin/tokens"), "", deep(40_000).encode())
def test_whatever_the_operator_asks_is_done_or_told_and_poisons_nothing(
    house: House, route: tuple[str, str], id: str, body: bytes
) -> None:
    method, path = route
    answer = house.ask(method, path.format(id), body, token=ADMIN)
    told = json.loads(answer.body)
    if answer.status == 400:
        assert told["error"]
        assert not commands_a_terminal(told["error"] + told.get("cure", ""))
    assert answer.status in (200, 201, 400, 404, 405)
    sane(house)


@given(ROUTES, documents(ASKED), st.sampled_from([TOKEN, NARROW, "", ADMIN[:-2], "x"]))
def test_nobody_else_is_the_operator(house: House, route: tuple[str, str], body: bytes, token: str) -> None:
    method, path = route
    # 400: a body that is dear to read is refused before anybody looks who sends it
    assert house.ask(method, path.format("abc"), body, token=token).status in (400, 401)
    for name in (b"x-forwarded-for", b"forwarded", b"via"):
        assert house.ask(method, path.format("abc"), body, [(name, b"1.2.3.4")], token=ADMIN).status in (400, 404)
    with contextlib.suppress(ValueError):
        assert "token" not in json.loads(house.ask(method, path.format("abc"), body, token=token).body)
