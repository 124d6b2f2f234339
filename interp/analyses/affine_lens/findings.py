"""Whether the affine lens is nearer to the final prediction than the logit lens, in words."""

from typing import TYPE_CHECKING

import numpy as np

from interp.figures.words import by_sign
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate

if TYPE_CHECKING:
    from interp.analyses.affine_lens.result import AffineLensResult

_UNTRAINED = "untrained models of the same shape"
_KL = "KL(final‖lens), nats"


def findings_of(result: "AffineLensResult") -> tuple[Finding, ...]:
    """Return how much nearer the affine lens is, how near half-way, and the mean alone."""
    return _nearer(result), _halfway(result), _below_the_mean(result)


def _nearer(result: "AffineLensResult") -> Finding:
    twins = result.twins_nearer
    measure = "nats of KL by which the affine lens is nearer than the logit lens, mean over layers"
    if not len(twins):
        gain, than = result.gain(), "nearer to the final prediction than the logit lens"
        return Finding(f"The affine lens is {gain:.2g} nats {than}.", gain, measure)
    gain = result.gain_beyond()
    than = f"on the logit lens than in {_UNTRAINED}"
    how = by_sign(
        gain,
        above=f"gains {gain:.2g} nats more {than}.",
        below=f"gains {-gain:.2g} nats less {than}.",
        unclear=f"is not shown to gain more or less {than}: {gain:.2g} nats.",
    )
    return Finding(
        f"The affine lens {how}",
        gain,
        f"{measure}, beyond untrained models",
        control=Compared(_UNTRAINED, Estimate(float(twins.mean()))),
        kind="compares",
        note="mean over layers after the first; fitted on text sampled from the model itself",
    )


def _halfway(result: "AffineLensResult") -> Finding:
    layer = result.n_layers // 2
    affine, logit, shuffled, mean = (
        result.kl(lens, layer)
        for lens in ("affine lens", "logit lens", "shuffled layers", "mean alone")
    )
    return Finding(
        f"Before layer {layer}, half-way, the affine lens is {affine:.2g} nats from the final"
        " prediction.",
        affine,
        "KL(final‖affine lens) half-way, nats",
        control=Compared("the mean end of the stream alone", mean),
        rival=Compared("the logit lens", logit),
        note=f"with another layer's map: {shuffled:.2g}",
    )


def _below_the_mean(result: "AffineLensResult") -> Finding:
    logit, mean, affine = (
        result.values(lens, _KL).mean(0) for lens in ("logit lens", "mean alone", "affine lens")
    )
    n, n_layers = int((logit > mean).sum()), result.n_layers
    ratio = Estimate(n / n_layers, n=len(result.nearer))
    farther = float(np.mean(affine > mean))
    return Finding(
        f"Before {n} of {n_layers} layers, the logit lens is farther from the final"
        " prediction than the mean alone.",
        ratio,
        "share of layers before which the mean alone is nearer than the logit lens",
        control=Compared("the affine lens", Estimate(farther)),
        note="the mean end of the stream, the same for every token, read in the same way",
    )
