"""Rates of success with their intervals."""

from dataclasses import dataclass

import numpy as np

from interp.stats.bootstrap import bootstrap_interval


@dataclass(frozen=True)
class Rate:
    """A share of prompts, or a difference of shares, with its 95 % bootstrap interval over `n`
    prompts.
    """

    share: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, scores: np.ndarray, *, seed: int = 0) -> "Rate":
        """Return the mean of scores [prompt]."""
        (low,), (high,) = bootstrap_interval(scores[:, None].astype(np.float64), seed=seed)
        return cls(float(scores.mean()), float(low), float(high), len(scores))

    def columns(self) -> dict[str, object]:
        """Return it as columns of a frame."""
        return {"rate": self.share, "low": self.low, "high": self.high, "n_prompts": self.n}

    @property
    def as_gain(self) -> str:
        """Return a difference in words."""
        share, low, high = (round(100 * x) for x in (self.share, self.low, self.high))
        clear = "" if self.low > 0 or self.high < 0 else ", not clear"
        return f"gain {share} points [{low} to {high}]{clear}"
