"""Until which layer tokens matter, from their attributions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.integrated_gradients.quadrature import FLOOR
from interp.figures.plots import grids_over_positions
from interp.result import Finding, Result
from interp.stats.align import Aligned
from interp.stats.estimate import Estimate, estimate_of, estimates
from interp.stats.groups import Groups

if TYPE_CHECKING:
    from interp.analyses.integrated_gradients import IntegratedGradients

_COLUMNS = ["measure", "layer", "position", "mean", "low", "high", "max", "n_prompts"]
_VARIED = {
    "layer": "each layer's output",
    "attention": "each attention's write",
    "mlp": "each MLP's write",
}


def taken_over(share: np.ndarray) -> int | None:
    """Return the layer from which the last token's share [layer] stays over a half, or None."""
    less = np.flatnonzero(share <= 0.5)
    first = int(less[-1]) + 1 if len(less) else 0
    return first if first < len(share) else None


@dataclass(frozen=True, repr=False)
class IntegratedGradientsResult(Result):
    """Attributions, and `arrays` [prompt layer]: difference, error, token_error, nodes, capped."""

    analysis: "IntegratedGradients"
    attribution: Aligned
    arrays: dict[str, np.ndarray]
    layers: np.ndarray  # the numbers of those looked at, of all `n_layers`
    n_layers: int

    @property
    def relative_error(self) -> np.ndarray:
        """Return how far attributions miss F(S) - F(B) [prompt layer], relative to it or 0.01."""
        whole = np.maximum(np.abs(self.arrays["difference"]), FLOOR)
        return np.asarray(self.arrays["error"] / whole)

    @property
    def share_of_last(self) -> np.ndarray:
        """Return the last token's share of the absolute attribution [prompt layer].

        Position 0 is left out.
        """
        size = np.abs(self.attribution.values[:, :, 1:])
        last = size[:, :, list(self.attribution.positions).index(-1)]
        share: np.ndarray = last / np.maximum(np.nansum(size, axis=2), 1e-12)
        return share

    def to_frame(self) -> pd.DataFrame:
        """Return one row per measure and layer; attributions also have one per position.

        Statistics are over prompts.

        Measures: "attribution" (in probability; `position` counts from the prompt's end, "-1" is
        its last token, "+1" after it), and of every sum "share of the last token" (of all tokens
        but the first), "difference" F(S) - F(B), "nodes", "relative error", "token error" (the
        worst token's, estimated) and "capped" (1: more nodes were wanted than allowed).
        """
        seed, groups = self.analysis.seed, self.prompt_groups
        attribution = self._attributions(groups=groups)
        frames = [attribution.assign(measure="attribution")]
        measures = {
            "share of the last token": self.share_of_last,
            "difference": self.arrays["difference"],
            "nodes": self.arrays["nodes"],
            "relative error": self.relative_error,
            "token error": self.arrays["token_error"],
            "capped": self.arrays["capped"],
        }
        for name, values in measures.items():
            columns = estimates(values, groups=groups, seed=seed)
            columns |= {"max": values.astype(np.float64).max(0)}
            keys = {"measure": name, "layer": self.layers, "position": None}
            frames.append(pd.DataFrame(keys | columns))
        typed = [frame.astype({"position": "string"}) for frame in frames]
        return pd.concat(typed, ignore_index=True)[_COLUMNS]

    def _attributions(self, groups: Groups | None = None) -> pd.DataFrame:
        frame = self.attribution.to_frame(seed=self.analysis.seed, groups=groups)
        return frame.assign(layer=self.layers[frame["layer"]])

    def plot(self) -> go.Figure:
        """Draw the mean attribution by layer and position; the first token sets no colours."""
        frame = self._attributions().assign(panel="")
        title = (
            "How much the answer's probability owes to"
            f" {_VARIED[self.analysis.part]} at each token (integrated gradients)"
        )
        return grids_over_positions(
            frame, panels="panel", y="layer", title=title, colour="probability", is_signed=True
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return from where on the last token holds most, and how well attributions add up."""
        error = self.relative_error
        worst = Estimate(float(error.max()), n=len(error))
        n_capped = int(self.arrays["capped"].sum())
        limit = f"; {n_capped} of {error.size} cases wanted more nodes" if n_capped else ""
        sums = Finding(
            "The attributions add up to the change in"
            f" probability within {worst:.1%} at worst{limit}.",
            worst,
            "largest relative error of the attributions' sum",
        )
        return self._taken_over(), sums

    def _taken_over(self) -> Finding:
        share = self.share_of_last
        n_layers = self.n_layers

        def depth_of(mean: np.ndarray) -> float:
            at = taken_over(mean)
            return np.inf if at is None else float(self.layers[at] + 1) / n_layers

        depth = estimate_of(depth_of, share, groups=self.prompt_groups, seed=self.analysis.seed)
        if np.isinf(depth.value):
            return Finding("At no layer does the last token hold most of the attribution.")
        return Finding(
            f"After layer {round(depth.value * n_layers) - 1}, {depth:.0%} of the depth, the last"
            " token holds most of the attribution (the first token left out).",
            depth,
            "share of layers until the last token holds most of the attribution, without the first",
            note="at the last layer by construction where answers have one token",
        )
