"""After which layer can a token's stream be erased without the answer noticing?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: in front of layer
l the residual of position t is replaced by one without information, the mean over all positions of
the task's first prompts at that place; the effect is the L2 change of the probabilities where the
answer's tokens are predicted, the largest over them. Site l is the stream in front of layer l; the
last site is the stream behind all layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, unknown
from interp.figures.plots import grids_over_positions
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.align import Aligned, align
from interp.stats.bootstrap import interval_of, resampled_means
from interp.sweeps.answers import Answered, answered, answered_sizes, require_answers
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

Scope = Literal["position", "prefix"]
_SHOWN = {"position": "one position erased", "prefix": "all up to a position erased, but the first"}
_CHUNK_TOKENS = 2048

_ERASED = {
    "position": "one token before the last",
    "prefix": "all tokens before the last but the first",
}


@dataclass(frozen=True)
class ResidualErasure(Analysis):
    """Erase one position ("position"), or all from 1 up to it ("prefix"), at every site.

    The residual without information is the mean over the first `n_mean` prompts; `first_position`
    False leaves position 0 out of it. The summary calls an effect of `matters` or more one that
    matters.
    """

    scopes: tuple[str, ...] = ("position", "prefix")
    n_mean: int = 10
    first_position: bool = True
    matters: float = 0.1
    seed: int = 0
    question: ClassVar[str] = (
        "After which layer can a token's stream be erased without the answer noticing?"
    )
    how: ClassVar[str] = (
        "In front of each layer a token's stream is replaced by a mean that carries no information,"
        " for one position or for all positions up to it, and the change of the answer's"
        " probabilities is measured."
    )
    caveat: ClassVar[str] = (
        "A mean stream is unusual for later layers, so part of the effect is surprise and not lost"
        " information."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for scope in self.scopes:
            if scope not in get_args(Scope):
                raise AnalysisError(unknown("scope", scope, get_args(Scope)))
        if not self.scopes:
            raise AnalysisError("no scopes given; there is position, prefix")
        if self.n_mean < 1:
            raise AnalysisError(f"n_mean={self.n_mean}; at least 1 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where answers are missing, AnalysisError for prompts with nothing before
        their last token.
        """
        require_answers(shard)
        if (n_pos := shard.tokens.shape[1]) < 3:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; at least 3 are needed"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the mean residual [site d_model] over all positions of the first prompts."""
        begin = 0 if self.first_position else 1
        total, count = (
            torch.zeros(
                model.n_layers + 1, model.d_model, dtype=torch.float64, device=model.device
            ),
            0,
        )
        for shard in model.shards(Task(task.name, task.prompts[: self.n_mean])):
            recording = model.record(model.tokenize(shard))
            for site in range(model.n_layers + 1):
                total[site] += recording.resid(site)[:, begin:].double().sum((0, 1))
            count += len(shard) * (recording.n_pos - begin)
        return {"mean": (total / count).to(model.dtype)}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt the output's change and the fall of the answer's probability [batch
        site pos], by scope.
        """
        n, sites = len(shard.prompts), recording.n_layers + 1
        sizes = answered_sizes(shard)
        shape = (n, sites, max(size.n_pos for size in sizes))
        parts: Tensors = {
            f"{scope}.{key}": torch.zeros(shape)
            for scope in self.scopes
            for key in ("output", "answer")
        }
        parts |= {"n_pos": torch.zeros(n, dtype=torch.int64), "last": shard.last.cpu()}
        for group in answered(recording, shard):
            rows = group.rows.cpu()
            parts["n_pos"][rows] = group.recording.n_pos
            clean = _probabilities(group, group.recording.resid(recording.n_layers), start=0)
            for scope, erase in (("position", erased_positions), ("prefix", erased_prefixes)):
                for erased in (
                    erase(group.recording, prepared["mean"]) if scope in self.scopes else ()
                ):
                    for site, resid in enumerate(erased.resid, erased.first_site):
                        at = (rows, site, erased.position)
                        effects = _effects(
                            group, clean, _probabilities(group, resid, start=erased.start)
                        )
                        parts[f"{scope}.output"][at], parts[f"{scope}.answer"][at] = effects
        return parts

    def combine(self, parts: Sequence[Tensors]) -> "ResidualErasureResult":
        """Return effects aligned at the prompts' ends."""
        arrays = [{key: value.numpy() for key, value in part.items()} for part in parts]
        last, n_pos = ([part[key] for part in arrays] for key in ("last", "n_pos"))
        effects = [key for key in arrays[0] if key not in ("last", "n_pos")]
        aligned = {
            key: align([part[key] for part in arrays], last=last, n_pos=n_pos) for key in effects
        }
        return ResidualErasureResult(self, aligned)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return about a quarter of (sites x positions) forwards for each scope: only what comes
        behind is run.
        """
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        sizes = answered_sizes(shard)
        half = layers * (layers + 1) / 2
        block_tokens = float(sum(size.passed for size in sizes) * layers)
        for size in sizes:
            behind = {"position": range(size.n_pos), "prefix": (0, *range(2, size.n_pos))}
            tails = sum(size.n_pos - start for scope in self.scopes for start in behind[scope])
            block_tokens += half * size.n_prompts * tails
        longest = max(size.n_pos for size in sizes)
        numbers = len(shard.prompts) * (layers + 1) * longest * 2 * len(self.scopes)
        held = 3 * (layers + 1) * n_tokens * model.d_model + 3 * len(shard.prompts) * model.d_vocab
        return Cost(block_tokens / (layers * n_tokens), numbers, held)


@dataclass(frozen=True)
class Erased:
    """The last residuals [site batch pos-start d_model] of sites from `first_site` on at which
    `position` was erased.
    """

    position: int
    first_site: int
    start: int
    resid: Float[Tensor, "site batch positions d_model"]


def erased_positions(recording: Recording, mean: Float[Tensor, "site d_model"]) -> Iterator[Erased]:
    """Erase one position at every site: only positions from it on are run, over the clean keys and
    values before it.

    One sweep over the layers serves all sites; a site's row joins in front of its layer.
    """
    for position in range(recording.n_pos):
        rows = _erased(recording, 0, mean, position)
        for layer in range(recording.n_layers):
            size = max(1, _CHUNK_TOKENS // rows[0, ..., 0].numel())
            behind = [
                _from(recording, layer, chunk, start=position) for chunk in torch.split(rows, size)
            ]
            rows = torch.cat([*behind, _erased(recording, layer + 1, mean, position)])
        yield Erased(position, 0, position, rows)


def _erased(recording: Recording, site: int, mean: Tensor, position: int) -> Tensor:
    """Return the clean residuals from a position on, that one erased, as one variant [1 batch
    pos-position d_model].
    """
    rows = recording.resid(site)[None, :, position:].clone()
    rows[:, :, 0] = mean[site]
    return rows


def _from(recording: Recording, layer: int, rows: Tensor, *, start: int) -> Tensor:
    flat = rearrange(rows, "site batch pos d_model -> (site batch) pos d_model")
    behind = recording.tail(layer, flat, start=start) if start else recording.block(layer, flat)
    sites: Tensor = rearrange(
        behind, "(site batch) pos d_model -> site batch pos d_model", site=len(rows)
    )
    return sites


def erased_prefixes(recording: Recording, mean: Float[Tensor, "site d_model"]) -> Iterator[Erased]:
    """Erase positions 1 .. position at every site.

    Up to the position, everything is as where all positions are erased; so that is run once a site,
    and the positions behind are run over its keys and values.
    """
    for site in range(recording.n_layers + 1):
        clean = recording.resid(site)
        everything = torch.cat(
            [
                clean[:, :1],
                repeat(mean[site], "d -> batch pos d", batch=len(clean), pos=clean.shape[1] - 1),
            ],
            1,
        )
        prefixes = {}
        for layer in range(site, recording.n_layers):
            everything, prefixes[layer] = recording.block_kv(layer, everything)
        for position in range(1, recording.n_pos):
            rows = clean[:, position + 1 :]
            for layer in range(site, recording.n_layers) if position + 1 < recording.n_pos else ():
                rows = recording.tail(layer, rows, start=position + 1, prefix=prefixes[layer])
            yield Erased(
                position, site, 1, torch.cat([everything[:, 1 : position + 1], rows], dim=1)[None]
            )


def _probabilities(group: Answered, resid: Tensor, *, start: int) -> Tensor:
    """Return the logits' probabilities [batch answer_pos d_vocab] where answers are predicted, from
    position `start` on.
    """
    positions = slice(max(group.start - start, 0), None)
    return group.recording.logits(resid, positions=positions).softmax(-1)


def _effects(group: Answered, clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities' largest L2 change [batch], and the fall of the answer's, summed
    over its tokens.
    """
    n = changed.shape[1]  # those before are as in the clean pass
    clean, answer = clean[:, -n:], group.answer[:, -n:, None]
    fall = (clean - changed).gather(-1, answer)[..., 0].sum(-1)
    return vector_norm(clean - changed, dim=-1).amax(-1).cpu(), fall.cpu()


