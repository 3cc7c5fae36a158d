"""Signing in by OAuth through the whole stack: with real clients, and with everything that an attacker would try."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastmcp import Client
from fastmcp.client.auth import OAuth

from tests.conftest import Stack, free_ports, wait_until
from tests.test_admin import ask, status

pytestmark = pytest.mark.slow

CALLBACK = "http://localhost:7777/callback"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def invite(stack: Stack, **asked: Any) -> str:
    answer = ask(
        stack, "POST", "/invites", {"uses": 5, "tools": "add,whoami", "ttl": "1h", "token_ttl": "2h", **asked}
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["code"])


OPEN: list[httpx2.Client] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the browsers of a test."""
    yield
    while OPEN:
        OPEN.pop().close()


class Browser:
    """A person's browser, with its cookies, which follows no redirect by itself."""

    def __init__(self, stack: Stack, address: str = "", **headers: str) -> None:
        self.base = stack.tls_url.removesuffix("/mcp")
        # an address of its own, as every person has: what one does too often must not count against another test
        here = address or f"127.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}.1"
        way = httpx2.HTTPTransport(verify=stack.trust(), local_address=here)
        self.http = httpx2.Client(transport=way, timeout=20, base_url=self.base, headers=headers)
        OPEN.append(self.http)

    def register(self, *uris: str, **more: Any) -> httpx2.Response:
        asked = {
            "redirect_uris": list(uris),
            "client_name": "A program",
            "token_endpoint_auth_method": "none",
            **more,
        }
        return self.http.post("/oauth/register", json=asked)

    def authorize(self, client_id: str, **more: Any) -> tuple[httpx2.Response, str]:
        """Ask for a sign-in. Returns: the answer, the PKCE verifier."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {
            "response_type": "code", "client_id": client_id, "redirect_uri": CALLBACK, "state": "s1",
            "code_challenge": challenge, "code_challenge_method": "S256", "resource": f"{self.base}/mcp", **more,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        return self.http.get("/oauth/authorize", params=asked), verifier

    def consent(self, where: str, code: str, name: str = "Zoe", **more: Any) -> httpx2.Response:
        """Open the page and send its form."""
        page = self.http.get(where)
        assert page.status_code == 200, page.text
        return self.send(page, code, name, **more)

    def send(self, page: httpx2.Response, code: str, name: str = "Zoe", **more: Any) -> httpx2.Response:
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
        fields = {key: html.unescape(value) for key, value in fields.items()}
        return self.http.post(
            "/oauth/consent", data=fields | {"code": code, "name": name, "decision": "allow"} | more
        )

    def token(self, **asked: Any) -> httpx2.Response:
        return self.http.post("/oauth/token", data=asked)


def signed_in(stack: Stack, code: str = "", name: str = "Zoe", **more: Any) -> tuple[Browser, str, dict[str, Any]]:
    """Go the whole way. Returns: the browser, the client id, and what else there is."""
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    begun, verifier = browser.authorize(client_id, **more)
    back = browser.consent(begun.headers["location"], code or invite(stack), name)
    assert back.status_code == 302, back.text
    told = {key: values[0] for key, values in parse_qs(urlsplit(back.headers["location"]).query).items()}
    asked = {
        "grant_type": "authorization_code", "code": told["code"], "client_id": client_id,
        "redirect_uri": more.get("redirect_uri", CALLBACK), "code_verifier": verifier,
    }  # fmt: skip
    return browser, client_id, {"asked": asked, "told": told, "location": back.headers["location"]}


def tokens_of(stack: Stack, **more: Any) -> tuple[Browser, str, dict[str, Any]]:
    browser, client_id, found = signed_in(stack, **more)
    answer = browser.token(**found["asked"])
    assert answer.status_code == 200, answer.text
    return browser, client_id, dict(answer.json())


def refresh(browser: Browser, client_id: str, token: str) -> httpx2.Response:
    return browser.token(grant_type="refresh_token", refresh_token=token, client_id=client_id)


# --- the way in


@pytest.mark.filterwarnings("ignore:Using in-memory token storage")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_fastmcp_client_signs_in_by_itself(
    make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    stack = make_stack()
    code, browser = invite(stack), Browser(stack)
    (port,) = free_ports(1)

    def person(url: str) -> None:
        begun = browser.http.get(url)
        back = browser.consent(begun.headers["location"], code).headers["location"]
        # the client opens the page before it listens
        wait_until(lambda: listens(port), 10, "the client's callback")
        httpx2.get(back, timeout=10)

    def open_page(url: str) -> bool:
        people.append(threading.Thread(target=person, args=(url,)))
        people[-1].start()
        return True

    people: list[threading.Thread] = []
    monkeypatch.setattr("fastmcp.client.auth.oauth.webbrowser.open", open_page)
    auth = OAuth(stack.tls_url, callback_port=port)
    async with Client(stack.tls_url, auth=auth, verify=stack.trust(), mode=mode) as client:
        assert (await client.call_tool("whoami")).data["subject"] == "Zoe"
        assert {tool.name for tool in await client.list_tools()} == {"add", "whoami"}
    for one in people:
        one.join()
    listed = ask(stack, "GET", "/tokens").json()["tokens"]
    assert [(one["subject"], one["via"], one["state"]) for one in listed] == [("Zoe", "oauth", "good")]


@pytest.fixture(scope="module")
def stack(shared_stack: Stack) -> Stack:
    """The stack that nobody changes but by signing in."""
    return shared_stack


def name() -> str:
    """Return a name that nobody has."""
    return f"Zoe {secrets.token_hex(4)}"


def test_the_way_by_hand_tells_state_issuer_scope_and_life(stack: Stack) -> None:
    browser, client_id, found = signed_in(stack, name=name())
    assert found["told"]["state"] == "s1"
    assert found["told"]["iss"] == browser.base
    answer = browser.token(**found["asked"])
    assert answer.headers["cache-control"] == "no-store"
    given = answer.json()
    assert (given["token_type"], given["scope"], given["expires_in"]) == ("Bearer", "tool:add tool:whoami", 3600)
    assert status(stack, given["access_token"], stack.tls_url) == 200
    rotated = refresh(browser, client_id, given["refresh_token"]).json()
    assert status(stack, rotated["access_token"], stack.tls_url) == 200


@pytest.mark.parametrize(
    ("invited", "asked", "given"),
    [
        ("*", "tool:add", "tool:add"), ("add,whoami", "tool:add tool:countdown", "tool:add"), ("add", "tool:*", "tool:add"),
        ("add", None, "tool:add"), ("add", "tool:countdown", None),
    ],
)  # fmt: skip
def test_a_program_gets_no_more_than_it_asked_for_and_the_invite_opens(
    stack: Stack, invited: str, asked: str | None, given: str | None
) -> None:
    browser = Browser(stack)
    client_id = browser.register(CALLBACK, scope="tool:* tool:add tool:countdown").json()["client_id"]
    begun, verifier = browser.authorize(client_id, scope=asked)
    page = browser.http.get(begun.headers["location"])
    assert ("add" if asked == "tool:add" else "<dd>") in page.text
    back = browser.send(page, invite(stack, tools=invited), name())
    told = parse_qs(urlsplit(back.headers["location"]).query)
    if given is None:
        assert told["error"] == ["invalid_scope"]
        return
    answer = browser.token(
        grant_type="authorization_code",
        code=told["code"][0],
        client_id=client_id,
        redirect_uri=CALLBACK,
        code_verifier=verifier,
    )
    assert answer.json()["scope"] == given


def test_clients_codes_and_grants_survive_a_restart(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    browser, client_id, found = signed_in(stack)
    stack.kill("server")
    stack.start("server")
    given = browser.token(**found["asked"]).json()
    stack.kill("server")
    stack.start("server")
    rotated = refresh(browser, client_id, given["refresh_token"])
    assert rotated.status_code == 200, rotated.text
    assert status(stack, rotated.json()["access_token"], stack.tls_url) == 200


def test_discovery_begins_at_the_401_and_names_the_callers_own_url(stack: Stack) -> None:
    for url, base in (
        (stack.tls_url, stack.tls_url.removesuffix("/mcp")),
        (stack.edge_url, stack.edge_url.removesuffix("/mcp")),
    ):
        with httpx2.Client(verify=stack.trust(), timeout=10) as client:
            refused = client.post(url, json={})
            where = re.search(r'resource_metadata="([^"]+)"', refused.headers["www-authenticate"])
            assert refused.status_code == 401
            assert where
            resource = client.get(where[1])
            assert resource.json()["resource"] == f"{base}/mcp"
            assert resource.headers["cache-control"] == "no-store"
            server = client.get(
                resource.json()["authorization_servers"][0] + "/.well-known/oauth-authorization-server"
            )
            assert server.json()["issuer"] == base
            for key, value in server.json().items():
                assert not key.endswith("_endpoint") or value.startswith(base + "/oauth/")
            assert "none" in server.json()["token_endpoint_auth_methods_supported"]
            assert server.json()["code_challenge_methods_supported"] == ["S256"]


@pytest.mark.parametrize(
    "header",
    [
        {"x-forwarded-host": "evil.example"}, {"forwarded": "host=evil.example;proto=http"}, {"x-forwarded-proto": "http"},
        {"x-forwarded-prefix": "/evil"}, {"x-original-host": "evil.example"}, {"x-forwarded-port": "1"},
    ],
)  # fmt: skip
def test_no_forged_header_gets_into_metadata_or_links(stack: Stack, header: dict[str, str]) -> None:
    browser = Browser(stack, **header)
    for path in ("/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource/mcp"):
        text = browser.http.get(path).text
        assert "evil" not in text
        assert browser.base in text
    assert "evil" not in browser.http.post("/mcp", json={}).headers["www-authenticate"]


@pytest.mark.parametrize("host", ["evil.example", 'x".demo.example', "a,b.demo.example", "a b.demo.example"])
def test_a_host_that_is_not_ours_gets_no_metadata(make_stack: Callable[..., Stack], host: str) -> None:
    stack = make_stack(SLIPWAY_ALLOWED_HOSTS="*.demo.example")
    with httpx2.Client(timeout=10) as client:
        url = stack.edge_url.replace("/mcp", "/.well-known/oauth-authorization-server")
        assert client.get(url, headers={"host": "x.demo.example"}).json()["issuer"] == "http://x.demo.example"
        assert client.get(url, headers={"host": host}).status_code in (400, 421)


# --- redirect URIs


@pytest.mark.parametrize(
    "uri",
    [
        "https://claude.ai/api/mcp/auth_callback", "http://localhost:8123/callback", "http://127.0.0.1/cb",
        "http://[::1]:9/cb", "cursor://anysphere.cursor-mcp/oauth/callback", "com.example.app:/oauth", "vscode://x.y/z",
    ],
)  # fmt: skip
def test_a_good_redirect_uri_is_registered(stack: Stack, uri: str) -> None:
    answer = Browser(stack).register(uri)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    "uri",
    [
        "http://evil.example/cb", "http://localhost.evil.example/cb", "http://127.0.0.1.evil.example/", "http://localhost@evil.example/",
        "https://good.example@evil.example/", "https://good.example/#x", "https://good.example/cb#", "javascript:alert(1)",
        "JAVASCRIPT:alert(1)", "data:text/html,x", "file:///etc/passwd", "vbscript:x", "blob:https://x/y", "ms-settings:x",
        "https://", "//evil.example/cb", "https://*.example.com/cb", "intent://x#Intent;end",
        "chrome-extension://abc/x", "ftp://x/y", "https://" + "a" * 1100 + ".example/",
    ],
)  # fmt: skip
def test_a_redirect_uri_that_could_send_a_code_astray_is_refused(stack: Stack, uri: str) -> None:
    answer = Browser(stack).register(uri)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] in ("invalid_redirect_uri", "invalid_client_metadata")


@pytest.mark.parametrize(
    "asked",
    [
        "https://good.example/cb/", "https://good.example/cb?x=1", "https://good.example/CB", "https://good.example/cb%2f..",
        "https://sub.good.example/cb", "https://good.example:444/cb", "https://good.example@evil.example/cb", "http://good.example/cb",
        "https://good.example/cb#x", "https://evil.example/?u=https://good.example/cb", "http://localhost:1/other", None,
    ],
)  # fmt: skip
def test_only_the_registered_redirect_uri_is_used(stack: Stack, asked: str | None) -> None:
    browser = Browser(stack)
    client_id = browser.register("https://good.example/cb", "http://localhost:1/cb").json()["client_id"]
    answer, _ = browser.authorize(client_id, redirect_uri=asked)
    assert answer.status_code == 400
    assert "location" not in answer.headers


def test_a_loopback_redirect_may_use_any_port(stack: Stack) -> None:
    browser = Browser(stack)
    client_id = browser.register("http://localhost/callback").json()["client_id"]
    for uri in ("http://localhost:5555/callback", "http://localhost:61234/callback"):
        answer, _ = browser.authorize(client_id, redirect_uri=uri)
        assert answer.status_code == 302
    answer, _ = browser.authorize(client_id, redirect_uri="http://127.0.0.1:5555/callback")
    assert answer.status_code == 400


# --- PKCE, codes, resources


@pytest.mark.parametrize(
    "change",
    [
        {"code_challenge_method": "plain"}, {"code_challenge": None}, {"code_challenge": "short"},
        {"response_type": "token"}, {"resource": "https://other.example/mcp"}, {"resource": "https://localhost:8443.evil.example"},
    ],
)  # fmt: skip
def test_a_weak_or_misdirected_request_goes_back_with_an_error_and_no_code(
    stack: Stack, change: dict[str, Any]
) -> None:
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    answer, _ = browser.authorize(client_id, **change)
    assert answer.status_code == 302
    told = parse_qs(urlsplit(answer.headers["location"]).query)
    assert answer.headers["location"].startswith(CALLBACK)
    assert "error" in told
    assert "code" not in told


@pytest.mark.parametrize(
    "change",
    [
        {"code_verifier": "x" * 64},
        {"redirect_uri": "http://localhost:1/other"},
        {"code": "y" * 43},
        {"client_id": "other"},
    ],
)
def test_a_code_needs_its_verifier_redirect_and_client(stack: Stack, change: dict[str, str]) -> None:
    browser, _, found = signed_in(stack, name=name())
    assert browser.token(**found["asked"] | change).status_code in (400, 401)
    assert browser.token(**found["asked"]).status_code == 200  # the owner still gets in


def test_a_code_of_one_client_is_nothing_to_another(stack: Stack) -> None:
    browser, _, found = signed_in(stack, name=name())
    other = browser.register(CALLBACK).json()["client_id"]
    assert browser.token(**found["asked"] | {"client_id": other}).json()["error"] == "invalid_grant"


def test_a_code_that_is_shown_twice_ends_what_it_gave(stack: Stack) -> None:
    browser, client_id, found = signed_in(stack, name=name())
    given = browser.token(**found["asked"]).json()
    assert status(stack, given["access_token"]) == 200
    assert browser.token(**found["asked"]).json()["error"] == "invalid_grant"
    assert status(stack, given["access_token"]) == 401
    assert refresh(browser, client_id, given["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_refresh_token_that_is_shown_twice_ends_the_family(stack: Stack) -> None:
    browser, client_id, first = tokens_of(stack, name=name())
    second = refresh(browser, client_id, first["refresh_token"]).json()
    assert status(stack, second["access_token"]) == 200
    assert refresh(browser, client_id, first["refresh_token"]).json()["error"] == "invalid_grant"
    assert status(stack, second["access_token"]) == 401
    assert refresh(browser, client_id, second["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_refresh_token_of_one_client_is_nothing_to_another(stack: Stack) -> None:
    browser, client_id, first = tokens_of(stack, name=name())
    other = browser.register(CALLBACK).json()["client_id"]
    assert refresh(browser, other, first["refresh_token"]).json()["error"] == "invalid_grant"
    assert refresh(browser, client_id, first["refresh_token"]).status_code == 200


@pytest.mark.parametrize("how", ["jti", "subject", "refresh token"])
def test_revoking_ends_the_refresh_too(stack: Stack, how: str) -> None:
    who = name()
    browser, client_id, given = tokens_of(stack, name=who)
    record = next(one for one in ask(stack, "GET", "/tokens").json()["tokens"] if one["subject"] == who)
    if how == "jti":
        ask(stack, "DELETE", f"/tokens/{record['jti']}")
    elif how == "subject":
        ask(stack, "POST", "/tokens/revoke", {"subject": who})
    else:
        answer = browser.http.post("/oauth/revoke", data={"token": given["refresh_token"], "client_id": client_id})
        assert answer.status_code == 200, answer.text
    assert status(stack, given["access_token"]) == 401
    assert refresh(browser, client_id, given["refresh_token"]).json()["error"] == "invalid_grant"


def test_no_grant_outlives_its_invite(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    browser, client_id, given = tokens_of(stack, code=invite(stack, token_ttl="2s"))
    assert given["expires_in"] <= 2
    over = time.time() + 2
    wait_until(lambda: time.time() > over, 10, "the end")
    assert status(stack, given["access_token"]) == 401
    assert refresh(browser, client_id, given["refresh_token"]).json()["error"] == "invalid_grant"


# --- the page


def test_the_page_says_who_asks_and_where_it_goes_and_cannot_be_framed(stack: Stack) -> None:
    browser = Browser(stack)
    client_id = browser.register(
        "https://good.example/cb?secret=1", client_name='<script>alert("x")</script>\u202e\x07'
    ).json()["client_id"]
    begun, _ = browser.authorize(client_id, redirect_uri="https://good.example/cb?secret=1")
    page = browser.http.get(begun.headers["location"])
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "\u202e" not in page.text
    assert "https://good.example" in page.text
    policy = page.headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "frame-ancestors 'none'",
        "form-action 'self' https://good.example;",
        "base-uri 'none'",
    ):
        assert part in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"
    cookie = page.headers["set-cookie"].lower()
    for part in ("httponly", "samesite=lax", "secure", "path=/;"):
        assert part in cookie


@pytest.mark.parametrize(
    "attack", ["no cookie", "other cookie", "no csrf", "other csrf", "cross-site", "other transaction"]
)
def test_a_form_from_elsewhere_gives_no_code(stack: Stack, attack: str) -> None:
    code, browser = invite(stack), Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    page = browser.http.get(browser.authorize(client_id)[0].headers["location"])
    more: dict[str, Any] = {}
    if attack == "no cookie":
        browser.http.cookies.clear()
    elif attack == "other cookie":
        browser.http.cookies.clear()
        browser.http.cookies.set("slipway_browser", "x" * 32)
    elif attack in ("no csrf", "other csrf"):
        more["csrf"] = "" if attack == "no csrf" else "0" * 64
    elif attack == "cross-site":
        browser.http.headers["sec-fetch-site"] = "cross-site"
    else:
        more["transaction"] = parse_qs(urlsplit(browser.authorize(client_id)[0].headers["location"]).query)[
            "transaction"
        ][0]
    answer = browser.send(page, code, name(), **more)
    assert answer.status_code == 403
    assert "location" not in answer.headers


def test_saying_no_goes_back_and_ends_the_sign_in(stack: Stack) -> None:
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    page = browser.http.get(browser.authorize(client_id)[0].headers["location"])
    answer = browser.send(page, "", "", decision="deny")
    assert parse_qs(urlsplit(answer.headers["location"]).query)["error"] == ["access_denied"]
    assert browser.send(page, invite(stack), name()).status_code == 400


def test_a_wrong_code_is_told_on_the_page_and_the_name_is_kept(stack: Stack) -> None:
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    page = browser.http.get(browser.authorize(client_id)[0].headers["location"])
    who = name()
    answer = browser.send(page, "ACDE-FGHJ", who)
    assert answer.status_code == 400
    assert "This code is not good" in answer.text
    assert f'value="{who}"' in answer.text
    assert browser.send(answer, invite(stack), who).status_code == 302


def test_nobody_takes_a_name_that_somebody_has_and_the_code_is_not_used_up(stack: Stack) -> None:
    who, code = name(), invite(stack, uses=2)
    signed_in(stack, code=code, name=who)
    for other in (who, who.upper(), f"  {who} "):
        browser = Browser(stack)
        client_id = browser.register(CALLBACK).json()["client_id"]
        answer = browser.consent(browser.authorize(client_id)[0].headers["location"], code, other)
        assert answer.status_code == 400
        assert "has this name already" in answer.text
    assert browser.send(answer, code, name()).status_code == 302


@pytest.mark.parametrize("who", ["", "   ", "x" * 65, "a\u202eb", "!!!"])
def test_a_name_that_is_none_is_refused(stack: Stack, who: str) -> None:
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    answer = browser.consent(browser.authorize(client_id)[0].headers["location"], invite(stack), who)
    assert answer.status_code == 400


def test_guessing_codes_on_the_page_is_cut_off(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    browser = Browser(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    page = browser.http.get(browser.authorize(client_id)[0].headers["location"])
    codes = [browser.send(page, f"ACDE-FG{n:02}", "Zoe").status_code for n in range(12)]
    assert codes == [400] * 10 + [429] * 2
    last = browser.send(page, invite(stack), "Zoe")
    assert last.status_code == 429
    assert 1 <= int(last.headers["retry-after"]) <= 60


def test_a_sign_in_that_took_too_long_or_was_never_begun_is_told(stack: Stack) -> None:
    for where in ("/oauth/consent", "/oauth/consent?transaction=x", "/oauth/consent?transaction=" + "x" * 5000):
        answer = Browser(stack).http.get(where)
        assert answer.status_code == 400
        assert "connect again" in answer.text


def test_no_log_holds_a_code_a_token_or_an_invite(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    code = invite(stack)
    browser, _, found = signed_in(stack, code=code)
    given = browser.token(**found["asked"]).json()
    texts = stack.text("server") + stack.text("caddy")
    texts += "".join(path.read_text() for path in (stack.config.state / "log").iterdir())
    kept = "".join(path.read_text() for path in (stack.config.state / "data").rglob("*.json"))
    for secret in (code, code.replace("-", ""), found["told"]["code"], given["access_token"], given["refresh_token"]):
        assert secret not in texts
        assert secret not in kept


def test_over_plain_http_an_anonymous_stack_has_no_sign_in(make_stack: Callable[..., Stack]) -> None:
    browser = Browser(make_stack(SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS="true"))
    for path in ("/.well-known/oauth-protected-resource/mcp", "/oauth/consent"):
        assert browser.http.get(path).status_code == 404
