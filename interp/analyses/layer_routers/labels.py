"""Routes to imitate: the shortest ones that a search knows to be right."""

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.analyses.layer_routers.routes import MOST_RUNS, Rows, Visits
from interp.replay import Recording
from interp.sweeps.answers import require_answers
from interp.sweeps.path_scores import PathScorer, Search, Try, shortest_right
from interp.sweeps.path_tree import Path, ordinary
from interp.sweeps.prefix_tree import prompts_at_once
from interp.sweeps.tags import draw_seed
from interp.tasks.batch import TokenBatch


def shortest_routes(
    recording: Recording, shard: TokenBatch, rows: Rows, *, n_simulations: int, seed: int
) -> tuple[Visits, Bool[Tensor, " rows"]]:
    """Return how often each layer runs on a prompt's shortest right path, and whether it has one.

    Paths keep the order of layers, each of which runs at most twice. Prompts without a right path
    run every layer once.
    """
    n_layers, device = recording.n_layers, recording.tokens.device
    search = Search(n_simulations=n_simulations, longest_segment=1, most_repeats=1)
    size = prompts_at_once(recording, n_paths=n_simulations)
    paths: list[Path | None] = []
    numbers = [int(row) for row in rows]
    for some in (numbers[i : i + size] for i in range(0, len(numbers), size)):
        seeds = {row: draw_seed(shard.prompts[row].id, seed=seed) for row in some}
        scorer = PathScorer(recording, some, require_answers(shard)[:, :1])
        tries = search.run(scorer, seeds, n_layers=n_layers)
        paths += [_shortest(tries[row]) for row in some]
    visits = [visits_of(path or ordinary(n_layers), n_layers) for path in paths]
    shape = (len(numbers), n_layers)
    return (
        torch.tensor(visits, dtype=torch.int64, device=device).reshape(shape),
        torch.tensor([path is not None for path in paths], dtype=torch.bool, device=device),
    )


def _shortest(tries: list[Try]) -> Path | None:
    return shortest_right([each for each in tries if _is_route(each.path)])


def _is_route(path: Path) -> bool:
    """Tell whether layers are in order, and none runs too often."""
    return [*path] == sorted(path) and max(map(path.count, path)) <= MOST_RUNS


def visits_of(path: Path, n_layers: int) -> list[int]:
    """Return how often each layer is on a path."""
    return [path.count(layer) for layer in range(n_layers)]
