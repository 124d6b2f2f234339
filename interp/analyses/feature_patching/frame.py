"""The numbers of patched features as a tidy frame."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.stats.agreement import MEASURES
from interp.stats.estimate import Estimate

if TYPE_CHECKING:
    from interp.analyses.feature_patching.result import FeaturePatchingResult

COLUMNS = ["statistic", "kind", "method", "dictionary", "feature", "n"]
NUMBERS = ["mean", "low", "high", "n_prompts"]
Row = dict[str, object]


def frame_of(result: "FeaturePatchingResult") -> pd.DataFrame:
    """Return columns statistic, kind, method, dictionary, feature, n, and an estimate's.

    "node": a node patched alone, by method ("exact" is patching); in the metric's unit, and the
    nodes were chosen on the same prompts. "site": the sum of a dictionary's scores, of its
    "features" and "error". "dictionary": the "explained" share of variance and the number of active
    features, "l0". "share": of the gap, with `n` nodes patched together, which were chosen on other
    prompts. "faithfulness" and "completeness": of the `n` largest. "agreement": a measure (`kind`)
    of a method's scores with exact patching; method "distance", the control, has "pearson" only.
    """
    rows = [*_nodes(result), *_dictionaries(result), *_together(result), *_agreement(result)]
    frame = pd.DataFrame(rows).reindex(columns=COLUMNS + NUMBERS)
    return frame.astype({"feature": "Int64", "n": "Int64"})


def _nodes(result: "FeaturePatchingResult") -> Iterator[Row]:
    values = {"exact": result.values["exact"]}
    for i, method in enumerate(result.analysis.methods):
        values[method] = result.values["scores"][:, i]
    for i, ((dictionary, feature), kind) in enumerate(zip(result.nodes, result.kinds, strict=True)):
        which = {"kind": kind, "dictionary": dictionary, "feature": feature}
        for name, each in values.items():
            yield _row("node", result.mean(each[:, i]), method=name, **which)


def _dictionaries(result: "FeaturePatchingResult") -> Iterator[Row]:
    n = len(result.values["base"])
    for d, name in enumerate(result.dictionaries):
        for i, method in enumerate(result.analysis.methods):
            for part, kind in enumerate(("features", "error")):
                sums = result.mean(result.values["sums"][:, i, d, part])
                yield _row("site", sums, kind=kind, method=method, dictionary=name)
        explained = Estimate(result.explained(name), n=n)
        yield _row("dictionary", explained, kind="explained", dictionary=name)
        active = result.mean(result.values["fit"][:, d, 2])
        yield _row("dictionary", active, kind="l0", dictionary=name)


def _together(result: "FeaturePatchingResult") -> Iterator[Row]:
    for n in result.analysis.all_sizes:
        for kind in ("largest", "random", "rest"):
            yield _row("share", result.share(kind, n), kind=kind, n=n)
        yield _row("faithfulness", result.faithfulness(n), kind="largest", n=n)
        yield _row("completeness", result.completeness(n), kind="largest", n=n)
    for kind in ("features", "errors", "all"):
        yield _row("share", result.share(kind), kind=kind)


def _agreement(result: "FeaturePatchingResult") -> Iterator[Row]:
    for method, resampled in result.agreement.items():
        for measure in MEASURES:
            if method == "distance" and measure != "pearson":
                continue  # it has neither the effects' unit nor their sign
            number = resampled.estimate(measure)
            if measure == "mean absolute error" and result.behaviour.is_absent:
                number = Estimate(np.nan, n=number.n)
            yield _row("agreement", number, kind=measure, method=method)


def _row(statistic: str, number: Estimate, **which: object) -> Row:
    return {"statistic": statistic, **which, **number.columns()}
