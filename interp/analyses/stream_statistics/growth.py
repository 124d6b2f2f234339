"""How the variance of the stream grows over depth: as a line, or as an exponential."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GrowthLaw:
    """A growth law: variance = intercept + slope·tap, or its logarithm; `r2` on its own scale.

    `error` is the root mean square error of the variance itself, as a share of its mean, so that
    two laws can be compared.
    """

    intercept: float
    slope: float
    r2: float
    error: float


def growth_fits(variance: np.ndarray, *, fit_from: int = 0) -> dict[str, GrowthLaw]:
    """Return both laws fitted by least squares to the variance [tap] from tap `fit_from` on."""
    taps = np.arange(fit_from, len(variance))
    truth = variance[fit_from:].astype(np.float64)
    fits = {}
    for name, scale, back in (("linear", np.array, np.array), ("exponential", np.log, np.exp)):
        target = scale(truth)
        slope, intercept = np.polyfit(taps, target, 1)
        fitted = intercept + slope * taps
        spread = ((target - target.mean()) ** 2).sum()
        r2 = 1 - ((target - fitted) ** 2).sum() / spread if spread > 0 else 1.0
        error = np.sqrt(((back(fitted) - truth) ** 2).mean()) / truth.mean()
        fits[name] = GrowthLaw(float(intercept), float(slope), float(r2), float(error))
    return fits
