"""What breaks when a layer is skipped: later layers, the output; at once, for future tokens, directly?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.2. The effect of skipping layer s on layer
l is the relative change of l's contribution, ||c_l - c'_l|| / ||c_l||; on the output, the L2 change of the probabilities.
Scopes: "all" skips s at every position but 0; "future" skips before a split and measures from the split on; "direct"
subtracts s's write from the input of each later layer alone, so nothing propagates (both at all positions, and before the
split only, as "direct_future"). The paper's h_l - h_s for direct effects is, in its code, h_l - c_s; so it is here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from interp.analysis import Analysis, Cost, Result
from interp.errors import AnalysisError, unknown
from interp.models import Model
from interp.plots import heat
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.staircase import Ends, Part, Scope, Step, staircase
from interp.sweeps.statistics import bootstrap_interval
from interp.tasks.batch import TokenBatch

_SHOWN = {
    "all": "all positions",
    "future": "future tokens",
    "direct": "direct",
    "direct_future": "direct, future tokens",
}


@dataclass(frozen=True)
class LayerSkip(Analysis):
    """Skip every layer, or one part of it, in one sweep; `splits` "paper" draws them as published (seed 123)."""

    part: Part = "layer"
    scopes: tuple[str, ...] = ("all", "future", "direct")
    splits: Literal["even", "paper"] = "even"
    n_splits: int = 4
    percentile: float = 95.0
    seed: int = 0
    question: ClassVar[str] = "What breaks when a layer is skipped: later layers, the output, future tokens?"

    def __post_init__(self) -> None:
        for what, given, there_is in (
            ("part", (self.part,), ("layer", "attention", "mlp")),
            ("scope", self.scopes, ("all", "future", "direct")),
            ("splits", (self.splits,), ("even", "paper")),
        ):
            for value in given:
                if value not in there_is:
                    raise AnalysisError(unknown(what, str(value), there_is))
        if self.n_splits < 1:
            raise AnalysisError(f"n_splits={self.n_splits}; at least 1 is needed")

    @property
    def _scopes(self) -> tuple[Scope, ...]:
        wanted: list[Scope] = ["all"]
        wanted += ["future"] if "future" in self.scopes else []
        wanted += ["direct", "direct_future"] if "direct" in self.scopes else []
        return tuple(wanted)

    def check(self, model: Model, shard: TokenBatch) -> None:  # noqa: ARG002
        """Raise AnalysisError for prompts too short to be split."""
        self._splits(shard.tokens.shape[1], name=shard.prompts[0].id)

    def _splits(self, n_pos: int, *, name: str = "") -> list[int]:
        if self.splits == "paper":
            candidates = list(range(8, n_pos - 4, 8))
            random.Random(123).shuffle(candidates)
            chosen = sorted(candidates[: self.n_splits])
        else:
            chosen = sorted({round(t) for t in np.linspace(2, n_pos - 2, self.n_splits)}) if n_pos >= 4 else []
        if not chosen:
            needed = 13 if self.splits == "paper" else 4
            raise AnalysisError(f"prompt {name!r} has {n_pos} tokens; splits={self.splits!r} needs at least {needed}")
        return chosen

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:  # noqa: ARG002
        """Return per prompt maxima, positions and means [batch skipped affected], and output effects [batch skipped]."""
        n, layers, n_pos = len(shard.prompts), recording.n_layers, recording.n_pos
        splits = self._splits(n_pos)
        effects = {scope: _Effects(n, layers) for scope in self._scopes}
        outputs: Tensors = {}
        clean = recording.logits(recording.resid(layers))
        for event in staircase(recording, part=self.part, scopes=self._scopes, splits=splits):
            if isinstance(event, Step):
                effects[event.scope].add(event)
            else:
                _output_effects(recording, shard, clean, event, outputs)
        for scope, effect in effects.items():
            outputs |= {f"{scope}.{key}": value for key, value in effect.tensors().items()}
        return outputs

    def combine(self, parts: Sequence[Tensors]) -> "LayerSkipResult":
        """Return maxima (as the paper), percentiles and means over prompts, for every scope."""
        joined = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        return LayerSkipResult(self, {k: v for k, v in joined.items()}, self._scopes)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Half a sweep per scope over all positions, and per split the share of positions behind it."""
        n_pos, layers = shard.tokens.shape[1], model.n_layers
        half = (layers - 1) / 2
        behind = sum((n_pos - t) / n_pos for t in self._splits(n_pos))
        forwards = half * sum(behind if scope.endswith("future") else 1.0 for scope in self._scopes)
        return Cost(forwards, len(shard.prompts) * layers * (3 * layers + 2) * len(self._scopes))


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
        self.position[at] = torch.where(larger, position + max(step.start, 1), self.position[at]).to(torch.int32)
        self.maximum[at] = torch.where(larger, value, self.maximum[at])
        self.total[at] += change.sum(-1).transpose(0, 1).cpu()
        self.count[at] += change.shape[-1]

    def tensors(self) -> Tensors:
        """Return the finished arrays."""
        return {"max": self.maximum, "position": self.position, "mean": self.total / self.count.clamp_min(1)}


