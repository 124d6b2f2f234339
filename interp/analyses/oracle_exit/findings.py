"""What leaving by a rule gains on everyone's leaving at the same mean depth, in words."""

from typing import TYPE_CHECKING

from interp.figures.words import how_often
from interp.numerals import number
from interp.result import Compared, Finding
from interp.stats.estimate import estimate
from interp.stats.shares import share

if TYPE_CHECKING:
    from interp.analyses.oracle_exit.result import OracleExitResult

ORACLE, RIGHT = "oracle", "accuracy"
_FIXED = "everyone leaving at the same mean depth"


def findings_of(result: "OracleExitResult") -> tuple[Finding, ...]:
    """Return what a rule gains on a fixed exit, and where the final choice is first there."""
    depths, seed = result.rules[ORACLE] / result.n_layers, result.analysis.seed
    depth = estimate(depths, groups=result.prompt_groups, seed=seed)
    oracle = Finding(
        f"With hindsight, the final choice is there after {depth:.0%} of the layers.",
        depth,
        "share of layers until the final choice is there, with hindsight",
        note="agrees with the full model by construction",
    )
    first, *more = [_rule_finding(result, k) for k in result.analysis.stable_for[:2]]
    return (first, oracle, *more)


def _rule_finding(result: "OracleExitResult", k: int) -> Finding:
    exits, score = result.rules[f"same choice {k} times"], result.scores[-1]
    gain = result.above_fixed(exits, score)
    does = "is right" if score == RIGHT else "agrees with the full model"
    how = f"{does} {how_often(gain, _FIXED)}."
    if not gain.has_interval:
        how = f"cannot be compared with {_FIXED}: too few prompts."
    full = result.score(result.everyone_at(result.n_layers), score)
    return Finding(
        f"Leaving after {k} equal choices {how}",
        gain,
        f"{score} when leaving after {k} equal choices, above {_FIXED}",
        control=Compared(_FIXED, share(result.fixed(exits, score), groups=result.prompt_groups)),
        rival=Compared("the full model", share(full, groups=result.prompt_groups)),
        kind="compares",
        note=f"on average at {number(exits.mean() / result.n_layers, '.0%')} of the depth, both",
    )
