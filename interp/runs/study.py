"""What a run is asked to do: models × tasks × analyses, checked before anything runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from interp.analysis import Analysis
from interp.errors import RunError, TaskError, unknown
from interp.figures.words import listed
from interp.models import Model
from interp.models.dtypes import check_dtype
from interp.models.locating import locate
from interp.parameters import AtLeast
from interp.runs.folder import Cell, cells_asked, folder_name
from interp.runs.plan import PlannedCell
from interp.runs.registry import (
    analysis_class,
    find_analyses,
    make_analysis,
    name_and_file,
)
from interp.tasks import Task, load_task
from interp.tasks.fitting import Fitted
from interp.tasks.spacing import check_space

_SIZES = [8 * 2**i for i in range(20)]  # prompts to which a budget may shrink an analysis
_MORE = 1.25  # times a size that the next one has at least


@dataclass(frozen=True)
class Study:
    """Analyses (name to parameters) of tasks on models; `n` prompts of each, drawn with `seed`.

    "ANALYSIS@LABEL" names a set of parameters, so that one analysis can be there several times.
    With `only_fitting`, an analysis that a task does not suit is skipped with the reason, instead
    of failed, and `budget` is how many minutes the whole may take (None: as long as it takes).
    Analyses then run by rank, and are shrunk or left out until they fit. `on` maps an analysis to
    those of the tasks on which it runs, if it is not all of them. `dtype` and `device_map`
    are how models are loaded. With `chat`, texts are what a user says; `columns` maps fields of a
    prompt to the keys of task files, and `space` is how answers follow texts (as in
    `Task.from_hf`). `against` names a second model for the analyses that compare two.

    A key of `analyses` may be a file of one's own, "PATH.py" or "PATH.py:CLASS": it is replaced by
    the name of its analysis, and `files` maps that name to the file. Raises AnalysisError for a
    file without an analysis.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    analyses: Mapping[str, Mapping[str, Any]]
    n: int | None = None
    seed: int = 0
    only_fitting: bool = False
    budget: Annotated[float, AtLeast(0)] | None = None
    on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dtype: str = "auto"
    device_map: str | None = None
    chat: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    space: str = "auto"
    against: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        analyses, files = dict[str, Mapping[str, Any]](), dict(self.files)
        for given, parameters in self.analyses.items():
            name, file = name_and_file(given)
            if name in analyses:
                raise RunError(f"analysis {name} is given twice")
            analyses[name] = parameters
            if file and files.setdefault(name.partition("@")[0], file) != file:
                other = files[name.partition("@")[0]]
                raise RunError(f"{file} and {other} have one name; rename one")
        object.__setattr__(self, "analyses", analyses)
        object.__setattr__(self, "files", files)

    def make_analysis(self, name: str, parameters: Mapping[str, Any]) -> Analysis:
        """Return one of the study's analyses; raise AnalysisError for what does not exist.

        It has the study's seed, unless its parameters say otherwise.
        """
        analysis = Cell.parse("", "", name).analysis
        file = self.files.get(analysis, "")
        how: dict[str, Any] = {"seed": self.seed, "against": self.against}
        return make_analysis(analysis, parameters, file=file, **how)

    def cells(self) -> list[Cell]:
        """Return every cell of the study in the order in which it runs."""
        return cells_asked(vars(self))

    def planned(self, model: str, task: str) -> list[PlannedCell]:
        """Return the cells of a task on a model, each with its analysis.

        Those that nobody named are in the order of their rank.
        """
        planned = [
            PlannedCell(Cell.parse(model, task, name), self.make_analysis(name, parameters))
            for name, parameters in self.analyses.items()
            if task in self.on.get(name, (task,))
        ]
        return sorted(planned, key=_rank) if self.only_fitting else planned

    def load_task(self, name: str) -> Task:
        """Return one of the study's tasks, whole."""
        how: dict[str, Any] = {"chat": self.chat, "space": self.space}
        return load_task(name, column_map=dict(self.columns) or None, **how)

    def draw(self, model: Model, task: Task) -> Fitted:
        """Return `n` of the prompts that a model's tokenizer can serve."""
        fitted = model.fit(task)
        if self.n is None:
            return fitted
        return replace(fitted, task=fitted.task.take(self.n, seed=self.seed))

    def levels(self, task: Task) -> list[Task]:
        """Return a task's prompts in parts: the first 8 of a balanced draw, the next 8, 16, 32, …

        So a budget can give an analysis fewer of them. Without one, all are one part.
        """
        if self.budget is None:
            return [task]
        sizes = [size for size in _SIZES if size * _MORE <= len(task)]
        drawn, parts = task, []
        for size in reversed(sizes):
            fewer = drawn.take(size, seed=self.seed)
            inside = {prompt.id for prompt in fewer.prompts}
            parts.append(drawn.of([p for p in drawn.prompts if p.id not in inside]))
            drawn = fewer
        return [drawn, *reversed(parts)]

    def check(self, *, needs_weights: bool = True) -> dict[str, Task]:
        """Return the study's tasks; raise for names and values that do not exist.

        Folders of models must hold weights, unless a plan `needs_weights` of none.
        """
        if self.budget is not None and not self.only_fitting:
            raise RunError("a budget and named analyses given; those are never shrunk")
        for what, names in (("model", self.models), ("task", self.tasks)):
            _check_names(what, names)
        for name, parameters in self.analyses.items():
            self.make_analysis(name, parameters)
        for name, tasks in self.on.items():
            _check_known("analysis", name, self.analyses)
            for task in tasks:
                _check_known("task", task, self.tasks)
        for name in self.models:
            locate(name, needs_weights=needs_weights)
        if self.against:
            self._check_against(needs_weights=needs_weights)
        check_dtype(self.dtype)
        check_space(self.space)
        if self.n is not None and self.n < 1:
            raise TaskError(f"{self.n} prompts asked for; at least 1 is needed")
        return {name: self.load_task(name) for name in self.tasks}

    def _check_against(self, *, needs_weights: bool) -> None:
        """Raise where the second model has a name of none, or nothing compares it."""
        locate(self.against, needs_weights=needs_weights)
        names = [Cell.parse("", "", name).analysis for name in self.analyses]
        if not any(analysis_class(n, file=self.files.get(n, "")).names_other for n in names):
            of_two = [name for name, each in find_analyses().items() if each.names_other]
            raise RunError(
                f"against {self.against!r} given; of the analyses asked for none compares two"
                f" models ({listed(sorted(of_two))} do)"
            )


def _rank(planned: PlannedCell) -> int:
    return type(planned.analysis).rank


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise RunError(f"on: {unknown(what, name, known)}")


def _check_names(what: str, names: tuple[str, ...]) -> None:
    if isinstance(names, str):
        raise RunError(f"{what}s is {names!r}; a tuple of names is needed")
    if len({*names}) < len(names):
        raise RunError(f"a {what} is named twice: {', '.join(names)}")
    folders = [folder_name(name).casefold() for name in names]
    alike = [repr(name) for name, own in zip(names, folders, strict=True) if folders.count(own) > 1]
    if alike:
        raise RunError(f"{what}s {' and '.join(alike)} would share a folder; rename one")
