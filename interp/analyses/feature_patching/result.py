"""What features carry: alone by score and exactly, together beside random features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.analyses.feature_patching.findings import findings_of
from interp.analyses.feature_patching.frame import frame_of
from interp.errors import AnalysisError, unknown
from interp.figures.plots import Axes, curves
from interp.metrics import WORDS
from interp.result import Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.agreement import Resampled
from interp.stats.estimate import Estimate, estimate, ratio
from interp.stats.picked import widened
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.tags import texts_of
from interp.sweeps.twins import DIRECTIONS

if TYPE_CHECKING:
    from interp.analyses.feature_patching import FeaturePatching

Array = NDArray[np.float64]
KINDS = ("largest", "random", "error")
SETS = {
    "largest": "largest features",
    "random": "random features that are as active",
    "rest": "everything but the largest",
}


@dataclass(frozen=True, repr=False)
class FeaturePatchingResult(Result):
    """Scores and effects of nodes patched alone, and the metric with several patched together.

    `values` are those of `Measuring.of` [prompt ...]. A node is a feature ("resid_pre.3/417"), or a
    dictionary's error ("resid_pre.3/error").
    """

    analysis: "FeaturePatching"
    values: dict[str, Array]
    dictionaries: tuple[str, ...]
    nodes: tuple[tuple[str, int | None], ...]  # a node's dictionary and feature, None for its error
    kinds: tuple[str, ...]
    texts: NDArray[np.uint8]

    @classmethod
    def of(cls, analysis: "FeaturePatching", parts: Sequence[Tensors]) -> "FeaturePatchingResult":
        """Return the result of all parts."""
        arrays = joined(parts)
        texts, numbers = arrays.pop("text"), arrays.pop("nodes")[0]
        names = tuple(texts_of(arrays.pop("dictionaries")[0]))
        kinds = tuple(KINDS[kind] for kind in arrays.pop("kinds")[0])
        sizes = arrays.pop("n_features")[0]
        starts = np.cumsum([0, *(sizes + 1)])
        of = np.searchsorted(starts, numbers, side="right") - 1
        nodes = tuple(
            (names[d], None if node - starts[d] == sizes[d] else int(node - starts[d]))
            for d, node in zip(of, numbers, strict=True)
        )
        values = {name: array.astype(np.float64) for name, array in arrays.items()}
        return cls(analysis, values, names, nodes, kinds, texts)

    @cached_property
    def behaviour(self) -> Behaviour:
        """Return the metric of clean and corrupted prompts: what there is to carry."""
        runs = [self.values["source"], self.values["base"]]
        clean, corrupted = runs if self.analysis.direction == "denoise" else runs[::-1]
        analysis = self.analysis
        return Behaviour(clean, corrupted, analysis.metric, self.prompt_groups, analysis.seed)

    @property
    def sign(self) -> int:
        """Return what an effect counts with: noising takes away what denoising brings back."""
        return 1 if self.analysis.direction == "denoise" else -1

    def joint(self, kind: str) -> Array:
        """Return what nodes patched together carry of the gap [prompt size], in the metric's unit.

        `kind` is "largest", "rest" or "random" (the mean over draws); "features", "errors" and
        "all" [prompt] are of all of them. Features were chosen on the other half of the prompts.
        """
        moved = self.sign * (self.values["joint"] - self.values["base"][:, None])
        n, draws = len(self.analysis.all_sizes), self.analysis.draws
        carried: dict[str, Array] = {
            "largest": moved[:, :n],
            "rest": moved[:, n : 2 * n],
            "random": moved[:, 2 * n : -3].reshape(len(moved), n, draws).mean(2),
            "features": moved[:, -3],
            "errors": moved[:, -2],
            "all": moved[:, -1],
        }
        return carried[kind]

    def share(self, kind: str, n: int | None = None) -> Estimate:
        """Return the share of the gap that `joint` carries, of `n` features; NaN if absent."""
        carried = self.joint(kind)
        if carried.ndim == 1:
            return self.behaviour.share(carried)
        at = self.analysis.all_sizes.index(n or self.analysis.top_k)
        return widened(self.behaviour.share(carried[:, at]))

    @property
    def beyond_random(self) -> Estimate:
        """Return how much more the largest features carry than random ones, of the gap."""
        at = self.analysis.all_sizes.index(self.analysis.top_k)
        gained = self.joint("largest")[:, at] - self.joint("random")[:, at]
        return widened(self.behaviour.share(gained))

    def faithfulness(self, n: int) -> Estimate:
        """Return (m(C) - m(no node)) / (m(all) - m(no node)) of the `n` largest, others patched."""
        return self._of_circuit("rest", n)

    def completeness(self, n: int) -> Estimate:
        """Return the same of all nodes but the `n` largest: near 0 if nothing else is needed."""
        return self._of_circuit("largest", n)

    def _of_circuit(self, patched: str, n: int) -> Estimate:
        if self.behaviour.is_absent:
            return Estimate(np.nan, n=len(self.values["base"]))
        every = self.joint("all")
        kept = every - self.joint(patched)[:, self.analysis.all_sizes.index(n)]
        return widened(ratio(kept, every, groups=self.prompt_groups, seed=self.analysis.seed))

    @cached_property
    def agreement(self) -> dict[str, Resampled]:
        """Return how scores of the features patched alone agree with exact patching, by method.

        "distance" is the control: how far each feature moves its site, which needs no gradient.
        """
        analysis, values = self.analysis, self.values
        is_feature = np.array([kind != "error" for kind in self.kinds])
        cheap = dict[str, Array](
            zip(analysis.methods, values["scores"].swapaxes(0, 1), strict=True)
        )
        cheap["distance"] = self.sign * values["distance"]
        return {
            name: Resampled.of(
                scores[:, is_feature],
                values["exact"][:, is_feature],
                gap=self.behaviour.gap_values,
                top_k=analysis.top_k,
                groups=self.prompt_groups,
                seed=analysis.seed,
            )
            for name, scores in cheap.items()
        }

    def explained(self, dictionary: str) -> float:
        """Return the share of a site's variance around the dictionary's bias that it explains."""
        error, away, _ = self.values["fit"][:, self.dictionaries.index(dictionary)].mean(0)
        return float(1 - error / away)

    def mean(self, values: Array) -> Estimate:
        """Return the mean over prompts with its interval."""
        return estimate(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def named(self, node: int) -> str:
        """Return a node's name: "resid_pre.3/417"."""
        dictionary, feature = self.nodes[node]
        own = dictionary.rstrip("/").rpartition("/")[2]
        return f"{own}/{'error' if feature is None else feature}"

    def examples(self, dictionary: str, feature: int, *, n: int = 5) -> pd.DataFrame:
        """Return the `n` prompts in which a feature is most active: prompt, activation, text.

        The text is the tokens around the most active one, which stands in «»; prompts are numbered
        as they were measured. Raises AnalysisError for features that were not patched alone.
        """
        if (dictionary, feature) not in self.nodes:
            known = [self.named(i) for i, kind in enumerate(self.kinds) if kind != "error"]
            raise AnalysisError(unknown("feature", f"{dictionary}/{feature}", known))
        node = self.nodes.index((dictionary, feature))
        peaks = self.values["peak"][:, node]
        rows = np.argsort(-peaks, kind="stable")[:n]
        texts = texts_of(self.texts[rows, node])
        return pd.DataFrame({"prompt": rows, "activation": peaks[rows], "text": texts})

    def to_frame(self) -> pd.DataFrame:
        """Return a row per statistic; see `frame_of`."""
        return frame_of(self)

    def plot(self) -> go.Figure:
        """Draw the share of the gap that features carry together, against how many there are."""
        rows = [
            {"n": n, "kind": name, **self.share(kind, n).columns()}
            for kind, name in SETS.items()
            for n in self.analysis.all_sizes
        ]
        absent = "No behaviour to explain: w" if self.behaviour.is_absent else "W"
        return curves(
            pd.DataFrame(rows),
            x="n",
            groups="kind",
            axes=Axes("features (log scale)", f"share of the gap in {WORDS[self.analysis.metric]}"),
            title=f"{absent}hat features patched together carry"
            f" ({DIRECTIONS[self.analysis.direction]}; chosen by {self.analysis.methods[0]})",
            is_log=True,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the largest features carry, against random ones, and how scores agree."""
        return findings_of(self)
