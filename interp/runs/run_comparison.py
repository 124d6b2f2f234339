"""What differs between runs of one analysis on the same prompts: paired, all numbers at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.errors import RunError, unknown
from interp.figures.plots import lines_over_depth
from interp.figures.words import called, counted, shortened
from interp.result import LONGEST_CLAIM, MOST_FINDINGS, Compared, Finding, Result
from interp.runs.sides import Place, Row, Side, sides_of
from interp.stats.estimate import Estimate, estimates
from interp.stats.groups import Array, Grouping, Groups
from interp.stats.picked import band

_ROUNDING = 1e-5  # of the largest value of a measure: so little is no difference
_PANELS = 4
_LONGEST = 30  # characters of a run's name in a claim


@dataclass(frozen=True, repr=False)
class RunComparison(Result):
    """Every number of an analysis in several runs, and its difference from the first run.

    `frame` is what `to_frame` returns; `runs` are the names of the runs, the first first, and
    `n_groups` is how many groups of prompts were drawn independently. `n_lost` numbers were left
    out because they are not in all runs, not of every prompt, or the same for every prompt.
    """

    analysis: str
    runs: tuple[str, ...]
    frame: pd.DataFrame
    n_groups: int
    n_lost: int = 0

    def to_frame(self) -> pd.DataFrame:
        """Return a row per run and number of the analysis's table.

        Columns: measure; place ("layer 3"); x (the layer, or the number within its measure); run;
        mean over prompts with its 95 % interval `low` to `high`; `difference` from the first run,
        paired by prompt, between `difference_low` and `difference_high`, which hold all the
        differences of the table at once in 95 % (max-statistic); `is_different` where these exclude
        0; n_prompts.
        """
        return self.frame

    @property
    def later(self) -> pd.DataFrame:
        """Return the rows of all runs but the first, what is clearest of each measure in front."""
        rows = self.frame[self.frame["run"] != self.runs[0]]
        half = (rows["difference_high"] - rows["difference_low"]) / 2
        size = rows["difference"].abs()
        clear = np.where(half > 0, size / half.where(half > 0, 1.0), np.where(size > 0, np.inf, 0))
        return rows.assign(clear=clear).sort_values(
            ["is_different", "clear"], ascending=False, kind="stable"
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the clearest difference of each of the last three runs from the first."""
        return tuple(self._finding(run) for run in self.runs[1:][-MOST_FINDINGS:])

    def _finding(self, run: str) -> Finding:
        rows = self.later[self.later["run"] == run]
        top, n_different = rows.iloc[0], int(rows["is_different"].sum())
        if not n_different:
            top = rows.iloc[int(np.abs(rows["difference"].to_numpy(np.float64)).argmax())]
        known = self._estimate(top, "difference", "difference_low", "difference_high")
        claim = self._claim(top, run, known, is_different=n_different > 0)
        at_once = counted(len(self.later), "difference")
        return Finding(
            claim,
            known,
            measure=f"difference of {self.analysis} between runs, where it is clearest",
            control=Compared(f"the number in {self.runs[0]}", self._estimate(self._first(top))),
            kind="compares",
            note=f"{n_different} of {counted(len(rows), 'number')} differ from {self.runs[0]};"
            f" {at_once} tested at once (max-statistic), prompts paired"
            + (f"; {self.n_lost} left out, which some prompts lack" if self.n_lost else ""),
        )

    def _claim(
        self, row: "pd.Series[float]", run: str, known: Estimate, *, is_different: bool
    ) -> str:
        here, there = (shortened(name, most=_LONGEST) for name in (run, self.runs[0]))
        if not is_different:
            return f"No number differs between {there} and {here} (largest: {known:.2g})."
        low, high = sorted(map(abs, (known.low, known.high)))
        way = "higher" if known.value > 0 else "lower"
        size = Estimate(abs(known.value), low, high)
        said = f" is {size:.3g} {way} in {here} than in {there}."
        what = " of ".join(filter(None, (str(row["measure"]), str(row["place"]))))
        return f"{shortened(what, most=LONGEST_CLAIM - len(said))}{said}"

    def _first(self, row: "pd.Series[float]") -> "pd.Series[float]":
        """Return the first run's row of the same number."""
        first = self.frame[self.frame["run"] == self.runs[0]]
        same = (first["measure"] == row["measure"]) & (first["place"] == row["place"])
        return first[same].iloc[0]

    def _estimate(self, row: "pd.Series[float]", *names: str) -> Estimate:
        value, low, high = (float(row[name]) for name in names or ("mean", "low", "high"))
        return Estimate(value, low, high, int(row["n_prompts"]), self.n_groups)

    def plot(self) -> go.Figure:
        """Draw the differences from the first run, a line per run, of the clearest measures."""
        measures = list(dict.fromkeys(self.later["measure"]))[:_PANELS]
        rows = self.frame[(self.frame["run"] != self.runs[0])]
        rows = rows[rows["measure"].isin(measures)]
        rows = rows.drop(columns=["low", "high"])
        rows = rows.rename(columns={"difference_low": "low", "difference_high": "high"})
        axis = "layer" if rows["is_layer"].all() else "number"
        rows = rows.rename(columns={"x": axis})
        figure = lines_over_depth(
            rows,
            y="difference",
            groups="run",
            panels="measure",
            x=axis,
            title=f"What differs from {self.runs[0]}: {self.analysis.replace('_', ' ')}",
        )
        return figure.add_hline(y=0, line_width=1, line_color="grey")


