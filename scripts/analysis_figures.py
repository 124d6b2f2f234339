"""Draws the figures of the analyses' pages from finished runs: `... analysis_figures.py RUNS_DIR`.

make real                                                          # RUNS_DIR/smollm2
interp run studies/smollm2.toml --out RUNS_DIR/study
interp run --model smollm2-135m --task ioi-english --analysis head_patterns --n 32 \\
    --out RUNS_DIR/heads
interp run --model zoo/hops-8l --task two-hop --n 256 --out RUNS_DIR/hops \\
    --analysis depth_score --analysis integrated_gradients --analysis back_patching \\
    --analysis hop_stages --analysis entity_description --analysis sublayer_projection

Each is drawn anew from the parts of a run, so that the pages show the present layout. Names of
analyses behind RUNS_DIR draw those alone. A caption on a page names the run's model and task.
"""

import io
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import interp

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images" / "analyses"
PLOTLY = ROOT / "interp" / "reports" / "plotly-cartesian.min.js"

Figure = dict[str, Any]


class Source(NamedTuple):
    """The cell of a run that a figure is of."""

    run: str
    task: str
    model: str = "smollm2-135m"


SOURCES = {
    "activation_patching": Source("study", "ioi-english"),
    "attention_knockout": Source("smollm2", "facts"),
    "block_influence": Source("study", "plain-text"),
    "circuit_discovery": Source("study", "ioi-english"),
    "head_patterns": Source("heads", "ioi-english"),
    "depth_map": Source("study", "plain-text"),
    "layer_skip": Source("study", "plain-text"),
    "logit_lens": Source("study", "facts"),
    "oracle_exit": Source("study", "facts"),
    "parallel_window": Source("study", "plain-text"),
    "patching_agreement": Source("study", "ioi-english"),
    "relevance_patching": Source("study", "ioi-english"),
    "residual_contribution": Source("study", "plain-text"),
    "residual_erasure": Source("study", "facts"),
    "stream_statistics": Source("study", "plain-text"),
    "void_detection": Source("study", "facts"),
    "void_skip": Source("smollm2", "ioi-english"),
    "depth_score": Source("hops", "two-hop", "zoo/hops-8l"),
    "integrated_gradients": Source("hops", "two-hop", "zoo/hops-8l"),
    "back_patching": Source("hops", "two-hop", "zoo/hops-8l"),
    "entity_description": Source("hops", "two-hop", "zoo/hops-8l"),
    "hop_stages": Source("hops", "two-hop", "zoo/hops-8l"),
    "sublayer_projection": Source("hops", "two-hop", "zoo/hops-8l"),
}
_WIDTH = 800
_SCALE = 1.6  # pixels of a point
_LARGEST = 60_000
_LETTER = 6.5  # pixels of a letter, about
_LINE = 18  # pixels of a line


def figure_of(runs: Path, analysis: str) -> Figure:
    """Return an analysis's figure as Plotly's JSON."""
    run, task, model = SOURCES[analysis]
    result = interp.open_run(runs / run)[model, task, analysis]
    print(f"{analysis}: {model}, {task}. {result.summary()}\n")
    return dict(json.loads(result.plot().to_json()))


def fitted(figure: Figure) -> Figure:
    """Make a figure fit the width of a page: its legend below, long titles in lines."""
    layout, names = figure["layout"], {trace.get("name") for trace in figure["data"]}
    title, margin = layout["title"], layout["margin"]
    text = in_lines(title["text"], _WIDTH // 8)
    title |= {"text": text, "font": {"size": 15}, "x": 0.01, "y": 1}
    for bar in (trace.get("colorbar", {}) for trace in figure["data"]):
        if "title" in bar:
            bar["title"]["text"] = in_lines(bar["title"]["text"], 15)
    title |= {"yref": "container", "yanchor": "top", "pad": {"t": 12 + 8 * text.count("<br>")}}
    margin |= {"l": 60, "r": 20, "t": 22 + _LINE * (1 + text.count("<br>") + _narrow(layout))}
    if layout.get("showlegend", True) and len(names) > 1:
        rows = sum(len(name or "") * _LETTER + 60 for name in names) // _WIDTH + 1
        room = 20 + int(rows) * _LINE
        layout["legend"] = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        layout["height"] = layout.get("height", 420) + room
        margin["b"] += room
    return figure


def in_lines(text: str, n_letters: int) -> str:
    """Break a text into lines of at most so many letters, between words."""
    parts = text.split("<br>")
    how: dict[str, Any] = {"width": max(n_letters, 1), "break_long_words": False}
    return "<br>".join(line for part in parts for line in textwrap.wrap(part, **how))


def _narrow(layout: dict[str, Any]) -> int:
    """Put the words of panels in lines as wide as the panel, and thin out their ticks.

    Return the number of lines above the panels.
    """
    middles, most = {}, 0
    for name, axis in layout.items():
        if name.startswith("xaxis"):
            low, high = axis.get("domain", (0, 1))
            width = (high - low) * (_WIDTH - 150)
            middles[round((low + high) / 2, 3)] = int(width / _LETTER)
            if text := axis.get("title", {}).get("text"):
                axis["title"]["text"] = in_lines(text, int(width / _LETTER))
            if width < 160 and axis.get("dtick") == 5:
                axis["dtick"] = 10
    for note in layout.get("annotations", []):
        if note.get("xref") == note.get("yref") == "paper" and round(note["x"], 3) in middles:
            text = in_lines(note["text"], middles[round(note["x"], 3)])
            note |= {"text": text, "font": {"size": 13}}
            most = max(most, 1 + text.count("<br>"))
    return most


def drawn(page: Page, figure: Figure) -> bytes:
    """Return a figure as a PNG of as many colours as fit into its size; empty if none does."""
    height = figure["layout"].get("height", 420)
    page.set_content(f'<div id="figure" style="width: {_WIDTH}px; height: {height}px"></div>')
    page.add_script_tag(path=PLOTLY)
    page.evaluate(
        "({data, layout}) => Plotly.newPlot('figure', data, layout, {staticPlot: true})", figure
    )
    shot = Image.open(io.BytesIO(page.locator("#figure").screenshot())).convert("RGB")
    pictures = (_png(shot, n_colours) for n_colours in (256, 128, 64))
    return next((png for png in pictures if len(png) <= _LARGEST), b"")


def _png(shot: Image.Image, n_colours: int) -> bytes:
    content = io.BytesIO()
    few = shot.quantize(n_colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def main(runs: str, *only: str) -> None:
    """Write a picture per analysis, or those of the analyses named."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        page = browser.new_page(device_scale_factor=_SCALE)
        for analysis in only or SOURCES:
            content = drawn(page, fitted(figure_of(Path(runs), analysis)))
            if not content:
                sys.exit(f"{analysis} takes more than {_LARGEST:,} bytes")
            (FOLDER / f"{analysis}.png").write_bytes(content)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
