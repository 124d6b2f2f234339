"""What components write to the answer's logit, over prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.heads import of_components
from interp.figures.words import head_named, how_picked, mlp_named
from interp.numerals import number
from interp.result import Compared, Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.picked import Picked, picked, ranked

if TYPE_CHECKING:
    from interp.analyses.logit_attribution import LogitAttribution

_SINGLE = {"embedding": "embedding", "bias": "biases of norm and unembedding", "rest": "rest"}
_OTHERS = "other heads, on average"


@dataclass(frozen=True, repr=False)
class LogitAttributionResult(Result):
    """Arrays as `LogitAttribution.measure` returns them, prompts joined."""

    analysis: "LogitAttribution"
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, analysis: "LogitAttribution", parts: Sequence[Tensors]) -> "LogitAttributionResult":
        """Return the result of all shards."""
        return cls(analysis, joined(parts))

    @property
    def heads(self) -> np.ndarray:
        """Return what every head writes [prompt layer head]."""
        return self.arrays["heads"]

    @property
    def n_heads(self) -> int:
        """Return the number of heads of a layer."""
        return int(self.heads.shape[2])

    @property
    def ablated(self) -> list[str]:
        """Return the names of the components that were ablated."""
        return [self._named(number) for number in self.arrays["ablated"][0].tolist()]

    def _named(self, number: int) -> str:
        n_of_heads = self.heads[0].size
        if number < n_of_heads:
            return head_named(*divmod(number, self.n_heads))
        return mlp_named(number - n_of_heads)

    @cached_property
    def components(self) -> np.ndarray:
        """Return what every component writes [prompt component]: heads, and after them MLPs."""
        heads = self.heads.reshape(len(self.heads), -1)
        return np.concatenate([heads, self.arrays["mlps"]], axis=1)

    def to_frame(self) -> pd.DataFrame:
        """Return columns part, layer, head, mean, low, high, exact, n_prompts.

        Parts are "embedding", "head", "attention bias", "MLP", "biases of norm and unembedding",
        "rest" (what none accounts for) and "whole"; and, of its MLP's part, "neuron m5.n12".
        `exact` is what the logit difference loses with the part set to zero at the last position,
        where that was tried.
        """
        rows = [*self._rows()]
        return pd.concat(rows, ignore_index=True).astype({"layer": "Int64", "head": "Int64"})

    def _rows(self) -> Iterator[pd.DataFrame]:
        for name, part in (_SINGLE | {"whole": "whole"}).items():
            yield self._of(part, self.arrays[name][:, None], layer=[pd.NA], head=[pd.NA])
        n_layers = self.heads.shape[1]
        layers = np.arange(n_layers)
        exact = dict(
            zip(self.arrays["ablated"][0].tolist(), self.arrays["exact"].mean(0), strict=True)
        )
        of_heads = [exact.get(i, np.nan) for i in range(self.heads[0].size)]
        of_mlps = [exact.get(self.heads[0].size + i, np.nan) for i in layers]
        layer, head = (axis.ravel() for axis in np.indices(self.heads.shape[1:]))
        flat = self.heads.reshape(len(self.heads), -1)
        yield self._of("head", flat, layer=layer, head=head, exact=of_heads)
        nothing = [pd.NA] * n_layers
        for part, name, lost in (
            ("attention bias", "attention bias", None),
            ("MLP", "mlps", of_mlps),
        ):
            yield self._of(part, self.arrays[name], layer=layers, head=nothing, exact=lost)
        for i, name in enumerate(self.analysis.neurons):
            values, at = self.arrays["neurons"][:, i, None], self.analysis.places[i][0]
            yield self._of(f"neuron {name}", values, layer=[at], head=[pd.NA])

    def _of(
        self, part: str, values: np.ndarray, *, layer: object, head: object, exact: object = None
    ) -> pd.DataFrame:
        columns = estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)
        n_prompts = columns.pop("n_prompts")
        lost = np.nan if exact is None else exact
        places = {"part": part, "layer": layer, "head": head}
        return pd.DataFrame(places | columns | {"exact": lost, "n_prompts": n_prompts})

    def plot(self) -> go.Figure:
        """Draw a map of heads, and what attention and MLP of each layer write."""
        attention = self.heads.sum(2) + self.arrays["attention bias"]
        return of_components(
            self.heads.mean(0),
            {
                name: estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)
                for name, values in (("attention", attention), ("MLP", self.arrays["mlps"]))
            },
            of="logits",
            title="What is written to the logit difference at the last token, final norm frozen",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the head that writes most, and how far ablation is from what is written."""
        return (self._most(), self._exact()) if self.arrays["exact"].shape[1] else (self._most(),)

    @property
    def _flat(self) -> np.ndarray:
        return self.heads.reshape(len(self.heads), -1)

    @property
    def _others(self) -> np.ndarray:
        flat = self._flat
        others: np.ndarray = (flat.sum(1, keepdims=True) - flat) / max(1, flat.shape[1] - 1)
        return others

    def _pick(self, values: np.ndarray, *, rank: int = 0) -> Picked:
        choose = ranked(self._flat, rank)
        groups, seed = self.prompt_groups, self.analysis.seed
        return picked(values, choose=choose, groups=groups, seed=seed)

    def _estimate(self, values: np.ndarray) -> Estimate:
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def _head(self, most: Picked) -> str:
        if not most.is_stable:
            return "The head that is largest on half of the prompts"
        return self._named(most.index)

    def _most(self) -> Finding:
        most, whole = self._pick(self._flat), self._estimate(self.arrays["whole"])
        second = self._pick(self._flat, rank=1)
        next_one = "the second" + f", {self._named(second.index)}" * second.is_stable
        of = "logit difference" if self.arrays["has_wrong"].all() else "logit above the mean logit"
        return Finding(
            f"{self._head(most)} directly contributes {most.estimate:.2f} to the answer's {of} of"
            f" {number(whole.value, '.2f')}.",
            most.estimate,
            "what the head that writes most writes to the answer's logit",
            control=Compared(_OTHERS, self._pick(self._others).estimate),
            rival=Compared(next_one, second.estimate),
            note=f"the final norm frozen; in all {whole:.2f}; {how_picked(most.estimate)}",
        )

    def _exact(self) -> Finding:
        numbers = self.arrays["ablated"][0]
        direct = np.abs(self.components[:, numbers].mean(0)).sum()
        differs = np.abs(self.arrays["exact"] - self.components[:, numbers]).mean(1)
        size = self._estimate(differs)
        names = len(numbers)
        return Finding(
            f"Without one of the {names} largest, the logit loses {size:.2f} more or less than it"
            " writes, on average.",
            size,
            "mean distance of what is lost without a component from what it writes",
            control=Compared("what they write, on average", Estimate(float(direct) / names)),
            note="through later layers and the final norm, which the shares leave out",
        )
