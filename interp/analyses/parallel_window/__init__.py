"""Does the order of layers matter, or could a window of them run side by side?

After "Make Deep Networks Shallow Again" (arXiv 2309.08414): x + sum of F_l(x), the first two terms
of the expansion of a residual network. Layers a..b all read the clean input x of layer a; the sum
of what they write is compared with what the layers wrote in sequence, by ||y_par - y|| / ||y - x||
(1 is as far off as leaving the window out) and cos(y_par, y). A window's first layer reads what it
always reads, so L(L - 1)/2 blocks serve all windows.

The same blocks give the interaction of every two layers with nothing between them,
||F_j(x + F_i(x)) - F_j(x)|| / ||F_j(x)|| with x the clean input of layer i: the strength of the
expansion's terms with two layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analyses.parallel_window.result import (
    MEASURES,
    OUTPUT_MEASURES,
    ParallelWindowResult,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Resid, Tensors
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.lens import held, readings
from interp.sweeps.positions import FirstPosition, first_read, require_positions
from interp.sweeps.windows import first_and_last
from interp.tasks.batch import TokenBatch

__all__ = ["ParallelWindow", "ParallelWindowResult"]


@dataclass(frozen=True)
class ParallelWindow(Analysis):
    """Run every window of layers side by side; `output_windows` ("2-3") up to the output.

    `first_position` "excluded" leaves position 0 (often a sink) out of the means.
    """

    output_windows: tuple[str, ...] = ()
    first_position: FirstPosition = "included"
    seed: int = 0
    question: ClassVar[str] = "Could a window of layers run in parallel?"
    how: ClassVar[str] = (
        "The layers of a window all read what its first layer reads, and the sum of what they write"
        " is compared with what they wrote in order;"
        " 1 is as far off as leaving the window out."
    )
    caveat: ClassVar[str] = (
        "A small error inside a window can still change the output;"
        " chosen windows are carried on to it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.windows

    @property
    def windows(self) -> list[tuple[int, int]]:
        """Return the first and last layer of every output window."""
        return [first_and_last(text, what="output window") for text in self.output_windows]

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for windows that do not exist, and prompts without positions."""
        if model.n_layers < 2:
            raise AnalysisError("the model has 1 layer; a window needs at least 2")
        for text, (_, last) in zip(self.output_windows, self.windows, strict=True):
            if last >= model.n_layers:
                raise AnalysisError(
                    f"output window {text!r} given; the model's last layer is {model.n_layers - 1}"
                )
        require_positions(shard, first_position=self.first_position)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return means over positions [batch first last measure], 0 where last < first.

        "pairs" [batch first last] are interactions, 0 where last <= first; those of output windows
        are [batch window 3].
        """
        n, layers, start = len(shard.prompts), recording.n_layers, first_read(self.first_position)
        windows = torch.zeros(n, layers, layers, len(MEASURES))
        ends: dict[tuple[int, int], Resid] = {}
        pairs = torch.zeros(n, layers, layers)
        for last, (streams, writes) in enumerate(side_by_side(recording)):
            pairs[:, :last, last] = _interactions(writes)[..., start:].mean(-1).T.cpu()
            for first, stream in enumerate(streams):
                error = _difference(recording, first, last, stream)
                windows[:, first, last] = error[:, start:].mean(1).cpu()
                if (first, last) in self.windows:
                    rest = range(last + 1, layers)
                    ends[first, last] = recording.chain(rest, stream.to(recording.resid(0).dtype))
        n_pos = torch.full((n,), recording.n_pos - start)
        tensors = {"windows": windows, "pairs": pairs, "n_pos": n_pos}
        if not ends:
            return tensors
        read, _ = readings(
            recording, [ends[window] for window in self.windows], top_k=1, answer=None
        )
        outputs = read[:, :, start:, : len(OUTPUT_MEASURES)].mean(2).cpu()
        return tensors | {"outputs": outputs}

    def combine(self, parts: Sequence[Tensors]) -> ParallelWindowResult:
        """Return token-weighted means with intervals over prompts."""
        arrays = joined([{key: value.double() for key, value in part.items()} for part in parts])
        return ParallelWindowResult(self, arrays)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Half a sweep for all windows, and the layers after each output window."""
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        behind = sum((layers - 1 - last) / layers for _, last in dict.fromkeys(self.windows))
        n_outputs = len(self.windows)
        numbers = (len(MEASURES) + 1) * layers**2 + len(OUTPUT_MEASURES) * n_outputs
        at_once = (5 * layers + n_outputs) * n_tokens * model.d_model
        at_once += held(n_tokens, model.d_vocab) if n_outputs else 0
        logits = n_outputs * n_tokens
        forwards, numbers = (layers - 1) / 2 + behind, len(shard.prompts) * numbers
        return Cost(forwards, numbers, at_once, logits=logits)


def side_by_side(recording: Recording) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield, for every last layer, the streams after the windows from every first layer to it.

    With them come that layer's writes, where it reads what each first layer reads. Differences and
    sums are in fp32; a window of one layer is the clean stream itself.
    """
    streams: list[Tensor] = []
    for layer in range(recording.n_layers):
        writes: list[Tensor] = []
        if streams:
            rows = torch.stack([recording.resid(first) for first in range(layer)])
            writes = [*(recording.run(layer, rows).float() - rows.float())]
            streams = [stream + write for stream, write in zip(streams, writes, strict=True)]
        after = recording.resid(layer + 1).float()
        streams.append(after)
        yield streams, [*writes, after - recording.resid(layer).float()]


def _interactions(writes: list[Tensor]) -> Float[Tensor, "first batch pos"]:
    """Return by how much each earlier layer, alone before this one, changes what it writes.

    `writes` of a layer are those where it reads what each layer up to itself reads: what layer i
    makes of its input is the input of layer i + 1.
    """
    changes = [
        vector_norm(after - before, dim=-1) / vector_norm(before, dim=-1).clamp_min(SMALLEST_NORM)
        for before, after in pairwise(writes)
    ]
    return torch.stack(changes) if changes else torch.empty(0, *writes[0].shape[:-1])


def _difference(recording: Recording, first: int, last: int, stream: Tensor) -> Tensor:
    """Return `MEASURES` of one window [batch pos measure]."""
    before, after = recording.resid(first).float(), recording.resid(last + 1).float()
    error = vector_norm(stream - after, dim=-1) / vector_norm(after - before, dim=-1).clamp_min(
        SMALLEST_NORM
    )
    return torch.stack([error, cosine_similarity(stream, after, dim=-1, eps=SMALLEST_NORM)], dim=-1)
