"""/join through the whole stack: a code and a name become a token, a configuration, and a page that waits."""

from __future__ import annotations

import html
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastmcp import Client

from slipway.clients import CLIENTS
from tests.conftest import Stack, wait_until
from tests.stack.test_oauth import Browser, _closed, invite, name
from tests.test_admin import ask, status

pytestmark = pytest.mark.slow
__all__ = ["_closed"]


def form(browser: Browser, code: str, who: str, **more: str) -> httpx2.Response:
    page = browser.http.get("/join")
    assert page.status_code == 200, page.text
    csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert csrf
    return browser.http.post("/join", data={"csrf": csrf[1], "code": code, "name": who} | more)


def token_of(page: httpx2.Response) -> str:
    found = re.search(r"<pre tabindex=\"0\">(eyJ[\w.-]+)</pre>", page.text)
    assert found, page.text
    return found[1]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_attendee_gets_a_token_and_every_configuration(shared_stack: Stack, mode: str) -> None:
    browser, who = Browser(shared_stack), name()
    page = form(browser, invite(shared_stack), who)
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    assert f"Welcome, {who}" in page.text
    token = token_of(page)
    assert page.text.count(f"Bearer {token}") > 20
    for client in CLIENTS.values():
        assert html.escape(client.title) in page.text
    assert 'href="cursor://' in page.text
    pasted = json.loads(
        html.unescape(re.search(r"Claude Code</summary>.*?<pre[^>]*>(.*?)</pre>", page.text, re.S)[1])
    )  # type: ignore[index]
    server = pasted["mcpServers"]["slipway"]
    async with Client(
        server["url"], auth=server["headers"]["Authorization"].split()[1], verify=shared_stack.trust(), mode=mode
    ) as client:
        assert (await client.call_tool("whoami")).data == {"subject": who, "scopes": ["tool:add", "tool:whoami"]}
    record = next(one for one in ask(shared_stack, "GET", "/tokens").json()["tokens"] if one["subject"] == who)
    assert (record["via"], record["state"]) == ("join", "good")


def test_the_page_sees_the_first_call(shared_stack: Stack) -> None:
    browser = Browser(shared_stack)
    page = form(browser, invite(shared_stack), name())
    watch = re.search(r'data-watch="([\w-]+)"', page.text)
    assert watch
    seen: list[str] = []

    def listen() -> None:
        with browser.http.stream("GET", f"/join?watch={watch[1]}") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                seen.append(line)

    listener = threading.Thread(target=listen)
    listener.start()
    wait_until(lambda: ": waiting" in seen, 10, "the beginning of the stream")
    assert status(shared_stack, token_of(page), shared_stack.tls_url) == 200
    listener.join(10)
    assert "event: connected" in seen
    assert "event: over" not in seen


def test_a_page_whose_token_is_revoked_is_told_that_nothing_comes(shared_stack: Stack) -> None:
    browser, who = Browser(shared_stack), name()
    page = form(browser, invite(shared_stack), who)
    record = next(one for one in ask(shared_stack, "GET", "/tokens").json()["tokens"] if one["subject"] == who)
    ask(shared_stack, "DELETE", f"/tokens/{record['jti']}")
    watch = re.search(r'data-watch="([\w-]+)"', page.text)
    assert watch
    assert "event: over" in browser.http.get(f"/join?watch={watch[1]}").text


def test_it_works_without_cookies_of_others_and_shows_the_form_again_on_a_mistake(shared_stack: Stack) -> None:
    browser, who = Browser(shared_stack), name()
    wrong = form(browser, "ACDE-FGHJ", who)
    assert wrong.status_code == 400
    assert "This code is not good" in wrong.text
    assert f'value="{who}"' in wrong.text
    taken = invite(shared_stack, uses=1)
    assert form(browser, taken, who).status_code == 200
    again = form(Browser(shared_stack), taken, name())
    assert (again.status_code, "This code is not good" in again.text) == (400, True)


def test_a_name_is_one_persons_over_both_doors(shared_stack: Stack) -> None:
    who, code = name(), invite(shared_stack)
    assert form(Browser(shared_stack), code, who).status_code == 200
    second = form(Browser(shared_stack), code, who.upper())
    assert "has this name already" in second.text
    browser = Browser(shared_stack)
    client_id = browser.register("http://localhost:1/cb").json()["client_id"]
    begun, _ = browser.authorize(client_id, redirect_uri="http://localhost:1/cb")
    assert "has this name already" in browser.consent(begun.headers["location"], code, who).text


@pytest.mark.parametrize("attack", ["no cookie", "other csrf", "cross-site", "huge"])
def test_a_form_from_elsewhere_gives_no_token(shared_stack: Stack, attack: str) -> None:
    browser, more = Browser(shared_stack), {}
    browser.http.get("/join")
    if attack == "other csrf":
        more["csrf"] = "0" * 64
    elif attack == "huge":
        more["extra"] = "x" * 20_000
    elif attack == "cross-site":
        browser.http.headers["sec-fetch-site"] = "cross-site"
    else:
        page = browser.http.get("/join")
        browser.http.cookies.clear()
        csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
        answer = browser.http.post("/join", data={"csrf": csrf[1] if csrf else "", "code": "x", "name": "y"})
        assert answer.status_code == 403
        return
    answer = form(browser, invite(shared_stack), name(), **more)
    assert answer.status_code == 403
    assert "eyJ" not in answer.text


def test_what_people_type_is_text_and_no_page(shared_stack: Stack) -> None:
    for who in ('<img src=x onerror="alert(1)">', "a\u202eb", "x" * 500, "\x00"):
        answer = form(Browser(shared_stack), '"><script>alert(1)</script>', who)
        assert answer.status_code == 400
        assert "<script>" not in answer.text
        assert "<img src=x" not in answer.text
        assert "\u202e" not in answer.text
    page = Browser(shared_stack).http.get('/join?code="><script>x</script>')
    assert "<script" not in page.text


def test_the_pages_are_closed_to_other_origins(shared_stack: Stack) -> None:
    browser = Browser(shared_stack)
    for answer in (browser.http.get("/join"), form(browser, invite(shared_stack), name())):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not re.findall(
            r'(?:src|href)="(?:https?:)?//', re.sub(r'href="(https://kiro|https://)[^"]*"', "", answer.text)
        )


def test_guessing_is_cut_off_over_both_doors(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    here = "127.9.9.9"
    codes = [form(Browser(stack, here), f"ACDE-FG{n:02}", name()).status_code for n in range(11)]
    assert codes == [400] * 10 + [429]
    browser = Browser(stack, here)
    client_id = browser.register("http://localhost:1/cb").json()["client_id"]
    begun, _ = browser.authorize(client_id, redirect_uri="http://localhost:1/cb")
    assert browser.consent(begun.headers["location"], invite(stack), name()).status_code == 429


def test_nothing_is_kept_that_opens_a_door(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    code = invite(stack)
    token = token_of(form(Browser(stack), code, name()))
    kept: Any = "".join(path.read_text() for path in stack.config.state.rglob("*.json*"))
    for secret in (token, token.split(".")[2], code.replace("-", "")):
        assert secret not in kept
        assert secret not in stack.text("server") + stack.text("caddy")
