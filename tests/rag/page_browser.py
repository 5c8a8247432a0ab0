"""The page in headless Chromium, for tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DONE = "return document.querySelector('.turn:last-child .answer[aria-busy=\"false\"]') !== null"


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser; the test is skipped where there is none, but for CI."""
    missing = [str(p) for p in (CHROMIUM, DRIVER) if not p.exists()]
    if missing:
        reason = f"no browser test: {', '.join(missing)} missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


def look(browser: Any, width: int, theme: str) -> None:
    """Set a width and a theme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


class Page:
    """The open page, and the desk behind it."""

    def __init__(self, browser: Any, desk: Any = None) -> None:
        self.browser, self.desk = browser, desk

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(script, *values)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def click(self, selector: str, which: int = 0) -> None:
        self.run("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, which)

    def until(self, script: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def type(self, selector: str, text: str) -> None:
        self.browser.find_element("css selector", selector).send_keys(text)

    def ask(self, question: str = "What is a block?", *, wait: bool = True) -> None:
        self.type("#question", question + "\n")
        if wait:
            self.until(DONE)
