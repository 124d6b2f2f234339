"""Where the change between two models lives, in words."""

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.figures.words import by_sign, counted, layers_named
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate, estimate, estimate_of

if TYPE_CHECKING:
    from interp.analyses.checkpoint_stitch.result import CheckpointStitchResult

_NONE = 1e-6  # nats of KL: less is no change
LATE = 2 / 3  # of the depth: where the fixed cut of arXiv 2605.07284 is
UNTRAINED = "untrained layers in the other's place"
PERMUTED = "the same change permuted"


def findings_of(result: "CheckpointStitchResult") -> tuple[Finding, ...]:
    """Return where the change lives, whether late layers need it early, and what swaps cost."""
    found = (_where(result), _needed(result), _swapped(result))
    return tuple(finding for finding in found if finding is not None)


def needed_range(result: "CheckpointStitchResult", *, of: str = "cut") -> tuple[int, int]:
    """Return the first needed layer, and the one after the last: see `_range`."""
    return _range(_kls(result, of=of).mean(0), result)


def _kls(result: "CheckpointStitchResult", *, of: str) -> np.ndarray:
    """Return KL of this model, and of both directions' cuts, from the other [prompt number]."""
    curve = result.curve(result.best_map, "kl", of=of)
    plain = result.plain("kl", of="plain" if of == "cut" else of)
    return np.concatenate([plain[:, :1], curve[:, 0], curve[:, 1]], axis=1)


def _range(means: np.ndarray, result: "CheckpointStitchResult") -> tuple[int, int]:
    """Return from where to where the other model's layers are needed to keep the change.

    Before the range, at every cut, this model below keeps a `share` of the change, which is
    1 - KL(other‖joined) / KL(other‖this); after it the other model below does.
    """
    n, share = len(result.cuts), result.analysis.share
    if means[0] <= _NONE:
        return 0, 0
    kept = 1 - means[1:] / means[0] >= share
    front = int(np.logical_and.accumulate(kept[:n]).sum())
    behind = int(np.logical_and.accumulate(kept[n:][::-1]).sum())
    first = result.cuts[front - 1] if front else 0
    last = result.cuts[n - behind] if behind else result.n_layers
    return first, max(first, last)


def against_random(result: "CheckpointStitchResult") -> Estimate | None:
    """Return the change's KL over that of the same change permuted, a mean of logarithms.

    The interval is for one more permuted copy against the others (`interp.stats.beyond`), over
    groups of prompts. None where fewer than two copies, or no change, were measured.
    """
    random, kl = result.random, _kls(result, of="cut")[:, 0]
    if random is None or random.shape[1] < 2 or min(kl.mean(), *random.mean(0)) <= _NONE:
        return None
    of_resample: dict[str, Any] = {"groups": result.prompt_groups, "seed": result.analysis.seed}
    own = estimate_of(lambda mean: float(np.log(max(mean[0], _NONE))), kl[:, None], **of_resample)
    gap = beyond(own, np.log(random.mean(0)))
    low, value, high = np.exp([gap.low, gap.value, gap.high]).tolist()
    return Estimate(value, low, high, gap.n, gap.n_groups)


def _where(result: "CheckpointStitchResult") -> Finding:
    times, of_change = against_random(result), float(_kls(result, of="cut")[:, 0].mean())
    note = f"map: {result.best_map}; all of the change is {number(of_change, '.2g')} nats"
    if times is None:
        return _range_needed(result, note)
    if times.has_interval and not times.excludes(1.0):
        return Finding(
            f"The change is nowhere in particular: its KL is {times:.2g} times that of {PERMUTED}.",
            times,
            f"KL of the change relative to {PERMUTED}",
            Compared("one more permuted copy", Estimate(1.0)),
            note=note,
        )
    return _range_needed(result, f"{note}, {times:.2g} times that of {PERMUTED}")


