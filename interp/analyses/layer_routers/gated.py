"""Gates trained through the frozen model: how much of what a layer adds does a prompt need?

After FiRST (arXiv 2410.12513). H_l = H_(l-1) + r_l F_l(H_(l-1)), where r_l is the sigmoid of a
linear function of the prompt's mean residual (of length 1, so that one learning rate suits all
depths). The gate as printed there, H + r F + (1 - r) F, does not depend on r. The loss is the
answer's cross-entropy plus a penalty times the mean of r. At inference a layer is run, or skipped,
for the whole prompt. Unlike published, gates grow 10 times as sharp during training: without that,
they stay half open, and the model breaks where they are made to decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from interp.analyses.layer_routers.rates import Array, at_rate
from interp.analyses.layer_routers.routes import Decide, Rows, fixed_sets, routed, scores
from interp.replay import Recording
from interp.shapes import Resid, Tensors
from interp.tasks.batch import TokenBatch

THRESHOLDS = (0.0, 0.3, 0.5, 0.7)  # 0: every layer is run
_RATE, _DECAY, _OPEN = 0.02, 0.01, 2.0  # a gate of sigmoid(2) = 0.88 to begin with
_SHARPEST = 10.0  # what a gate's logit is multiplied by at the end of training, from 1 on

Batches = Sequence[tuple[Recording, TokenBatch]]


@dataclass(frozen=True)
class Gates:
    """The gates of all layers; a layer is run where its gate is at least `threshold` open.

    `sharpness` multiplies their logits.
    """

    weight: Float[Tensor, "layer d_model"]
    bias: Float[Tensor, " layer"]
    threshold: float = 0.0
    sharpness: float = _SHARPEST

    @classmethod
    def opened(cls, n_layers: int, d_model: int, device: torch.device) -> "Gates":
        """Return gates that are 0.88 open for every prompt at a sharpness of 1."""
        bias = torch.full((n_layers,), _OPEN, device=device)
        return cls(torch.zeros(n_layers, d_model, device=device), bias)

    @classmethod
    def read(cls, prepared: Tensors, device: torch.device) -> "Gates":
        """Return the gates that `tensors` made."""
        weight, bias = (prepared[f"gated.{name}"].to(device) for name in ("weight", "bias"))
        return cls(weight, bias, float(prepared["gated.threshold"]))

    def tensors(self) -> Tensors:
        """Return the weights by name, and the threshold."""
        return {
            "gated.weight": self.weight,
            "gated.bias": self.bias,
            "gated.threshold": torch.tensor(self.threshold),
        }

    def openness(self, layer: int, resid: Resid) -> Float[Tensor, " rows"]:
        """Return r of a layer, from the residual before it."""
        mean = normalize(resid.float().mean(1), dim=-1)
        return torch.sigmoid(self.sharpness * (mean @ self.weight[layer] + self.bias[layer]))

    def decide(self, layer: int, resid: Resid) -> Rows:
        """Return how often each prompt runs a layer: once, or not at all."""
        return (self.openness(layer, resid) >= self.threshold).long()


def softly(recording: Recording, gates: Gates) -> tuple[Resid, Float[Tensor, "rows layer"]]:
    """Return the last residuals where each layer adds r of what it would, and every r."""
    resid, opened = recording.resid(0), []
    for layer in range(recording.n_layers):
        opened.append(gates.openness(layer, resid))
        write = (recording.block(layer, resid) - resid).float()
        resid = resid + (opened[-1][:, None, None] * write).to(resid.dtype)
    return resid, torch.stack(opened, dim=1)


def loss_of(
    recording: Recording, shard: TokenBatch, gates: Gates, penalty: float
) -> Float[Tensor, ""]:
    """Return the sum over prompts of the answer's cross-entropy and penalty times mean r, nats."""
    resid, opened = softly(recording, gates)
    answer = scores(recording, shard, _all_rows(shard), resid)[:, 1]
    return (penalty * opened.mean(1) - answer).sum()


def trained(start: Gates, batches: Batches, *, penalty: float, epochs: int) -> Gates:
    """Return gates trained by AdamW, a step for every batch in every epoch, ever sharper."""
    weight, bias = start.weight.clone(), start.bias.clone()
    with torch.enable_grad():
        parameters = [weight.requires_grad_(True), bias.requires_grad_(True)]
        optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        for sharpness in np.geomspace(1.0, _SHARPEST, epochs):
            for recording, shard in batches:
                optimiser.zero_grad()
                gates = Gates(weight, bias, sharpness=float(sharpness))
                loss_of(recording, shard, gates, penalty).backward()  # type: ignore[no-untyped-call]
                # the way back costs what the way there does
                recording.work.add(float(shard.tokens.numel() * recording.n_layers))
                optimiser.step()
    return Gates(weight.detach(), bias.detach())


def chosen(candidates: Sequence[Gates], batches: Batches, order: Int[Tensor, " layer"]) -> Gates:
    """Return the gates that gain most accuracy on the set fixed by `order`, at the same rate.

    That is on the validation third. Of those that gain as much, the ones that skip most, and then
    those with the highest log-probability of answers. A threshold of 0 runs every layer, so that
    there are always some that gain at least nothing.
    """
    by_size = np.concatenate([_fixed(recording, shard, order) for recording, shard in batches])

    def worth(gates: Gates) -> tuple[float, float, float]:
        runs, accuracy, log_prob = _judged(gates.decide, batches)
        fixed, _ = at_rate(by_size, runs, len(order))
        return round(accuracy - float(fixed.mean()), 6), -runs, log_prob

    return max(candidates, key=worth)


def _fixed(recording: Recording, shard: TokenBatch, order: Int[Tensor, " layer"]) -> Array:
    rows = _all_rows(shard)
    scored = fixed_sets(recording, shard, rows, order.expand(len(rows), -1))
    right: Array = scored[..., 0].double().cpu().numpy()
    return right


def _judged(decide: Decide, batches: Batches) -> tuple[float, float, float]:
    """Return the mean number of layer runs, the accuracy and the answer's log-probability."""
    runs, scored = [], []
    for recording, shard in batches:
        rows = _all_rows(shard)
        resid, visits = routed(recording, rows, decide)
        runs.append(visits.sum(1).double())
        scored.append(scores(recording, shard, rows, resid).double())
    accuracy, log_prob = torch.cat(scored).mean(0).tolist()
    return float(torch.cat(runs).mean()), accuracy, log_prob


def _all_rows(shard: TokenBatch) -> Rows:
    return torch.arange(len(shard.prompts), device=shard.tokens.device)


def multiply_adds(n_layers: int, d_model: int, n_pos: int) -> float:
    """Return the multiply-adds of all gates for one prompt, its mean over tokens included."""
    return float(n_layers * (n_pos + 1) * d_model)
