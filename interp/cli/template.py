"""How long is the residual stream before every layer?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp import Model, Task
from interp.analysis import Analysis, Compared, Cost, Finding, Result, joined
from interp.figures.intervals import interval
from interp.figures.plots import layer_step, titled
from interp.replay import Recording
from interp.shapes import Tensors
from interp.stats.estimate import Estimate, estimate, estimates
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class StreamLength(Analysis):  # its fields are the parameters: --set stream_length.n_random=64
    """Measure the stream's norm at the last token; the control are `n_random` random texts."""

    n_random: int = 32
    seed: int = 0  # the run's
    question = "How long is the residual stream before every layer?"
    how = "The norm of the stream at the last token; control: random tokens."
    caveat = "Every layer's norm takes the length out again before it reads."

    def prepare(self, model: Model, task: Task) -> Tensors:  # once; model.W_U, model.tokenizer, …
        draws = torch.Generator().manual_seed(self.seed)
        batch = model.tokenize(torch.randint(model.d_vocab, (self.n_random, 8), generator=draws))
        return {"random": lengths(model.record(batch), batch).mean(0)}

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        control = prepared["random"].expand(len(shard.prompts), -1)  # the first axis is the prompt
        return {"length": lengths(recording, shard), "control": control}

    def combine(self, parts: Sequence[Tensors]) -> Result:  # of all shards; no model here
        return StreamLengthResult(**joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:  # beyond the clean pass
        return Cost(forwards=0.0, numbers=2 * len(shard.prompts) * (model.n_layers + 1))


def lengths(recording: Recording, batch: TokenBatch) -> torch.Tensor:  # also .run, .forward(…)
    rows, taps = torch.arange(len(batch.last)), range(recording.n_layers + 1)
    return torch.stack([recording.resid(i)[rows, batch.last].float().norm(dim=-1) for i in taps], 1)


@dataclass(frozen=True, eq=False, repr=False)
class StreamLengthResult(Result):
    length: np.ndarray  # [prompt tap], as the control; the last tap is after the last layer
    control: np.ndarray

    def to_frame(self) -> pd.DataFrame:  # mean, low, high and n_prompts of every tap
        frame = pd.DataFrame(estimates(self.length, groups=self.prompt_groups))
        return frame.assign(tap=frame.index, control=self.control[0])

    def plot(self) -> go.Figure:
        rows = self.to_frame()
        figure = go.Figure(go.Scatter(y=rows["mean"], error_y=interval(rows), name="prompts"))
        figure.add_scatter(y=rows["control"], name="random tokens", line={"dash": "dash"})
        return titled(figure.update_xaxes(dtick=layer_step(len(rows))), "Stream length by layer")

    def findings(self) -> tuple[Finding, ...]:  # kind="compares" for a difference from a control
        growth = estimate(self.length[:, -1] / self.length[:, 0], groups=self.prompt_groups)
        claim = f"The stream is {growth:.3g} times as long after the last layer as at the start."
        control = Estimate(float(self.control[0, -1] / self.control[0, 0]))
        return (Finding(claim, growth, "growth of the stream", Compared("random tokens", control)),)
