"""Figures as files for papers: SVG, PDF or PNG, drawn by kaleido in a Chromium, offline."""

import asyncio
import base64
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import plotly.graph_objects as go

from interp.errors import FigureError, unknown
from interp.figures.paper import PIXELS, for_paper
from interp.files.whole import write_atomically

if TYPE_CHECKING:
    from kaleido import Kaleido

Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
WIDTHS = {"one-column": 85.0, "two-columns": 178.0}  # millimetres
_IN = {"mm": 1.0, "cm": 10.0, "in": 25.4}
_NARROWEST, _WIDEST = 40.0, 400.0
_DPI = 300
_LARGEST = 3_000_000  # bytes
_PATIENCE = 60  # seconds for one figure
_FONTS = Path(__file__).parent / "fonts"
_USED = "".join(
    f"body::{side}{{content:'x';font:{weight} 9px 'Figure Sans';visibility:hidden}}"
    for side, weight in (("before", "normal"), ("after", "bold"))
)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def export(
    figure: "go.Figure | Mapping[str, Any]", path: str | Path, *, width: str = "one-column"
) -> Path:
    """Write a figure, without its title, as wide as a column of a paper; return the path.

    The path's ending sets the format: .pdf, .svg or .png (300 dpi). `width` is "one-column" (85
    mm), "two-columns" (178 mm) or a length ("120mm", "12cm", "4.7in"). Rows of panels that are too
    wide are broken; lines are dashed and bars hatched, so that they differ in grey; fonts are
    embedded. Needs the extra `export` and a Chromium or Chrome. Raises FigureError for another
    ending or width, without a browser, and for a file above 3 MB.
    """
    path = Path(path)
    kind, millimetres = format_of(path.suffix.removeprefix(".")), width_of(width)
    plain = figure.to_plotly_json() if isinstance(figure, go.Figure) else figure
    (content,) = drawn([plain], kind, width=millimetres)
    if isinstance(content, FigureError):
        raise content
    write_atomically(path, content)
    return path


def format_of(name: str) -> Format:
    """Return a known format; raise FigureError for another."""
    for known in FORMATS:
        if name.lower() == known:
            return known
    raise FigureError(unknown("format", name, FORMATS))


def width_of(text: str) -> float:
    """Return a width in millimetres; raise FigureError for what is none."""
    length = re.fullmatch(r"(\d+(?:\.\d+)?) ?(mm|cm|in)", text)
    if text not in WIDTHS and length is None:
        known = ", ".join(WIDTHS)
        raise FigureError(f"width {text!r} given; there is {known}, or a length like 120mm")
    value = WIDTHS[text] if length is None else float(length[1]) * _IN[length[2]]
    if not _NARROWEST <= value <= _WIDEST:
        raise FigureError(f"width {text!r} given; it may be {_NARROWEST:.0f}mm to {_WIDEST:.0f}mm")
    return value


def drawn(
    figures: Sequence[Mapping[str, Any]], kind: Format, *, width: float
) -> list[bytes | FigureError]:
    """Return figures as the content of files, `width` millimetres wide, drawn by one browser.

    A figure that cannot be drawn becomes its error. Raises FigureError where none could be.
    """
    browser = _browser()
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise FigureError(
            "export needs kaleido, which is not installed; pip install 'interp[export]'"
        ) from None
    with ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own in this thread
        return pool.submit(asyncio.run, _draw_all(figures, kind, width, browser)).result()


def _browser() -> str:
    """Return the path of a Chromium: BROWSER_PATH, or the first one found."""
    if given := os.environ.get("BROWSER_PATH"):
        if not Path(given).is_file():
            raise FigureError(f"BROWSER_PATH is {given}, which does not exist")
        return given
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise FigureError(
            "export needs a Chromium or Chrome, and none is on the PATH;"
            " BROWSER_PATH may say where it is"
        )
    return found


class _Page:
    """Kaleido's page, with fonts that are loaded before a figure is measured; no MathJax."""

    def generate_index(self) -> str:
        from kaleido import PageGenerator

        page = str(PageGenerator(mathjax=False).generate_index())
        return page.replace("<head>", f"<head><style>{_faces()}{_USED}</style>", 1)


