"""One model up to a cut, the other from there on, in both directions; what the answer is then."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.checkpoint_stitch.maps import MapKind, mapped
from interp.metrics import Distribution, changes, distribution, outcomes
from interp.replay import Recording
from interp.sweeps.entering import Entry, ends_of_entering
from interp.sweeps.outputs import read_at_the_end
from interp.sweeps.patches import logits_at_the_end

OUTCOMES = LOG_PROB, ACCURACY, KL = ("log_prob", "accuracy", "kl")


def prediction(recording: Recording) -> Distribution:
    """Return the clean prediction of the next token [batch d_vocab]."""
    last = recording.resid(recording.n_layers)[None, :, -1]
    return distribution(logits_at_the_end(recording, last)[0])


def read(
    recording: Recording,
    entries: Sequence[Entry],
    answer: Int[Tensor, " batch"],
    reference: Distribution,
    *,
    head: Recording | None = None,
) -> Float[Tensor, "batch entry outcome"]:
    """Return `OUTCOMES` of streams that enter a model, and end under its own or another's `head`.

    They are the log-probability of the answer's first token in nats, whether it comes first, and KL
    in nats from the prediction `reference`.
    """

    def of_logits(logits: Tensor) -> dict[str, Tensor]:
        of_answer = outcomes(logits, answer)
        kl = changes(logits, reference)["kl"]
        return {LOG_PROB: of_answer["log_prob"], ACCURACY: of_answer["accuracy"], KL: kl}

    def outcomes_of(ends: Tensor) -> Tensor:
        found = read_at_the_end(head or recording, ends, of_logits)
        return torch.stack([found[name] for name in OUTCOMES], dim=-1)

    ends, clean = ends_of_entering(recording, entries), recording.resid(recording.n_layers)[:, -1]
    is_clean = torch.tensor([torch.equal(end, clean) for end in ends], device=ends.device)
    # those of the clean pass are read alone, so that rounding is the same wherever they are read
    whole = outcomes_of(clean[None]).repeat(len(ends), 1, 1)
    if not is_clean.all():
        whole[~is_clean] = outcomes_of(ends[~is_clean])
    return whole.transpose(0, 1).float().cpu()


def cut_curves(
    recordings: tuple[Recording, Recording],
    answer: Int[Tensor, " batch"],
    half: Int[Tensor, " batch"],
    maps: Mapping[str, Tensor],
    *,
    cuts: Sequence[int],
    kind: MapKind,
    head: Recording,
    reference: Distribution,
) -> Float[Tensor, "batch 2 cut outcome"]:
    """Return outcomes of the first model below each cut, and of the second below.

    Embeddings come with what is below, final norm and unembedding with what is above; the second
    model's are those of `head`. KL is from the prediction `reference`.
    """
    curves = []
    for direction in (0, 1):
        below, above = recordings[direction], recordings[1 - direction]
        entries = []
        for i, cut in enumerate(cuts):
            how: dict[str, Any] = {"kind": kind, "direction": direction, "cut": i}
            entries.append((cut, mapped(below.resid(cut), half, maps, **how)))
        under = recordings[0] if direction else head
        curves.append(read(above, entries, answer, reference, head=under))
    return torch.stack(curves, dim=1)


def plain(
    recording: Recording,
    answer: Int[Tensor, " batch"],
    reference: Distribution,
    *,
    head: Recording | None = None,
) -> Float[Tensor, "batch outcome"]:
    """Return the outcomes of a model as it is, or under another's head."""
    n_layers = recording.n_layers
    entry = (n_layers, recording.resid(n_layers))
    return read(recording, [entry], answer, reference, head=head)[:, 0]
