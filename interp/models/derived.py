"""Twins whose names say how their weights were made: rounded to few bits, or shared in a loop.

"NAME@bits-3" rounds all layers, "NAME@bits-3:10-19" those from 10 to 19; "NAME@loop-15" lets all
layers share the weights of 15.
"""

import re
from typing import cast

import torch

from interp.errors import ModelError, UnsuitedError
from interp.models.loops import INITS, Init, kinds_of, loop_of, matrices_of, why_not
from interp.models.loops import refuse_others as refuse_shared
from interp.models.model import Model
from interp.models.quantizer import Rounding
from interp.models.quantizer import refuse_others as refuse_rounded
from interp.models.temporary import temporary_weights
from interp.shapes import Tensors

GROUP = 32  # weights that share a scale, as in `quantization_order`
_MOST = 16  # bits


@torch.inference_mode(mode=False)  # its weights could not be in a graph
def derived(model: Model, name: str, how: re.Match[str]) -> Model:
    """Return a model with other weights in its blocks, whose module it takes over.

    `how` is a match of `locating.DERIVED`: bits per weight (round to nearest, asymmetric, in groups
    of 32 inputs) of all layers or a window; or the number of shared layers, with the mean of all
    that use each (or "-stepwise", "-lower"), gains and biases being kept: what `quantization_order`
    and `recursion` do. Raises ModelError for bits, layers or numbers that the model does not have,
    for experts, and for parameters that are tied, quantised or not in memory.
    """
    try:
        about, weights = _rounded(model, how) if how["bits"] else _looped(model, how)
        with temporary_weights(model, weights):  # it refuses what cannot be replaced
            pass
    except (ModelError, UnsuitedError) as error:
        raise ModelError(f"{name}: {error}") from None
    parameters = dict(model.module.named_parameters())
    with torch.no_grad():
        for key, value in weights.items():
            parameters[key].copy_(value)
    own = getattr(model.module.config, "made_from", None)
    model.module.config.made_from = f"{own}, {about}" if own else about
    where, another = model.store_folder, model.load_another
    return Model(name, model.module, model.tokenizer, where, another, checkpoint=model.checkpoint)


def _rounded(model: Model, how: re.Match[str]) -> tuple[str, Tensors]:
    bits, n = int(how["bits"]), model.n_layers
    first, last = (int(how[key] or end) for key, end in (("first", 0), ("last", n - 1)))
    if not 1 <= bits <= _MOST:
        raise ModelError(f"{bits} bits given; there is 1 to {_MOST}")
    if not first <= last < n:
        raise ModelError(f"layers {first} to {last} given; there is 0 to {n - 1}")
    rounding, weights = Rounding(bits, GROUP, "asymmetric"), Tensors()
    for block in model.blocks[first : last + 1]:
        refuse_rounded(block)
        weights |= rounding.block(block)
    return f"layers {first} to {last} rounded to {bits} bits", weights


def _looped(model: Model, how: re.Match[str]) -> tuple[str, Tensors]:
    n_shared, kinds = int(how["shared"]), kinds_of(model)
    init = cast(Init, how["init"] or INITS[0])
    if why := why_not(n_shared, kinds):
        raise ModelError(why)
    weights, loop = Tensors(), loop_of(init, n_shared, kinds)
    for layer, block in enumerate(model.blocks):
        refuse_shared(block)
        for key, weight in matrices_of(block).items():
            weights[f"{block.name}.{key}"] = loop.base(layer, key, model.blocks).to(weight.dtype)
    return f"{n_shared} layers ({init}) shared by {len(kinds)}", weights
