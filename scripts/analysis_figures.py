"""Draws the figures of the analyses' pages from finished runs: `... analysis_figures.py RUNS_DIR`.

make real                                                          # RUNS_DIR/smollm2
interp run studies/smollm2.toml --out RUNS_DIR/study
interp run --model smollm2-135m --task ioi-english --analysis head_patterns --n 32 \\
    --out RUNS_DIR/heads    # and logit_attribution, to RUNS_DIR/attribution
interp run --model smollm2-135m --task ioi-english --analysis path_patching --n 24 \\
    --out RUNS_DIR/paths
interp run --model smollm2-135m --task agreement --analysis probe --n 240 --out RUNS_DIR/probe
interp run --model zoo/names-6l --task ioi --analysis feature_patching --n 48 \\
    --set feature_patching.dictionaries=names-6l/resid_pre.3 --out RUNS_DIR/features
interp run --model smollm2-135m --task plain-text --analysis affine_lens --n 5 \\
    --out RUNS_DIR/affine
interp run --model smollm2-135m --task plain-text --analysis block_gain --n 12 --out RUNS_DIR/gain
interp run --model smollm2-135m --task facts --analysis layer_order --n 24 --out RUNS_DIR/order
interp run --model zoo/hops-8l --task two-hop --n 64 --analysis layer_removal \\
    --set "layer_removal.orders=block influence,skip loss,text loss,ZD,last first,greedy" \\
    --out RUNS_DIR/removal
interp run --model zoo/hops-8l --task two-hop --analysis layer_routers --n 240 \\
    --out RUNS_DIR/routers
interp run --model zoo/hops-8l --task two-hop --analysis path_search --n 160 \\
    --out RUNS_DIR/path_search
interp run --model zoo/hops-8l --task two-hop --analysis quantization_order --n 64 \\
    --out RUNS_DIR/bits
interp run --model zoo/hops-8l --against zoo/hops-8l@step-0400 --task two-hop --n 240 \\
    --analysis checkpoint_stitch --out RUNS_DIR/stitch
interp run --model smollm2-135m --task plain-text --analysis attention_rank --n 12 \\
    --out RUNS_DIR/rank
interp run --model zoo/hops-8l --task two-hop --analysis recursion --n 64 \\
    --out RUNS_DIR/recursion
interp run --model smollm2-135m --task facts --analysis unit_importance --n 24 --out RUNS_DIR/units
interp run --model zoo/hops-8l --task two-hop --n 256 --out RUNS_DIR/neurons \\
    --analysis unit_map --set unit_map.target=zoo/hops-8l@seed1
interp run --model zoo/hops-8l --task two-hop --n 256 --out RUNS_DIR/hops \\
    --analysis depth_score --analysis integrated_gradients --analysis back_patching \\
    --analysis hop_stages --analysis entity_description --analysis sublayer_projection

Each is drawn anew from the parts of a run, so that the pages show the present layout. Names of
analyses behind RUNS_DIR draw those alone. A caption on a page names the run's model and task.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import interp
from interp.figures.narrow import fitted

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
    "affine_lens": Source("affine", "plain-text"),
    "attention_knockout": Source("smollm2", "facts"),
    "attention_rank": Source("rank", "plain-text"),
    "block_gain": Source("gain", "plain-text"),
    "block_influence": Source("study", "plain-text"),
    "checkpoint_stitch": Source("stitch", "two-hop", "zoo/hops-8l"),
    "circuit_discovery": Source("study", "ioi-english"),
    "feature_patching": Source("features", "ioi", "zoo/names-6l"),
    "head_patterns": Source("heads", "ioi-english"),
    "logit_attribution": Source("attribution", "ioi-english"),
    "path_patching": Source("paths", "ioi-english"),
    "path_search": Source("path_search", "two-hop", "zoo/hops-8l"),
    "probe": Source("probe", "agreement"),
    "depth_map": Source("study", "plain-text"),
    "layer_removal": Source("removal", "two-hop", "zoo/hops-8l"),
    "layer_skip": Source("study", "plain-text"),
    "layer_order": Source("order", "facts"),
    "logit_lens": Source("study", "facts"),
    "oracle_exit": Source("study", "facts"),
    "parallel_window": Source("study", "plain-text"),
    "patching_agreement": Source("study", "ioi-english"),
    "quantization_order": Source("bits", "two-hop", "zoo/hops-8l"),
    "recursion": Source("recursion", "two-hop", "zoo/hops-8l"),
    "relevance_patching": Source("study", "ioi-english"),
    "residual_contribution": Source("study", "plain-text"),
    "residual_erasure": Source("study", "facts"),
    "stream_statistics": Source("study", "plain-text"),
    "unit_importance": Source("units", "facts"),
    "unit_map": Source("neurons", "two-hop", "zoo/hops-8l"),
    "void_detection": Source("study", "facts"),
    "void_skip": Source("smollm2", "ioi-english"),
    "layer_routers": Source("routers", "two-hop", "zoo/hops-8l"),
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


def figure_of(runs: Path, analysis: str) -> Figure:
    """Return an analysis's figure as Plotly's JSON."""
    run, task, model = SOURCES[analysis]
    result = interp.open_run(runs / run)[model, task, analysis]
    print(f"{analysis}: {model}, {task}. {result.summary()}\n")
    return dict(json.loads(result.plot().to_json()))


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
