"""The report, opened offline in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.files.whole import digest_of, read_json, write_json
from tests.test_runs import RUN, invoke

pytestmark = pytest.mark.browser
HOSTILE = "</script><img src=x onerror=alert(1)><a href='javascript:alert(2)'>x</a>"


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert invoke(*RUN, "--out", str(tmp_path)) == 0
    return tmp_path


def opened(page: Any, run: Path) -> None:
    assert invoke("report", str(run)) == 0
    page.goto((run / "report.html").as_uri())
    page.wait_for_selector(".figure .main-svg")


def test_it_draws_every_figure_without_a_request(page: Any, run: Path) -> None:
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("request", lambda request: requests.append(request.url))
    opened(page, run)
    n_figures = 1 + 2  # all layers at a glance, and one of each analysis
    for i in range(n_figures):
        page.locator(".figure").nth(i).scroll_into_view_if_needed()
        page.locator(".figure").nth(i).locator(".main-svg").first.wait_for()
    assert page.locator(".figure .plotly").count() == page.locator(".figure").count() == n_figures
    assert page.locator(".modebar-btn").count() > 0
    assert page.locator(".modebar-btn[data-title*='hare']").count() == 0  # no chart leaves the page
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert len(page.pdf()) > 10_000
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_hostile_text_runs_nothing(page: Any, run: Path) -> None:
    info = read_json(run / "run.json")
    for path, cell in info["cells"].items():
        cell["summary"] = HOSTILE
        cell["findings"] = [
            {"claim": HOSTILE, "value": 1.0, "measure": HOSTILE, "low": None, "high": None, "n": 3}
        ]
        drawn, record = run / path / "figure.json", read_json(run / path / "result.json")
        figure = json.loads(drawn.read_text())
        figure["layout"]["title"]["text"] = HOSTILE
        for trace in figure["data"]:
            trace["name"] = HOSTILE
        drawn.write_text(json.dumps(figure))
        record["files"]["figure.json"] = digest_of(drawn.read_bytes())
        write_json(run / path / "result.json", record)
    info["config"]["tasks"] = [HOSTILE]
    write_json(run / "run.json", info)
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened(page, run)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("[href^='javascript:'], [*|href^='javascript:']").count() == 0
    assert "onerror=alert(1)" in page.locator(".finding").first.inner_text()
    assert said == []


def test_a_printed_report_has_every_figure(page: Any, run: Path) -> None:
    page.set_viewport_size({"width": 1000, "height": 300})
    opened(page, run)
    assert page.locator(".figure .plotly").count() < page.locator(".figure").count()
    page.pdf()
    assert page.locator(".figure .plotly").count() == page.locator(".figure").count()
