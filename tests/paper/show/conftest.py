"""Open a page in a real browser that has no network."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from playwright.sync_api import Browser, Page


class Opened(NamedTuple):
    """A page in the browser, with its errors and the addresses that it has asked for."""

    tab: Page
    errors: list[str]
    requests: list[str]


@pytest.fixture(scope="session")
def open_page(browser: Browser):
    """Return a function that opens a file at a width, on a device in light or dark mode."""

    def opened(report: Path, width: int = 1280, scheme: Literal["light", "dark"] = "light", **device: Any) -> Opened:
        tab = browser.new_page(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800}, **device)
        errors, requests = [], []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(report.as_uri())
        tab.wait_for_selector(".chart output:not(:empty)")
        return Opened(tab, errors, requests)

    return opened
