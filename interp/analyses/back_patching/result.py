"""How many failures back-patching repairs, and how many its controls do."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.back_patching.failures import Failures
from interp.analyses.back_patching.frame import group_frame, whole_frame
from interp.figures.plots import Axes, grids_over_rates
from interp.figures.words import by_sign, counted, how_picked, points
from interp.result import Compared, Finding
from interp.stats.groups import FEWEST
from interp.stats.shares import share
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
_RATE = "share of failures that one fixed pair of layers repairs"


@dataclass(frozen=True, repr=False)
class BackPatchingResult(Failures):
    """Rates over the failures; groups of prompts are results of their own."""

    def groups(self) -> dict[str, "BackPatchingResult"]:
        """Return the result for all prompts and, where they differ, for each value of the tag."""
        tags = np.array(texts_of(self.arrays["tag"]))
        groups = {"all": self}
        for tag in sorted({*tags} - {""}) if len({*tags}) > 1 else []:
            has_tag = tags == tag
            arrays = {key: array[has_tag] for key, array in self.arrays.items()}
            of_tag = BackPatchingResult(self.analysis, arrays).of_groups(self.groups_of(has_tag))
            groups[str(tag)] = of_tag
        return groups

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group of prompts, statistic and kind of patch.

        Statistic "pair" also has a row per source and target layer.

        "oracle": the share of failures that any of `tries` pairs repairs; "fixed": that one pair
        does, chosen on one half and scored on the other (source and target: the best on all);
        "oracle gain" and "fixed gain": the method's rate minus this control's; "pair": what this
        pair does: mean rank of the answer and mean changes, in nats, of its log-probability and of
        its logit less the bridge's, over the failures, and `kept`, the share of right answers that
        stay right; "lens": the share of failures, or of right answers, of which the bridge is the
        lens's first guess where the patch ends, after layer `source`. Rates and gains have the 95 %
        intervals of `shares` and `share_differences` over groups of prompts.
        """
        return whole_frame({name: group_frame(group) for name, group in self.groups().items()})

    def _reported_groups(self) -> dict[str, "BackPatchingResult"]:
        """Return the five groups with most failures that have enough for rates, or else all."""
        groups = {name: result for name, result in self.groups().items() if result._is_enough}
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

    @property
    def _is_enough(self) -> bool:
        """Tell whether there are enough failures, of enough groups, for rates."""
        n_groups = self.grouping.n_groups
        return int(self.is_failure.sum()) >= _FEWEST_FAILURES and n_groups >= FEWEST

    def findings(self) -> tuple[Finding, ...]:
        """Return what one pair repairs above the best control: of all, then by tag, or its rate.

        Of tags, those two come that have most failures, whatever is repaired of them.
        """
        if not self._is_enough:
            return (self._too_few(),)
        tags = self._reported_groups()
        tags.pop("all", None)
        most = sorted(tags, key=lambda name: -int(tags[name].is_failure.sum()))[:2]
        more = [tags[name]._gain_finding(name) for name in most] or [self._rate_finding()]
        return (self._gain_finding(), *more)

    def _too_few(self) -> Finding:
        n, failures = len(self.is_failure), int(self.is_failure.sum())
        right, hops = int(self.arrays["is_right"].sum()), self.arrays["hops"][self.is_failure]
        if not failures:
            unknown = f", {n - right} wrong but with a single hop that is not known"
            return Finding(
                f"Nothing to repair: of {n} prompts {right} are right{unknown * (right < n)}."
            )
        known = "single hops not asked" if (hops < 0).all() else "single hops known where asked"
        if (hops > 0).all():
            known = "both single hops known"
        return Finding(
            f"{failures} of {n} prompts fail ({known}):"
            f" too few for rates ({_FEWEST_FAILURES} are needed, of {FEWEST} groups).",
            share(self.is_failure, groups=self.prompt_groups),
            "share of prompts to repair; too few for rates",
        )

    def _gain_finding(self, tag: str = "") -> Finding:
        (source, target), (control, gain) = self.best_pair(), self.over_best_control()
        than = "of the failures than the best control"
        repairs = by_sign(
            gain,
            above=f"{points(gain)} more {than}.",
            below=f"{points(-gain)} fewer {than}.",
            unclear=f"not measurably more {than}: {points(gain)}.",
        )
        where = f"At {_WHERE[self.analysis.position]}"
        return Finding(
            f"{f'{tag}:' if tag else f'{where},'} one pair of layers"
            f" (best: {source} over {target}) repairs {repairs}",
            gain,
            f"{_RATE}, above the best control's{f': {tag}' if tag else ''}",
            control=Compared(_SHOWN[self.best_control("fixed")], control),
            kind="compares",
            note=how_picked(gain),
        )

    def _rate_finding(self) -> Finding:
        rate = self.rate("back", "fixed")
        claim = f"One fixed pair of layers repairs {rate:.0%} of the failures."
        return Finding(claim, rate, _RATE, note=how_picked(rate))
