"""The pages in real Chromium: they work, on a phone too, without a complaint of the browser about its own rules."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import SCREENS, Watched
from tests.conftest import Stack
from tests.stack.test_oauth import invite, name
from tests.test_admin import status

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]


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
