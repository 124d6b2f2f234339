"""What shared layers cost, beside as many parameters without sharing, and where."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.recursion.design import MOST_KEPT
from interp.analyses.recursion.drawing import drawn
from interp.analyses.recursion.findings import findings_of
from interp.analyses.recursion.frame import frame_of
from interp.analyses.recursion.places import Place, pairs_of
from interp.analyses.recursion.whole import OUTCOMES
from interp.models.loops import NAMES, RANDOM
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate_of
from interp.stats.ranks import partial_estimate

if TYPE_CHECKING:
    from interp.analyses.recursion import Recursion

_KL = OUTCOMES.index("kl")


@dataclass(frozen=True, repr=False)
class RecursionResult(Result):
    """Arrays: loops [prompt variant outcome], grid, alone, and what `Recursion.prepare` says."""

    analysis: "Recursion"
    arrays: dict[str, np.ndarray]

    @cached_property
    def variants(self) -> pd.DataFrame:
        """Return one row a variant: name, shared, rank, draw, kept (share of parameters)."""
        table = self.arrays["table"][0]
        frame = pd.DataFrame(table[:, 1:], columns=["shared", "rank", "draw", "kept"])
        frame.insert(0, "name", [NAMES[int(each)] for each in table[:, 0]])
        return frame.astype({"shared": int, "rank": int, "draw": int})

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of shared layers."""
        return list(dict.fromkeys(self.variants["shared"].tolist()))

    @property
    def judged_rank(self) -> int:
        """Return the first loop's largest rank that saves a quarter of the parameters, or 0."""
        of = self.variants[self._is(self.analysis.inits[0], self.numbers[0])]
        saving = of.loc[of["kept"] <= MOST_KEPT, "rank"]
        return int(saving.max()) if len(saving) else 0

    def _is(self, name: str, n_shared: int | None = None, rank: int | None = None) -> np.ndarray:
        table = self.variants
        same = (table["name"] == name) & (table["shared"] == (n_shared or self.numbers[0]))
        return (same if rank is None else same & (table["rank"] == rank)).to_numpy()

    @property
    def random_draws(self) -> np.ndarray:
        """Return the KL of layers that share at random, at the judged rank [prompt draw]."""
        draws: np.ndarray = self.arrays["loops"][:, self._is(RANDOM, rank=self.judged_rank), _KL]
        return draws

    def outcome(
        self, name: str, rank: int, outcome: str = "kl", *, n_shared: int | None = None
    ) -> np.ndarray:
        """Return an outcome per prompt [prompt]; random assignments' is the mean over draws.

        `n_shared` is by default the first. The rank of a truncated SVD is that of the first loop
        with as many parameters.
        """
        values = self.arrays["loops"][:, self._is(name, n_shared, rank), OUTCOMES.index(outcome)]
        mean: np.ndarray = values.mean(1)
        return mean

    def kept(self, name: str, rank: int, *, n_shared: int | None = None) -> float:
        """Return the parameters of the blocks' matrices that are kept, as a share."""
        return float(self.variants.loc[self._is(name, n_shared, rank), "kept"].iloc[0])

    @property
    def alone(self) -> np.ndarray:
        """Return the KL of each layer alone with what it would share [prompt init layer]."""
        return self.arrays["alone"][..., _KL]

    @property
    def pairs(self) -> list[Place]:
        """Return the grid's pairs of layers."""
        return pairs_of(self.analysis.grid, self.arrays["kinds"][0].tolist())

    @cached_property
    def relations(self) -> dict[str, Estimate]:
        """Return rank correlations of pairs' KL with how alike they are, over pairs.

        With CKA of outputs, cosine of weights and distance; "beyond distance": given the distance.
        Intervals are over prompts and pairs, as if pairs had no layers in common.
        """
        if len(self.pairs) < 4:
            return {}
        distance = np.abs([each.layer - (each.other or 0) for each in self.pairs]).astype(float)
        none, given = np.zeros((0, len(distance))), distance[None]
        sides = {"CKA": self.arrays["cka"][0], "cosine of weights": self.arrays["cosine"][0]}
        asked = {name: (values, none) for name, values in sides.items()} | {
            "distance": (distance, none)
        }
        asked |= {f"{name}, beyond distance": (values, given) for name, values in sides.items()}
        return {name: self._relation(*each) for name, each in asked.items()}

    def _relation(self, values: np.ndarray, given: np.ndarray) -> Estimate:
        kl = self.arrays["grid"][..., _KL]
        both = np.stack([kl, np.broadcast_to(values, kl.shape)], axis=1)
        if not np.isfinite(both).all():
            return Estimate(float("nan"))
        return partial_estimate(both, given, groups=self.prompt_groups, seed=self.analysis.seed)

    @property
    def additivity(self) -> Estimate:
        """Return the KL of the first strict loop over the sum of its layers' alone."""
        whole = self.outcome(self.analysis.inits[0], 0)
        values = np.stack([whole, self.alone[:, 0].sum(1)], axis=1)

        def share(means: np.ndarray) -> float:
            return float(means[0] / means[1]) if means[1] > 0 else float("nan")

        return estimate_of(share, values, groups=self.prompt_groups, seed=self.analysis.seed)

    def to_frame(self) -> pd.DataFrame:
        """Return columns what, name, shared, rank, kept, layer, other, matrix, measure, mean, ….

        What: "loop", all layers share; "alone", one `layer` does; "pair", a `layer` has the weights
        of the `other`; "weights", their error, or the rank that holds 90 % of the energy of what
        a layer's `matrix` does not share; "relation" of pairs; "additivity". `kept` is the share of
        parameters, `shared` the number of shared layers. Intervals (95 %) are over groups.
        """
        return frame_of(self)

    def plot(self) -> go.Figure:
        """Draw KL by parameters kept, a panel per number of shared layers; layers alone; pairs."""
        return drawn(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return sharing beside truncated SVDs and random loops, and the layer hurt most."""
        return findings_of(self)
