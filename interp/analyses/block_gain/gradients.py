"""How long the gradient of the loss is at every depth: one pass there and back."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.models.gradients import graph, slopes, tokens_in_a_graph
from interp.replay import Recording
from interp.sweeps.answers import SameLength
from interp.sweeps.losses import loss


def gradient_norms(group: SameLength, *, is_text: bool) -> Float[Tensor, "batch tap"]:
    """Return ||dL/dh|| at every tap over all positions but the first and d_model, in fp32.

    L is each prompt's own loss in nats, as `sweeps.losses` has it.
    """
    recording = group.recording
    most = tokens_in_a_graph(recording.n_layers, recording.resid(0).shape[-1])
    every = torch.arange(len(group.tokens), device=group.tokens.device)
    some = torch.split(every, max(1, most // recording.n_pos))
    return torch.cat(
        [_of_rows(group.only(rows), recording, rows, is_text=is_text) for rows in some]
    )


def _of_rows(
    group: SameLength, whole: Recording, rows: Tensor, *, is_text: bool
) -> Float[Tensor, "batch tap"]:
    recording, work = group.recording, group.recording.work
    before = work.block_tokens
    with recording.running(), graph():
        streams = [whole.resid(0)[rows].clone().requires_grad_()]
        for layer in range(recording.n_layers):
            # not the stream itself, to which some families add in place
            streams.append(recording.block(layer, streams[-1].clone()))
        logits = recording.logits(streams[-1].clone(), positions=group.predicting)
        gradients = slopes(loss(logits, group, is_text=is_text), streams)
    work.add(work.block_tokens - before)  # the way back costs about what the way there did
    norms = [vector_norm(gradient[:, 1:].flatten(1), dim=-1).cpu() for gradient in gradients]
    return torch.stack(norms, dim=1)
