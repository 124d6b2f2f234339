"""What layers with few bits cost: each alone, and more and more of them in several orders."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.quantization_order.findings import findings_of
from interp.analyses.quantization_order.orders import LAST_FIRST, N_RANDOM, RANDOM, names_of
from interp.figures.plots import lines_over_depth
from interp.result import Finding, Result
from interp.stats.estimate import estimates
from interp.stats.shares import shares

if TYPE_CHECKING:
    from interp.analyses.quantization_order import QuantizationOrder

MEASURES = {
    "kl": "KL(clean‖quantised), nats",
    "log_prob": "log-probability of the answer, nats",
    "accuracy": "accuracy",
}
BREAKS_AT = 0.1  # nats of KL: after the bits at which a curve first crosses it, it is broken
_DRAWN = ("ZD", "skip loss", "own loss")  # beside the first, the last layers first and random


@dataclass(frozen=True, repr=False)
class QuantizationOrderResult(Result):
    """Arrays: alone.* [prompt layer], curve.* [prompt order point], bits, order."""

    analysis: "QuantizationOrder"
    arrays: dict[str, np.ndarray]
    sizes: list[int]

    @property
    def names(self) -> list[str]:
        """Return the names of all orders."""
        return names_of(self.analysis.orders)

    def curve(self, order: str, outcome: str = "kl") -> np.ndarray:
        """Return an outcome per prompt and size [prompt point]; "random" is the mean of them."""
        return self._of(self.arrays[f"curve.{outcome}"], order)

    def bits(self, order: str) -> np.ndarray:
        """Return the average bits of blocks' weights [prompt point]."""
        return self._of(self.arrays["bits"], order)

    def area(self, order: str, outcome: str = "kl") -> np.ndarray:
        """Return an outcome's mean over average bits, from all layers kept to all quantised.

        Per prompt, by the trapezoidal rule; "random" is the mean of them.
        """
        if order == RANDOM:
            each = [self.area(name, outcome) for name in self.names[-N_RANDOM:]]
            mean: np.ndarray = np.stack(each).mean(0)
            return mean
        bits = self.bits(order)
        area = np.trapezoid(self.curve(order, outcome), -bits, axis=1)
        averages: np.ndarray = area / (bits[:, 0] - bits[:, -1])
        return averages

    def breaks_at(self, order: str) -> float:
        """Return the average bits at which the mean KL first exceeds 0.1 nats; NaN if never."""
        kl, bits = self.curve(order).mean(0), self.bits(order).mean(0)
        above = np.flatnonzero(kl > BREAKS_AT)
        if not len(above):
            return float("nan")
        i = int(above[0])
        share = (BREAKS_AT - kl[i - 1]) / (kl[i] - kl[i - 1])
        return float(bits[i - 1] + share * (bits[i] - bits[i - 1]))

    def _of(self, values: np.ndarray, order: str) -> np.ndarray:
        if order == RANDOM:
            mean: np.ndarray = values[:, -N_RANDOM:].mean(1)
            return mean
        chosen: np.ndarray = values[:, self.names.index(order)]
        return chosen

    @property
    def _outcomes(self) -> list[str]:
        return [name for name in MEASURES if f"curve.{name}" in self.arrays]

    def to_frame(self) -> pd.DataFrame:
        """Return columns what, order, measure, layer, quantised, bits, mean, low, high, n_prompts.

        What: "alone", one `layer` quantised (order ""); "curve", the first `quantised` layers of an
        order, at so many average `bits` of blocks' weights; "area", the mean of a curve over bits;
        "break", the bits at which the mean KL exceeds 0.1 nats. Intervals (95 %) are over groups.
        """
        frames = [*self._alone_rows(), *self._curve_rows(), *self._area_rows(), self._break_rows()]
        columns = ["what", "order", "measure", "layer", "quantised", "bits"]
        columns += ["mean", "low", "high", "n_prompts"]
        whole = pd.concat([frame.reindex(columns=columns) for frame in frames], ignore_index=True)
        whole["order"] = whole["order"].fillna("").astype("str")
        floats = dict.fromkeys(("bits", "mean", "low", "high"), "float64")
        return whole.astype({"layer": "Int64", "quantised": "Int64", "n_prompts": "Int64"} | floats)

    def _alone_rows(self) -> Iterator[pd.DataFrame]:
        for name in self._outcomes:
            columns = self._estimates(self.arrays[f"alone.{name}"], name)
            layers = np.arange(len(columns["mean"]))
            rows = {"what": "alone", "measure": MEASURES[name], "layer": layers, "quantised": 1}
            yield pd.DataFrame(rows | columns)

    def _curve_rows(self) -> Iterator[pd.DataFrame]:
        for name in self._outcomes:
            for order in [*self.names, RANDOM]:
                kind = "log_prob" if order == RANDOM else name  # no shares: means over orders
                columns = self._estimates(self.curve(order, name), kind)
                rows = {"what": "curve", "order": order, "measure": MEASURES[name]}
                bits = {"bits": self.bits(order).mean(0), "quantised": self.sizes}
                yield pd.DataFrame(rows | bits | columns)

    def _area_rows(self) -> Iterator[pd.DataFrame]:
        for name in self._outcomes:
            areas = np.stack([self.area(order, name) for order in [*self.names, RANDOM]], axis=1)
            rows = {"what": "area", "order": [*self.names, RANDOM], "measure": MEASURES[name]}
            yield pd.DataFrame(rows | self._estimates(areas, "log_prob"))

    def _break_rows(self) -> pd.DataFrame:
        orders = [*self.names, RANDOM]
        bits = [self.breaks_at(order) for order in orders]
        n = len(self.arrays["order"])
        measure = f"average bits at which KL exceeds {BREAKS_AT} nats"
        rows = {"what": "break", "order": orders, "measure": measure, "bits": bits, "mean": bits}
        return pd.DataFrame(rows | {"n_prompts": n})

    def _estimates(self, values: np.ndarray, outcome: str) -> dict[str, np.ndarray]:
        if outcome == "accuracy":
            return shares(values, groups=self.prompt_groups)
        return estimates(values, groups=self.prompt_groups, seed=self.analysis.seed)

    def plot(self) -> go.Figure:
        """Draw KL, and accuracy where there are answers, by order, and KL of each layer alone."""
        frame, drawn = self.to_frame(), [self.analysis.orders[0], LAST_FIRST, RANDOM]
        drawn += [order for order in _DRAWN if order in self.analysis.orders and order not in drawn]
        curves = frame[(frame["what"] == "curve") & frame["order"].isin(drawn)]
        short = {MEASURES["kl"]: "KL, nats", MEASURES["accuracy"]: "accuracy"}
        curves = curves[curves["measure"].isin(short)]
        curves = curves.assign(panel=curves["measure"].map(short), layer=curves["quantised"])
        rank = {name: i for i, name in enumerate(drawn)}
        curves = curves.assign(low=np.nan, high=np.nan)  # prompts differ; orders are paired
        curves = curves.sort_values("order", key=lambda each: each.map(rank), kind="stable")
        kl = frame["measure"] == MEASURES["kl"]
        alone = frame[(frame["what"] == "alone") & kl].assign(panel=_ALONE, order=_ALONE)
        rows = pd.concat([curves, alone]).astype({"layer": "int64"})
        figure = lines_over_depth(rows, y="mean", groups="order", panels="panel", title=self._title)
        n_panels = rows["panel"].nunique()
        for i in range(1, n_panels):
            figure.update_xaxes(title_text="layers quantised", row=1, col=i)
        return figure

    @property
    def _title(self) -> str:
        how = self.analysis
        return (
            f"Layers rounded to {how.bits} bits in groups of {how.group}: more and more of them,"
            " and each alone"
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the first order costs beside last first and random, and the worst layer."""
        return findings_of(self)


_ALONE = "KL of one layer alone, nats"
