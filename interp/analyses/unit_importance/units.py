"""The units of a block: its modules with parameters, its heads, its attention, its MLP, itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from interp.errors import UnsuitedError
from interp.replay import Block
from interp.sweeps.heads import z_reader_of

Part = Literal["attention", "mlp", "norm"]
Kind = Literal["layer", "attention", "mlp", "head", "projection"]
KINDS: tuple[Kind, ...] = ("layer", "attention", "mlp", "head", "projection")
PARTS: tuple[Part, ...] = ("attention", "mlp", "norm")
_PREFIX = "unit"
_LONGEST = 8  # letters of a label


@dataclass(frozen=True)
class UnitModules:
    """The modules of every block that have parameters, by path in the block, and their parts."""

    paths: tuple[str, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "UnitModules":
        """Return the modules of blocks; raise UnsuitedError for those that scale otherwise.

        What a module returns has to be proportional to its parameters: linear maps and norms are.
        """
        family = type(blocks[0].module).__name__
        found = [_parts_of(block) for block in blocks]
        if any(each.keys() != found[0].keys() for each in found):
            raise UnsuitedError(f"{family}: layers differ in their modules; units need the same")
        z_reader_of(blocks[0])
        return cls(tuple(found[0]), tuple(found[0].values()))

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the names of tensors, which keep the order, the part and the path."""
        pairs = zip(self.parts, self.paths, strict=True)
        return tuple(f"{_PREFIX}.{i:02}.{part}.{path}" for i, (part, path) in enumerate(pairs))

    @classmethod
    def from_keys(cls, keys: list[str]) -> "UnitModules":
        """Return the modules that tensors were named for."""
        own = sorted(key.split(".", 3) for key in keys if key.startswith(f"{_PREFIX}."))
        parts: dict[str, Part] = {part: part for part in PARTS}
        return cls(tuple(key[3] for key in own), tuple(parts[key[2]] for key in own))

    @property
    def projections(self) -> tuple[int, ...]:
        """Return which modules are not norms."""
        return tuple(i for i, path in enumerate(self.paths) if not _is_norm(path, self.parts[i]))

    @property
    def names(self) -> tuple[str, ...]:
        """Return short names: a path's last part, or the path where that would be another's too."""
        last = [path.rpartition(".")[2] for path in self.paths]
        pairs = zip(last, self.paths, strict=True)
        return tuple(path if last.count(name) > 1 else name for name, path in pairs)

    @property
    def labels(self) -> list[str]:
        """Return names of a few letters for a figure, where order tells equal ones apart."""
        labels, n_norms = [], 0
        for path, part in zip(self.paths, self.parts, strict=True):
            label = path.rpartition(".")[2].removesuffix("_proj")
            n_norms += part == "norm"
            label = f"norm {n_norms}" if part == "norm" else label
            labels.append(label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…")
        return labels


def _is_norm(path: str, part: Part) -> bool:
    return part == "norm" or "norm" in path.rpartition(".")[2]


def _parts_of(block: Block) -> dict[str, Part]:
    """Return the part of every module with parameters, by its path in the block."""
    in_attention = {*block.attn.modules()}
    parts: dict[str, Part] = {}
    for path, module in block.module.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if not is_linear and "norm" not in type(module).__name__.lower():
            raise UnsuitedError(
                f"{type(module).__name__} ({path}) is neither a linear map nor a norm; its"
                " parameters' share of the gradient cannot be read from what it returns"
            )
        outside: Part = "mlp" if is_linear else "norm"
        parts[path] = "attention" if module in in_attention else outside
    return parts


@dataclass(frozen=True)
class Drawn:
    """Which units of a kind are zeroed: layers and, within them, heads or modules."""

    layers: tuple[int, ...]
    which: tuple[int, ...]

    @classmethod
    def of(cls, n_layers: int, each: tuple[int, ...], *, most: int, seed: int) -> "Drawn":
        """Draw at most so many of all layers' units, in forward order."""
        n = n_layers * len(each)
        chosen = np.arange(n)
        if n > most:
            chosen = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
        layers, which = np.divmod(chosen, len(each))
        return cls(tuple(layers.tolist()), tuple(each[i] for i in which))

    def at(self, layer: int) -> list[int]:
        """Return the drawn units of one layer."""
        pairs = zip(self.layers, self.which, strict=True)
        return [which for own, which in pairs if own == layer]
