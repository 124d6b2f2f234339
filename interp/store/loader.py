"""Token by token through a corpus, shuffled, in batches: what probes and dictionaries are trained on.

Shuffling never reads the corpus at random: runs of prompts are shuffled, `pool` of them are opened at a time, and tokens are
shuffled among those. Every worker of a DataLoader walks through the same order and reads only the batches that are its own,
so the batches, and their order, are the same for any number of workers.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from interp.errors import StoreError
from interp.sites import Site
from interp.store.corpus import Corpus
from interp.store.keys import TOKENS

Batch = dict[str, Tensor]
_POOL = 8


class TokenVectors(IterableDataset[Batch]):
    """Batches of tokens: `{"tokens": [batch], str(site): [batch ...]}`, each token once; for `DataLoader(batch_size=None)`.

    With a `seed` tokens are shuffled, each seed another order (one per epoch); without, they come in the corpus's order. The
    last batch may be smaller.
    """

    def __init__(self, corpus: Corpus, sites: Sequence[Site], *, batch_size: int, seed: int | None = None) -> None:
        if batch_size < 1:
            raise StoreError(f"batch_size={batch_size} given; at least 1 is needed")
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        self.parts = {TOKENS: TOKENS} | {str(site): corpus.part(site) for site in sites}
        self._runs = [corpus.manifest.runs[part] for part in self.parts.values()]
        if any(runs != self._runs[0] for runs in self._runs):
            raise StoreError("these sites lie in different shards; capture them in one call, or take them one at a time")

    def __len__(self) -> int:
        return -(-self.corpus.n_tokens // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, (shards, rows) in enumerate(self._batches()):
            if number % n_workers == mine:
                yield {name: self._gather(part, shards, rows) for name, part in self.parts.items()}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, per batch, the run [batch] of every token and its row [batch] in that run; reads headers only."""
        n_runs = len(self._runs[0])
        generator = torch.Generator().manual_seed(self.seed or 0)
        order = torch.arange(n_runs) if self.seed is None else torch.randperm(n_runs, generator=generator)
        rest = torch.empty(2, 0, dtype=torch.long)
        for first in range(0, n_runs, _POOL):
            places = [rest, *(self._places(run) for run in order[first : first + _POOL].tolist())]
            rest = torch.cat(places, dim=1)
            if self.seed is not None:
                rest = rest[:, torch.randperm(rest.shape[1], generator=generator)]
            while rest.shape[1] >= self.batch_size:
                yield rest[0, : self.batch_size], rest[1, : self.batch_size]
                rest = rest[:, self.batch_size :]
        if rest.shape[1]:
            yield rest[0], rest[1]

    def _places(self, run: int) -> Tensor:
        about = self._runs[0][run]
        starts = self.corpus.reader.header(about.shard).starts
        n_rows = starts[about.first + about.n_prompts] - starts[about.first]
        return torch.stack([torch.full((n_rows,), run), torch.arange(n_rows)])

    def _gather(self, part: str, shards: Tensor, rows: Tensor) -> Tensor:
        gathered: Tensor | None = None
        for run in sorted(set(shards.tolist())):
            piece, is_here = self.corpus.piece(self._runs[0][run], part), shards == run
            if gathered is None:
                gathered = piece.new_empty(len(rows), *piece.shape[1:])
            gathered[is_here] = piece[rows[is_here]]
        assert gathered is not None  # a batch has tokens
        return gathered
