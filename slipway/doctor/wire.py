"""One bounded HTTP request and what was seen of its answer, with times. Whatever answers is taken for hostile."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

USER_AGENT = "slipway-check/doctor"
MAX_BYTES = 256 * 1024
SECONDS = 10.0


def shown(text: str, length: int = 120) -> str:
    """Return foreign text as it may be printed: one line, no control characters, cut."""
    plain = "".join(char if char.isprintable() else " " for char in text[: length * 4])
    plain = " ".join(plain.split())
    return plain if len(plain) <= length else plain[: length - 1] + "…"


@dataclass(frozen=True)
class Event:
    """One server-sent event, and when it came: seconds after the request."""

    at: float
    id: str
    data: str


@dataclass
class Answer:
    """What came back.

    Attributes:
        status: 0 where nothing came; then `error` says why.
        headers: (lower-case name, value) pairs, doubled ones doubled.
        body: at most MAX_BYTES, decompressed.
        http: HTTP/1.1 or HTTP/2.
        to_head: seconds to the head of the answer; to_byte to the first byte of its body, None where none came.
        seconds: to the end, or to where we left.
        error: in words, where nothing came or the answer broke off.
        left: whether we left before its end.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    http: str = ""
    to_head: float = 0.0
    to_byte: float | None = None
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)
    bytes_at: list[float] = field(default_factory=list)
    error: str = ""
    left: bool = False
    request_id: str = ""

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str:
        """Return the values of a header as one, "" where it is missing."""
        return ", ".join(self.all(name))

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def streams(self) -> bool:
        """Whether it is an event stream."""
        return self.header("content-type").lower().startswith("text/event-stream")

    def json(self) -> dict[str, Any]:
        """Return the JSON object of the body, or {}."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def message(self) -> dict[str, Any]:
        """Return the JSON-RPC response, of a JSON body or of the last event that is one, or {}."""
        if not self.streams:
            return self.json()
        for event in reversed(self.events):
            try:
                found = json.loads(event.data)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and ("result" in found or "error" in found):
                return found
        return {}

    def result(self) -> dict[str, Any]:
        """Return the result of the JSON-RPC response, or {}."""
        found = self.message().get("result")
        return found if isinstance(found, dict) else {}

    def resource_metadata(self) -> str:
        """Return the URL that a challenge names as its resource metadata, or ""."""
        _, _, rest = self.header("www-authenticate").partition('resource_metadata="')
        return rest.partition('"')[0]

    def said(self) -> str:
        """Return status and the beginning of the body, to print."""
        if not self.status:
            return self.error
        return f"{self.status} {shown(self.text, 90)}".strip()


class Wire:
    """Sends requests to one host, with HTTP/1.1 as programs do or HTTP/2 as browsers do.

    Args:
        trust: whose certificates are accepted.
    """

    def __init__(self, trust: ssl.SSLContext) -> None:
        # redirects are never followed, and a proxy of the environment would be a hop that nobody asked about
        self._clients = {
            http2: httpx2.AsyncClient(
                verify=trust, http2=http2, http1=True, trust_env=False, follow_redirects=False,
                timeout=httpx2.Timeout(None, connect=5.0),
            )
            for http2 in (False, True)
        }  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()

    async def ask(
        self, method: str, url: str, headers: dict[str, str], content: bytes = b"", *, http2: bool = False,
        seconds: float = SECONDS, until: Callable[[Answer], bool] | None = None,
    ) -> Answer:  # fmt: skip
        """Send one request and read the answer, bounded in time and size.

        Args:
            until: asked after each piece of the body; True leaves.
        """
        answer, started = Answer(request_id=headers.get("x-request-id", "")), time.perf_counter()
        defaults = {"user-agent": USER_AGENT, "accept-encoding": "identity", "ngrok-skip-browser-warning": "1"}
        sent = {name: value for name, value in (defaults | headers).items() if value}
        try:
            async with (
                asyncio.timeout(seconds),
                self._clients[http2].stream(method, url, headers=sent, content=content or None) as response,
            ):
                answer.status = response.status_code
                answer.http = response.http_version
                answer.headers = [(name.lower(), value) for name, value in response.headers.multi_items()]
                answer.to_head = time.perf_counter() - started
                await _read(response, answer, started, until)
        except TimeoutError:
            answer.left = bool(answer.status)
            answer.error = "" if answer.status else f"no answer in {seconds:.0f} s"
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError, ValueError) as error:
            answer.error = _words(error)
        answer.seconds = time.perf_counter() - started
        return answer


async def _read(
    response: httpx2.Response, answer: Answer, started: float, until: Callable[[Answer], bool] | None
) -> None:
    encoding = answer.header("content-encoding").lower()
    unpack = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None
    lines = _Lines(answer)
    async for chunk in response.aiter_raw(chunk_size=None):
        now = time.perf_counter() - started
        if answer.to_byte is None:
            answer.to_byte = now
        if len(answer.bytes_at) < 10_000:
            answer.bytes_at.append(now)
        room = MAX_BYTES - len(answer.body)
        try:
            # bounded: a few bytes may unpack to gigabytes
            plain = unpack.decompress(chunk, max(room, 1)) if unpack else chunk[: max(room, 0)]
        except zlib.error:
            answer.error = f"the body is no {encoding}"
            return
        answer.body += plain
        if answer.streams:
            lines.feed(plain, now)
        if len(answer.body) >= MAX_BYTES or (until and until(answer)):
            answer.left = True
            return


class _Lines:
    """Takes an event stream apart as it comes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._rest: list[bytes] = []  # of a line that has no end yet; joined once, since a hostile one has thousands
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes, now: float) -> None:
        self._rest.append(chunk)
        if b"\n" not in chunk:
            return
        *lines, rest = b"".join(self._rest).replace(b"\r\n", b"\n").split(b"\n")
        self._rest = [rest]
        for line in lines:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "id":
                self._id = value
            elif not line:
                if any(self._data) and len(self._answer.events) < 10_000:
                    self._answer.events.append(Event(now, self._id, "\n".join(self._data)))
                self._data = []


def _words(error: Exception) -> str:
    text = shown(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY" in text.upper():
        return f"its certificate is not trusted ({text.partition('failed: ')[2].partition(' (_ssl')[0] or text})"
    if isinstance(error, httpx2.ConnectTimeout):
        return "no connection in 5 s"
    if isinstance(error, httpx2.ConnectError):
        return "nothing listens there" if "refused" in text.lower() or "attempts failed" in text else text
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError):
        return f"the connection was cut ({text})"
    return text
