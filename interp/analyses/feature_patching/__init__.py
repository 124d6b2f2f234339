"""Which features of sparse dictionaries carry the difference between a prompt and its twin?

Sparse feature circuits (Marks et al., arXiv 2403.19647): at a dictionary's site x = f W_dec + b +
error, so a feature's score is its change between the two runs times the coefficient along it,

    score(feature) = Σ_pos (coefficient · W_dec) (f_source - f_base)

and the error is a node like it. The coefficient is the gradient, or RelP's (arXiv 2508.21258); the
passes that score a site score all its features. The largest are then patched exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from interp.analyses.feature_patching.choice import (
    candidates,
    largest,
    random_like,
)
from interp.analyses.feature_patching.examples import token_table
from interp.analyses.feature_patching.measured import Measuring
from interp.analyses.feature_patching.result import FeaturePatchingResult
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.features import Dictionary, load_dictionary
from interp.files.paths import shipped_dictionaries
from interp.metrics import Metric
from interp.models import Model
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.attribution import (
    Method,
    check_methods,
    check_nodes,
    n_passes,
    numbers_held,
)
from interp.sweeps.halves import halves_or_all, in_first_half
from interp.sweeps.tags import bytes_of, keys_of, texts_of
from interp.sweeps.twins import Direction, check_gradient, check_twins
from interp.tasks import Task
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class FeaturePatching(Analysis):
    """Score all features of some dictionaries, and patch the largest exactly.

    `dictionaries` are folders in SAELens's format, or names of shipped ones; none means those
    shipped for the model. The `top_k` largest by each of `methods` are patched alone. By the first
    method, the largest are also patched together, as many as each of `sizes` says, beside `draws`
    sets of random features that are as active. To "noise", features of the clean run take their
    values from the corrupted one; to "denoise", the other way round. `rules`, `metric` and `steps`
    are those of relevance_patching.
    """

    dictionaries: tuple[str, ...] = ()
    methods: tuple[Method, ...] = ("relevance", "attribution")
    rules: str = "relp"
    metric: Metric = "logit_diff"
    direction: Direction = "noise"
    steps: Annotated[int, AtLeast(1)] = 10
    top_k: Annotated[int, AtLeast(1)] = 10
    sizes: tuple[Annotated[int, AtLeast(1)], ...] = (1, 3, 10, 30, 100)
    draws: Annotated[int, AtLeast(1)] = 5
    seed: int = 0
    rank: ClassVar[int] = 14
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    page: ClassVar[str] = "features"
    question: ClassVar[str] = (
        "Which features of a sparse dictionary carry the difference between a prompt and its twin?"
    )
    how: ClassVar[str] = (
        "A feature's score is its change between the two prompts times a derivative of the metric"
        " along its direction. The largest, chosen on half of the prompts, are patched on the other"
        " half, beside random features that are as active and change as much."
    )
    caveat: ClassVar[str] = (
        "Features are a dictionary's, not the model's: what it does not reconstruct is in its"
        " error, and another dictionary has other features."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_methods(self.methods, ("resid_pre",), rules=self.rules)
        check_gradient(self.metric, self.direction)
        if len({*self.dictionaries}) < len(self.dictionaries):
            raise AnalysisError(f"dictionaries={self.dictionaries}; each may be named once")

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """Return how many features are patched together, `top_k` among the numbers."""
        return tuple(sorted({*self.sizes, self.top_k}))

    def names(self, model: Model) -> tuple[str, ...]:
        """Return the dictionaries' names; raise UnsuitedError if none is given or shipped."""
        own = Path(model.name).name
        shipped = [name for name in shipped_dictionaries() if name.startswith(f"{own}/")]
        if not (names := self.dictionaries or tuple(shipped)):
            raise UnsuitedError(
                f"no dictionaries given, and none are shipped for {model.name}; there is"
                f" {', '.join(shipped_dictionaries()) or 'none'}"
            )
        return names

    def others(self, model: Model) -> dict[str, str]:
        """Return a hash of each dictionary."""
        return {name: load_dictionary(name).checksum for name in self.names(model)}

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for unfit twins, for dictionaries that do not fit the model or are too small."""
        check_twins(model, shard, metric=self.metric)
        for name in self.names(model):
            dictionary = load_dictionary(name)
            dictionary.refuse_other(model)
            if dictionary.n_features <= (least := 2 * self.all_sizes[-1]):
                raise AnalysisError(
                    f"dictionary {name} has {dictionary.n_features} features; more than {least} are"
                    f" needed to patch {self.all_sizes[-1]} beside as many random ones"
                )
        check_nodes(model, self.methods, (), rules=self.rules)

    def measuring(self, dictionaries: Sequence[Dictionary]) -> Measuring:
        """Return how one shard is measured."""
        how = (self.methods, self.rules, self.metric, self.direction, self.steps)
        return Measuring(dictionaries, *how)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the features that each half of the prompts chooses for the other.

        "top" [half chosen] and "random" [half draw chosen] are patched together, "nodes" alone.
        """
        names = self.names(model)
        dictionaries = [load_dictionary(name).to(model.device) for name in names]
        measuring = self.measuring(dictionaries)
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        in_first = in_first_half(shards, seed=self.seed)
        halves = halves_or_all(in_first)
        seen, tokens = measuring.seen(model, shards, halves)
        n, rng = self.all_sizes[-1], np.random.default_rng(self.seed)
        top = [largest(scores[0], dictionaries, n=n) for scores in seen.scores]
        random = [
            torch.stack([random_like(each, dictionaries, of, rng=rng) for _ in range(self.draws)])
            for each, of in zip(top, zip(seen.rates, seen.distances, strict=True), strict=True)
        ]
        random_sets = torch.stack(random)
        nodes, kinds = candidates(seen, random_sets, dictionaries, top_k=self.top_k)
        return {
            "keys": keys_of([prompt for shard in shards for prompt in shard.prompts]),
            "half": torch.tensor(~in_first).int(),
            "top": torch.stack(top),
            "random": random_sets,
            "nodes": nodes,
            "kinds": kinds,
            "dictionaries": bytes_of(names),
            **token_table(model, tokens),
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt what `Measuring.of` says, and which nodes were patched."""
        names = texts_of(prepared["dictionaries"].numpy())
        device = shard.tokens.device
        measuring = self.measuring([load_dictionary(name).to(device) for name in names])
        return measuring.of(recording, shard, prepared, sizes=self.all_sizes)

    def combine(self, parts: Sequence[Tensors]) -> FeaturePatchingResult:
        """Return scores, exact effects, and what features that were chosen elsewhere carry."""
        return FeaturePatchingResult.of(self, parts)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return at most the passes that score twice, and a pass for every patch."""
        dictionaries = [load_dictionary(name) for name in self.names(model)]
        n, n_sites = len(dictionaries), len({d.writes for d in dictionaries})
        passes = 2 * n_passes(self.methods, n_sites=n_sites, steps=self.steps)
        alone = 2 * (len(self.methods) + 1) * self.top_k + n
        together = len(self.all_sizes) * (2 + self.draws) + 3
        each = 2 * len(shard.prompts) * shard.tokens.shape[1]
        held = each * sum(d.n_features + model.d_model for d in dictionaries)
        numbers = len(shard.prompts) * ((len(self.methods) + 46) * alone + together)
        return Cost(
            2.0 + 2 * passes + alone + together,
            numbers,
            numbers_held(model, shard, n_kinds=1) + 2 * held,
            is_bound=True,
            backwards=float(passes),
            logits=len(shard.prompts) * (2 + passes + alone + together),
        )
