"""Open a page in a real browser that has no network."""

import shutil
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Opened(NamedTuple):
    """A page in the browser, with its errors and the addresses that it has asked for."""

    tab: Page
    errors: list[str]
    requests: list[str]


@pytest.fixture(scope="session")
def open_page():
    """Return a function that opens a file."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: the page was not opened in a browser (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])

        def opened(report):
            tab = browser.new_context(offline=True, viewport={"width": 1280, "height": 800}).new_page()
            errors, requests = [], []
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(report.as_uri())
            tab.wait_for_selector(".plotly .scatterlayer .trace path.js-line")
            return Opened(tab, errors, requests)

        yield opened
        browser.close()
