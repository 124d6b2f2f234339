"""Whether greedy texts along other orders of the layers still hold the answer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.layer_order.variants import Variant
from interp.replay import Recording
from interp.sweeps.continuations import texts_along
from interp.sweeps.texts import hold_answers
from interp.sweeps.two_models import model_of
from interp.tasks.batch import TokenBatch

Path = tuple[int, ...]


def are_paths(variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants that are paths through the layers: texts are written along these."""
    return [variant for variant in variants if variant.is_path]


def paths_of(variants: Sequence[Variant], n_layers: int) -> list[Path]:
    """Return the different paths of variants."""
    every = (variant.path(n_layers) for variant in variants)
    return [*dict.fromkeys(path for path in every if path is not None)]


@torch.no_grad()
def texts_of_paths(
    recording: Recording, shard: TokenBatch, variants: Sequence[Variant], *, max_new_tokens: int
) -> Float[Tensor, "batch texts"]:
    """Return 1 where a text holds the answer: the clean one, then those of `are_paths`."""
    n_layers = recording.n_layers
    paths = [tuple(range(n_layers)), *paths_of(variants, n_layers)]
    texts = texts_along(
        model_of(recording), shard, paths, max_new_tokens=max_new_tokens, work=recording.work
    )
    verdicts = dict(zip(paths, hold_answers(texts, shard.prompts).float(), strict=True))
    wanted = [paths[0], *(each.path(n_layers) for each in are_paths(variants))]
    return torch.stack([verdicts[path] for path in wanted if path is not None], dim=1)
