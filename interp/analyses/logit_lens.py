"""When does the stream predict what the model predicts?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.2: the residual in
front of every layer is given to the final norm and the unembedding; the lens q_l is compared with
the final p by KL (the paper's is KL(q_l‖p), as its code has it) and by the overlap of their 5 most
probable tokens. "What Affects the Effective Depth of Large Language Models?" (arXiv 2512.14064)
makes one layer of each curve, and one of the cosines of the writes: three effective depths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch.nn.functional import pad

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import grid_below, lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval, interval_of, resampled_means
from interp.sweeps.cosines import write_cosines
from interp.sweeps.lens import READINGS, held, readings
from interp.tasks.batch import TokenBatch

_LENS_FINAL, _FINAL_LENS = "KL(lens‖final), nats", "KL(final‖lens), nats"
_PROBABILITY, _RANK, _FIRST = "answer probability", "answer rank", "answer is first"
_COSINE = "cosine of writes"


@dataclass(frozen=True)
class LogitLens(Analysis):
    """Unembed the residual in front of every layer; `weighting` "prompt" as published, "token" as
    in the follow-up.

    `first_position` False leaves position 0 (often a sink) out of means over positions. `kl_share`
    and `overlap_above` are the follow-up's thresholds of effective depth.
    """

    top_k: int = 5
    first_position: bool = True
    weighting: Literal["prompt", "token"] = "prompt"
    kl_share: float = 0.5
    overlap_above: float = 0.3
    seed: int = 0
    question: ClassVar[str] = "When does the stream predict what the model predicts?"
    how: ClassVar[str] = (
        "The stream in front of every layer is given to the final norm and the unembedding, and"
        " compared with the final prediction: by KL divergence, by the most probable tokens, and by"
        " the rank of the answer."
    )
    caveat: ClassVar[str] = (
        "The lens reads early layers in the last layer's language; what it cannot read may be there"
        " in another form."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise AnalysisError(f"top_k={self.top_k}; at least 1 is needed")
        for name in ("kl_share", "overlap_above"):
            if not 0 < getattr(self, name) < 1:
                raise AnalysisError(
                    f"{name}={getattr(self, name)}; a number between 0 and 1 is needed"
                )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for a vocabulary smaller than `top_k` and prompts without a position
        to average.
        """
        if self.top_k > model.d_vocab:
            raise AnalysisError(f"top_k={self.top_k}; the model has {model.d_vocab} tokens")
        if shard.tokens.shape[1] < 2 and not self.first_position:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; first_position=False needs at least 2"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return readings [batch layer+1 pos reading], the last behind all layers, and cosines
        [batch layer part].

        "top" [batch layer+1 pos top_k] are the lens's most probable tokens, for those who look at
        single prompts.
        """
        layers = range(recording.n_layers)
        resids = [recording.resid(layer) for layer in range(recording.n_layers + 1)]
        start = 0 if self.first_position else 1
        read, top = readings(recording, resids, top_k=self.top_k, answer=shard.answer)
        return {
            "readings": read.cpu(),
            "top": top.cpu(),
            "cosines": (
                torch.stack(
                    [write_cosines(recording, i)[:, start:].mean(1) for i in layers], dim=1
                ).cpu()
            ),
        }

    def combine(self, parts: Sequence[Tensors]) -> "LogitLensResult":
        """Return readings of all prompts, the last position aligned, with NaN in front of shorter
        prompts.
        """
        longest = max(part["readings"].shape[2] for part in parts)
        read = [part["readings"] for part in parts]
        aligned = [pad(r, (0, 0, longest - r.shape[2], 0), value=torch.nan) for r in read]
        cosines = torch.cat([part["cosines"] for part in parts])
        return LogitLensResult(self, torch.cat(aligned).double().numpy(), cosines.double().numpy())

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but `n_layers` + 2 unembeddings, a few tokens at a time."""
        n_prompts, n_pos = shard.tokens.shape
        numbers = n_prompts * (
            (model.n_layers + 1) * n_pos * (len(READINGS) + self.top_k) + 3 * model.n_layers
        )
        return Cost(0.0, numbers, held(shard.tokens.numel(), model.d_vocab))


def effective_depths(
    *,
    kl: np.ndarray,
    overlap: np.ndarray,
    cosine: np.ndarray,
    kl_share: float = 0.5,
    overlap_above: float = 0.3,
) -> dict[str, int | None]:
    """Return the three effective depths of arXiv 2512.14064, as 0-based layers; None where a
    condition is never met.

    Curves have one value a layer (read in front of it). "cosine": the last layer that erases and is
    followed by one that does not (mean cosine of attention's, MLP's and the layer's write); "KL":
    the first with KL(lens‖final) below `kl_share` of its maximum; "overlap": the first with an
    overlap above `overlap_above`. The last layer never counts, as published.
    """
    layers = range(len(kl) - 1)
    return {
        "cosine": next(
            (layer for layer in reversed(layers) if cosine[layer] < 0 <= cosine[layer + 1]), None
        ),
        "KL": next((layer for layer in layers if kl[layer] < kl_share * kl.max()), None),
        "overlap": next((layer for layer in layers if overlap[layer] > overlap_above), None),
    }


