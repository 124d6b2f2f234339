"""For which layers hiding the first hop changes the model's guess, over prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.plots import lines_over_depth
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates, number
from interp.sweeps.cuts import half_width_of
from interp.sweeps.two_hop import answer_groups, compared_frame, empty_figure, nothing_compared

if TYPE_CHECKING:
    from interp.analyses.attention_knockout import AttentionKnockout

CHANGED, FALL = "first guess changes, share of prompts", "fall of the answer's logit, mean"
_KEYS = {
    "subject": "the first-hop phrase's last token",
    "start": "its first token",
    "phrase": "the whole first-hop phrase",
}
_QUERIES = {
    "last": "the last token",
    "subject": "the phrase's last token",
    "all": "all later tokens",
}
_ELSEWHERE = "another token"
_OFTEN = 0.1  # share of prompts from which on a layer is critical


@dataclass(frozen=True, repr=False)
class AttentionKnockoutResult(Result):
    """Whether the first guess changes, and how far the answer's logit falls, by window's centre.

    `arrays["key.changed"]` and `arrays["key.fall"]` are [prompt centre]; the control's begin with
    "elsewhere" instead.
    """

    analysis: "AttentionKnockout"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["key.fall"].shape[1])

    @property
    def _key(self) -> str:
        """Return what is hidden, as sentences name it."""
        is_start = self.analysis.key == "start"
        return "the first-hop phrase's first token" if is_start else _KEYS[self.analysis.key]

    @property
    def half_width(self) -> int:
        """Return how many layers before and behind a centre are cut."""
        return half_width_of(self.n_layers, self.analysis.half_width)

    @property
    def _hidden(self) -> dict[str, str]:
        """Return the names in the frame of what is hidden, the control last."""
        names = {"key": _KEYS[self.analysis.key], "elsewhere": _ELSEWHERE}
        return {key: name for key, name in names.items() if f"{key}.changed" in self.arrays}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, hidden place, measure and layer (the window's centre).

        `mean` is the share of prompts whose first guess changes, or the mean fall of the answer's
        logit, with its 95 % bootstrap interval over prompts. Layer missing: changed at any layer.
        Hidden "difference": the key minus the control.
        """
        rows = [self._rows(group, chosen) for group, chosen in answer_groups(self.arrays).items()]
        types = {"layer": "Int64", "n_prompts": "Int64"} | dict.fromkeys(
            ("mean", "low", "high"), "float64"
        )
        return compared_frame(rows, keys=["group", "hidden", "measure"], types=types)

    def _rows(self, group: str, chosen: np.ndarray) -> pd.DataFrame:
        values = {}
        for hidden, name in self._hidden.items():
            changed = self.arrays[f"{hidden}.changed"][chosen].astype(np.float64)
            anywhere = changed.max(1, keepdims=True)
            values[name, CHANGED] = np.concatenate([changed, anywhere], axis=1)
            values[name, FALL] = self.arrays[f"{hidden}.fall"][chosen].astype(np.float64)
        if len(self._hidden) > 1:
            key, control = self._hidden.values()
            for measure in (CHANGED, FALL):
                values["difference", measure] = values[key, measure] - values[control, measure]
        return pd.concat(
            pd.DataFrame(
                {"group": group, "hidden": hidden, "measure": measure}
                | {"layer": [*range(self.n_layers), None][: rows.shape[1]]}
                | estimates(rows, seed=self.analysis.seed)
            )
            for (hidden, measure), rows in values.items()
        )

    def plot(self) -> go.Figure:
        """Draw how often guesses change, and how far answers fall, by the window's centre."""
        frame = self.to_frame().astype({"group": str, "hidden": str})
        frame = frame.dropna(subset=["layer", "mean"])
        frame = frame[frame["hidden"] != "difference"]
        frame["line"] = frame["group"] + ": " + frame["hidden"]
        title = (
            f"What changes when {self._key} is hidden from"
            f" {_QUERIES[self.analysis.query]}, in {2 * self.half_width + 1}"
            f" layer{'s' * (self.half_width > 0)} around each"
        )
        if frame.empty:
            return empty_figure(title)
        figure = lines_over_depth(frame, y="mean", groups="line", panels="measure", title=title)
        figure.update_yaxes(title_text="share of prompts", tickformat=".0%", col=1)
        return figure.update_yaxes(title_text="nats", col=2)

    def findings(self) -> tuple[Finding, ...]:
        """Return how many guesses the most critical layer changes, by group, and the last layer."""
        groups = answer_groups(self.arrays)
        if not groups:
            return (Finding(nothing_compared(self.arrays)),)
        most = [self._most_critical(group, chosen) for group, chosen in groups.items()]
        return (*most, self._last_critical(*next(iter(groups.items()))))

    def _most_critical(self, group: str, chosen: np.ndarray) -> Finding:
        changed = self.arrays["key.changed"][chosen]
        layer, seed = int(changed.mean(0).argmax()), self.analysis.seed
        share, control = estimate(changed[:, layer], seed=seed), None
        if "elsewhere" in self._hidden:
            of_other = self.arrays["elsewhere.changed"][chosen, layer]
            control = Compared(f"{_ELSEWHERE} hidden", estimate(of_other, seed=seed))
        return Finding(
            f"Hiding {self._key} from {_QUERIES[self.analysis.query]} around layer {layer} changes"
            f" the guess in {share:.0%} of prompts with {group}.",
            share,
            f"share of prompts with {group} whose first guess changes at the most critical layer",
            control=control,
        )

    def _last_critical(self, group: str, chosen: np.ndarray) -> Finding:
        changed = self.arrays["key.changed"][chosen]
        often = number(_OFTEN, ".0%")
        critical = np.flatnonzero(changed.mean(0) >= _OFTEN)
        measure = f"last layer at which hiding the key changes {often} of the guesses, {group}"
        if not len(critical):
            return Finding(f"With {group}, no layer changes {often} of the guesses.")
        last = Estimate(float(critical[-1]), n=len(changed))
        return Finding(
            f"With {group}, {often} or more of the guesses change up to layer {last:.0f}.",
            last,
            measure,
        )
