"""All that a report says, as one JSON object from which the page and Markdown are made."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from interp import __version__
from interp.errors import RunError
from interp.figures.words import called
from interp.files.whole import read_json
from interp.reports.comparison import compare
from interp.runs.commands import command_of
from interp.runs.evidence import beside_untrained, findings_of, is_control
from interp.runs.folder import Cell, read_file, read_run
from interp.runs.kept import kept_comparisons
from interp.runs.questions import Declared, declared_in_files
from interp.runs.tables import read_frame
from interp.runs.viewing import address

SCHEMA = 1
MOST_ROWS = 200
_HALVES = ("float16", "bfloat16")  # types that "auto" may compute in another one
_MANY = 10  # sections; in reports of more, tables are shorter, so that pages stay small
MOST_FINDINGS = 7
_RECORDED = (
    "parameters",
    "n_prompts",
    "n_shards",
    "left_out",
    "forwards_per_prompt",
    "seconds",
    "peak_memory_mb",
)


def gather(folder: Path) -> dict[str, Any]:
    """Return report.json of a run folder; damage in it becomes a warning.

    Raises RunError if there is no run.
    """
    run = read_run(folder)
    named = run["config"]["models"]
    sections, warnings, ids = [], [], _ids(run["cells"])
    shown = {
        path: info
        for path, info in beside_untrained(run["cells"]).items()
        if info["status"] != "ok" or not is_control(info["model"], named)
    }
    n_sections = sum(info["status"] == "ok" for info in shown.values())
    most_rows = MOST_ROWS * _MANY // max(_MANY, n_sections)
    for path, info in shown.items():
        if info["status"] == "ok":
            section, wrong = _section(folder, path, info, id=ids[path], most_rows=most_rows)
            sections.append(section)
            warnings += wrong
        if info.get("left_out"):
            warnings.append(f"{path}, left out: {info['left_out']}")
        if info.get("n_prompts") == 1:
            warnings.append(f"{path}: one prompt, so intervals say nothing about others")
    return {
        "schema": SCHEMA,
        "interp": __version__,
        "run": folder.resolve().name,
        "title": f"What each layer does in {_listed(named)}",
        "findings": _findings(sections),
        "comparisons": compare(sections, run["models"]),
        "differences": [
            {key: one[key] for key in ("id", "analysis", "runs", "findings")}
            for one in kept_comparisons(folder)
        ],
        "warnings": [
            *_made_from(run),
            *_resumed_with(run),
            *_unfinished(run["cells"]),
            *_shrunk(run),
            *warnings,
        ],
        "analyses": sections,
        "provenance": _provenance(run),
    }


def _listed(models: list[str]) -> str:
    return ", ".join(called(m for m in models if not is_control(m, models)).values())


def _unfinished(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return why cells failed or were skipped, once per model, task and cause."""
    of_cause: dict[tuple[str, str, str, str], list[str]] = {}
    for info in cells.values():
        if info["status"] != "ok":
            cause = (info["model"], info["task"], info["status"], info.get("error", ""))
            of_cause.setdefault(cause, []).append(
                "@".join(filter(None, (info["analysis"], info.get("label"))))
            )
    return [
        f"{', '.join(names)} ({model}, {task}) {status}: {error}"
        for (model, task, status, error), names in of_cause.items()
    ]


def _shrunk(run: dict[str, Any]) -> list[str]:
    """Return what a budget took from analyses that are not left out."""
    planned = [cell for plan in run.get("plan", {}).values() for cell in plan["cells"].values()]
    return [
        f"{Cell(**cell['cell']).path}: {cell['shrunk']}" for cell in planned if cell.get("shrunk")
    ]


def _made_from(run: dict[str, Any]) -> list[str]:
    """Return which models' weights are not the published ones."""
    made = {name: about.get("made from") for name, about in run["models"].items()}
    return [
        f"{name} is {what}: numbers of the published weights differ"
        for name, what in made.items()
        if what
    ]


