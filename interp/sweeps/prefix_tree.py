"""Streams after paths of layers, where paths that begin alike run that part once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.replay import Recording
from interp.sweeps.path_tree import Path
from interp.sweeps.walks import Stream, Walk, ends_together

_NUMBERS_HELD = 2**27


@dataclass(eq=False)
class _Prefix:
    resid: Float[Tensor, "pos d_model"]
    behind: "dict[int, _Prefix]" = field(default_factory=dict)  # by the layer that ran


class PrefixTree:
    """The streams of some prompts of a recording after every prefix that was run.

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
        """Return the last position's residual of each prompt after its path.

        A prompt may have several paths.
        """
        walks = [
            self._walk(self._roots[prompt], path)
            for prompt, path in zip(prompts, paths, strict=True)
        ]

        def run(layer: int, some: Sequence[int], streams: Sequence[Stream]) -> list[Stream]:
            """Run a block once for every stream, which several of the walks may be at."""
            once = {
                id(stream): (stream, prompts[i]) for i, stream in zip(some, streams, strict=True)
            }
            resid = torch.stack([stream for stream, _ in once.values()])
            whose = torch.tensor([prompt for _, prompt in once.values()], device=resid.device)
            behind = dict(zip(once, self._recording.rows(layer, resid, whose), strict=True))
            return [behind[id(stream)] for stream in streams]

        return torch.stack([stream[-1] for stream in ends_together(walks, run)])

    def _walk(self, at: _Prefix, path: Path) -> Walk:
        """Go on from a prefix, running the layers of which no stream is known."""
        for layer in path:
            if layer not in at.behind:
                behind = yield layer, at.resid
                at.behind.setdefault(layer, _Prefix(behind))
            at = at.behind[layer]
        return at.resid


def prompts_at_once(recording: Recording, *, n_paths: int) -> int:
    """Return of how many prompts the streams of `n_paths` paths each fit into memory."""
    held = n_paths * recording.n_layers * recording.resid(0)[0].numel() // 2  # half is shared
    return max(1, _NUMBERS_HELD // max(1, held))