def compare_runs(
    *runs: str | Path,
    analysis: str | None = None,
    task: str | None = None,
    measure: str | None = None,
    trust_code: bool = False,
) -> RunComparison:
    """Return how an analysis differs between runs, "RUN" or "RUN:MODEL", from the first; no model.

    The prompts are paired by their ids: each has the numbers that the analysis's table has of it
    alone. Without a `measure`, those that have a number for every layer, or one, are compared; of a
    whole grid only where there is nothing else, or it is named. Models of other depths are compared
    in what is not of layers. Raises RunError, naming the difference, if the runs have no finished
    analysis in common, or asked something else, of other prompts, or by another version.
    """
    sides = sides_of(runs, analysis=analysis, task=task, trust_code=trust_code)
    rows, values, n_lost, groups = _values(sides)
    chosen = _chosen(rows, measure)
    kept = [row for row in rows if row.measure in chosen]
    values = values[:, :, [row.measure in chosen for row in rows]]
    name = sides[0].cell.name
    frame = _frame(kept, values, _names(sides), groups)
    n_groups = Grouping.of(values.shape[1], groups).n_groups
    return RunComparison(name, _names(sides), frame, n_groups, n_lost)


def _values(sides: Sequence[Side]) -> tuple[list[Row], Array, int, Groups | None]:
    """Return rows, values [side prompt row], how many rows were lost, and the prompts' groups."""
    ids = sorted(sides[0].prompts())
    of_sides: list[list[dict[Row, float]]] = []
    groups: Groups | None = None
    for i, side in enumerate(sides):
        numbers, own = side.numbers()
        at = {key: n for n, key in enumerate(side.prompts())}
        of_sides.append([numbers[at[key]] for key in ids])
        if i == 0 and own is not None:
            groups = np.array([own[at[key]] for key in ids])
    every = [numbers for of in of_sides for numbers in of]
    everywhere = set(every[0]).intersection(*every)
    depths = {side.layers for side in sides}
    rows = [r for r in every[0] if r in everywhere and (len(depths) == 1 or not r.place)]
    if not rows:
        raise RunError(_nothing_shared(sides))
    values = np.array([[[numbers[row] for row in rows] for numbers in of] for of in of_sides])
    is_of_prompts = _vary(values)
    if not is_of_prompts.any():
        raise RunError(f"{sides[0].cell.name} has no number that differs between prompts")
    rows = [row for row, varies in zip(rows, is_of_prompts, strict=True) if varies]
    n_lost = len(set().union(*every)) - len(rows)
    return rows, values[:, :, is_of_prompts], n_lost, groups


def _vary(values: Array) -> NDArray[np.bool_]:
    """Return which rows [row] of values [side prompt row] are of prompts, and not of weights."""
    is_equal = np.ptp(values, axis=1) <= _ROUNDING * np.abs(values).max(1)
    is_count = ((values == 0) | (values == 1)).all((0, 1))  # right or wrong, in every prompt
    varies: NDArray[np.bool_] = ~is_equal.all(0) | is_count
    return varies


