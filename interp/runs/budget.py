"""What fits into a budget of minutes: fewer prompts first, then fewer layers, then fewer analyses.

Analyses come in the order of their `rank`, which is that of the questions in reports.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from interp.errors import ModelError
from interp.figures.words import counted, duration
from interp.runs.commands import as_text, command_of_cell
from interp.runs.costs import CellCost, Offer, Prices
from interp.runs.executors import LocalExecutor, call
from interp.runs.folder import Cell
from interp.runs.plan import Failure, PlannedCell
from interp.runs.registry import with_parameters
from interp.runs.study import Study
from interp.runs.worker import Worker

_SPARE = 0.1  # of the budget, for what prices do not count
_LEAST = 0.25  # of an even share, that every task on a model has


def fitting(prices: Sequence[Sequence[float]], seconds: float) -> list[int | None]:
    """Return which offer of each analysis to take, None for none.

    `prices` are seconds, of the most wanted analysis first, and of each its dearest offer first.
    Every analysis whose cheapest offer fits is taken, in order; then the cheapest step to a dearer
    offer is made again and again, so that the dearest analyses are the ones that stay shrunk.
    """
    chosen: list[int | None] = []
    left = seconds
    for offers in prices:
        fits = offers[-1] <= left
        chosen.append(len(offers) - 1 if fits else None)
        left -= offers[-1] if fits else 0.0
    while True:
        steps = [
            (prices[i][at - 1], i, prices[i][at - 1] - prices[i][at])
            for i, at in enumerate(chosen)
            if at
        ]
        affordable = [step for step in steps if step[2] <= left]
        if not affordable:
            return chosen
        _, i, more = min(affordable)
        chosen[i] = (chosen[i] or 0) - 1
        left -= more


@dataclass(frozen=True)
class TaskPlanned:
    """What is run of a task on a model: its cells, and what they and those left out would cost.

    `minutes` is the task's share of the budget; None if nothing was to be shrunk.
    """

    minutes: float | None
    planned: tuple[PlannedCell, ...]
    costs: tuple[CellCost, ...]

    @property
    def left_out(self) -> dict[Cell, str]:
        """Return the cells that the budget leaves out, and why."""
        kept = {planned.cell for planned in self.planned}
        return {cost.cell: cost.why_not for cost in self.costs if cost.cell not in kept}

    @property
    def seconds(self) -> float:
        """Return how long one worker takes for all of it."""
        return float(sum(cost.seconds or 0.0 for cost in self.costs if not cost.why_not))

    def to_json(self) -> dict[str, Any]:
        """Return what run.json keeps, so that a resumed run does the same."""
        how = {
            each.cell: {"n_shards": each.n_shards, "parameters": asdict(each.analysis)}
            for each in self.planned
        }
        cells = {
            cost.cell.name: {**asdict(replace(cost, example="")), "planned": how.get(cost.cell)}
            for cost in self.costs
        }
        return {"minutes": self.minutes, "seconds": self.seconds, "cells": cells}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any], cells: Sequence[PlannedCell]) -> "TaskPlanned":
        """Return what the run that is resumed was to do; `cells` are those of its study."""
        costs, planned = [], []
        for each in cells:
            values = dict(kept["cells"].get(each.cell.name) or {"planned": {}})
            how = values.pop("planned")
            costs.append(CellCost(**values | {"cell": each.cell}))
            if how is not None:
                planned.append(_changed(each, **how))
        return cls(kept["minutes"], tuple(planned), tuple(costs))


def share_of_next(study: Study, n_before: int, *, seconds: float) -> float | None:
    """Return the minutes of the budget for the next task on a model; None without a budget.

    `n_before` were planned before it, and so many `seconds` have gone: what is left is shared
    evenly. Where others took longer than they were priced at, it has a quarter of its share still.
    """
    if study.budget is None:
        return None
    n = len(study.models) * len(study.tasks)
    left = (study.budget - seconds / 60) / max(1, n - n_before)
    return max(left, _LEAST * study.budget / n)


def _changed(
    planned: PlannedCell, n_shards: int | None = None, parameters: Mapping[str, Any] | None = None
) -> PlannedCell:
    analysis = planned.analysis
    if parameters is not None:
        analysis = with_parameters(type(analysis), parameters)
    return replace(planned, analysis=analysis, n_shards=n_shards)


def choose(
    study: Study,
    cells: Sequence[PlannedCell],
    prices: Prices,
    *,
    minutes: float | None,
    n_workers: int = 1,
) -> TaskPlanned:
    """Return what fits into so many minutes of `n_workers`; everything, where minutes are None.

    A cell that cannot be run stays planned: the run says why.
    """
    offered = [prices.offers[each.cell] for each in cells if each.cell in prices.offers]
    seconds = [[offer.cost.seconds for offer in offers] for offers in offered]
    known = [[each for each in of_cell if each is not None] for of_cell in seconds]
    taken: list[int | None] = [0] * len(offered)
    if minutes is not None and known == seconds:
        taken = fitting(known, 60 * minutes * n_workers * (1 - _SPARE))
    at = {offers[0].cost.cell: i for offers, i in zip(offered, taken, strict=True)}
    planned, costs = [], []
    for each in cells:
        if (failure := prices.refused.get(each.cell)) is not None:
            planned.append(each)
            costs.append(CellCost(each.cell, why_not=failure.error))
            continue
        offers, i = prices.offers[each.cell], at[each.cell]
        whole = offers[0]
        if i is None:
            why = f"left out to fit the budget: {_price(study, whole, offers[-1], n_workers)}"
            costs.append(replace(whole.cost, why_not=why))
            continue
        planned.append(offers[i].planned)
        shrunk = _shrunk(study, whole, offers[i], n_workers) if i else ""
        costs.append(replace(offers[i].cost, shrunk=shrunk))
    return TaskPlanned(minutes, tuple(planned), tuple(costs))


def _price(study: Study, whole: Offer, least: Offer, n_workers: int) -> str:
    """Return how long an analysis would take, at least and as a whole, and its command."""
    times = [duration((offer.cost.seconds or 0.0) / n_workers) for offer in (least, whole)]
    about = f"about {times[1]}"
    if whole is not least:
        about += f", {times[0]} for {_size(whole, least)}"
    return f"{about}; `{_command(study, whole)}`"


def _shrunk(study: Study, whole: Offer, taken: Offer, n_workers: int) -> str:
    """Return what a budget left of an analysis, the price of the whole, and its command."""
    time = duration((whole.cost.seconds or 0.0) / n_workers)
    return f"{_size(whole, taken)} to fit the budget; all: about {time}, `{_command(study, whole)}`"


def _command(study: Study, whole: Offer) -> str:
    """Return the command of a cell alone; a second model is named only to what compares two."""
    compares = whole.planned.analysis.names_other
    asked = study if compares else replace(study, against="")
    return command_of_cell(asdict(asked), whole.cost.cell)


def _size(whole: Offer, taken: Offer) -> str:
    """Return how much of the whole an offer is: "8 of 17 prompts, every=2"."""
    n, of = taken.cost.n_prompts, whole.cost.n_prompts
    parts = [counted(of, "prompt") if n == of else f"{n} of {counted(of, 'prompt')}"]
    before = asdict(whole.planned.analysis)
    parts += [
        f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else as_text(value)}"
        for key, value in asdict(taken.planned.analysis).items()
        if value != before[key]
    ]
    return ", ".join(parts)


def estimate_costs(study: Study, *, n_workers: int = 1) -> list[CellCost]:
    """Return the cost of every cell as a run would plan it, without running any.

    Raises before any work what a run raises; a cell that cannot be run has the reason.
    """
    study.check()
    executor = LocalExecutor(Worker(study, Path(), study.dtype))
    plans: list[TaskPlanned] = []
    began = time.monotonic()
    for model, task in product(study.models, study.tasks):
        cells = study.planned(model, task)
        try:
            prices = call(executor, "price", model, task, cells)
        except Exception as error:
            if len(study.models) == 1 and isinstance(error, ModelError):
                raise
            prices = Prices({}, {each.cell: Failure.of(error) for each in cells})
        gone = time.monotonic() - began + sum(plan.seconds for plan in plans) / n_workers
        minutes = share_of_next(study, len(plans), seconds=gone)
        plans.append(choose(study, cells, prices, minutes=minutes, n_workers=n_workers))
    return [cost for plan in plans for cost in plan.costs]