@dataclass(frozen=True, repr=False)
class ResidualErasureResult(Result):
    """Effects [prompt site column] by name: such as "position.output", the L2 change of the
    probabilities.
    """

    analysis: ResidualErasure
    effects: dict[str, Aligned]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per scope, effect, layer (site) and position; statistics over prompts.

        Effects: "output" (L2 change of the probabilities, at most 1.41) and "answer" (fall of the
        answer's probability). `position` counts from the prompt's last token, 0; "first" is the
        first token.
        """
        frames = []
        for key, aligned in self.effects.items():
            scope, effect = key.split(".")
            rows = aligned.to_frame(seed=self.analysis.seed).assign(scope=scope, effect=effect)
            frames.append(rows if scope == "position" else rows[rows["position"] != "first"])
        frame = pd.concat(frames, ignore_index=True)
        return frame[
            ["scope", "effect", "layer", "position", "mean", "low", "high", "max", "n_prompts"]
        ]

    def plot(self) -> go.Figure:
        """Draw the mean change of the probabilities by site and position; colours do not depend on
        the first token.
        """
        frame = self.to_frame()
        frame = frame[frame["effect"] == "output"]
        return grids_over_positions(
            frame.assign(scope=frame["scope"].map(_SHOWN)),
            panels="scope",
            y="erased in front of layer (top: behind all)",
            title=(
                "How much the answer's probabilities change when the stream is erased (mean over"
                " prompts)"
            ),
            colour="L2 change",
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return for every scope up to which share of the depth erasing matters."""
        found = list[Finding]()
        for scope in self.analysis.scopes:
            depth = self._depth(self._largest(scope)[0])
            low, high = interval_of(map(self._depth, self._resampled(scope)))
            claim = (
                f"Erasing {_ERASED[scope]} matters up to {depth:.0%} of the depth."
                if found
                else self.summary()
            )
            measure = f"share of layers up to which erasing {_ERASED[scope]} matters"
            found.append(
                old_finding(
                    claim, depth, measure, low, high, len(self.effects[f"{scope}.output"].values)
                )
            )
        return tuple(found)

    def _depth(self, largest: np.ndarray) -> float:
        """Return the share of layers in front of the last site where the effect [site] matters."""
        sites = np.flatnonzero(largest >= self.analysis.matters)
        return float(sites[-1]) / (len(largest) - 1) if len(sites) else 0.0

    def _resampled(self, scope: str) -> np.ndarray:
        """Return the largest mean effect [resample site] over positions, of prompts drawn anew."""
        aligned, seed = self.effects[f"{scope}.output"], self.analysis.seed
        largest = np.zeros(0)
        for column in self._columns(scope):
            values = aligned.values[:, :, column].astype(np.float64)
            is_there = ~np.isnan(values)
            total, share = (
                resampled_means(x, seed=seed)
                for x in (np.nan_to_num(values), is_there.astype(np.float64))
            )
            mean = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
            largest = np.maximum(largest, mean) if largest.size else mean
        return largest

    def summary(self) -> str:
        """Say up to which site erasing matters, for single positions before the last and for all of
        them together.
        """
        texts = []
        for scope in self.analysis.scopes:
            texts.append(self._sentence(scope, *self._largest(scope)))
        n_prompts = len(self.effects[f"{scope}.output"].values)
        return f"{' '.join(texts)} ({n_prompts} prompts.)"

    def _largest(self, scope: str) -> tuple[np.ndarray, str]:
        """Return the largest mean effect [site] of erasing before the last position, and where it
        is at site 0.
        """
        aligned, columns = self.effects[f"{scope}.output"], self._columns(scope)
        means = np.nanmean(aligned.values[:, :, columns], axis=0)
        return means.max(1), aligned.columns[columns[means[0].argmax()]]

    def _columns(self, scope: str) -> list[int]:
        """Return the columns before the last position; of prefixes, the longest alone."""
        columns = [
            i for i, offset in enumerate(self.effects[f"{scope}.output"].offsets, 1) if offset < 0
        ]
        return columns[-1:] if scope == "prefix" else columns

    def _sentence(self, scope: str, largest: np.ndarray, where: str) -> str:
        sites = np.flatnonzero(largest >= self.analysis.matters)
        what = _ERASED[scope]
        change = (
            f"changes the answer's probabilities by {largest[0]:.2f} (L2, mean) in front of layer 0"
        )
        if scope == "position":
            change += f" (position {where})"
        if not len(sites):
            return (
                f"Erasing {what} {change}, and by less than {self.analysis.matters:g} everywhere."
            )
        last = sites[-1]
        after = (
            ""
            if last + 1 == len(largest)
            else f"; one layer later the change is {largest[last + 1]:.2f}"
        )
        return (
            f"Erasing {what} {change}; the last layer in front of which it matters is {last}"
            f" ({largest[last]:.2f}){after}."
        )
