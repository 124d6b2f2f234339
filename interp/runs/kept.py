"""Comparisons kept in a run folder, for its report and the viewer: `comparisons/*.json`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.files.whole import digest_of, read_json, write_json
from interp.runs.folder import folder_name

if TYPE_CHECKING:
    from interp.runs.run_comparison import RunComparison

FOLDER = "comparisons"


def keep_comparison(comparison: "RunComparison", folder: Path) -> Path:
    """Write a comparison into a run folder, in place of an earlier one of the same, and return it.

    It holds the analysis, the names of the runs, the findings, and the figure as Plotly's JSON.
    """
    names = json.dumps([comparison.analysis, *comparison.runs])
    name = folder_name(comparison.analysis)  # a label may be no file's name
    path = folder / FOLDER / f"{name}~{digest_of(names.encode())[:10]}.json"
    content = {
        "analysis": comparison.analysis,
        "runs": list(comparison.runs),
        "findings": [finding.to_json() for finding in comparison.findings()],
        "figure": json.loads(str(comparison.plot().to_json())),
    }
    path.parent.mkdir(exist_ok=True)
    write_json(path, content)
    return path


def kept_comparisons(folder: Path) -> list[dict[str, Any]]:
    """Return what `keep_comparison` wrote, by name; what cannot be read is left out."""
    kept = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            content = read_json(path)
        except RunError:
            continue
        if {"analysis", "runs", "findings", "figure"} <= set(content):
            kept.append({"id": f"difference-{path.stem.replace('~', '-')}", **content})
    return kept
