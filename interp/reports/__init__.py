"""A run folder as one page that opens offline, as JSON and as Markdown, all from one object."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from interp.errors import RunError, unknown
from interp.figures.narrow import fitted
from interp.figures.words import called, value_text
from interp.files.whole import write_atomically
from interp.reports.comparison import comparison_figure
from interp.reports.flat import flatten
from interp.reports.gather import gather
from interp.runs.at_a_glance import glance
from interp.runs.evidence import evidence
from interp.runs.folder import read_file
from interp.runs.kept import kept_comparisons
from interp.runs.viewing import PORT

FORMATS = ("html", "json", "md")
GLANCE = "depth-at-a-glance"
_HERE = Path(__file__).parent


def schema() -> dict[str, Any]:
    """Return the JSON Schema of report.json."""
    text = (_HERE / "report.schema.json").read_text(encoding="utf-8")
    published: dict[str, Any] = json.loads(text)
    return published


def write_report(folder: Path, kind: str = "html") -> Path:
    """Write report.json and, from it, the requested format; return its path.

    Raises RunError if there is no run; damaged or missing files are warnings in the report.
    """
    if kind not in FORMATS:
        raise RunError(unknown("format", kind, FORMATS))
    report = gather(folder)
    write_atomically(
        folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    )
    if kind != "json":
        environment = _environment(is_page=kind == "html")
        environment.filters["called"] = called(_names(report)).__getitem__
        page_of = environment.get_template(f"report.{kind}")
        figures, shared = _figures(folder, report) if kind == "html" else ({}, None)
        page = page_of.render(
            report=report,
            figures=figures,
            template=_for_script(shared),
            embedded=_for_script(report),
            viewer=f"http://localhost:{PORT}/",
            plotly=(_HERE / "plotly-cartesian.min.js").read_text(),
        )
        write_atomically(folder / f"report.{kind}", page)
    return folder / f"report.{kind}"


def _names(report: dict[str, Any]) -> list[str]:
    """Return the names of all models and tasks."""
    config = report["provenance"]["config"]
    of_sections = [section[of] for section in report["analyses"] for of in ("model", "task")]
    return [*config["models"], *config["tasks"], *of_sections]


def _environment(*, is_page: bool) -> Environment:
    escape = select_autoescape(default=True) if is_page else False
    environment = Environment(
        loader=PackageLoader("interp.reports"),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value_text"] = value_text
    environment.filters["evidence"] = evidence
    environment.filters["setting"] = lambda value: (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    environment.filters["cell"] = lambda value: (
        value_text(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    )
    return environment


def _figures(folder: Path, report: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], Any]:
    """Return the page's figures by section, and the template that they share."""
    drawn = {
        comparison["id"]: comparison_figure(comparison) for comparison in report["comparisons"]
    }
    drawn |= {one["id"]: fitted(one["figure"]) for one in kept_comparisons(folder)}
    if (at_a_glance := glance(folder, report)) is not None:
        drawn[GLANCE] = json.loads(at_a_glance.to_json())
    drawn |= {
        s["id"]: fitted(json.loads(read_file(folder / s["figure"]["file"])))
        for s in report["analyses"]
        if s["figure"]
    }
    is_flat = {name: flatten(figure) for name, figure in drawn.items()}
    templates = [figure["layout"].get("template") for figure in drawn.values()]
    shared = next((template for template in templates if template is not None), None)
    for figure in drawn.values():
        if shared is not None and figure["layout"].get("template") == shared:
            figure["layout"]["template"] = "shared"
    return {
        name: {
            "is_flat": is_flat[name],
            "height": int(figure["layout"].get("height", 420)),
            "script": _for_script(figure),
        }
        for name, figure in drawn.items()
    }, shared


def _for_script(value: Any) -> str:
    """Return JSON that cannot end a script element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
