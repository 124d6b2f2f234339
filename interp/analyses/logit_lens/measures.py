"""The measures of the lens, at every position and over positions."""

import numpy as np

from interp.sweeps.lens import READINGS

LENS_FINAL, FINAL_LENS = "KL(lens‖final), nats", "KL(final‖lens), nats"
PROBABILITY, RANK, FIRST = "answer probability", "answer rank", "answer is first"
OF_ANSWER = (PROBABILITY, RANK, FIRST)
COSINE = "cosine of writes"
ENTROPY, MARGIN = "entropy, nats", "margin of the first guess, nats"


def answered(readings: np.ndarray) -> np.ndarray:
    """Return which prompts [prompt] have an answer."""
    has_answer: np.ndarray = readings[:, 0, -1, READINGS.index("answer_rank")] >= 0
    return has_answer


def at_positions(readings: np.ndarray, *, overlap: str) -> dict[str, np.ndarray]:
    """Return every measure [prompt tap pos] of readings [prompt tap pos reading].

    Measures of the answer cover the prompts that have one, at the positions that any of them has.
    `overlap` is the name of the overlap.
    """
    of = dict(zip(READINGS, np.moveaxis(readings, -1, 0), strict=True))
    at = {
        LENS_FINAL: of["kl_lens_final"],
        FINAL_LENS: of["kl_final_lens"],
        overlap: of["overlap"],
    }
    certain = {ENTROPY: of["entropy"], MARGIN: of["margin"]}
    at |= {name: values for name, values in certain.items() if _is_known(values)}
    has_answer = answered(readings)
    if has_answer.any():
        exists = ~np.isnan(of["answer_rank"][has_answer, 0]).all(0)
        probability, rank = (
            of[name][has_answer][:, :, exists] for name in ("answer_probability", "answer_rank")
        )
        is_first = np.where(np.isnan(rank), rank, rank == 0)
        at |= {PROBABILITY: probability, RANK: rank, FIRST: is_first}
    return at


def _is_known(values: np.ndarray) -> bool:
    """Tell whether all prompts have a reading [prompt tap pos]; those of earlier runs lack some."""
    return not np.isnan(values[:, :, -1]).any()


def over_positions(
    at: dict[str, np.ndarray], *, left_out: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return every measure [prompt tap], a mean over positions; for the answer, at the last.

    `left_out` [prompt] is the position of each prompt that the mean leaves out.
    """
    values = {}
    for measure, of_measure in at.items():
        if measure in OF_ANSWER:
            values[measure] = of_measure[:, :, -1]
            continue
        kept = of_measure.copy()
        if left_out is not None:
            kept[np.arange(len(kept)), :, left_out] = np.nan
        values[measure] = np.nanmean(kept, axis=2)
    return values