def _nothing_shared(sides: Sequence[Side]) -> str:
    depths = [f"{side.name} has {side.layers}" for side in sides]
    if len({side.layers for side in sides}) > 1:
        return f"other layers: {', '.join(depths)}, and {sides[0].cell.name} has no other numbers"
    return f"{sides[0].cell.name} has no number of every prompt, so that none can be paired"


def _chosen(rows: Sequence[Row], measure: str | None) -> set[str]:
    """Return the measures to compare: the one named, or those with at most one varying place."""
    places: dict[str, list[Place]] = {}
    for row in rows:
        places.setdefault(row.measure, []).append(row.place)
    if measure is not None:
        if measure not in places:
            raise RunError(unknown("measure", measure, places))
        return {measure}
    curves = {name for name, of in places.items() if len(_varying(of)) < 2}
    return curves or set(places)


def _varying(places: Sequence[Place]) -> list[str]:
    """Return the names of those parts of places that differ between a measure's rows."""
    values: dict[str, set[int | None]] = {name: set() for place in places for name, _ in place}
    for name, seen in values.items():
        seen |= {dict(place).get(name) for place in places}
    return [name for name, seen in values.items() if len(seen) > 1]


def _names(sides: Sequence[Side]) -> tuple[str, ...]:
    """Return what distinguishes the sides, in short; numbered where nothing does."""
    models = [called(side.cell.model for side in sides)[side.cell.model] for side in sides]
    folders = [str(side.run.folder) for side in sides]
    runs = [called(folders)[folder] for folder in folders]
    both = [f"{run}: {model}" for run, model in zip(runs, models, strict=True)]
    numbered = [f"{name} ({i})" for i, name in enumerate(both, 1)]
    different = (names for names in (models, runs, both) if len({*names}) == len(sides))
    return tuple(next(different, numbered))


def _frame(
    rows: Sequence[Row], values: Array, runs: Sequence[str], groups: Groups | None
) -> pd.DataFrame:
    differences = _differences(rows, values)
    flat = differences.transpose(1, 0, 2).reshape(values.shape[1], -1)
    low, high = (end.reshape(len(runs) - 1, -1) for end in band(flat, groups=groups))
    is_share = np.isin(values, (0, 1)).all((0, 1))  # right or wrong: no difference is beyond 1
    low, high = (np.where(is_share, np.clip(end, -1, 1), end) for end in (low, high))
    keys = _keys(rows)
    frames = []
    for i, run in enumerate(runs):
        columns: dict[str, Any] = {"run": run, **estimates(values[i], groups=groups)}
        nothing = np.full(len(rows), np.nan)
        ends = (nothing, nothing) if i == 0 else (low[i - 1], high[i - 1])
        mean = nothing if i == 0 else differences[i - 1].mean(0)
        columns |= {"difference": mean, "difference_low": ends[0], "difference_high": ends[1]}
        columns["is_different"] = (ends[0] > 0) | (ends[1] < 0)
        frames.append(keys.assign(**columns))
    return pd.concat(frames, ignore_index=True)


def _differences(rows: Sequence[Row], values: Array) -> Array:
    """Return differences from the first side [later side, prompt, row]; of rounding they are 0."""
    largest: dict[str, float] = {}
    for row, size in zip(rows, np.abs(values).max((0, 1)), strict=True):
        largest[row.measure] = max(largest.get(row.measure, 0.0), float(size))
    least = np.array([_ROUNDING * largest[row.measure] for row in rows])
    differences = values[1:] - values[0]
    kept: Array = np.where(np.abs(differences) > least, differences, 0.0)
    return kept


def _keys(rows: Sequence[Row]) -> pd.DataFrame:
    """Return columns measure, place, x and is_layer of rows."""
    places: dict[str, list[Place]] = {}
    for row in rows:
        places.setdefault(row.measure, []).append(row.place)
    varying = {name: _varying(of) for name, of in places.items()}
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        number = seen[row.measure] = seen.get(row.measure, -1) + 1
        of, names = dict(row.place), varying[row.measure]
        is_layer = len(names) == 1
        place = ", ".join(f"{name} {value}" for name, value in row.place)
        x = of.get(names[0], number) if is_layer else number
        keys.append({"measure": row.measure, "place": place, "x": x, "is_layer": is_layer})
    return pd.DataFrame(keys)
