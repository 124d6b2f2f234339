"""What the lens reads, as curves over depth, and the effective depths made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analyses.logit_lens.curves import Curves
from interp.analyses.logit_lens.depths import DEPTHS
from interp.analyses.logit_lens.guesses import BANDS, COMMON, DIFFERS
from interp.analyses.logit_lens.measures import (
    COSINE,
    FINAL_LENS,
    FIRST,
    LENS_FINAL,
    PROBABILITY,
    RANK,
)
from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.numerals import number
from interp.result import MOST_FINDINGS, Compared, Finding, Result
from interp.stats.estimate import Estimate
from interp.sweeps.positions import positions_read

if TYPE_CHECKING:
    from interp.analyses.logit_lens import LogitLens


@dataclass(frozen=True, repr=False)
class LogitLensResult(Result):
    """Readings [prompt tap pos reading] and cosines [prompt layer part].

    `guesses` [prompt tap pos] are the lens's first choices, `NO_GUESS` before short prompts;
    None of parts that lack them. Positions are aligned at the end.
    """

    analysis: "LogitLens"
    readings: np.ndarray
    cosines: np.ndarray
    guesses: np.ndarray | None = None

    @cached_property
    def _curves(self) -> Curves:
        return Curves(self.analysis, self.readings, self.cosines, self.guesses, self.prompt_groups)

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return self._curves.n_layers

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Return every measure's mean over prompts [tap]; the cosine has none after the last."""
        return {name: columns["mean"] for name, columns in self._curves.estimates.items()}

    @property
    def effective_depths(self) -> dict[str, int | None]:
        """Return the three effective depths, as 0-based layers; None where never reached."""
        return {name: self._curves.layer(name) for name in DEPTHS}

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, position, mean, median, low, high, n_prompts.

        Layer `n_layers` is after the last layer. Position -1 is the last, -2 the one before it.
        Without a position a row is the mean over positions (of answers: the last position), with
        its 95 % interval over groups of prompts; where position 0 is left out, "…, position 0
        included" is the mean with it. "answer rank" counts the tokens more probable than the
        answer's first; "margin" is how far the first guess is ahead of the next. "guess …" are
        shares of guesses. "effective depth (…)": `layer` is the 0-based layer, missing where never
        reached, and `mean` the share of layers that have run there: layer / n_layers, as a lens
        reads before its layer; by cosine (layer + 1) / n_layers.
        """
        rows = [*self._curve_rows(), *self._position_rows(), self._depth_rows()]
        return pd.concat(rows, ignore_index=True).astype({"layer": "Int64", "position": "Int64"})

    def _curve_rows(self) -> Iterator[pd.DataFrame]:
        for measure, columns in self._curves.estimates.items():
            values = self._curves.of_prompts[measure]
            keys = {"measure": measure, "layer": np.arange(values.shape[1]), "position": pd.NA}
            numbers = {"mean": columns["mean"], "median": np.median(values, axis=0)}
            interval = {"low": columns["low"], "high": columns["high"]}
            yield pd.DataFrame(keys | numbers | interval | {"n_prompts": len(values)})

    def _position_rows(self) -> Iterator[pd.DataFrame]:
        for measure, values in self._curves.at_positions.items():
            _, n_taps, n_pos = values.shape
            taps, positions = (axis.ravel() for axis in np.mgrid[:n_taps, -n_pos:0])
            keys = {"measure": measure, "layer": taps, "position": positions}
            mean, median = (f(values, axis=0).ravel() for f in (np.nanmean, np.nanmedian))
            numbers = {"mean": mean, "median": median, "low": np.nan, "high": np.nan}
            yield pd.DataFrame(keys | numbers | {"n_prompts": (~np.isnan(values)).sum(0).ravel()})

    def _depth_rows(self) -> pd.DataFrame:
        rows = [
            {"measure": f"effective depth ({name})", "layer": self._curves.layer(name)}
            | {"position": pd.NA, "median": np.nan}
            | depth.columns()
            for name, depth in self._curves.depths.items()
        ]
        return pd.DataFrame(rows).replace([np.inf], np.nan)

    def plot(self) -> go.Figure:
        """Draw the curves and the effective depths; below, the answer's rank by position."""
        panels = dict.fromkeys((LENS_FINAL, FINAL_LENS), "KL, nats")
        panels |= dict.fromkeys((PROBABILITY, FIRST), "answer, last position")
        panels |= {self._curves.overlap: self._curves.overlap, COSINE: COSINE}
        frame = pd.concat(self._curve_rows(), ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = (
            "What the stream predicts before every layer, mean over"
            f" {positions_read(self.analysis.first_position)} (dotted: effective depth)"
        )
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        shown = list(dict.fromkeys(frame["panel"].dropna()))
        for name, panel in (
            ("KL", "KL, nats"),
            ("overlap", self._curves.overlap),
            ("cosine", COSINE),
        ):
            layer = self.effective_depths[name]
            if layer is not None:
                figure.add_vline(x=layer, line_dash="dot", row=1, col=shown.index(panel) + 1)
        ranks = self._curves.at_positions.get(RANK)
        return figure if ranks is None else _ranks_below(figure, np.nanmedian(ranks, axis=0) + 1)

    def findings(self) -> tuple[Finding, ...]:
        """Return how deep the stream agrees with the prediction, and how many guesses stay.

        The depths are those by the definitions reached; guesses follow where there is room.
        """
        reached = [name for name in DEPTHS if self.effective_depths[name] is not None]
        depths = [self._depth_finding(name) for name in reached] or [
            Finding("None of the three effective depths is reached.")
        ]
        guesses = [] if self.guesses is None else [self._guess_finding()]
        return tuple([*depths, *guesses][:MOST_FINDINGS])

    def _guess_finding(self) -> Finding:
        layer, all_of = self.n_layers // 4, self._curves.estimates
        mean, low, high = (float(all_of[DIFFERS][end][layer]) for end in ("mean", "low", "high"))
        share = Estimate(mean, low, high, len(self.readings))
        common = all_of[COMMON[BANDS[0]]]["mean"]
        early, late = (number(common[tap], ".0%") for tap in (layer, -1))
        return Finding(
            f"Before layer {layer}, after a quarter of them, {share:.0%} of the first guesses"
            " are not the final ones.",
            share,
            "share of the lens's first guesses a quarter up that are not the final ones",
            note=f"{early} are among the {BANDS[0]} most frequent final guesses; at the end {late}",
        )

    def _depth_finding(self, name: str) -> Finding:
        depth, asked = self._curves.depths[name], self.analysis
        n_run = round(depth.value * self.n_layers)
        share, above = (number(x, ".0%") for x in (asked.kl_share, asked.overlap_above))
        said = {
            "KL": f"The lens's KL from the final prediction first falls below {share} of its"
            " largest",
            "overlap": f"The lens's top {asked.top_k} tokens first overlap with the final ones by"
            f" more than {above}",
            "cosine": "Layers last change from writing against the stream to writing along it",
        }
        others = [other for other in self._curves.depths if other.startswith(f"{name}, ")]
        rivals = [Compared(other, self._curves.depths[other]) for other in others[:1]]
        three = ", ".join(
            f"{each} {number(self._curves.depths[each].value, '.0%')}"
            for each in DEPTHS
            if self.effective_depths[each] is not None
        )
        return Finding(
            f"{said[name]} after {n_run} of {self.n_layers} layers: {depth:.0%}.",
            depth,
            f"effective depth by {name}, share of layers that have run",
            rival=next((each for each in rivals if np.isfinite(each.estimate.value)), None),
            note=f"one of three definitions ({three}); the last layer never counts",
        )


def _ranks_below(figure: go.Figure, ranks: np.ndarray) -> go.Figure:
    """Add a grid of the answer's ranks [tap pos], from 1 on, whose colours are their logarithms."""
    x, y = "position (−1: the prompt's last token)", "before layer"
    powers = [*range(int(np.log10(np.nanmax(ranks))) + 1)]
    hover = f"{x} %{{x}}<br>{y} %{{y}}<br>rank %{{customdata:,.0f}}<extra></extra>"
    return grid_below(
        figure,
        np.log10(ranks),
        axes=Axes(x, y, of="the answer's rank among all tokens, median over prompts (log scale)"),
        x_first=-ranks.shape[1],
        reversescale=True,
        customdata=ranks,
        hovertemplate=hover,
        colorbar={"tickvals": powers, "ticktext": [f"{10**power:,}" for power in powers]},
    )
