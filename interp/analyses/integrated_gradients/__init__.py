"""Until which layer does each token matter for the answer?

"Do Language Models Use Their Depth Efficiently?" (arXiv 2505.13898), section 3.3: integrated
gradients of the probability of the answer's tokens (summed over them), F, with respect to what a
layer hands on, S, from a baseline B without information, S's mean over the prompt's positions:

    A[l, t] = sum_d (S - B)[t, d] * integral over a in [0, 1] of dF/dS (B + a (S - B)) [t, d]

Nodes are added until each integral is settled and all add up to the known F(S) - F(B).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from interp.analyses.integrated_gradients.quadrature import (
    FEWEST_NODES,
    Evaluate,
    Integral,
    integrate,
    left_riemann,
)
from interp.analyses.integrated_gradients.result import IntegratedGradientsResult
from interp.analyses.integrated_gradients.varied import behind_part, varied_of
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError
from interp.models import Model
from interp.models.gradients import NUMBERS_OF_A_TOKEN, graph, slopes, tokens_in_a_graph
from interp.models.quantised import Asked
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.stats.align import align
from interp.sweeps.answers import (
    SameLength,
    by_answer_length,
    length_group_sizes,
    probability,
    require_answers,
)
from interp.sweeps.cosines import Part
from interp.sweeps.layers import COARSEST, every_nth
from interp.sweeps.positions import FirstPosition, first_read
from interp.tasks.batch import TokenBatch

Nodes = Literal["adaptive", "published"]
_WEIGHT = 0.5  # of `max_nodes` (256) that a case takes on average: 65 to 129, with checks


@dataclass(frozen=True)
class IntegratedGradients(Analysis):
    """Integrate from a mean residual to the clean one, at every layer.

    `nodes` "adaptive" places at most `max_nodes` until each token is settled within `tolerance` (of
    its size, or of 5 % of all sizes) and so is the sum (of at least 0.01); "published" takes
    `max_nodes` equal steps, each at its left end. `part` is varied; `first_position` "excluded"
    leaves token 0 out of the mean; `whole_answer` counts the answer's last token in, as published.
    Only `every` n-th layer is looked at, the last among them.
    """

    part: Part = "layer"
    nodes: Nodes = "adaptive"
    tolerance: float = 0.01
    max_nodes: Annotated[int, AtLeast(2)] = 256
    first_position: FirstPosition = "included"
    whole_answer: bool = False
    every: Annotated[int, AtLeast(1)] = 1
    seed: int = 0
    rank: ClassVar[int] = 11
    asks_of_weights: ClassVar[Asked | None] = "gradients"
    page: ClassVar[str] = "erasure"
    question: ClassVar[str] = "Up to which layer does each token matter for the answer?"
    how: ClassVar[str] = (
        "The answer's probability is differentiated at points between a mean stream and the clean"
        " one, at every layer. Points are added until attributions settle and add up to its change."
    )
    caveat: ClassVar[str] = (
        "Attributions depend on the stream that stands for “no information”; another baseline"
        " shares them out differently."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes == "adaptive" and self.max_nodes < FEWEST_NODES:
            raise AnalysisError(f"max_nodes={self.max_nodes}; at least {FEWEST_NODES} are needed")
        if not self.tolerance > 0:
            raise AnalysisError(f"tolerance={self.tolerance}; more than 0 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError without answers, AnalysisError for prompts too short for a baseline."""
        require_answers(shard)
        n_pos, fewest = shard.tokens.shape[1], 2 + first_read(self.first_position)
        if n_pos < fewest:
            name = shard.prompts[0].id
            raise AnalysisError(
                f"prompt {name!r} has {n_pos} tokens; a baseline needs at least {fewest}"
            )

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return attributions [batch layer pos], and how well they are known [batch layer]."""
        n, layers = len(shard.prompts), recording.n_layers
        sizes = length_group_sizes(shard, whole=self.whole_answer)
        parts: Tensors = {
            "attribution": torch.zeros(n, layers, max(size.n_pos for size in sizes)),
            **{key: torch.zeros(n, layers) for key in ("difference", "error", "token_error")},
            **{key: torch.zeros(n, layers, dtype=torch.int32) for key in ("nodes", "capped")},
            "n_pos": torch.zeros(n, dtype=torch.int64),
            "last": shard.last.cpu(),
        }
        for group in by_answer_length(recording, shard, whole=self.whole_answer):
            n_pos = group.recording.n_pos
            parts["n_pos"][group.rows.cpu()] = n_pos
            for layer in every_nth(layers, self.every):
                integrals = self._integrals(group, layer)
                for row, integral in zip(group.rows.tolist(), integrals, strict=True):
                    parts["attribution"][row, layer, :n_pos] = integral.components.cpu()
                    parts["difference"][row, layer] = integral.difference
                    parts["error"][row, layer] = integral.error
                    parts["token_error"][row, layer] = integral.worst_error
                    parts["nodes"][row, layer] = integral.n_nodes
                    parts["capped"][row, layer] = integral.is_capped
        return parts

    def _integrals(self, group: SameLength, layer: int) -> list[Integral]:
        evaluate, n = self._slopes(group, layer), len(group.rows)
        if self.nodes == "adaptive":
            return integrate(evaluate, n, tolerance=self.tolerance, max_nodes=self.max_nodes)
        recording = group.recording
        logits = recording.logits(recording.resid(recording.n_layers), positions=group.predicting)
        ends = probability(logits, group.answer).tolist()
        return left_riemann(evaluate, n, n_nodes=self.max_nodes, ends=ends)

    def _slopes(self, group: SameLength, layer: int) -> Evaluate:
        """Return what evaluates F and its slope along the path, at each position."""
        recording = group.recording
        source = varied_of(recording, layer, self.part)
        baseline = source[:, first_read(self.first_position) :].float().mean(1, keepdim=True)
        path = source.float() - baseline

        def some(which: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            rows, work = recording.of(group.tokens[which]), recording.work
            before = work.block_tokens
            with graph():
                varied = baseline[which] + at[:, None, None] * path[which]
                varied = varied.to(source.dtype).requires_grad_()
                resid = behind_part(self.part, recording, rows, which, layer=layer, varied=varied)
                resid = rows.chain(range(layer + 1, rows.n_layers), resid)
                logits = rows.logits(resid, positions=group.predicting)
                value = probability(logits, group.answer[which])
                (slope,) = slopes(value, [varied])
            work.add(work.block_tokens - before)  # the way back costs about what the way there did
            return value.detach(), (slope * path[which]).sum(-1)

        def evaluate(which: Sequence[int], at: Sequence[float]) -> tuple[Tensor, Tensor]:
            size = max(1, tokens_in_a_graph(recording.n_layers, path.shape[-1]) // recording.n_pos)
            prompts = torch.split(torch.tensor(which, device=source.device), size)
            nodes = torch.split(torch.tensor(at, device=source.device), size)
            done = [some(*chunk) for chunk in zip(prompts, nodes, strict=True)]
            values, changes = (torch.cat(chunks).cpu() for chunks in zip(*done, strict=True))
            return values, changes

        return evaluate

    def combine(self, parts: Sequence[Tensors]) -> IntegratedGradientsResult:
        """Return attributions aligned at the prompts' ends, and the errors of all sums."""
        keys = ("attribution", "last", "n_pos")
        attribution, last, n_pos = ([part[key].numpy() for part in parts] for key in keys)
        n_layers = attribution[0].shape[1]
        layers = np.array(every_nth(n_layers, self.every))
        aligned = align([part[:, layers] for part in attribution], last=last, n_pos=n_pos)
        sums = joined([{key: part[key] for key in part if key not in keys} for part in parts])
        of_layers = {key: array[:, layers] for key, array in sums.items()}
        return IntegratedGradientsResult(self, aligned, of_layers, layers, n_layers)

    def coarser(self) -> "IntegratedGradients | None":
        """Return the same at every second of these layers, down to every eighth of all."""
        return replace(self, every=2 * self.every) if self.every < COARSEST else None

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return `max_nodes` times there and back through each layer's later blocks, a bound."""
        layers, n_tokens = model.n_layers, shard.tokens.numel()
        half = 0.5 if self.part == "attention" else 0.0
        blocks = sum(layers - 1 - layer + half for layer in every_nth(layers, self.every))
        sizes = length_group_sizes(shard, whole=self.whole_answer)
        n_read = sum(size.n_prompts * size.n_pos for size in sizes)
        there_and_back = 2 * self.max_nodes * blocks * n_read
        longest = max(size.n_pos for size in sizes)
        numbers = len(shard.prompts) * layers * (longest + 5)
        most = max(1, tokens_in_a_graph(layers, model.d_model) // longest)
        wanted = 16 if self.nodes == "adaptive" else self.max_nodes  # of a prompt at once, mostly
        rows = min(most, wanted * max(size.n_prompts for size in sizes))
        each = NUMBERS_OF_A_TOKEN * layers * model.d_model
        held = rows * (longest * each + 3 * model.d_vocab)
        forwards = (there_and_back / layers + sum(size.passed for size in sizes)) / n_tokens
        backwards = there_and_back / 2 / (layers * n_tokens)
        logits = self.max_nodes * len(every_nth(layers, self.every)) * len(shard.prompts)
        is_bound = self.nodes != "published"
        share = _WEIGHT if is_bound else 1.0
        return Cost(forwards, numbers, held, is_bound, share, backwards, int(share * logits))
