"""Shuffled batches of a corpus's tokens, for training probes and dictionaries.

Shuffling never reads the corpus at random: spans of prompts are shuffled, `pool` of them are opened
at a time, and tokens are shuffled among those. Every worker of a DataLoader walks through the same
order and reads only its own batches, so the batches, and their order, are the same for any number
of workers.
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
    """Batches of tokens, each token once, for `DataLoader(batch_size=None)`.

    A batch is `{"tokens": [batch], str(site): [batch ...]}`. With a `seed` tokens are shuffled, in
    another order for each seed (one per epoch); without one they come in the corpus's order. The
    last batch may be smaller.
    """

    def __init__(
        self, corpus: Corpus, sites: Sequence[Site], *, batch_size: int, seed: int | None = None
    ) -> None:
        if batch_size < 1:
            raise StoreError(f"batch_size={batch_size} given; at least 1 is needed")
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        self.tensor_names = {TOKENS: TOKENS} | {
            str(site): corpus.tensor_name(site) for site in sites
        }

    def __len__(self) -> int:
        return -(-self.corpus.n_tokens // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        ends = {stored: self._ends(stored) for stored in self.tensor_names.values()}
        for number, places in enumerate(self._batches(ends[TOKENS])):
            if number % n_workers == mine:
                yield {
                    name: self._gather(stored, places, ends[stored])
                    for name, stored in self.tensor_names.items()
                }

    def _ends(self, tensor_name: str) -> Tensor:
        """Return where every span of a tensor ends [span], in tokens from the corpus's start."""
        return torch.tensor(
            [self.corpus.n_rows(span) for span in self.corpus.manifest.spans[tensor_name]],
            dtype=torch.long,
        ).cumsum(0)

    def _batches(self, ends: Tensor) -> Iterator[Tensor]:
        """Yield the places [batch] of every batch's tokens in the corpus."""
        ranges = list(zip([0, *ends.tolist()], ends.tolist(), strict=False))
        generator = torch.Generator().manual_seed(self.seed or 0)
        if self.seed is not None:
            ranges = [ranges[i] for i in torch.randperm(len(ranges), generator=generator).tolist()]
        rest = torch.empty(0, dtype=torch.long)
        for first in range(0, len(ranges), _POOL):
            rest = torch.cat(
                [rest, *(torch.arange(*each) for each in ranges[first : first + _POOL])]
            )
            if self.seed is not None:
                rest = rest[torch.randperm(len(rest), generator=generator)]
            while len(rest) >= self.batch_size:
                yield rest[: self.batch_size]
                rest = rest[self.batch_size :]
        if len(rest):
            yield rest

    def _gather(self, tensor_name: str, places: Tensor, ends: Tensor) -> Tensor:
        numbers, gathered = torch.searchsorted(ends, places, right=True), None
        for number in sorted(set(numbers.tolist())):
            piece = self.corpus.piece(self.corpus.manifest.spans[tensor_name][number], tensor_name)
            is_here = numbers == number
            if gathered is None:
                gathered = piece.new_empty(len(places), *piece.shape[1:])
            gathered[is_here] = piece[places[is_here] - (ends[number] - len(piece))]
        assert gathered is not None  # a batch has tokens
        return gathered
