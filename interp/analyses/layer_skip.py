"""What breaks when a layer is skipped: later layers, the output; at once, for future tokens,
directly?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.2. The effect of
skipping layer s on layer l is the relative change of l's contribution, ||c_l - c'_l|| / ||c_l||; on
the output, the L2 change of the probabilities. Scopes: "all" skips s at every position but 0;
"future" skips before a split and measures from the split on; "direct" subtracts s's write from the
input of each later layer alone, so nothing propagates (both at all positions, and before the split
only, as "direct_future"). The paper's h_l - h_s for direct effects is, in its code, h_l - c_s; so
it is here.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, unknown
from interp.figures.plots import grids_over_bars
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.staircase import Ends, Part, Scope, Step, staircase
from interp.tasks.batch import TokenBatch

_SHOWN = {
    "all": "all positions",
    "future": "future tokens",
    "direct": "direct",
    "direct_future": "direct, future tokens",
}


@dataclass(frozen=True)
class LayerSkip(Analysis):
    """Skip every layer, or one part of it, in one sweep; `splits` "paper" draws them as published
    (seed 123).
    """

    part: Part = "layer"
    scopes: tuple[str, ...] = ("all", "future", "direct")
    splits: Literal["even", "paper"] = "even"
    n_splits: int = 4
    percentile: float = 95.0
    seed: int = 0
    question: ClassVar[str] = (
        "What breaks when a layer is skipped: later layers, the output, future tokens?"
    )
    how: ClassVar[str] = (
        "Each layer is left out in turn, and every later layer and the output are compared with the"
        " clean run; once at all positions, once only before a split (what future tokens need), and"
        " once for each later layer alone (direct effects)."
    )
    caveat: ClassVar[str] = (
        "Later layers meet a stream that they never saw in training, so the loss is not the layer's"
        " own alone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for scope in self.scopes:
            if scope not in ("all", "future", "direct"):
                raise AnalysisError(unknown("scope", scope, ("all", "future", "direct")))
        if self.n_splits < 1:
            raise AnalysisError(f"n_splits={self.n_splits}; at least 1 is needed")

    @property
    def _scopes(self) -> tuple[Scope, ...]:
        wanted: list[Scope] = ["all"]
        wanted += ["future"] if "future" in self.scopes else []
        wanted += ["direct", "direct_future"] if "direct" in self.scopes else []
        return tuple(wanted)

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts too short to be split."""
        self._splits(shard.tokens.shape[1], name=shard.prompts[0].id)

    def _splits(self, n_pos: int, *, name: str = "") -> list[int]:
        if self._scopes == ("all",):
            return []
        if self.splits == "paper":
            candidates = list(range(8, n_pos - 4, 8))
            random.Random(123).shuffle(candidates)
            chosen = sorted(candidates[: self.n_splits])
        else:
            chosen = (
                sorted({round(t) for t in np.linspace(2, n_pos - 2, self.n_splits)})
                if n_pos >= 4
                else []
            )
        if not chosen:
            needed = 13 if self.splits == "paper" else 4
            raise AnalysisError(
                f"prompt {name!r} has {n_pos} tokens; splits={self.splits!r} needs at least"
                f" {needed}"
            )
        return chosen

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt maxima, positions and means [batch skipped affected], and output
        effects [batch skipped].
        """
        n, layers, n_pos = len(shard.prompts), recording.n_layers, recording.n_pos
        splits = self._splits(n_pos)
        effects = {scope: _Effects(n, layers) for scope in self._scopes}
        outputs: Tensors = {}
        clean = recording.logits(recording.resid(layers))
        for event in staircase(recording, part=self.part, scopes=self._scopes, splits=splits):
            if isinstance(event, Step):
                effects[event.scope].add(event)
            else:
                share = 1.0 if event.scope == "all" else 1 / len(splits)
                for key, value in _output_effects(
                    recording, shard, clean, event, share=share
                ).items():
                    _reduce(outputs, f"{event.scope}.{key}", value)
        for scope, effect in effects.items():
            outputs |= {f"{scope}.{key}": value for key, value in effect.tensors().items()}
        return outputs

    def combine(self, parts: Sequence[Tensors]) -> "LayerSkipResult":
        """Return maxima (as the paper), percentiles and means over prompts, for every scope."""
        joined = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        return LayerSkipResult(self, joined, self._scopes)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Half a sweep per scope over all positions, and per split the share of positions behind
        it.
        """
        n_pos, layers = shard.tokens.shape[1], model.n_layers
        half = (layers - 1) / 2
        behind = sum((n_pos - t) / n_pos for t in self._splits(n_pos))
        forwards = half * sum(behind if scope.endswith("future") else 1.0 for scope in self._scopes)
        held = (
            8 * layers * shard.tokens.numel() * model.d_model
            + 3 * shard.tokens.numel() * model.d_vocab
        )
        return Cost(
            forwards, len(shard.prompts) * layers * (3 * layers + 3) * len(self._scopes), held
        )


