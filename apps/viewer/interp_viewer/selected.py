"""What is selected in a run, and what was measured there."""

from dataclasses import dataclass, replace
from typing import Any

from interp.runs.folder import Cell
from interp_viewer.reading import ViewedRun
from interp_viewer.selection import Selection, select
from interp_viewer.strip import visible
from interp_viewer.tensors import Measured


class Missing(Exception):
    """An analysis that this page needs is not in the run, or failed."""

    def __init__(self, analyses: tuple[str, ...], cells: dict[Cell, dict[str, Any]]) -> None:
        super().__init__(", ".join(analyses))
        self.analyses, self.cells = analyses, cells


@dataclass(frozen=True)
class Selected:
    """The subject of a page: a run, a model and a task in it, and one of its prompts."""

    run: ViewedRun
    selection: Selection
    model: str
    task: str
    prompts: list[dict[str, Any]]
    tokens: tuple[str, ...]

    @property
    def ex(self) -> int:
        """Return the number of the selected prompt, by default the first."""
        return self.selection.ex or 0

    @property
    def cells(self) -> dict[Cell, dict[str, Any]]:
        """Return the records of this model and task."""
        return self.run.cells(self.model, self.task)

    @property
    def numbers(self) -> dict[str, int | None]:
        """Return what is selected, by the name of its kind."""
        names = ("layer", "token", "head", "src", "tgt")
        return {"ex": self.ex} | {name: getattr(self.selection, name) for name in names}

    @property
    def is_over_all(self) -> bool:
        """Tell whether means over prompts are asked for."""
        return self.selection.over == "all"

    def labels(self, analysis: str) -> list[str]:
        """Return the labels under which an analysis is finished."""
        return [
            cell.label
            for cell, info in self.cells.items()
            if cell.analysis == analysis and info["status"] == "ok"
        ]

    def cell(self, *analyses: str) -> Cell:
        """Return the finished cell of the first of these analyses; raise Missing without any."""
        for analysis in analyses:
            if labels := self.labels(analysis):
                label = self.selection.label if self.selection.label in labels else labels[0]
                asked = Cell(self.model, self.task, analysis, label)
                return next(cell for cell in self.cells if cell == asked)  # which knows its folder
        raise Missing(
            analyses, {cell: info for cell, info in self.cells.items() if cell.analysis in analyses}
        )

    def info(self, cell: Cell) -> dict[str, Any]:
        """Return what run.json says of a cell."""
        return self.cells[cell]

    def measured(self, cell: Cell) -> Measured:
        """Return a cell's tensors."""
        return self.run.measured(cell)

    def at(self, **changes: Any) -> "Selected":
        """Return this model and task with another selection; another prompt has other tokens."""
        moved = replace(self, selection=self.selection.moved(**changes))
        return (
            replace(moved, tokens=tokens_of(self.run, self.model, self.task, moved.ex))
            if "ex" in changes
            else moved
        )

    def select(self, **changes: Any) -> None:
        """Move the selection, which is the address."""
        select(self.selection.moved(**changes))

    def token_label(self, i: int) -> str:
        """Return a token's number and text."""
        return f"{i} {visible(self.tokens[i])}" if 0 <= i < len(self.tokens) else str(i)


def tokens_of(run: ViewedRun, model: str, task: str, ex: int) -> tuple[str, ...]:
    """Return the texts of a prompt's tokens; none in a run that keeps none."""
    ids, vocabulary = run.tokens(model, task), run.vocabulary(model)
    if not 0 <= ex < len(ids):
        return ()
    return tuple(vocabulary[i] if i in range(len(vocabulary)) else f"⟨{i}⟩" for i in ids[ex])
