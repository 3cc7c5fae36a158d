"""The pages in real Chromium: they work, on a phone too, without a complaint of the browser about its own rules."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import Stack
from tests.stack.test_oauth import invite, name
from tests.test_admin import status

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1100, "height": 900}, "color_scheme": "light"},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": "dark",
        "is_mobile": True,
        "has_touch": True,
    },
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        assert not os.environ.get("CI"), "CI needs Chromium: apt-get install chromium"
        pytest.skip("there is no Chromium on the PATH")
    with sync_playwright() as driver:
        # Chromium's own sandbox needs rights that a root shell in a container has not
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


class Watched:
    """A page, and what the browser complained about."""

    def __init__(self, browser: Browser, screen: str, **more: Any) -> None:
        self.context = browser.new_context(ignore_https_errors=True, **SCREENS[screen], **more)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def fits(self) -> bool:
        """Tell whether nothing has to be scrolled sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


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
