"""A captured corpus: its activations by prompt, span of tokens, site and layer."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from interp.errors import StoreError, unknown
from interp.sites import Site
from interp.store.files import Files
from interp.store.keys import TOKENS, is_word, stored_name, stored_site
from interp.store.manifest import SUFFIX, Manifest, Span, read_manifest
from interp.store.reader import ShardReader
from interp.store.shard import DamagedError


class Corpus:
    """The prompts of a corpus in order, with the activations [pos ...] of every captured site.

    Needs neither the model nor the texts. What is read from a local store is memory-mapped: copy it
    before writing to it.
    """

    def __init__(self, files: Files, name: str, manifest: Manifest) -> None:
        self.files, self.name, self.manifest = files, name, manifest
        self.reader = ShardReader(files)
        self._ends = {
            tensor: list(accumulate(span.n_prompts for span in spans))
            for tensor, spans in manifest.spans.items()
        }

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Return the captured sites, in the order of a forward pass."""
        return tuple(sorted(stored_site(name) for name in self.manifest.spans if name != TOKENS))

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of all prompts."""
        return self.manifest.n_tokens

    def __len__(self) -> int:
        return self._ends[TOKENS][-1] if self._ends[TOKENS] else 0

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.sites))
        return (
            f"Corpus({self.name!r}: {len(self)} prompts, {self.n_tokens} tokens of"
            f" {self.manifest.model_name}; {sites})"
        )

    def read(self, prompt: int, site: Site, *, start: int = 0, stop: int | None = None) -> Tensor:
        """Return a site's activations [pos ...] for a prompt's tokens from `start` up to `stop`."""
        return self.rows(prompt, self.tensor_name(site))[start:stop]

    def tokens(self, prompt: int) -> Tensor:
        """Return a prompt's token ids [pos]."""
        return self.rows(prompt, TOKENS)

    def lengths(self) -> Iterator[int]:
        """Yield the number of tokens of every prompt; reads headers only."""
        for span in self.manifest.spans[TOKENS]:
            yield from self._lengths(span)

    def column(self, site: Site) -> Iterator[Tensor]:
        """Yield one site of all prompts in order, as pieces [token ...] of a shard each."""
        yield from self.pieces(self.tensor_name(site))

    def pieces(self, tensor_name: str) -> Iterator[Tensor]:
        """Yield one tensor of all prompts in order, in pieces [token ...] of one shard each."""
        for span in self.manifest.spans[tensor_name]:
            yield self.piece(span, tensor_name)

    def piece(self, span: Span, tensor_name: str) -> Tensor:
        """Return the rows [token ...] of a span of prompts."""
        tensor = self._tensor(span, tensor_name)
        starts = self.reader.header(span.shard).starts
        return tensor[starts[span.first] : starts[span.first + span.n_prompts]]

    def n_rows(self, span: Span) -> int:
        """Return the number of tokens of a span of prompts; reads a header only."""
        return sum(self._lengths(span))

    def tensor_name(self, site: Site) -> str:
        """Return the stored name of a captured site; raise StoreError if it was not captured."""
        tensor_name = stored_name(site)
        if tensor_name not in self.manifest.spans:
            raise StoreError(
                f"{site} was not captured in {self.name!r}; there is"
                f" {', '.join(map(str, self.sites))}"
            )
        return tensor_name

    def rows(self, prompt: int, tensor_name: str) -> Tensor:
        """Return the tensor of this name of one prompt [pos ...]."""
        number = prompt + len(self) if prompt < 0 else prompt
        if not 0 <= number < len(self):
            raise StoreError(f"prompt {prompt} asked for; {self.name!r} has {len(self)}")
        ends = self._ends[tensor_name]
        index = bisect_right(ends, number)
        span = self.manifest.spans[tensor_name][index]
        tensor, starts = self._tensor(span, tensor_name), self.reader.header(span.shard).starts
        row = span.first + number - (ends[index] - span.n_prompts)
        return tensor[starts[row] : starts[row + 1]]

    def _lengths(self, span: Span) -> tuple[int, ...]:
        try:
            return self.reader.header(span.shard).lengths[span.first : span.first + span.n_prompts]
        except (FileNotFoundError, DamagedError) as error:
            raise self._lost(span, error) from None

    def _tensor(self, span: Span, tensor_name: str) -> Tensor:
        try:
            return self.reader.tensor(span.shard, tensor_name)
        except (FileNotFoundError, DamagedError) as error:
            raise self._lost(span, error) from None

    def _lost(self, span: Span, error: Exception) -> StoreError:
        why = error if isinstance(error, DamagedError) else f"{self.files.path(span.shard)} is gone"
        return StoreError(
            f"corpus {self.name!r} is not whole: {why};"
            " capture it again, which computes only what is missing"
        )


def open_corpus(url: str | Path, name: str, *, model: str | None = None) -> Corpus:
    """Return a captured corpus.

    `model`, a name or the start of a fingerprint, chooses among several of this name. Raises
    StoreError if there is none, or no single one.
    """
    files = Files(url)
    if not is_word(name):
        raise StoreError(f"corpus {name!r} given; a name of letters, digits and _.@+- is needed")
    corpora = [file.name for file in files.all() if file.name.endswith(SUFFIX)]
    paths = [path for path in corpora if path.partition("/")[2] == f"{name}{SUFFIX}"]
    if not paths:
        names = {path.partition("/")[2].removesuffix(SUFFIX) for path in corpora}
        raise StoreError(f"{files.url}: {unknown('corpus', name, names)}")
    manifests = {path: read_manifest(files, path) for path in paths}
    if model is not None:
        manifests = {
            p: m for p, m in manifests.items() if m.model_name == model or m.model.startswith(model)
        }
    if len(manifests) != 1:
        models = ", ".join(sorted(read_manifest(files, path).model_name or path for path in paths))
        raise StoreError(f"corpus {name!r} exists for {models}; name one as `model`")
    return Corpus(files, name, next(iter(manifests.values())))
