"""An untrained twin of a model: its configuration and tokenizer, weights as training begins."""

import logging
from collections.abc import Iterator
from copy import deepcopy

import torch

from interp.errors import ModelError
from interp.models.model import Model
from interp.models.quantised import quantised

_log = logging.getLogger(__name__)

N_TWINS = 3
_FIRST_SEED = 2**20  # far from seeds that people train with: a twin must not be the model itself


@torch.inference_mode(mode=False)  # its weights could not be in a graph
def untrained(model: Model, *, seed: int) -> Model | None:
    """Return a twin with the initial weights of its class, drawn with a seed on the CPU.

    None where the class cannot be built from its configuration alone, or where what it builds has
    another number of layers or width, and where the model's blocks lie on disk. Nothing of it is
    kept in a store.
    """
    module = model.module
    if model.stream is not None:
        _log.warning("%s: no untrained twin, which would be in memory as a whole", model.name)
        return None
    if quantised(module):
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = deepcopy(module.config)
            vars(config).pop("made_from", None)  # that is of the weights
            twin = type(module)(config)
        twin.to(device=model.device, dtype=model.dtype).eval().requires_grad_(False)
        made = Model(f"{model.name}, untrained ({seed})", twin, model.tokenizer)
    except (ModelError, TypeError, ValueError):
        return None
    same = (made.n_layers, made.d_model) == (model.n_layers, model.d_model)
    return made if same else None


def twins_of(
    model: Model, *, seed: int, n: int = N_TWINS, first_seed: int = _FIRST_SEED
) -> Iterator[Model]:
    """Return `n` untrained twins of a model, one in memory at a time; none if none can be built.

    Their own seeds begin at `first_seed`, and differ for every `seed`.
    """
    for i in range(n):
        twin = untrained(model, seed=first_seed + n * seed + i)
        if twin is None:
            return
        yield twin
