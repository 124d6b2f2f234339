"""Which pairs of layers repair which failures, by kind of patch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.back_patching.tries import n_pairs
from interp.result import Result
from interp.stats.estimate import Estimate
from interp.stats.groups import Grouping
from interp.stats.picked import Picked, picked, widened
from interp.stats.shares import share, share_difference

if TYPE_CHECKING:
    from interp.analyses.back_patching import BackPatching

_RIVALS = ("forward", "example", "random", "position", "sampled")  # "rescaled" is the method too


@dataclass(frozen=True, repr=False)
class Failures(Result):
    """Per prompt and pair: `arrays["own.right"]` [prompt source target]; rates over failures."""

    analysis: "BackPatching"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["own.rank"].shape[1])

    @property
    def is_failure(self) -> np.ndarray:
        """Return which prompts [prompt] are to be repaired: wrong ones without an unknown hop."""
        failure: np.ndarray = ~self.arrays["is_right"] & (self.arrays["hops"] != 0)
        return failure

    @property
    def grouping(self) -> Grouping:
        """Return the groups of the failures."""
        return Grouping.of(int(self.is_failure.sum()), self.groups_of(self.is_failure))

    @property
    def rivals(self) -> tuple[str, ...]:
        """Return the controls that the method has to beat, each with as many tries."""
        return tuple(x for x in _RIVALS if x in (*self.analysis.controls, "sampled"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the method, its variant and the rivals."""
        variant = ("rescaled",) if "rescaled" in self.analysis.controls else ()
        return ("back", *variant, *self.rivals)

    @property
    def has_bridge(self) -> np.ndarray:
        """Return which prompts [prompt] have a bridge."""
        there: np.ndarray = self.arrays["bridge_rank"][:, 0] >= 0
        return there

    def readable(self, which: np.ndarray) -> np.ndarray:
        """Return whether the lens reads the bridge where the patch ends [prompt layer]."""
        first: np.ndarray = self.arrays["bridge_rank"][which & self.has_bridge] == 0
        return first

    @property
    def n_tries(self) -> int:
        """Return how many pairs of layers each kind has."""
        return n_pairs(self.n_layers)

    def pairs(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target layers of the pairs of a kind."""
        later, earlier = np.tril_indices(self.n_layers, -1)
        return (earlier, later) if kind == "forward" else (later, earlier)

    def of_pairs(self, kind: str, what: str) -> np.ndarray:
        """Return what is right, ranks or changes [prompt pair]."""
        name = "own" if kind in ("back", "forward") else kind
        array: np.ndarray = self.arrays[f"{name}.{what}"]
        picked: np.ndarray = array[(slice(None), *self.pairs(kind))]
        return picked

    def repaired(self, kind: str) -> np.ndarray:
        """Return which pairs repair which failures [failure pair]."""
        done: np.ndarray = self.of_pairs(kind, "right")[self.is_failure] == 1
        return done

    def scores(self, kind: str, statistic: str) -> np.ndarray:
        """Return whether any pair ("oracle"), or one fixed pair ("fixed"), repairs each failure.

        The fixed pair is the best on the other half of the failures' groups. Of sampled answers it
        is the chance that one in as many, or a single one, is right.
        """
        if kind == "sampled":
            sampled = self.arrays["sampled.any" if statistic == "oracle" else "sampled.one"]
            return np.asarray(sampled[self.is_failure], dtype=np.float64)
        if statistic == "oracle":
            return np.asarray(self.repaired(kind).any(1), dtype=np.float64)
        return self._pick(self.repaired(kind)).measured

    def _pick(self, tries: np.ndarray, which: np.ndarray | slice = slice(None)) -> Picked:
        """Pick the best of tries [failure try], on some of the failures."""
        codes = self.grouping.codes[which]
        return picked(tries[which], groups=codes, seed=self.analysis.seed)

    def best_pair(self, kind: str = "back") -> tuple[int, int]:
        """Return the source and target layer that repair most failures."""
        best = self.repaired(kind).sum(0).argmax()
        sources, targets = self.pairs(kind)
        return int(sources[best]), int(targets[best])

    def best_control(self, statistic: str) -> str:
        """Return the control that repairs most failures."""
        return max(self.rivals, key=lambda kind: float(self.scores(kind, statistic).mean()))

    def rate(self, kind: str, statistic: str, *, over: str | None = None) -> Estimate:
        """Return the share of failures that are repaired, or its difference to another kind's."""
        scores = self.scores(kind, statistic)
        if over is not None:
            return self._above(scores, self.scores(over, statistic), statistic)
        rate = share(scores, groups=self.grouping.codes)
        is_picked = statistic == "fixed" and kind != "sampled"
        return widened(rate, between=(0.0, 1.0)) if is_picked else rate

    def _above(self, one: np.ndarray, other: np.ndarray, statistic: str) -> Estimate:
        difference = share_difference(one, other, groups=self.grouping.codes)
        return difference if statistic == "oracle" else widened(difference, between=(-1.0, 1.0))

    def over_best_control(self) -> tuple[Estimate, Estimate]:
        """Return the share that the best control's fixed try repairs, and the method's gain on it.

        Control and pair are both picked on the other half: the control by what its pairs, picked
        and scored on halves of that half, repair there.
        """
        tries = {kind: self._tries(kind) for kind in self.rivals}
        sizes = [each.shape[1] for each in tries.values()][:-1]
        first = dict(zip(tries, np.cumsum([0, *sizes]), strict=True))

        def choose(which: np.ndarray) -> int:
            rates = {kind: self._pick(each, which).measured.mean() for kind, each in tries.items()}
            best = max(rates, key=lambda kind: float(rates[kind]))
            return int(first[best] + tries[best][which].mean(0).argmax())

        codes, every = self.grouping.codes, np.concatenate([*tries.values()], axis=1)
        of_best = picked(every, choose=choose, groups=codes, seed=self.analysis.seed).measured
        gain = self._above(self.scores("back", "fixed"), of_best, "fixed")
        return widened(share(of_best, groups=codes), between=(0.0, 1.0)), gain

    def _tries(self, kind: str) -> np.ndarray:
        """Return what each of a control's tries repairs [failure try]."""
        return self.scores(kind, "fixed")[:, None] if kind == "sampled" else self.repaired(kind)

    def identity_change(self) -> float:
        """Return the largest change of an answer's log-probability by a layer's own output."""
        own = np.arange(self.n_layers)
        return float(np.abs(self.arrays["own.log_prob"][:, own, own]).max())

    def kept(self, kind: str) -> np.ndarray:
        """Return by pair the share of right answers that stay right; NaN if none is right."""
        stay = self.of_pairs(kind, "right")[self.arrays["is_right"]] == 1
        return np.asarray(stay.mean(0) if len(stay) else np.full(stay.shape[1], np.nan))
