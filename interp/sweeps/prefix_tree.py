"""Streams behind paths of layers, where paths that begin alike run that part once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.replay import Recording
from interp.sweeps.path_tree import Path

_NUMBERS_HELD = 2**27


@dataclass(eq=False)
class _Prefix:
    resid: Float[Tensor, "pos d_model"]
    behind: "dict[int, _Prefix]" = field(default_factory=dict)  # by the layer that ran


@dataclass
class _Walk:
    """One prompt on its path: the prefix that has run, and how many layers that is."""

    prompt: int
    path: Path
    at: _Prefix
    depth: int = 0

    def walk(self) -> bool:
        """Go as far as streams are known; tell whether a layer is left to run."""
        while self.depth < len(self.path) and self.path[self.depth] in self.at.behind:
            self.at = self.at.behind[self.path[self.depth]]
            self.depth += 1
        return self.depth < len(self.path)


class PrefixTree:
    """The streams of some prompts of a recording behind every prefix that was run.

    They begin with the clean pass's. Prompts that need the same layer run it together.
    """

    def __init__(self, recording: Recording, prompts: Sequence[int]) -> None:
        self._recording = recording
        self._roots = {prompt: self._clean(prompt) for prompt in prompts}

    def _clean(self, prompt: int) -> _Prefix:
        root = at = _Prefix(self._recording.resid(0)[prompt])
        for layer in range(self._recording.n_layers):
            at.behind[layer] = _Prefix(self._recording.resid(layer + 1)[prompt])
            at = at.behind[layer]
        return root

    def ends(self, prompts: Sequence[int], paths: Sequence[Path]) -> Float[Tensor, "row d_model"]:
        """Return the last position's residual of each prompt behind its path.

        A prompt may have several paths.
        """
        walks = [
            _Walk(prompt, path, self._roots[prompt])
            for prompt, path in zip(prompts, paths, strict=True)
        ]
        while left := [walk for walk in walks if walk.walk()]:
            lowest = min(walk.path[walk.depth] for walk in left)  # higher ones wait for company
            self._run(lowest, [walk for walk in left if walk.path[walk.depth] == lowest])
        return torch.stack([walk.at.resid[-1] for walk in walks])

    def _run(self, layer: int, walks: Sequence[_Walk]) -> None:
        at = {id(walk.at): walk for walk in walks}.values()
        resid = torch.stack([walk.at.resid for walk in at])
        whose = torch.tensor([walk.prompt for walk in at], device=resid.device)
        for walk, behind in zip(at, self._recording.rows(layer, resid, whose), strict=True):
            walk.at.behind[layer] = _Prefix(behind)


def prompts_at_once(recording: Recording, *, n_paths: int) -> int:
    """Return of how many prompts the streams of `n_paths` paths each fit into memory."""
    held = n_paths * recording.n_layers * recording.resid(0)[0].numel() // 2  # half is shared
    return max(1, _NUMBERS_HELD // max(1, held))
