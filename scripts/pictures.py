"""Makes the pictures in the docs from finished runs: `python scripts/pictures.py RUNS_DIR`.

make real                                                          # RUNS_DIR/smollm2
interp run --model smollm2-135m --task ioi-english --analysis head_patterns --n 32 \
    --out RUNS_DIR/heads
interp run --model zoo/hops-8l --task two-hop --n 160 --analysis path_search \
    --out RUNS_DIR/paths
interp run --model zoo/hops-4l --task two-hop --n 96 --analysis depth_map \
    --analysis void_detection --analysis back_patching --set depth_map.target=zoo/hops-8l \
    --out RUNS_DIR/depth
interp run --model zoo/hops-8l --against zoo/hops-8l@step-0400 --task two-hop --n 240 \
    --analysis checkpoint_stitch --out RUNS_DIR/stitch
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from interp.runs.viewing import start

FOLDER = Path(__file__).parents[1] / "docs" / "images"
ADDRESSES = {
    "runs": ("", 520),
    "overview": ("overview?run=smollm2", 900),
    "residual": (
        "residual?run=smollm2&layer=22&token=8&of=cosine+with+the+stream%3A+layer",
        900,
    ),
    "skip": ("skip?run=smollm2&src=10&tgt=11&layer=10", 900),
    "lens": ("lens?run=smollm2&layer=28&token=12", 900),
    "voids": ("voids?run=smollm2&layer=24&token=12", 900),
    "circuit": ("circuit?run=smollm2&node=a23.h3&layer=23&head=3", 900),
    "heads": ("heads?run=heads&of=answer%2C+from+the+last+token", 900),
    "paths": ("paths?run=paths&ex=2", 900),
    "backpatch": ("backpatch?run=depth&src=2&tgt=0", 900),
    "depthmap": ("depthmap?run=depth&src=3&tgt=6", 900),
    "stitch": ("stitch?run=stitch&of=accuracy&over=orthogonal&layer=0", 1000),
    "erasure": ("erasure?run=smollm2&layer=14&token=3", 900),
    "analysis": ("analysis?run=smollm2&of=parallel_window", 900),
    "compare": ("compare?run=smollm2&cmp=smollm2%3A6&node=layer_skip&src=10&tgt=11", 900),
    "data": ("data?run=smollm2&of=layer_skip", 900),
    "live": ("live?run=smollm2", 900),
}
_LARGEST = 200_000


def take(page: Page, url: str, height: int, part: str = "body") -> bytes:
    """Return a picture of a page, or of a part of it, as a PNG; of 256 colours if it is large."""
    page.set_viewport_size({"width": 1300, "height": height})
    page.goto(url)
    page.get_by_role("heading").first.wait_for()
    page.wait_for_timeout(4000)  # charts draw themselves without telling
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(1000)
    shot = page.screenshot() if part == "body" else page.locator(part).screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    whole = _png(picture)
    return whole if len(whole) <= _LARGEST else _png(picture.quantize(256))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def main(runs: str) -> None:
    """Write one picture of all layers at a glance, and one of each page."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright, start(runs) as viewer:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        page = browser.new_page()
        addresses = {
            f"viewer/{name}": (f"{viewer.url}{address}", height)
            for name, (address, height) in ADDRESSES.items()
        }
        at = Path(runs).resolve()
        addresses["glance"] = ((at / "smollm2" / "report.html").as_uri(), 1300)
        for name, (address, height) in addresses.items():
            part = "#figure-depth-at-a-glance" if name == "glance" else "body"
            content = take(page, address, height, part)
            if len(content) > _LARGEST:
                sys.exit(f"{name}.png has {len(content):,} bytes; at most {_LARGEST:,} are wanted")
            (FOLDER / f"{name}.png").write_bytes(content)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
