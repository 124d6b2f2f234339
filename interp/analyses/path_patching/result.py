"""What senders carry to receivers, over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray

from interp.figures.heads import of_components
from interp.figures.words import how_picked, listed, node_named
from interp.metrics import WORDS
from interp.result import Compared, Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.estimate import Estimate, estimates, ratios
from interp.stats.picked import Picked, band, picked, ranked, widened
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.carriers import beyond_others
from interp.sweeps.twins import DIRECTIONS
from interp.sweeps.wiring import LOGITS, Wiring

if TYPE_CHECKING:
    from interp.analyses.path_patching import PathPatching

Array = NDArray[np.float64]
_OTHERS = "other senders, on average"


@dataclass(frozen=True, repr=False)
class PathPatchingResult(Result):
    """Effects of all senders' paths [prompt sender], and the metric of both runs [prompt]."""

    analysis: "PathPatching"
    wiring: Wiring
    effects: Array
    base: Array
    source: Array

    @classmethod
    def of(cls, analysis: "PathPatching", parts: Sequence[Tensors]) -> "PathPatchingResult":
        """Return the result of all shards."""
        arrays = joined(parts)
        wiring = Wiring.from_numbers(torch.from_numpy(arrays["wiring"][0]))
        numbers = (arrays[name].astype(np.float64) for name in ("effects", "base", "source"))
        return cls(analysis, wiring, *numbers)

    @property
    def senders(self) -> list[str]:
        """Return the senders in forward order: "embed", "a0.h1", "m0"."""
        return self.analysis.senders_of(self.wiring)

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of clean and corrupted prompts: what there is to carry."""
        runs = self.source, self.base
        clean, corrupted = runs if self.analysis.direction == "denoise" else runs[::-1]
        metric, seed = self.analysis.metric, self.analysis.seed
        return Behaviour(clean, corrupted, metric, self.prompt_groups, seed)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per sender: statistics of its effect over prompts.

        Columns: sender, kind ("embed", "heads" or "mlp"), layer, head; mean, low, high in the
        metric's unit; share (share_low, share_high) of the gap, NaN where there is no behaviour to
        explain; `exceeds` (other than 0 in a band over all senders, max-statistic, 95 %);
        n_prompts.
        """
        places = [self.wiring.place(name) for name in self.senders]
        heads = [head if kind == "heads" else pd.NA for kind, _, head in places]
        layers = [pd.NA if kind == "embed" else layer for kind, layer, _ in places]
        how: dict[str, Any] = {"groups": self.prompt_groups, "seed": self.analysis.seed}
        columns = estimates(self.effects, **how)
        n_prompts = columns.pop("n_prompts")
        shares = ratios(self.effects, self.source - self.base, **how)
        shown = {"share": "mean", "share_low": "low", "share_high": "high"}
        low, high = band(self.effects, **how)
        return pd.DataFrame(
            {
                "sender": [*map(node_named, self.senders)],
                "kind": [kind for kind, _, _ in places],
                "layer": pd.array(layers, dtype="Int64"),
                "head": pd.array(heads, dtype="Int64"),
                **columns,
                **{
                    name: np.where(self.behaviour.is_absent, np.nan, shares[end])
                    for name, end in shown.items()
                },
                "exceeds": (low > 0) | (high < 0),
                "n_prompts": n_prompts,
            }
        )

    def plot(self) -> go.Figure:
        """Draw a map of the heads' mean effects, and beside it those of MLPs."""
        frame = self.to_frame()
        heads = np.full((self.wiring.n_layers, self.wiring.n_heads), np.nan)
        of_heads = frame[frame["kind"] == "heads"]
        heads[of_heads["layer"].astype(int), of_heads["head"].astype(int)] = of_heads["mean"]
        mlps = frame[frame["kind"] == "mlp"]
        verb, metric = DIRECTIONS[self.analysis.direction], self.analysis.metric
        return of_components(
            heads,
            {"MLP": {str(name): column for name, column in mlps.items()}},
            of=WORDS[metric].removeprefix("the "),
            title=f"What each carries {self._to} ({verb})",
        )

    @property
    def _to(self) -> str:
        names = [node_named(name) for name in self.analysis.receivers]
        receivers = listed(["the logits" if name == LOGITS else name for name in names])
        is_frozen = self.analysis.between == "frozen"
        return f"straight to {receivers}" if is_frozen else f"to {receivers}, also through MLPs"

    def findings(self) -> tuple[Finding, ...]:
        """Return which sender carries most, against others; or that there is no behaviour."""
        if self.behaviour.is_absent:
            return (self.behaviour.finding(),)
        return (self._most(), self._beyond()) if len(self.senders) > 1 else (self._most(),)

    @cached_property
    def _carried(self) -> Array:
        carried: Array = np.sign((self.source - self.base).mean()) * self.effects
        return carried

    @property
    def _others(self) -> Array:
        every = self._carried
        others: Array = (every.sum(1, keepdims=True) - every) / max(1, every.shape[1] - 1)
        return others

    def _pick(self, values: Array, *, rank: int = 0) -> Picked:
        choose = ranked(self._carried, rank)
        groups, seed = self.prompt_groups, self.analysis.seed
        return picked(values, choose=choose, groups=groups, seed=seed)

    def _share(self, values: Array, *, rank: int = 0) -> Estimate:
        return widened(self.behaviour.share(self._pick(values, rank=rank).measured))

    def _most(self) -> Finding:
        most, share = self._pick(self._carried), self._share(self._carried)
        halves = listed([node_named(self.senders[index]) for index in most.halves])
        name = node_named(self.senders[most.index])
        if not most.is_stable:
            name = "the sender that is largest on half of the prompts"
        path = f"{self._to[0].upper()}{self._to[1:]}"
        rival = None
        if len(self.senders) > 1:
            second = self._pick(self._carried, rank=1)
            next_one = (
                "the second" + f", {node_named(self.senders[second.index])}" * second.is_stable
            )
            rival = Compared(next_one, self._share(self._carried, rank=1))
        return Finding(
            f"{path}, {name} carries {share:.0%} of the gap in {WORDS[self.analysis.metric]}.",
            share,
            f"share of the gap that the largest path {self._to} carries",
            control=Compared(_OTHERS, self._share(self._others)),
            rival=rival,
            note=f"{self.behaviour} {how_picked(share).capitalize()}"
            f"{'' if most.is_stable else f'; the halves pick {halves}'}.",
        )

    def _beyond(self) -> Finding:
        others = Compared(_OTHERS, self._share(self._others))
        return beyond_others(self._share(self._carried - self._others), others, of="senders")