def _output_effects(recording: Recording, shard: TokenBatch, clean: Tensor, ends: Ends, into: Tensors) -> None:
    """Add ||p - p'||, maximal and mean over positions, and the fall of the answer's logit, each [batch skipped]."""
    probs = clean[:, ends.start :].softmax(-1)
    skip_first = 1 if ends.start == 0 else 0
    change, fall = [], []
    for resid in ends.resid:
        logits = recording.logits(resid)
        change.append((probs - logits.softmax(-1)).norm(dim=-1)[:, skip_first:])
        if shard.answer is not None:
            pick = shard.answer[:, None]
            fall.append((clean[:, -1] - logits[:, -1]).gather(1, pick)[:, 0])
    changes = torch.stack(change, dim=1).cpu()
    _keep(into, f"{ends.scope}.output_max", changes.amax(-1), torch.maximum)
    _keep(into, f"{ends.scope}.output_mean", changes.mean(-1), torch.add)
    _keep(into, f"{ends.scope}.n", torch.ones(len(changes)), torch.add)
    if fall:
        _keep(into, f"{ends.scope}.answer_fall", torch.stack(fall, dim=1).cpu(), torch.add)


def _keep(into: Tensors, key: str, value: Tensor, reduce: object) -> None:
    into[key] = reduce(into[key], value) if key in into else value  # type: ignore[operator]


@dataclass(frozen=True)
class LayerSkipResult(Result):
    """Per-prompt effects of every skipped layer, `arrays["all.max"]` being [prompt skipped affected]."""

    analysis: LayerSkip
    arrays: dict[str, np.ndarray]
    scopes: tuple[Scope, ...]
    statistics: tuple[str, ...] = field(default=("max", "percentile", "mean"))

    def grid(self, scope: str, *, statistic: str = "max") -> np.ndarray:
        """Return the effect of every skipped layer (row) on every layer (column) over prompts."""
        if statistic == "mean":
            return np.asarray(self.arrays[f"{scope}.mean"].mean(0))
        per_prompt = self.arrays[f"{scope}.max"]
        return np.asarray(
            per_prompt.max(0) if statistic == "max" else np.percentile(per_prompt, self.analysis.percentile, axis=0)
        )

    def output(self, scope: str) -> pd.DataFrame:
        """Return per skipped layer the largest and mean output change, and the mean fall of the answer's logit."""
        n = self.arrays[f"{scope}.n"][:, None]
        columns = {
            "output_max": self.arrays[f"{scope}.output_max"].max(0),
            "output_mean": (self.arrays[f"{scope}.output_mean"] / n).mean(0),
        }
        if f"{scope}.answer_fall" in self.arrays:
            fall = self.arrays[f"{scope}.answer_fall"] / n
            low, high = bootstrap_interval(fall.astype(np.float64), seed=self.analysis.seed)
            columns |= {"answer_fall": fall.mean(0), "answer_fall_low": low, "answer_fall_high": high}
        return pd.DataFrame(columns).rename_axis("skipped").reset_index()

    def to_frame(self) -> pd.DataFrame:
        """Return columns scope, skipped, affected, max, percentile, mean, and the prompt and position of the maximum."""
        frames = []
        for scope in self.scopes:
            per_prompt, layers = self.arrays[f"{scope}.max"], self.arrays[f"{scope}.max"].shape[1]
            who = per_prompt.argmax(0)
            where = np.take_along_axis(self.arrays[f"{scope}.position"], who[None], 0)[0]
            skipped, affected = np.indices((layers, layers))
            columns = {"scope": scope, "skipped": skipped.ravel(), "affected": affected.ravel()}
            columns |= {s: self.grid(scope, statistic=s).ravel() for s in self.statistics}
            frames.append(pd.DataFrame(columns | {"prompt": who.ravel(), "position": where.ravel()}))
        table = pd.concat(frames, ignore_index=True)
        return table[table["affected"] >= table["skipped"]].reset_index(drop=True)

    def plot(self) -> go.Figure:
        """Draw one grid per scope, skipped layer by affected layer; colours saturate at 1, as published."""
        grids = {_SHOWN[scope]: self.grid(scope) for scope in self.scopes}
        return heat(
            grids,
            x="affected layer",
            y="skipped layer",
            title="What skipping a layer changes (largest relative change)",
            top=1.0,
        )

    def summary(self) -> str:
        """Say which layer the output needs most and least, and how far future tokens depend on earlier ones."""
        output = self.output("all")
        key = "answer_fall" if "answer_fall" in output else "output_mean"
        what = "lowers the answer's logit by" if key == "answer_fall" else "changes the output probabilities by"
        most, least = output.iloc[int(output[key].argmax())], output.iloc[int(output[key].argmin())]
        n_prompts = len(self.arrays["all.max"])
        text = (
            f"Skipping {self.analysis.part} {int(most['skipped'])} {what} {most[key]:.2f} on average, the most of all; "
            f"{self.analysis.part} {int(least['skipped'])} {least[key]:.2f}, the least ({n_prompts} prompts)."
        )
        if "future" in self.scopes:
            future, rest = self.grid("future", statistic="mean"), self.grid("all", statistic="mean")
            above = np.triu_indices(len(future), 1)
            text += (
                f" Above the diagonal the mean effect is {rest[above].mean():.2f} at all positions"
                f" and {future[above].mean():.2f} on future tokens."
            )
        return text
