"""How closely cheap scores follow exact patching, beside a score that needs no gradient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.figures.plots import scatters_with_diagonal
from interp.figures.words import by_sign
from interp.result import Compared, Finding, Result
from interp.sites import SiteKind
from interp.stats.agreement import MEASURES, Resampled, agreement
from interp.stats.estimate import Estimate, estimate
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.carriers import NOUNS, components
from interp.sweeps.node_scores import NodeScores

if TYPE_CHECKING:
    from interp.analyses.patching_agreement import PatchingAgreement

Array = NDArray[np.float64]
LEVELS = ("averaged over prompts", "prompt by prompt")
EDGES = "edges"
_DISTANCE = "how far each activation moves"


@dataclass(frozen=True, repr=False)
class PatchingAgreementResult(Result):
    """Scores and exact effects of all nodes, and by name those of edges [prompt edge]."""

    analysis: "PatchingAgreement"
    scores: NodeScores
    edges: Mapping[str, Array] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of nodes, and "edges" where there are any."""
        return (*self.analysis.nodes, *[EDGES] * bool(self.edges))

    def _has(self, name: str, kind: str) -> bool:
        return f"{name} {kind}" in {**self.scores.scores, **self.edges}

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of clean and corrupted prompts: what there is to carry."""
        analysis, groups = self.analysis, self.prompt_groups
        return self.scores.behaviour(
            analysis.metric, analysis.direction, groups=groups, seed=analysis.seed
        )

    @cached_property
    def averaged(self) -> dict[tuple[str, str], Resampled]:
        """Return the agreement of mean scores with mean effects, by method and kind of node.

        Method "distance" is the control: the norm of each activation's change between the runs,
        which needs no gradient, with the sign that effects have in this direction.
        """
        analysis, behaviour = self.analysis, self.behaviour
        asked = ((name, kind) for kind in self.kinds for name in (*analysis.methods, "distance"))
        return {
            (name, kind): Resampled.of(
                self._flat(name, kind),
                self._flat("exact", kind),
                gap=behaviour.gap_values,
                top_k=analysis.top_k,
                groups=self.prompt_groups,
                seed=analysis.seed,
            )
            for name, kind in asked
            if self._has(name, kind)
        }

    def _flat(self, name: str, kind: str) -> Array:
        """Return scores [prompt node], NaN where a prompt has no such position."""
        if kind == EDGES:
            return self.edges[f"{name} {kind}"]
        values = self.scores.scores[f"{name} {kind}"].values.astype(np.float64)
        flat: Array = values.reshape(len(values), -1)
        return -flat if name == "distance" and self.analysis.direction == "noise" else flat

    def _alone(self, name: str, kind: str) -> dict[str, Estimate]:
        """Return the mean over prompts of each one's agreement, by measure."""
        pairs = zip(self._flat(name, kind), self._flat("exact", kind), strict=True)
        gap, analysis = self.behaviour.gap.value, self.analysis
        rows = [agreement(*pair, gap=gap, top_k=analysis.top_k) for pair in pairs]
        found = {}
        for measure, column in pd.DataFrame(rows, columns=MEASURES).items():
            known = column.notna().to_numpy()
            groups = None if self.prompt_groups is None else self.prompt_groups[known]
            found[str(measure)] = estimate(column[known], groups=groups, seed=analysis.seed)
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return columns node, method, level, measure, value, low, high and n_prompts.

        Level "averaged over prompts" compares mean scores; its intervals redraw groups of prompts,
        scores and effects together (bias-corrected percentiles). "prompt by prompt" is the mean
        over prompts of each one's agreement. Both relate errors and thresholds to the mean gap, and
        errors are NaN where there is no behaviour. Method "distance", the control, has "pearson"
        only. Node "edges" are those into the receivers. Positions count from the prompts' ends.
        """
        rows = []
        for (method, kind), averaged in self.averaged.items():
            levels = ({m: averaged.estimate(m) for m in MEASURES}, self._alone(method, kind))
            for level, found in zip(LEVELS, levels, strict=True):
                for measure, number in found.items():
                    if method == "distance" and measure != "pearson":
                        continue  # it has neither the effects' unit nor their sign
                    if measure == "mean absolute error" and self.behaviour.is_absent:
                        number = Estimate(np.nan, n=number.n)
                    keys = {"node": kind, "method": method, "level": level, "measure": measure}
                    rows.append(keys | number.columns("value"))
        return pd.DataFrame(rows)

    def _mean(self, name: str, kind: str) -> Array:
        if kind == EDGES:
            mean: Array = self.edges[f"{name} {kind}"].mean(0)
            return mean
        return self.scores.mean(f"{name} {kind}").ravel()

    def plot(self) -> go.Figure:
        """Draw estimates against exact effects, means over prompts, one panel per kind of node."""
        frames = []
        for kind in self.kinds:
            exact = self._mean("exact", kind)
            for method in [each for each in self.analysis.methods if self._has(each, kind)]:
                cheap = self._mean(method, kind)
                frames.append(
                    pd.DataFrame(
                        {"exact": exact, "estimate": cheap, "method": method, "node": kind}
                    )
                )
        title = (
            f"Estimates against exact patching ({self.analysis.metric}, mean over prompts;"
            " one point a node)"
        )
        return scatters_with_diagonal(
            pd.concat(frames), x="exact", y="estimate", groups="method", panels="node", title=title
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return two methods' correlations with exact patching of components, against the control.

        Without a behaviour, the only finding is that there is none to explain.
        """
        if self.behaviour.is_absent:
            return (self.behaviour.finding(),)
        methods = self.analysis.methods
        found = [self._correlation(methods[0], *methods[1:2])]
        if self._control is not None:
            found.append(self._beyond(methods[0], self._control))
        found += [self._correlation(other, methods[0]) for other in methods[1:2]]
        return tuple(found)

    @property
    def _kind(self) -> SiteKind:
        return components(self.analysis.nodes)[0]

    @property
    def _control(self) -> Resampled | None:
        return self.averaged.get(("distance", self._kind))

    def _pearson(self, method: str) -> Estimate:
        return self.averaged[method, self._kind].estimate("pearson")

    def _correlation(self, method: str, rival: str | None = None) -> Finding:
        control, number, what = self._control, self._pearson(method), f"{NOUNS[self._kind]}s"
        return Finding(
            f"By {method}, scores of {what} correlate with exact patching at {number:.2f}.",
            number,
            f"Pearson correlation of {method} with exact patching ({self._kind})",
            control=None if control is None else Compared(_DISTANCE, control.estimate("pearson")),
            rival=None if rival is None else Compared(rival, self._pearson(rival)),
            note=str(self.behaviour),
        )

    def _beyond(self, method: str, control: Resampled) -> Finding:
        beyond = self.averaged[method, self._kind].estimate("pearson", beyond=control)
        claim = by_sign(
            beyond,
            above=f"That is {beyond:.2f} more than {_DISTANCE} correlates with it.",
            below=f"That is {-beyond:.2f} less than {_DISTANCE} correlates with it.",
            unclear=f"They are not shown to agree better than {_DISTANCE} does: {beyond:.2f} more.",
        )
        return Finding(
            claim,
            beyond,
            f"Pearson correlation of {method} beyond that of distances ({self._kind})",
            control=Compared(_DISTANCE, control.estimate("pearson")),
            kind="compares",
            note="Both correlations are of the same draws of groups.",
        )
