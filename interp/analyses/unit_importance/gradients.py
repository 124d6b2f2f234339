"""What each unit's parameters and its output have to do with the loss, in one pass there and back.

A module's output y is proportional to its parameters θ (weights and bias together), so that the sum
of θ ∂L/∂θ is the sum of y ∂L/∂y over positions: no gradient of a parameter is needed, and every
prompt of a batch has its own sum.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.linalg import vector_norm

from interp.analyses.unit_importance.units import UnitModules
from interp.models.gradients import graph, slopes, tokens_in_a_graph
from interp.replay import Block, Recording
from interp.replay.blocks import first
from interp.result import concatenated
from interp.shapes import Tensors, per_query_head
from interp.sites import Site
from interp.sweeps.answers import SameLength
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.heads import lengths, output_map, output_scale, z_reader_of
from interp.sweeps.losses import loss

_HEADS = "heads"
Seen = dict[str, Tensor]


def first_order(group: SameLength, modules: UnitModules, *, is_text: bool) -> Tensors:
    """Return of every unit the sum of θ ∂L/∂θ and its size, the last axis of each tensor.

    Modules by their keys and the three parts as "size.PART" [batch layer …], "head"
    [batch layer head 2], and the "loss" [batch]. Sizes are of what a unit returns (its write to the
    stream), relative to the stream before its layer, mean over positions.
    """
    recording = group.recording
    most = tokens_in_a_graph(recording.n_layers, recording.resid(0).shape[-1])
    every = torch.arange(len(group.tokens), device=group.tokens.device)
    some = torch.split(every, max(1, most // recording.n_pos))
    done = [_rows(group.only(rows), recording, rows, modules, is_text=is_text) for rows in some]
    return concatenated(done) | _sizes(recording)


def _rows(
    group: SameLength, whole: Recording, rows: Tensor, modules: UnitModules, *, is_text: bool
) -> Tensors:
    recording, work = group.recording, group.recording.work
    before, seen = work.block_tokens, list[Seen]()
    with recording.running(), graph():
        resid = whole.resid(0)[rows].clone().requires_grad_()
        for layer, block in enumerate(recording.blocks):
            with _caught(block, modules) as outputs:
                resid = recording.block(layer, resid)
            seen.append(outputs)
        logits = recording.logits(resid, positions=group.predicting)
        value = loss(logits, group, is_text=is_text)
        flat = [output for outputs in seen for output in outputs.values()]
        derivatives = iter(slopes(value, flat))
    work.add(work.block_tokens - before)  # the way back costs about what the way there did
    streams = [vector_norm(whole.resid(at)[rows].float(), dim=-1) for at in range(len(seen))]
    both: dict[str, list[Tensor]] = {}
    for layer, outputs in enumerate(seen):
        for name, output in outputs.items():
            each = _heads if name == _HEADS else _whole
            both.setdefault(name, []).append(
                each(output.detach(), next(derivatives), streams[layer], whole, layer)
            )
    stacked = {name: torch.stack(layers, dim=1).cpu() for name, layers in both.items()}
    keys = dict(zip(modules.paths, modules.keys, strict=True)) | {_HEADS: "head"}
    named = {keys[name]: values for name, values in stacked.items()}
    return named | {"loss": value.detach().cpu()}


def _whole(
    output: Tensor, slope: Tensor, stream: Tensor, _recording: Recording, _layer: int
) -> Float[Tensor, "batch 2"]:
    """Return a module's sum of output times slope, and the size of its output."""
    n, n_pos = stream.shape
    total = (output.double() * slope.double()).reshape(n, -1).sum(1)
    size = vector_norm(output.float().reshape(n, n_pos, -1), dim=-1)
    return torch.stack([total.float(), _relative(size, stream)], dim=-1)


def _heads(
    z: Tensor, slope: Tensor, stream: Tensor, recording: Recording, layer: int
) -> Float[Tensor, "batch head 2"]:
    """Return the same of every head: of its part of the matrix that reads what heads return."""
    block = recording.blocks[layer]
    shape, scale = (*stream.shape, block.n_heads, -1), output_scale(block, z)
    z, slope = z.float().reshape(shape), slope.reshape(shape)
    total = torch.einsum("bphd,bphd->bh", z.double(), slope.double())
    size = lengths(z, output_map(recording, layer, per_query_head(z, shape[2])))
    size = size if scale is None else size * scale[:, None]
    return torch.stack([total.float(), _relative(size, stream[:, None])], dim=-1)


def _relative(
    size: Float[Tensor, "*rows pos"], stream: Float[Tensor, "*one pos"]
) -> Float[Tensor, "*rows"]:
    return (size / stream.clamp_min(SMALLEST_NORM)).mean(-1)


def _sizes(recording: Recording) -> Tensors:
    """Return the sizes of what layers, attention and MLPs write [batch layer]."""
    sizes: dict[str, list[Tensor]] = {"layer": [], "attention": [], "mlp": []}
    for layer in range(recording.n_layers):
        pre = recording.resid(layer).float()
        writes = {
            "layer": recording.resid(layer + 1).float() - pre,
            "attention": recording.clean(Site("attn_out", layer)).float(),
            "mlp": recording.clean(Site("mlp_out", layer)).float(),
        }
        for name, write in writes.items():
            stream = vector_norm(pre, dim=-1)
            sizes[name].append(_relative(vector_norm(write, dim=-1), stream))
    return {f"size.{name}": torch.stack(layers, dim=1).cpu() for name, layers in sizes.items()}


@contextmanager
def _caught(block: Block, modules: UnitModules) -> Iterator[Seen]:
    """Catch what modules return, and what heads do, while a block runs."""
    outputs: Seen = {}

    def see(path: str) -> object:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            outputs[path] = first(output)
            return output.clone()  # some families add to it in place

        return hook

    def see_heads(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs[_HEADS] = args[0]
        return (args[0].clone(), *args[1:])

    with ExitStack() as stack:
        for path in modules.paths:
            module = block.module.get_submodule(path)
            handle = module.register_forward_hook(see(path))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        stack.callback(z_reader_of(block).register_forward_pre_hook(see_heads).remove)
        yield outputs
