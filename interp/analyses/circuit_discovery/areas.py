"""How faithful circuits are over all sizes, and which size is chosen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interp.stats.groups import Grouping

if TYPE_CHECKING:
    from interp.analyses.circuit_discovery import CircuitDiscovery

MARGIN = 0.1  # a circuit is faithful where f is in 1 ± this; above, other edges speak against it
# the fractions and, for each area, the ranking of MIB (arXiv 2504.13151)
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
AREAS = {"CPR": "signed", "CMD": "absolute"}


def chosen_at(
    kept: NDArray[np.float64], gap: NDArray[np.float64], *, is_part: NDArray[np.bool_]
) -> int:
    """Return the index of the smallest faithful circuit, or else of the one closest to it.

    `kept` [prompt fraction] is what circuits keep of the `gap` [prompt]; only those that are part
    of the whole count, unless none is.
    """
    miss = np.abs(kept.mean(0) - gap.mean())
    miss = np.where(is_part | ~is_part.any(), miss, np.inf)
    good = miss <= MARGIN * abs(gap.mean())
    return int(good.argmax() if good.any() else miss.argmin())


def chosen_by_halves(
    values: NDArray[np.float64],
    n_edges: Sequence[int],
    *,
    groups: NDArray[np.int64],
    seed: int,
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Return the half (0, 1) of each prompt, and the fraction that each half chooses.

    `values` [prompt fraction+2] end with those of all edges and of none. A group of prompts stays
    in one half; where there is only one group, all prompts choose for both.
    """
    kept, gap = values[:, :-2] - values[:, -1:], values[:, -2] - values[:, -1]
    is_part = np.array(n_edges[:-1]) < n_edges[-1]
    first = Grouping.of(len(values), groups).half(seed=seed)
    rows = [first, ~first] if first.any() and not first.all() else [slice(None)] * 2
    one, other = (chosen_at(kept[half], gap[half], is_part=is_part) for half in rows)
    return 1 - first.astype(np.int64), (one, other)


def area_of(name: str, faithfulness: NDArray[np.float64], fractions: Sequence[float]) -> float:
    """Return CPR, the mean of f over the range of fractions, or CMD, that of |1 - f|."""
    height = faithfulness if name == "CPR" else np.abs(1 - faithfulness)
    return float(np.trapezoid(height, fractions) / (fractions[-1] - fractions[0]))


def why_not_comparable(name: str, analysis: "CircuitDiscovery") -> str:
    """Return "" if an area is measured as in MIB, or else what sets it apart."""
    differs = {
        "fractions": analysis.fractions != MIB_FRACTIONS,
        "metric": analysis.metric != "logit_diff",
        "ablation": analysis.ablation != "corrupted",
        "ranking": analysis.ranking != AREAS[name],
    }
    apart = ", ".join(what for what, is_other in differs.items() if is_other)
    return f"not comparable with published values: other {apart}" if apart else ""
