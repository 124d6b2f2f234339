"""Makes the pictures in the docs from finished runs: `python scripts/pictures.py RUNS_DIR`.

make real                                                          # RUNS_DIR/smollm2
interp run studies/demo.toml --out RUNS_DIR/demo
interp run --model zoo/names-6l --task ioi --n 64 --out RUNS_DIR/ioi
interp run --model zoo/hops-4l --task two-hop --n 96 --analysis depth_map \
    --analysis void_detection --analysis back_patching --set depth_map.target=zoo/hops-8l \
    --out RUNS_DIR/depth
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
    "overview": ("overview?run=demo", 900),
    "residual": ("residual?run=demo&layer=2&token=14&of=cosine+with+the+stream%3A+layer", 1050),
    "skip": ("skip?run=demo&src=1&tgt=2&layer=1", 1000),
    "lens": ("lens?run=demo&layer=3&token=15", 1250),
    "voids": ("voids?run=depth&layer=2&token=13", 1000),
    "circuit": ("circuit?run=ioi&node=a2.h3&layer=2&head=3", 1500),
    "backpatch": ("backpatch?run=depth&src=2&tgt=0", 1150),
    "depthmap": ("depthmap?run=depth&src=3&tgt=6", 1100),
    "erasure": ("erasure?run=demo&layer=2&token=13", 900),
    "analysis": ("analysis?run=demo&of=parallel_window", 900),
    "compare": ("compare?run=demo&cmp=demo%3A1&layer=2&token=15&node=logit_lens", 1150),
    "data": ("data?run=demo&of=layer_skip", 1100),
    "live": ("live", 900),
}
_LARGEST = 200_000


def take(page: Page, url: str, height: int, part: str = "body") -> bytes:
    """Return a picture of a page, or of a part of it, as a PNG of 256 colours."""
    page.set_viewport_size({"width": 1300, "height": height})
    page.goto(url)
    page.get_by_role("heading").first.wait_for()
    page.wait_for_timeout(4000)  # charts draw themselves without telling
    shot = page.screenshot() if part == "body" else page.locator(part).screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256)
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
