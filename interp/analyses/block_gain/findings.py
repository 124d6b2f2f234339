"""What a block gain's numbers say: over depth, of the gradient and of how alike layers write."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.block_gain.measures import DIRECTIONS
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate, estimate, estimate_of, ratio
from interp.stats.groups import Array

if TYPE_CHECKING:
    from interp.analyses.block_gain.result import BlockGainResult

_LEAST = 1e-12


def findings_of(result: "BlockGainResult") -> tuple[Finding, ...]:
    """Return how gain and gradient go with depth, and whether layers write alike."""
    return _of_gain(result), _of_gradient(result), _of_writes(result)


def _of_gain(result: "BlockGainResult") -> Finding:
    of_random = result.arrays["gains"][..., 0]
    fall = _over_depth(result, of_random)
    means = [_token_mean(result, _gain_mean(result, direction)) for direction in DIRECTIONS]
    random, previous, itself = (f"{mean.value:.2g}" for mean in means)
    return Finding(
        "In the later half of the layers, a block's gain along random directions is"
        f" {fall:.2f} times that in the earlier half.",
        fall,
        "gain of a block along random directions, later over earlier half of the layers,"
        " geometric means, without position 0",
        control=Compared(
            "as 1 / ‖h‖ predicts", _over_depth(result, result.arrays["sizes"][..., 1])
        ),
        note=f"mean gains after the first layer: {random} along random directions, {previous} along"
        f" the previous write, {itself} along h itself; rounding alone can make"
        f" {result.arrays['rounding'].max():.1g}",
    )


def _gain_mean(result: "BlockGainResult", direction: str) -> np.ndarray:
    """Return mean gains [prompt] over all layers but the first, before which nothing writes."""
    values = result.arrays["gains"][:, 1:, DIRECTIONS.index(direction)]
    mean: np.ndarray = np.nanmean(values, axis=1)
    return mean


def _over_depth(result: "BlockGainResult", values: np.ndarray) -> Estimate:
    """Return the later over the earlier half of layers, of means over tokens [prompt layer]."""
    return estimate_of(
        _later_over_earlier,
        values,
        weights=result.arrays["n_pos"],
        groups=result.prompt_groups,
        seed=result.analysis.seed,
    )


def _of_gradient(result: "BlockGainResult") -> Finding:
    gradient = result.arrays["gradient"]
    of: Callable[[int, int], Estimate] = lambda one, other: ratio(  # noqa: E731
        gradient[:, one], gradient[:, other], groups=result.prompt_groups, seed=result.analysis.seed
    )
    times = of(0, -1)
    return Finding(
        f"Before the first layer the gradient of the loss is {times:.3g} times as long"
        " as after the last.",
        times,
        "norm of the loss's gradient, before the first layer over after the last,"
        " without position 0",
        rival=Compared("from before the second layer", of(1, -1)),
        note="1 if the gradient were even over depth",
    )


def _of_writes(result: "BlockGainResult") -> Finding:
    cosines = result.arrays["cosines"]
    n_layers = cosines.shape[1]
    apart = ~np.eye(n_layers, dtype=bool)
    one, other = (_token_mean(result, cosines[..., i][:, apart].mean(1)) for i in (0, 1))
    neighbours = np.diagonal(cosines[..., 0], 1, axis1=1, axis2=2).mean(1)
    return Finding(
        f"What two layers write to a token has a cosine of {one:.2f} on average.",
        one,
        "cosine of what two layers write to a token, mean over pairs, without position 0",
        control=Compared("to different tokens", other),
        rival=Compared("neighbouring layers", _token_mean(result, neighbours)),
    )


def _token_mean(result: "BlockGainResult", values: np.ndarray) -> Estimate:
    return estimate(
        values,
        weights=result.arrays["n_pos"],
        groups=result.prompt_groups,
        seed=result.analysis.seed,
    )


def _later_over_earlier(values: Array) -> float:
    """Return the ratio of geometric means of a curve [layer]; the middle one counts as later."""
    logs = np.log(np.maximum(values, _LEAST))
    half = len(logs) // 2
    return float(np.exp(logs[half:].mean() - logs[:half].mean()))
