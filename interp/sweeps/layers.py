"""Some of a model's layers, for a first look at all of its depth."""

COARSEST = 8  # layers from one that is looked at to the next, at most


def every_nth(n_layers: int, every: int) -> list[int]:
    """Return every n-th layer, the last among them."""
    return [*range((n_layers - 1) % every, n_layers, every)]