async def _draw_all(
    figures: Sequence[Mapping[str, Any]], kind: Format, width: float, browser: str
) -> list[bytes | FigureError]:
    from choreographer.errors import BrowserFailedError
    from kaleido import Kaleido

    try:
        async with Kaleido(page_generator=_Page(), timeout=_PATIENCE, path=browser) as kaleido:
            return [await _draw(kaleido, figure, kind, width) for figure in figures]
    except BrowserFailedError as error:
        raise FigureError(f"{browser} does not start: {error.args[0]}") from None


async def _draw(
    kaleido: "Kaleido", figure: Mapping[str, Any], kind: Format, width: float
) -> bytes | FigureError:
    """Return the content of a figure's file, or why it cannot be drawn."""
    try:
        ready = for_paper(figure, width=width)
        wide, high = (ready["layout"][side] for side in ("width", "height"))
        options = {"format": "svg", "width": wide, "height": high}
        drawing = await kaleido.calc_fig(ready, opts=options)
        height = width * high / wide
        svg = _whole_svg(drawing.decode(), width, height)
        content = svg.encode() if kind == "svg" else await _print(kaleido, svg, kind, width, height)
    except FigureError as error:
        return error
    except (RuntimeError, ValueError, TimeoutError) as error:
        return FigureError(f"a figure cannot be drawn: {' '.join(str(error).split())[:200]}")
    if len(content) > _LARGEST:
        size = f"{len(content) / 1e6:.1f} MB"
        return FigureError(
            f"a figure is {size} as {kind}; at most {_LARGEST / 1e6:.0f} MB are kept"
        )
    return content


async def _print(kaleido: "Kaleido", svg: str, kind: Format, width: float, height: float) -> bytes:
    """Return an SVG as a page of a PDF or as a PNG, with its own fonts.

    Kaleido's PDFs and PNGs are made of SVGs that are pictures, which cannot load a font.
    """
    tab = await kaleido.create_tab("")
    try:
        page = f"<style>body{{margin:0}}svg{{display:block}}</style>{svg}"
        ready = f"document.body.innerHTML = {json.dumps(page)}; document.fonts.ready.then(() => 1)"
        await tab.send_command("Runtime.evaluate", {"expression": ready, "awaitPromise": True})
        if kind == "pdf":
            margins = {f"margin{side}": 0 for side in ("Top", "Bottom", "Left", "Right")}
            size = {"paperWidth": width / 25.4, "paperHeight": height / 25.4}
            how = {"printBackground": True, "pageRanges": "1", **margins, **size}
            answer = await tab.send_command("Page.printToPDF", how)
        else:
            area = {"x": 0, "y": 0, "width": width * PIXELS, "height": height * PIXELS}
            how = {"clip": {**area, "scale": _DPI / 96}, "captureBeyondViewport": True}
            answer = await tab.send_command("Page.captureScreenshot", how)
    finally:
        await kaleido.close_tab(tab.target_id)
    if "result" not in answer:
        raise RuntimeError(str(answer.get("error")))
    return base64.b64decode(answer["result"]["data"])


def _whole_svg(svg: str, width: float, height: float) -> str:
    """Return an SVG with its size in millimetres and its fonts inside."""
    sized = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"',
        rf'\1 width="{width:g}mm" height="{height:.2f}mm"',
        svg,
        count=1,
    )
    head, end, rest = sized.partition(">")
    return f"{head}{end}<style>{_faces(is_bold='bold' in svg)}</style>{rest}"


def _faces(*, is_bold: bool = True) -> str:
    """Return the fonts as rules of CSS."""
    return "".join(_rules(["normal", "bold"] if is_bold else ["normal"]))


def _rules(weights: Sequence[str]) -> Iterator[str]:
    for weight in weights:
        name = "bold" if weight == "bold" else "regular"
        font = base64.b64encode((_FONTS / f"figure-sans-{name}.woff2").read_bytes()).decode()
        yield (
            f"@font-face{{font-family:'Figure Sans';font-weight:{weight};"
            f"src:url(data:font/woff2;base64,{font}) format('woff2')}}"
        )
