"""A hook of mkdocs: every tutorial becomes a page with outputs, executed when it is out of date.

With DOCS_FAST in the environment, and by `mkdocs serve`, nothing is executed: a tutorial without a
page of now is shown as it is written, and says so.

The slow tests take their pages from here too, so that a tutorial is executed once, by whichever
comes first.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from interp.files.whole import write_atomically

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
CACHE = ROOT / ".cache" / "tutorials"
AT_ONCE = 2
_SECONDS = 55  # that a tutorial takes, about
_FAST = "DOCS_FAST"
_AS_WRITTEN = """!!! note "Not executed"
    This page shows the tutorial as it is written. `make docs` runs it and shows what comes out.

"""
_log = logging.getLogger("mkdocs.hooks.tutorials")
_SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
_PLOTLY = ROOT / "interp" / "reports" / "plotly-cartesian.min.js"
_FIGURE = "application/vnd.plotly.v1+json"
_DRAW = """
<script src="../plotly.js"></script>
<script>
for (const data of document.querySelectorAll('.tutorial-figure')) {
  const figure = JSON.parse(data.textContent);
  const settings = {responsive: true, displaylogo: false};
  Plotly.newPlot(data.previousElementSibling, figure.data, figure.layout, settings);
}
</script>
"""


def on_startup(*, command: str, **_: object) -> None:
    """Let `mkdocs serve` execute nothing."""
    if command == "serve":
        os.environ.setdefault(_FAST, "1")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every tutorial, and the one script that draws their figures."""
    is_fast = bool(os.environ.get(_FAST))
    if n := sum(not _kept(notebook).exists() for notebook in NOTEBOOKS):
        minutes = -(-n * _SECONDS // AT_ONCE // 60)
        takes = f"Executing {n} tutorials takes about {minutes} min; `make docs-fast` executes none"
        _log.info(f"{n} tutorials are shown unexecuted" if is_fast else takes)
    make = page_at_hand if is_fast else page_of
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pages = [pool.submit(make, notebook) for notebook in NOTEBOOKS]
    for notebook, page in zip(NOTEBOOKS, pages, strict=True):
        try:
            content = page.result()
        except CellExecutionError as error:
            raise PluginError(f"tutorials/{notebook.name} fails: {error}") from None
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=content))
    files.append(File.generated(config, "tutorials/plotly.js", content=_PLOTLY.read_bytes()))
    return files


def page_at_hand(path: Path) -> str:
    """Return a tutorial as Markdown without executing it: as executed before, or as written."""
    kept = _kept(path)
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    title, _, rest = render(nbformat.read(path, as_version=4)).partition("\n")
    return f"{title}\n\n{_AS_WRITTEN}{rest}"


def page_of(path: Path) -> str:
    """Return a tutorial as Markdown, from the cache if neither it nor the library has changed."""
    kept, began = _kept(path), time.monotonic()
    if not kept.exists():
        page = render(executed(path))
        for old in CACHE.glob(f"{path.stem}-*.md"):
            old.unlink()
        write_atomically(kept, page)
        _log.info("%s executed in %.0f s", path.name, time.monotonic() - began)
    return kept.read_text(encoding="utf-8")


def _kept(path: Path) -> Path:
    """Return where a tutorial's page is kept, by all that it depends on."""
    sources = [path, *sorted((ROOT / "interp").rglob("*.py")), Path(__file__)]
    data = [
        f"{file} {file.stat().st_size}".encode() for file in sorted((ROOT / "data").rglob("*.*"))
    ]
    digest = hashlib.sha256(b"".join([*map(Path.read_bytes, sources), *data])).hexdigest()
    return CACHE / f"{path.stem}-{digest[:16]}.md"


def solutions_of(notebook: Any) -> list[str]:
    """Return the code of the folded solutions in a tutorial's words, in order."""
    words = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return [code for text in words for code in _SOLUTION.findall("".join(text))]


def executed(path: Path) -> Any:
    """Run all cells of a tutorial, then its solutions, in an empty folder; return it with outputs.

    Outputs of solutions are left out.
    """
    here = {"PLOTLY_RENDERER": "plotly_mimetype", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    notebook.cells = [*cells, *map(nbformat.v4.new_code_cell, solutions_of(notebook))]
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute(
            env={"HF_HUB_OFFLINE": "1"} | os.environ | here
        )
    notebook.cells = cells
    return notebook


def render(notebook: Any) -> str:
    """Return an executed notebook as Markdown, with live figures and links to the docs' pages."""
    blocks = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(
                r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.md)", cell.source.replace("](../docs/", "](../")
            )
            blocks.append(text)
        else:
            blocks += [f"```python\n{cell.source}\n```", *map(_output, cell.outputs)]
    return "\n\n".join(filter(None, blocks)) + _DRAW


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.get("data", {})
    if _FIGURE in data:
        figure = data[_FIGURE]
        height = figure["layout"].get("height", 420)
        script = json.dumps({key: figure[key] for key in ("data", "layout")}).replace(
            "<", "\\u003c"
        )
        return (
            f'<div style="height: {height}px"></div>\n'
            f'<script type="application/json" class="tutorial-figure">{script}</script>'
        )
    if "text/html" in data:
        return f"<div>{' '.join(data['text/html'].split())}</div>"
    return f"```text\n{data['text/plain'].rstrip()}\n```" if "text/plain" in data else ""
