"""Whether one level of prompts scores deeper than another, at equal lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp.figures.words import PICKED
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate, estimate, ratio
from interp.stats.groups import FEWEST, Array, Grouping

Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]  # two sets of prompts, each [prompt]


@dataclass(frozen=True)
class DepthScores:
    """What depth scores are ratios of, each [prompt]: effects times their layers, and effects.

    `lengths` [prompt] are in tokens.
    """

    above: Array
    below: Array
    lengths: Array
    grouping: Grouping
    seed: int

    def value(self, rows: Mask) -> float:
        """Return the score of some prompts [prompt]; NaN where nothing has an effect."""
        total = self.below[rows].sum()
        return float(self.above[rows].sum() / total) if total > 0 else float("nan")

    def score(self, rows: Mask) -> Estimate:
        """Return the score of some prompts [prompt] with its interval."""
        groups = self.grouping.codes[rows]
        return ratio(self.above[rows], self.below[rows], groups=groups, seed=self.seed)

    def difference(self, pairs: Sequence[Pair]) -> Estimate | None:
        """Return the first score less the second, at equal lengths; the mean over pairs.

        The interval is that of the mean of the prompts' influences on the difference. None where a
        pair has no length in common.
        """
        sides = [
            (sign / len(pairs), weights)
            for pair in pairs
            for sign, weights in zip((1, -1), self._matched(*pair), strict=True)
        ]
        if not sides or any(weights @ self.below <= 0 for _, weights in sides):
            return None
        value, influence = 0.0, np.zeros(len(self.above))
        for sign, weights in sides:
            total = weights @ self.below
            score = weights @ self.above / total
            value += sign * score
            influence += sign * weights * (self.above - score * self.below) / total
        used = np.any([weights > 0 for _, weights in sides], axis=0)
        n, groups = int(used.sum()), self.grouping.codes[used]
        around = estimate(n * influence[used], groups=groups, seed=self.seed)
        if min((weights > 0).sum() for _, weights in sides) < FEWEST:
            return Estimate(value, n=n, n_groups=around.n_groups)
        return Estimate(value, value + around.low, value + around.high, n, around.n_groups)

    def _matched(self, first: Mask, second: Mask) -> Array:
        """Return weights [2 prompt] that give both sets the same lengths; 0 for other lengths."""
        weights = np.zeros((2, len(self.lengths)))
        for length in np.unique(self.lengths):
            rows = [mask & (self.lengths == length) for mask in (first, second)]
            sizes = [int(chosen.sum()) for chosen in rows]
            if all(sizes):
                shared = sizes[0] * sizes[1] / sum(sizes)
                for row, chosen, size in zip(weights, rows, sizes, strict=True):
                    row[chosen] = shared / size
        return weights


def are_numbers(names: Sequence[str]) -> bool:
    """Tell whether all names are numbers, and so have an order."""
    try:
        return all(np.isfinite(float(name)) for name in names)
    except ValueError:
        return False


@dataclass(frozen=True)
class Levels:
    """Which level each prompt has, and the names of all, in order."""

    of: np.ndarray
    names: Sequence[str]

    def extremes(self, scored: DepthScores, rows: Mask) -> tuple[str, str]:
        """Return the deepest and the shallowest level of some prompts [prompt].

        If levels are numbers, they are the highest and the lowest, whatever the scores.
        """
        scores = {name: scored.value(rows & (self.of == name)) for name in self.names}
        scores = {name: score for name, score in scores.items() if not np.isnan(score)}
        if are_numbers(self.names) or len(scores) < 2:
            return self.names[-1], self.names[0]
        return max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)

    def compared(self, scored: DepthScores) -> "Levels":
        """Return the levels with five prompts or more in each half; all, if they are fewer than 2.

        Levels in order are compared as a whole, so that five are enough.
        """
        names = [
            name
            for name in self.names
            if all((rows & (self.of == name)).sum() >= FEWEST for rows, _ in self._halves(scored))
        ]
        return Levels(self.of, names if len(names) > 1 else self.names)

    def pairs(self, scored: DepthScores) -> list[Pair]:
        """Return whose scores are compared: in each half, the extremes of the other half."""
        pairs = []
        for rows, others in self._halves(scored):
            deep, shallow = self.extremes(scored, others)
            pairs.append((rows & (self.of == deep), rows & (self.of == shallow)))
        return pairs

    def _halves(self, scored: DepthScores) -> list[Pair]:
        """Return on which prompts levels are measured, and on which they are picked."""
        if are_numbers(self.names):
            every = np.ones(len(self.of), bool)
            return [(every, every)]
        half = scored.grouping.half(seed=scored.seed)
        return [(half, ~half), (~half, half)]


def finding_of(scored: DepthScores, levels: Levels, effect: str) -> Finding:
    """Return by how much one level scores deeper than another."""
    known = [name for name in levels.names if not np.isnan(scored.value(levels.of == name))]
    if len(known) < 2:
        return Finding(f"Skipping a layer changes {effect} at fewer than two levels.")
    levels, has_order = Levels(levels.of, known).compared(scored), are_numbers(known)
    deep, shallow = levels.extremes(scored, np.ones(len(levels.of), bool))
    apart = scored.difference(levels.pairs(scored))
    by = f"By the effect on {effect}, {deep!r} scores"
    measure = f"layers by which a level scores deeper than another, by the effect on {effect}"
    if apart is None or not apart.has_interval:
        value = scored.value(levels.of == deep) - scored.value(levels.of == shallow)
        plain = Estimate(value, n=int(np.isin(levels.of, (deep, shallow)).sum()))
        how = f"{_deeper(plain)} than {shallow!r} (too few prompts of equal lengths)."
        note = "" if has_order else "picked and measured on the same prompts"
        return Finding(f"{by} {how}", plain, measure, note=note)
    if apart.excludes() and (has_order or apart.value > 0):
        how = f"{_deeper(apart)} than {shallow!r}."
    else:
        how = f"no deeper than {shallow!r}: {apart:.2f} layers."
    control = Compared(repr(shallow), scored.score(levels.of == shallow))
    note = "at equal lengths" if has_order else f"{PICKED}, at equal lengths"
    return Finding(f"{by} {how}", apart, measure, control, kind="compares", note=note)


def _deeper(apart: Estimate) -> str:
    if apart.value < 0:
        return f"{-apart:.2f} layers shallower"
    return f"{apart:.2f} layers deeper"
