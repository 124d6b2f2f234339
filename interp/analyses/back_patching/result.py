"""How many failures back-patching repairs, and how many its controls do."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.back_patching.failures import Failures
from interp.analyses.back_patching.frame import group_frame, whole_frame
from interp.figures.plots import Axes, grids_over_rates
from interp.figures.words import counted
from interp.result import Compared, Finding, Result
from interp.stats.estimate import estimate
from interp.sweeps.tags import texts_of

_SHOWN = {
    "back": "back-patching",
    "identity": "own output (identity)",
    "forward": "forward (early to late)",
    "example": "another prompt's vector",
    "random": "random direction",
    "position": "random position",
    "sampled": "sampled answers, no patch",
    "rescaled": "back-patching at the target's norm",
}
_WHERE = {"subject": "the first hop's last token", "last": "the last token"}
_FEWEST_FAILURES = 10  # in a group that findings and figures name
_MOST_GROUPS = 5


@dataclass(frozen=True, repr=False)
class BackPatchingResult(Failures, Result):
    """Rates over the failures; groups of prompts are results of their own."""

    def groups(self) -> dict[str, "BackPatchingResult"]:
        """Return the result for all prompts and, where they differ, for each value of the tag."""
        tags = np.array(texts_of(self.arrays["tag"]))
        groups = {"all": self}
        for tag in sorted({*tags} - {""}) if len({*tags}) > 1 else []:
            arrays = {key: array[tags == tag] for key, array in self.arrays.items()}
            groups[str(tag)] = BackPatchingResult(self.analysis, arrays)
        return groups

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group of prompts, statistic and kind of patch.

        Statistic "pair" also has a row per source and target layer.

        "oracle": the share of failures that any of `tries` pairs repairs; "fixed": that one pair
        does, chosen on one half and scored on the other (source and target: the best on all);
        "oracle gain" and "fixed gain": the method's rate minus this control's; "pair": what this
        pair does: mean rank of the answer and mean changes of its logit, and of its logit minus the
        bridge's, over the failures, and `kept`, the share of right answers that stay right; "lens":
        the share of failures, or of right answers, of which the bridge is the lens's first guess
        where the patch ends, after layer `source`. 95 % bootstrap intervals over prompts.
        """
        return whole_frame({name: group_frame(group) for name, group in self.groups().items()})

    def _reported_groups(self) -> dict[str, "BackPatchingResult"]:
        """Return up to five groups with enough failures, the most repaired first, or else all."""
        groups = {k: r for k, r in self.groups().items() if r.is_failure.sum() >= _FEWEST_FAILURES}
        groups.pop("all", None)
        most = sorted(groups, key=lambda name: -int(groups[name].is_failure.sum()))[:_MOST_GROUPS]
        return {name: groups[name] for name in groups if name in most} or {"all": self}

    def plot(self) -> go.Figure:
        """Draw by group the share of failures that each pair of layers repairs, and the rates."""
        grids, bars = {}, {}
        for name, result in (self._reported_groups() if self.is_failure.any() else {}).items():
            grid = np.full((self.n_layers, self.n_layers), np.nan)
            for kind in ("back", "forward") if "forward" in self.analysis.controls else ("back",):
                grid[self.pairs(kind)] = result.repaired(kind).mean(0)
            title = f"{name}: {counted(int(result.is_failure.sum()), 'failure')}"
            grids[title] = grid
            bars[title] = pd.DataFrame(
                {"kind": _SHOWN[kind]} | result.rate(kind, "fixed").columns("rate")
                for kind in self.kinds
            )
        below = "share repaired by one fixed pair, chosen on the other half of the failures"
        return grids_over_rates(
            grids,
            bars,
            axes=Axes("target layer", "source layer", of="share of the failures repaired"),
            below=f"{below} (95 % intervals)",
            title=f"Back-patching at {_WHERE[self.analysis.position]} (below the diagonal, as a"
            " control: early layers over late ones)",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what one pair repairs in the group with most repairs, its gain, and the least."""
        n, failures = len(self.is_failure), int(self.is_failure.sum())
        right = int(self.arrays["is_right"].sum())
        if not failures:
            unknown = f", {n - right} wrong but with a single hop that is not known"
            return (
                Finding(
                    f"Nothing to repair: of {n} prompts {right} are right{unknown * (right < n)}."
                ),
            )
        if failures < _FEWEST_FAILURES:
            asked = bool((self.arrays["hops"] >= 0).all())
            hops = "both single hops known" if asked else "single hops not asked"
            return (
                Finding(
                    f"{failures} of {n} prompts fail ({hops}):"
                    f" too few for rates ({_FEWEST_FAILURES} are needed).",
                    estimate(self.is_failure, seed=self.analysis.seed),
                    "share of prompts to repair; too few for rates",
                ),
            )
        groups = self._reported_groups()
        by_rate = sorted(groups, key=lambda name: -groups[name].scores("back", "fixed").mean())
        first = groups[by_rate[0]]
        rates = [first._rate_finding(by_rate[0]), first._gain_finding(by_rate[0])]
        others = [groups[name]._rate_finding(name) for name in by_rate[1:][-1:]]
        return (*rates, *others)

    def _rate_finding(self, group: str) -> Finding:
        (source, target), fixed = self.best_pair(), self.rate("back", "fixed")
        control = self.best_control("fixed")
        before = "At" if group == "all" else f"{group}: at"
        return Finding(
            f"{before} {_WHERE[self.analysis.position]}, one pair of layers (best: {source} over"
            f" {target}) repairs {fixed:.0%} of the failures.",
            fixed,
            "share of failures that one fixed pair of layers repairs",
            rival=Compared(_SHOWN[control], self.rate(control, "fixed")),
        )

    def _gain_finding(self, group: str) -> Finding:
        control = self.best_control("fixed")
        gain = self.rate("back", "fixed", over=control)
        of = "" if group == "all" else f" in {group}"
        claim = (
            f"One pair repairs {gain:.0%} more of the failures{of} than the best control,"
            f" {_SHOWN[control]}."
        )
        if not gain.excludes():
            claim = (
                f"One pair does not clearly repair more of the failures{of} than the best control,"
                f" {_SHOWN[control]}: {gain:.0%}."
            )
        return Finding(
            claim,
            gain,
            "share of failures that one fixed pair of layers repairs, above the best control's",
        )
