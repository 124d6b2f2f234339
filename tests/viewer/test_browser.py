"""The viewer in a real browser: one selection in the address, keyboard, dark, zoom, hostile text,
no request elsewhere.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from interp_viewer.menu import entries

from benchmarks.viewer import make_run
from interp.files.whole import read_json, write_json
from interp.runs.viewing import Viewer, start

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)>"
ADDRESSES = {
    **{name: f"{name}?run=hops&layer=1&token=2" for name in entries()},
    "runs": "",
    "live": "live",
    "circuit": "circuit?run=ioi",
    "compare": "compare?run=hops&cmp=hops:2&node=logit_lens&layer=1&token=2",
}
# what axe finds in Streamlit's own parts, which we cannot change
STREAMLITS = {"nested-interactive", "scrollable-region-focusable", "aria-allowed-attr"}


@pytest.fixture(scope="session")
def runs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs whose second prompt and whose vocabulary hold markup."""
    root = Path(shutil.copytree(made, tmp_path_factory.mktemp("browser") / "runs"))
    folder = root / "hops" / "zoo--hops-4l"
    rows = [
        json.loads(line) for line in (folder / "two-hop" / "prompts.jsonl").read_text().splitlines()
    ]
    rows[1] |= {"id": HOSTILE, "text": HOSTILE}
    (folder / "two-hop" / "prompts.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    tokens = read_json(folder / "two-hop" / "tokens.json")["tokens"]
    vocabulary = read_json(folder / "vocabulary.json")["vocabulary"]
    vocabulary[tokens[1][2]] = HOSTILE
    write_json(folder / "vocabulary.json", {"vocabulary": vocabulary})
    return root


@pytest.fixture(scope="session")
def viewer(runs: Path) -> Iterator[Viewer]:
    with start(runs) as running:
        yield running


@pytest.fixture(scope="session")
def deep_viewer(sizes: Path) -> Iterator[Viewer]:
    with start(sizes) as running:
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    yield context.new_page()
    context.close()


def opened(page: Any, viewer: Viewer, address: str) -> Any:
    """Open a page and wait until its picture, if it has one, is drawn."""
    page.goto(f"{viewer.url}{address}")
    page.get_by_role("heading", level=1).wait_for()
    settled(page)
    return page


def settled(page: Any) -> None:
    """Wait until nothing is being computed or drawn any more."""
    page.wait_for_timeout(300)
    page.wait_for_function(
        "() => !document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')",
        timeout=30_000,
    )
    page.wait_for_timeout(500)


def params(page: Any) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlparse(page.url).query).items()}


def drawn(page: Any) -> dict[str, float]:
    """Return where the cells of the first picture are, once it is drawn."""
    canvas = page.locator(".heat canvas[data-cells]").first
    canvas.wait_for()
    return json.loads(canvas.get_attribute("data-cells"))


def cell_at(page: Any, row: int, col: int, *, n_rows: int) -> dict[str, float]:
    """Return where a cell of the first picture is; layers grow upwards."""
    at = drawn(page)
    x = at["left"] + (col + 0.5) * at["width"]
    return {"x": x, "y": at["top"] + (n_rows - 1 - row + 0.5) * at["height"]}


def inspector(page: Any, text: str) -> Any:
    return page.get_by_test_id("stMarkdown").filter(has_text=text).first


def test_a_click_moves_the_address_once_and_back_undoes_it(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "lens?run=hops")
    page.locator(".strip button").first.wait_for()
    before = page.evaluate("history.length")
    page.locator(".heat canvas").first.click(position=cell_at(page, 2, 3, n_rows=5))
    inspector(page, "before layer 2, token 3").wait_for()
    assert (params(page)["layer"], params(page)["token"]) == ("2", "3")
    assert page.evaluate("history.length") == before + 1
    page.locator(".heat canvas").first.click(position=cell_at(page, 1, 5, n_rows=5))
    inspector(page, "before layer 1, token 5").wait_for()
    page.go_back()
    inspector(page, "before layer 2, token 3").wait_for()
    page.go_forward()
    inspector(page, "before layer 1, token 5").wait_for()
    page.reload()
    inspector(page, "before layer 1, token 5").wait_for()


def test_a_click_outlines_its_cell_and_sends_no_number_again(page: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "wide", n_taps=49, n_pos=256)
    received: list[int] = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda data: received.append(len(data))))

    def wait_for_outline(row: int) -> None:
        at = drawn(page)
        y = at["top"] + (48 - row + 0.5) * at["height"]
        page.wait_for_function(  # black, on the scale's yellow or grey
            """([canvas, x, y]) => {
                const [r, g, b] = canvas.getContext('2d').getImageData(x, y, 1, 1).data;
                return r + g + b < 200;
            }""",
            arg=[canvas().element_handle(), at["left"] + 20 * at["width"] - 2, y],
        )

    def canvas() -> Any:
        return page.locator(".heat canvas").first

    with start(tmp_path) as viewer:
        opened(page, viewer, "lens?run=wide&layer=5&token=20&of=entropy,+nats")
        wait_for_outline(5)
        assert sum(received) > 100_000
        del received[:]
        canvas().click(position=cell_at(page, 9, 20, n_rows=49))
        inspector(page, "before layer 9, token 20").wait_for()
        settled(page)
        wait_for_outline(9)
        assert 0 < sum(received) < 60_000


