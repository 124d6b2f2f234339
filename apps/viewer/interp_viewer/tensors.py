"""The tensors of an analysis, read without torch: only the rows that are looked at."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from interp.errors import RunError, unknown
from interp.files.checksum import array_checksum
from interp_viewer.guarded import require_small


@dataclass(frozen=True)
class Measured:
    """The tensors of one analysis: one file a shard, whose first axis is the prompt.

    Those named "kept.…" have rows only for the prompts of which the tensor "kept" says so.

    `prompts` are the numbers, in their task, of the prompts that were measured; None where that is
    all of them.
    """

    files: tuple[Path, ...]
    prompts: tuple[int, ...] | None = None

    @cached_property
    def _starts(self) -> list[int]:
        """Return the number of every file's first prompt, and of one past the last."""
        starts = [0]
        for path in self.files:
            with _opened(path) as file:
                name = next(n for n in file.keys() if not n.startswith("kept."))  # noqa: SIM118
                starts.append(starts[-1] + file.get_slice(name).get_shape()[0])
        return starts

    @cached_property
    def names(self) -> dict[str, tuple[str, list[int]]]:
        """Map each tensor's name to its number type and its shape in the first file."""
        with _opened(self.files[0]) as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}

    @property
    def n_prompts(self) -> int:
        """Return how many prompts were measured."""
        return self._starts[-1]

    def of_prompt(self, name: str, prompt: int) -> NDArray[Any]:
        """Return the values of a tensor for the prompt of this number in its task."""
        if self.prompts is not None:
            if prompt not in self.prompts:
                raise RunError(
                    f"prompt {prompt} was left out of this analysis:"
                    " it cannot be used for it; choose another one"
                )
            prompt = self.prompts.index(prompt)
        return self.of_row(name, prompt)

    def number(self, row: int) -> int:
        """Return the number in its task of a measured prompt."""
        return int(row) if self.prompts is None else self.prompts[int(row)]

    def of_kept(self, name: str, prompt: int, *index: int) -> NDArray[Any]:
        """Return what was kept of a prompt, at an index of the axes after it."""
        row = prompt if self.prompts is None else self.prompts.index(prompt)
        for path, start, end in zip(self.files, self._starts, self._starts[1:], strict=False):
            if start <= row < end:
                self._check(path)
                with _opened(path) as file:
                    is_kept = np.asarray(file.get_tensor("kept")).astype(bool)
                    at = int(is_kept[: row - start].sum())
                    part = file.get_slice(name)
                    places = tuple(slice(i, i + 1) for i in (at, *index))
                    return np.asarray(part[places]).reshape(part.get_shape()[len(places) :])
        raise RunError(f"prompt {prompt} asked for; there is 0 to {self.n_prompts - 1}")

    def of_row(self, name: str, prompt: int) -> NDArray[Any]:
        """Return one measured prompt's values of a tensor."""
        for path, start, end in zip(self.files, self._starts, self._starts[1:], strict=False):
            if start <= prompt < end:
                self._check(path)
                with _opened(path) as file:
                    self._require(name)
                    return np.asarray(file.get_slice(name)[prompt - start : prompt - start + 1])[0]
        raise RunError(f"prompt {prompt} asked for; there is 0 to {self.n_prompts - 1}")

    def at(self, name: str, *index: int) -> NDArray[Any]:
        """Return every prompt's value at an index [prompt]; NaN where a prompt has none."""
        self._require(name)
        parts = []
        for path in self.files:
            self._check(path)
            with _opened(path) as file:
                part = file.get_slice(name)
                shape = part.get_shape()
                if all(i < size for i, size in zip(index, shape[1:], strict=True)):
                    parts.append(
                        np.asarray(part[(slice(None), *(slice(i, i + 1) for i in index))]).reshape(
                            shape[0]
                        )
                    )
                else:
                    parts.append(np.full(shape[0], np.nan, np.float32))
        values = np.concatenate(parts)
        if self.prompts is None:
            return values
        of_task = np.full(max(self.prompts) + 1, np.nan, np.float32)
        of_task[list(self.prompts)] = values
        return of_task

    def all(self, name: str) -> NDArray[Any]:
        """Return a tensor of all prompts; files must agree in all other axes."""
        self._require(name)
        parts = []
        for path in self.files:
            self._check(path)
            with _opened(path) as file:
                parts.append(np.asarray(file.get_tensor(name)))
        return np.concatenate(parts)

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise RunError(
                unknown("tensor", name, self.names)
                + "; this run is of another version; run it again"
            )

    @staticmethod
    def _check(path: Path) -> None:
        stat = path.stat()
        _require_whole(path, stat.st_mtime_ns, stat.st_size)


def _opened(path: Path) -> Any:
    try:
        return safe_open(require_small(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} is damaged ({error}); the same `interp run` makes it again"
        ) from None


@st.cache_resource(max_entries=10_000, show_spinner=False)
def _require_whole(path: Path, written: int, size: int) -> bool:  # noqa: ARG001
    """Raise RunError if a file's tensors are damaged; each file is checked once."""
    with _opened(path) as file:
        try:
            sums = json.loads((file.metadata() or {})["interp"])["checksums"]
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{path} is damaged ({error!r}); the same `interp run` makes it again"
            ) from None
        for name in file.keys():  # noqa: SIM118
            array = np.ascontiguousarray(file.get_tensor(name))
            kind = f"torch.{array.dtype}"
            if sums.get(name) != array_checksum(name, array.shape, kind, array.tobytes()):
                raise RunError(
                    f"{path} is damaged: its tensors are not what was written;"
                    " the same `interp run` makes it again"
                )
    return True
