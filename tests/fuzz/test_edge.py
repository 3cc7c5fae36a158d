"""Raw bytes at the real edge in front of the real server: odd framing, odd heads, cut connections."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import Stack
from tests.fuzz.inputs import HEADER, documents
from tests.fuzz.test_app import MESSAGES

pytestmark = pytest.mark.slow

LINES = st.one_of(
    st.sampled_from([b"POST /mcp HTTP/1.1"] * 4 + [b"GET /mcp HTTP/1.1", b"POST /oauth/token HTTP/1.0", b"POST /mcp HTTP/9.9", b"POST  /mcp HTTP/1.1", b"X" * 5000 + b" / HTTP/1.1",
                     b"GET http://evil.example/mcp HTTP/1.1", b"GET /mcp?\x80 HTTP/1.1", b"CONNECT x:1 HTTP/1.1", b"OPTIONS * HTTP/1.1"]),
    st.binary(max_size=30),
)  # fmt: skip
FIELDS = st.lists(st.one_of(
    st.sampled_from([b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: 99999999999999999999", b"Content-Length: +5",
                     b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked", b"Expect: 100-continue",
                     b"Content-Type: application/json", b"Accept: application/json, text/event-stream", b"Content-Encoding: gzip", b"Connection: upgrade", b"Upgrade: h2c", b" folded: x"]),
    HEADER.map(lambda raw: b"X-A: " + raw),
), max_size=5)  # fmt: skip
BODIES = st.one_of(
    documents(MESSAGES), st.binary(max_size=60),
    st.lists(st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5;x=y\r\nhello\r\n", b"5\nhello\n", b"\r\n"]), max_size=4).map(b"".join),
)  # fmt: skip


def told(stack: Stack, raw: bytes) -> bytes:
    """Send the bytes, end our half, and return all that comes back."""
    where, got = urlsplit(stack.edge_url), b""
    with socket.create_connection((where.hostname, where.port), 10) as line:
        line.settimeout(10)
        with contextlib.suppress(OSError):  # it may be closed on us
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            while piece := line.recv(65536):
                got += piece
    return got


@given(LINES, FIELDS, BODIES, st.booleans())
@example(
    b"POST /mcp HTTP/1.1",
    [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    True,
)
def test_no_bytes_are_an_error_of_ours_nor_the_end_of_the_server(
    shared_stack: Stack, line: bytes, fields: list[bytes], body: bytes, token: bool
) -> None:
    known = [b"Host: localhost", b"Connection: close"]
    known += [b"Authorization: Bearer " + shared_stack.token().encode()] if token else []
    got = told(shared_stack, b"\r\n".join([line, *known, *fields, b"", body]))
    if got:
        status = int(got.split(b" ")[1])
        # 501 and 505 are Go's words for framing and versions that it does not know; 502 is Caddy's for a body that ends early
        framed = any(field.startswith((b"Content-Length", b"Transfer-Encoding")) for field in fields)
        assert status < 500 or status in (501, 505) or (status == 502 and framed), got[:300]
        assert b"Traceback" not in got


def test_after_all_of_it_the_server_answers_and_its_log_is_whole(shared_stack: Stack) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    with httpx2.Client(timeout=20) as client:
        assert client.post(shared_stack.edge_url, headers=shared_stack.bearer(), json=message).status_code == 200
    assert shared_stack.log("server")
    assert shared_stack.log("edge") is not None
    assert "Traceback" not in shared_stack.text("server")
