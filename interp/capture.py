"""Capture a stream of texts or token rows into a store, in bounded memory and resumably."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from interp.errors import StoreError, TaskError
from interp.models import Model
from interp.models.forward import is_inner
from interp.sites import Site
from interp.store import ActivationStore, Corpus, stored_name
from interp.store.keys import TOKENS, is_word
from interp.store.manifest import SUFFIX, Manifest, Span, extend, write_manifest
from interp.store.shard import SUFFIX as SHARD
from interp.store.shard import ShardHeader
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import token_rows

SHARD_TOKENS = 16384
_BATCH_TOKENS = 4096
_LOGITS = 1 << 27  # numbers: what a batch's logits may take
_TEXTS = 64  # tokenized at a time
Text = str | Sequence[int] | Tensor
Row = tuple[int, ...]
Writing = Future[tuple[str, ShardHeader]]  # of a shard
Group = tuple[list[str], list[Row], Writing | None]  # keys, prompts, and their new shard


def capture(
    model: Model,
    texts: Iterable[Text],
    *,
    sites: Sequence[Site],
    name: str,
    store: ActivationStore | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Corpus:
    """Run texts, or rows of token ids, through a model; keep the sites and return the corpus.

    Texts get the tokenizer's special tokens and are cut into prompts no longer than the model
    reads. One shard (about 16,384 tokens) is held in memory at a time. What the store has already
    is not computed again, so the same call resumes; the corpus can be opened by its name once all
    is captured. `store` None is the model's own; `progress` is called with the number of tokens
    done. Raises SiteError, TaskError or StoreError for what cannot be captured or kept.
    """
    if isinstance(texts, str):
        raise TaskError("one text given; a list of texts is needed")
    store = _store_of(model, store)
    if not is_word(name):
        raise StoreError(f"corpus {name!r} given; a name of letters, digits and _.@+- is needed")
    if not sites:
        raise StoreError("no sites given; at least one is needed")
    for site in sites:
        model.refuse(site)
    wanted = {TOKENS: None, **{stored_name(site): site for site in sites}}
    captured = _Captured(store, {name: [] for name in wanted}, progress)
    try:
        groups = _groups(_rows(model, texts))
        with closing(_written(model, store, groups, wanted)) as written:
            for keys, rows, writing in written:
                captured.add(keys, rows, writing)
    finally:
        store.pinned.clear()
    captured.refuse_lost()
    spans = {name: tuple(each) for name, each in captured.spans.items()}
    manifest = Manifest(store.model, store.name, captured.n_tokens, spans)
    write_manifest(store.files, f"{store.folder}/{name}{SUFFIX}", manifest)
    return Corpus(store.files, name, manifest)


def _store_of(model: Model, store: ActivationStore | None) -> ActivationStore:
    """Return the store for a model's activations; raise StoreError if they cannot be kept."""
    store = store or model.store
    if store is None:
        raise StoreError(
            f"model {model.name!r} keeps no store; load it with one, or give one as `store`"
        )
    if store.model != model.fingerprint:
        raise StoreError(
            f"the store given is of other weights than {model.name!r} has now;"
            " open it with its fingerprint"
        )
    if why := model.not_stored:
        raise StoreError(
            f"{model.name!r}: {why};"
            " its activations are not those of its weights, and are not stored"
        )
    return store


def _written(
    model: Model,
    store: ActivationStore,
    groups: Iterable[list[Row]],
    wanted: Mapping[str, Site | None],
) -> Generator[Group, None, None]:
    """Yield each group after the next is computed; its shard is written in the meantime."""
    last: Group | None = None
    with ThreadPoolExecutor(1) as writer:
        for rows in groups:
            keys, writing = model.keys(rows), None
            if last is None:
                first = torch.tensor([rows[0]], device=model.device)
                model.refuse_hooks(first, of_blocks=True)
            missing = {name: wanted[name] for name in store.hold(keys, wanted)}
            prompts = dict(zip(keys, rows, strict=True))
            tensors = _compute(model, store, [*prompts.values()], missing) if missing else {}
            if last is not None:
                yield last
            if tensors:
                lengths = {key: len(row) for key, row in prompts.items()}
                writing = writer.submit(store.publish, lengths, tensors)
            last = keys, rows, writing
        if last is not None:
            yield last


