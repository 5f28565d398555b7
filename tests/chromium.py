"""Chromium without a window, for tests marked ``browser``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest


def open_browser():
    """Chromium without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1600,1200"):  # fmt: skip
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A browser, for the tests of a module."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are missing in CI: .ci/install-browser installs them")
        pytest.skip("chromium or chromedriver is not installed: bash .ci/install-browser")
    found = open_browser()
    yield found
    found.quit()
