"""The pages in real Chromium: they work, on a phone too, without a complaint of the browser about its own rules."""

from __future__ import annotations

import html
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import SCREENS, Watched
from tests.browser.test_console import answering
from tests.conftest import Stack
from tests.stack.test_oauth import invite, name
from tests.test_admin import status

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("screen", SCREENS)
def test_an_attendee_joins_and_the_page_turns_green_at_the_first_call(
    shared_stack: Stack, chromium: Browser, screen: str
) -> None:
    seen, who = Watched(chromium, screen), name()
    page = seen.page
    page.goto(shared_stack.tls_url.replace("/mcp", "/join"))
    assert seen.fits()
    page.get_by_label("Invite code").fill(invite(shared_stack).lower())
    page.get_by_label("Your name").fill(who)
    page.get_by_role("button", name="Join").click()
    page.get_by_role("heading", name=f"Welcome, {who}").wait_for()
    assert "Waiting" in page.get_by_role("status").text_content()  # type: ignore[operator]
    assert seen.fits()
    token = page.locator("details pre").first.text_content() or ""
    assert status(shared_stack, token, shared_stack.tls_url) == 200
    page.locator("#state.connected").wait_for(timeout=10_000)
    page.get_by_text("Cursor", exact=True).click()
    assert token in (page.locator("details[open] pre").last.text_content() or "")
    assert seen.complaints == []
    seen.context.close()


def test_the_copy_button_copies(shared_stack: Stack, chromium: Browser) -> None:
    seen = Watched(chromium, "desktop", permissions=["clipboard-read", "clipboard-write"])
    page = seen.page
    page.goto(shared_stack.tls_url.replace("/mcp", "/join"))
    page.get_by_label("Invite code").fill(invite(shared_stack))
    page.get_by_label("Your name").fill(name())
    page.keyboard.press("Enter")
    button = page.locator("details[open] button.copy").first
    button.click()
    page.get_by_text("Copied").wait_for()
    assert "mcpServers" in page.evaluate("navigator.clipboard.readText()")
    seen.context.close()


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_person_signs_in_for_a_program_also_without_scripts(
    shared_stack: Stack, chromium: Browser, screen: str, scripts: bool
) -> None:
    seen = Watched(chromium, screen, java_script_enabled=scripts)
    page, base = seen.page, shared_stack.tls_url.removesuffix("/mcp")
    asked = {
        "redirect_uris": ["https://program.example/back"],
        "client_name": "A program",
        "token_endpoint_auth_method": "none",
    }
    client_id = page.request.post(f"{base}/oauth/register", data=asked).json()["client_id"]
    arrived: list[str] = []
    seen.context.route(
        "https://program.example/**", lambda route: (arrived.append(route.request.url), route.fulfill(body="back"))[0]
    )
    page.goto(
        f"{base}/oauth/authorize?response_type=code&client_id={client_id}&redirect_uri=https%3A%2F%2Fprogram.example%2Fback"
        f"&code_challenge={'x' * 43}&code_challenge_method=S256&state=s"
    )
    assert page.get_by_text("https://program.example").is_visible()
    if scripts:
        assert seen.fits()
    page.get_by_label("Invite code").fill("ACDE-FGHJ")
    page.get_by_label("Your name").fill(name())
    page.get_by_role("button", name="Allow").click()
    assert "not good" in (page.get_by_role("alert").text_content() or "")
    page.get_by_label("Invite code").fill(invite(shared_stack))
    page.get_by_role("button", name="Allow").click()
    page.wait_for_url("https://program.example/**")
    assert "code=" in arrived[-1]
    assert "state=s" in arrived[-1]
    assert [said for said in seen.complaints if "400" not in said] == []
    seen.context.close()


def test_two_sign_ins_that_other_sites_began_do_not_disturb_each_other_and_a_double_click_neither(
    shared_stack: Stack, chromium: Browser
) -> None:
    seen = Watched(chromium, "desktop")
    base, code, who = shared_stack.tls_url.removesuffix("/mcp"), invite(shared_stack), name()
    with answering("<!doctype html><title>back</title>", "text/html") as program:
        back = program.replace("/mcp", "/back")
        asked = {"redirect_uris": [back], "token_endpoint_auth_method": "none"}
        client_id = seen.page.request.post(f"{base}/oauth/register", data=asked).json()["client_id"]
        query = {
            "response_type": "code", "client_id": client_id, "redirect_uri": back, "state": "s",
            "code_challenge": "x" * 43, "code_challenge_method": "S256",
        }  # fmt: skip
        link = html.escape(f"{base}/oauth/authorize?{urlencode(query)}")
        first, second = seen.page, seen.context.new_page()
        # a web host leads here by a link, and is another site
        with answering(f'<!doctype html><title>host</title><a href="{link}">go</a>', "text/html") as host:
            for page in (first, second):
                page.goto(host.replace("localhost", "127.0.0.1"))
                page.get_by_text("go").click()
                page.get_by_label("Invite code").fill(code)
                page.get_by_label("Your name").fill(who)
        for page in (first, second):
            page.get_by_role("button", name="Allow").dblclick(no_wait_after=True)
            page.wait_for_url(f"{back}?code=*")
    seen.context.close()
