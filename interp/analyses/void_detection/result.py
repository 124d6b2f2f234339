"""Usage: the share of layers that are not void, by phase, kind of token, layer and position."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.figures.plots import Axes, grid_below, lines_over_depth
from interp.result import Compared, Finding, Result
from interp.shapes import Tensors
from interp.stats.estimate import Estimate, estimate, estimates
from interp.stats.groups import Groups
from interp.sweeps.voids import active_layers

if TYPE_CHECKING:
    from interp.analyses.void_detection import VoidDetection

PHASES = ("prompt", "response")
FIRST, PUNCTUATION, OTHER, NO_TOKEN = range(4)
_CLASSES = {"first": FIRST, "punctuation": PUNCTUATION, "other": OTHER}
_MARKED = ("massive", "without massive")
_BESIDE = {  # what a phase's usage stands beside, and whose it is
    "prompt": ("without the first token", "prompt", "without first"),
    "response": ("tokens of the prompt", "prompt", "all"),
}


@dataclass(frozen=True, repr=False)
class VoidDetectionResult(Result):
    """Norms of every shard, from which usage follows at any alpha."""

    analysis: "VoidDetection"
    parts: tuple[Tensors, ...]

    @property
    def phases(self) -> tuple[str, ...]:
        """Return the phases measured."""
        return tuple(phase for phase in PHASES if f"{phase}.norms" in self.parts[0])

    def active(self, part: Tensors, phase: str, alphas: Sequence[float]) -> Tensor:
        """Return which layers are active [alpha batch layer pos] in one shard."""
        return active_layers(
            part[f"{phase}.norms"], alphas, first_range=part.get(f"{phase}.first_range")
        )

    def usage(self, *, alpha: float | None = None, phase: str = "prompt") -> list[Tensor]:
        """Return the share of layers that each token uses, a tensor [batch pos] per shard.

        NaN where there is no token.
        """
        alphas, shares = [self.analysis.alpha if alpha is None else alpha], []
        for part in self.parts:
            share = self.active(part, phase, alphas)[0].float().mean(1)
            shares.append(share.masked_fill(part[f"{phase}.class"] == NO_TOKEN, torch.nan))
        return shares

    @cached_property
    def _by_prompt(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, Groups | None]]:
        """Map phase and set of tokens to usage [prompt alpha layer+1], tokens and groups [prompt].

        The last column holds the mean over layers; prompts without such tokens are left out.
        """
        sums, counts = defaultdict(list), defaultdict(list)
        for part in self.parts:
            for phase in self.phases:
                active = self.active(part, phase, self.analysis.all_alphas).double()
                for name, chosen in _sets(part, phase).items():
                    total = torch.einsum("abtp,bp->bat", active, chosen.double())
                    sums[phase, name].append(total)
                    counts[phase, name].append(chosen.sum(1))
        by_prompt = {}
        for key, parts in sums.items():
            total, count = torch.cat(parts), torch.cat(counts[key])
            has_tokens = count > 0
            if bool(has_tokens.any()):
                usage = total[has_tokens] / count[has_tokens, None, None]
                usage = torch.cat([usage, usage.mean(-1, keepdim=True)], dim=-1)
                groups = self.prompt_groups
                own = None if groups is None else groups[has_tokens.numpy()]
                by_prompt[key] = usage.numpy(), count[has_tokens].double().numpy(), own
        return by_prompt

    def to_frame(self) -> pd.DataFrame:
        """Return columns alpha, phase, tokens, layer, position, usage, low, high, n_tokens.

        usage is a mean over the tokens of all prompts; low and high are its 95 % interval, a
        bootstrap-t over groups of the n_prompts that have such tokens. Without a layer, a row is
        the mean over layers. Rows with a position are of `alpha` alone: -1 is the prompt's last
        token, 1 the first of the response.
        """
        frame = pd.concat([*self._set_rows(), *self._position_rows()], ignore_index=True)
        return frame.astype({"layer": "Int64", "position": "Int64"})

    def _set_rows(self) -> Iterator[pd.DataFrame]:
        for (phase, tokens), (usage, weights, groups) in self._by_prompt.items():
            columns = estimates(usage, weights=weights, groups=groups, seed=self.analysis.seed)
            layers = [*range(usage.shape[2] - 1), pd.NA]
            for i, alpha in enumerate(self.analysis.all_alphas):
                keys = {"alpha": alpha, "phase": phase, "tokens": tokens, "layer": layers}
                numbers = {"usage": columns["mean"][i]}
                numbers |= {name: columns[name][i] for name in ("low", "high")}
                counts = {"n_tokens": int(weights.sum()), "n_prompts": len(usage)}
                yield pd.DataFrame(keys | {"position": pd.NA} | numbers | counts)

    def _position_rows(self) -> Iterator[pd.DataFrame]:
        for phase in self.phases:
            total, count = self._by_position(phase)
            n_layers, n_pos = total.shape
            layer, pos = (axis.ravel() for axis in np.mgrid[:n_layers, :n_pos])
            keys = {"alpha": self.analysis.alpha, "phase": phase, "tokens": "all", "layer": layer}
            keys |= {"position": pos + (-n_pos if phase == "prompt" else 1)}
            usage = total.ravel() / np.maximum(count, 1)[pos]
            numbers = {"usage": usage, "low": np.nan, "high": np.nan}
            counts = {"n_tokens": count[pos], "n_prompts": count[pos]}
            yield pd.DataFrame(keys | numbers | counts)[count[pos] > 0]

    def _by_position(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Return how often layers are active [layer position], and the tokens [position].

        Prompts are aligned at their ends.
        """
        width = max(part[f"{phase}.class"].shape[1] for part in self.parts)
        total, count = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for part in self.parts:
            exists = part[f"{phase}.class"] != NO_TOKEN
            active = self.active(part, phase, [self.analysis.alpha])[0] & exists[:, None]
            side = (
                (width - exists.shape[1], 0) if phase == "prompt" else (0, width - exists.shape[1])
            )
            total, count = total + pad(active.sum(0), side), count + pad(exists.sum(0), side)
        return np.asarray(total, dtype=np.float64), np.asarray(count)

    def plot(self) -> go.Figure:
        """Draw the share of tokens that use each layer, by kind and phase; below, by position."""
        frame = pd.concat(self._set_rows(), ignore_index=True)
        at_alpha = (frame["alpha"] == self.analysis.alpha) & frame["layer"].notna()
        shown = frame[at_alpha & ~frame["tokens"].str.startswith("without")].copy()
        shown["panel"] = shown["phase"].map(
            {"prompt": "reading the prompt", "response": "writing the response"}
        )
        title = (
            f"Share of tokens for which a layer is not void (α = {self.analysis.alpha:g});"
            " below, by position"
        )
        figure = lines_over_depth(shown, y="usage", groups="tokens", panels="panel", title=title)
        figure.update_yaxes(range=[-0.03, 1.03])
        grids = []
        for phase in self.phases:
            total, count = self._by_position(phase)
            grids.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
            grids.append(np.full_like(grids[-1][:, :1], np.nan))  # there is no position 0
        first = -grids[0].shape[1]
        x, y = "position (−1: the prompt's last token; from 1 on: the response)", "layer"
        axes = Axes(x, y, of="share of tokens")
        grid = np.concatenate(grids[:-1], axis=1)
        return grid_below(figure, grid, axes=axes, x_first=first, top=1.0)

    def findings(self) -> tuple[Finding, ...]:
        """Return the share of layers that tokens use, by phase."""
        return tuple(map(self._phase_finding, self.phases))

    def _phase_finding(self, phase: str) -> Finding:
        usage, (name, *beside) = self._usage(phase, "all"), _BESIDE[phase]
        has_others = tuple(beside) in self._by_prompt
        free = "layers 0 and 1" if self.analysis.first_layer == "zero" else "layer 1"
        return Finding(
            f"In the {phase}, a token uses {usage:.0%} of the layers.",
            usage,
            f"share of layers that a token of the {phase} uses",
            control=Compared(name, self._usage(*beside)) if has_others else None,
            note=f"α = {self.analysis.alpha:g}; {free} compared with no range, by construction",
        )

    def _usage(self, phase: str, tokens: str) -> Estimate:
        usage, weights, groups = self._by_prompt[phase, tokens]
        own = usage[:, self.analysis.all_alphas.index(self.analysis.alpha), -1]
        return estimate(own, weights=weights, groups=groups, seed=self.analysis.seed)


def _sets(part: Tensors, phase: str) -> dict[str, Tensor]:
    """Return which tokens [batch pos] belong to which set; only prompts have classes."""
    kinds, massive = part[f"{phase}.class"], part[f"{phase}.massive"]
    is_token = kinds != NO_TOKEN
    sets = {"all": is_token}
    if phase == "prompt":
        sets |= {name: kinds == kind for name, kind in _CLASSES.items()}
        sets["without first"] = is_token & (kinds != FIRST)
    return sets | dict(zip(_MARKED, (is_token & massive, is_token & ~massive), strict=True))
