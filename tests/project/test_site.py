"""The pages of `make docs` open without a network and fit a phone. That target itself finds links that lead nowhere."""

import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages_fit_a_phone_and_ask_for_nothing_outside(site, browser):
    tab = browser.new_page(offline=True, viewport={"width": 400, "height": 800})
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    for page in sorted(site.rglob("*.html")):
        tab.goto(page.as_uri(), wait_until="domcontentloaded")
        assert (page, tab.evaluate("document.documentElement.scrollWidth")) == (page, 400)
    assert not [url for url in requests if not url.startswith(("file:", "data:"))]
    tab.close()
