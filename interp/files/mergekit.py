"""Paths through a model's layers as recipes for mergekit, which writes them as a model of its own.

A recipe with `merge_method: passthrough` stacks slices of layers as they are. See
https://github.com/arcee-ai/mergekit.
"""

import json
from collections.abc import Sequence
from itertools import groupby

from interp.errors import AnalysisError


def mergekit_recipe(
    path: Sequence[int], model_name: str, *, n_layers: int | None = None, dtype: str = "bfloat16"
) -> str:
    """Return the YAML of a model whose layers are those of a path, one behind the other.

    Layers in a row become one slice with `layer_range: [first, last + 1]`. What a recipe cannot
    say: layers that run side by side, and damped loops. The new model has weights of its own for
    every time that a layer is repeated, and keeps keys and values for each; what a family sets by
    place, such as which layers see only a window, follows the new place, not the layer. Raises
    AnalysisError for an empty path and for layers that are not there, of `n_layers` if given.
    """
    if not path:
        raise AnalysisError("an empty path given; a recipe needs at least one layer")
    wrong = [layer for layer in path if layer < 0 or (n_layers is not None and layer >= n_layers)]
    if wrong:
        last = "" if n_layers is None else f"; the model's last layer is {n_layers - 1}"
        raise AnalysisError(f"layer {wrong[0]} given{last or '; layers are counted from 0'}")
    lines = ["merge_method: passthrough", f"dtype: {dtype}", "slices:"]
    for first, last_of_run in _runs(path):
        lines += [
            "  - sources:",
            f"      - model: {json.dumps(model_name)}",
            f"        layer_range: [{first}, {last_of_run + 1}]",
        ]
    return "\n".join(lines) + "\n"


def _runs(path: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last layer of each run of layers that follow one another."""
    places = groupby(enumerate(path), key=lambda pair: pair[1] - pair[0])
    runs = [[layer for _, layer in run] for _, run in places]
    return [(run[0], run[-1]) for run in runs]
