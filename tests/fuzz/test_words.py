"""What people, programs and other processes write: settings, targets, logs, hosts, redirects, names, codes, ngrok's words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import string
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message

from slipway import errors, guards, knocks, ngrok_errors, settings, targets
from slipway.errors import Problem
from slipway.identity import invites, names, pages, redirects, throttle
from tests.fuzz.inputs import ANY_TEXT, HEADER, HOSTILE, JSON, NASTY, commands_a_terminal, deep, documents, objects


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


# --- settings

NAMES = st.one_of(
    st.sampled_from([*settings.names(), "SLIPWAY_TARGTE", "FASTMCP_PORT", "API_KEY", "NGROK_X"]), HOSTILE
)
LINES = st.one_of(
    HOSTILE, st.builds("{}={}".format, NAMES, HOSTILE), st.builds('export {}="{}" # x'.format, NAMES, ANY_TEXT)
)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
    )
)
def test_any_env_file_is_read_or_a_problem_in_two_lines(content: bytes) -> None:
    with folder() as place:
        path = place / ".env"
        path.write_bytes(content)
        try:
            found = settings.read_env_file(path)
        except Problem as problem:
            assert not commands_a_terminal(str(problem)), str(problem)
            assert len(str(problem)) < 1000
            return
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in found.items())
    # whatever looks like ours is ours: a typo would otherwise be passed over
    assert not [
        n
        for n in found
        if n.startswith(("SLIPWAY_", "NGROK_")) and n not in {*settings.names(), *settings._COMPOSE_ONLY}
    ]
    assert not set(settings.own_names(found)) & set(settings.names())


ORIGINS = st.one_of(HOSTILE, st.builds(
    "{}{}{}{}".format, st.sampled_from(["https://", "http://", "HTTPS://", "httpſ://", "", "https:", "*://"]),
    st.sampled_from(["app.example", "*.app.example", "*", "a.*.b", "[::1]", "[::g]", "a_b", "a b", "\u212aa.example", "a.example/x", "u@a"]),
    st.sampled_from(["", ":443", ":*", ":٣", ":123456", ":"]), st.sampled_from(["", "/", "?x", " "]),
))  # fmt: skip
VALUES: dict[str, st.SearchStrategy[str]] = {
    "SLIPWAY_ALLOWED_ORIGINS": st.lists(ORIGINS, max_size=3).map(",".join),
    "SLIPWAY_ALLOWED_HOSTS": st.lists(st.one_of(HOSTILE, st.sampled_from(["a.example", "*.a.example", "*", "a:1", "\u212a.x"])), max_size=3).map(",".join),
    "SLIPWAY_MAX_BODY": st.one_of(HOSTILE, st.sampled_from(["1MB", "5MiB", "٣MB", "0B", "1 MB", "1GB", "9" * 30 + "MB"])),
    "SLIPWAY_MAX_TTL": st.one_of(HOSTILE, st.sampled_from(["30d", "٣d", "1h30m", "0d", "999d", "9" * 5000 + "d"])),
    "SLIPWAY_PUBLIC_URL": st.one_of(HOSTILE, st.sampled_from(["https://a.example", "https://a.example/", "https://a/x", "http://a", "https://"])),
    "SERVER_PORT": st.one_of(HOSTILE, st.integers().map(str)), "SLIPWAY_SESSIONS": HOSTILE,
    "SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS": st.one_of(HOSTILE, st.sampled_from(["true", "TRUE", "1", "yes", "on", "tru"])),
    "NGROK_AUTHTOKEN": HOSTILE, "REDIS_URL": HOSTILE, "SLIPWAY_TARGET_HEADERS": HOSTILE, "SLIPWAY_STATE": HOSTILE,
}  # fmt: skip
HOST = r"(\*\.)?[a-z0-9.-]+|\[[0-9a-f:]+\]"


@given(st.fixed_dictionaries({}, optional=VALUES))
@example({"SLIPWAY_STATE": "\ud800"})
@example({"SLIPWAY_STATE": "\udc80"})
def test_any_environment_is_settings_of_the_right_shape_or_a_problem_without_its_secrets(
    given: dict[str, str],
) -> None:
    try:
        config = settings.load(given)
    except Problem as problem:
        assert not commands_a_terminal(str(problem)), str(problem)
        assert len(str(problem)) < 5000
        for name in ("NGROK_AUTHTOKEN", "REDIS_URL", "SLIPWAY_TARGET_HEADERS"):
            assert len(given.get(name, "")) < 20 or given[name] not in str(problem)
        return
    for origin in filter(None, config.allowed_origins.split(",")):
        assert re.fullmatch(rf"null|\*|[a-z][a-z0-9+.-]*://({HOST})(:([0-9]{{1,5}}|\*))?", origin), origin
    for host in filter(None, config.allowed_hosts.split(",")):
        assert re.fullmatch(HOST, host), host
    # Caddy reads it: ASCII digits, and no more of them than it counts
    assert re.fullmatch(r"[0-9]{1,12}(B|KB|MB|KiB|MiB)", config.max_body)
    assert targets_life(config.max_ttl) > 0
    if config.public_url:
        assert urlsplit(config.public_url).scheme == "https"
        assert not commands_a_terminal(config.public_url, lines=False)
    # only a plain yes opens the server to everybody
    asked = given.get("SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS", "").strip().lower()
    assert config.anonymous <= (asked in ("true", "1", "yes", "on", "t", "y"))
    told = settings.environment(config, Path("/x"))
    assert not {"NGROK_AUTHTOKEN", "REDIS_URL", "SLIPWAY_TARGET_HEADERS"} & set(told)


def targets_life(text: str) -> int:
    """Return a longest life in seconds, -1 where it could be asked for by nobody."""
    from slipway import tokens

    try:
        return tokens.parse_ttl(text)
    except Problem:
        return -1


# --- targets

WORDS = st.one_of(
    HOSTILE,
    st.sampled_from(["server.py", "server.py:mcp", "./x.py", "~/x.py", "~nobody/x.py", "mcp.json", "npx -y x", "sh -c 'x",
                     "https://a.example/mcp", "https://u:p@a.example", "https://[", "http://a:99999", "https://a:0/x", "a" * 300 + ".py"]),
    st.builds("python -c '{}' {}.py".format, st.text(string.ascii_letters, min_size=200, max_size=300), ANY_TEXT),
    st.builds("https://{}/{}".format, HOSTILE, HOSTILE),
)  # fmt: skip


@given(WORDS)
@example("~nobody-of-this-name/server.py")
@example("server\0.py")
@example("python " + "x" * 300 + ".py")
def test_any_word_is_a_target_or_a_problem_that_can_be_printed(text: str) -> None:
    with folder() as place:
        try:
            target = targets.parse(text, place, {})
        except Problem as problem:
            assert not commands_a_terminal(str(problem)), str(problem)
            return
    if target.kind == "url":
        parts = urlsplit(target.url)
        assert parts.hostname
        assert not parts.username
        assert not parts.password
        assert not commands_a_terminal(target.shown + target.label), target.shown
    if target.kind == "command":
        assert target.command


ENVIRONMENT = {"API_TOKEN": "s3cret-value-of-the-operator", "EMPTY": ""}
REFERENCES = st.one_of(HOSTILE, st.sampled_from(
    ["${API_TOKEN}", "Bearer ${env:API_TOKEN}", "${NONE:-x}", "${NONE}", "${EMPTY}", "$API_TOKEN", "${", "${}", "${A:-${API_TOKEN}}", "a\r\nb"]
))  # fmt: skip


@given(
    st.one_of(
        HOSTILE,
        documents(
            st.dictionaries(st.one_of(st.sampled_from(["Authorization", "X-Key"]), HOSTILE), REFERENCES, max_size=3)
        ).map(lambda raw: raw.decode("utf-8", "replace")),
    )
)
@example(deep(100_000))
@example('{"a": ' + "9" * 5000 + "}")
@example('{"X": "a\\r\\nHost: evil"}')
@example('{"X": "\\ud800"}')
def test_headers_of_a_target_are_headers_or_a_problem_that_does_not_repeat_them(text: str) -> None:
    try:
        found = targets.parse("https://a.example/mcp", Path("/"), ENVIRONMENT, text)
    except Problem as problem:
        assert not commands_a_terminal(str(problem)), str(problem)
        assert len(text) < 60 or text not in str(problem)
        return
    for name, value in found.headers.items():
        assert re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name), name
        assert not set(value) & {"\r", "\n", "\0"}
        value.encode("utf-8")
    assert ENVIRONMENT["API_TOKEN"] not in repr(found)


ENTRIES = objects(
    command=st.one_of(st.sampled_from(["sh", "npx", "./x", "${API_TOKEN}", "no-such-program"]), REFERENCES), args=st.lists(REFERENCES, max_size=3),
    env=st.dictionaries(ANY_TEXT, REFERENCES, max_size=2), cwd=HOSTILE, url=WORDS, serverUrl=WORDS, type=st.sampled_from(["sse", "http"]),
    headers=st.dictionaries(ANY_TEXT, REFERENCES, max_size=2),
)  # fmt: skip
CONFIGS = objects(
    mcpServers=st.dictionaries(st.one_of(st.sampled_from(["a", "b_c", "d-e"]), HOSTILE), st.one_of(ENTRIES, JSON), max_size=3),
    servers=st.dictionaries(st.just("a"), ENTRIES, max_size=1), source=objects(path=WORDS, entrypoint=HOSTILE),
)  # fmt: skip


@given(documents(CONFIGS))
@example(deep(100_000).encode())
@example(b'{"mcpServers": {"a": {"command": "sh", "cwd": "\\u0000"}}}')
@example(b'{"source": {"path": "a\\u0000.py"}}')
def test_any_mcp_json_is_targets_or_a_problem_that_tells_no_secret(content: bytes) -> None:
    with folder() as place:
        (place / "mcp.json").write_bytes(content)
        try:
            target = targets.parse("mcp.json", place, ENVIRONMENT)
            target.files()
            target.why_not_in_docker()
        except Problem as problem:
            assert not commands_a_terminal(str(problem)), str(problem)
            assert ENVIRONMENT["API_TOKEN"] not in str(problem)
            return
    for name, part in target.parts.items():
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name)
        assert part.kind in ("command", "url")


@given(REFERENCES, st.dictionaries(st.sampled_from(["API_TOKEN", "A", "NONE"]), ANY_TEXT))
def test_a_reference_is_replaced_once_and_what_it_brings_is_not_read_again(
    text: str, environment: dict[str, str]
) -> None:
    with contextlib.suppress(Problem):
        assert targets._expand("${A}", {"A": text}, "x") == text
    with contextlib.suppress(Problem):
        written = targets._expand(text, environment, "x")
        assert "${" in text or written == text


@given(
    st.dictionaries(
        st.one_of(
            ANY_TEXT, st.sampled_from(["PATH", "LC_X", "NGROK_AUTHTOKEN", "UV_TOKEN", "SLIPWAY_STATE", "pip_x"])
        ),
        ANY_TEXT,
    )
)
def test_a_targets_process_gets_no_name_that_sounds_like_a_secret(environ: dict[str, str]) -> None:
    kept = targets.clean_environment(environ, {})
    assert not [n for n in kept if re.search("TOKEN|SECRET|PASSW|KEY|SLIPWAY|NGROK", n, re.I)]


# --- hosts


@given(st.one_of(HOSTILE, st.sampled_from(["[::1]:8000", "localhost:8000", "[::1", "a:b:c", "LOCALHOST "])))
def test_the_name_of_a_host_has_no_port(host: str) -> None:
    name = guards.host_name(host)
    assert name == name.lower()
    assert name.startswith("[") or ":" not in name
    assert guards.host_name(name) in (name, name.strip(), name + "]")
    assert isinstance(guards.public_host(host), str)


async def _through(headers: list[tuple[bytes, bytes]], patterns: list[str]) -> tuple[int, bytes]:
    sent: list[Message] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await guards.HostGuard(inner, lambda: patterns)(
        {"type": "http", "headers": headers, "path": "/mcp", "method": "POST"}, receive, send
    )
    return sent[0]["status"], sent[1]["body"]


HOSTS = st.one_of(HEADER, st.sampled_from(
    [b"localhost", b"LOCALHOST:8000", b"[::1]:1", b"127.0.0.1", b"a.ours.example", b"a.ours.example:443", b"ours.example", b"evil.example",
     b"localhost.evil.example", b"a.ours.example.evil", b"localhost@evil", b"localhost:1/x", b"a.ours.example#", b"localhost\xa0", b"a b.ours.example"]
))  # fmt: skip


@given(
    st.lists(HOSTS, max_size=2),
    st.lists(
        st.one_of(HEADER, st.sampled_from([b"http://localhost:3000", b"null", b"https://evil.example", b"http://["])),
        max_size=1,
    ),
)
def test_only_our_hosts_and_the_pages_of_this_machine_pass_the_guard(
    hosts: list[bytes], origins: list[bytes]
) -> None:
    headers = [(b"host", host) for host in hosts] + [(b"origin", origin) for origin in origins]
    status, body = asyncio.run(_through(headers, ["*.ours.example"]))
    first = hosts[0].lower() if hosts else b""
    ours = re.fullmatch(rb"(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9._-]*\.ours\.example)(:[0-9]{1,5})?", first)
    assert (status != 421) == bool(ours)
    if status == 200 and origins and origins[0]:
        assert re.match(rb"[^/]*//([^/?#]*@)?(localhost|127\.0\.0\.1|\[::1\])", origins[0], re.I)
    if body:
        assert not commands_a_terminal(json.loads(body)["error"])
        assert len(body) < 1500


@given(st.one_of(st.none(), HOSTILE, st.sampled_from(["a-b.c_D", "a" * 64, "a" * 65, "a\n", "é"])))
def test_a_request_id_is_repeated_only_if_it_is_harmless(text: str | None) -> None:
    found = knocks.request_id(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", found, re.A)
    assert found == text or len(found) == 32


# --- log lines

LINE = objects(
    time=st.one_of(st.floats(0, 2e9), st.sampled_from([1e300, -1e300, 10**400 if False else 10**20])), status=st.integers(0, 600), ms=st.floats(),
    client=HOSTILE, era=HOSTILE, subject=HOSTILE, reason=HOSTILE, method=HOSTILE, tool=HOSTILE, http=HOSTILE, path=HOSTILE,
    ts=st.floats(), duration=st.floats(), refused=HOSTILE, origin=HOSTILE, agent=HOSTILE, request_id=HOSTILE,
    request=objects(method=HOSTILE, uri=HOSTILE),
)  # fmt: skip


@given(st.one_of(HOSTILE, documents(st.one_of(LINE, JSON)).map(lambda raw: raw.decode("utf-8", "replace"))))
@example(deep(100_000))
@example('{"time": 1e300, "status": 200}')
@example('{"time": NaN, "status": 200}')
@example('{"status": "x", "ms": "y", "time": "z"}')
@example('{"request": {"method": "GET"}, "refused": "x", "status": Infinity, "ts": NaN}')
@example('{"request": [], "refused": "x"}')
def test_any_log_line_is_rendered_without_commanding_the_terminal_or_left_out(raw: str) -> None:
    knock = knocks.parse(raw)
    if knock is not None:
        text = knocks.render(knock)
        assert not commands_a_terminal(text)
        assert len(text) < 1200


@given(st.builds(knocks.Knock, time=st.floats(0, 2e9), client=HOSTILE, method=HOSTILE, tool=HOSTILE, subject=HOSTILE, reason=HOSTILE,
                 path=HOSTILE, status=st.integers(0, 599), ms=st.floats(0, 1e6)))  # fmt: skip
def test_what_is_logged_is_one_line_and_read_back_the_same(knock: knocks.Knock) -> None:
    written: list[str] = []

    class Logger:
        def info(self, line: str) -> None:
            written.append(line)

    knocks.write(Logger(), knock)  # type: ignore[arg-type]
    assert len(written[0].splitlines()) == 1
    assert written[0].isascii()
    back = knocks.parse(written[0])
    assert back is not None
    assert (back.client, back.tool, back.reason, back.status) == (
        knock.client,
        knock.tool,
        knock.reason,
        knock.status,
    )


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_log_that_is_followed_gives_whole_lines_of_any_bytes(first: bytes, second: bytes) -> None:
    with folder() as place:
        path = place / "log"
        path.write_bytes(b"")
        tail = knocks.Tail(path)
        with path.open("ab") as stream:
            stream.write(first)
        got = list(tail.lines())
        with path.open("ab") as stream:
            stream.write(second + b"\n")
        got += tail.lines()
    assert (
        got == (first + second).decode("utf-8", "replace").split("\n")
        or b"\xff" in first + second
        or not first.isascii()
        or not second.isascii()
    )
    assert len(got) == (first + second).count(b"\n") + 1


# --- redirects, names, codes, pages

URIS = st.one_of(HOSTILE, st.builds(
    "{}{}{}{}".format, st.sampled_from(["https://", "http://", "HTTP://", "javascript:", "JaVaScRiPt:", "data:", "cursor://", "com.example.app:/", "https:", "//", "x-a:", " https://"]),
    st.sampled_from(["app.example", "localhost", "localhost.evil", "127.0.0.1", "[::1]", "u:p@app.example", "app.example\\@evil", "*.example", "", "127.1", "0x7f.1", "LOCALHOST", "localhost:x", "a\tb"]),
    st.sampled_from(["", ":8000", ":99999", ":"]), st.sampled_from(["", "/cb", "/cb#x", "/cb?x=1", "/../x", "/\r\nLocation: x", "/é", "/<x>"]),
))  # fmt: skip


@given(URIS)
def test_no_redirect_leads_to_a_script_a_stranger_on_plain_http_or_a_password(uri: str) -> None:
    if redirects.why_not(uri):
        assert not commands_a_terminal(redirects.why_not(uri))
        return
    assert uri.isascii()
    assert not commands_a_terminal(uri, lines=False)
    scheme, _, rest = uri.partition(":")
    assert scheme.lower() not in (
        "javascript",
        "data",
        "vbscript",
        "file",
        "blob",
        "about",
        "ws",
        "wss",
        "ftp",
        "mailto",
    )
    assert "#" not in uri
    if scheme.lower() in ("http", "https"):
        assert rest.startswith("//")
        authority = re.split(r"[/?]", rest[2:])[0]
        assert "@" not in authority
        assert authority
        if scheme.lower() == "http":
            assert re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", authority, re.I)


@given(URIS, URIS)
def test_a_redirect_is_the_registered_one_but_for_the_port_on_loopback(known: str, asked: str) -> None:
    from mcp.shared.auth import InvalidRedirectUriError
    from pydantic import AnyUrl, ValidationError

    try:
        client = redirects.RegisteredClient(client_id="x", redirect_uris=[AnyUrl(known)])
        wanted = AnyUrl(asked)
        client.validate_redirect_uri(wanted)
    except (ValidationError, InvalidRedirectUriError):
        return
    assert not redirects.why_not(str(wanted))
    strip = re.compile(r"^(http://(?:localhost|127\.0\.0\.1|\[::1\])):\d+")
    assert strip.sub(r"\1", str(wanted)) == strip.sub(r"\1", str(client.redirect_uris[0]))  # type: ignore[index]


@given(
    st.one_of(
        HOSTILE,
        st.sampled_from(
            [
                "ana",
                "  ana  b ",
                "Аna",
                "ｒｏｏｔ",
                "ROOT",
                "slipway",
                "𝐫𝐨𝐨𝐭",
                "root\u200b",
                "a" * 64,
                "a" * 65,
                "é",
                "e\u0301",
            ]
        ),
    )
)
def test_a_name_is_tidy_or_nobodys(name: str) -> None:
    tidy = names.tidy(name)
    if not tidy:
        return
    assert names.tidy(tidy) == tidy
    assert tidy == tidy.strip()
    assert "  " not in tidy
    assert 0 < len(tidy) <= 64
    assert not commands_a_terminal(tidy, lines=False)
    assert unicodedata.normalize("NFKC", tidy).casefold() not in names.RESERVED
    tidy.encode()


@given(st.text(invites.ALPHABET, min_size=8, max_size=8), st.text(" -.\t_", max_size=3), st.booleans())
def test_a_code_is_the_same_however_it_is_typed(code: str, between: str, low: bool) -> None:
    typed = between.join(code.lower() if low else code)
    assert invites.written(typed) == f"{code[:4]}-{code[4:]}"
    assert invites.written(invites.written(typed)) == invites.written(typed)


@given(HOSTILE)
def test_a_code_of_any_characters_is_bounded_and_can_be_kept(code: str) -> None:
    plain = invites._plain(code)
    plain.encode()
    assert len(plain) <= 200
    assert invites._plain(plain) == plain or not plain.isascii()


@given(HOSTILE, st.integers(0, 300))
def test_a_text_on_a_page_opens_no_tag_and_no_quote(text: str, limit: int) -> None:
    safe = pages.safe(text, limit)
    assert not set(safe) & set("<>\"'")
    assert not commands_a_terminal(safe, lines=False)
    safe.encode()


@given(st.one_of(HOSTILE, st.ip_addresses().map(str)))
def test_an_address_belongs_to_one_network(address: str) -> None:
    assert re.fullmatch(r"unknown|[0-9.]+|[0-9a-f:.]+/64", throttle.network(address))


# --- what ngrok says

AUTHTOKEN = "2xyz" + "Ab9" * 8 + "_" + "q7Z" * 7
SAYINGS = st.lists(st.one_of(HOSTILE, NASTY, st.sampled_from(
    [AUTHTOKEN, "authtoken: ", f"authtoken={AUTHTOKEN}", AUTHTOKEN[:9] + "\0" + AUTHTOKEN[9:], AUTHTOKEN[:20] + "\n" + AUTHTOKEN[20:], "ERR_NGROK_108",
     "ERR_NGROK_" + "9" * 3000, "ERR_NGROK_٣", "{text}", "{0}", "timed out"]
)), max_size=5).map(" ".join)  # fmt: skip


@given(SAYINGS)
@example(f"strange {AUTHTOKEN[:9]}\0{AUTHTOKEN[9:]}")
@example("ERR_NGROK_" + "9" * 3000)
def test_an_error_of_ngrok_has_a_cause_a_cure_and_never_the_authtoken(text: str) -> None:
    error = ngrok_errors.explain(text, AUTHTOKEN)
    assert not commands_a_terminal(str(error)), str(error)
    assert len(str(error)) < 700
    assert AUTHTOKEN not in str(error)
    assert error.exit_code >= 20
    assert error.cause
    assert error.cure


@given(HOSTILE, HOSTILE, st.integers(1, 60))
def test_a_problem_of_another_process_is_heard_or_nothing_is(before: str, cause: str, code: int) -> None:
    found = errors.heard(before + "\n" + cause + "\n  → cure\n", code)
    assert found is None or (found.exit_code == code and found.cause.strip())
    errors.heard(cause, code)
