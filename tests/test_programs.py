"""Which programs may ask for a sign-in: registrations that last, and documents that are vetted as they are."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from fastmcp.server.auth.cimd import CIMDDocument
from key_value.aio.stores.memory import MemoryStore
from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl

from slipway.identity import programs as room
from slipway.identity import redirects
from slipway.identity.grants import Grants, digest
from slipway.identity.ledger import Ledger
from slipway.identity.programs import Programs
from slipway.identity.throttle import Throttle
from slipway.store import Store

CALLBACK = "http://localhost:7777/callback"
ID = "https://client.example/document.json"


@pytest.fixture
def values() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def programs(values: MemoryStore) -> Programs:
    state = Store(values)
    return Programs(Grants(state, Ledger(state)), "tool:*")


def client(id: str = "one", *uris: str, **more: object) -> OAuthClientInformationFull:
    return OAuthClientInformationFull.model_validate(
        {"client_id": id, "redirect_uris": list(uris or (CALLBACK,)), **more}
    )


async def life(values: MemoryStore, id: str) -> float:
    _, seconds = await values.ttl(digest(id), collection="oauth_clients")
    return seconds or 0.0


async def test_a_registration_is_kept_for_a_day_and_longer_once_somebody_signed_in(
    programs: Programs, values: MemoryStore
) -> None:
    await programs.register(client(), "10.0.0.1")
    assert await life(values, "one") <= room.UNUSED_LIFE
    await programs.signed_in("one", 3600)
    assert await life(values, "one") > room.USED_LIFE - 60
    await programs.signed_in("one", 2 * room.USED_LIFE)
    assert await life(values, "one") > 2 * room.USED_LIFE - 60
    await programs.signed_in("nobody", 3600)
    assert await programs.find("nobody", "10.0.0.1") is None


@pytest.mark.parametrize(
    ("uris", "more"),
    [
        ([f"https://x.example/{n}" for n in range(11)], {}),
        ([CALLBACK], {"client_name": "x" * 9000}),
        (["smb://share/x"], {}),
    ],
)
async def test_a_registration_is_bounded(programs: Programs, uris: list[str], more: dict[str, str]) -> None:
    with pytest.raises(RegistrationError):
        await programs.register(client("one", *uris, **more), "10.0.0.1")
    assert await programs.find("one", "10.0.0.1") is None


async def test_one_address_that_registers_without_end_locks_nobody_out(programs: Programs) -> None:
    for n in range(120):
        await programs.register(client(f"c{n}"), "10.0.0.1")
    with pytest.raises(RegistrationError, match="Too many"):
        await programs.register(client("more"), "10.0.0.1")
    await programs.register(client("other"), "10.0.0.2")


async def test_what_an_address_is_refused_does_not_count_for_all() -> None:
    throttle = Throttle("x", per_address=2, overall=4)
    assert [await throttle.admits("10.0.0.1") for _ in range(6)] == [True, True] + [False] * 4
    assert [await throttle.admits("10.0.0.2") for _ in range(2)] == [True, True]
    assert not await throttle.admits("10.0.0.3")
    daily = Throttle("y", per_address=9, overall=9, a_day=3)
    assert [await daily.admits("10.0.0.1") for _ in range(4)] == [True] * 3 + [False]


def documented(programs: Programs, monkeypatch: pytest.MonkeyPatch, *uris: str) -> list[str]:
    """Let the document be this one. Returns: the list of what is fetched."""
    fetched: list[str] = []

    async def fetch(url: str) -> CIMDDocument:
        fetched.append(url)
        return CIMDDocument(client_id=url, client_name="A program", redirect_uris=list(uris))

    monkeypatch.setattr(programs.documents._fetcher, "fetch", fetch)
    return fetched


async def test_a_document_makes_a_client_and_is_fetched_once(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = documented(programs, monkeypatch, "https://good.example/cb", "http://localhost/cb")
    for _ in range(3):
        found = await programs.find(ID, "10.0.0.1")
        assert found and found.client_name == "A program"
    assert fetched == [ID]
    assert found.token_endpoint_auth_method == "none"
    assert found.validate_redirect_uri(AnyUrl("http://localhost:5555/cb"))
    assert found.validate_redirect_uri(AnyUrl("https://good.example/cb"))


@pytest.mark.parametrize(
    "asked",
    [
        "https://good.example/cb?evil=1", "https://good.example/cb/", "https://good.example/", "https://evil.example/cb",
        "http://localhost:5555/other", "javascript:alert(1)", None,
    ],
)  # fmt: skip
async def test_a_documents_redirect_matches_exactly(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    documented(programs, monkeypatch, "https://good.example/cb", "http://localhost/cb")
    found = await programs.find(ID, "10.0.0.1")
    assert found
    with pytest.raises(InvalidRedirectUriError):
        found.validate_redirect_uri(AnyUrl(asked) if asked else None)


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://evil.example/x", "intent://x", "chrome-extension://abc/x", "ws://x/y", "https://user@evil.example/x",
        "https://x.example/#frag", "https://*.example/cb", "http://localhost:*/cb", "http://evil.example/cb", "smb://x/y",
    ],
)  # fmt: skip
async def test_a_document_with_a_dangerous_redirect_is_no_client(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    documented(programs, monkeypatch, "https://good.example/cb", uri)
    assert await programs.find(ID, "10.0.0.1") is None


@pytest.mark.parametrize(
    "id",
    [
        "https://x.example:99999/x", f"https://{'a' * 70}.example/x", "https://x..example/y", "https://x.example/" + "a" * 600,
        "https://x.example/\nforged line", "https://x.example/\x1b[31m", "https://exämple.org/x", "",
    ],
)  # fmt: skip
async def test_an_id_that_is_none_is_no_client_and_no_error(
    programs: Programs, id: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await programs.find(id, "10.0.0.1") is None
    assert "forged" not in caplog.text and "\x1b" not in caplog.text


@pytest.fixture
def listener() -> Iterator[tuple[int, list[int]]]:
    """Something that listens on loopback. Yields: its port, and a list that grows by each connection."""
    came: list[int] = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            came.append(1)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1], came
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("guarded", [True, False])
async def test_a_document_on_an_inner_address_is_not_even_connected_to(
    programs: Programs,
    listener: tuple[int, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    guarded: bool,
) -> None:
    port, came = listener
    if not guarded:
        # the twin: without the guard this very request arrives
        monkeypatch.setattr("fastmcp.server.auth.ssrf.is_ip_allowed", lambda _: True)
    assert await programs.find(f"https://{host}:{port}/client.json", "10.0.0.1") is None
    assert bool(came) is not guarded


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::1]", "10.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "100.64.0.1"]
)
async def test_no_document_comes_from_metadata_or_private_addresses(programs: Programs, host: str) -> None:
    async with asyncio.timeout(2):
        assert await programs.find(f"https://{host}/latest/x.json", "10.0.0.1") is None


async def test_documents_are_fetched_only_so_often(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = documented(programs, monkeypatch, CALLBACK)
    for n in range(25):
        await programs.find(f"{ID}?{n}", "10.0.0.1")
    assert len(fetched) == 20
    assert await programs.find(f"{ID}?other", "10.0.0.2")


async def test_documents_are_offered_only_where_they_can_be_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await room.reaches("127.0.0.1", port)
    assert not await room.reaches("127.0.0.1", port)
    assert not await room.reaches("no-such-host.invalid", 443)


@pytest.mark.parametrize(
    "host", ["a.example;script-src", "a.example,b", "a'b.example", "a(b).example", "*.example", ""]
)
def test_a_host_that_would_change_the_consent_pages_policy_is_refused(host: str) -> None:
    assert "host" in redirects.why_not(f"https://{host}/cb")


def test_hosts_as_they_are_pass() -> None:
    for host in ("a.example", "A.example:8443", "xn--bcher-kva.example", "my_app.example", "[2001:db8::1]:8443"):
        assert redirects.why_not(f"https://{host}/cb") == ""
