"""Is a model's number beyond those of a few other models, such as its untrained twins?"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from interp.stats.bootstrap import QUANTILES
from interp.stats.estimate import NAN, Estimate


def beyond(own: Estimate, others: ArrayLike) -> Estimate:
    """Return a model's number less the mean of other models' [model], two at least.

    The interval is of one more such model against those: it knows the prompts, by that of `own`,
    and how much the others differ from each other. Without one, there is none here.
    """
    array = np.asarray(others, np.float64)
    between = NAN
    if len(array) > 1:
        between = float(stdtrit(len(array) - 1, QUANTILES[1])) * float(array.std(ddof=1))
        between *= float(np.sqrt(1 + 1 / len(array)))
    low, high = (float(np.hypot(own.value - end, between)) for end in (own.low, own.high))
    value = own.value - float(array.mean())
    return Estimate(value, value - low, value + high, own.n, own.n_groups)