def _resumed_with(run: dict[str, Any]) -> list[str]:
    """Return what had changed each time the run was resumed."""
    warnings, before = [], run
    for now in run.get("resumed", []):
        old, new = ({"machine": one["machine"]} | one["versions"] for one in (before, now))
        changed = [
            f"{key} ({old.get(key)} → {new.get(key)})"
            for key in old | new
            if old.get(key) != new.get(key)
        ]
        warnings.append(
            f"resumed at {now['at']} with another {', '.join(changed)};"
            " what was finished before was kept"
        )
        before = now
    return warnings


def _ids(paths: Iterable[str]) -> dict[str, str]:
    """Map cells to names for links between sections, all different and without spaces."""
    ids: dict[str, str] = {}
    for path in paths:
        plain = re.sub(r"[^\w-]+", "-", path)
        ids[path] = plain if plain not in ids.values() else f"{plain}-{len(ids)}"
    return ids


def _section(
    folder: Path, path: str, info: dict[str, Any], *, id: str, most_rows: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the report's section on a finished cell, and what is wrong with its files."""
    cell, wrong = Cell.of(path, info), []
    section: dict[str, Any] = {
        "id": id,
        **cell.names,
        "question": info["question"],
        "how": info.get("how", ""),
        "caveat": info.get("caveat", ""),
        "summary": info["summary"],
        "findings": findings_of(info),
        **{key: info.get(key) for key in _RECORDED},
        "viewer": address(folder.resolve().name, **cell.names),
        "figure": None,
        "table": None,
    }
    try:
        hashes = read_json(folder / path / "result.json").get("files", {})
        read_file(folder / path / "figure.json")
        section["figure"] = {"file": f"{path}/figure.json", "hash": hashes.get("figure.json")}
    except RunError as error:
        wrong.append(str(error))
    try:
        section["table"] = _table(read_frame(folder, cell), f"{path}/frame.parquet", most_rows)
        section["table"]["hash"] = hashes.get("frame.parquet") if section["figure"] else None
    except RunError as error:
        wrong.append(str(error))
    return section, wrong


def _table(frame: pd.DataFrame, file: str, most_rows: int) -> dict[str, Any]:
    rows = json.loads(frame.head(most_rows).to_json(orient="values", double_precision=9))
    return {"columns": list(frame.columns), "rows": rows, "n_rows": len(frame), "file": file}


def _findings(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each section's first finding, by the analysis's rank.

    Every analysis comes once before any comes again. Ranks are fixed, because effects of different
    kinds cannot be compared.
    """
    ranks = {name: analysis.rank for name, analysis in declared_in_files().items()}
    seen = Counter[str]()
    ranked = []
    for section in sections:
        name = section["analysis"]
        ranked.append((seen[name], ranks.get(name, Declared.rank), section))
        seen[name] += 1
    names = called(section[of] for of in ("model", "task") for section in sections)
    first = [section for _, _, section in sorted(ranked, key=lambda one: one[:2])][:MOST_FINDINGS]
    return [
        {
            "id": section["id"],
            "of": f"{_in_words(section['analysis'])} ({names[section['model']]},"
            f" {names[section['task']]})",
            **section["findings"][0],
            "caveat": section["caveat"],
        }
        for section in first
    ]


def _in_words(analysis: str) -> str:
    return analysis.replace("_", " ")


def _provenance(run: dict[str, Any]) -> dict[str, Any]:
    keys = ("started", "machine", "versions", "models", "tasks", "config")
    measured = [
        cell["seconds"] for cell in run["cells"].values() if cell.get("seconds") is not None
    ]
    more = {
        "finished": run.get("finished"),
        "resumed": run.get("resumed", []),
        "seconds": round(sum(measured), 1),
    }
    command = command_of(run["config"] | {"dtype": _dtype(run)}, out="runs/again")
    return {key: run[key] for key in keys} | more | {"command": command}


def _dtype(run: dict[str, Any]) -> str:
    """Return the type that was asked for, or that "auto" became where it depends on the machine."""
    asked: str = run["config"].get("dtype", "auto")
    models = run["models"].values()
    types = {str(about.get("dtype")) for about in models}
    depends = any(about.get("checkpoint") in _HALVES for about in models)
    return types.pop() if asked == "auto" and depends and len(types) == 1 else asked
