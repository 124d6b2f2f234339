"""The numbers of a recursion as a tidy frame."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.analyses.recursion.low_rank import ENERGIES
from interp.analyses.recursion.whole import OUTCOMES
from interp.models.loops import SVD
from interp.stats.estimate import estimates
from interp.stats.shares import shares

if TYPE_CHECKING:
    from interp.analyses.recursion.result import RecursionResult

MEASURES = {
    "kl": "KL(clean‖changed), nats",
    "same": "share of first tokens that stay",
    "log_prob": "log-probability of the answer, nats",
    "accuracy": "accuracy",
}
ERROR = "error of the weights, ‖W - W'‖ / ‖W‖"
NEEDED = "rank that holds 90 % of the energy, as a share of the full rank"
RELATION = "rank correlation with KL"
_COLUMNS = ("what", "name", "shared", "rank", "kept", "layer", "other", "matrix", "measure")


def frame_of(result: "RecursionResult") -> pd.DataFrame:
    """Return all numbers, as `RecursionResult.to_frame` describes them."""
    frames = [*_loop_rows(result), *_alone_rows(result), *_pair_rows(result)]
    frames += [*_weight_rows(result), *_relation_rows(result)]
    columns = [*_COLUMNS, "mean", "low", "high", "n_prompts"]
    whole = pd.concat([frame.reindex(columns=columns) for frame in frames], ignore_index=True)
    whole["name"] = whole["name"].fillna("").astype("str")
    integers = ("shared", "rank", "layer", "other", "matrix", "n_prompts")
    floats = dict.fromkeys(("kept", "mean", "low", "high"), "float64")
    return whole.astype(dict.fromkeys(integers, "Int64") | floats)


def _outcomes(result: "RecursionResult") -> list[str]:
    known = ~np.isnan(result.arrays["alone"]).any(axis=(0, 1, 2))
    return [name for name, there in zip(OUTCOMES, known, strict=True) if there]


def _estimates(
    result: "RecursionResult", values: np.ndarray, outcome: str
) -> dict[str, np.ndarray]:
    if outcome in ("same", "accuracy"):
        return shares(values, groups=result.prompt_groups)
    return estimates(values, groups=result.prompt_groups, seed=result.analysis.seed)


def _loop_rows(result: "RecursionResult") -> Iterator[pd.DataFrame]:
    rows = result.variants.drop(columns="draw")
    for i, name in enumerate(OUTCOMES):
        if name in _outcomes(result):
            columns = _estimates(result, result.arrays["loops"][..., i], name)
            yield rows.assign(what="loop", measure=MEASURES[name], **columns)


def _alone_rows(result: "RecursionResult") -> Iterator[pd.DataFrame]:
    for i, name in enumerate(OUTCOMES):
        for j, init in enumerate(result.analysis.inits if name in _outcomes(result) else ()):
            columns = _estimates(result, result.arrays["alone"][:, j, :, i], name)
            rows = {"what": "alone", "name": init, "shared": result.numbers[0], "rank": 0}
            layers = np.arange(len(columns["mean"]))
            yield pd.DataFrame(rows | {"layer": layers, "measure": MEASURES[name]} | columns)


def _pair_rows(result: "RecursionResult") -> Iterator[pd.DataFrame]:
    layers = {"layer": [each.layer for each in result.pairs]}
    layers |= {"other": [each.other or 0 for each in result.pairs]}
    for i, name in enumerate(OUTCOMES if result.pairs else ()):
        if name in _outcomes(result):
            columns = _estimates(result, result.arrays["grid"][..., i], name)
            yield pd.DataFrame({"what": "pair", "measure": MEASURES[name]} | layers | columns)
    for name in ("cka", "cosine") if result.pairs else ():
        words = {"cka": "CKA of outputs", "cosine": "cosine of weights"}[name]
        rows = {"what": "pair", "measure": words} | layers
        yield pd.DataFrame(rows | {"mean": result.arrays[name][0].astype(np.float64)})


def _weight_rows(result: "RecursionResult") -> Iterator[pd.DataFrame]:
    rows = result.variants.drop(columns="draw")
    error = result.arrays["error"][0].astype(np.float64)
    yield rows.assign(what="weights", measure=ERROR, mean=error)
    needed = result.arrays["needed"][0, ..., ENERGIES.index(0.9)].astype(np.float64)
    loops = result.variants[result.variants["name"] != SVD]
    named = loops.drop_duplicates(["name", "shared", "draw"])[["name", "shared"]]
    whole = pd.DataFrame({"name": [SVD], "shared": [0]})
    layer, matrix = (axis.ravel() for axis in np.indices(needed.shape[1:]))
    for (name, n_shared), values in zip(
        pd.concat([named, whole]).itertuples(index=False), needed, strict=True
    ):
        of = {"what": "weights", "name": name, "shared": n_shared, "measure": NEEDED}
        frame = pd.DataFrame(of | {"layer": layer, "matrix": matrix, "mean": values.ravel()})
        yield frame.dropna(subset="mean")


def _relation_rows(result: "RecursionResult") -> Iterator[pd.DataFrame]:
    for name, of in result.relations.items():
        rows = {"what": "relation", "name": name, "measure": RELATION}
        yield pd.DataFrame([rows | of.columns()])
    measure = "KL of the strict loop over the sum of its layers' alone"
    rows = {"what": "additivity", "name": result.analysis.inits[0], "measure": measure}
    yield pd.DataFrame([rows | {"shared": result.numbers[0]} | result.additivity.columns()])
