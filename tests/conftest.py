"""Small runs stay in one thread, since the suite shares its machine; property tests draw the same cases every time.

All tests share one browser, since Playwright starts once a process.
"""

import shutil

import pytest
import torch
from hypothesis import settings

from batchnorm.kernels import dispatch

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


@pytest.fixture(autouse=True, scope="session")
def _one_thread_from_the_start():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_tensors_too(monkeypatch):
    """Make the kernel run small tensors in inference too, where torch is faster."""
    monkeypatch.setattr(dispatch, "FEWEST_IN_INFERENCE", 1)


@pytest.fixture(scope="session")
def browser():
    """Return a real browser. Give its pages `offline=True`."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: no page was opened in a browser (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright  # the tests of the library run without it

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()
