"""Multinomial logistic probes with L2, of many taps and several sets of labels at once.

The loss is Σ -log p(label) + l2/2 ‖W‖², bias included: a class that a small training part lacks
would otherwise get probability 0. Everything is in fp32, on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

Rows = Float[Tensor, "tap row feature"]
Unseen = Float[Tensor, "tap unseen feature"]
_AT_ONCE = 2**20  # numbers of the taps that are fitted together: they stay in the cache
_MOST_STEPS = 200
_NEAR = 1e-3  # of the gradient; log-probabilities change by less than 0.01
_CONSTANT = 1e-5  # standard deviation, relative to size, of a coordinate that is taken as constant
_JITTER = 1e-5


@dataclass(frozen=True)
class Fit:
    """How probes are fitted: number of classes, penalty, whether coordinates become z-scores."""

    n_classes: int
    l2: float
    z_score: bool = True


def log_p(
    train: Rows, labels: Int[Tensor, "set row"], test: Unseen, fit: Fit
) -> Float[Tensor, "tap unseen set n_classes"]:
    """Return log-probabilities of test rows by probes fitted to every set of labels."""
    parts = []
    size = max(1, _AT_ONCE // train[0].numel())
    for some, others in zip(torch.split(train, size), torch.split(test, size), strict=True):
        rows, unseen = scaled(some.float(), others.float(), z_score=fit.z_score)
        if rows.shape[-1] > rows.shape[-2]:
            rows, unseen = spanned(rows, unseen)
        weights = fitted(rows, labels, fit)
        parts.append(_logits(unseen, weights, n_sets=len(labels)).log_softmax(-1))
    return torch.cat(parts)


def scaled(
    train: Rows, test: Unseen, *, z_score: bool
) -> tuple[Float[Tensor, "tap row wide"], Float[Tensor, "tap unseen wide"]]:
    """Return rows less the training rows' mean, of length about 1, and a constant 1 after them.

    With `z_score`, every coordinate is first divided by its deviation over the training rows;
    coordinates that are constant there become 0.
    """
    mean, size = train.mean(1, keepdim=True), train.square().mean(1, keepdim=True).sqrt()
    centred, unseen = train - mean, test - mean
    if z_score:
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        is_constant = deviation <= _CONSTANT * size
        weight = torch.where(is_constant, 0.0, 1 / deviation.where(~is_constant, 1.0))
        centred, unseen = centred * weight, unseen * weight
    length = centred.square().sum(-1).mean(-1).sqrt()[:, None, None]
    length = length.where(length > 0, 1.0)
    return pad(centred / length, (0, 1), value=1.0), pad(unseen / length, (0, 1), value=1.0)


def spanned(
    train: Rows, test: Unseen
) -> tuple[Float[Tensor, "tap row row"], Float[Tensor, "tap unseen row"]]:
    """Return rows in as many coordinates as there are training rows, with the same products.

    L2 gives no weight to what is orthogonal to all training rows, so the probe stays the same.
    """
    gram = (train @ train.mT).double()
    gram.diagonal(dim1=1, dim2=2).add_(_JITTER)
    root = torch.linalg.cholesky(gram)
    across = (train @ test.mT).double()
    unseen = torch.linalg.solve_triangular(root, across, upper=False).mT
    return root.float(), unseen.float()


def fitted(
    rows: Rows, labels: Int[Tensor, "set row"], fit: Fit
) -> Float[Tensor, "tap feature out"]:
    """Return the weights that minimise the loss, by L-BFGS from 0."""
    n_sets = len(labels)
    target = rearrange(one_hot(labels, fit.n_classes).float(), "set row k -> row set k")
    weights = rows.new_zeros(len(rows), rows.shape[-1], n_sets * fit.n_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=_MOST_STEPS,
        tolerance_grad=_NEAR,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Float[Tensor, ""]:
        own = weights.detach()
        predicted = _logits(rows, own, n_sets=n_sets).log_softmax(-1)
        miss = rearrange(predicted.exp() - target, "tap row set k -> tap row (set k)")
        weights.grad = rows.mT @ miss + fit.l2 * own
        value: Tensor = fit.l2 / 2 * own.square().sum() - (predicted * target).sum()
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _logits(
    rows: Rows, weights: Float[Tensor, "tap feature out"], *, n_sets: int
) -> Float[Tensor, "tap row set n_classes"]:
    logits: Tensor = rearrange(rows @ weights, "tap row (set k) -> tap row set k", set=n_sets)
    return logits


def held_out(
    rows: Rows,
    labels: Int[Tensor, "set row"],
    folds: Int[Tensor, " row"],
    fit: Fit,
) -> Bool[Tensor, "set row tap"]:
    """Return whether each row's label is named by a probe of the other folds' rows."""
    right = torch.zeros(len(labels), rows.shape[1], len(rows), dtype=torch.bool)
    for fold in range(int(folds.max()) + 1):
        test = folds == fold
        known = labels[:, ~test]
        predicted = log_p(rows[:, ~test], known, rows[:, test], fit)
        named = rearrange(predicted.argmax(-1), "tap row set -> set row tap")
        right[:, test] = named == labels[:, test, None]
    return right


def online_bits(
    rows: Rows,
    labels: Int[Tensor, "set row"],
    order: Int[Tensor, " row"],
    cuts: Sequence[int],
    fit: Fit,
) -> Float[Tensor, "set row tap"]:
    """Return what each label costs in the online code (arXiv 2003.12298), in bits.

    Rows are sent in an order: those before the first cut at log2(classes), those up to the next
    cut at the -log2 p of a probe of all rows before it.
    """
    uniform = float(torch.tensor(float(fit.n_classes)).log2())
    bits = torch.full((len(labels), rows.shape[1], len(rows)), uniform)
    for cut, end in zip(cuts, [*cuts[1:], len(order)], strict=True):
        before, here = order[:cut], order[cut:end]
        if not len(here):
            continue
        predicted = log_p(rows[:, before], labels[:, before], rows[:, here], fit)
        of_sets = rearrange(predicted, "tap row set k -> set row tap k")
        sent = labels[:, here, None, None].expand(*of_sets.shape[:-1], 1)
        bits[:, here] = -of_sets.gather(-1, sent)[..., 0] / torch.tensor(2.0).log()
    return bits
