"""How often each sublayer projects each token, over prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import lines_over_depth
from interp.figures.words import PICKED, how_often, points
from interp.numerals import number
from interp.result import Compared, Finding, Result
from interp.stats.groups import Groups
from interp.stats.picked import picked
from interp.stats.shares import share, share_difference, shares
from interp.sweeps.two_hop import (
    PARTS,
    RIGHT,
    answer_groups,
    compared_frame,
    empty_figure,
    nothing_compared,
)

if TYPE_CHECKING:
    from interp.analyses.sublayer_projection import SublayerProjection

TOKENS = ("bridge", "answer", "prediction", "another's bridge", "another's answer")
_WHERE = {
    "last": "the prompt's last token",
    "subject": "the last token of the first-hop phrase",
}


@dataclass(frozen=True, repr=False)
class SublayerProjectionResult(Result):
    """Per prompt: `arrays["rank"]` [prompt part layer token] of `PARTS` and `TOKENS`."""

    analysis: "SublayerProjection"
    arrays: dict[str, np.ndarray]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, part, token and layer.

        `rate` is the share of prompts in which the part projects the token (rank 0), with its 95 %
        (Wilson's) interval over groups of prompts; layer missing: in any layer, which is as many
        tries as there are layers. `median_rank` is the median number of tokens above it.
        """
        rows = [
            self._rows(group, part, token)
            for group in answer_groups(self.arrays)
            for part in PARTS
            for token in TOKENS
        ]
        whole = dict.fromkeys(("layer", "n_prompts"), "Int64")
        real = dict.fromkeys(("rate", "low", "high", "median_rank"), "float64")
        return compared_frame(rows, keys=["group", "part", "token"], types=whole | real)

    def _ranks(self, group: str, part: str, token: str) -> np.ndarray:
        """Return the token's ranks [prompt layer] in what a part writes."""
        rank = self.arrays["rank"][answer_groups(self.arrays)[group]]
        of_token: np.ndarray = rank[:, PARTS.index(part), :, TOKENS.index(token)]
        return of_token

    def _rows(self, group: str, part: str, token: str) -> pd.DataFrame:
        ranks = self._ranks(group, part, token)
        ranks = np.concatenate([ranks, ranks.min(1, keepdims=True)], axis=1)
        keys = {"group": group, "part": part, "token": token}
        layers = {"layer": [*range(ranks.shape[1] - 1), None]}
        rates = shares(ranks == 0, groups=self._groups(group))
        columns = keys | layers | rates | {"median_rank": np.median(ranks, axis=0)}
        return pd.DataFrame(columns).rename(columns={"mean": "rate"})

    def plot(self) -> go.Figure:
        """Draw the share of prompts in which each sublayer projects each token, layer by layer."""
        frame = self.to_frame().astype({"group": str, "part": str}).dropna(subset=["layer", "rate"])
        is_answer = (frame["group"] == RIGHT) & (frame["token"] == "prediction")
        frame = frame[(frame["part"] != "stream") & ~is_answer]
        frame["panel"] = frame["part"] + ", " + frame["group"]
        title = (
            "Share of prompts in which a write alone projects an entity, at"
            f" {_WHERE[self.analysis.position]}"
        )
        if frame.empty:
            return empty_figure(title)
        figure = lines_over_depth(frame, y="rate", groups="token", panels="panel", title=title)
        figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
        return figure.update_yaxes(title_text="share of prompts", col=1)

    def _groups(self, group: str) -> Groups | None:
        """Return the groups of the prompts with such answers."""
        chosen = answer_groups(self.arrays)[group]
        return None if self.prompt_groups is None else self.prompt_groups[chosen]

    def findings(self) -> tuple[Finding, ...]:
        """Return whether attention writes the bridge, and MLPs the answer, beyond chance."""
        groups = answer_groups(self.arrays)
        if not groups:
            return (Finding(nothing_compared(self.arrays)),)
        written = [self._written(group, "attention", "bridge") for group in groups]
        if RIGHT in groups:
            written.insert(1, self._written(RIGHT, "MLP", "answer"))
        return tuple(written)

    def _written(self, group: str, part: str, entity: str) -> Finding:
        """Return in how many more prompts a part writes their own entity than another's."""
        names = entity, f"another's {entity}"
        own, others = (self._ranks(group, part, name) == 0 for name in names)
        groups = self._groups(group)
        more = share_difference(own.any(1), others.any(1), groups=groups)
        most = picked(own, groups=groups, seed=self.analysis.seed)
        who = "attention writes" if part == "attention" else "MLPs write"
        if not more.has_interval:
            often = f"more often than another's by {points(more)}, of too few prompts to tell"
        else:
            often = how_often(more, "another prompt's")
        return Finding(
            f"With {group}, {who} the {entity} in some layer {often}.",
            more,
            f"share of prompts with {group} in which {part} writes the {entity} in any layer, above"
            " another prompt's",
            control=Compared(f"another prompt's {entity}", share(others.any(1), groups=groups)),
            kind="compares",
            note=f"its own: {share(own.any(1), groups=groups):.0%}; most often in layer"
            f" {most.index}: {number(most.estimate.value, '.0%')}, {PICKED}",
        )
