"""Which layers leave a token's norm alone, while a prompt is read and while a response is written?

"Void in Language Models" (arXiv 2505.14467): layer l is void for a token where the norm of its
stream changes by less than alpha times the range of its changes by earlier layers; usage is the
share of layers that are not. The change is signed: a layer that shortens the stream is void however
much it writes. The range restarts with every token, so that no threshold depends on other tokens or
prompts; the published threshold of the first layer, a range over the batch, is `first_layer`
"batch".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, TaskError
from interp.figures.plots import grid_below, lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.voids import (
    active_layers,
    changes_of,
    is_massive,
    norms_of,
    prompt_hashes,
    punctuation_of,
    range_over_batch,
    require_alphas,
    require_readable,
    respond,
    rows_of,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

PHASES = ("prompt", "response")
_FIRST, _PUNCTUATION, _OTHER, _NO_TOKEN = range(4)
_CLASSES = {"first": _FIRST, "punctuation": _PUNCTUATION, "other": _OTHER}
_MARKED = ("massive", "without massive")


@dataclass(frozen=True)
class VoidDetection(Analysis):
    """Find void layers at `alpha`, and how usage depends on it (`alphas`), in prompts and in greedy
    responses.

    Responses have up to `max_new_tokens` tokens (0: none), of which the last is never read by a
    pass. `massive_above` and `massive_ratio` say which tokens hold a massive activation: above the
    one, and above the other times their own median.
    """

    alpha: float = 0.8
    alphas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 1.0)
    max_new_tokens: int = 8
    first_layer: Literal["zero", "batch"] = "zero"
    massive_above: float = 100.0
    massive_ratio: float = 1000.0
    seed: int = 0
    question: ClassVar[str] = (
        "Which layers leave a token's norm alone, in the prompt and in the response?"
    )
    how: ClassVar[str] = (
        "A layer is void for a token if it lengthens the token's stream by less than α times the"
        " range of the changes by earlier layers, in prompts and in greedy responses; usage is the"
        " share of layers that are not."
    )
    caveat: ClassVar[str] = (
        "A void layer did not lengthen the stream enough; that it did nothing does not follow"
        " (void_skip asks)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_alphas(self.all_alphas)
        for name in ("massive_above", "massive_ratio"):
            if getattr(self, name) < 0:
                raise AnalysisError(f"{name}={getattr(self, name)}; 0 or more is needed")
        if self.max_new_tokens != 0:
            require_readable(self.max_new_tokens)

    @property
    def all_alphas(self) -> tuple[float, ...]:
        """Return every threshold asked for, in order."""
        return tuple(sorted({self.alpha, *self.alphas}))

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for responses too long to be read, ModelError for decoding that is not
        known here.
        """
        if self.max_new_tokens:
            model.refuse_responses(shard, self.max_new_tokens)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which tokens are punctuation, and the norms of every response by prompt (responses
        are not resumed).
        """
        shards = [model.tokenize(prompts) for prompts in model.shards(task)]
        seen = [token for shard in shards for row in shard.tokens.tolist() for token in row]
        prepared = {"punctuation": punctuation_of(model.tokenizer, seen)}
        if not self.max_new_tokens:
            return prepared
        parts = [self._responses(model, shard) for shard in shards]
        found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        if not bool(found["response.is_read"].any()):
            raise TaskError(
                f"task {task.name!r}: every response ends at its first token; max_new_tokens=0"
                " leaves them out"
            )
        return prepared | found

    def _responses(self, model: Model, shard: TokenBatch) -> Tensors:
        """Return norms [batch tap new] of what a pass has read, all of one width."""
        rule = {"above": self.massive_above, "ratio": self.massive_ratio}
        response = respond(model, shard, max_new_tokens=self.max_new_tokens, **rule)
        missing = self.max_new_tokens - 1 - response.is_read.shape[1]
        return {
            "key": prompt_hashes(shard.prompts),
            "response.norms": pad(response.norms, (0, missing)).cpu(),
            "response.massive": pad(response.massive, (0, missing)).cpu(),
            "response.is_read": pad(response.is_read, (0, missing)).cpu(),
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return norms [batch tap pos] and classes and massive tokens [batch pos] of the prompts,
        and of the responses.
        """
        norms = norms_of(recording)
        rule = {"above": self.massive_above, "ratio": self.massive_ratio}
        massive = [
            is_massive(recording.resid(tap), **rule) for tap in range(recording.n_layers + 1)
        ]
        punctuation = prepared.get("punctuation", torch.zeros(0, dtype=torch.long)).to(
            shard.tokens.device
        )
        classes = torch.where(torch.isin(shard.tokens, punctuation), _PUNCTUATION, _OTHER)
        classes[:, 0] = _FIRST
        measured = {
            "prompt.norms": norms,
            "prompt.massive": torch.stack(massive).any(0),
            "prompt.class": torch.where(shard.mask, classes, _NO_TOKEN).to(torch.uint8),
        }
        if "key" in prepared:
            rows = rows_of(prepared["key"], shard.prompts)
            is_read = prepared["response.is_read"][rows]
            measured |= {
                "response.norms": prepared["response.norms"][rows],
                "response.massive": prepared["response.massive"][rows],
                "response.class": torch.where(is_read, _OTHER, _NO_TOKEN).to(torch.uint8),
            }
        if self.first_layer == "batch":
            for phase in PHASES:
                if f"{phase}.norms" in measured:
                    measured[f"{phase}.first_range"] = range_over_batch(
                        changes_of(measured[f"{phase}.norms"])
                    )
        return {key: tensor.cpu() for key, tensor in measured.items()}

    def combine(self, parts: Sequence[Tensors]) -> "VoidDetectionResult":
        """Return usage from the norms of all prompts; nothing has to be run for another alpha."""
        return VoidDetectionResult(self, tuple(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass; responses are generated once, before the shards."""
        n, n_pos = shard.tokens.shape
        taps, new = model.n_layers + 1, max(0, self.max_new_tokens - 1)
        held = n * (n_pos + new) * taps * model.d_model if new else n * n_pos * model.d_model
        return Cost(0.0, n * (n_pos + new) * (taps + 1), held)


@dataclass(frozen=True, repr=False)
class VoidDetectionResult(Result):
    """Norms of every shard, from which usage follows at any alpha."""

    analysis: VoidDetection
    parts: tuple[Tensors, ...]

    @property
    def phases(self) -> tuple[str, ...]:
        """Return the phases measured."""
        return tuple(phase for phase in PHASES if f"{phase}.norms" in self.parts[0])

    @property
    def n_prompts(self) -> int:
        """Return the number of prompts."""
        return sum(len(part["prompt.norms"]) for part in self.parts)

    def active(self, part: Tensors, phase: str, alphas: Sequence[float]) -> Tensor:
        """Return what is active [alpha batch layer pos] in one shard."""
        return active_layers(
            part[f"{phase}.norms"], alphas, first_range=part.get(f"{phase}.first_range")
        )

    def usage(self, *, alpha: float | None = None, phase: str = "prompt") -> list[Tensor]:
        """Return the share of layers that each token uses, one tensor [batch pos] a shard; NaN
        where there is no token.
        """
        shares = []
        for part in self.parts:
            share = (
                self.active(part, phase, [self.analysis.alpha if alpha is None else alpha])[0]
                .float()
                .mean(1)
            )
            shares.append(share.masked_fill(part[f"{phase}.class"] == _NO_TOKEN, torch.nan))
        return shares

    @cached_property
    def _by_prompt(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """Map phase and set of tokens to usage [prompt alpha layer+1], the mean over layers last,
        and tokens [prompt].
        """
        sums: dict[tuple[str, str], list[Tensor]] = {}
        counts: dict[tuple[str, str], list[Tensor]] = {}
        for part in self.parts:
            for phase in self.phases:
                active = self.active(part, phase, self.analysis.all_alphas).double()
                for name, chosen in _sets(part, phase).items():
                    total = torch.einsum("abtp,bp->bat", active, chosen.double())
                    sums.setdefault((phase, name), []).append(total)
                    counts.setdefault((phase, name), []).append(chosen.sum(1))
        found = {}
        for key, parts in sums.items():
            total, count = torch.cat(parts), torch.cat(counts[key])
            there = count > 0
            if bool(there.any()):
                usage = total[there] / count[there, None, None]
                usage = torch.cat([usage, usage.mean(-1, keepdim=True)], dim=-1)
                found[key] = usage.numpy(), count[there].double().numpy()
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return columns alpha, phase, tokens, layer, position, usage, low, high (95 % bootstrap
        over prompts), n_tokens.

        Without a layer, a row is the mean over layers; usage is a mean over tokens. Rows with a
        position are of `alpha` alone: 0 is the prompt's last token, 1 the first of the response.
        """
        frame = pd.concat([*self._set_rows(), *self._position_rows()], ignore_index=True)
        return frame.astype({"layer": "Int64", "position": "Int64"})

    def _set_rows(self) -> Iterator[pd.DataFrame]:
        for (phase, tokens), (usage, weights) in self._by_prompt.items():
            low, high = bootstrap_interval(usage, weights=weights, seed=self.analysis.seed)
            mean = np.average(usage, axis=0, weights=weights)
            n_layers = usage.shape[2] - 1
            for i, alpha in enumerate(self.analysis.all_alphas):
                yield pd.DataFrame(
                    {
                        "alpha": alpha, "phase": phase, "tokens": tokens, "layer": [*range(n_layers), pd.NA],
                        "position": pd.NA, "usage": mean[i], "low": low[i], "high": high[i],
                        "n_tokens": int(weights.sum()), "n_prompts": len(usage),
                    }
                )  # fmt: skip

    def _position_rows(self) -> Iterator[pd.DataFrame]:
        for phase in self.phases:
            total, count = self._by_position(phase)
            n_layers, n_pos = total.shape
            layer, pos = (axis.ravel() for axis in np.mgrid[:n_layers, :n_pos])
            there = count[pos] > 0
            yield pd.DataFrame(
                {
                    "alpha": self.analysis.alpha, "phase": phase, "tokens": "all", "layer": layer,
                    "position": pos + (1 - n_pos if phase == "prompt" else 1),
                    "usage": total.ravel() / np.maximum(count, 1)[pos], "low": np.nan, "high": np.nan,
                    "n_tokens": count[pos], "n_prompts": count[pos],
                }
            )[there]  # fmt: skip

    def _by_position(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Return how often layers are active [layer position] and over how many tokens; prompts end
        together.
        """
        width = max(part[f"{phase}.class"].shape[1] for part in self.parts)
        total, count = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for part in self.parts:
            there = part[f"{phase}.class"] != _NO_TOKEN
            active = self.active(part, phase, [self.analysis.alpha])[0] & there[:, None]
            side = (width - there.shape[1], 0) if phase == "prompt" else (0, width - there.shape[1])
            total, count = total + pad(active.sum(0), side), count + pad(there.sum(0), side)
        return np.asarray(total, dtype=np.float64), np.asarray(count)

    def mean(self, phase: str, tokens: str = "all") -> np.ndarray:
        """Return usage [alpha layer+1] of a set of tokens, the mean over layers last."""
        usage, weights = self._by_prompt[phase, tokens]
        return np.asarray(np.average(usage, axis=0, weights=weights))

    def plot(self) -> go.Figure:
        """Draw the share of tokens that use each layer, by kind of token and phase; below, by
        position.
        """
        frame = pd.concat(self._set_rows(), ignore_index=True)
        at_alpha = (frame["alpha"] == self.analysis.alpha) & frame["layer"].notna()
        shown = frame[at_alpha & ~frame["tokens"].str.startswith("without")].copy()
        shown["panel"] = shown["phase"].map(
            {"prompt": "reading the prompt", "response": "writing the response"}
        )
        title = (
            f"Share of tokens for which a layer is not void (α = {self.analysis.alpha:g}); below,"
            " by position"
        )
        figure = lines_over_depth(shown, y="usage", groups="tokens", panels="panel", title=title)
        figure.update_yaxes(range=[-0.03, 1.03])
        grids = []
        for phase in self.phases:
            total, count = self._by_position(phase)
            grids.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        first = 1 - grids[0].shape[1]
        x, y = "position (0: the prompt's last token; from 1 on: the response)", "layer"
        return grid_below(
            figure,
            np.concatenate(grids, axis=1),
            x=x,
            y=y,
            of="share of tokens",
            x_first=first,
            top=1.0,
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return the share of layers that tokens use, by phase."""
        frame, found = self.to_frame(), list[Finding]()
        rows = frame[
            (frame["alpha"] == self.analysis.alpha)
            & frame["layer"].isna()
            & (frame["tokens"] == "all")
        ]
        for phase in self.phases:
            row = rows[(rows["phase"] == phase) & rows["position"].isna()].iloc[0]
            claim = f"In the {phase}, a token uses {row['usage']:.0%} of the layers."
            numbers = (float(row["usage"]), f"share of layers that a token of the {phase} uses")
            low, high = float(row["low"]), float(row["high"])
            found.append(
                old_finding(claim if found else self.summary(), *numbers, low, high, self.n_prompts)
            )
        return tuple(found)

    def summary(self) -> str:
        """Say how many layers tokens use in each phase, at which layers, and what the first token
        has to do with it.
        """
        at = self.analysis.all_alphas.index(self.analysis.alpha)
        frame = self.to_frame()
        frame = frame[(frame["alpha"] == self.analysis.alpha) & frame["layer"].isna()]
        rows = {(row["phase"], row["tokens"]): row for row in frame.to_dict("records")}
        n_layers = self.parts[0]["prompt.norms"].shape[1] - 1
        said = []
        for phase in self.phases:
            row, layers = rows[phase, "all"], self.mean(phase)[at, :-1]
            said.append(
                f"{row['usage']:.0%} of {n_layers} layers in the {phase} (95 % interval"
                f" {row['low']:.0%} to {row['high']:.0%}, {row['n_tokens']} tokens; most often"
                f" void: layer {layers.argmin()}, for {1 - layers.min():.0%} of tokens)"
            )
        classes = [(name, rows["prompt", name]) for name in _CLASSES if ("prompt", name) in rows]
        by_class = ", ".join(f"{name} {row['usage']:.0%}" for name, row in classes)
        curve = ", ".join(f"{usage:.0%}" for usage in self.mean("prompt")[:, -1])
        alphas = ", ".join(f"{alpha:g}" for alpha in self.analysis.all_alphas)
        return (
            f"At α = {self.analysis.alpha:g} a token uses {' and '.join(said)}. By kind of prompt"
            f" token: {by_class}; without the first {self._without('without first', at)}, and"
            f" {self._massive(at)}. In prompts, usage is {curve} at α = {alphas} ({self.n_prompts}"
            " prompts). A void layer did not lengthen the stream enough; that it did nothing does"
            f" not follow (void_skip asks).{self._silent()}"
        )

    def _without(self, tokens: str, at: int) -> str:
        return (
            f"{self.mean('prompt', tokens)[at, -1]:.0%}"
            if ("prompt", tokens) in self._by_prompt
            else "nothing is left"
        )

    def _massive(self, at: int) -> str:
        if ("prompt", "massive") not in self._by_prompt:
            return "no prompt token holds a massive activation"
        n = int(self._by_prompt["prompt", "massive"][1].sum())
        return (
            f"without the {n} tokens with a massive activation"
            f" {self._without('without massive', at)}"
        )

    def _silent(self) -> str:
        if "response" not in self.phases:
            return ""
        empty = sum(int((part["response.class"] == _NO_TOKEN).all(1).sum()) for part in self.parts)
        return f" {empty} responses end at their first token and are not counted." if empty else ""


def _sets(part: Tensors, phase: str) -> dict[str, Tensor]:
    """Return which tokens [batch pos] belong to which set; classes are of prompts only."""
    kinds, massive = part[f"{phase}.class"], part[f"{phase}.massive"]
    there = kinds != _NO_TOKEN
    sets = {"all": there}
    if phase == "prompt":
        sets |= {name: kinds == kind for name, kind in _CLASSES.items()}
        sets["without first"] = there & (kinds != _FIRST)
    return sets | dict(zip(_MARKED, (there & massive, there & ~massive), strict=True))
