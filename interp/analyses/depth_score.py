"""Do harder prompts use deeper layers?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: skip layer s
before a split and measure behind it, as `layer_skip` does for future tokens; M[s, l] is the
relative change of what layer l writes, o[s] the L2 change of the probabilities. Layer s counts for
e[s], and the depth score is the mean layer, weighted by e:

    e_layer[s] = sum_l M[s, l] / max(1, L - 1 - s)        e_output[s] = o[s]        d = sum_s s e[s] / sum_s e[s]

The paper counts layers from 1, so its score is d + 1. If harder prompts were computed deeper, d
would grow with the level.
"""

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from torch import Tensor
from torch.linalg import vector_norm

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, unknown
from interp.figures.plots import COLOURS, titled
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import interval_of, resampled_means
from interp.sweeps.answers import Answered, answered, answered_sizes, require_answers
from interp.sweeps.staircase import Ends, Step, staircase
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

Splits = Literal["prediction", "answer", "within_answer"]
Float = NDArray[np.float64]
_SEED = 12345  # of the published splits
_FEWEST = 5  # prompts of a level, for an interval


@dataclass(frozen=True)
class DepthScore(Analysis):
    """Compare the depth score between the levels of a tag, such as the number of hops.

    `splits` "prediction" measures from the position that predicts the answer's first token;
    "answer" from the answer's first token on, as published for multi-hop questions (which says
    nothing about answers of one token); "within_answer" at up to `n_splits` of the answer's offsets
    0, 4, 8, ..., as published for worked solutions.
    """

    tag: str = "set"
    splits: Splits = "prediction"
    n_splits: int = 4
    seed: int = 0
    question: ClassVar[str] = "Do harder prompts use deeper layers?"
    how: ClassVar[str] = (
        "Every layer is skipped for the tokens before a split, and the effect behind it is"
        " measured. The score is the mean layer, weighted by that effect, for prompts of each level"
        " of difficulty apart."
    )
    caveat: ClassVar[str] = (
        "Levels can differ in length and wording too; overlapping intervals are no evidence of"
        " equal depth."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_splits < 1:
            raise AnalysisError(f"n_splits={self.n_splits}; at least 1 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts without the tag or an answer, or too short for a split."""
        for prompt in shard.prompts:
            self._level(prompt)
        answers = require_answers(shard)
        if (n_pos := shard.tokens.shape[1]) < 3:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; at least 3 are needed"
            )
        for prompt, n in zip(shard.prompts, (answers >= 0).sum(1).tolist(), strict=True):
            if not self._splits(n_pos - 1, n):
                raise AnalysisError(
                    f"prompt {prompt.id!r} has an answer of {n} tokens; splits={self.splits!r}"
                    " needs 5"
                )

    def _level(self, prompt: Prompt) -> str:
        if self.tag not in prompt.tags:
            raise AnalysisError(
                f"prompt {prompt.id!r}: {unknown('tag', self.tag, prompt.tags)}; set"
                " depth_score.tag"
            )
        return prompt.tags[self.tag]

    def _splits(self, last: int, n_answer: int) -> list[int]:
        """Return the positions from which on effects are measured; `last` is the prompt's last."""
        match self.splits:
            case "prediction":
                return [last]
            case "answer":
                return [last + 1]
            case "within_answer":
                offsets = list(range(0, n_answer - 4, 4))
                random.Random(_SEED).shuffle(offsets)
                return sorted(last + 1 + offset for offset in offsets[: self.n_splits])

    @property
    def _is_whole(self) -> bool:
        """Tell whether the answer's last token is measured too."""
        return self.splits != "prediction"

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Raise AnalysisError for a task with one level only."""
        levels = {self._level(prompt) for prompt in task.prompts}
        if len(levels) < 2:
            raise AnalysisError(
                f"tag {self.tag!r} has one level, {levels.pop()!r}; at least 2 are needed to"
                " compare"
            )
        return {}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt largest and mean effects, on layers [batch skipped affected], on the
        output [batch skipped].
        """
        n, layers = len(shard.prompts), recording.n_layers
        parts: Tensors = {"level": _as_bytes([self._level(prompt) for prompt in shard.prompts])}
        for statistic in ("max", "mean"):
            parts[f"layer.{statistic}"] = torch.zeros(n, layers, layers)
            parts[f"output.{statistic}"] = torch.zeros(n, layers)
        for group in answered(recording, shard, whole=self._is_whole):
            rows = group.rows.cpu()
            splits = self._splits(group.start, group.answer.shape[1])
            for key, skipped, change in _changes(group, splits):
                at: tuple[int | Tensor, ...] = (rows, *skipped)
                largest, mean = parts[f"{key}.max"], parts[f"{key}.mean"]
                largest[at] = torch.maximum(largest[at], change.amax(-1))
                mean[at] += change.mean(-1) / len(splits)
        return parts

    def combine(self, parts: Sequence[Tensors]) -> "DepthScoreResult":
        """Return the scores of every level."""
        levels = [level for part in parts for level in _as_texts(part["level"])]
        arrays = {
            key: torch.cat([part[key] for part in parts]).double().numpy()
            for key in parts[0]
            if key != "level"
        }
        return DepthScoreResult(self, np.array(levels), arrays)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return half a sweep over all positions, the share of it behind each split, and a pass of
        the answers if needed.
        """
        layers, last, block_tokens = model.n_layers, shard.tokens.shape[1] - 1, 0.0
        sizes = answered_sizes(shard, whole=self._is_whole)
        for size in sizes:
            n_answer = size.n_pos - last - (1 if self._is_whole else 0)
            behind = sum(size.n_pos - split for split in self._splits(last, n_answer))
            block_tokens += (
                size.n_prompts * (size.n_pos + behind) * layers * (layers - 1) / 2
                + size.passed * layers
            )
        n_tokens = max(size.n_pos for size in sizes) * len(shard.prompts)
        held = 8 * layers * n_tokens * model.d_model + 3 * len(shard.prompts) * model.d_vocab
        numbers = len(shard.prompts) * 2 * layers * (layers + 1)
        return Cost(block_tokens / (layers * shard.tokens.numel()), numbers, held)


def _changes(group: Answered, splits: list[int]) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Yield "layer" or "output", the skipped layer (and the affected one), and the change [batch
    pos] from a split on.
    """
    recording = group.recording
    clean = recording.logits(
        recording.resid(recording.n_layers), positions=slice(min(splits), None)
    ).softmax(-1)
    for event in staircase(recording, part="layer", scopes=("future",), splits=splits):
        match event:
            case Step(scope="future"):
                for skipped, change in enumerate(event.change):
                    yield "layer", (skipped, event.layer), change.cpu()
            case Ends(scope="future"):
                for skipped, resid in enumerate(event.resid):
                    changed = recording.logits(resid).softmax(-1)
                    change = vector_norm(clean[:, event.start - min(splits) :] - changed, dim=-1)
                    yield "output", (skipped,), change.cpu()


def _as_bytes(texts: Sequence[str]) -> Tensor:
    """Return texts as UTF-8 [batch byte], padded with zeros: parts hold numbers only."""
    encoded = [list(text.encode()) for text in texts]
    width = max(map(len, encoded))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in encoded], dtype=torch.uint8)


