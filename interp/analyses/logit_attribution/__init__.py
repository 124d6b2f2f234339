"""What does each component write to the answer's logit?

Direct logit attribution: the last stream is the sum of all that was written into it, and with the
scale of the final norm frozen, so are logits ("A Mathematical Framework for Transformer Circuits",
2021). The embedding, each head, attention's biases, each MLP and the biases of norm and unembedding
add up to the difference of the answer's and the wrong answer's logit (without one: to the answer's
less the mean logit), in front of any soft-cap. What a part does through later layers, and by
changing the norm, is not in it: beside the largest stands what is lost without them, exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analyses.logit_attribution.result import LogitAttributionResult
from interp.analysis import Analysis, Cost
from interp.models import Model
from interp.models.norms import Gain
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.answers import require_answers
from interp.sweeps.heads import z_reader_of
from interp.sweeps.tags import keys_of, rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_SEEN = 32  # prompts on which the components to be ablated are chosen
Direction = Float[Tensor, "batch d_model"]


@dataclass(frozen=True)
class LogitAttribution(Analysis):
    """Share the answer's logit among the components, at the prompt's last position.

    The `ablated` components that write most, in the mean of the first 32 prompts, are set to zero
    there, one at a time.
    """

    ablated: Annotated[int, AtLeast(0)] = 10
    seed: int = 0
    rank: ClassVar[int] = 8
    page: ClassVar[str] = "analysis"
    question: ClassVar[str] = "What does each component write to the answer's logit?"
    how: ClassVar[str] = (
        "With the final norm's scale frozen, what the embedding, heads and MLPs write into the last"
        " stream adds up to the logit difference. The largest are also ablated, exactly."
    )
    caveat: ClassVar[str] = (
        "What a component does through later layers, and by changing the norm, is not in its"
        " share; early components work through others."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise without answers, and where what single heads write cannot be told apart."""
        require_answers(shard)
        z_reader_of(model.blocks[0])

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return each prompt's direction behind the final norm, and which components are ablated.

        Components are numbered: the heads, layer by layer, and behind them the MLPs.
        """
        shards = [model.tokenize(shard) for shard in model.shards(task)]
        directions = [_directions(model, shard) for shard in shards]
        prepared = {
            "keys": torch.cat([keys_of(shard.prompts) for shard in shards]),
            "directions": torch.cat([direction for direction, _ in directions]),
            "offsets": torch.cat([offset for _, offset in directions]),
            "ablated": torch.zeros(0, dtype=torch.long),
        }
        seen, written = 0, list[Tensor]()
        for shard in shards if self.ablated else ():
            parts = _Parts(model.record(shard), shard, prepared).measure()
            written.append(torch.cat([parts["heads"].flatten(1), parts["mlps"]], dim=1))
            if (seen := seen + len(shard.prompts)) >= _SEEN:
                break
        if written:
            size = torch.cat(written).mean(0).abs()
            prepared["ablated"] = size.topk(min(self.ablated, len(size))).indices
        return prepared

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return what parts write [batch ...], and what is lost without some [batch ablated].

        "whole" is the logit difference in front of a soft-cap, "rest" what no part accounts for.
        """
        parts = _Parts(recording, shard, prepared)
        lost = [parts.lost_without(int(number)) for number in prepared["ablated"]]
        n = len(shard.prompts)
        exact = torch.stack(lost, dim=1) if lost else torch.zeros(n, 0)
        numbers = prepared["ablated"].expand(n, -1)
        has_wrong = torch.full((n,), shard.wrong is not None)
        more = {"exact": exact.cpu(), "ablated": numbers.clone(), "has_wrong": has_wrong}
        return parts.measure() | more

    def combine(self, parts: Sequence[Tensors]) -> LogitAttributionResult:
        """Return what parts write, of all prompts."""
        return LogitAttributionResult.of(self, parts)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return every block once for its heads, and half of the last token's for each ablation."""
        (n, n_pos), n_layers = shard.tokens.shape, model.n_layers
        each = 1 / n_layers + 0.5 / n_pos
        once = float(min(_SEEN, n) * n_pos) if self.ablated else 0.0
        numbers = n * (n_layers * (model.n_heads + 2) + 4 + 2 * self.ablated)
        logits = n * (self.ablated + 1)
        forwards = 1.0 + self.ablated * each
        return Cost(forwards, numbers, 4 * n * n_pos * model.d_model, logits=logits, once=once)


