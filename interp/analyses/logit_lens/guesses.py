"""Which tokens the lens guesses, and how many of its guesses stay (arXiv 2510.18871).

A token's band is its place among the model's own final guesses over all prompts, by frequency: the
paper counts a corpus instead, and finds early guesses among its most frequent tokens.
"""

import numpy as np

NO_GUESS = -1
BANDS = (10, 100)
DIFFERS, CHANGES = "guess is not the final one", "guess changes in the layer"
COMMON = {n: f"guess is one of the {n} most frequent" for n in BANDS}


def of_guesses(guesses: np.ndarray, *, begin: np.ndarray) -> dict[str, np.ndarray]:
    """Return measures [prompt tap pos] of the first choices [prompt tap pos], NaN in the padding.

    Final guesses are counted from position `begin` [prompt] on. `CHANGES` has no value after the
    last layer.
    """
    is_there, final = guesses != NO_GUESS, guesses[:, -1:]
    is_counted = is_there[:, -1] & (np.arange(guesses.shape[2]) >= begin[:, None])
    tokens, counts = np.unique(final[:, 0][is_counted], return_counts=True)
    by_frequency = tokens[np.argsort(-counts, kind="stable")]
    are = {DIFFERS: guesses != final, CHANGES: guesses[:, :-1] != guesses[:, 1:]}
    are |= {name: np.isin(guesses, by_frequency[:n]) for n, name in COMMON.items()}
    return {
        name: np.where(is_there[:, : each.shape[1]], each, np.nan) for name, each in are.items()
    }
