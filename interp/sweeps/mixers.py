"""What analyses need of blocks that not every mixer gives: keys and values, and named parts."""

from interp.errors import UnsuitedError
from interp.models import Model


def require_kv(model: Model, *, instead: str = "") -> None:
    """Raise UnsuitedError where a layer keeps no keys and values from which a tail could start.

    `instead` says what can be asked of such a model.
    """
    for layer, block in enumerate(model.blocks):
        if not block.has_kv:
            raise UnsuitedError(
                f"layer {layer} of {model.name!r} keeps no keys and values (its mixer is"
                f" {block.mixer}), and runs on whole prompts alone{instead and f'; {instead}'}"
            )


def require_parts(model: Model, *, instead: str = "") -> None:
    """Raise UnsuitedError where what a block's mixer and its MLP write cannot be told apart.

    `instead` says what can be asked of such a model.
    """
    for layer, block in enumerate(model.blocks):
        if block.why_whole:
            raise UnsuitedError(
                f"layer {layer} of {model.name!r} runs as a whole: {block.why_whole}"
                f"{instead and f'; {instead}'}"
            )