class _Effects:
    """Running maximum, its position, and mean of one scope, per prompt [batch skipped affected]."""

    def __init__(self, n: int, layers: int) -> None:
        self.maximum = torch.zeros(n, layers, layers)
        self.position = torch.zeros(n, layers, layers, dtype=torch.int32)
        self.total = torch.zeros(n, layers, layers)
        self.count = torch.zeros(n, layers, layers)

    def add(self, step: Step) -> None:
        """Take in one layer's changes [variant batch pos]; position 0 does not count."""
        change = step.change[:, :, 1:] if step.start == 0 else step.change
        value, position = (t.transpose(0, 1).cpu() for t in change.max(-1))
        at = (slice(None), slice(0, len(change)), step.layer)
        larger = value > self.maximum[at]
        self.position[at] = torch.where(
            larger, position + max(step.start, 1), self.position[at]
        ).to(torch.int32)
        self.maximum[at] = torch.where(larger, value, self.maximum[at])
        self.total[at] += change.sum(-1).transpose(0, 1).cpu()
        self.count[at] += change.shape[-1]

    def tensors(self) -> Tensors:
        """Return the finished arrays."""
        return {
            "max": self.maximum,
            "position": self.position,
            "mean": self.total / self.count.clamp_min(1),
        }


def _reduce(into: Tensors, key: str, value: Tensor) -> None:
    """Keep the larger of maxima, and the sum of shares."""
    if key not in into:
        into[key] = value
    else:
        into[key] = torch.maximum(into[key], value) if key.endswith("max") else into[key] + value


def _output_effects(
    recording: Recording, shard: TokenBatch, clean: Tensor, ends: Ends, *, share: float
) -> dict[str, Tensor]:
    """Return ||p - p'||, maximal and mean over positions, and the fall of the answer's logit, each
    [batch skipped].

    What is averaged over splits comes multiplied by `share`, to be added up.
    """
    probs = clean[:, ends.start :].softmax(-1)
    change, fall = [], []
    for resid in ends.resid:
        logits = recording.logits(resid)
        change.append((probs - logits.softmax(-1)).norm(dim=-1)[:, 0 if ends.start else 1 :])
        if shard.answer is not None:
            fall.append((clean[:, -1] - logits[:, -1]).gather(1, shard.answer[:, None])[:, 0])
    changes = torch.stack(change, dim=1).cpu()
    effects = {"output_max": changes.amax(-1), "output_mean": share * changes.mean(-1)}
    return effects | ({"answer_fall": share * torch.stack(fall, dim=1).cpu()} if fall else {})


