"""A captured corpus in other formats: NumPy's .npy, Arrow, Hugging Face `datasets`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import StoreError
from interp.store.corpus import Corpus
from interp.store.files import ASIDE
from interp.store.keys import TOKENS

if TYPE_CHECKING:
    import datasets
    import pyarrow


def to_numpy(corpus: Corpus, folder: Path | str) -> dict[str, Path]:
    """Write a .npy file [token ...] per site, and the tokens and prompts' starts; return the paths.

    `tokens.npy` is [token], `starts.npy` [prompt + 1]. The paths are returned by name. Tokens of
    prompt i are rows starts[i] up to starts[i + 1]. `np.load(path, mmap_mode="r")` maps them.
    bfloat16, which NumPy does not have, becomes float32, exactly.
    """
    written = {}
    starts = np.cumsum([0, *corpus.lengths()], dtype=np.int64)
    with _aside(Path(folder) / "starts.npy") as path:
        np.lib.format.open_memmap(path, "w+", np.dtype(np.int64), starts.shape)[:] = starts
    written["starts"] = Path(folder) / "starts.npy"
    for tensor_name in corpus.manifest.spans:
        target = Path(folder) / f"{tensor_name}.npy"
        with _aside(target) as path:
            _write_npy(path, corpus, tensor_name)
        written[tensor_name] = target
    return written


def _write_npy(path: Path, corpus: Corpus, tensor_name: str) -> None:
    out, row = None, 0
    for piece in corpus.pieces(tensor_name):
        array = as_array(piece)
        if out is None:
            out = np.lib.format.open_memmap(
                path, "w+", array.dtype, (corpus.n_tokens, *array.shape[1:])
            )
        out[row : row + len(array)] = array
        row += len(array)
    if out is None:
        np.save(path.open("wb"), np.zeros(0))


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array; bfloat16 as float32."""
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def to_arrow(corpus: Corpus, path: Path | str) -> Path:
    """Write an Arrow stream, a row per prompt: `tokens` and a list of vectors per site.

    Returns its path. Sites with several axes per token are flattened. `pyarrow.ipc.open_stream` and
    `datasets.Dataset.from_file` read it.
    """
    import pyarrow as pa

    target = Path(path)
    with _aside(target) as aside:
        writer = None
        with pa.OSFile(str(aside), "wb") as sink:
            for batch in _record_batches(corpus):
                writer = writer or pa.ipc.new_stream(sink, batch.schema)
                writer.write_batch(batch)
            if writer is None:
                raise StoreError(f"corpus {corpus.name!r} has no prompts")
            writer.close()
    return target


def _record_batches(corpus: Corpus) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow as pa

    tensor_names = list(corpus.manifest.spans)
    first = 0
    for span in corpus.manifest.spans[TOKENS]:
        lengths = corpus.reader.header(span.shard).lengths[span.first : span.first + span.n_prompts]
        offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
        columns: dict[str, Any] = {}
        for tensor_name in tensor_names:
            rows = torch.cat([corpus.rows(first + i, tensor_name) for i in range(span.n_prompts)])
            array = as_array(rows)
            flat = pa.array(array.reshape(-1))
            values = (
                flat
                if tensor_name == TOKENS
                else pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))
            )
            columns[tensor_name] = pa.ListArray.from_arrays(offsets, values)
        yield pa.RecordBatch.from_pydict(columns)
        first += span.n_prompts


def to_dataset(corpus: Corpus, path: Path | str) -> "datasets.Dataset":
    """Write an Arrow file and return it as a memory-mapped Hugging Face dataset (extra `data`)."""
    try:
        import datasets
    except ImportError:
        raise StoreError(
            "Hugging Face `datasets` is not installed; `pip install interp[data]` adds it"
        ) from None
    return datasets.Dataset.from_file(str(to_arrow(corpus, path)))


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Yield a file to write to, which becomes `target` when it is whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=ASIDE)
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            aside.chmod(0o644)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from None
