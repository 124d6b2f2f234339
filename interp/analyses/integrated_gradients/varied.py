"""What a path varies, and the stream after a layer whose part has written something else."""

from torch import Tensor

from interp.replay import Recording
from interp.sites import Site
from interp.sweeps.cosines import Part


def varied_of(recording: Recording, layer: int, part: Part) -> Tensor:
    """Return what the path ends at [batch pos d_model]."""
    if part == "layer":
        return recording.resid(layer + 1)
    return recording.clean(Site("attn_out" if part == "attention" else "mlp_out", layer))


def behind_part(
    part: Part, clean: Recording, rows: Recording, which: Tensor, *, layer: int, varied: Tensor
) -> Tensor:
    """Return the residual behind `layer` [row pos d_model] where its part has written `varied`.

    `rows` are those of the `which` prompts of the `clean` recording.
    """
    if part == "layer":
        return varied
    pre = clean.resid(layer)[which]
    if part == "mlp":
        return pre + clean.clean(Site("attn_out", layer))[which] + varied
    return pre + varied + rows.mlp(layer, rows.mlp_reads(layer, pre, varied))