@dataclass(frozen=True, repr=False)
class LogitLensResult(Result):
    """Readings [prompt layer+1 pos reading], aligned at the last position, and cosines of writes
    [prompt layer part].
    """

    analysis: LogitLens
    readings: np.ndarray
    cosines: np.ndarray

    @property
    def n_layers(self) -> int:
        """Return the number of layers; there is one tap more."""
        return len(self.cosines[0])

    @property
    def _overlap(self) -> str:
        return f"top-{self.analysis.top_k} overlap"

    @property
    def _at_positions(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap pos]; those of the answer for the prompts that have one."""
        of = dict(zip(READINGS, np.moveaxis(self.readings, -1, 0), strict=True))
        at = {
            _LENS_FINAL: of["kl_lens_final"],
            _FINAL_LENS: of["kl_final_lens"],
            self._overlap: of["overlap"],
        }
        answered = of["answer_rank"][:, 0, -1] >= 0
        if answered.any():
            there = ~np.isnan(of["answer_rank"][answered, 0]).all(0)
            probability, rank = (
                of[name][answered][:, :, there] for name in ("answer_probability", "answer_rank")
            )
            at |= {
                _PROBABILITY: probability,
                _RANK: rank,
                _FIRST: np.where(np.isnan(rank), rank, rank == 0),
            }
        return at

    @cached_property
    def _per_prompt(self) -> dict[str, np.ndarray]:
        """Return every measure [prompt tap], averaged over positions; those of the answer at the
        last position.
        """
        n_pos = self._n_pos
        values = {}
        for measure, at in self._at_positions.items():
            if measure in (_PROBABILITY, _RANK, _FIRST):
                values[measure] = at[:, :, -1]
                continue
            kept = at.copy()
            if not self.analysis.first_position:
                kept[np.arange(len(kept)), :, at.shape[2] - n_pos] = np.nan
            values[measure] = np.nanmean(kept, axis=2)
        return values | {_COSINE: self.cosines.mean(2)}

    @property
    def _n_pos(self) -> np.ndarray:
        n_pos: np.ndarray = (~np.isnan(self.readings[:, 0, :, 0])).sum(1)
        return n_pos

    def _weights(self, measure: str, values: np.ndarray) -> np.ndarray:
        """Return every prompt's weight in a mean: its number of tokens if so asked, and if it is a
        mean over tokens.
        """
        if self.analysis.weighting == "token" and measure not in (_PROBABILITY, _RANK, _FIRST):
            return self._n_pos - (0.0 if self.analysis.first_position else 1.0)
        return np.ones(len(values))

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Return every measure's mean over prompts, one value a layer; but for the cosine also one
        behind the last.
        """
        per_prompt = self._per_prompt
        return {
            measure: np.average(values, axis=0, weights=self._weights(measure, values))
            for measure, values in per_prompt.items()
        }

    @property
    def effective_depths(self) -> dict[str, int | None]:
        """Return the three effective depths, as 0-based layers, None where a condition is never
        met.
        """
        curves = self.curves
        return self._depths_of(*(curves[name] for name in (_LENS_FINAL, self._overlap, _COSINE)))

    def _depths_of(self, *curves: np.ndarray) -> dict[str, int | None]:
        kl, overlap, cosine = (curve[: self.n_layers] for curve in curves)
        thresholds = {
            "kl_share": self.analysis.kl_share,
            "overlap_above": self.analysis.overlap_above,
        }
        return effective_depths(kl=kl, overlap=overlap, cosine=cosine, **thresholds)

    @property
    def _depth_intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % bootstrap interval, over prompts, of each effective depth's share of the
        depth.
        """
        per_prompt, seed = self._per_prompt, self.analysis.seed
        resampled = [
            resampled_means(
                per_prompt[name], weights=self._weights(name, per_prompt[name]), seed=seed
            )
            for name in (_LENS_FINAL, self._overlap, _COSINE)
        ]
        found = [self._depths_of(*curves) for curves in zip(*resampled, strict=True)]
        return {
            name: interval_of(self._share(depths[name]) for depths in found) for name in found[0]
        }

    def _share(self, layer: int | None) -> float:
        """Return a layer's share of the depth, as published; infinite where it was never reached."""
        return np.inf if layer is None else (layer + 1) / self.n_layers

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, layer, position, mean, median, low, high, n_prompts.

        Layer `n_layers` is behind the last layer. Position 0 is the last, -1 the one before it;
        without a position a row is the mean over positions (answers: the last position alone), with
        a 95 % bootstrap interval over prompts. "answer rank" counts the tokens more probable than
        the answer's first. "effective depth (…)": `layer` is the 0-based layer, missing where never
        reached, and `mean` the share of depth (layer + 1) / n_layers with its interval.
        """
        frame = pd.concat(
            [*self._curve_rows(), *self._position_rows(), self._depth_rows()], ignore_index=True
        )
        return frame.astype({"layer": "Int64", "position": "Int64"})

    def _curve_rows(self) -> Iterator[pd.DataFrame]:
        curves = self.curves
        for measure, values in self._per_prompt.items():
            low, high = bootstrap_interval(
                values, weights=self._weights(measure, values), seed=self.analysis.seed
            )
            numbers = {
                "mean": curves[measure],
                "median": np.median(values, axis=0),
                "low": low,
                "high": high,
            }
            keys = {"measure": measure, "layer": np.arange(values.shape[1]), "position": pd.NA}
            yield pd.DataFrame(keys | numbers | {"n_prompts": len(values)})

    def _position_rows(self) -> Iterator[pd.DataFrame]:
        for measure, values in self._at_positions.items():
            _, n_taps, n_pos = values.shape
            taps, positions = (axis.ravel() for axis in np.mgrid[:n_taps, 1 - n_pos : 1])
            keys = {"measure": measure, "layer": taps, "position": positions}
            numbers = {
                "mean": np.nanmean(values, axis=0).ravel(),
                "median": np.nanmedian(values, axis=0).ravel(),
            }
            counts = (~np.isnan(values)).sum(0).ravel()
            yield pd.DataFrame(
                keys | numbers | {"low": np.nan, "high": np.nan, "n_prompts": counts}
            )

    def _depth_rows(self) -> pd.DataFrame:
        intervals = self._depth_intervals
        rows = pd.DataFrame(
            {
                "measure": f"effective depth ({name})", "layer": pd.NA if layer is None else layer, "position": pd.NA,
                "mean": self._share(layer), "median": np.nan, "low": intervals[name][0], "high": intervals[name][1],
                "n_prompts": len(self.readings),
            }
            for name, layer in self.effective_depths.items()
        )  # fmt: skip
        return rows.replace([np.inf], np.nan)

    def plot(self) -> go.Figure:
        """Draw the curves with the three effective depths, and the answer's probability by layer
        and position.
        """
        panels = {
            _LENS_FINAL: "KL, nats", _FINAL_LENS: "KL, nats", self._overlap: self._overlap,
            _PROBABILITY: "answer, last position", _FIRST: "answer, last position", _COSINE: _COSINE,
        }  # fmt: skip
        frame = pd.concat(self._curve_rows(), ignore_index=True)
        frame["panel"] = frame["measure"].map(panels)
        title = "What the stream predicts in front of every layer (dotted: effective depth)"
        figure = lines_over_depth(
            frame.dropna(subset="panel"), y="mean", groups="measure", panels="panel", title=title
        )
        shown = list(dict.fromkeys(frame["panel"].dropna()))
        for name, panel in (("KL", "KL, nats"), ("overlap", self._overlap), ("cosine", _COSINE)):
            layer = self.effective_depths[name]
            if layer is not None:
                figure.add_vline(x=layer, line_dash="dot", row=1, col=shown.index(panel) + 1)
        at = self._at_positions
        if _PROBABILITY not in at:
            return figure
        grid = np.nanmean(at[_PROBABILITY], axis=0)
        x, y, of = (
            "position (0: the prompt's last token)",
            "in front of layer",
            "probability of the answer",
        )
        return grid_below(figure, grid, x=x, y=y, of=of, x_first=1 - grid.shape[1], top=1.0)

    def findings(self) -> tuple[Finding, ...]:
        """Return the three effective depths as shares of the depth."""
        found, intervals = list[Finding](), self._depth_intervals
        for name, layer in self.effective_depths.items():
            if layer is not None:
                claim = (
                    f"By {name}, the effective depth is {self._depth_in_words(layer)}."
                    if found
                    else self.summary()
                )
                measure = f"effective depth by {name}, (layer + 1) / layers"
                found.append(
                    old_finding(
                        claim, self._share(layer), measure, *intervals[name], len(self.readings)
                    )
                )
        return tuple(found) or (old_finding(self.summary()),)

    def summary(self) -> str:
        """Say how far the lens is from the final prediction, all three effective depths, and when
        the answer is first.
        """
        curves = self.curves
        kl, overlap = curves[_LENS_FINAL], curves[self._overlap]
        depths = ", ".join(
            f"{self._depth_in_words(layer)} by {name}"
            for name, layer in self.effective_depths.items()
        )
        text = (
            f"KL(lens‖final) falls from {kl[0]:.2f} nats at the embedding to {kl[-2]:.2f} in front"
            f" of the last layer; the {self.analysis.top_k} most probable tokens overlap by"
            f" {overlap[0]:.2f} and {overlap[-2]:.2f}. Effective depth (three definitions):"
            f" {depths} ({len(self.readings)} prompts)."
        )
        if _FIRST not in curves:
            return text
        shares = ", ".join(f"{100 * share:.0f}" for share in curves[_FIRST])
        return (
            f"{text} At the last position the lens's first choice is the answer for {shares} % of"
            " prompts, layer by layer."
        )

    def _depth_in_words(self, layer: int | None) -> str:
        return (
            "never reached"
            if layer is None
            else f"layer {layer} ({self._share(layer):.2f} of the depth)"
        )
