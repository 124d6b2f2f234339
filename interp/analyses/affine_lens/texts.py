"""Texts that a model writes itself, sampled at temperature 1, to fit a lens on."""

from collections.abc import Iterator, Sequence

from interp.errors import AnalysisError
from interp.models import Model
from interp.tasks.batch import TokenBatch

_ROWS = 16  # written together
_LOGITS_HELD = 2**27  # numbers; a generation keeps the logits of all new tokens
_FEWEST = 0.1  # of the length that is asked for: shorter texts on average are refused


def sampled_texts(
    model: Model, starts: Sequence[int], *, n_tokens: int, length: int, seed: int
) -> Iterator[TokenBatch]:
    """Yield texts until they have `n_tokens` new tokens, each after one of the tokens `starts`.

    A text's tokens depend on its number and the seed alone. Raises AnalysisError for a model that
    ends its texts almost at once.
    """
    size, n_new, number = rows_at_once(model.d_vocab, length), 0, 0
    while n_new < n_tokens:
        if n_new < _FEWEST * number * (length - 1):
            raise AnalysisError(
                f"{number} sampled texts have {n_new} tokens; the lens needs {n_tokens}:"
                " the model ends its texts too early"
            )
        numbers = range(number, number + size)
        batch = _written(model, [starts[i % len(starts)] for i in numbers], numbers, length, seed)
        sizes = (batch.mask.sum(1) - 1).cumsum(0) + n_new
        n_used = min(size, int((sizes < n_tokens).sum()) + 1)
        yield batch.only(range(n_used))
        n_new, number = int(sizes[n_used - 1]), number + size


def _written(
    model: Model, starts: Sequence[int], numbers: Sequence[int], length: int, seed: int
) -> TokenBatch:
    first = model.tokenize([[start] for start in starts])
    seeds = [(seed << 20) + number for number in numbers]
    generation = model.generate(first, max_new_tokens=length - 1, temperature=1.0, seed=seeds)
    tokens, mask = generation.tokens, generation.mask
    return TokenBatch(first.prompts, tokens, mask, mask.sum(1) - 1)


def rows_at_once(d_vocab: int, length: int) -> int:
    """Return how many texts are written together."""
    return max(1, min(_ROWS, _LOGITS_HELD // (d_vocab * length)))


def start_tokens(batches: Sequence[TokenBatch]) -> list[int]:
    """Return the first token of every prompt: a tokenizer's own, or a first word."""
    return [int(token) for batch in batches for token in batch.tokens[:, 0]]


def check_length(model: Model, length: int) -> None:
    """Raise TaskError for texts longer than the model reads, ModelError for unknown decoding."""
    model.refuse_responses(model.tokenize([[0]]), length - 1)
