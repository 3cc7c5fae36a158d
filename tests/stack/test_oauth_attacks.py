"""What an attacker, a hurried person or an odd client does to the sign-in, through the whole stack."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.conftest import Stack
from tests.stack.test_join import form, token_of
from tests.stack.test_oauth import CALLBACK, Browser, _closed, invite, name, refresh, signed_in, tokens_of
from tests.test_admin import ask, status

pytestmark = pytest.mark.slow
__all__ = ["_closed"]


def at_once(count: int, call: Callable[[], httpx2.Response]) -> list[httpx2.Response]:
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(call) for _ in range(count)]]


def location(answer: httpx2.Response) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


# --- the same thing twice, in the same moment


def test_a_code_that_is_shown_many_times_at_once_gives_nothing_that_lasts(shared_stack: Stack) -> None:
    browser, client_id, found = signed_in(shared_stack, name=name())
    answers = at_once(6, lambda: browser.token(**found["asked"]))
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(good) <= 1
    for given in good:
        assert status(shared_stack, given["access_token"]) == 401
        assert refresh(browser, client_id, given["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_refresh_token_that_is_shown_many_times_at_once_ends_the_family(shared_stack: Stack) -> None:
    browser, client_id, first = tokens_of(shared_stack, name=name())
    answers = at_once(6, lambda: refresh(browser, client_id, first["refresh_token"]))
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(good) <= 1
    for given in [first, *good]:
        assert status(shared_stack, given["access_token"]) == 401
        assert refresh(browser, client_id, given["refresh_token"]).json()["error"] == "invalid_grant"


def test_a_double_click_on_the_consent_page_goes_back_with_one_code(shared_stack: Stack) -> None:
    browser, who, code = Browser(shared_stack), name(), invite(shared_stack, uses=1)
    client_id = browser.register(CALLBACK).json()["client_id"]
    begun, verifier = browser.authorize(client_id)
    page = browser.http.get(begun.headers["location"])
    answers = at_once(3, lambda: browser.send(page, code, who))
    assert [answer.status_code for answer in answers] == [302] * 3
    (back,) = {answer.headers["location"] for answer in answers}
    told = parse_qs(urlsplit(back).query)
    asked = {"code": told["code"][0], "client_id": client_id, "redirect_uri": CALLBACK, "code_verifier": verifier}
    assert browser.token(grant_type="authorization_code", **asked).status_code == 200
    # the sign-in is over: another form for it gives nothing
    assert browser.send(page, invite(shared_stack), name()).status_code == 400


def test_a_double_click_on_the_join_page_gives_one_token_and_uses_the_code_once(shared_stack: Stack) -> None:
    browser, who, code = Browser(shared_stack), name(), invite(shared_stack, uses=1)
    page = browser.http.get("/join")
    csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert csrf
    fields = {"csrf": csrf[1], "code": code, "name": who}
    answers = at_once(3, lambda: browser.http.post("/join", data=fields))
    assert len({token_of(answer) for answer in answers}) == 1
    listed = ask(shared_stack, "GET", "/tokens").json()["tokens"]
    assert sum(record["subject"] == who for record in listed) == 1


def test_who_joined_signs_in_under_the_same_name_in_the_same_browser_and_nobody_else(shared_stack: Stack) -> None:
    browser, who, code = Browser(shared_stack), name(), invite(shared_stack, uses=1)
    assert token_of(form(browser, code, who))
    client_id = browser.register(CALLBACK).json()["client_id"]
    stranger = Browser(shared_stack)
    for person, typed, good in (
        (stranger, invite(shared_stack), False),
        (browser, code, True),
        (browser, code, True),
    ):
        begun, _ = person.authorize(client_id)
        answer = person.consent(begun.headers["location"], typed, who)
        assert (answer.status_code == 302) is good, answer.text
        assert good or "has this name already" in answer.text
    # the code itself is used up
    assert form(Browser(shared_stack), code, name()).status_code == 400


def test_two_sign_ins_in_one_browser_do_not_disturb_each_other(shared_stack: Stack) -> None:
    browser, code = Browser(shared_stack), invite(shared_stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    first, second = (browser.http.get(browser.authorize(client_id)[0].headers["location"]) for _ in range(2))
    assert browser.send(first, code, name()).status_code == 302
    assert browser.send(second, code, name()).status_code == 302


# --- forged and odd requests


@pytest.mark.parametrize(
    ("sent", "scheme"), [("http, https", "https"), ("https, http", "http"), ("x,https", "https")]
)
def test_the_last_word_on_the_scheme_is_the_tunnels(shared_stack: Stack, sent: str, scheme: str) -> None:
    url = shared_stack.edge_url.removesuffix("/mcp") + "/.well-known/oauth-authorization-server"
    answer = httpx2.get(url, headers={"x-forwarded-proto": sent}, trust_env=False)
    assert answer.json()["issuer"].startswith(f"{scheme}://")


@pytest.mark.parametrize("header", ["x-forwarded-host", "x-original-host", "forwarded", "x-host"])
def test_no_forged_host_gets_into_metadata_through_the_tunnels_port(shared_stack: Stack, header: str) -> None:
    base = shared_stack.edge_url.removesuffix("/mcp")
    value = "host=evil.example" if header == "forwarded" else "evil.example"
    with httpx2.Client(headers={header: value}, trust_env=False) as http:
        for path in ("/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource/mcp", "/join"):
            assert "evil" not in http.get(base + path).text
        assert "evil" not in http.post(base + "/mcp", json={}).headers["www-authenticate"]


def test_a_guesser_gains_nothing_by_forged_addresses(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    base = stack.edge_url.removesuffix("/mcp")
    codes = []
    with httpx2.Client(base_url=base, trust_env=False) as http:
        csrf = re.search(r'name="csrf" value="(\w+)"', http.get("/join").text)
        assert csrf
        for n in range(12):
            fields = {"csrf": csrf[1], "code": f"ACDE-FG{n:02}", "name": "Zoe"}
            # what the ngrok agent would append stands last
            forged = {"x-forwarded-for": f"198.51.100.{n}, 203.0.113.9"}
            codes.append(http.post("/join", data=fields, headers=forged).status_code)
    assert codes == [400] * 10 + [429] * 2


@pytest.mark.parametrize("path", ["/join", "/oauth/consent"])
def test_a_form_with_odd_letters_is_refused_not_an_error(shared_stack: Stack, path: str) -> None:
    browser = Browser(shared_stack)
    browser.http.get("/join")
    answer = browser.http.post(path, data={"csrf": "é\x00😀", "code": "é", "name": "é", "transaction": "é"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/join", "/oauth/consent", "/oauth/token", "/oauth/revoke", "/oauth/authorize"])
@pytest.mark.parametrize("charset", ["unicode_escape", "undefined", "idna"])
def test_a_form_in_parts_whose_charset_gives_no_text_is_refused_not_an_error(
    shared_stack: Stack, path: str, charset: str
) -> None:
    browser = Browser(shared_stack)
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    part = b'--x\r\nContent-Disposition: form-data; name="code"\r\n\r\n\\ud800\r\n--x--\r\n'
    assert browser.http.post(path, content=part, headers=kind).status_code in (400, 403)


@pytest.mark.parametrize("path", ["/join", "/oauth/consent", "/oauth/authorize"])
def test_a_query_of_any_bytes_is_no_error(shared_stack: Stack, path: str) -> None:
    where = urlsplit(shared_stack.edge_url)
    with socket.create_connection((where.hostname, where.port), 10) as line:
        line.sendall(
            b"GET " + path.encode() + b"?x=\x80\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        status = line.recv(100).split(b" ")[1]
    assert status in (b"200", b"400")


@pytest.mark.parametrize(
    "client_id",
    ["https://x.example:99999/x", f"https://{'a' * 70}.example/x", "https://x..example/y", "é", "x" * 5000],
)
def test_an_odd_client_id_is_refused_not_an_error(shared_stack: Stack, client_id: str) -> None:
    browser = Browser(shared_stack)
    assert browser.authorize(client_id)[0].status_code == 400
    answer = browser.token(grant_type="refresh_token", refresh_token="x", client_id=client_id)
    assert answer.status_code == 401


def test_a_sign_in_that_would_fill_the_disk_is_refused(make_stack: Callable[..., Stack]) -> None:
    browser = Browser(make_stack())
    client_id = browser.register(CALLBACK).json()["client_id"]
    assert browser.authorize(client_id, state="x" * 2001)[0].status_code == 400
    assert browser.authorize(client_id, state="x" * 2000)[0].status_code == 302
    answers = [browser.authorize(client_id)[0].status_code for _ in range(120)]
    assert answers == [302] * 118 + [429] * 2


def test_a_sign_in_begun_at_one_url_is_nothing_at_another(shared_stack: Stack) -> None:
    browser = Browser(shared_stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    where = browser.authorize(client_id)[0].headers["location"]
    assert browser.http.get(where).status_code == 200
    elsewhere = shared_stack.edge_url.removesuffix("/mcp")
    assert httpx2.get(elsewhere + where, trust_env=False).status_code == 400


def test_a_faulty_request_leads_to_no_website_before_a_person_agreed(shared_stack: Stack) -> None:
    browser = Browser(shared_stack)
    client_id = browser.register("https://evil.example/phish").json()["client_id"]
    answer, _ = browser.authorize(client_id, redirect_uri="https://evil.example/phish", response_type="token")
    assert answer.status_code == 400
    assert "location" not in answer.headers


@pytest.mark.parametrize("resource", ["https://evil.example/mcp", "https://localhost.evil.example", "x"])
def test_a_token_for_another_resource_is_not_given(shared_stack: Stack, resource: str) -> None:
    browser, client_id, found = signed_in(shared_stack, name=name())
    assert browser.token(**found["asked"], resource=resource).json()["error"] == "invalid_target"
    given = browser.token(**found["asked"], resource=f"{browser.base}/mcp").json()
    again = {"grant_type": "refresh_token", "refresh_token": given["refresh_token"], "client_id": client_id}
    assert browser.token(**again, resource=resource).json()["error"] == "invalid_target"
    assert browser.token(**again).status_code == 200


def test_a_client_ends_no_grant_of_another(shared_stack: Stack) -> None:
    browser, client_id, given = tokens_of(shared_stack, name=name())
    other = browser.register(CALLBACK).json()["client_id"]
    answer = browser.http.post("/oauth/revoke", data={"token": given["refresh_token"], "client_id": other})
    assert answer.status_code == 200
    assert refresh(browser, client_id, given["refresh_token"]).status_code == 200


def test_refreshing_without_end_is_cut_off_and_all_of_it_can_be_ended(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    browser, client_id, given = tokens_of(stack)
    tokens = [given]
    while (answer := refresh(browser, client_id, tokens[-1]["refresh_token"])).status_code == 200:
        tokens.append(answer.json())
    assert len(tokens) == 60
    ended = browser.http.post("/oauth/revoke", data={"token": tokens[-1]["refresh_token"], "client_id": client_id})
    assert ended.status_code == 200, ended.text
    assert {status(stack, each["access_token"]) for each in tokens} == {401}


@pytest.mark.parametrize("who", ["slipway", "Operator", "\uff41\uff44\uff4d\uff49\uff4e", "d\u0435mo"])
def test_a_name_that_would_pass_for_another_is_refused(shared_stack: Stack, who: str) -> None:
    answer = form(Browser(shared_stack), invite(shared_stack), who)
    assert answer.status_code == 400
    assert "Type a name" in answer.text


# --- what clients may rely on


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_a_client_with_a_secret_needs_it(shared_stack: Stack, method: str) -> None:
    browser, who = Browser(shared_stack), name()
    client = browser.register(CALLBACK, token_endpoint_auth_method=method).json()
    begun, verifier = browser.authorize(client["client_id"])
    told = location(browser.consent(begun.headers["location"], invite(shared_stack), who))
    asked = {
        "grant_type": "authorization_code", "code": told["code"], "redirect_uri": CALLBACK, "code_verifier": verifier,
    }  # fmt: skip

    def token(secret: str) -> httpx2.Response:
        if method == "client_secret_post":
            return browser.token(**asked, client_id=client["client_id"], client_secret=secret)
        pair = base64.b64encode(f"{client['client_id']}:{secret}".encode()).decode()
        return browser.http.post("/oauth/token", data=asked, headers={"authorization": f"Basic {pair}"})

    for wrong in ("", "nonsense", "é"):
        assert token(wrong).status_code == 401
    assert token(client["client_secret"]).status_code == 200


@pytest.mark.parametrize("asked", ["tool:add", "tool:* offline_access", "openid tool:add", "offline_access"])
def test_a_program_may_ask_for_less_and_for_what_is_not_ours(shared_stack: Stack, asked: str) -> None:
    browser = Browser(shared_stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    begun, _ = browser.authorize(client_id, scope=asked)
    assert "code" in location(browser.consent(begun.headers["location"], invite(shared_stack), name()))


@pytest.mark.parametrize("path", ["/oauth/register", "/oauth/token", "/oauth/revoke"])
def test_a_page_of_an_allowed_origin_may_sign_in_and_no_other(shared_stack: Stack, path: str) -> None:
    browser = Browser(shared_stack)
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for origin, good in (("http://localhost:3000", True), ("https://evil.example", False)):
        preflight = browser.http.request("OPTIONS", path, headers={"origin": origin, **asked})
        assert (preflight.status_code == 204) is good
        answer = browser.http.post(path, headers={"origin": origin}, data={})
        assert (answer.status_code == 403) is not good
        assert (answer.headers.get("access-control-allow-origin") == origin) is good


def test_the_pages_for_people_take_no_preflight(shared_stack: Stack) -> None:
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    for path in ("/join", "/oauth/consent"):
        answer = Browser(shared_stack).http.request("OPTIONS", path, headers=asked)
        assert answer.status_code in (404, 405)
        assert "access-control-allow-methods" not in answer.headers


def recorded(stack: Stack, redirect: str, **metadata: Any) -> dict[str, Any]:
    """Go the way that a web host goes: discovery, registration, sign-in with its own redirect, token, refresh."""
    browser = Browser(stack)
    challenge = browser.http.post("/mcp", json={}).headers["www-authenticate"]
    where = re.search(r'resource_metadata="([^"]+)"', challenge)
    assert where
    resource = browser.http.get(where[1]).json()
    server = browser.http.get(resource["authorization_servers"][0] + "/.well-known/oauth-authorization-server").json()
    assert server["code_challenge_methods_supported"] == ["S256"]
    assert "none" in server["token_endpoint_auth_methods_supported"]
    asked = {"grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"], **metadata}
    client = browser.register(redirect, **asked).json()
    begun, verifier = browser.authorize(client["client_id"], redirect_uri=redirect, resource=resource["resource"])
    back = browser.consent(begun.headers["location"], invite(stack), name())
    assert back.headers["location"].startswith(redirect)
    told = location(back)
    assert (told["state"], told["iss"]) == ("s1", server["issuer"])
    secret = {"client_secret": client["client_secret"]} if client.get("client_secret") else {}
    given = browser.http.post(server["token_endpoint"], data={
        "grant_type": "authorization_code", "code": told["code"], "client_id": client["client_id"], "redirect_uri": redirect,
        "code_verifier": verifier, "resource": resource["resource"], **secret,
    }).json()  # fmt: skip
    rotated = browser.http.post(server["token_endpoint"], data={
        "grant_type": "refresh_token", "refresh_token": given["refresh_token"], "client_id": client["client_id"],
        "resource": resource["resource"], **secret,
    })  # fmt: skip
    return dict(rotated.json())


@pytest.mark.parametrize(
    ("redirect", "metadata"),
    [
        ("https://chatgpt.com/connector/oauth/abc123", {"client_name": "ChatGPT", "token_endpoint_auth_method": "none"}),
        ("https://chatgpt.com/connector_platform_oauth_redirect", {"token_endpoint_auth_method": "client_secret_post"}),
        ("https://claude.ai/api/mcp/auth_callback", {"client_name": "Claude", "token_endpoint_auth_method": "client_secret_post", "scope": "tool:*"}),
        ("https://claude.com/api/mcp/auth_callback", {"client_name": "Claude", "token_endpoint_auth_method": "none"}),
        ("cursor://anysphere.cursor-mcp/oauth/callback", {"client_name": "Cursor"}),
        ("http://localhost:7777/oauth/callback", {"client_name": "Gemini CLI"}),
    ],
)  # fmt: skip
def test_the_way_that_a_host_goes(shared_stack: Stack, redirect: str, metadata: dict[str, Any]) -> None:
    given = recorded(shared_stack, redirect, **metadata)
    assert status(shared_stack, given["access_token"], shared_stack.tls_url) == 200