def _as_texts(rows: Tensor) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in rows.tolist()]


def depth_score(effects: Float) -> Float:
    """Return the mean layer, counted from 0 and weighted by the effects [... layer]; NaN where
    nothing has an effect.
    """
    total = effects.sum(-1)
    weighted = effects @ np.arange(effects.shape[-1])
    score: Float = np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
    return score


def layer_effects(changes: Float) -> Float:
    """Return the mean effect of every skipped layer on those behind it, from changes [... skipped
    affected].
    """
    layers = changes.shape[-1]
    effects: Float = changes.sum(-1) / np.maximum(1, layers - 1 - np.arange(layers))
    return effects


@dataclass(frozen=True, repr=False)
class DepthScoreResult(Result):
    """Levels [prompt], and arrays "layer.max" and "layer.mean" [prompt skipped affected],
    "output.max" and "output.mean".
    """

    analysis: DepthScore
    level_of: np.ndarray
    arrays: dict[str, Float]

    @property
    def levels(self) -> list[str]:
        """Return the levels: as numbers if they are, otherwise in alphabetical order."""
        found = sorted(set(self.level_of.tolist()))
        try:
            return sorted(found, key=float)
        except ValueError:
            return found

    def effects(self, level: str, effect: str, statistic: str) -> Float:
        """Return e [layer] of one level: "layer" or "output", "max" or "mean" over prompts.

        A maximum grows with the number of prompts, so it is taken over as many of each level as the
        smallest level has.
        """
        values = self.arrays[f"{effect}.{statistic}"][self.level_of == level]
        reduced = values[: self._n_smallest].max(0) if statistic == "max" else values.mean(0)
        return layer_effects(reduced) if effect == "layer" else reduced

    @property
    def _n_smallest(self) -> int:
        return int(min((self.level_of == level).sum() for level in self.levels))

    def _resampled(self, level: str, effect: str) -> Float:
        """Return the score of mean effects of prompts drawn anew [resample]; NaN for a handful of
        prompts.
        """
        values = self.arrays[f"{effect}.mean"][self.level_of == level]
        per_prompt = layer_effects(values) if effect == "layer" else values
        scores = depth_score(
            resampled_means(per_prompt, seed=self.analysis.seed + self.levels.index(level))
        )
        return scores if len(values) >= _FEWEST else np.full_like(scores, np.nan)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per level, effect (layer, output), statistic over prompts (max, mean) and
        measure.

        Measures: "score, layers from 0", "score, layers from 1" (the paper's), and "effect" of each
        skipped layer. Scores of means have 95 % bootstrap intervals over prompts.
        """
        rows: list[tuple[object, ...]] = []
        for level in self.levels:
            n = int((self.level_of == level).sum())
            for effect in ("layer", "output"):
                for statistic in ("max", "mean"):
                    effects = self.effects(level, effect, statistic)
                    score = float(depth_score(effects))
                    low, high = (
                        interval_of(self._resampled(level, effect))
                        if statistic == "mean"
                        else (np.nan, np.nan)
                    )
                    keys = (level, effect, statistic)
                    n_prompts = self._n_smallest if statistic == "max" else n
                    for base in (0, 1):
                        measure = f"score, layers from {base}"
                        rows.append(
                            (*keys, measure, None, score + base, low + base, high + base, n_prompts)
                        )
                    rows += [
                        (*keys, "effect", layer, value, np.nan, np.nan, n_prompts)
                        for layer, value in enumerate(effects)
                    ]
        columns = [
            "level",
            "effect",
            "statistic",
            "measure",
            "layer",
            "value",
            "low",
            "high",
            "n_prompts",
        ]
        return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})

    def plot(self) -> go.Figure:
        """Draw the scores by level, and the effects of skipping each layer that they are made of
        (means over prompts).
        """
        frame = self.to_frame()
        frame = frame[frame["statistic"] == "mean"]
        shown = {"layer": "effect on later layers", "output": "effect on the output"}
        figure = make_subplots(
            rows=1, cols=3, subplot_titles=["depth score", *shown.values()], horizontal_spacing=0.09
        )
        for i, (effect, name) in enumerate(shown.items()):
            rows = frame[(frame["effect"] == effect) & (frame["measure"] == "score, layers from 0")]
            value = rows["value"].to_numpy(np.float32)
            error = {
                "array": rows["high"] - value,
                "arrayminus": value - rows["low"],
                "symmetric": False,
            }
            # patterns, not colours: those tell levels apart in the other panels
            look = {"color": "#999999", "pattern": {"shape": ("", "/")[i]}}
            figure.add_bar(
                x=rows["level"],
                y=value,
                error_y=error,
                name=name,
                marker=look,
                legendrank=1,
                row=1,
                col=1,
            )
            for j, level in enumerate(self.levels):
                line = frame[
                    (frame["effect"] == effect)
                    & (frame["measure"] == "effect")
                    & (frame["level"] == level)
                ]
                figure.add_scatter(
                    x=line["layer"].astype(int), y=line["value"].astype(np.float32), name=level, legendgroup=level,
                    showlegend=i == 0, line={"color": COLOURS[j % len(COLOURS)]}, mode="lines+markers", row=1, col=2 + i,
                )  # fmt: skip
            figure.update_xaxes(
                title_text="skipped layer", dtick=max(1, len(line) // 8), row=1, col=2 + i
            )
            figure.update_yaxes(
                title_text=("relative change", "change of the probabilities (L2)")[i],
                row=1,
                col=2 + i,
            )
        figure.update_xaxes(title_text=self.analysis.tag, type="category", row=1, col=1)
        figure.update_yaxes(title_text="layer, counted from 0", row=1, col=1)
        return titled(
            figure,
            f"Do prompts of another {self.analysis.tag!r} use deeper layers? (means over prompts)",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return how far the levels' scores, by the effect on the output, are apart."""
        frame = self.to_frame()
        rows = frame[(frame["statistic"] == "mean") & (frame["measure"] == "score, layers from 0")]
        scores = rows[rows["effect"] == "output"].set_index("level")["value"].dropna()
        if scores.empty:
            return (old_finding(self.summary()),)
        highest, lowest = str(scores.idxmax()), str(scores.idxmin())
        low, high = interval_of(
            self._resampled(highest, "output") - self._resampled(lowest, "output")
        )
        measure = (
            "layers between the lowest and the highest level's depth score, by the effect on the"
            " output"
        )
        return (
            old_finding(
                self.summary(),
                float(scores[highest] - scores[lowest]),
                measure,
                low,
                high,
                len(self.level_of),
            ),
        )

    def summary(self) -> str:
        """Give the scores of every level, and say whether the intervals of the lowest and highest
        overlap.
        """
        frame = self.to_frame()
        scores = frame[
            (frame["statistic"] == "mean") & (frame["measure"] == "score, layers from 0")
        ]
        texts = []
        for effect, name in (("layer", "later layers"), ("output", "the output")):
            rows = scores[scores["effect"] == effect].dropna(subset="value")
            if rows.empty:
                texts.append(f"Skipping changes nothing in {name}.")
                continue
            each = ", ".join(map(_score_in_words, rows.to_dict("records")))
            lowest, highest = (
                rows.iloc[int(rows["value"].argmin())],
                rows.iloc[int(rows["value"].argmax())],
            )
            apart = f"at most {highest['value'] - lowest['value']:.2f} layers apart"
            if rows["low"].notna().all():
                overlap = "overlap" if highest["low"] <= lowest["high"] else "do not overlap"
                apart += f", and the intervals of lowest and highest {overlap}"
            texts.append(f"By its effect on {name}, the depth score is {each}: {apart}.")
        last, n = self.arrays["output.mean"].shape[1] - 1, len(self.level_of)
        return (
            f"{' '.join(texts)} (Mean layer from 0 to {last}, weighted by what skipping it does to"
            f" later tokens; 95 % intervals; {n} prompts by {self.analysis.tag!r}.)"
        )


def _score_in_words(row: Mapping[Hashable, Any]) -> str:
    has_interval = not np.isnan(row["low"])
    beside = (
        f"{row['low']:.2f} to {row['high']:.2f}" if has_interval else f"{row['n_prompts']} prompts"
    )
    return f"{row['level']}: {row['value']:.2f} ({beside})"
