"""Exact patching: nodes take their values from the source run while the base run goes on."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from interp.analyses.feature_patching.nodes import Nodes
from interp.features import Dictionary, Latents
from interp.interventions import Edit
from interp.replay import Recording
from interp.sweeps.twins import Twins

_HELD = 1 << 26  # numbers of features that are held at once


def patched_values(
    recording: Recording, twins: Twins, nodes: Nodes, chosen: Bool[Tensor, "variant node"]
) -> Float[Tensor, "batch variant"]:
    """Return the metric of base runs in which the `chosen` nodes have the source run's values.

    After a patched site everything is computed anew: a later dictionary's other features and its
    error have what they then have.
    """
    n, n_pos = twins.base.shape
    each = n * n_pos * max(dictionary.n_features for dictionary in nodes.dictionaries)
    size = min(recording.variants_at_once(), max(1, _HELD // each))
    values: list[Tensor] = []
    for some in torch.split(chosen.to(twins.base.device), size):
        run = recording.forward(
            repeat(twins.base, "batch pos -> (variant batch) pos", variant=len(some)),
            plan=_plan(nodes, some),
            positions=twins.clean.predicting,
        )
        logits = rearrange(run.logits, "(variant batch) ... -> variant batch ...", batch=n)
        values.append(twins.value(logits).T)
    return torch.cat(values, dim=1)


def _plan(nodes: Nodes, chosen: Bool[Tensor, "variant node"]) -> list[Edit]:
    plan: list[Edit] = []
    sizes = [dictionary.n_features + 1 for dictionary in nodes.dictionaries]
    parts = torch.split(chosen, sizes, dim=1)
    for dictionary, source, swapped in zip(nodes.dictionaries, nodes.source, parts, strict=True):
        if not swapped.any():
            continue
        read: list[Tensor] = []
        if dictionary.reads != dictionary.writes:
            plan.append(Edit(dictionary.reads, _noted(read)))
        plan.append(Edit(dictionary.writes, _swap(dictionary, source, swapped, read)))
    return plan


def _noted(read: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def note(activation: Tensor) -> Tensor:
        read[:] = [activation]
        return activation

    return note


def _swap(
    dictionary: Dictionary,
    source: Latents,
    swapped: Bool[Tensor, "variant node"],
    read: list[Tensor],
) -> Callable[[Tensor], Tensor]:
    """Return an edit [variant*batch pos d]; `read` is what a transcoder reads in the same pass."""
    is_swapped = swapped.float()[:, None, None]

    def edit(activation: Tensor) -> Tensor:
        features = dictionary.encode(read[0] if read else activation)
        here = rearrange(features, "(variant batch) ... -> variant batch ...", variant=len(swapped))
        change = (source.features - here) * is_swapped[..., :-1] @ dictionary.w_dec
        if swapped[:, -1].any():
            error = activation.float() - dictionary.decode(features)
            change += (source.error - error.reshape(change.shape)) * is_swapped[..., -1:]
        new: Tensor = activation.float() + change.reshape(activation.shape)
        return new.to(activation.dtype)

    return edit
