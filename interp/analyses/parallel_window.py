"""Does the order of layers matter, or could a window of them run side by side?

After "Make Deep Networks Shallow Again" (arXiv 2309.08414): x + sum of F_l(x), the first two terms
of the expansion of a residual network. Layers a..b all read the clean input x of layer a; the sum
of what they write is compared with what the layers wrote in sequence, by ||y_par - y|| / ||y - x||
(1 is as far off as leaving the window out) and cos(y_par, y). A window's first layer reads what it
always reads, so L(L - 1)/2 blocks serve all windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import grid_below, lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Resid, Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.lens import held, readings
from interp.tasks.batch import TokenBatch

_EPS = 1e-6
_CHUNK_TOKENS = 2048
MEASURES = ("relative error", "cosine")
OUTPUT_MEASURES = ("KL(parallel‖final), nats", "KL(final‖parallel), nats", "same first token")


def parallel_streams(recording: Recording) -> Iterator[list[Tensor]]:
    """Yield, for every last layer, the streams [batch pos d_model] behind the windows from every
    first layer up to it.

    Differences and sums in fp32; a window of one layer is the clean stream itself.
    """
    streams: list[Tensor] = []
    size = max(1, _CHUNK_TOKENS // (recording.batch_size * recording.n_pos))
    for layer in range(recording.n_layers):
        for begin in range(0, layer, size):
            firsts = range(begin, min(begin + size, layer))
            rows = torch.cat([recording.resid(first) for first in firsts])
            writes = recording.block(layer, rows).float() - rows.float()
            for first, write in zip(firsts, writes.chunk(len(firsts)), strict=True):
                streams[first] = streams[first] + write
        streams.append(recording.resid(layer + 1).float())
        yield streams


@dataclass(frozen=True)
class ParallelWindow(Analysis):
    """Run every window of layers side by side; `output_windows`, such as "2-3", are also carried on
    to the output.

    `first_position` False leaves position 0 (often a sink) out of the means.
    """

    output_windows: tuple[str, ...] = ()
    first_position: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "Does the order of layers matter, or could a window of them run side by side?"
    )
    how: ClassVar[str] = (
        "The layers of a window all read what its first layer reads, and the sum of what they write"
        " is compared with what they wrote one behind the other; 1 is as far off as leaving the"
        " window out."
    )
    caveat: ClassVar[str] = (
        "A small error inside a window can still change the output; chosen windows are carried on"
        " to it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._windows

    @property
    def _windows(self) -> list[tuple[int, int]]:
        return [_window(text) for text in self.output_windows]

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise AnalysisError for one layer, windows that end behind the model, and prompts with no
        position to average.
        """
        if model.n_layers < 2:
            raise AnalysisError("the model has 1 layer; a window needs at least 2")
        for text, (_, last) in zip(self.output_windows, self._windows, strict=True):
            if last >= model.n_layers:
                raise AnalysisError(
                    f"output window {text!r} given; the model's last layer is {model.n_layers - 1}"
                )
        if shard.tokens.shape[1] < 2 and not self.first_position:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has 1 token; first_position=False needs at least 2"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return means over positions [batch first last measure] (0 where last < first), and of
        outputs [batch window 3].
        """
        n, layers, start = len(shard.prompts), recording.n_layers, 0 if self.first_position else 1
        windows = torch.zeros(n, layers, layers, len(MEASURES))
        ends: dict[tuple[int, int], Resid] = {}
        for last, streams in enumerate(parallel_streams(recording)):
            for first, stream in enumerate(streams):
                error = _difference(recording, first, last, stream)
                windows[:, first, last] = error[:, start:].mean(1).cpu()
                if (first, last) in self._windows:
                    rest = range(last + 1, layers)
                    ends[first, last] = recording.chain(rest, stream.to(recording.resid(0).dtype))
        n_pos = torch.full((n,), recording.n_pos - start)
        if not ends:
            return {"windows": windows, "n_pos": n_pos}
        read, _ = readings(
            recording, [ends[window] for window in self._windows], top_k=1, answer=None
        )
        outputs = read[:, :, start:, : len(OUTPUT_MEASURES)].mean(2).cpu()
        return {"windows": windows, "outputs": outputs, "n_pos": n_pos}

    def combine(self, parts: Sequence[Tensors]) -> "ParallelWindowResult":
        """Return token-weighted means with intervals over prompts."""
        joined = {
            key: torch.cat([part[key] for part in parts]).double().numpy() for key in parts[0]
        }
        return ParallelWindowResult(self, joined)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Half a sweep for all windows, and the rest of the model behind each window that is
        carried on.
        """
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        behind = sum((layers - 1 - last) / layers for _, last in dict.fromkeys(self._windows))
        numbers = len(shard.prompts) * (
            len(MEASURES) * layers**2 + len(OUTPUT_MEASURES) * len(self._windows)
        )
        streams = (layers + len(self._windows)) * n_tokens * model.d_model
        return Cost(
            (layers - 1) / 2 + behind,
            numbers,
            streams + (held(n_tokens, model.d_vocab) if self._windows else 0),
        )


