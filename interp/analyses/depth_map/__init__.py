"""Which layer of one model predicts which layer of another?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.4: a linear map from
every residual site of a source to every residual site of a target, judged by the mean over tokens
of ‖y - ŷ‖ / ‖y‖. The paper trains the maps; the training loss has a minimum in closed form, which
is found here from streamed moments. Tokens of held-out prompts are read again, target sites group
by group, because the ratio of a token is no function of moments. Site l is the residual in front of
layer l, site L the one behind the last. Position 0 is left out, as published.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from einops import rearrange
from plotly.subplots import make_subplots
from torch import Tensor

from interp.analyses.depth_map.layer_alignment import (
    STATISTICS,
    alignment_statistics,
    monotone_alignment,
    permuted,
    share_at_least,
)
from interp.analyses.depth_map.linear_maps import example_similarity
from interp.analyses.depth_map.site_maps import Role, SiteMaps, What, n_sites, pooled
from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, TaskError
from interp.figures.plots import COLOURS, titled
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

_RESAMPLES = 200
_PERMUTATIONS = 1000


@dataclass(frozen=True)
class DepthMap(Analysis):
    """Map every site of the model to every site of `target` (a model's name; None: the model
    itself).

    `method`: "linear" (ridge, chosen on validation prompts) and "orthogonal" (a rotation and one
    scale) map token by token and need one tokenizer; "cka" (debiased) and "rsa" compare each
    prompt's mean over positions and need none. `what`: residuals, or each layer's contribution to
    them. `weighting` "relative" weighs tokens by 1 / ‖y‖² in the fit.
    """

    target: str | None = None
    method: Literal["linear", "orthogonal", "cka", "rsa"] = "linear"
    what: What = "residual"
    weighting: Literal["equal", "relative"] = "equal"
    seed: int = 0
    question: ClassVar[str] = "Which layer of one model predicts which layer of another?"
    how: ClassVar[str] = (
        "Linear maps from every layer of one model to every layer of the other are fitted on"
        " training prompts, by a closed formula, and judged on held-out prompts by the error"
        " relative to a token's norm. The diagonal is compared with permuted layers."
    )
    caveat: ClassVar[str] = (
        "That a layer can be predicted linearly does not say that it computes the same; small"
        " errors can be mostly the token's own embedding."
    )

    @property
    def is_pooled(self) -> bool:
        """Tell whether prompts are compared, not tokens."""
        return self.method in ("cka", "rsa")

    def target_of(self, model: Model) -> Model:
        """Return the target's model."""
        if self.target is None or self.target == model.name:
            return model
        return model.another(self.target)

    def others(self, model: Model) -> dict[str, str]:
        """Return the target's fingerprint."""
        target = self.target_of(model)
        return {} if target is model else {"target": target.fingerprint}

    def maps(self, model: Model) -> SiteMaps:
        """Return how tokens are mapped."""
        return SiteMaps(
            model,
            self.target_of(model),
            self.what,
            self.method == "orthogonal",
            is_relative=self.weighting == "relative",
        )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for prompts of one token, and where tokens must match, for another
        tokenizer.
        """
        if shard.tokens.shape[1] < 2:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; position 0 is left out, so 2 are"
                " needed"
            )
        target = self.target_of(model)
        if target is model or self.is_pooled:
            return
        try:
            same = torch.equal(target.tokenize(shard.prompts).tokens, shard.tokens)
        except TaskError:
            same = False
        if not same:
            raise AnalysisError(
                f"{target.name} and {model.name} have different tokenizers (prompt"
                f" {shard.prompts[0].id!r}); method={self.method!r} maps tokens and needs one;"
                " 'cka' and 'rsa' do not"
            )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return each prompt's target sites, pooled; or what the maps, fitted here, miss on each
        held-out prompt.
        """
        shards = model.shards(task)
        if self.is_pooled:
            return self._pooled_target(model, shards)
        maps = self.maps(model)
        if self.method == "orthogonal" and maps.target.d_model < model.d_model:
            raise AnalysisError(
                f"method='orthogonal' from {model.d_model} features to {maps.target.d_model}; at"
                " least as many are needed"
            )
        return maps.fit_and_test(self.batches(model, shards))

    def batches(
        self, model: Model, shards: Sequence[Sequence[Prompt]]
    ) -> dict[Role, list[TokenBatch]]:
        """Return the prompts that are fitted, that choose the ridge and that are held out."""
        roles = _roles([prompt for shard in shards for prompt in shard], seed=self.seed)
        found: dict[Role, list[TokenBatch]] = {"fit": [], "validation": [], "test": []}
        for shard in shards:
            for role, batches in found.items():
                if chosen := [prompt for prompt in shard if roles[prompt.id] == role]:
                    batches.append(model.tokenize(chosen))
        return found

    def _pooled_target(self, model: Model, shards: Sequence[Sequence[Prompt]]) -> Tensors:
        target, n_prompts = self.target_of(model), sum(map(len, shards))
        if n_prompts < 8:
            raise AnalysisError(
                f"{n_prompts} prompts given; method={self.method!r} needs at least 8"
            )
        found: Tensors = {}
        for shard in shards if target is not model else ():
            batch = target.tokenize(shard)
            vectors = pooled(target.record(batch), batch, self.what)
            found |= {
                f"prompt {prompt.id}": row for prompt, row in zip(shard, vectors, strict=True)
            }
        return found

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return pooled sites "source" and "target" [batch site d_model]; or the misses of held-out
        prompts.

        Those are "error" and "squared" [batch source+1 target], summed over "tokens" [batch]; 0 for
        others.
        """
        keys = [f"prompt {prompt.id}" for prompt in shard.prompts]
        if self.is_pooled:
            source = pooled(recording, shard, self.what)
            target = torch.stack([prepared[key] for key in keys]) if prepared else source.clone()
            return {"source": source, "target": target}
        nothing = torch.zeros_like(next(value for key, value in prepared.items() if key != "ridge"))
        misses = torch.stack([prepared.get(key, nothing) for key in keys])
        tokens = torch.tensor([shard.tokens.shape[1] - 1 if key in prepared else 0 for key in keys])
        ridge = prepared["ridge"].expand(len(keys), -1, -1).contiguous()
        return {"error": misses[:, 0], "squared": misses[:, 1], "tokens": tokens, "ridge": ridge}

    def combine(self, parts: Sequence[Tensors]) -> "DepthMapResult":
        """Return the grid over all pairs of sites, and over random halves of the prompts."""
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        if self.is_pooled:
            return self._combine_pooled(joined["source"], joined["target"])
        held_out = joined["tokens"] > 0
        if not bool(held_out.any()):
            raise AnalysisError(f"none of {len(held_out)} prompts is held out; give more")
        tokens, error, squared = (
            joined[key][held_out].double().numpy() for key in ("tokens", "error", "squared")
        )
        mean, total = error.sum(0) / tokens.sum(), squared.sum(0)
        unexplained = np.divide(
            total[:-1], total[-1], out=np.zeros_like(total[:-1]), where=total[-1] > 0
        )
        grids = {"error": mean[:-1], "r2": 1 - unexplained, "constant": mean[-1:]}
        if self.method == "linear":
            grids["ridge"] = joined["ridge"][0].double().numpy()
        halves = [
            error[half, :-1].sum(0) / tokens[half].sum()
            for half in _halves(len(tokens), seed=self.seed)
        ]
        return DepthMapResult(
            self, grids, np.stack(halves), n_prompts=len(tokens), n_tokens=int(tokens.sum())
        )

    def _combine_pooled(self, source: Tensor, target: Tensor) -> "DepthMapResult":
        n = len(source)
        masks = torch.zeros(1 + _RESAMPLES, n)
        masks[0] = 1
        for mask, half in zip(masks[1:], _halves(n, seed=self.seed), strict=True):
            mask[half] = 1
        x, y = (
            rearrange(sites, "prompt site d_model -> site prompt d_model")
            for sites in (source, target)
        )
        grids = example_similarity(
            x, y, masks, kind="cka" if self.method == "cka" else "rsa"
        ).numpy()
        return DepthMapResult(self, {"similarity": grids[0]}, grids[1:], n_prompts=n, n_tokens=None)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """The target's pass, in forwards of the source; again for every group of target sites that
        fits into memory.
        """
        maps, n_prompts = self.maps(model), len(shard.prompts)
        n_sources, n_targets = n_sites(model, self.what), n_sites(maps.target, self.what)
        of_target = 0.0 if maps.target is model else maps.target.n_layers / model.n_layers
        if self.is_pooled:
            return Cost(
                of_target, n_prompts * (n_sources * model.d_model + n_targets * maps.target.d_model)
            )
        numbers = n_prompts * ((3 * n_sources + 2) * n_targets + 2)
        return Cost(
            len(maps.groups()) * (1 + of_target) - 1, numbers, 2 * maps.held()
        )  # float64 counts twice


def _roles(prompts: Sequence[Prompt], *, seed: int) -> dict[str, Role]:
    """Deal out roles by prompt: of every eight in a row, five are fitted, one validates, two are
    held out.
    """
    rng = random.Random(seed)
    roles: dict[str, Role] = {}
    for start in range(0, len(prompts), 4):
        block: list[Role] = ["fit", "fit", "fit" if start % 8 else "validation", "test"]
        rng.shuffle(block)
        roles |= {
            prompt.id: role for prompt, role in zip(prompts[start : start + 4], block, strict=False)
        }
    return roles


def _halves(n: int, *, seed: int) -> list[np.ndarray]:
    """Return random halves; a mean over half of n, drawn without replacement, varies about as much
    as one over n anew.
    """
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(n)[: max(1, n // 2)]) for _ in range(_RESAMPLES)]


@dataclass(frozen=True, repr=False)
class DepthMapResult(Result):
    """Grids [source target]: "error", "r2" and "ridge" on held-out tokens, "constant" [1 target];
    or "similarity".

    `halves` [resample source target] are errors (or similarities) of random halves of the prompts.
    """

    analysis: DepthMap
    grids: dict[str, np.ndarray]
    halves: np.ndarray
    n_prompts: int
    n_tokens: int | None

    @property
    def measure(self) -> str:
        """Return which grid is judged."""
        return "similarity" if self.analysis.is_pooled else "error"

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """Return how strong the diagonal is: value, 95 % interval, 95th percentile and p-value
        under permuted sites.
        """
        errors = self._judged(self.grids[self.measure])
        shuffled = permuted(errors, n=_PERMUTATIONS, seed=self.analysis.seed)
        found = alignment_statistics(
            np.concatenate([errors[None], self._judged(self.halves), shuffled])
        )
        rows = []
        for name in STATISTICS:
            value, halves, null = (
                float(found[name][0]),
                found[name][1 : 1 + _RESAMPLES],
                found[name][1 + _RESAMPLES :],
            )
            low, high = np.quantile(halves, [0.025, 0.975])
            chance = {"permuted": np.quantile(null, 0.95), "p": share_at_least(null, value)}
            rows.append({"measure": name, "value": value, "low": low, "high": high, **chance})
        return pd.DataFrame(rows).set_index("measure")

    def _judged(self, grid: np.ndarray) -> np.ndarray:
        """Return errors without the embeddings' row and column, as published; of similarities, what
        they lack to 1.
        """
        errors: np.ndarray = (1 - grid if self.analysis.is_pooled else grid)[
            ..., self._first :, self._first :
        ]
        return errors

    @property
    def _first(self) -> int:
        return 1 if self.analysis.what == "residual" else 0

    @property
    def best(self) -> np.ndarray:
        """Return the best source of every target but the embeddings."""
        best: np.ndarray = self._judged(self.grids[self.measure]).argmin(0) + self._first
        return best

    @property
    def aligned(self) -> np.ndarray:
        """Return the best sources that never fall with the target."""
        return monotone_alignment(self._judged(self.grids[self.measure])) + self._first

    def to_frame(self) -> pd.DataFrame:
        """Return one row per measure and pair of sites, and one per statistic of the whole grid.

        Measures of pairs: "error" (mean over held-out tokens of ‖y - ŷ‖ / ‖y‖, with its 95 %
        interval), "r2", "ridge" (in units of trace / d), "constant" (the error of always predicting
        the mean), or "similarity". `is_best` and `is_aligned` mark the best source of a target,
        freely and in order. Statistics have no sites, but the 95th percentile (`permuted`) and
        p-value (`p`) under permuted sites.
        """
        rows = []
        for measure, grid in self.grids.items():
            sources, targets = (axis.ravel() for axis in np.indices(grid.shape))
            pairs = pd.DataFrame(
                {"measure": measure, "source": sources, "target": targets, "value": grid.ravel()}
            )
            if measure == "constant":
                pairs["source"] = None
            if measure == self.measure:
                pairs["low"], pairs["high"] = np.quantile(
                    self.halves, [0.025, 0.975], axis=0
                ).reshape(2, -1)
                for column, path in (("is_best", self.best), ("is_aligned", self.aligned)):
                    chosen = {(int(source), i) for i, source in enumerate(path, self._first)}
                    pairs[column] = [
                        pair in chosen
                        for pair in zip(sources.tolist(), targets.tolist(), strict=True)
                    ]
            rows.append(pairs)
        frame = pd.concat([*rows, self.statistics.reset_index()], ignore_index=True)
        return frame.astype(
            {"source": "Int64", "target": "Int64", "is_best": "boolean", "is_aligned": "boolean"}
        )

    def plot(self) -> go.Figure:
        """Draw the grid with the best source of every target, and beside it what is reached there."""
        grid, name = self.grids[self.measure], self.analysis.target or "the model itself"
        label = {
            "error": "relative error",
            "similarity": f"{self.analysis.method.upper()} similarity",
        }[self.measure]
        targets = np.arange(self._first, grid.shape[1])
        figure = make_subplots(
            rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.2,
            subplot_titles=[f"{label}, every pair", f"{label} at the best source"],
        )  # fmt: skip
        figure.add_heatmap(
            z=grid.astype(np.float32), colorscale="Cividis", reversescale=self.measure == "error", zmin=0,
            zmax=max(1.0, float(np.quantile(grid, 0.9))), colorbar={"title": {"text": label}, "x": 0.52},
            hovertemplate="source %{y}<br>target %{x}<br>%{z:.3f}<extra></extra>", row=1, col=1,
        )  # fmt: skip
        for label_, path, style in (
            (
                "best source",
                self.best,
                {"mode": "markers", "marker": {"color": COLOURS[1], "size": 9}},
            ),
            (
                "best sources in order",
                self.aligned,
                {"mode": "lines", "line": {"color": COLOURS[1], "width": 2}},
            ),
        ):
            figure.add_scatter(x=targets, y=path, name=label_, **style, row=1, col=1)
        reached = grid[self.best, targets].astype(np.float32)
        figure.add_scatter(
            x=targets, y=reached, name="at the best source", marker_color=COLOURS[0], row=1, col=2
        )
        if "constant" in self.grids:
            constant = self.grids["constant"][0, targets].astype(np.float32)
            figure.add_scatter(
                x=targets, y=constant, name="always the mean", line_color=COLOURS[5], row=1, col=2
            )
        site = {"residual": "in front of layer", "contribution": "contribution of layer"}[
            self.analysis.what
        ]
        figure.update_xaxes(title_text=f"target site ({site})", dtick=max(1, grid.shape[1] // 8))
        figure.update_yaxes(
            title_text=f"source site ({site})", dtick=max(1, len(grid) // 8), row=1, col=1
        )
        figure.update_yaxes(title_text=label, rangemode="tozero", row=1, col=2)
        figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=460)
        return titled(figure, f"Which layer predicts which layer of {name}")

    def findings(self) -> tuple[Finding, ...]:
        """Return the strength of the diagonal."""
        value, low, high = map(float, self.statistics.loc["diagonal", ["value", "low", "high"]])
        unit = "correlation of errors with the distance in relative depth"
        return (old_finding(self.summary(), value, unit, low, high, self.n_prompts),)

    def summary(self) -> str:
        """Say which sources are best, what they reach, and how strong the diagonal is against
        permuted sites.
        """
        grid, targets = (
            self.grids[self.measure],
            np.arange(self._first, self.grids[self.measure].shape[1]),
        )
        diagonal, slope = self.statistics.loc["diagonal"], self.statistics.loc["slope"]
        reached = grid[self.best, targets].mean()
        if self.measure == "error":
            constant = self.grids["constant"][0, targets].mean()
            reaches = (
                f"they miss {reached:.2g} of a held-out token's norm on average, always the mean"
                f" misses {constant:.2g} ({self.n_tokens} tokens of {self.n_prompts} prompts)"
            )
        else:
            reaches = (
                f"their {self.analysis.method.upper()} is {reached:.2g} on average"
                f" ({self.n_prompts} prompts)"
            )
        return (
            f"The best sources for targets {targets[0]} to {targets[-1]} are"
            f" {' '.join(map(str, self.best))}; {reaches}. Errors grow with the distance in"
            f" relative depth: correlation {diagonal['value']:.2f} (95 % interval"
            f" {diagonal['low']:.2f} to {diagonal['high']:.2f}; {diagonal['permuted']:.2f} by 5 %"
            f" of permutations, p = {diagonal['p']:.3f}); the best source's depth rises with slope"
            f" {slope['value']:.2f}."
        )
