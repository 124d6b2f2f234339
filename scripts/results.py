"""Write a page's tables of findings from a run: `python -m scripts.results runs/smollm2 PAGE.md`.

What stands above the marker is written by hand and kept.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.runs.evidence import beside_untrained, evidence, findings_of, is_control
from interp.runs.folder import cells_of, read_run

MARKER = "<!-- What follows is written by scripts/results.py. -->"


def rows(name: str, cell: Mapping[str, Any]) -> Iterator[str]:
    """Yield a cell's rows: its findings, or why there is none."""
    link = f"[{name}](../analyses/{name.partition('@')[0]}.md)"
    if cell["status"] != "ok":
        yield f"| {link} | {cell['status']}: {_cell(cell.get('reason') or '')} | |"
        return
    for i, finding in enumerate(findings_of(cell)):
        beside = "; ".join(map(str, evidence(finding)))
        yield f"| {link if i == 0 else ''} | {_cell(finding['claim'])} | {_cell(beside)} |"


def tables(folder: Path) -> Iterator[str]:
    """Yield the lines of a table per task and model."""
    run = read_run(folder)
    cells = cells_of(run)
    beside = beside_untrained({cell.path: record for cell, record in cells.items()})
    models = {cell.model for cell in cells}
    last = None
    for cell in cells:
        if is_control(cell.model, models):
            continue
        if (cell.task, cell.model) != last:
            last = cell.task, cell.model
            title = ["", f"## {cell.task}, {cell.model}", ""]
            yield from [*title, "| analysis | finding | the numbers |", "| --- | --- | --- |"]
        yield from rows(cell.name, beside[cell.path])


def _cell(text: str) -> str:
    """Return a text on one line; claims of earlier versions get real minus signs."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", " ".join(text.replace("|", "\\|").split()))


def main() -> None:
    """Replace what stands below the page's marker."""
    folder, page = Path(sys.argv[1]), Path(sys.argv[2])
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = text.partition(MARKER)[0].rstrip()
    written = "\n".join(tables(folder))
    page.write_text(f"{kept}\n\n{MARKER}\n{written}\n".lstrip(), encoding="utf-8")


if __name__ == "__main__":
    main()