def test_a_pasted_link_shows_the_same_on_a_cold_server(browser: Any, runs: Path) -> None:
    with start(runs) as cold:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{cold.url}skip?run=hops&src=1&tgt=3&layer=1")
        inspector(page, "skipped layer 1, affected layer 3").wait_for()
        assert page.get_by_role("dialog").count() == 0
        context.close()


def test_the_selection_stays_when_the_page_changes(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "lens?run=hops&layer=2&token=3")
    page.get_by_role("link", name="Residual contribution").click()
    inspector(page, "layer 2, token 3").wait_for()
    assert (params(page)["layer"], params(page)["token"]) == ("2", "3")


def test_the_keyboard_alone_is_enough(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "lens?run=hops&layer=1&token=2")
    canvas = page.locator(".heat canvas").first
    for _ in range(60):
        page.keyboard.press("Tab")
        if canvas.evaluate("canvas => canvas.getRootNode().activeElement === canvas"):
            break
    else:
        pytest.fail("Tab does not reach the picture")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert "before layer 2, token 3" in page.locator(".heat .live").first.text_content()
    page.keyboard.press("Enter")
    inspector(page, "before layer 2, token 3").wait_for()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    inspector(page, "before layer 2, token 0").wait_for()
    page.locator(".strip button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    inspector(page, "before layer 2, token 1").wait_for()


def colours(page: Any) -> set[tuple[int, ...]]:
    """Return some colours of the first picture's cells."""
    found = page.locator(".heat canvas").first.evaluate(
        """canvas => { const pen = canvas.getContext('2d'), found = [];
        for (let i = 0; i < 40; i++) {
          const pixel = pen.getImageData(70 + i * 9, 12 + i * 3, 1, 1);
          found.push([...pixel.data].slice(0, 3));
        }
        return found; }"""
    )
    return {tuple(colour) for colour in found}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_in_light_and_dark(browser: Any, viewer: Viewer, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 1200})
    page = opened(
        context.new_page(),
        viewer,
        "residual?run=hops&of=cosine+with+the+stream%3A+layer&layer=1&token=2",
    )
    assert len(colours(page)) > 5
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", background)[:3])
    assert ((red + green + blue) / 3 > 128) == (scheme == "light")
    context.close()


def test_at_200_percent_nothing_is_cut_off(browser: Any, viewer: Viewer) -> None:
    context = browser.new_context(viewport={"width": 700, "height": 600}, device_scale_factor=2)
    page = opened(context.new_page(), viewer, "lens?run=hops&layer=1&token=2")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    canvas = page.locator(".heat canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.click(position=cell_at(page, 2, 3, n_rows=5))
    inspector(page, "before layer 2, token 3").wait_for()
    context.close()


@pytest.mark.parametrize("name", sorted(ADDRESSES))
def test_every_page_asks_only_this_machine_and_neither_it_nor_axe_complains(
    page: Any, viewer: Viewer, name: str
) -> None:
    """Of the hostile prompt, where it shows one; axe looks in light and in dark."""
    requests: list[str] = []
    complaints: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: (
            complaints.append(f"{said.text} {said.location['url']}")
            if said.type == "error"
            else None
        ),
    )
    opened(page, viewer, ADDRESSES[name] + ("&ex=1" if "run=hops" in ADDRESSES[name] else ""))
    hosts = {
        urlparse(url).hostname
        for url in requests
        if urlparse(url).scheme in ("http", "https", "ws", "wss")
    }
    assert hosts <= {"localhost", "127.0.0.1"}
    assert complaints == []
    assert dialogs == []
    assert page.locator("img[src='x']").count() == 0
    if name == "lens":
        page.locator(".strip").get_by_text("<img·src=x").first.wait_for()
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "light => getComputedStyle(document.querySelector('.stApp')).backgroundColor !== light",
        arg="rgb(255, 255, 255)",
    )
    settled(page)
    assert violations(page) == []


