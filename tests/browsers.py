"""Chromium, for tests of pages: `.ci/page-tests` runs them where none of what they need may be missing."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


needs_browser = pytest.mark.skipif(
    not (find_spec("selenium") and shutil.which("chromium") and shutil.which("chromedriver")),
    reason="selenium, chromium and chromedriver are not all installed",
)
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
# Run in the page: the contrast of each of its texts.
_CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
# The lowest that WCAG 2 takes for readable (level AA).
_LOWEST_CONTRAST = 4.5
# Trainings and page loads may share their cores with other work.
PATIENCE = 600


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A driver of selenium, with what it keeps in an own folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


def wait_for(browser: Any, condition: Callable[[], Any]) -> Any:
    """What a condition returns, once that is something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE).until(lambda _: condition())


def show_as(browser: Any, width: int, colours: str) -> None:
    """Gives the browser a screen of this width, and a user who wants `light` or `dark` colours."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def assert_readable(browser: Any) -> None:
    """The page is no wider than the screen, and every text that is seen stands out from its background."""
    assert not browser.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
    # Colours of what was just chosen or pressed take a moment to change.
    for _ in range(20):
        faint = [found for found in browser.execute_script(_CONTRAST) if found[0] < _LOWEST_CONTRAST]
        if not faint:
            return
        time.sleep(0.2)
    assert faint == []