@dataclass(frozen=True, repr=False)
class LayerSkipResult(Result):
    """Per-prompt effects: `arrays["all.max"]` [prompt skipped affected], `arrays["all.output_max"]`
    [prompt skipped].
    """

    analysis: LayerSkip
    arrays: dict[str, np.ndarray]
    scopes: tuple[Scope, ...]

    @property
    def n_prompts(self) -> int:
        """Return the number of prompts measured."""
        return len(self.arrays["all.max"])

    @property
    def _output_effect(self) -> Literal["answer", "output"]:
        """Return what the summary speaks of: the answer, or all probabilities where no answer is
        known.
        """
        return "answer" if "all.answer_fall" in self.arrays else "output"

    def grid(
        self, scope: str, *, statistic: Literal["max", "percentile", "mean"] = "max"
    ) -> np.ndarray:
        """Return the effect of every skipped layer (row) on every layer (column) over prompts."""
        return self._over_prompts(self.arrays[f"{scope}.max"], self.arrays[f"{scope}.mean"])[
            statistic
        ]

    def _over_prompts(self, maxima: np.ndarray, means: np.ndarray) -> dict[str, np.ndarray]:
        low, high = bootstrap_interval(means.astype(np.float64), seed=self.analysis.seed)
        percentile = np.percentile(maxima, self.analysis.percentile, axis=0)
        return {
            "max": maxima.max(0),
            "percentile": percentile,
            "mean": means.mean(0),
            "low": low,
            "high": high,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per scope, effect, skipped and affected layer.

        Effects: "layer" (relative change of a later layer's contribution), "output" (L2 change of
        the probabilities) and "answer" (fall of the answer's logit). Statistics over prompts: max
        and percentile of each prompt's maximum over positions; mean with its 95 % bootstrap
        interval; which prompt and position made the maximum.
        """
        frame = pd.concat(
            [rows for scope in self.scopes for rows in self._rows(scope)], ignore_index=True
        )
        return frame.astype(dict.fromkeys(("skipped", "affected", "prompt", "position"), "Int64"))

    def _rows(self, scope: str) -> Iterator[pd.DataFrame]:
        maxima, means = self.arrays[f"{scope}.max"], self.arrays[f"{scope}.mean"]
        skipped, affected = np.triu_indices(maxima.shape[1])
        at = (slice(None), skipped, affected)
        who = maxima[at].argmax(0)
        where = self.arrays[f"{scope}.position"][at][who, np.arange(len(who))]
        keys = {"scope": scope, "effect": "layer", "skipped": skipped, "affected": affected}
        made_by = {"prompt": who, "position": where}
        yield pd.DataFrame(keys | self._over_prompts(maxima[at], means[at]) | made_by)
        for effect, top, mean in (
            ("output", "output_max", "output_mean"),
            ("answer", "answer_fall", "answer_fall"),
        ):
            if f"{scope}.{top}" in self.arrays:
                per_prompt = self.arrays[f"{scope}.{top}"]
                keys = {"scope": scope, "effect": effect, "skipped": np.arange(per_prompt.shape[1])}
                numbers = self._over_prompts(per_prompt, self.arrays[f"{scope}.{mean}"])
                yield pd.DataFrame(keys | numbers | {"prompt": per_prompt.argmax(0)})

    def plot(self) -> go.Figure:
        """Draw one grid per scope, skipped layer by affected layer (colours saturate at 1, as
        published), and the output.
        """
        earlier = np.tri(self.arrays["all.max"].shape[1], k=-1, dtype=bool)
        grids = {
            _SHOWN[scope]: np.where(earlier, np.nan, self.grid(scope)) for scope in self.scopes
        }
        frame = self.to_frame()
        shown = frame[frame["effect"] == self._output_effect]
        bars = {
            _SHOWN[scope]: shown[shown["scope"] == scope]
            for scope in self.scopes
            if scope in set(shown["scope"])
        }
        label = {"answer": "fall of the answer's logit", "output": "change of the probabilities"}[
            self._output_effect
        ]
        title = (
            "What skipping a layer changes: later layers (largest relative change), and the output"
            " (mean)"
        )
        return grids_over_bars(
            grids, bars, x="affected layer", y="skipped layer", bars_label=label, title=title
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return what the layer that the output needs most is worth."""
        frame = self.to_frame()
        rows = frame[(frame["scope"] == "all") & (frame["effect"] == self._output_effect)]
        most = rows.iloc[int(rows["mean"].argmax())]
        what = {
            "answer": "loss of the answer's logit",
            "output": "change of the probabilities (L2)",
        }
        measure = (
            f"{what[self._output_effect]} without the {self.analysis.part} that the output needs"
            " most"
        )
        return (
            old_finding(
                self.summary(),
                float(most["mean"]),
                measure,
                float(most["low"]),
                float(most["high"]),
                self.n_prompts,
            ),
        )

    def summary(self) -> str:
        """Say which layer the output needs most and least, and how far future tokens depend on
        earlier ones.
        """
        frame = self.to_frame()
        rows = frame[(frame["scope"] == "all") & (frame["effect"] == self._output_effect)]
        most, least = rows.iloc[int(rows["mean"].argmax())], rows.iloc[int(rows["mean"].argmin())]
        part = (
            self.analysis.part
            if self.analysis.part == "layer"
            else f"the {self.analysis.part} of layer"
        )
        what = {"answer": "the answer's logit falls by", "output": "the probabilities change by"}[
            self._output_effect
        ]
        other = f"costs least, {least['mean']:.2f}"
        if least["mean"] < 0:
            other = f"costs less than nothing: it rises by {-least['mean']:.2f}"
        text = (
            f"Skipping {part} {most['skipped']} costs most: {what} {most['mean']:.2f} on average "
            f"(95 % interval {most['low']:.2f} to {most['high']:.2f}, {self.n_prompts} prompts); "
            f"{part} {least['skipped']} {other}."
        )
        if "future" not in self.scopes:
            return text
        later = np.triu_indices(self.arrays["all.max"].shape[1], 1)
        everywhere, future = (
            self.grid(scope, statistic="mean")[later].mean() for scope in ("all", "future")
        )
        return (
            f"{text} A skipped layer changes what a later layer writes by {everywhere:.2f}"
            f" (relative, mean) at the same and later tokens together, and by {future:.2f} at"
            " tokens behind the skip only."
        )
