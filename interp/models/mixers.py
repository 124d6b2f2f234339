"""What mixes the positions in each block: attention, a recurrence, a convolution, or several."""

from typing import Any

ATTENTION = "attention"
MIXERS = (ATTENTION, "recurrent", "convolution", "attention and recurrent", "none", "other")
_NAMES = {
    "linear_attention": "recurrent",
    "mamba": "recurrent",
    "recurrent": "recurrent",
    "conv": "convolution",
    "hybrid": "attention and recurrent",
    "mlp": "none",
    "moe": "none",
}


def mixers_of(config: Any, *, n_layers: int) -> tuple[str, ...]:
    """Return what mixes the positions of each block, by the kinds that a configuration lists.

    They are of `MIXERS`: "attention" where it lists none, "other" where it is not known here.
    """
    for name in ("layer_types", "layers_block_type"):
        kinds = getattr(config, name, None) or ()
        if len(kinds) == n_layers:
            return tuple(_mixer(str(kind)) for kind in kinds)
    return (ATTENTION,) * n_layers


def _mixer(kind: str) -> str:
    return _NAMES.get(kind, ATTENTION if "attention" in kind else "other")
