"""By how much the loss rises when a unit is zeroed, exactly: what comes after it is run again.

One sweep over the layers serves all units of a kind: a layer's units join after it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.unit_importance.units import Drawn, Kind, UnitModules
from interp.replay import Recording
from interp.replay.rows import Variants, flat, unflat
from interp.sweeps.answers import SameLength
from interp.sweeps.lens import logits_at_once
from interp.sweeps.losses import loss
from interp.sweeps.staircase import skipped

_OWN = {"layer": 0.0, "attention": 0.5, "mlp": 0.0, "head": 1.0, "projection": 1.0}


def blocks_run(kind: Kind, drawn: Drawn, n_layers: int) -> float:
    """Return how many blocks `rises` runs: a unit's own, if needed, and those after it."""
    return sum(_OWN[kind] + n_layers - 1 - layer for layer in drawn.layers)


def rises(
    group: SameLength, kind: Kind, drawn: Drawn, modules: UnitModules, *, is_text: bool
) -> Float[Tensor, "batch unit"]:
    """Return by how much the loss rises, in nats, when each unit is zeroed everywhere."""
    recording = group.recording
    rows = recording.resid(0)[None][:0]
    for layer in range(recording.n_layers):
        rows = recording.run(layer, rows)
        if which := drawn.at(layer):
            rows = torch.cat([rows, _without(recording, layer, kind, which, modules)])
    clean = recording.resid(recording.n_layers)[None]
    before, *after = _losses(group, torch.cat([clean, rows]), is_text=is_text)
    return torch.stack([each - before for each in after], dim=1).cpu()


def _losses(group: SameLength, ends: Variants, *, is_text: bool) -> Float[Tensor, "variant batch"]:
    """Return losses of last residuals, a few rows at a time."""
    n_read = group.answer.shape[1] * ends.shape[1]
    size = max(1, logits_at_once(group.recording) // n_read)
    losses = []
    for some in torch.split(ends, size):
        logits = group.recording.logits(flat(some), positions=group.predicting)
        losses.append(loss(unflat(logits, ends.shape[1]), group, is_text=is_text))
    return torch.cat(losses)


def _without(
    recording: Recording, layer: int, kind: Kind, which: list[int], modules: UnitModules
) -> Variants:
    """Return streams after a layer, without one of its units each."""
    match kind:
        case "layer" | "attention" | "mlp":
            return skipped(recording, layer, kind, begin=0)[None]
        case "head":
            return _without_heads(recording, layer, which)
        case "projection":
            paths = [modules.paths[i] for i in which]
            return torch.stack([_without_module(recording, layer, path) for path in paths])


def _without_heads(recording: Recording, layer: int, heads: list[int]) -> Variants:
    resid, n_heads = recording.resid(layer), recording.blocks[layer].n_heads

    def without(few: Tensor) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            shape = (len(few), len(resid), z.shape[1], n_heads, -1)
            kept = z.reshape(shape).clone()
            kept[torch.arange(len(few)), :, :, few] = 0
            return kept.reshape(z.shape)

        return edit

    done = [
        recording.block_with(layer, resid.repeat(len(few), 1, 1), at="z", edit=without(few))
        for few in torch.split(torch.tensor(heads), recording.variants_at_once())
    ]
    return unflat(torch.cat(done), len(resid))


def _without_module(recording: Recording, layer: int, path: str) -> Tensor:
    module = recording.blocks[layer].module.get_submodule(path)
    with recording.running():
        handle = module.register_forward_hook(lambda _module, _args, out: torch.zeros_like(out))
        try:
            return recording.block(layer, recording.resid(layer))
        finally:
            handle.remove()
