"""A run folder, opened again: results rebuilt from their parts, and the prompts they number."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from interp.analysis import Analysis
from interp.errors import RunError
from interp.figures.words import counted
from interp.result import Origin, Result
from interp.runs.at_a_glance import glance
from interp.runs.evidence import beside_untrained, findings_of, is_control
from interp.runs.folder import Cell, cells_of, own_path, read_run, task_folder, why_missing
from interp.runs.own import is_known, source_at
from interp.runs.parts import unpack
from interp.runs.registry import make_analysis
from interp.shapes import Tensors
from interp.tasks import Prompt, Task

_LEFT = ' style="text-align:left"'


class RunFolder:
    """A run folder: `run["zoo/hops-4l", "two-hop", "layer_skip"]` is that cell's result.

    "layer_skip@LABEL" is the result of a labelled cell. The run's copies of its author's own files
    (`analyses/*.py`) are run only with `trust_code`, or if this process has run the same already.
    """

    def __init__(self, folder: Path, *, trust_code: bool = False) -> None:
        self.folder = folder
        self.info = read_run(folder)
        self._trust_code = trust_code

    def __repr__(self) -> str:
        models, tasks = (", ".join(self.info["config"][of]) for of in ("models", "tasks"))
        n = counted(len([*self._shown()]), "result")
        return f"RunFolder({str(self.folder)!r}: {models} on {tasks}, {n})"

    def _repr_html_(self) -> str:
        """Return what notebooks show: each result's first finding, by model and task."""
        rows = []
        of_task = lambda one: (one[0].model, one[0].task)  # noqa: E731
        for (model, task), results in groupby(self._shown(), of_task):
            rows.append(f'<tr><th colspan="2"{_LEFT}>{escape(f"{model} · {task}")}</th></tr>')
            rows += [
                f"<tr><td{_LEFT}>{escape(cell.name)}</td><td{_LEFT}>"
                f"{escape(findings_of(record)[0]['claim'])}</td></tr>"
                for cell, record in results
            ]
        how = "<code>[MODEL, TASK, ANALYSIS]</code> is a result, <code>.plot()</code> all layers"
        return f"<table>{''.join(rows)}</table><small>{how}</small>"

    def plot(self, *, model: str | None = None, task: str | None = None) -> go.Figure:
        """Return depth at a glance: what the run says of every layer, as on top of its report.

        It is of one `model` or `task`, if they are named. Raises RunError for a run in which fewer
        than two analyses say something of every layer.
        """
        sections = [
            {**cell.names, "findings": findings_of(record), "id": ""}
            for cell, record in self._shown()
            if model in (None, cell.model) and task in (None, cell.task)
        ]
        provenance = {"models": self.info["models"]}
        report = {"analyses": sections, "provenance": provenance}
        figure = glance(self.folder, report, link_of=lambda _: "")
        if figure is None:
            raise RunError(f"too few analyses of layers in {self.folder} for a figure of them all")
        return figure

    def _shown(self) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Yield finished cells and their records, without models that are there as controls."""
        named = self.info["config"]["models"]
        for path, record in beside_untrained(self.info["cells"]).items():
            if record["status"] == "ok" and not is_control(record["model"], named):
                yield Cell.of(path, record), record

    def __getitem__(self, key: tuple[str, str, str]) -> Result:
        analysis, parts = self.parts_of(*key)
        cell, _ = self._finished(Cell.parse(*key))
        return analysis.combine(parts).read_from(Origin(self.folder, **cell.names))

    def parts_of(self, model: str, task: str, analysis: str) -> tuple[Analysis, list[Tensors]]:
        """Return an analysis as it was run, and the measured tensors of every shard, in order."""
        cell, record = self._finished(Cell.parse(model, task, analysis))
        paths = sorted((self.folder / cell.path / "parts").glob("*.safetensors"))
        parts = [unpack(path) for path in paths]
        if len(parts) != record["n_shards"]:
            counts = f"{len(parts)} of {record['n_shards']} parts"
            raise RunError(f"{self.folder / cell.path} has {counts}; run the study again")
        file = self._file_of(cell.analysis)
        return make_analysis(cell.analysis, record["parameters"], file=file), parts

    def _file_of(self, analysis: str) -> str:
        """Return the run's copy of an analysis's own file, with the class; "" if it has none."""
        given = self.info["config"].get("files", {}).get(analysis)
        if given is None:
            return ""
        copy = own_path(self.folder, analysis)
        if not self._trust_code and not is_known(source_at(str(copy))):
            raise RunError(
                f"{analysis} is code in {copy}, of whoever made the run; read it, then"
                " open_run(…, trust_code=True) runs it"
            )
        return f"{copy}:{given.rpartition(':')[2]}"

    def _finished(self, asked: Cell) -> tuple[Cell, dict[str, Any]]:
        """Return a finished cell and its record in run.json."""
        records = cells_of(self.info)
        finished = {cell: record for cell, record in records.items() if record["status"] == "ok"}
        for cell, record in finished.items():
            if cell == asked:
                return cell, record
        others = {cell.name for cell in finished}
        if asked.name not in others and (why := why_missing(self.info, asked.name)):
            raise RunError(f"no result {asked.path} in {self.folder}: {why}")
        paths = ", ".join(cell.path for cell in finished) or "none"
        raise RunError(f"no result {asked.path} in {self.folder}; there is {paths}")

    def prompts(self, model: str, task: str, analysis: str | None = None) -> tuple[Prompt, ...]:
        """Return the prompts of a task in the order in which results number them.

        An analysis that cannot use all of them numbers its own: those are returned if it is named.
        """
        folder = self.folder / task_folder(self.info, model, task)
        if analysis is not None:
            own = self.folder / self._finished(Cell.parse(model, task, analysis))[0].path
            folder = own if (own / "prompts.jsonl").exists() else folder
        return Task.from_jsonl(folder / "prompts.jsonl").prompts


def open_run(folder: str | Path, *, trust_code: bool = False) -> RunFolder:
    """Open a run folder; raises RunError if there is none.

    With `trust_code`, results of analyses in files of the run's author are read too: that runs
    these files, of which the run keeps copies in `analyses/`.
    """
    return RunFolder(Path(folder), trust_code=trust_code)
