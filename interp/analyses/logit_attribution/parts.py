"""What each component writes to a logit difference, the final norm frozen, and what it is worth."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import SiteError
from interp.models import Model
from interp.models.norms import Gain
from interp.replay import Block, Recording
from interp.shapes import Tensors
from interp.sites import Site, SiteKind
from interp.sweeps.answers import require_answers
from interp.sweeps.heads import norm_behind, z_reader_of
from interp.sweeps.tags import rows_of
from interp.tasks.batch import TokenBatch

Direction = Float[Tensor, "batch d_model"]


def neuron_reader_of(block: Block) -> nn.Module:
    """Return the module that reads neurons; raise SiteError where there is none."""
    if block.mlp_post_reader is None:
        family = type(block.module).__name__
        raise SiteError(f"{family}: what single neurons write cannot be told apart here")
    return block.mlp_post_reader


def directions_of(model: Model, shard: TokenBatch) -> tuple[Direction, Float[Tensor, " batch"]]:
    """Return what reads the logit difference after the final norm, and the unembedding's bias."""
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


class Parts:
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
        """Return the logit difference of last residuals, before a soft-cap."""
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

    def _heads(self, layer: int) -> Float[Tensor, "batch head"]:
        """Return what each head writes."""
        block = self.recording.blocks[layer]
        each = self._written_by(Site("z", layer), z_reader_of(block), block.attn_write)
        heads: Tensor = each.reshape(len(each), block.n_heads, -1).sum(-1)
        return heads

    def neurons(self, places: Sequence[tuple[int, int]]) -> Float[Tensor, "batch neuron"]:
        """Return what neurons, each a layer and its number there, write: a part of their MLPs."""
        of_layer = {}
        for layer in {layer for layer, _ in places}:
            block = self.recording.blocks[layer]
            reader = neuron_reader_of(block)
            of_layer[layer] = self._written_by(Site("mlp_post", layer), reader, block.mlp_write)
        return torch.stack([of_layer[layer][:, neuron] for layer, neuron in places], dim=1).cpu()

    @torch.enable_grad()
    def _written_by(self, site: Site, reader: nn.Module, writer: nn.Module) -> Tensor:
        """Return activations [batch unit] times what reads them through the layer's own map."""
        values = self._at_end(self.recording.inside(site)).detach().requires_grad_()
        written, direction = reader(values[:, None])[:, 0], self.direction
        if (norm := norm_behind(reader, writer)) is not None:
            with torch.no_grad():
                gain = Gain.of(norm, written.detach())
                direction = gain.at(norm, written.detach()).back(direction)
        (towards,) = torch.autograd.grad((written.float() * direction).sum(), values)
        scale = self.recording.blocks[site.layer].write_scale
        return values.detach().float() * towards.float() * scale

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
