"""What layers write at some positions, over prompts: means, halves, the largest, who erases."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.stats.estimate import Estimate, estimate_of, estimates
from interp.stats.groups import Array, Groups
from interp.stats.picked import Picked, band, picked, ranked

RATIO, COSINE = "norm relative to the stream", "cosine with the stream"
MEASURES = (
    *(("norm", part) for part in ("stream", "attention", "MLP")),
    *((RATIO, part) for part in ("attention", "MLP", "layer")),
    *((COSINE, part) for part in ("attention", "MLP", "layer", "layer's output")),
)


def second_half(curve: Array) -> float:
    """Return the median of a curve's second half [layer] as a multiple of the first half's."""
    half = (len(curve) + 1) // 2
    return float(np.median(curve[half:]) / np.median(curve[:half]))


@dataclass(frozen=True)
class Writes:
    """Means and maxima over each prompt's tokens [prompt layer measure], and how many they are."""

    mean_of_prompts: np.ndarray
    max_of_prompts: np.ndarray
    n_tokens: np.ndarray
    groups: Groups | None
    seed: int

    @property
    def n_prompts(self) -> int:
        """Return the number of prompts with such tokens."""
        return len(self.n_tokens)

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.mean_of_prompts.shape[1])

    @property
    def mean(self) -> np.ndarray:
        """Return the means over tokens [layer measure]."""
        average: np.ndarray = np.average(self.mean_of_prompts, axis=0, weights=self.n_tokens)
        return average

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, component, layer, mean, low, high, max and n_prompts."""
        columns = estimates(
            self.mean_of_prompts, weights=self.n_tokens, groups=self.groups, seed=self.seed
        )
        n_prompts = columns.pop("n_prompts")
        columns |= {"max": self.max_of_prompts.max(0), "n_prompts": n_prompts}
        frames = [
            pd.DataFrame(
                {"measure": measure, "component": component, "layer": np.arange(self.n_layers)}
                | {name: column[:, i] for name, column in columns.items()}
            )
            for i, (measure, component) in enumerate(MEASURES)
        ]
        return pd.concat(frames, ignore_index=True)

    @property
    def second_half(self) -> Estimate:
        """Return the ratio of the halves' median relative writes."""
        return self._of_halves(lambda mean: mean[:, MEASURES.index((RATIO, "layer"))])

    @property
    def by_growth(self) -> Estimate:
        """Return the same ratio if every layer wrote one length: that of the stream's growth."""
        return self._of_halves(lambda mean: 1 / mean[:, MEASURES.index(("norm", "stream"))])

    def _of_halves(self, curve: Callable[[Array], Array]) -> Estimate:
        return estimate_of(
            lambda mean: second_half(curve(mean)),
            self.mean_of_prompts,
            weights=self.n_tokens,
            groups=self.groups,
            seed=self.seed,
        )

    def of_layers(self, measure: str) -> np.ndarray:
        """Return one measure of what whole layers write [prompt layer]."""
        values: np.ndarray = self.mean_of_prompts[:, :, MEASURES.index((measure, "layer"))]
        return values

    def largest(self, rank: int = 0) -> Picked:
        """Return the layer that writes most relative to the stream, or the `rank`-th after it."""
        ratio = self.of_layers(RATIO)
        return picked(
            ratio,
            choose=ranked(ratio, rank, weights=self.n_tokens),
            weights=self.n_tokens,
            groups=self.groups,
            seed=self.seed,
        )

    @property
    def erasing(self) -> tuple[list[int], bool]:
        """Return the layers whose mean cosine is below 0, and whether a band over all shows it."""
        cosine = self.of_layers(COSINE)
        _, high = band(cosine, weights=self.n_tokens, groups=self.groups, seed=self.seed)
        has_band = bool(np.isfinite(high).all())
        highest = high if has_band else np.average(cosine, axis=0, weights=self.n_tokens)
        return np.flatnonzero(highest < 0).tolist(), has_band
