"""How alike matched units are by layer, and the loss on the way from one MLP to the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.unit_map.barrier import SHARES
from interp.figures.plots import lines_over_depth
from interp.numerals import number
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.groups import Array, Groups

if TYPE_CHECKING:
    from interp.analyses.unit_map import UnitMap

KINDS = ("target", "unrelated layer", "shuffled tokens", "untrained")
CORRELATION = "correlation of matched neurons"
FITTED = "the same on the prompts that chose the match"
HEADS = "CKA of matched heads"
STABLE = "same partner by either half"
ORDERS = ("matched", "as they are")
BARRIER = "loss above its ends, nats"
_BARRIER = "loss halfway above its ends, nats"
_HALFWAY = SHARES.index(0.5)


@dataclass(frozen=True, repr=False)
class UnitMapResult(Result):
    """Arrays: correlation [prompt layer kind], tokens [prompt], loss [prompt layer share 2], …

    … and, equal for all prompts: fitted and heads [prompt layer kind], stable and layers
    [prompt layer]. Only held-out prompts have tokens.
    """

    analysis: "UnitMap"
    arrays: dict[str, np.ndarray]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of partners, the target first."""
        return KINDS[: self.arrays["fitted"].shape[2]]

    @property
    def layers(self) -> np.ndarray:
        """Return the layers that were matched."""
        layers: np.ndarray = self.arrays["layers"][0]
        return layers

    def correlation(self, kind: str = KINDS[0]) -> Array:
        """Return the mean correlation of matched neurons on held-out prompts [layer]."""
        values = self._held("correlation")[..., self.kinds.index(kind)]
        mean: Array = np.average(values, axis=0, weights=self._held("tokens"))
        return mean

    def barrier(self) -> Array | None:
        """Return the loss above the straight line between its ends [layer share order], in nats.

        Orders are `ORDERS`. None where MLPs were not moved.
        """
        barriers = self._barriers()
        return None if barriers is None else np.asarray(barriers.mean(0))

    def _held(self, name: str) -> Array:
        values: Array = self.arrays[name][self.arrays["tokens"] > 0].astype(np.float64)
        return values

    @property
    def _groups(self) -> Groups | None:
        return self.groups_of(self.arrays["tokens"] > 0)

    def _barriers(self) -> Array | None:
        if "loss" not in self.arrays:
            return None
        losses, shares = self._held("loss"), np.array(SHARES)[:, None]
        line = (1 - shares) * losses[:, :, :1] + shares * losses[:, :, -1:]
        barriers: Array = losses - line
        return barriers

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, kind, layer, share, mean, low and high.

        Correlations are over held-out tokens, mean over units; their 95 % intervals are over groups
        of prompts, to first order in each unit's variance.
        """
        frame = pd.concat([*self._rows()], ignore_index=True)
        return frame.astype({"layer": "Int64", "share": float, "low": float, "high": float})

    def _rows(self) -> Iterator[pd.DataFrame]:
        weights = self._held("tokens")
        for i, kind in enumerate(self.kinds):
            keys = {"measure": CORRELATION, "kind": kind, "layer": self.layers, "share": np.nan}
            values = self._held("correlation")[..., i]
            yield pd.DataFrame(keys | self._columns(values, weights))
            for measure, name in ((FITTED, "fitted"), (HEADS, "heads")):
                yield self._constant(measure, kind, self.arrays[name][0, :, i])
        yield self._constant(STABLE, KINDS[0], self.arrays["stable"][0])
        barriers = self._barriers()
        if barriers is None:
            return
        for (s, share), (i, order) in product(enumerate(SHARES), enumerate(ORDERS)):
            keys = {"measure": BARRIER, "kind": order, "layer": self.layers}
            columns = self._columns(barriers[:, :, s, i], np.ones(len(barriers)))
            yield pd.DataFrame(keys | {"share": share} | columns)

    def _columns(self, values: Array, weights: Array) -> dict[str, Array]:
        seed = self.analysis.seed
        columns = estimates(values, weights=weights, groups=self._groups, seed=seed)
        return {name: columns[name] for name in ("mean", "low", "high")}

    def _constant(self, measure: str, kind: str, values: np.ndarray) -> pd.DataFrame:
        keys = {"measure": measure, "kind": kind, "layer": self.layers, "share": np.nan}
        numbers = {"mean": values.astype(np.float64), "low": np.nan, "high": np.nan}
        return pd.DataFrame(keys | numbers)

    def plot(self) -> go.Figure:
        """Draw by layer how alike matched neurons and heads are, and the barrier halfway."""
        frame = self.to_frame()
        frame["layer"] = frame["layer"].astype(int)
        alike = frame[frame["measure"].isin((CORRELATION, HEADS))]
        halfway = frame[frame["share"] == SHARES[_HALFWAY]].assign(measure=_BARRIER)
        drawn = pd.concat([alike, halfway])
        drawn = drawn.replace({"kind": _LINES})
        target = self.analysis.target or "an untrained twin"
        title = f"Units matched to those of {target}, by layer, on held-out prompts"
        return lines_over_depth(drawn, y="mean", groups="kind", panels="measure", title=title)

    def findings(self) -> tuple[Finding, ...]:
        """Return how alike matched neurons are, and whether the way between MLPs is even."""
        barriers = self._barriers()
        of_loss = () if barriers is None else (self._of_barrier(barriers),)
        return (self._of_correlation(), *of_loss)

    def _of_correlation(self) -> Finding:
        means = {
            kind: estimate(
                self._held("correlation")[..., i].mean(1),
                weights=self._held("tokens"),
                groups=self._groups,
                seed=self.analysis.seed,
            )
            for i, kind in enumerate(self.kinds)
        }
        of_target = means[KINDS[0]]
        control = KINDS[3] if KINDS[3] in means else KINDS[2]
        stable, fitted = self.arrays["stable"][0].mean(), self.arrays["fitted"][0].mean(0)
        target = "those of an untrained twin" if self.analysis.target is None else "the target's"
        return Finding(
            f"Neurons matched to {target} correlate by {of_target:.2f} with them on prompts that"
            " did not choose the match.",
            of_target,
            "correlation of matched neurons on held-out prompts, mean over neurons and layers",
            control=Compared(f"matched to {_OTHERS[control]}", means[control]),
            rival=Compared("matched to an unrelated layer", means[KINDS[1]]),
            note=f"{number(stable, '.0%')} have the same partner by either half of the prompts; on"
            f" those that chose the match {fitted[0]:.2f}, at shuffled tokens {fitted[2]:.2f}",
        )

    def _of_barrier(self, barriers: Array) -> Finding:
        ends = [self._mean(barriers[:, :, _HALFWAY, i].mean(1)) for i in (0, 1)]
        where, beyond = ("below", -ends[0]) if ends[0].value < 0 else ("above", ends[0])
        return Finding(
            f"Halfway to the target's MLP with matched neurons, the loss is {beyond:.2g} nats"
            f" {where} the mean of both ends.",
            ends[0],
            "loss halfway between both MLPs, matched, above the mean of its ends, nats,"
            " mean over layers",
            control=Compared("neurons as they are", ends[1]),
        )

    def _mean(self, values: Array) -> Estimate:
        return estimate(values, groups=self._groups, seed=self.analysis.seed)


_LINES = {"matched": "neurons matched", "as they are": "neurons as they are"}
_OTHERS = {KINDS[2]: "the target's at shuffled tokens", KINDS[3]: "an untrained model's"}
