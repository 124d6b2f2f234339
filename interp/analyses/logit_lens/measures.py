"""The measures of the lens, and the effective depths that are made of their curves."""

import numpy as np

from interp.sweeps.lens import READINGS

LENS_FINAL, FINAL_LENS = "KL(lens‖final), nats", "KL(final‖lens), nats"
PROBABILITY, RANK, FIRST = "answer probability", "answer rank", "answer is first"
OF_ANSWER = (PROBABILITY, RANK, FIRST)
COSINE = "cosine of writes"


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
    has_answer = of["answer_rank"][:, 0, -1] >= 0
    if has_answer.any():
        exists = ~np.isnan(of["answer_rank"][has_answer, 0]).all(0)
        probability, rank = (
            of[name][has_answer][:, :, exists] for name in ("answer_probability", "answer_rank")
        )
        is_first = np.where(np.isnan(rank), rank, rank == 0)
        at |= {PROBABILITY: probability, RANK: rank, FIRST: is_first}
    return at


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


def effective_depths(
    *,
    kl: np.ndarray,
    overlap: np.ndarray,
    cosine: np.ndarray,
    kl_share: float = 0.5,
    overlap_above: float = 0.3,
) -> dict[str, int | None]:
    """Return the three effective depths of arXiv 2512.14064, as layers; None where never reached.

    Curves have one value a layer (read in front of it). "cosine": the last layer that erases and is
    followed by one that does not (mean cosine of attention's, MLP's and the layer's write); "KL":
    the first with KL(lens‖final) below `kl_share` of its maximum; "overlap": the first with an
    overlap above `overlap_above`. The last layer never counts, as published.
    """
    layers = range(len(kl) - 1)
    return {
        "cosine": next(
            (layer for layer in reversed(layers) if cosine[layer] < 0 <= cosine[layer + 1]), None
        ),
        "KL": next((layer for layer in layers if kl[layer] < kl_share * kl.max()), None),
        "overlap": next((layer for layer in layers if overlap[layer] > overlap_above), None),
    }
