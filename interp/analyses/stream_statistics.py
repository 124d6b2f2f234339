"""How does the stream grow with depth, and are there massive activations?

"Peri-LN" (arXiv 2502.02732): the variance of the stream over its dimensions grows linearly with
depth where writes are normed, and in a pre-norm model linearly at the start of training and
exponentially after it. Both are fitted here. "Massive Activations in Large Language Models" (arXiv
2402.17762): single values above 100 that are also 1,000 times the median of the hidden state,
mostly at the first token; so everything is given with and without position 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import COLOURS, lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Resid, Tensors
from interp.stats.bootstrap import bootstrap_interval, interval_of, resampled_means
from interp.tasks.batch import TokenBatch

STATISTICS = ("variance", "mean |h|", "max |h|", "max / median |h|", "massive activations")
POSITIONS = ("all positions", "without the first")
_EPS = 1e-6


def statistics_of(
    resid: Resid, *, massive_above: float = 100.0, massive_ratio: float = 1000.0
) -> Float[Tensor, "rows statistic"]:
    """Return `STATISTICS` of each prompt's hidden state, in fp32.

    The variance is over d_model, then averaged over positions; maximum, median and number of
    massive activations (above `massive_above` and above `massive_ratio` times the median) are over
    all of a prompt's positions and dimensions.
    """
    resid = resid.float()
    size = resid.abs().flatten(1)
    median, top = size.median(dim=1).values, size.amax(1)
    massive = ((size > massive_above) & (size > massive_ratio * median[:, None])).sum(1)
    variance = resid.var(dim=-1, correction=0).mean(1)
    return torch.stack(
        [variance, size.mean(1), top, top / median.clamp_min(_EPS), massive.float()], dim=1
    )


def where_largest(resid: Resid) -> Int[Tensor, "rows 2"]:
    """Return the position and dimension of each prompt's largest |h|."""
    at = resid.float().abs().flatten(1).argmax(1)
    return torch.stack([at // resid.shape[-1], at % resid.shape[-1]], dim=1)


@dataclass(frozen=True)
class Fit:
    """A growth law: variance = intercept + slope·site, or its logarithm; `r2` on its own scale.

    `error` is the root mean square error of the variance itself, as a share of its mean, so that
    two laws can be compared.
    """

    intercept: float
    slope: float
    r2: float
    error: float


def growth_fits(variance: np.ndarray, *, fit_from: int = 0) -> dict[str, Fit]:
    """Return the linear and the exponential law fitted by least squares to the variance of every
    site from `fit_from` on.
    """
    sites = np.arange(fit_from, len(variance))
    truth = variance[fit_from:].astype(np.float64)
    fits = {}
    for name, scale, back in (("linear", np.array, np.array), ("exponential", np.log, np.exp)):
        target = scale(truth)
        slope, intercept = np.polyfit(sites, target, 1)
        fitted = intercept + slope * sites
        spread = ((target - target.mean()) ** 2).sum()
        r2 = 1 - ((target - fitted) ** 2).sum() / spread if spread > 0 else 1.0
        error = np.sqrt(((back(fitted) - truth) ** 2).mean()) / truth.mean()
        fits[name] = Fit(float(intercept), float(slope), float(r2), float(error))
    return fits


@dataclass(frozen=True)
class StreamStatistics(Analysis):
    """Measure the stream in front of every layer and behind the last; growth is fitted from site
    `fit_from` on.
    """

    massive_above: float = 100.0
    massive_ratio: float = 1000.0
    fit_from: int = 0
    seed: int = 0
    question: ClassVar[str] = (
        "How does the stream grow with depth, and are there massive activations?"
    )
    how: ClassVar[str] = (
        "The variance of the stream over its dimensions is measured in front of every layer and"
        " behind the last, with and without position 0, and laws of growth are fitted. Single"
        " values far above the others are counted as massive."
    )
    caveat: ClassVar[str] = (
        "The norm in front of each layer takes the stream's scale out, so growth alone does not say"
        " that late layers matter less."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("massive_above", "massive_ratio", "fit_from"):
            if getattr(self, name) < 0:
                raise AnalysisError(f"{name}={getattr(self, name)}; 0 or more is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for too few sites to fit, and for prompts that are nothing but
        position 0.
        """
        if model.n_layers + 1 - self.fit_from < 3:
            there_is = f"the model has sites 0 to {model.n_layers}, and a fit needs 3"
            raise AnalysisError(f"fit_from={self.fit_from}; {there_is}")
        if shard.tokens.shape[1] < 2:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; at least 2 are needed"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt [batch site positions statistic], and where |h| is largest [batch site
        positions 2].
        """
        statistics, where = [], []
        for site in range(recording.n_layers + 1):
            resid = recording.resid(site)
            for start in (0, 1):
                rule = {"massive_above": self.massive_above, "massive_ratio": self.massive_ratio}
                statistics.append(statistics_of(resid[:, start:], **rule).cpu())
                where.append(where_largest(resid[:, start:]).cpu() + torch.tensor([start, 0]))
        shape = (len(shard.prompts), recording.n_layers + 1, len(POSITIONS), -1)
        return {
            "statistics": torch.stack(statistics, dim=1).reshape(shape),
            "where": torch.stack(where, dim=1).reshape(shape).to(torch.int32),
            "n_pos": torch.full((len(shard.prompts),), recording.n_pos),
        }

    def combine(self, parts: Sequence[Tensors]) -> "StreamStatisticsResult":
        """Return means over prompts (variance and mean: over tokens), maxima and where they are."""
        joined = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        return StreamStatisticsResult(
            self, joined["statistics"].astype(np.float64), joined["where"], joined["n_pos"]
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass."""
        numbers = len(shard.prompts) * (model.n_layers + 1) * len(POSITIONS) * (len(STATISTICS) + 2)
        return Cost(0.0, numbers, 3 * shard.tokens.numel() * model.d_model)


@dataclass(frozen=True, repr=False)
class StreamStatisticsResult(Result):
    """Statistics [prompt site positions statistic], where |h| is largest [prompt site positions 2],
    tokens per prompt.
    """

    analysis: StreamStatistics
    statistics: np.ndarray
    where: np.ndarray
    n_pos: np.ndarray

    def curve(self, statistic: str, positions: str = POSITIONS[0]) -> np.ndarray:
        """Return the mean of one of `STATISTICS` for every site, over all positions or without the
        first.
        """
        values = self._per_prompt(statistic, positions)
        mean: np.ndarray = np.average(values, axis=0, weights=self._weights(statistic, positions))
        return mean

    def fits(self, positions: str = POSITIONS[0]) -> dict[str, Fit]:
        """Return the linear and the exponential growth of the variance."""
        return growth_fits(self.curve("variance", positions), fit_from=self.analysis.fit_from)

    def _per_prompt(self, statistic: str, positions: str) -> np.ndarray:
        values: np.ndarray = self.statistics[
            :, :, POSITIONS.index(positions), STATISTICS.index(statistic)
        ]
        return values

    def _weights(self, statistic: str, positions: str) -> np.ndarray:
        """Weight prompts by their tokens where a statistic is a mean over tokens."""
        if statistic not in ("variance", "mean |h|"):
            return np.ones(len(self.n_pos))
        return (self.n_pos - POSITIONS.index(positions)).astype(np.float64)

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, positions, layer, mean, low, high, max, prompt, position,
        dimension.

        `layer` is the layer that reads the stream, `n_layers` behind the last; low and high are a
        95 % bootstrap over prompts; max is the largest of any prompt, that of `prompt`, and "max
        |h|" also has its place. Fits of the variance, such as "linear fit: slope", have no layer.
        """
        frame = pd.concat([*self._site_rows(), *self._fit_rows()], ignore_index=True)
        return frame.astype(dict.fromkeys(("layer", "prompt", "position", "dimension"), "Int64"))

    def _site_rows(self) -> Iterator[pd.DataFrame]:
        for statistic in STATISTICS:
            for i, positions in enumerate(POSITIONS):
                values = self._per_prompt(statistic, positions)
                low, high = bootstrap_interval(
                    values, weights=self._weights(statistic, positions), seed=self.analysis.seed
                )
                sites, who = np.arange(values.shape[1]), values.argmax(0)
                at = self.where[who, sites, i].T if statistic == "max |h|" else (pd.NA, pd.NA)
                keys = {"measure": statistic, "positions": positions, "layer": sites}
                numbers = {
                    "mean": self.curve(statistic, positions),
                    "low": low,
                    "high": high,
                    "max": values.max(0),
                }
                yield pd.DataFrame(
                    keys | numbers | {"prompt": who, "position": at[0], "dimension": at[1]}
                )

    def _fit_rows(self) -> Iterator[pd.DataFrame]:
        for positions in POSITIONS:
            for name, fit in self.fits(positions).items():
                numbers = {
                    "intercept": fit.intercept,
                    "slope": fit.slope,
                    "R²": fit.r2,
                    "error": fit.error,
                }
                measures = [f"{name} fit: {key}" for key in numbers]
                yield pd.DataFrame(
                    {"measure": measures, "positions": positions, "mean": list(numbers.values())}
                )

    def plot(self) -> go.Figure:
        """Draw every statistic over depth with and without position 0, and both laws beside the
        variance.
        """
        frame = pd.concat(self._site_rows(), ignore_index=True)
        title = (
            "How the residual stream grows (dashed: linear and exponential fit of all positions'"
            " variance)"
        )
        figure = lines_over_depth(
            frame, y="mean", groups="positions", panels="measure", title=title
        )
        sites = np.arange(self.analysis.fit_from, self.statistics.shape[1])
        for i, (name, fit) in enumerate(self.fits().items()):
            fitted = fit.intercept + fit.slope * sites
            y = (np.exp(fitted) if name == "exponential" else fitted).astype(np.float32)
            line = {"dash": "dash", "color": COLOURS[2 + i]}
            figure.add_scatter(
                x=sites, y=y, mode="lines", line=line, name=f"{name} fit", row=1, col=1
            )
        return figure

    def findings(self) -> tuple[Finding, ...]:
        """Return by how much the stream's variance grows, position 0 left out."""
        curve = self.curve("variance", POSITIONS[1])
        ends = self._per_prompt("variance", POSITIONS[1])[:, [0, -1]]
        resampled = resampled_means(
            ends, weights=self._weights("variance", POSITIONS[1]), seed=self.analysis.seed
        )
        low, high = interval_of(resampled[:, 1] / resampled[:, 0])
        measure = (
            "growth of the stream's variance from the embedding to the last layer, without"
            " position 0"
        )
        return (
            old_finding(
                self.summary(), float(curve[-1] / curve[0]), measure, low, high, len(self.n_pos)
            ),
        )

    def summary(self) -> str:
        """Say how much and by which law the variance grows, and whether activations are massive."""
        every, rest = (self.curve("variance", positions) for positions in POSITIONS)
        linear, exponential = self.fits()["linear"], self.fits()["exponential"]
        top = self._per_prompt("max |h|", POSITIONS[0])
        who, site = np.unravel_index(top.argmax(), top.shape)
        position, dimension = self.where[who, site, 0]
        massive = self._per_prompt("massive activations", POSITIONS[0]).max()
        return (
            f"The stream's variance grows from {every[0]:.3g} at the embedding to {every[-1]:.3g}"
            f" behind the last layer ({rest[0]:.3g} to {rest[-1]:.3g} without position 0). A line"
            f" in depth fits it with R² {linear.r2:.2f}, an exponential its logarithm with R²"
            f" {exponential.r2:.2f}; in the variance itself they err by {100 * linear.error:.0f} %"
            f" and {100 * exponential.error:.0f} % of its mean. The largest |h| is"
            f" {top[who, site]:.3g}, at position {position}, dimension {dimension},"
            f" {'behind the last layer' if site == top.shape[1] - 1 else f'in front of layer {site}'},"
            f" {self._per_prompt('max / median |h|', POSITIONS[0])[who, site]:.0f} times the"
            " median; "
            + (
                f"up to {massive:.0f} activations of a prompt are massive"
                if massive
                else "no activation is massive"
            )
            + f" ({len(top)} prompts)."
        )