@pytest.mark.parametrize("name", ["skip", "lens", "residual", "voids", "erasure", "depthmap"])
def test_a_picture_of_eighty_layers_is_above_the_fold(
    page: Any, deep_viewer: Viewer, name: str
) -> None:
    opened(page, deep_viewer, f"{name}?run=deep&layer=40&token=1&src=40&tgt=41")
    canvas = page.locator(".heat canvas").first
    value = page.get_by_test_id("stMetricValue").first
    for width, height in ((1600, 1000), (1300, 900), (1000, 700)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(400)
        for box in (canvas.bounding_box(), value.bounding_box()):
            assert box["y"] + box["height"] <= height
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def test_a_comparison_is_above_the_fold_with_one_selection(page: Any, viewer: Viewer) -> None:
    page.set_viewport_size({"width": 1300, "height": 900})
    opened(page, viewer, "compare?run=hops&cmp=hops:1&node=layer_skip")
    pictures = page.locator(".heat canvas")
    pictures.nth(2).wait_for()
    page.wait_for_timeout(1000)
    boxes = [pictures.nth(i).bounding_box() for i in range(3)]
    assert len({(box["y"], box["height"]) for box in boxes}) == 1
    assert all(box["y"] + box["height"] <= 900 for box in boxes)
    pictures.nth(1).click(position=cell_at(page, 1, 2, n_rows=4))
    inspector(page, "prompt 0 minus prompt 1:").wait_for()
    assert (params(page)["src"], params(page)["tgt"]) == ("1", "2")


def test_a_row_of_paths_chooses_its_prompt_and_is_outlined(page: Any, viewer: Viewer) -> None:
    page.set_viewport_size({"width": 1300, "height": 900})
    opened(page, viewer, "paths?run=hops&ex=2")
    marked = "row => window.interpMarks?.get('paths')?.[0] === row"
    page.wait_for_function(marked, arg=2)
    # rows of prompts run down
    page.locator(".heat canvas").first.click(position=cell_at(page, 15 - 5, 1, n_rows=16))
    page.wait_for_url("**ex=5**")
    settled(page)
    page.wait_for_function(marked, arg=5)
    for _ in range(2):
        page.locator(".heat canvas").first.press("ArrowDown")
    page.locator(".heat canvas").first.press("Enter")
    page.wait_for_url("**ex=7**")
    settled(page)
    charts = page.get_by_test_id("stPlotlyChart")
    charts.last.wait_for()
    boxes = [charts.nth(i).bounding_box() for i in range(charts.count())]
    assert max(box["y"] + box["height"] for box in boxes) <= 900


def test_the_threshold_of_voids_moves_in_the_browser(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "voids?run=hops&ex=0")
    slider, before = page.locator(".heat .threshold").first, colours(page)
    slider.evaluate("input => { input.value = 0; input.dispatchEvent(new Event('input')); }")
    assert colours(page) != before
    assert "thr" not in params(page)
    slider.evaluate("input => { input.value = 1; input.dispatchEvent(new Event('input')); }")
    slider.evaluate("input => input.dispatchEvent(new Event('change'))")
    page.wait_for_url("**thr=1**")
    page.get_by_text("cells are void below 1.").wait_for()


def test_nodes_and_edges_of_a_circuit_can_be_clicked(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "circuit?run=ioi")
    chart = page.locator("canvas[data-zr-dom-id]").first
    chart.scroll_into_view_if_needed()
    box, found = chart.bounding_box(), set()
    for x in range(20, int(box["width"]) - 5, 30):
        for y in range(10, int(box["height"]) - 5, 4):
            chart.hover(position={"x": x, "y": y})
            if chart.evaluate("canvas => canvas.parentElement.style.cursor") != "pointer":
                continue
            chart.click(position={"x": x, "y": y})
            page.wait_for_url(re.compile("(node|edge)="))
            page.wait_for_timeout(1500)
            found |= {"node", "edge"} & params(page).keys()
            if found == {"node", "edge"}:
                return
            break
    pytest.fail(f"only {found or 'nothing'} could be clicked")


def test_a_circuit_is_driven_by_boxes_too(page: Any, viewer: Viewer) -> None:
    opened(page, viewer, "circuit?run=ioi")
    page.get_by_role("combobox", name="Edge", exact=False).last.click()
    page.get_by_role("option").first.click()
    page.wait_for_url(re.compile("edge="))
    page.get_by_text("largest of").first.wait_for()


def violations(page: Any) -> list[Any]:
    """Return what axe finds serious of ours; it looks again where something may still be faded."""
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    ours: list[Any] = []
    for _ in range(6):
        ours = [
            (v["id"], [node["html"][:200] for node in v["nodes"]][:3])
            for v in Axe().run(page, options=rules).response["violations"]
            if v["impact"] in ("serious", "critical") and v["id"] not in STREAMLITS
        ]
        if not ours:
            break
        page.wait_for_timeout(1500)
    return ours


def test_the_command_ends_its_server(runs: Path) -> None:
    command = [sys.executable, "-m", "interp.cli", "view", str(runs), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    port = str(urlparse(url).port)
    process.send_signal(signal.SIGTERM)
    with process:
        process.wait(timeout=20)
    time.sleep(0.5)
    left = subprocess.run(["pgrep", "-f", f"server.port={port}"], capture_output=True, check=False)
    assert left.returncode == 1
