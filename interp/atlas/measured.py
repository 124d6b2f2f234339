"""Numbers that claims need and that no finding has, from the results of a finished run."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from interp.analyses.back_patching.result import BackPatchingResult
from interp.analyses.depth_map.result import DepthMapResult
from interp.analyses.layer_routers.result import LayerRoutersResult
from interp.analyses.layer_skip.result import LayerSkipResult
from interp.analyses.patching_agreement.result import PatchingAgreementResult
from interp.analyses.path_search.kinds import RANDOM, SEARCH
from interp.analyses.path_search.result import PathSearchResult
from interp.analyses.residual_contribution.result import ResidualContributionResult
from interp.analyses.residual_contribution.writes import COSINE
from interp.analyses.residual_erasure.result import ResidualErasureResult
from interp.analyses.stream_statistics.result import StreamStatisticsResult
from interp.analyses.unit_map.result import KINDS, UnitMapResult
from interp.analyses.void_detection.result import PHASES, VoidDetectionResult
from interp.analyses.void_skip.result import VoidSkipResult
from interp.analyses.void_skip.scores import ACCURACY
from interp.result import Compared, Finding, Result
from interp.stats.estimate import Estimate, estimate, estimate_of
from interp.stats.groups import FEWEST
from interp.stats.shares import share

_METHODS = ("relevance", "attribution")
_HALVES = ("first", "second")
_FEWEST_LAYERS = 4  # so that either half has one without the first and the last


def measured(result: Result) -> Iterator[Finding]:
    """Yield numbers of a result as findings without a claim."""
    measure = _MEASURES.get(type(result))
    if measure is not None:
        yield from measure(result)


def _cosines(result: ResidualContributionResult) -> Iterator[Finding]:
    """Yield how the writes of either half of the layers point, seen from the stream."""
    writes = result.writes()
    halves = np.array_split(writes.of_layers(COSINE), [-(-writes.n_layers // 2)], axis=1)
    for name, cosine in zip(_HALVES, halves, strict=True):
        found = estimate(
            cosine.mean(1), weights=writes.n_tokens, groups=writes.groups, seed=writes.seed
        )
        yield Finding("", found, f"cosine of a write and the stream, mean over the {name} half")


def _outputs(result: LayerSkipResult) -> Iterator[Finding]:
    """Yield how far late layers matter more for the output than for later tokens.

    Layer 0 is left out, without which nothing is read, and the last, after which nothing changes.
    """
    n_layers = result.costs.shape[1]
    if not {"all", "future"} <= {*result.scopes} or n_layers < _FEWEST_LAYERS:
        return
    later = result.change_of_later_tokens[:, 1:]
    both = np.stack([result.arrays["all.output_mean"][:, 1:-1], later], axis=2)
    half = n_layers // 2 - 1

    def difference(mean: np.ndarray) -> float:
        output, future = mean[half:].mean(0) / mean[:half].mean(0)
        return float(output - future)

    found = estimate_of(difference, both, groups=result.prompt_groups, seed=result.analysis.seed)
    yield Finding(
        "", found, "second half over first: change of the output less change at later tokens"
    )


def _depths(result: ResidualErasureResult) -> Iterator[Finding]:
    """Yield how many layers lie between the depths at which two inner tokens stop to matter."""
    aligned = result.effects["position.output"]
    inner = 1 + np.flatnonzero(aligned.positions < -1)
    values, taps = aligned.values[:, :, inner], result.taps
    everywhere = ~np.isnan(values).any((0, 1))
    values = values[:, :, everywhere]
    if values.shape[2] == 1:  # of one token there is no difference
        return

    def spread(mean: np.ndarray) -> float:
        matters = mean >= result.analysis.matters
        last = [taps[np.flatnonzero(column)[-1]] for column in matters.T if column.any()]
        return float(max(last) - min(last)) / float(taps[-1]) if last else 0.0

    found = estimate_of(spread, values, groups=result.prompt_groups, seed=result.analysis.seed)
    yield Finding(
        "", found, "share of the depth between the last layers that need two inner tokens"
    )


def _phases(result: VoidDetectionResult) -> Iterator[Finding]:
    """Yield how many more layers a prompt's response uses than the prompt does."""
    by_phase = [map(_by_prompt, result.usage(phase=phase)) for phase in result.phases]
    if len(by_phase) < len(PHASES):
        return
    used = np.stack([np.concatenate([*parts]) for parts in by_phase])
    known = ~np.isnan(used).any(0)
    prompt, response = used[:, known]
    groups = result.groups_of(known)
    found = estimate(response - prompt, groups=groups, seed=result.analysis.seed)
    yield Finding("", found, "share of layers used by a response less by its prompt")


