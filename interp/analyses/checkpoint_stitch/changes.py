"""How the weights of two models differ, block by block, and models between and beyond them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UnsuitedError
from interp.models import Model
from interp.shapes import Tensors

PERMUTED = 1000.0  # tokens' passes that permuting the change of all blocks takes: 400 to 1,300
TOP = 8  # an eighth of the first model's singular directions are its largest ones
CHANGED = CHANGE, RANK, SHARE, CHANCE = (
    "relative change",
    "effective rank of the change",
    "share of the change in the largest directions",
    "share by chance",
)


def block_weights(model: Model, layer: int) -> Tensors:
    """Return a block's parameters by their names in the model."""
    block = model.blocks[layer]
    return {f"{block.name}.{name}": value for name, value in block.module.named_parameters()}


def refuse_other_shapes(model: Model, other: Model) -> None:
    """Raise UnsuitedError where two models differ in layers, width, or a block's parameters."""
    for what in ("n_layers", "d_model"):
        one, two = getattr(model, what), getattr(other, what)
        if one != two:
            raise UnsuitedError(
                f"{other.name} has {what}={two}, {model.name} {what}={one}; checkpoint_stitch needs"
                " equal ones (depth_map with continued=true does not)"
            )
    for layer in range(model.n_layers):
        ours, theirs = block_weights(model, layer), block_weights(other, layer)
        for name in [*ours, *theirs]:
            shapes = [tuple(each[name].shape) if name in each else None for each in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise UnsuitedError(
                    f"{name} has shape {shapes[1]} in {other.name} and {shapes[0]} in {model.name};"
                    " equal ones are needed"
                )


def matrix_names(model: Model) -> list[str]:
    """Return the names inside a block of all matrices that any block has."""
    named = [
        name
        for block in model.blocks
        for name, weight in block.module.named_parameters()
        if weight.ndim == 2
    ]
    return [name.removesuffix(".weight") for name in dict.fromkeys(named)]


def changed_weights(model: Model, other: Model) -> Float[Tensor, "layer matrix measure"]:
    """Return `CHANGED` of every matrix; NaN where a block has none.

    They are ‖ΔW‖ / ‖W‖; exp of the entropy of the change's singular values; the share of ‖ΔW‖² on
    the first model's largest eighth of right singular directions; and that eighth itself.
    """
    names = matrix_names(model)
    found = torch.full((model.n_layers, len(names), len(CHANGED)), torch.nan)
    for layer in range(model.n_layers):
        ours, theirs = (
            dict(each.blocks[layer].module.named_parameters()) for each in (model, other)
        )
        for i, name in enumerate(names):
            key = name if name in ours else f"{name}.weight"
            if key in ours:
                found[layer, i] = _of_matrix(ours[key].detach(), theirs[key].detach())
    return found


def _of_matrix(weight: Tensor, other: Tensor) -> Float[Tensor, " measure"]:
    w = weight.float()
    change = other.to(w.device).float() - w
    if w.shape[0] < w.shape[1]:
        w, change = w.T, change.T
    total = change.square().sum()
    size = (total / w.square().sum().clamp_min(torch.finfo(w.dtype).tiny)).sqrt()
    if not total:
        return torch.tensor([0.0, 0.0, torch.nan, torch.nan])
    k = max(1, w.shape[1] // TOP)
    largest = torch.linalg.eigh(w.T @ w)[1][:, -k:]
    sizes = torch.linalg.eigvalsh(change.T @ change).clamp_min(0).sqrt()
    shares = sizes / sizes.sum()
    rank = torch.special.entr(shares).sum().exp()
    share = (change @ largest).square().sum() / total
    return torch.stack([size, rank, share, torch.tensor(k / w.shape[1])]).cpu()


def as_tokens(model: Model) -> float:
    """Return as how many tokens' passes the decompositions of `changed_weights` count.

    Those of a matrix [n m], n ≤ m, are 16 n³ + 8 n² m operations, a token's pass two a weight.
    """
    shapes = [weight.shape for block in model.blocks for weight in block.module.parameters()]
    sizes = [(min(shape), max(shape)) for shape in shapes if len(shape) == 2]
    operations = sum(16 * n**3 + 8 * n**2 * m for n, m in sizes)
    return operations / (2 * sum(n * m for n, m in sizes))


def most_changed(model: Model, other: Model) -> int:
    """Return the block whose weights changed most, relative to their norm."""
    ratios = []
    for layer in range(model.n_layers):
        ours, theirs = block_weights(model, layer), block_weights(other, layer)
        change = sum(
            float((theirs[name].to(w.device).float() - w.float()).square().sum())
            for name, w in ours.items()
        )
        ratios.append(change / sum(float(w.float().square().sum()) for w in ours.values()))
    return max(range(len(ratios)), key=lambda layer: ratios[layer])


def between(model: Model, other: Model, layer: int, *, share: float) -> Tensors:
    """Return a block's weights at a share of the way from one model to another."""
    theirs = block_weights(other, layer)
    return {
        name: torch.lerp(w.float(), theirs[name].to(w.device).float(), share).to(w.dtype)
        for name, w in block_weights(model, layer).items()
    }


def permuted(model: Model, other: Model, layer: int, *, seed: int) -> Tensors:
    """Return a block's weights with the change to another model's, its entries permuted.

    Every parameter's change keeps its norm and its values, and loses its direction.
    """
    theirs, generator = block_weights(other, layer), torch.Generator()
    generator.manual_seed(seed + 2**20 * layer)
    found = {}
    for name, w in block_weights(model, layer).items():
        change = (theirs[name].to(w.device).float() - w.float()).flatten()
        order = torch.randperm(len(change), generator=generator).to(w.device)
        found[name] = (w.float() + change[order].reshape(w.shape)).to(w.dtype)
    return found


def names_as_numbers(names: Sequence[str]) -> Tensor:
    """Return names as bytes [byte], so that they can be kept with numbers."""
    return torch.tensor([*"\n".join(names).encode()], dtype=torch.uint8)
