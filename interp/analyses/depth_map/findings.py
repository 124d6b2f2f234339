"""What a depth map claims, each beside what could have made it worthless."""

from typing import TYPE_CHECKING

import numpy as np

from interp.analyses.depth_map.sampled import Sampled, best_error, sampled
from interp.result import Compared, Finding, Kind
from interp.stats.estimate import Estimate

if TYPE_CHECKING:
    from interp.analyses.depth_map.result import DepthMapResult

_UNTRAINED = "untrained models of the target's shape"
_NOTE = "sources chosen on one half of the held-out prompts, measured on the other"
_HOW = {"error": "miss {:.2g} less of its norm", "similarity": "are more similar to it by {:.2g}"}


def gained(result: "DepthMapResult") -> Finding:
    """Return what sources save that follow the target's depth, beyond untrained models."""
    row = result.statistics.loc["gain"].to_dict()
    start, measure = "Without a control", f"gain in {result.measure} of following the depth"
    sizes = result.n_prompts, result.measured.grouping.n_groups
    gain, control = Estimate(row["value"], row["low"], row["high"], *sizes), None
    if result.twins:
        start, measure = "Beyond what untrained models gain", f"{measure}, beyond untrained models"
        ends = row["beyond_low"], row["beyond_high"]
        gain = Estimate(row["beyond"], *ends, *sizes)
        control = Compared(_UNTRAINED, Estimate(row["untrained"]))
    if control and not gain.low > 0:
        more = "gain less" if gain.high < 0 else "are not shown to gain more"
        claim = f"Sources that follow the target's depth {more} than in {_UNTRAINED}"
        return Finding(f"{claim}: {gain:.2g}.", gain, measure, control, kind="compares", note=_NOTE)
    how = _HOW[result.measure].format(gain)
    claim = f"{start}, sources that follow the target's depth {how} than one source for all."
    kind: Kind = "compares" if control else "describes"
    return Finding(claim, gain, measure, control, kind=kind, note=_NOTE)


def reached(result: "DepthMapResult") -> Finding:
    """Return what the best sources miss; the embedding alone is the rival."""
    first, seed, rival = result.first, result.analysis.seed, None
    best = _estimate(result, best_error(result.measured, first=first, seed=seed))
    if result.analysis.is_pooled:
        claim = f"The best sources have a mean {result.analysis.method.upper()} of {best:.2g}."
        twins = [best_error(twin, first=first, seed=seed).value for twin in result.twins]
        control = Compared(_UNTRAINED, Estimate(float(1 - np.mean(twins)))) if twins else None
    else:
        claim = f"The best sources miss {best:.2g} of a held-out token's norm on average."
        constant = result.grids["constant"][0, first:].mean()
        control = Compared("always predicting the mean", Estimate(float(constant)))
    if result.analysis.what == "residual":
        of_embedding = sampled(result.measured, lambda errors: errors[:, 0, first:].mean(-1))
        rival = Compared("the embedding as source", _estimate(result, of_embedding))
    measure = f"mean {result.measure} at the best source"
    return Finding(claim, best, measure, control=control, rival=rival, note=_NOTE)


def risen(result: "DepthMapResult") -> Finding:
    """Return how the best sources rise; they are picked on all prompts, so without an interval."""
    row = result.statistics.loc["slope"].to_dict()
    slope = Estimate(row["value"], n=result.n_prompts)
    return Finding(
        f"The depth of the best source rises with the target's, with a slope of {slope:.2f}.",
        slope,
        "slope of the best source's relative depth against the target's",
        control=Compared(_UNTRAINED, Estimate(row["untrained"])) if result.twins else None,
    )


def _estimate(result: "DepthMapResult", errors: Sampled) -> Estimate:
    """Return an error, or the similarity that it stands for, with its interval."""
    value, margin = float(result.shown(errors.value)), float(errors.margin())
    return Estimate(value, value - margin, value + margin, errors.n, errors.n_groups)
