"""The numbers of back-patching as a frame."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from interp.analyses.back_patching.failures import Failures
from interp.stats.shares import share, shares

_WORDS = dict.fromkeys(("group", "statistic", "kind"), "str")
_WHOLE = dict.fromkeys(("source", "target", "tries", "n_prompts"), "Int64")
_REAL = dict.fromkeys(("rate", "low", "high", "rank", "log_prob", "difference", "kept"), "float64")

Row = dict[str, object]


def whole_frame(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the groups' frames as one."""
    parts = [frame.assign(group=group).astype(object) for group, frame in frames.items()]
    types = _WORDS | _WHOLE | _REAL
    return pd.concat(parts, ignore_index=True).reindex(columns=[*types]).astype(types)


def group_frame(result: Failures) -> pd.DataFrame:
    """Return a group's rates, gains, pairs of layers and readings of the lens."""
    if not result.is_failure.any():
        nothing = {"statistic": "oracle", "n_prompts": 0}
        return pd.DataFrame([nothing | {"kind": kind} for kind in result.kinds])
    rows = [*_rates(result, "oracle"), *_rates(result, "fixed"), *_lens(result)]
    of_pairs = [_of_pairs(result, kind) for kind in result.kinds if kind != "sampled"]
    return pd.concat([frame.astype(object) for frame in (pd.DataFrame(rows), *of_pairs)])


def _rates(result: Failures, statistic: str) -> Iterator[Row]:
    tries: Row = {"tries": result.n_tries if statistic == "oracle" else 1}
    for kind in result.kinds:
        row: Row = {"statistic": statistic, "kind": kind} | tries
        if statistic == "fixed" and kind != "sampled":
            row |= zip(("source", "target"), result.best_pair(kind), strict=True)
        yield row | result.rate(kind, statistic).columns("rate")
    for kind in result.rivals:
        gain = result.rate("back", statistic, over=kind)
        yield tries | {"statistic": f"{statistic} gain", "kind": kind} | gain.columns("rate")


def _lens(result: Failures) -> Iterator[Row]:
    right = result.arrays["is_right"]
    for kind, which in (("failures", result.is_failure), ("right answers", right)):
        if not (which & result.has_bridge).any():
            continue
        for layer, scores in enumerate(result.readable(which).T):
            rate = share(scores, groups=result.groups_of(which & result.has_bridge))
            row: Row = {"statistic": "lens", "kind": kind, "source": layer}
            yield row | rate.columns("rate")


def _of_pairs(result: Failures, kind: str) -> pd.DataFrame:
    sources, targets = result.pairs(kind)
    repaired = shares(result.repaired(kind), groups=result.grouping.codes)
    keys = {"statistic": "pair", "kind": kind, "source": sources, "target": targets, "tries": 1}
    failed, bridged = result.is_failure, result.is_failure & result.has_bridge
    effects = {
        "rank": result.of_pairs(kind, "rank")[failed].mean(0),
        "log_prob": np.nan,
        "difference": np.nan,
        "kept": result.kept(kind),
    }
    if "own.log_prob" in result.arrays:  # parts of interp 0.1 have the answer's logit
        effects["log_prob"] = result.of_pairs(kind, "log_prob")[failed].mean(0)
    if bridged.any():
        effects["difference"] = result.of_pairs(kind, "difference")[bridged].mean(0)
    return pd.DataFrame(keys | repaired | effects).rename(columns={"mean": "rate"})
