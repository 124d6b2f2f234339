"""A run folder as one self-contained page that opens offline."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from interp.folder import read_run, write_atomically


def write_report(folder: Path) -> Path:
    """Write report.html from what is on disk and return its path; raises RunError if there is no run."""
    run = read_run(folder)
    sections = [_section(folder, path, cell) for path, cell in run["cells"].items()]
    environment = Environment(loader=PackageLoader("interp.reports"), autoescape=select_autoescape(default=True))
    page = environment.get_template("report.html").render(
        run=run, sections=sections, plotly=(Path(__file__).parent / "plotly-cartesian.min.js").read_text()
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _section(folder: Path, path: str, cell: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = {
        "anchor": path.replace("/", "-").replace("@", "-"),
        "cell": cell,
        "figure": None,
        "table": None,
    }
    if cell["status"] == "ok":
        frame = pd.read_parquet(folder / path / "frame.parquet")
        figure = json.loads((folder / path / "figure.json").read_text())
        section["height"] = figure["layout"].get("height", 420)
        section["figure"] = _for_script(figure)
        section["columns"] = list(frame.columns)
        section["rows"] = [[_shown(value) for value in row] for row in frame.itertuples(index=False)]
    return section


def _shown(value: object) -> str:
    if value is pd.NA:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _for_script(value: Any) -> str:
    """Return JSON that cannot end a script element."""
    return json.dumps(value).replace("<", "\\u003c")
