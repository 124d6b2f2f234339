"""What a run says of every layer, as one figure: the top of its report, and `RunFolder.plot`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.errors import RunError
from interp.figures.columns import Beside, Column
from interp.figures.glance import MOST_COLUMNS, draw_glance
from interp.figures.strips import STRIPS, Strip, StripOf
from interp.figures.words import called, counted
from interp.runs.evidence import UNTRAINED
from interp.runs.folder import Cell
from interp.runs.tables import read_frame

_FEWEST = 2  # strips, below which there is nothing to see at a glance
# how the measures begin of findings that say what a strip shows, where they are not the first
_MEASURES = {
    "layer_skip, later": "relative change",
}

Section = Mapping[str, Any]


def in_report(section: Section) -> str:
    """Return the address of a section in its report."""
    return f"#{section['id']}"


def glance(
    folder: Path,
    report: Mapping[str, Any],
    *,
    link_of: Callable[[Section], str] = in_report,
    read: Callable[[Cell], pd.DataFrame] | None = None,
) -> go.Figure | None:
    """Return the figure of a report's sections, a column per model and task; None if it is empty.

    Of more than three, those with the most strips are drawn. Titles and claims lead to `link_of`
    their section; `read` returns a cell's table, or raises RunError.
    """
    frame_of = cache(partial(_frame, read or partial(read_frame, folder)))
    pairs = dict.fromkeys((s["model"], s["task"]) for s in report["analyses"])
    models = report["provenance"]["models"]
    columns: dict[tuple[str, str], Column] = {}
    for model, task in pairs:
        here = [s for s in report["analyses"] if (s["model"], s["task"]) == (model, task)]
        strips = _strips(here, frame_of, link_of)
        n_layers = models.get(model, {}).get("layers")
        if len(strips) >= _FEWEST and n_layers:
            columns[model, task] = Column(_name(model, task, pairs), n_layers, strips)
    most = sorted(columns, key=lambda pair: -len(columns[pair].strips))[:MOST_COLUMNS]
    drawn = [columns[pair] for pair in columns if pair in most]
    if not drawn:
        return None
    return draw_glance(drawn, title="Depth at a glance", about=_about(drawn, most))


def _about(drawn: Sequence[Column], pairs: Sequence[tuple[str, str]]) -> str:
    """Return what stands below the title."""
    depths = sorted({column.n_layers for column in drawn})
    what = [
        ", ".join(called(model for model, _ in pairs).values()),
        ", ".join(called(task for _, task in pairs).values()),
        " and ".join(counted(depth, "layer") for depth in depths),
        "shaded: second half of the layers",
    ]
    if any(beside.untrained for column in drawn for beside in column.strips.values()):
        what.append("grey: the untrained model")
    return " · ".join(what)


def _name(model: str, task: str, pairs: Mapping[tuple[str, str], Any]) -> str:
    """Return what distinguishes a column from the others."""
    models, tasks = (called(pair[i] for pair in pairs) for i in (0, 1))
    parts = [models[model]] if len(models) > 1 else []
    return ", ".join([*parts, tasks[task]] if len(tasks) > 1 or not parts else parts)


def _strips(
    sections: Sequence[Section],
    frame_of: Callable[[Cell], pd.DataFrame | None],
    link_of: Callable[[Section], str],
) -> dict[str, Beside]:
    """Return what can be drawn of a model and task, by question; what is damaged is left out."""
    strips = {}
    for key, make in STRIPS.items():
        analysis = key.partition(", ")[0]
        section = next((s for s in sections if s["analysis"] == analysis), None)
        if section is None:
            continue
        cell = Cell(*(section[of] for of in ("model", "task", "analysis", "label")))
        twin = replace(cell, model=f"{cell.model}{UNTRAINED}")
        strip, untrained = (_strip(make, frame_of(each)) for each in (cell, twin))
        if strip is not None:
            strips[key] = Beside(strip, _claim(section, key), link_of(section), untrained)
    return strips


def _strip(make: StripOf, frame: pd.DataFrame | None) -> Strip | None:
    try:
        return None if frame is None else make(frame)
    except KeyError:  # tables of interp 0.1 have fewer columns
        return None


def _frame(read: Callable[[Cell], pd.DataFrame], cell: Cell) -> pd.DataFrame | None:
    """Return a cell's table; None where it is missing or damaged."""
    try:
        return read(cell)
    except RunError:
        return None


def _claim(section: Section, key: str) -> str:
    """Return the claim that stands beside a strip: that of what it shows, else the first."""
    found, measure = section["findings"], _MEASURES.get(key, "")
    of_strip = [f for f in found if (f.get("measure") or "").startswith(measure)]
    chosen = of_strip or ([] if ", " in key else found)
    return str(chosen[0]["claim"]) if chosen else ""
