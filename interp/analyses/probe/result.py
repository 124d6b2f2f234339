"""What probes read before every layer, and what the controls do."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.special import stdtrit

from interp.analyses.probe.findings import findings_of
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.bootstrap import QUANTILES
from interp.stats.estimate import estimates, ratios
from interp.stats.groups import Array
from interp.stats.picked import band
from interp.stats.shares import shares
from interp.sweeps.tags import texts_of

if TYPE_CHECKING:
    from interp.analyses.probe import Probe

PROBE, MEMORY = "probe", "random labels by group, groups met"
TWINS, SHUFFLED, MAJORITY = "probe of untrained models", "shuffled labels", "most frequent label"
_LINES = {
    "accuracy": PROBE,
    "control": MEMORY,
    "untrained": TWINS,
    "shuffled": SHUFFLED,
    "majority": MAJORITY,
}


@dataclass(frozen=True, repr=False)
class ProbeResult(Result):
    """The arrays of `Probe.measure`, whose first axis is the prompt."""

    analysis: "Probe"
    arrays: dict[str, np.ndarray]

    @property
    def label(self) -> str:
        """Return the name of what was read."""
        return texts_of(self.arrays["label"][:1])[0]

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return int(self.arrays["right"].shape[1]) - 1

    @property
    def has_twins(self) -> bool:
        """Tell whether untrained models could be built."""
        return "untrained" in self.arrays

    @property
    def uniform_bits(self) -> Array:
        """Return the bits of a label [prompt] where every class is as likely."""
        return np.asarray(np.log2(self.arrays["n_classes"]), np.float64)

    def scores(self, name: str) -> Array:
        """Return a score [prompt tap] between 0 and 1: of "accuracy" or what it is beside."""
        if name == "untrained":
            return np.asarray(self.arrays["untrained"].mean(1), np.float64)
        if name == "majority":
            return np.repeat(self.arrays["majority"][:, None] * 1.0, self.n_layers + 1, axis=1)
        return np.asarray(self.arrays["right" if name == "accuracy" else name], np.float64)

    def beyond(self) -> Array:
        """Return how much better [prompt tap] a probe is than the better of two baselines.

        Those are the probe of the embedding and, at the same tap, the mean of untrained models.
        """
        right = self.scores("accuracy")
        baseline = np.repeat(right[:, :1], right.shape[1], axis=1)
        if self.has_twins:
            baseline = np.where(self._is_twins, self.scores("untrained"), baseline)
        difference: Array = right - baseline
        return difference

    @property
    def _is_twins(self) -> np.ndarray:
        """Return [tap] whether untrained models are the better of the two baselines."""
        embedding = self.scores("accuracy")[:, 0].mean()
        return np.asarray(self.scores("untrained").mean(0) > embedding)

    def beyond_band(self) -> tuple[Array, Array]:
        """Return low and high [tap] that hold `beyond` at all taps in 95 %.

        Wider by how much untrained models differ (pooled over taps), as of one more against those.
        """
        beyond = self.beyond()
        mean = beyond.mean(0)
        low, high = band(beyond, groups=self.prompt_groups, seed=self.analysis.seed)
        if not self.has_twins:
            return low, high
        by_twin = self.arrays["untrained"].mean(0)
        n_twins = len(by_twin)
        error = np.sqrt(by_twin.var(0, ddof=1).mean() * (1 + 1 / n_twins))
        apart = float(stdtrit(n_twins - 1, QUANTILES[1])) * error * self._is_twins
        low, high = mean - np.hypot(mean - low, apart), mean + np.hypot(high - mean, apart)
        return low.clip(-1.0), high.clip(max=1.0)

    def compression(self, name: str) -> dict[str, Array]:
        """Return how many times shorter the online code is than a uniform one, by tap.

        `name` is "bits" or "shuffled_bits"; columns as of `ratios`.
        """
        bits = np.asarray(self.arrays[name], np.float64)
        above = np.repeat(self.uniform_bits[:, None], bits.shape[1], axis=1)
        return ratios(above, bits, groups=self.prompt_groups, seed=self.analysis.seed)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per tap: 0 is the embedding, the last is after the last layer.

        Columns: label, n_classes, tap, n_prompts, and NAME, NAME_low and NAME_high (95 % over
        groups of prompts) of these. accuracy: the share of prompts, of groups that the probe has
        not met, whose label it names; shuffled: of shuffled labels; untrained: of untrained models;
        majority: of always naming the most frequent. control: random labels by group, on prompts
        of groups that it has met; selectivity: accuracy - control. beyond: accuracy less the better
        of the embedding's and untrained models', its interval for all taps at once. bits: of a
        label in the online code; compression: log2(n_classes) / bits; shuffled_compression.
        """
        columns = {
            name: shares(self.scores(name), groups=self.prompt_groups) for name in self._names
        }
        selectivity = self.scores("accuracy") - self.scores("control")
        columns["selectivity"] = self._means(selectivity)
        low, high = self.beyond_band()
        columns["beyond"] = {"mean": self.beyond().mean(0), "low": low, "high": high}
        columns["bits"] = self._means(self.arrays["bits"])
        columns["compression"] = self.compression("bits")
        columns["shuffled_compression"] = self.compression("shuffled_bits")
        n_classes = int(self.arrays["n_classes"][0])
        frame = pd.DataFrame({"tap": np.arange(self.n_layers + 1)})
        frame = frame.assign(
            label=self.label, n_classes=n_classes, n_prompts=len(self.uniform_bits)
        )
        numbers = {
            name if end == "mean" else f"{name}_{end}": values[end]
            for name, values in columns.items()
            for end in ("mean", "low", "high")
        }
        return frame.assign(**numbers)

    def _means(self, values: np.ndarray) -> dict[str, Array]:
        return estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)

    @property
    def _names(self) -> list[str]:
        return [name for name in _LINES if name != "untrained" or self.has_twins]

    def plot(self) -> go.Figure:
        """Draw the accuracy and the compression before every layer, each with its controls."""
        frame = self.to_frame()
        frame["majority_low"] = frame["majority_high"] = frame["majority"]  # a level, no estimate
        drawn = [name for name in self._names if name != "shuffled"]
        lines = {name: (_LINES[name], "share of labels named") for name in drawn}
        lines |= {
            "compression": (PROBE, "compression of the labels"),
            "shuffled_compression": (SHUFFLED, "compression of the labels"),
        }
        rows = [
            pd.DataFrame(
                {
                    "layer": frame["tap"],
                    "mean": frame[name],
                    "low": frame[f"{name}_low"],
                    "high": frame[f"{name}_high"],
                    "line": line,
                    "panel": panel,
                }
            )
            for name, (line, panel) in lines.items()
        ]
        title = f"What a linear probe before each layer reads: {self.label}"
        figure = lines_over_depth(
            pd.concat(rows), y="mean", groups="line", panels="panel", title=title
        )
        return figure.update_yaxes(range=[-0.03, 1.03], col=1)

    def findings(self) -> tuple[Finding, ...]:
        """Return where the label is first read beyond the baselines, and the best probe."""
        return findings_of(self)