def _directions(model: Model, shard: TokenBatch) -> tuple[Direction, Float[Tensor, " batch"]]:
    """Return what reads the logit difference behind the final norm, and the unembedding's bias."""
    config, w_u = model.module.config.get_text_config(), model.modules.w_u
    scale = (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0)
    weight = w_u.get_parameter("weight").detach()
    answer = require_answers(shard)[:, 0]
    bias = getattr(w_u, "bias", None)
    bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach().float()
    direction, offset = weight[answer].float(), bias[answer]
    if shard.wrong is None:
        direction, offset = direction - weight.float().mean(0), offset - bias.mean()
    else:
        direction, offset = direction - weight[shard.wrong].float(), offset - bias[shard.wrong]
    return direction * scale, offset * scale


class _Parts:
    """The parts of a shard's logit differences."""

    def __init__(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> None:
        self.recording, self.shard = recording, shard
        rows = rows_of(prepared["keys"], shard.prompts)
        device = shard.tokens.device
        behind, offset = (prepared[name].to(device)[rows] for name in ("directions", "offsets"))
        norm = recording.runner.final_norm
        final = self._at_end(recording.resid(recording.n_layers))
        frozen = Gain.of(norm, final).at(norm, final)
        self.behind, self.direction = behind, frozen.back(behind)
        self.bias, self.offset = frozen.offset(behind) + offset, offset
        self.whole = self._read(final)

    def _read(self, last: Direction) -> Float[Tensor, " batch"]:
        """Return the logit difference of last residuals, in front of a soft-cap."""
        normed = self.recording.runner.final_norm(last[:, None])[:, 0].float()
        whole: Tensor = (normed * self.behind).sum(-1) + self.offset
        return whole

    def _at_end(self, activation: Tensor) -> Tensor:
        rows = torch.arange(len(activation), device=activation.device)
        return activation[rows, self.shard.last]

    def _written(self, site: Site) -> Float[Tensor, " batch"]:
        return (self._at_end(self.recording.clean(site)).float() * self.direction).sum(-1)

    def measure(self) -> Tensors:
        """Return what every part writes to the logit difference."""
        layers = range(self.recording.n_layers)
        heads = torch.stack([self._heads(layer) for layer in layers], dim=1)
        attention = torch.stack([self._written(Site("attn_out", i)) for i in layers], dim=1)
        mlps = torch.stack([self._written(Site("mlp_out", i)) for i in layers], dim=1)
        parts = {
            "embedding": self._written(Site("resid_pre", 0)),
            "heads": heads,
            "attention bias": attention - heads.sum(2),
            "mlps": mlps,
            "bias": self.bias,
        }
        added = sum(part.flatten(1).sum(1) if part.ndim > 1 else part for part in parts.values())
        return {
            name: part.cpu()
            for name, part in (parts | {"whole": self.whole, "rest": self.whole - added}).items()
        }

    @torch.enable_grad()
    def _heads(self, layer: int) -> Float[Tensor, "batch head"]:
        """Return what each head writes: its output times what reads it through the layer's map."""
        block = self.recording.blocks[layer]
        reader = z_reader_of(block)
        z = self._at_end(self.recording.inside(Site("z", layer))).detach().requires_grad_()
        written = reader(z[:, None])[:, 0]
        direction = self.direction
        if block.attn_write not in (block.attn, reader):  # a norm behind attention
            with torch.no_grad():
                gain = Gain.of(block.attn_write, written.detach())
                direction = gain.at(block.attn_write, written.detach()).back(direction)
        (towards,) = torch.autograd.grad((written.float() * direction).sum(), z)
        of_heads = (z.detach().float() * towards.float()).reshape(len(z), block.n_heads, -1)
        heads: Tensor = of_heads.sum(-1) * block.write_scale
        return heads

    def lost_without(self, number: int) -> Float[Tensor, " batch"]:
        """Return what the logit difference loses with a component set to zero at the last token."""
        recording, n_layers = self.recording, self.recording.n_layers
        n_heads = recording.blocks[0].n_heads
        is_head = number < n_layers * n_heads
        layer = number // n_heads if is_head else number - n_layers * n_heads
        rows = torch.arange(len(self.shard.tokens), device=self.shard.tokens.device)

        def without(activation: Tensor) -> Tensor:
            size = activation.shape[-1] // n_heads
            own = slice(number % n_heads * size, (number % n_heads + 1) * size)
            changed = activation.clone()
            changed[rows, self.shard.last, own if is_head else slice(None)] = 0
            return changed

        at: SiteKind = "z" if is_head else "mlp_out"
        resid = recording.block_with(layer, recording.resid(layer), at=at, edit=without)
        end = self.shard.tokens.shape[1] - 1
        variants = resid[None, :, end:]
        for later in range(layer + 1, n_layers):
            variants = recording.run(later, variants, start=end)
        return self.whole - self._read(variants[0][:, 0])
