"""run.json of a run in progress: what was asked, what computes, and each cell's status."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.errors import ChangedError, RunError
from interp.figures.words import listed
from interp.files.whole import digest_of, write_atomically, write_json
from interp.models.dtypes import AutoDtype
from interp.result import Result
from interp.runs.folder import SCHEMA, Cell, cells_asked, is_whole, own_path, read_run, task_path
from interp.runs.identity import hash_of_task
from interp.runs.own import source_at
from interp.runs.progress import OnCell
from interp.runs.provenance import machine, now, versions
from interp.runs.study import Study
from interp.tasks import Task

Status = dict[str, Any]


class RunRecord:
    """run.json, written whenever it changes; opened for a new run, or for one started earlier.

    `auto` is what the type "auto" means for a new run; an older one keeps what it meant there.
    `on_cell` is told of every cell that is recorded.
    Raises RunError for a folder of another configuration or version, or of other prompts.
    """

    def __init__(
        self,
        study: Study,
        out: Path,
        tasks: Mapping[str, Task],
        *,
        auto: AutoDtype,
        on_cell: OnCell = lambda *_: None,
    ) -> None:
        self.out, self.on_cell = out, on_cell
        self._order: dict[str, int] = {}
        config, before = _config_of(study), begun(study, out)
        if before is not None:
            self.values = _resumed(before)
        else:
            self.values = _begun(config) | {"auto": asdict(auto)}
        self._note_files(tasks)

    @property
    def dtype(self) -> str | AutoDtype:
        """Return the type of the run's models, or what "auto" means in it, wherever it resumes."""
        asked: str = self.values["config"].get("dtype", "auto")
        return AutoDtype(**self.values.get("auto", {})) if asked == "auto" else asked

    def _write(self) -> None:
        write_json(self.out / "run.json", self.values)

    def _note_files(self, tasks: Mapping[str, Task]) -> None:
        """Note the contents of the tasks' files; raise RunError if they have changed since."""
        noted = self.values["tasks"]
        for name, task in tasks.items():
            file = hash_of_task(task)
            before = noted.get(name, {})
            if before.get("file", file) != file:
                changed = f"results of another {name!r}: its prompts have changed"
                raise RunError(f"{self.out} holds {changed}; choose another --out")
            noted[name] = {"prompts": len(task), "hash": file} | before | {"file": file}
        self._write()

    def keep_files(self, files: Mapping[str, str]) -> dict[str, str]:
        """Copy the files of a user's own analyses into the run, and return the copies by analysis.

        Raises RunError if something was measured with another text of a file.
        """
        copies = {}
        for analysis, file in files.items():
            source, copy = source_at(file), own_path(self.out, analysis)
            if not copy.exists() or source_at(str(copy)) != source:
                self._refuse_measured(analysis, file)
                write_atomically(copy, source)
                self._drop_parameters(analysis)
            copies[analysis] = f"{copy.absolute()}:{file.rpartition(':')[2]}"
        return copies

    def _drop_parameters(self, analysis: str) -> None:
        """Drop from the plans what they know of an analysis by the text that its file had."""
        for plan in self.values.get("plan", {}).values():
            for name, kept in plan["cells"].items():
                if Cell.parse("", "", name).analysis == analysis and kept["planned"]:
                    kept["planned"].pop("parameters", None)
                    kept["why_not"] = ""

    def _refuse_measured(self, analysis: str, file: str) -> None:
        for cell in cells_asked(self.values["config"]):
            if cell.analysis == analysis and any(
                (self.out / cell.path).glob("parts/*.safetensors")
            ):
                changed = (
                    f"{file} has changed since, and {own_path(self.out, analysis)} is what ran"
                )
                raise RunError(
                    f"{self.out} holds what {analysis} measured before; {changed};"
                    " choose another --out"
                )

    def of(self, cell: Cell) -> Status:
        """Return what is recorded of a cell; empty if nothing is."""
        recorded: Status = self.values["cells"].get(cell.path, {})
        return recorded

    def expect(self, cells: Iterable[Cell]) -> None:
        """Keep records of cells in this order, whichever is finished first."""
        for cell in cells:
            self._order.setdefault(cell.path, len(self._order))

    def note_cell(self, cell: Cell, status: Status) -> None:
        """Record a cell; the time of the last one is the run's."""
        cells = self.values["cells"] | {cell.path: cell.names | status}
        order = sorted(cells, key=lambda path: self._order.get(path, len(self._order)))
        self.values["cells"] = {path: cells[path] for path in order}
        self.values["finished"] = now()
        self._write()
        self.on_cell(cell, self.of(cell))

    def plan_of(self, model: str, task: str) -> dict[str, Any] | None:
        """Return what `note_plan` recorded of a task on a model; None if nothing was."""
        kept: dict[str, Any] | None = self.values.get("plan", {}).get(task_path(model, task))
        return kept

    def note_plan(self, model: str, task: str, plan: dict[str, Any]) -> None:
        """Record what is to be done of a task on a model, and what it was priced at."""
        kept = json.loads(json.dumps(plan))  # as a resumed run reads it
        self.values.setdefault("plan", {})[task_path(model, task)] = kept
        self._write()

    def note_model(self, name: str, described: dict[str, Any]) -> None:
        """Record what a model is; raise ChangedError if results are of another."""
        self._note("models", name, described, identity="fingerprint")

    def note_task(self, name: str, described: dict[str, Any]) -> None:
        """Record what a task is; raise ChangedError if results are of another."""
        self._note("tasks", name, described, identity="hash")

    def _note(self, kind: str, name: str, described: dict[str, Any], *, identity: str) -> None:
        noted = self.values[kind].get(name, {})
        of = [
            cell for cell in self.values["cells"].values() if cell[kind.removesuffix("s")] == name
        ]
        has_results = any(cell["status"] == "ok" for cell in of)
        if noted.get(identity, described[identity]) != described[identity] and has_results:
            changed = f"results of another {name!r} (its {identity} has changed)"
            raise ChangedError(f"{self.out} holds {changed}; choose another --out")
        self.values[kind][name] = noted | described
        self._write()


