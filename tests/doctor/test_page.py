"""The page of the doctor: complete in one file, escaped, and readable on a phone and in the dark."""

import shutil

import pytest
import torch
from playwright.sync_api import sync_playwright
from support.patients import LOSS, pictures, recalibrated
from torch import nn

import batchnorm as bn

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAME = "bad</style><script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write the page of a network with wrong statistics, a dead channel and a layer with a hostile name."""
    patient = recalibrated("plain")
    norm = patient.model.get_submodule(patient.middle)
    norm.running_mean += 3  # pyright: ignore[reportOperatorIssue]
    norm.weight.data[1] = 0  # pyright: ignore[reportIndexIssue]
    patient.model.add_module(NAME, nn.BatchNorm1d(4).eval())
    result = bn.doctor(patient.model, pictures(3, 3), loss=LOSS)
    return result.to_html(tmp_path_factory.mktemp("page") / "doctor.html")


def test_it_has_the_findings_and_a_picture_per_layer(page):
    text = page.read_text()
    assert text.count('class="channels"') == 4
    assert text.count('class="dead"') == 1
    assert "stale statistics" in text
    assert "bn.recalibrate(model, batches)" in text


def test_names_are_escaped(page):
    assert "<script>alert" not in page.read_text()
    assert "bad&lt;/style&gt;&lt;script&gt;" in page.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: the page was not opened in a browser")
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(page, width):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        backgrounds, errors = set(), []
        for scheme in ("light", "dark"):
            tab = browser.new_page(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
            tab.on("console", lambda message: errors.append(message.text))
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.goto(page.as_uri())
            backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator(".finding.error h3").first.inner_text() == "error: eval against training"
        browser.close()
    assert errors == []
    assert len(backgrounds) == 2


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    model[0].running_mean[0] = torch.nan  # pyright: ignore[reportIndexIssue]
    model[0].running_var[1] = torch.inf  # pyright: ignore[reportIndexIssue]
    page = bn.doctor(model, [torch.randn(16, 2) for _ in range(3)]).to_html(tmp_path / "page.html")
    assert "nan" not in page.read_text().partition("<svg")[2].lower()
