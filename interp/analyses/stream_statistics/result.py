"""Statistics of the stream as curves over depth, and the laws by which its variance grows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.stream_statistics.growth import GrowthLaw, growth_fits
from interp.figures.plots import COLOURS, lines_over_depth
from interp.figures.words import ALL, ALL_BUT_FIRST
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate_of, estimates, ratio

if TYPE_CHECKING:
    from interp.analyses.stream_statistics import StreamStatistics

STATISTICS = ("variance", "mean |h|", "max |h|", "max / median |h|", "massive activations")
POSITIONS = (ALL, ALL_BUT_FIRST)
_BY_ORDERS = ("variance", "max |h|", "max / median |h|")  # drawn by orders of magnitude
_LAWS = {"linear": "a line", "exponential": "an exponential"}


@dataclass(frozen=True, repr=False)
class StreamStatisticsResult(Result):
    """Statistics [prompt tap positions statistic] and where |h| is largest, over prompts.

    The places of the largest |h| are [prompt tap positions 2], the numbers of tokens [prompt].
    """

    analysis: "StreamStatistics"
    statistics: np.ndarray
    where: np.ndarray
    n_pos: np.ndarray

    def curve(self, statistic: str, positions: str = POSITIONS[0]) -> np.ndarray:
        """Return the mean [tap] of one of `STATISTICS`, over all positions or all but the first."""
        return self._estimates(statistic, positions)["mean"]

    def fits(self, positions: str = POSITIONS[0]) -> dict[str, GrowthLaw]:
        """Return the linear and the exponential growth of the variance."""
        return growth_fits(self.curve("variance", positions), fit_from=self.analysis.fit_from)

    def _estimates(self, statistic: str, positions: str) -> dict[str, np.ndarray]:
        values, weights = (
            self._per_prompt(statistic, positions),
            self._weights(statistic, positions),
        )
        return estimates(
            values, weights=weights, groups=self.prompt_groups, seed=self.analysis.seed
        )

    def _per_prompt(self, statistic: str, positions: str) -> np.ndarray:
        """Return a statistic [prompt tap]."""
        at = POSITIONS.index(positions), STATISTICS.index(statistic)
        return np.asarray(self.statistics[:, :, *at])

    def _weights(self, statistic: str, positions: str) -> np.ndarray:
        """Weight prompts by their tokens where a statistic is a mean over tokens."""
        if statistic not in ("variance", "mean |h|"):
            return np.ones(len(self.n_pos))
        return (self.n_pos - POSITIONS.index(positions)).astype(np.float64)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per measure, set of positions and layer.

        Columns: measure, positions, layer, mean, low, high, max, prompt, position, dimension.

        `layer` is the layer that reads the stream, `n_layers` after the last; low and high are a
        95 % interval over groups of prompts; max is the largest of any prompt, that of `prompt`,
        and "max |h|" also has its place. Fits of the variance, such as "linear fit: slope", have no
        layer.
        """
        frame = pd.concat([*self._tap_rows(), *self._fit_rows()], ignore_index=True)
        return frame.astype(dict.fromkeys(("layer", "prompt", "position", "dimension"), "Int64"))

    def _tap_rows(self) -> Iterator[pd.DataFrame]:
        for statistic, (i, positions) in product(STATISTICS, enumerate(POSITIONS)):
            values = self._per_prompt(statistic, positions)
            means = self._estimates(statistic, positions)
            taps, prompt = np.arange(values.shape[1]), values.argmax(0)
            at = self.where[prompt, taps, i].T if statistic == "max |h|" else (pd.NA, pd.NA)
            keys = {"measure": statistic, "positions": positions, "layer": taps}
            numbers = {name: means[name] for name in ("mean", "low", "high")}
            place = {"prompt": prompt, "position": at[0], "dimension": at[1]}
            yield pd.DataFrame(keys | numbers | {"max": values.max(0)} | place)

    def _fit_rows(self) -> Iterator[pd.DataFrame]:
        for positions in POSITIONS:
            for law, fit in self.fits(positions).items():
                numbers = (fit.intercept, fit.slope, fit.r2, fit.error)
                measures = [f"{law} fit: {of}" for of in ("intercept", "slope", "R²", "error")]
                keys = {"measure": measures, "positions": positions}
                yield pd.DataFrame(keys | {"mean": list(numbers)})

    def plot(self) -> go.Figure:
        """Draw every statistic over depth with and without position 0; both laws as dashes."""
        frame = pd.concat(self._tap_rows(), ignore_index=True)
        title = (
            "How the residual stream grows (dashed:"
            f" linear and exponential fit of the variance, {POSITIONS[1]})"
        )
        figure = lines_over_depth(
            frame, y="mean", groups="positions", panels="measure", title=title
        )
        least = frame.loc[frame["measure"] == "variance", "mean"].min()
        taps = np.arange(self.analysis.fit_from, self.statistics.shape[1])
        for i, (law, fit) in enumerate(self.fits(POSITIONS[1]).items()):
            fitted = fit.intercept + fit.slope * taps
            y = (np.exp(fitted) if law == "exponential" else fitted).astype(np.float32)
            y[y < least] = np.nan  # what a line says below all variances is not drawn
            look = {"line": {"dash": "dash", "color": COLOURS[2 + i]}, "name": f"{law} fit"}
            figure.add_scatter(x=taps, y=y, mode="lines", **look, row=1, col=1)
        axes = figure.select_yaxes()
        for axis, statistic in zip(axes, dict.fromkeys(frame["measure"]), strict=False):
            if statistic in _BY_ORDERS:
                axis.update(type="log", dtick=1)
        return figure

    def findings(self) -> tuple[Finding, ...]:
        """Return by how much the variance grows, by which law, and the largest activation."""
        return self._growth(), self._law(), self._largest()

    def _growth(self) -> Finding:
        growth, within = (self._grown(POSITIONS[1], since=tap) for tap in (0, 1))
        with_first = self._grown(POSITIONS[0], since=0)
        spec = ".3g"
        return Finding(
            f"After the last layer the stream's variance is {growth:{spec}} times that of the"
            " embedding, position 0 left out.",
            growth,
            "growth of the stream's variance from the embedding to the last layer,"
            " without position 0",
            rival=Compared("from after the first layer on", within),
            note=f"{POSITIONS[0]}: {with_first.value:{spec}}",
        )

    def _grown(self, positions: str, *, since: int) -> Estimate:
        """Return the variance after the last layer as a multiple of that at a tap."""
        variance = self._per_prompt("variance", positions)
        weights = self._weights("variance", positions)
        last, first = (variance[:, tap] * weights for tap in (-1, since))
        return ratio(last, first, groups=self.prompt_groups, seed=self.analysis.seed)

    def _law(self) -> Finding:
        fits = self.fits(POSITIONS[1])
        law, other = sorted(fits, key=lambda name: fits[name].error)
        less = self._of_fits(lambda fits: fits[other].error - fits[law].error)
        of_law = self._of_fits(lambda fits: fits[law].error)
        of_other = self._of_fits(lambda fits: fits[other].error)
        claim = (
            f"{_LAWS[law].capitalize()} fits the variance better than {_LAWS[other]}"
            if less.excludes()
            else f"Neither {_LAWS[law]} nor {_LAWS[other]} is shown to fit the variance better"
        )
        return Finding(
            f"{claim}: their errors differ by {less:.0%} of the mean variance, position 0 left"
            " out.",
            less,
            "root mean square error of the worse of two laws of growth less that of the better,"
            " as a share of the mean variance, without position 0",
            control=Compared(f"error of {_LAWS[other]}", of_other),
            rival=Compared(f"error of {_LAWS[law]}", of_law),
        )

    def line_beyond_exponential(self) -> Estimate:
        """Return the error of a line less that of an exponential, as a share of the variance."""
        return self._of_fits(lambda fits: fits["linear"].error - fits["exponential"].error)

    def _of_fits(self, statistic: Callable[[dict[str, GrowthLaw]], float]) -> Estimate:
        """Return a statistic of the two fits to the variance without position 0."""
        fit_from = self.analysis.fit_from
        return estimate_of(
            lambda variance: statistic(growth_fits(variance, fit_from=fit_from)),
            self._per_prompt("variance", POSITIONS[1]),
            weights=self._weights("variance", POSITIONS[1]),
            groups=self.prompt_groups,
            seed=self.analysis.seed,
        )

    def _largest(self) -> Finding:
        top = self._per_prompt("max |h|", POSITIONS[0])
        prompt, tap = np.unravel_index(top.argmax(), top.shape)
        position, dimension = self.where[prompt, tap, 0]
        largest = self._top(POSITIONS[0])
        n_massive = self._per_prompt("massive activations", POSITIONS[0]).max()
        massive = f"a prompt has up to {n_massive:,.0f} that are" if n_massive else "none is"
        return Finding(
            f"The largest activation is {largest:.3g}, at position {position}, dimension"
            f" {dimension}; {massive} massive.",
            largest,
            "largest activation of any prompt at any tap",
            rival=Compared("position 0 left out", self._top(POSITIONS[1])),
            note="a maximum, which can only grow with more prompts",
        )

    def _top(self, positions: str) -> Estimate:
        top = self._per_prompt("max |h|", positions)
        return Estimate(float(top.max()), n=len(top))
