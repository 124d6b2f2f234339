"""Routers that imitate paths: a small MLP before every layer says skip, run or repeat.

Dr.LLM (arXiv 2510.12773). Before a layer, the means of 8 windows of tokens go through an MLP
d_model -> 128 -> 3, the windows' logits are averaged, and the largest is the number of runs. The
loss is the class-balanced focal one, -a_y (1 - p_y)^2 log p_y. Unlike published, windows end at the
last token rather than begin at the first, and are divided by their RMS.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import gelu

from interp.analyses.layer_routers.routes import Rows, Visits, visited
from interp.replay import Recording
from interp.shapes import Resid, Tensors

N_WINDOWS, HIDDEN, N_CLASSES = 8, 128, 3
_RATE, _DECAY, _WARM_UP = 1e-3, 0.01, 0.1
_BETA, _GAMMA = 0.999, 2.0
_EVERY = 10  # steps from one look at the validation loss to the next

Windows = Float[Tensor, "rows window d_model"]


def windows_of(resid: Resid) -> Windows:
    """Return the means of 8 windows of equal length (fewer for fewer tokens), each of RMS 1.

    They end at the last token; up to 7 first tokens are left out.
    """
    rows, n_pos, d_model = resid.shape
    n = min(N_WINDOWS, n_pos)
    used = resid[:, n_pos - n * (n_pos // n) :].float()
    means = used.reshape(rows, n, n_pos // n, d_model).mean(2)
    return means * means.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


@dataclass(frozen=True)
class Routers:
    """The MLPs of all layers."""

    inner: Float[Tensor, "layer d_model hidden"]
    inner_bias: Float[Tensor, "layer hidden"]
    outer: Float[Tensor, "layer hidden choice"]
    outer_bias: Float[Tensor, "layer choice"]

    @classmethod
    def drawn(cls, n_layers: int, d_model: int, *, seed: int) -> "Routers":
        """Return routers with Xavier's uniform weights and biases of 0."""
        generator = torch.Generator().manual_seed(seed)

        def weights(fan_in: int, fan_out: int) -> Tensor:
            end = math.sqrt(6 / (fan_in + fan_out))
            return (2 * torch.rand(n_layers, fan_in, fan_out, generator=generator) - 1) * end

        inner, outer = weights(d_model, HIDDEN), weights(HIDDEN, N_CLASSES)
        return cls(inner, torch.zeros(n_layers, HIDDEN), outer, torch.zeros(n_layers, N_CLASSES))

    @classmethod
    def always_run(cls, n_layers: int, d_model: int) -> "Routers":
        """Return routers that run every layer once."""
        routers = cls.drawn(n_layers, d_model, seed=0)
        routers.outer.zero_()
        routers.outer_bias[:, 1] = 1.0
        return routers

    @classmethod
    def read(cls, prepared: Tensors, device: torch.device) -> "Routers":
        """Return the routers that `tensors` made."""
        return cls(*(prepared[f"supervised.{f.name}"].to(device) for f in fields(cls)))

    def tensors(self) -> Tensors:
        """Return the weights by name."""
        return {f"supervised.{f.name}": getattr(self, f.name) for f in fields(self)}

    def logits(
        self, windows: Float[Tensor, "rows layer window d_model"]
    ) -> Float[Tensor, "rows layer choice"]:
        """Return the logits of 0, 1 and 2 runs of every layer."""
        hidden = torch.einsum("rlwd,ldh->rlwh", windows, self.inner)
        hidden = gelu(hidden + self.inner_bias[:, None])
        choice = torch.einsum("rlwh,lhc->rlwc", hidden, self.outer)
        return (choice + self.outer_bias[:, None]).mean(2)

    def decide(self, layer: int, resid: Resid) -> Rows:
        """Return how often each prompt runs a layer, from the residual before it."""
        one = slice(layer, layer + 1)
        own = Routers(*(getattr(self, f.name)[one] for f in fields(self)))
        return own.logits(windows_of(resid)[:, None])[:, 0].argmax(-1)


def class_weights(labels: Int[Tensor, "prompt layer"]) -> Float[Tensor, " choice"]:
    """Return weights ∝ (1 - b) / (1 - b^n) of classes that occur n times, which add up to 3.

    b is 0.999. A class that does not occur has weight 0.
    """
    counts = torch.bincount(labels.flatten(), minlength=N_CLASSES).double()
    weights = torch.where(counts > 0, (1 - _BETA) / (1 - _BETA ** counts.clamp_min(1)), 0.0)
    return (N_CLASSES * weights / weights.sum()).float()


def focal_loss(
    logits: Float[Tensor, "*rows choice"],
    labels: Int[Tensor, "*rows"],
    weights: Float[Tensor, " choice"],
) -> Float[Tensor, ""]:
    """Return the mean of -a_y (1 - p_y)^2 log p_y, in nats."""
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return (-weights[labels] * (1 - log_p.exp()) ** _GAMMA * log_p).mean()


def streams_along(recording: Recording, rows: Rows, visits: Visits) -> tuple[Resid, list[Windows]]:
    """Return the last residuals of prompts along routes, and the windows before each layer."""
    resid, seen = recording.resid(0)[rows], []
    for layer in range(recording.n_layers):
        seen.append(windows_of(resid))
        resid = visited(recording, layer, resid, rows, visits[:, layer])
    return resid, seen


@dataclass(frozen=True)
class Examples:
    """Routes to imitate, with the windows along them, of prompts with equally many windows."""

    windows: Float[Tensor, "rows layer window d_model"]
    labels: Int[Tensor, "rows layer"]


def loss_of(routers: Routers, examples: list[Examples], weights: Tensor) -> Float[Tensor, ""]:
    """Return the mean focal loss over prompts."""
    n = sum(len(each.labels) for each in examples)
    losses = [
        focal_loss(routers.logits(each.windows), each.labels, weights) * len(each.labels) / n
        for each in examples
    ]
    return torch.stack(losses).sum()


def trained(
    start: Routers, training: list[Examples], held_out: list[Examples], *, steps: int
) -> Routers:
    """Return routers trained on all examples at each step, as of the least held-out loss.

    AdamW with a cosine schedule after a warm-up. Without held-out examples, as of the last step.
    """
    weights = class_weights(torch.cat([each.labels for each in training])).to(start.inner.device)
    parameters = [getattr(start, f.name).clone() for f in fields(start)]
    best, least = parameters, math.inf
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, steps))
        for step in range(1, steps + 1):
            optimiser.zero_grad()
            loss_of(Routers(*parameters), training, weights).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if step % _EVERY and step < steps:
                continue
            with torch.no_grad():
                now = Routers(*parameters)
                loss = float(loss_of(now, held_out, weights)) if held_out else -float(step)
            if loss < least:
                best, least = [each.detach().clone() for each in parameters], loss
    return Routers(*best)


def _share(step: int, steps: int) -> float:
    """Return the share of the full learning rate at a step."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def multiply_adds(n_layers: int, d_model: int, n_pos: int) -> float:
    """Return the multiply-adds of all routers for one prompt, its means over tokens included."""
    n = min(N_WINDOWS, n_pos)
    return float(n_layers * (n_pos * d_model + n * HIDDEN * (d_model + N_CLASSES)))
