"""The report, opened offline in a real browser."""

import shutil
from pathlib import Path

import pytest

from tests.test_runs import RUN, invoke

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_draws_every_figure_without_a_request(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    assert invoke(*RUN, "--out", str(tmp_path)) == 0
    assert invoke("report", str(tmp_path)) == 0
    with sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_selector(".figure .main-svg")
        assert page.locator(".figure .plotly").count() == page.locator(".figure").count() == 2
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
        assert len(page.pdf()) > 10_000
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