@dataclass
class _Captured:
    """Where the prompts captured so far lie."""

    store: ActivationStore
    spans: dict[str, list[Span]]
    progress: Callable[[int], None]
    n_tokens: int = 0

    def add(self, keys: Sequence[str], rows: Sequence[Row], writing: Writing | None) -> None:
        """Add prompts, once their shard is written."""
        if writing is not None:
            self.store.add(*writing.result())
        for tensor_name, spans in self.spans.items():
            places = self.store.places(keys, tensor_name)
            if places is None:
                raise StoreError(
                    f"{self.store.files.url}:"
                    f" {tensor_name} of a prompt was removed while the corpus was captured"
                )
            self.store.pinned |= {place.shard for place in places}
            extend(spans, places)
        self.n_tokens += sum(map(len, rows))
        self.progress(self.n_tokens)

    def refuse_lost(self) -> None:
        """Raise StoreError if another process has removed a shard in the meantime."""
        names = self.store.files.names(self.store.folder, SHARD)
        shards = {span.shard for spans in self.spans.values() for span in spans}
        for lost in sorted(shards - {*names}):
            raise StoreError(
                f"{self.store.files.path(lost)} was removed while the corpus was captured;"
                " capture it again"
            )


def _rows(model: Model, texts: Iterable[Text]) -> Iterator[Row]:
    """Yield prompts of at most as many tokens as the model reads."""
    longest = (
        getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
        or SHARD_TOKENS
    )
    for number, row in enumerate(_tokenized(model, texts)):
        if not row:
            raise TaskError(f"text {number} has no tokens; at least one is needed")
        if min(row) < 0 or max(row) >= model.d_vocab:
            raise TaskError(
                f"text {number} has token {max(row)};"
                f" the model's vocabulary is 0 to {model.d_vocab - 1}"
            )
        for start in range(0, len(row), longest):
            yield row[start : start + longest]


def _tokenized(model: Model, texts: Iterable[Text]) -> Iterator[Row]:
    for is_text, some in groupby(texts, key=lambda text: isinstance(text, str)):
        if not is_text:
            yield from (tuple(row.tolist() if isinstance(row, Tensor) else row) for row in some)
            continue
        if model.tokenizer is None:
            raise TaskError(f"model {model.name!r} has no tokenizer; rows of token ids are needed")
        for chunk in _chunks(some):
            yield from map(tuple, token_rows(model.tokenizer, chunk))


def _chunks(texts: Iterable[Text]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(str(text))
        if len(chunk) == _TEXTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield neighbouring prompts with about SHARD_TOKENS tokens together; each becomes a shard."""
    group: list[Row] = []
    n_tokens = 0
    for row in rows:
        if group and n_tokens + len(row) > SHARD_TOKENS:
            yield group
            group, n_tokens = [], 0
        group.append(row)
        n_tokens += len(row)
    if group:
        yield group


def _compute(
    model: Model,
    store: ActivationStore,
    rows: Sequence[Row],
    sites_by_name: Mapping[str, Site | None],
) -> dict[str, Tensor]:
    """Return the named sites' tensors [token ...] of prompts.

    Inner sites come from a pass of their own, so that block sites stay stock.
    """
    lengths = torch.tensor([len(row) for row in rows])
    starts = (lengths.cumsum(0) - lengths).tolist()
    tensors = {TOKENS: torch.tensor([token for row in rows for token in row], dtype=torch.int32)}
    sites = {site: name for name, site in sites_by_name.items() if site is not None}
    for kind in (False, True):
        of_kind = {site: name for site, name in sites.items() if is_inner(site) is kind}
        for batch in _batches(rows, model.d_vocab) if of_kind else ():
            captured = model.forward(
                _token_batch(model, [row for _, row in batch]), capture=of_kind
            ).activations
            for site, name in of_kind.items():
                values = store.cast(name, captured[site]).cpu()
                if name not in tensors:
                    tensors[name] = values.new_empty(int(lengths.sum()), *values.shape[2:])
                for (number, row), value in zip(batch, values, strict=True):
                    tensors[name][starts[number] : starts[number] + len(row)] = value
    return tensors


def _batches(rows: Sequence[Row], d_vocab: int) -> Iterator[list[tuple[int, Row]]]:
    """Yield numbered rows of one length to run together, so that no row depends on another."""
    budget = min(_BATCH_TOKENS, max(1, _LOGITS // d_vocab))
    by_length = sorted(enumerate(rows), key=lambda item: len(item[1]))
    for length, same in groupby(by_length, key=lambda item: len(item[1])):
        group, n_rows = list(same), max(1, budget // length)
        for start in range(0, len(group), n_rows):
            yield group[start : start + n_rows]


def _token_batch(model: Model, rows: Sequence[Row]) -> TokenBatch:
    tokens = torch.tensor(rows, device=model.device)
    last = torch.full((len(rows),), tokens.shape[1] - 1, device=model.device)
    prompts = tuple(Prompt(str(number), "", tokens=row) for number, row in enumerate(rows))
    return TokenBatch(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), last)