def _window(text: str) -> tuple[int, int]:
    """Return a window's first and last layer."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise AnalysisError(
            f"output window {text!r} given; a first and a last layer are needed, such as '2-3'"
        )
    return int(first), int(last)


def _difference(recording: Recording, first: int, last: int, stream: Tensor) -> Tensor:
    """Return `MEASURES` of one window [batch pos measure]."""
    before, after = recording.resid(first).float(), recording.resid(last + 1).float()
    error = vector_norm(stream - after, dim=-1) / vector_norm(after - before, dim=-1).clamp_min(
        _EPS
    )
    return torch.stack([error, cosine_similarity(stream, after, dim=-1, eps=_EPS)], dim=-1)


@dataclass(frozen=True, repr=False)
class ParallelWindowResult(Result):
    """Per-prompt arrays: windows [prompt first last measure], outputs [prompt window measure] if
    asked for, n_pos.
    """

    analysis: ParallelWindow
    arrays: dict[str, np.ndarray]

    def grid(self, measure: str = MEASURES[0]) -> np.ndarray:
        """Return one of `MEASURES` for every first (row) and last layer (column); NaN where there
        is no window.
        """
        values = self.arrays["windows"][..., MEASURES.index(measure)]
        mean = np.average(values, axis=0, weights=self.arrays["n_pos"])
        return np.where(np.tri(len(mean), k=-1, dtype=bool), np.nan, mean)

    def to_frame(self) -> pd.DataFrame:
        """Return columns measure, first, last, layers (in the window), mean, low, high (95 %
        bootstrap over prompts).
        """
        return pd.concat(self._rows(), ignore_index=True)

    def _rows(self) -> Iterator[pd.DataFrame]:
        first, last = np.triu_indices(len(self.grid()))
        for i, measure in enumerate(MEASURES):
            yield self._frame(measure, first, last, self.arrays["windows"][:, first, last, i])
        if "outputs" in self.arrays:
            first, last = np.array([_window(text) for text in self.analysis.output_windows]).T
            for i, measure in enumerate(OUTPUT_MEASURES):
                yield self._frame(measure, first, last, self.arrays["outputs"][..., i])

    def _frame(
        self, measure: str, first: np.ndarray, last: np.ndarray, values: np.ndarray
    ) -> pd.DataFrame:
        weights = self.arrays["n_pos"]
        low, high = bootstrap_interval(values, weights=weights, seed=self.analysis.seed)
        keys = {"measure": measure, "first": first, "last": last, "layers": last - first + 1}
        return pd.DataFrame(
            keys | {"mean": np.average(values, axis=0, weights=weights), "low": low, "high": high}
        )

    def plot(self) -> go.Figure:
        """Draw error and cosine against the window's first layer, one line a width, and the error
        of every window.
        """
        frame = self.to_frame()
        frame = frame[(frame["layers"] > 1) & frame["measure"].isin(MEASURES)].rename(
            columns={"first": "layer"}
        )
        widths = frame["layers"].unique()
        shown = widths[np.unique(np.linspace(0, len(widths) - 1, 6).round().astype(int))]
        frame = frame[frame["layers"].isin(shown)]
        frame["window"] = frame["layers"].astype(str) + " layers"
        title = (
            "Windows of layers side by side instead of in order (error 1: as far off as without"
            " them)"
        )
        figure = lines_over_depth(frame, y="mean", groups="window", panels="measure", title=title)
        figure.update_xaxes(title_text="first layer of the window")
        top = max(1.0, float(np.nanquantile(self.grid(), 0.95)))
        return grid_below(
            figure, self.grid().T, x="first layer", y="last layer", of="relative error", top=top
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return by how much two neighbouring layers, side by side, miss what they do in order."""
        value, weights = float(np.diagonal(self.grid(), 1).mean()), self.arrays["n_pos"]
        errors = self.arrays["windows"][..., 0]
        per_prompt = np.diagonal(errors, 1, axis1=1, axis2=2).mean(1, keepdims=True)
        (low,), (high,) = bootstrap_interval(per_prompt, weights=weights, seed=self.analysis.seed)
        measure = (
            "share of what two neighbouring layers do that is missed side by side, mean over pairs"
        )
        return (old_finding(self.summary(), value, measure, float(low), float(high), len(weights)),)

    def summary(self) -> str:
        """Say which pairs could run side by side, how the error grows with width, and what it does
        to the output.
        """
        grid = self.grid()
        pairs, whole = np.diagonal(grid, 1), grid[0, -1]
        text = (
            "Side by side, two neighbouring layers miss what they do in order by"
            f" {pairs.mean():.2f} of it on average: {pairs.min():.2f} for layers {pairs.argmin()}"
            f" and {pairs.argmin() + 1}, {pairs.max():.2f} for layers {pairs.argmax()} and"
            f" {pairs.argmax() + 1}; all {len(grid)} layers at once miss by {whole:.2f} (1 is as"
            f" far off as without them; {len(self.arrays['n_pos'])} prompts)."
        )
        if "outputs" not in self.arrays:
            return text
        kl, same = (
            np.average(self.arrays["outputs"][..., i], axis=0, weights=self.arrays["n_pos"])
            for i in (1, 2)
        )
        outputs = "; ".join(
            f"{window}: KL(final‖parallel) {k:.2f} nats, the most probable token stays at"
            f" {100 * s:.0f} % of positions"
            for window, k, s in zip(self.analysis.output_windows, kl, same, strict=True)
        )
        return f"{text} At the output, windows {outputs}."