def _range_needed(result: "CheckpointStitchResult", note: str) -> Finding:
    def width(means: np.ndarray) -> float:
        first, last = _range(means, result)
        return float(last - first)

    kls, share = _kls(result, of="cut"), number(result.analysis.share, ".0%")
    groups, seed = result.prompt_groups, result.analysis.seed
    size = estimate_of(width, kls, groups=groups, seed=seed)
    first, last = needed_range(result)
    measure, n_layers = f"layers that {share} of the change (KL) needs", result.n_layers
    control = None
    if result.has_untrained:
        of_twin = needed_range(result, of="untrained")
        control = Compared(UNTRAINED, Estimate(float(of_twin[1] - of_twin[0])))
    if last == first:
        claim = f"No layer is needed to keep {share} of the change: {size:.2g} of {n_layers}."
        return Finding(claim, size, measure, control, note=note)
    named = layers_named(range(first, last), of=n_layers)
    claim = f"To keep {share} of the change, {named} are needed: {size:.2g} of {n_layers}."
    if last == first + 1:
        claim = claim.replace(" are needed", " is needed")
    return Finding(claim, size, measure, control, note=note)


def _needed(result: "CheckpointStitchResult") -> Finding | None:
    """Return what the late layers add to which stream, or None without a cut between layers."""
    kind, n_layers = result.best_map, result.n_layers
    inside = [i for i, cut in enumerate(result.cuts) if 0 < cut < n_layers]
    if not inside:
        return None
    i = min(inside, key=lambda i: abs(result.cuts[i] - LATE * n_layers))
    more = _estimate(result, result.interaction(kind)[:, i])
    gained = result.curve(kind, "log_prob")[:, 0, i] - result.plain("log_prob")[:, 0]
    start = f"From layer {result.cuts[i]} on, the other's layers"
    on = "to its own stream than to this one's"
    size = number(abs(more.value), ".2g")
    claim = by_sign(
        more,
        above=f"{start} add {size} nats more {on}.",
        below=f"{start} add {size} nats less {on}.",
        unclear=f"{start} are not shown to add more or less {on}: {more:.2g} nats.",
    )
    rival = None
    if result.has_untrained:
        of_twin = result.interaction(kind, of="untrained")[:, i]
        rival = Compared(UNTRAINED, _estimate(result, of_twin))
    return Finding(
        claim,
        more,
        "interaction of the late layers with the upstream change, nats of the answer",
        control=Compared("what they add to this one's stream", _estimate(result, gained)),
        rival=rival,
        kind="compares",
        note=f"cut after {result.cuts[i]} of {counted(n_layers, 'layer')}, map: {kind}",
    )


def _swapped(result: "CheckpointStitchResult") -> Finding:
    swap, skip = (_mean_change(result, kind) for kind in ("swap", "skip"))
    other = _mean_change(result, "unrelated")
    assert swap is not None
    assert skip is not None
    named = result.analysis.unrelated
    name = "skips" if other is None else f"blocks of {named or 'an untrained model'}"
    control = skip if other is None else other
    gap = _estimate(result, swap - control)
    start, size = "Alone in this model, the other's blocks", number(abs(gap.value), ".2g")
    claim = by_sign(
        gap,
        above=f"{start} cost {size} nats of the answer less than {name}, mean over blocks.",
        below=f"{start} cost {size} nats of the answer more than {name}, mean over blocks.",
        unclear=f"{start} are not shown to cost less than {name}: {gap:.2g} nats of the answer.",
    )
    return Finding(
        claim,
        gap,
        "log-probability of the answer with single blocks swapped, beyond the control, nats",
        control=Compared(name, _estimate(result, control)),
        rival=Compared("skips", _estimate(result, skip)),
        kind="compares",
        note=f"swaps change it by {_estimate(result, swap):.2g} nats",
    )


def _mean_change(result: "CheckpointStitchResult", kind: str) -> np.ndarray | None:
    change = result.change_in_log_prob(kind)
    return None if change is None else np.asarray(change.mean(1))


def _estimate(result: "CheckpointStitchResult", values: np.ndarray) -> Estimate:
    return estimate(values, groups=result.prompt_groups, seed=result.analysis.seed)