def _by_prompt(usage: Any) -> np.ndarray:
    """Return the mean over a prompt's tokens [prompt] of usage [batch pos], NaN without any."""
    mean: np.ndarray = usage.nanmean(1).double().numpy()
    return mean


def _voids(result: VoidSkipResult) -> Iterator[Finding]:
    """Yield by how much more answers are right with voids skipped than in the full model."""
    frame = result.to_frame()
    chosen = (frame["kind"] == "voids") & (frame["score"] == ACCURACY)
    at = frame[chosen & (frame["alpha"] == result.analysis.alpha)].set_index("evaluation")
    columns = ["difference", "difference_low", "difference_high", "n_prompts"]
    if at.empty:
        return
    value, low, high, n = map(float, at.loc["two-pass", columns].to_numpy(np.float64))
    found = Estimate(value, low, high, int(n))
    yield Finding("", found, "accuracy with voids bypassed less the full model's")


def _paths(result: PathSearchResult) -> Iterator[Finding]:
    """Yield how many answers searched paths repair, and for how many there is a shorter path."""
    shorter = {kind: length < result.n_layers for kind, length in result.lengths.items()}
    for who, chosen, reached in (
        ("wrong answers that search makes right", ~result.is_right, result.reached),
        ("right answers for which search has a shorter path", result.is_right, shorter),
    ):
        if chosen.sum() < FEWEST:
            continue
        groups = result.groups_of(chosen)
        one, other = (share(reached[kind][chosen], groups=groups) for kind in (SEARCH, RANDOM))
        yield Finding("", one, who, control=Compared(RANDOM, other))


def _routed(result: LayerRoutersResult) -> Iterator[Finding]:
    for rule in result.rules:
        yield Finding("", result.lost(rule), f"accuracy by {rule} routers less the full model's")


def _repaired(result: BackPatchingResult) -> Iterator[Finding]:
    """Yield how many failures some pair of layers repairs, and how many some control does."""
    if not result.is_failure.any():
        return
    best = result.best_control("oracle")
    control = Compared(best, result.rate(best, "oracle"))
    repaired, more = (result.rate("back", "oracle", over=over) for over in (None, best))
    yield Finding("", repaired, "failures that some pair of layers repairs", control=control)
    above = "failures that some pair repairs, above the best control's"
    yield Finding("", more, above, kind="compares", control=control)


def _growth(result: StreamStatisticsResult) -> Iterator[Finding]:
    """Yield by how much a line misses the variance more than an exponential does."""
    found = result.line_beyond_exponential()
    yield Finding("", found, "error of a line less that of an exponential, fitted to the variance")


def _correlations(result: PatchingAgreementResult) -> Iterator[Finding]:
    """Yield by how much relevance agrees better with exact patching than attribution does."""
    for kind in result.kinds:
        relevance, attribution = (result.averaged.get((by, kind)) for by in _METHODS)
        if result.behaviour.is_absent or relevance is None or attribution is None:
            continue
        yield Finding(
            "",
            relevance.estimate("pearson", beyond=attribution),
            f"Pearson correlation with exact patching: relevance less attribution ({kind})",
            control=Compared("attribution", attribution.estimate("pearson")),
        )


def _stitched(result: DepthMapResult) -> Iterator[Finding]:
    """Yield what a layer is worth beyond one of an untrained source."""
    frontier = result.frontier
    if frontier is None or "untrained" not in frontier.names or not frontier.own.any(0).all():
        return
    beyond = frontier.slope_beyond("untrained")
    yield Finding("", beyond, "layers of the target that a layer is worth, beyond an untrained one")


def _matched(result: UnitMapResult) -> Iterator[Finding]:
    """Yield by how much neurons correlate more with a target's than with an untrained model's."""
    if result.kinds != KINDS:
        return
    held = result.arrays["tokens"] > 0
    alike = result.arrays["correlation"][held].astype(np.float64).mean(1)  # [prompt kind]
    found = estimate(
        alike[:, 0] - alike[:, -1],
        weights=result.arrays["tokens"][held],
        groups=result.groups_of(held),
        seed=result.analysis.seed,
    )
    yield Finding("", found, "matched neurons' correlation less that with an untrained model's")


_MEASURES: dict[type, Callable[[Any], Iterator[Finding]]] = {
    ResidualContributionResult: _cosines,
    LayerSkipResult: _outputs,
    ResidualErasureResult: _depths,
    VoidDetectionResult: _phases,
    VoidSkipResult: _voids,
    PathSearchResult: _paths,
    LayerRoutersResult: _routed,
    BackPatchingResult: _repaired,
    StreamStatisticsResult: _growth,
    PatchingAgreementResult: _correlations,
    DepthMapResult: _stitched,
    UnitMapResult: _matched,
}
