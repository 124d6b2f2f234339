"""Simulate how often 95 % intervals hold the truth, and update docs/intervals.md.

Every kind of interval is asked on samples whose truth is known: 2,000 samples of 8, 32 and 128
prompts (shares: every possible sample, weighted by its probability, for 199 true shares).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from interp.stats.estimate import (
    Estimate,
    estimate,
    estimate_difference,
    estimate_of,
    ratio,
)
from interp.stats.picked import band, picked
from interp.stats.shares import share, share_difference

PAGE, START = Path(__file__).parent.parent / "docs" / "intervals.md", "| kind |"
SIZES = (8, 32, 128)
N_SAMPLES = 2000
Rng = np.random.Generator
Trial = Callable[[Rng, int, int], bool]  # generator, number of prompts, seed -> is the truth held?


def holds(made: Estimate, truth: float) -> bool:
    """Tell whether an interval is there and holds the truth."""
    return made.has_interval and made.low - 1e-12 <= truth <= made.high + 1e-12


def _groups(rng: Rng, n: int, seed: int) -> bool:
    groups = np.arange(n) // 4
    values = rng.normal(size=n // 4)[groups] + rng.normal(size=n)
    return holds(estimate(values, groups=groups, seed=seed), 0)


def _grouped_share(rng: Rng, n: int, _: int) -> bool:
    groups = np.arange(n) // 4
    likely = rng.beta(2, 2, size=n // 4)[groups]
    return holds(share(rng.random(n) < likely, groups=groups), 0.5)


def _sparse(rng: Rng, n: int, seed: int) -> bool:
    values = rng.exponential(size=n) * (rng.random(n) < 0.1)
    return holds(estimate(values, seed=seed), 0.1)


def _ratio(rng: Rng, n: int, seed: int) -> bool:
    below = rng.normal(3, 1, size=n)
    return holds(ratio(0.5 * below + rng.normal(0.5, 0.5, size=n), below, seed=seed), 2 / 3)


def _difference(rng: Rng, n: int, seed: int) -> bool:
    one, other = rng.normal(1, 1, size=n), rng.normal(0, 2, size=n)
    return holds(estimate_difference(one, other, seed=seed), 1)


def _crossing(rng: Rng, n: int, seed: int) -> bool:
    curves = np.arange(12) / 11 + rng.normal(0, 0.3, size=(n, 12))

    def crossing(mean: np.ndarray) -> float:
        return float(np.interp(0.5, np.maximum.accumulate(mean), np.arange(12)))

    return holds(estimate_of(crossing, curves, seed=seed), 5.5)


def _share_difference(rng: Rng, n: int, _: int) -> bool:
    first = rng.random(n) < 0.6
    second = np.where(rng.random(n) < 0.3, rng.random(n) < 0.4, first)
    return holds(share_difference(first, second), 0.6 - (0.7 * 0.6 + 0.3 * 0.4))


def _alike(rng: Rng, n: int, seed: int) -> bool:
    return holds(picked(rng.normal(size=(n, 30)), seed=seed).estimate, 0)


def _three_alike(rng: Rng, n: int, seed: int) -> bool:
    return holds(picked(rng.normal(size=(n, 3)), seed=seed).estimate, 0)


def _clear(rng: Rng, n: int, seed: int) -> bool:
    values = rng.normal(size=(n, 30))
    values[:, 7] += 2
    return holds(picked(values, seed=seed).estimate, 2)


def _band(rng: Rng, n: int, seed: int) -> bool:
    low, high = band(rng.normal(size=(n, 30)), seed=seed)
    return bool(((low <= 0) & (high >= 0)).all())


TRIALS: dict[str, Trial] = {
    "mean, normal": lambda rng, n, seed: holds(estimate(rng.normal(size=n), seed=seed), 0),
    "mean, of groups of 4": _groups,
    "mean, exponential": lambda rng, n, seed: holds(
        estimate(rng.exponential(size=n), seed=seed), 1
    ),
    "mean, log-normal": lambda rng, n, seed: holds(
        estimate(rng.lognormal(size=n), seed=seed), float(np.exp(0.5))
    ),
    "mean, nine of ten are 0": _sparse,
    "ratio of means": _ratio,
    "difference of two samples": _difference,
    "depth where a curve crosses": _crossing,
    "difference of two shares": _share_difference,
    "share, of groups of 4": _grouped_share,
    "picked of 30 that are alike": _alike,
    "picked of 3 that are alike": _three_alike,
    "picked of 30, one best": _clear,
    "band over 30": _band,
}
SKEWED = ("mean, exponential", "mean, log-normal", "mean, nine of ten are 0")


def coverage(kind: str, n: int, *, n_samples: int = N_SAMPLES) -> float:
    """Return how often intervals of a kind hold the truth; a sample without one does not count."""
    rng = np.random.default_rng([n, list(TRIALS).index(kind)])
    return float(np.mean([TRIALS[kind](rng, n, seed) for seed in range(n_samples)]))


def of_shares(n: int) -> tuple[float, float]:
    """Return the mean and the least coverage of `share` over true shares of 0.5 % to 99.5 %."""
    truths = np.linspace(0.005, 0.995, 199)
    made = [share(np.arange(n) < k) for k in range(n + 1)]
    held = np.array([[holds(each, truth) for each in made] for truth in truths])
    covered = (stats.binom.pmf(np.arange(n + 1), n, truths[:, None]) * held).sum(1)
    return float(covered.mean()), float(covered.min())


def table() -> str:
    """Return the table of docs/intervals.md."""
    head = f"{START} {' | '.join(f'{n} prompts' for n in SIZES)} |\n|{' --- |' * (len(SIZES) + 1)}"
    lines = [head]
    for kind in TRIALS:
        # groups of 4 prompts: 8 prompts are 2 groups, which have no interval
        cells = ["–" if "groups" in kind and n < 20 else f"{coverage(kind, n):.1%}" for n in SIZES]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    means, least = zip(*map(of_shares, SIZES), strict=True)
    for name, numbers in (("share, mean over all", means), ("share, the worst", least)):
        lines.append(f"| {name} | {' | '.join(f'{x:.1%}' for x in numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text()
    before = text[: text.index(START)]
    PAGE.write_text(before + table())


if __name__ == "__main__":
    main()
