"""What analyses need of blocks and not all give: keys and values, named parts, plain weights."""

from collections.abc import Callable, Mapping

from torch import Tensor

from interp.errors import ModelError, UnsuitedError
from interp.models import Model, temporary_weights
from interp.replay import Block


def require_kv(model: Model, *, instead: str = "") -> None:
    """Raise UnsuitedError where a layer keeps no keys and values from which a tail could start.

    `instead` says what can be asked of such a model.
    """

    def why_not(block: Block) -> str:
        without = f"keeps no keys and values (its mixer is {block.mixer})"
        return "" if block.has_kv else f"{without}, and runs on whole prompts alone"

    _refuse(model, why_not, instead)


def require_parts(model: Model, *, instead: str = "") -> None:
    """Raise UnsuitedError where what a block's mixer and its MLP write cannot be told apart.

    `instead` says what can be asked of such a model.
    """
    _refuse(model, lambda block: block.why_whole and f"runs as a whole: {block.why_whole}", instead)


def require_replaceable(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Raise UnsuitedError where `weights`, the model's own, could not be replaced by others."""
    try:
        with temporary_weights(model, weights):
            pass
    except ModelError as error:
        raise UnsuitedError(str(error)) from None


def _refuse(model: Model, why_not: Callable[[Block], str], instead: str) -> None:
    for layer, block in enumerate(model.blocks):
        if why := why_not(block):
            raise UnsuitedError(
                f"layer {layer} of {model.name!r} {why}{instead and f'; {instead}'}"
            )
