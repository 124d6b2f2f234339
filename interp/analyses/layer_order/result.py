"""How much of the prediction stays when the layers run in other orders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.layer_order.figure import drawn
from interp.analyses.layer_order.findings import findings_of
from interp.analyses.layer_order.texts import are_paths
from interp.analyses.layer_order.variants import Orders, Variant
from interp.errors import AnalysisError
from interp.files.mergekit import mergekit_recipe
from interp.result import Finding, Result
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.shares import share, shares

if TYPE_CHECKING:
    from interp.analyses.layer_order import LayerOrder

MEASURES = KL, KEPT, LOG_PROB, ACCURACY = (
    "KL(clean‖variant), nats",
    "first token kept",
    "log-probability of the answer, nats",
    "accuracy",
)
TEXT = "text holds the answer"


@dataclass(frozen=True, repr=False)
class LayerOrderResult(Result):
    """`arrays["changes"]` [prompt variant measure] of `orders.variants` and `MEASURES`.

    All are of the last position. `arrays["clean"]` [prompt 2] are the clean log-probability and
    accuracy; `arrays["texts"]` [prompt path+1], if written, whether the clean text and those along
    variants that are paths hold the answer; `arrays["twins"]` [prompt twin 2 2], KL and kept first
    tokens of swaps and of skips of inner neighbours in untrained twins, is the same for all.
    """

    analysis: "LayerOrder"
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["n_layers"][0])

    @cached_property
    def orders(self) -> Orders:
        """Return what was run, part by part."""
        return self.analysis.orders(self.n_layers)

    @cached_property
    def _places(self) -> dict[Variant, int]:
        return {variant: i for i, variant in enumerate(self.orders.variants)}

    def values(self, variants: Sequence[Variant], measure: str) -> np.ndarray:
        """Return a measure's mean over variants [prompt], in fp64."""
        places = [self._places[variant] for variant in variants]
        changes = self.arrays["changes"][:, places, MEASURES.index(measure)]
        return np.asarray(changes.astype(np.float64).mean(1))

    def estimate(self, variants: Sequence[Variant], measure: str) -> Estimate:
        """Return a measure's mean over variants and prompts."""
        values = self.values(variants, measure)
        if measure in (KEPT, ACCURACY):
            return share(values, groups=self.prompt_groups)
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def texts(self, variants: Sequence[Variant] | None = None) -> Estimate | None:
        """Return the share of texts that hold the answer, mean over variants; by default clean.

        None if no texts were written.
        """
        if "texts" not in self.arrays:
            return None
        known = are_paths(self.orders.variants)
        places = [0] if variants is None else [1 + known.index(each) for each in variants]
        return share(self.arrays["texts"][:, places].mean(1), groups=self.prompt_groups)

    @property
    def twins(self) -> np.ndarray:
        """Return means of untrained twins [twin operation measure], as in `arrays`."""
        nothing = np.empty((0, 2, 2))
        return self.arrays["twins"][0].astype(np.float64) if "twins" in self.arrays else nothing

    def variant(self, name: str) -> Variant:
        """Return a variant by the name that it has in the frame; AnalysisError if there is none."""
        named = {variant.name: variant for variant in self.orders.variants}
        if name not in named:
            few = ", ".join(repr(each) for each in [*named][:3])
            raise AnalysisError(f"variant {name!r} asked for; there is {few}, …")
        return named[name]

    def recipe(self, name: str, model_name: str, *, dtype: str = "bfloat16") -> str:
        """Return a variant's path as a recipe for mergekit: see `mergekit_recipe`.

        Raises AnalysisError for variants that are no path: parallel ones and damped loops.
        """
        path = self.variant(name).path(self.n_layers)
        if path is None:
            raise AnalysisError(f"{name!r} is no path through the layers; a recipe can only stack")
        return mergekit_recipe(path, model_name, n_layers=self.n_layers, dtype=dtype)

    def to_frame(self) -> pd.DataFrame:
        """Return columns variant, operation, first, last, n_changed, measure, mean, low, high, ….

        `first` and `last` are the layers of the operation, `n_changed` how many there are. Means
        are over prompts, their 95 % intervals over groups of them. "clean" rows are the model as it
        is; "untrained" rows are means over twins and inner neighbours, without intervals.
        """
        frame = pd.concat([*self._rows()], ignore_index=True)
        return frame.astype(dict.fromkeys(("first", "last", "n_changed", "n_prompts"), "Int64"))

    def _rows(self) -> Iterator[pd.DataFrame]:
        variants = self.orders.variants
        for i, measure in enumerate(MEASURES):
            yield pd.DataFrame(_keys(variants) | {"measure": measure} | self._columns(measure, i))
        if "texts" in self.arrays:
            columns = shares(self.arrays["texts"][:, 1:], groups=self.prompt_groups)
            yield pd.DataFrame(_keys(are_paths(variants)) | {"measure": TEXT} | columns)
        nothing = dict.fromkeys(("first", "last", "n_changed"), pd.NA)
        for i, measure in enumerate((LOG_PROB, ACCURACY)):
            columns = self._estimates(measure, self.arrays["clean"][:, i : i + 1])
            same = {"variant": "clean", "operation": "clean"} | nothing
            yield pd.DataFrame(same | {"measure": measure} | columns)
        if text := self.texts():
            same = {"variant": "clean", "operation": "clean"} | nothing
            yield pd.DataFrame([same | {"measure": TEXT} | text.columns()])
        for i, operation in enumerate(("swap", "skip") if len(self.twins) else ()):
            for j, measure in enumerate((KL, KEPT)):
                name = f"untrained, {operation} of two neighbours"
                mean = {"mean": [self.twins[:, i, j].mean()], "low": np.nan, "high": np.nan}
                same = {"variant": name, "operation": operation} | nothing
                yield pd.DataFrame(same | {"measure": measure, "n_prompts": pd.NA} | mean)

    def _columns(self, measure: str, i: int) -> dict[str, np.ndarray]:
        return self._estimates(measure, self.arrays["changes"][:, :, i])

    def _estimates(self, measure: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return columns of values [prompt ...], over prompts that have them."""
        known = ~np.isnan(values).any(1)
        kept, groups = values[known].astype(np.float64), self.groups_of(known)
        if not len(kept):
            nothing = np.full(values.shape[1:], np.nan)
            return {"mean": nothing, "low": nothing, "high": nothing, "n_prompts": nothing * 0}
        if measure in (KEPT, ACCURACY):
            return shares(kept, groups=groups)
        return estimates(kept, groups=groups, seed=self.analysis.seed)

    def plot(self) -> go.Figure:
        """Draw how many first tokens stay: swaps by layer, by distance, and by operation."""
        return drawn(self)

    def findings(self) -> tuple[Finding, ...]:
        """Return what swaps of neighbours keep, beyond untrained models, and at a distance."""
        return findings_of(self)


def _keys(variants: Sequence[Variant]) -> dict[str, list[str] | list[int]]:
    """Return the frame's columns that say what variants are."""
    return {
        "variant": [variant.name for variant in variants],
        "operation": [variant.operation for variant in variants],
        "first": [variant.layers[0] for variant in variants],
        "last": [variant.layers[-1] for variant in variants],
        "n_changed": [len(variant.layers) for variant in variants],
    }
