"""The same analysis of several models or tasks, side by side."""

import json
from typing import Any

from plotly.subplots import make_subplots

from interp.figures.plots import COLOURS, titled

Comparison = dict[str, Any]


def compare(sections: list[dict[str, Any]], models: dict[str, Any]) -> list[Comparison]:
    """Return a comparison for every analysis that has numbers of several models or tasks."""
    comparisons = []
    names = dict.fromkeys((section["analysis"], section["label"]) for section in sections)
    for analysis, label in names:
        same = [s for s in sections if (s["analysis"], s["label"]) == (analysis, label)]
        numbers = [
            f
            for s in same
            for f in s["findings"]
            if f.get("value") is not None and f.get("measure")
        ]
        measures = list(dict.fromkeys(finding["measure"] for finding in numbers))
        if len(same) < 2 or not measures:
            continue
        rows = [
            {
                "section": s["id"],
                "model": s["model"],
                "task": s["task"],
                "layers": models.get(s["model"], {}).get("layers"),
                "n_prompts": s["n_prompts"],
                "values": [_value(s, measure) for measure in measures],
            }
            for s in same
        ]
        name = "-".join(filter(None, ("compare", analysis, label)))
        comparisons.append(
            {"id": name, "analysis": analysis, "label": label, "measures": measures, "rows": rows}
        )
    return comparisons


def _value(section: dict[str, Any], measure: str) -> dict[str, Any] | None:
    for finding in section["findings"]:
        if finding.get("measure") == measure and finding.get("value") is not None:
            return {key: finding.get(key) for key in ("value", "low", "high", "n")}
    return None


def comparison_figure(comparison: Comparison) -> dict[str, Any]:
    """Return a figure of a comparison: a panel per measure, a dot per model and task."""
    rows, measures = comparison["rows"], comparison["measures"]
    names = [_name(row, rows) for row in rows]
    figure = make_subplots(
        rows=len(measures),
        cols=1,
        subplot_titles=measures,
        vertical_spacing=min(0.3, 0.5 / len(measures)),
    )
    for i, _ in enumerate(measures, 1):
        there = [
            (name, row["values"][i - 1])
            for name, row in zip(names, rows, strict=True)
            if row["values"][i - 1]
        ]
        above, below = (
            [abs((v[end] if v[end] is not None else v["value"]) - v["value"]) for _, v in there]
            for end in ("high", "low")
        )
        figure.add_scatter(
            x=[v["value"] for _, v in there],
            y=[name for name, _ in there],
            mode="markers",
            showlegend=False,
            marker={"color": COLOURS[0], "size": 9},
            error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below},
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
            row=i,
            col=1,
        )
        figure.update_xaxes(rangemode="tozero", row=i, col=1)
        figure.update_yaxes(
            categoryorder="array", categoryarray=names[::-1], automargin=True, row=i, col=1
        )
    figure.update_layout(height=110 + len(measures) * (70 + 32 * len(rows)))
    figure.update_annotations(font_size=13)
    drawn: dict[str, Any] = json.loads(titled(figure, "").to_json())
    return drawn


def _name(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return what distinguishes a row from the others."""
    parts = [key for key in ("model", "task") if len({other[key] for other in rows}) > 1] or [
        "model"
    ]
    return ", ".join(str(row[key]) for key in parts)
