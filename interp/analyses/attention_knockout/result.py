"""For which layers hiding the first hop changes the model's guess, over prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.attention_knockout.findings import ELSEWHERE, QUERIES, findings_of
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.shares import share_differences, shares
from interp.sweeps.cuts import half_width_of
from interp.sweeps.two_hop import (
    answer_groups,
    compared_frame,
    empty_figure,
)

if TYPE_CHECKING:
    from interp.analyses.attention_knockout import AttentionKnockout

CHANGED = "first guess changes, share of prompts"
LOSS = "loss of the answer's log-probability, mean (nats)"
_KEYS = {
    "subject": "the first hop's last token",
    "start": "the first hop's first token",
    "phrase": "the whole first hop",
}


@dataclass(frozen=True, repr=False)
class AttentionKnockoutResult(Result):
    """Whether the first guess changes, and what the answer loses, by window's centre.

    `arrays["key.changed"]` and `arrays["key.loss"]` are [prompt centre]; the control's begin with
    "elsewhere" instead. Parts of interp 0.1 have no losses.
    """

    analysis: "AttentionKnockout"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["key.changed"].shape[1])

    @property
    def key(self) -> str:
        """Return what is hidden."""
        return _KEYS[self.analysis.key]

    @property
    def half_width(self) -> int:
        """Return how many layers before and after a centre are cut."""
        return half_width_of(self.n_layers, self.analysis.half_width)

    @property
    def _hidden(self) -> dict[str, str]:
        """Return the names in the frame of what is hidden, the control last."""
        names = {"key": self.key, "elsewhere": ELSEWHERE}
        return {key: name for key, name in names.items() if f"{key}.changed" in self.arrays}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, hidden place, measure and layer (the window's centre).

        `mean` is the share of prompts whose first guess changes, or the mean loss of the answer's
        log-probability in nats, with the 95 % interval of `shares` (`estimates` for losses) over
        groups of prompts. Layer missing: changed at any layer. Hidden "difference": the key minus
        the control, paired.
        """
        rows = [self._rows(group, chosen) for group, chosen in answer_groups(self.arrays).items()]
        types = {"layer": "Int64", "n_prompts": "Int64"} | dict.fromkeys(
            ("mean", "low", "high"), "float64"
        )
        return compared_frame(rows, keys=["group", "hidden", "measure"], types=types)

    def _rows(self, group: str, chosen: np.ndarray) -> pd.DataFrame:
        how, columns = {"groups": self.groups_of(chosen)}, {}
        changed, losses = self.changed_guesses(chosen), self._of(chosen, "loss")
        for hidden, name in self._hidden.items():
            columns[name, CHANGED] = shares(_and_anywhere(changed[hidden]), **how)
            if losses:
                columns[name, LOSS] = estimates(losses[hidden], seed=self.analysis.seed, **how)
        if "elsewhere" in changed:
            key, other = (_and_anywhere(changed[hidden]) for hidden in self._hidden)
            columns["difference", CHANGED] = share_differences(key, other, **how)
            if losses:
                more = losses["key"] - losses["elsewhere"]
                columns["difference", LOSS] = estimates(more, seed=self.analysis.seed, **how)
        layers = [*range(self.n_layers), None]
        return pd.concat(
            pd.DataFrame(
                {"group": group, "hidden": hidden, "measure": measure}
                | {"layer": layers[: len(rows["mean"])]}
                | rows
            )
            for (hidden, measure), rows in columns.items()
        )

    def changed_guesses(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Return whether guesses change [prompt centre], by what is hidden, of some prompts."""
        return self._of(chosen, "changed")

    def _of(self, chosen: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """Return values [prompt centre] of some prompts by what is hidden; none without them."""
        return {
            hidden: self.arrays[f"{hidden}.{what}"][chosen].astype(np.float64)
            for hidden in self._hidden
            if f"{hidden}.{what}" in self.arrays
        }

    def plot(self) -> go.Figure:
        """Draw how often guesses change, and how far answers fall, by the window's centre."""
        frame = self.to_frame().astype({"group": str, "hidden": str})
        frame = frame.dropna(subset=["layer", "mean"])
        frame = frame[frame["hidden"] != "difference"]
        frame["line"] = frame["group"] + ": " + frame["hidden"]
        title = (
            f"What changes when {self.key} is hidden from"
            f" {QUERIES[self.analysis.query]}, in {2 * self.half_width + 1}"
            f" layer{'s' * (self.half_width > 0)} around each"
        )
        if frame.empty:
            return empty_figure(title)
        figure = lines_over_depth(frame, y="mean", groups="line", panels="measure", title=title)
        figure.update_yaxes(title_text="share of prompts", tickformat=".0%", col=1)
        return figure.update_yaxes(title_text="nats", col=2)

    def findings(self) -> tuple[Finding, ...]:
        """Return how many guesses the most critical layer changes, by group, and the last layer."""
        return findings_of(self)


def _and_anywhere(changed: np.ndarray) -> np.ndarray:
    """Return changes [prompt centre] and, last, whether there is one at any centre."""
    return np.concatenate([changed, changed.max(1, keepdims=True)], axis=1)
