"""How two models' streams differ by layer, read at the same depth."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.metrics import changes, distribution
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.cosines import SMALLEST_NORM
from interp.sweeps.patches import logits_at_the_end


def states_of(recordings: tuple[Recording, Recording]) -> Tensors:
    """Return "difference" and "lens_kl" [batch tap], and "pooled" [batch 2 tap d_model].

    Tap l is before layer l, the last one after the last layer. The difference is
    ‖h_B - h_A‖ / ‖h_A‖, a mean over positions after the first (over the only one if there is but
    one), as is what is pooled. The lens' KL is from B's logit lens to A's at the last position, in
    nats, each under its own final norm and unembedding.
    """
    differences, kls, means = [], [], []
    for tap in range(recordings[0].n_layers + 1):
        x, y = (recording.resid(tap) for recording in recordings)
        begin = min(1, x.shape[1] - 1)
        one, other = x[:, begin:].float(), y[:, begin:].float()
        norms = vector_norm(one, dim=-1).clamp_min(SMALLEST_NORM)
        differences.append((vector_norm(other - one, dim=-1) / norms).mean(1))
        kls.append(_lens_kl(recordings, x[:, -1], y[:, -1]))
        means.append(torch.stack([one.mean(1), other.mean(1)], dim=1))
    return {
        "difference": torch.stack(differences, dim=1).cpu(),
        "lens_kl": torch.stack(kls, dim=1).cpu(),
        "pooled": torch.stack(means, dim=2).cpu(),
    }


def _lens_kl(
    recordings: tuple[Recording, Recording], x: Tensor, y: Tensor
) -> Float[Tensor, " batch"]:
    one, other = (
        logits_at_the_end(recording, last[None])[0]
        for recording, last in zip(recordings, (x, y), strict=True)
    )
    return changes(one, distribution(other))["kl"]
