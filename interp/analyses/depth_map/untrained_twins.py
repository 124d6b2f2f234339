"""The same maps towards untrained twins of the target: what depth alone, untrained, gives."""

from collections.abc import Callable, Mapping, Sequence

import torch

from interp.analyses.depth_map.split import Role
from interp.analyses.depth_map.tap_maps import TapMaps
from interp.analyses.depth_map.taps import What, pooled_by_prompt
from interp.models import Model
from interp.models.untrained import twins_of
from interp.shapes import Tensors
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch


def twins_errors(
    maps_to: Callable[[Model], TapMaps],
    target: Model,
    batches: Mapping[Role, Sequence[TokenBatch]],
    *,
    seed: int,
) -> Tensors:
    """Return every held-out prompt's "control" errors [twin source target], summed over tokens."""
    found = [maps_to(twin).fit_and_test(batches) for twin in twins_of(target, seed=seed)]
    return _controls(
        [{key: misses[0, :-1] for key, misses in one.items() if key != "ridge"} for one in found]
    )


def twins_pooled(
    target: Model, shards: Sequence[Sequence[Prompt]], what: What, begin: int, *, seed: int
) -> Tensors:
    """Return every prompt's "control" vectors [twin tap d_model]."""
    return _controls(
        [pooled_by_prompt(twin, shards, what, begin) for twin in twins_of(target, seed=seed)]
    )


def _controls(by_twin: Sequence[Tensors]) -> Tensors:
    keys = by_twin[0] if by_twin else ()
    return {
        key.replace("prompt", "control", 1): torch.stack([one[key] for one in by_twin])
        for key in keys
    }
