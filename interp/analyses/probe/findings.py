"""Where a probe first reads more than embedding and untrained models give, in words."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.analyses.probe.labels import RIGHT
from interp.figures.words import how_picked, points, shortened
from interp.result import Compared, Finding
from interp.stats.estimate import Estimate
from interp.stats.picked import picked

if TYPE_CHECKING:
    from interp.analyses.probe.result import ProbeResult


def findings_of(result: "ProbeResult") -> tuple[Finding, ...]:
    """Return where the label is first read beyond the baselines, and the best probe's numbers."""
    frame = result.to_frame()
    best = picked(result.scores("accuracy"), groups=result.prompt_groups, seed=result.analysis.seed)
    return (
        _first(result, frame),
        _best(result, frame, best.index, best.estimate),
        _compressed(result, frame, best.index),
    )


def _first(result: "ProbeResult", frame: pd.DataFrame) -> Finding:
    is_beyond = (frame["beyond_low"] > 0).to_numpy()
    tap = (
        int(is_beyond.argmax())
        if is_beyond.any()
        else int(frame["beyond"].to_numpy()[1:].argmax()) + 1
    )
    gain, what = _at(result, frame, "beyond", tap), _read(result)
    embedding = Compared("a probe of the embedding", _at(result, frame, "accuracy", 0))
    baselines, control = "the embedding's", embedding
    if result.has_twins:
        baselines = "the embedding's and untrained models'"
        control = Compared("untrained models", _at(result, frame, "untrained", tap))
    claim = (
        f"The first probe to read {what} better than {baselines} is {_place(result, tap)}:"
        f" by {points(gain)}."
        if is_beyond.any()
        else f"No probe reads {what} better than {baselines}: by {points(gain)} at most."
    )
    return Finding(
        claim,
        gain,
        "accuracy of the first better probe, above the embedding's and untrained models'",
        control=control,
        rival=embedding,
        kind="compares",
        note="the interval is for all layers at once",
    )


def _best(result: "ProbeResult", frame: pd.DataFrame, tap: int, accuracy: Estimate) -> Finding:
    name = "untrained" if result.has_twins else "majority"
    rival = "untrained models" if result.has_twins else "the most frequent label"
    return Finding(
        f"The best probe, {_place(result, tap)}, reads {_read(result)} of {accuracy:.0%}"
        " of the prompts of new groups.",
        accuracy,
        "accuracy of the best probe, on groups that it has not met",
        control=Compared(
            "random labels of groups that it has met", _at(result, frame, "control", tap)
        ),
        rival=Compared(rival, _at(result, frame, name, tap)),
        note=how_picked(accuracy),
    )


def _compressed(result: "ProbeResult", frame: pd.DataFrame, tap: int) -> Finding:
    compression = _at(result, frame, "compression", tap)
    return Finding(
        f"There, the stream compresses the labels by a factor of {compression:.2g}.",
        compression,
        "compression of the labels by the online code of the best probe's stream",
        control=Compared("shuffled labels", _at(result, frame, "shuffled_compression", tap)),
        rival=Compared("the embedding", _at(result, frame, "compression", 0)),
        note="layer picked by accuracy",
    )


def _at(result: "ProbeResult", frame: pd.DataFrame, name: str, tap: int) -> Estimate:
    """Return a number of the frame at a tap, with its interval."""
    value, low, high = (float(frame[key][tap]) for key in (name, f"{name}_low", f"{name}_high"))
    n, groups = int(frame["n_prompts"][tap]), result.prompt_groups
    return Estimate(value, low, high, n, n if groups is None else len(np.unique(groups)))


def _read(result: "ProbeResult") -> str:
    if result.label == RIGHT:
        return "whether the answer is right"
    return f"the {shortened(result.label, most=24)}"


def _place(result: "ProbeResult", tap: int) -> str:
    return "after the last layer" if tap == result.n_layers else f"before layer {tap}"
