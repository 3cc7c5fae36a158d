"""A real Chromium, screens to look through, and a page whose complaints are heard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import program

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
    found = program("chromium", "chromium-browser", "google-chrome")
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