def _refuse_old(run: dict[str, Any], out: Path) -> None:
    if run["schema"] < SCHEMA:
        version = run["versions"].get("interp")
        raise RunError(
            f"{out} was written by interp {version}, whose runs can be read, not resumed;"
            " choose another --out"
        )


def _begun(config: dict[str, Any]) -> dict[str, Any]:
    nothing: dict[str, Any] = {"models": {}, "tasks": {}, "cells": {}}
    return {"schema": SCHEMA, "config": config, "started": now(), **_computed_with(), **nothing}


def begun(study: Study, out: Path) -> dict[str, Any] | None:
    """Return the run that a study would go on with, None where nothing was begun in a folder.

    Raises RunError for a folder that holds a run of another study or version.
    """
    before = read_run(out) if (out / "run.json").exists() else None
    if before is None:
        return None
    _refuse_old(before, out)
    if not before["models"] and not before["cells"]:
        return None
    for key, value in _config_of(study).items():
        if key == "files":  # a file may be moved; what is in it is compared by `keep_files`
            before["config"][key] = value
        elif key == "dtype":
            _refuse_other_type(before, value, out)
        else:
            _refuse_other(key, before["config"].get(key), value, out)
    return before


def _config_of(study: Study) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(asdict(study)))
    return config


def _refuse_other(key: str, before: Any, asked: Any, out: Path) -> None:
    if (before or None) == (asked or None):  # what it lacks was not asked
        return
    if isinstance(before, dict) and isinstance(asked, dict):
        names = [name for name in before | asked if before.get(name) != asked.get(name)]
        raise RunError(
            f"{out} holds a run with other {key} ({listed(names)}); choose another --out"
        )
    kept = f"a run with {key} = {before}"
    raise RunError(f"{out} holds {kept}; {asked} was asked for; choose another --out")


def _resumed(run: dict[str, Any]) -> dict[str, Any]:
    current, last = _computed_with(), (run.get("resumed") or [run])[-1]
    if current != {key: last[key] for key in current}:
        run.setdefault("resumed", []).append({"at": now()} | current)
    return run


def _refuse_other_type(run: dict[str, Any], asked: str, out: Path) -> None:
    """Raise RunError for a type that models were not computed in; "auto" stays what it was."""
    before = run["config"].get("dtype", "auto")
    computed = {about["dtype"] for about in run["models"].values() if "dtype" in about}
    if asked != before and (asked == "auto" or computed != {asked}):
        kept = f"a run in {before}" + (f" ({', '.join(sorted(computed))})" if computed else "")
        raise RunError(f"{out} holds {kept}; {asked} was asked for; choose another --out")


def _computed_with() -> dict[str, Any]:
    return {"versions": versions(), "machine": machine()}


def damaged_files(folder: Path) -> list[str]:
    """Return which files of a finished cell are damaged."""
    names = ("frame.parquet", "figure.json", "result.json")
    return [name for name in names if not is_whole(folder / name)]


def write_result(result: Result, folder: Path, status: Status) -> None:
    """Write frame.parquet, figure.json and, last, result.json, which has the hashes of both."""
    frame = result.to_frame()
    narrow = frame.astype(dict.fromkeys(frame.select_dtypes("float64"), "float32"))
    contents = {
        "frame.parquet": narrow.to_parquet(index=False),
        "figure.json": str(result.plot().to_json()).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    files = {name: digest_of(content) for name, content in contents.items()}
    write_json(folder / "result.json", status | {"files": files})
