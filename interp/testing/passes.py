"""Checks of whole passes: logits, replay, skips, padding, gradients, generation, precision."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from interp.backward import GRADIENT
from interp.errors import SiteError
from interp.interventions import Skip, Steer
from interp.models import Model
from interp.models.rounding import allowed
from interp.sites import BLOCK_KINDS, INNER_KINDS, Site
from interp.testing.probe import Probe, batch_of, reading, returning

_SMALL = 500_000_000  # parameters; larger models are not copied to another precision


def logits_are_those_of_hugging_face(probe: Probe) -> None:
    """Logits equal the stock model's, and those of attention computed step by step."""
    ours = probe.model.forward(probe.batch).logits
    probe.compare(ours, probe.clean, "logits")
    probe.compare(
        ours, probe.logits(probe.eager), "logits with eager attention", near=10 * probe.near
    )


def sublayers_add_up(probe: Probe) -> None:
    """resid_pre + attn_out + mlp_out is what the stock block returns, in every layer."""
    for layer in range(probe.model.n_layers):
        writes = [probe.recording.clean(Site(kind, layer)) for kind in ("attn_out", "mlp_out")]
        probe.compare(
            probe.streams[layer] + writes[0] + writes[1],
            probe.streams[layer + 1],
            f"the sum of layer {layer}",
        )


def replay_is_the_forward_pass(probe: Probe) -> None:
    """Every block, called again for several rows at once, returns what it did in the stock pass."""
    for layer in range(probe.model.n_layers):
        twice = torch.cat([probe.streams[layer]] * 2)
        again = probe.recording.block(layer, twice)
        probe.compare(again, torch.cat([probe.streams[layer + 1]] * 2), f"block {layer}")


def skips_are_skips(probe: Probe) -> None:
    """Leaving out a layer, and a Skip, equal a hook that returns the stock block's input."""
    for layer in probe.layers:
        held: list[Tensor] = []
        with (
            reading(probe.blocks[layer], held.append),
            returning(probe.blocks[layer], partial(_last_of, held)),
        ):
            expected = probe.logits()
        others = [i for i in range(probe.model.n_layers) if i != layer]
        chained = probe.recording.chain(others, probe.streams[0])
        probe.compare(probe.recording.logits(chained), expected, f"the chain without layer {layer}")
        skipped = probe.model.forward(probe.batch, plan=[Skip(layer)]).logits
        probe.compare(skipped, expected, f"Skip({layer})")


def _last_of(held: list[Tensor], _: Tensor) -> Tensor:
    return held[-1]


def tails_are_the_end_of_a_pass(probe: Probe) -> None:
    """Changing a residual from a position on and running what follows equals a stock pass."""
    start, layer = probe.n_pos // 2, probe.layers[1 if len(probe.layers) > 2 else 0]

    def changed(resid: Tensor) -> Tensor:
        return torch.cat([resid[:, :start], resid[:, start:] + probe.direction[:, start:]], dim=1)

    with reading(probe.blocks[layer], changed):
        expected = probe.logits()
    resid = changed(probe.streams[layer])[:, start:]
    for i in range(layer, probe.model.n_layers):
        resid = probe.recording.tail(i, resid, start=start)
    probe.compare(
        probe.recording.logits(resid),
        expected[:, start:],
        f"the tail from position {start} of layer {layer}",
    )


def padding_does_not_matter(probe: Probe) -> None:
    """Padding changes nothing: on the right in passes, on the left in generation."""
    tokens, lengths = probe.batch.tokens[:2], [probe.n_pos, probe.n_pos // 2]
    mask = (
        torch.arange(probe.n_pos, device=tokens.device)
        < torch.tensor(lengths, device=tokens.device)[:, None]
    )
    padded = batch_of(torch.where(mask, tokens, 0), mask)
    together = probe.model.forward(padded).logits
    recording = probe.model.record(padded)
    replayed = recording.logits(recording.chain(range(probe.model.n_layers), recording.resid(0)))
    generated = probe.model.generate(padded, max_new_tokens=2).logits
    for row, length in enumerate(lengths):
        alone = batch_of(tokens[row : row + 1, :length])
        expected = probe.model.forward(alone).logits[0]
        probe.compare(
            together[row, :length], expected, f"a prompt of {length} tokens padded on the right"
        )
        probe.compare(
            replayed[row, :length], expected, f"the replay of {length} tokens padded on the right"
        )
        probe.compare(
            generated[row, 0], expected[-1], f"a prompt of {length} tokens padded on the left"
        )


@torch.enable_grad()
def gradients_are_those_of_hugging_face(probe: Probe) -> None:
    """Gradients of a logit reach every residual and equal those of the stock model."""
    sites = [Site("resid_post", layer) for layer in probe.layers]
    done = probe.model.forward(probe.batch, capture=sites, backward=GRADIENT)
    ours = torch.autograd.grad(
        done.logits[:, -1, 5].sum(), [done.activations[site] for site in sites]
    )
    held: list[Tensor] = []

    def leaf(resid: Tensor) -> Tensor:
        return resid.detach().requires_grad_()

    with ExitStack() as stack:
        stack.enter_context(reading(probe.blocks[0], leaf))
        for layer in probe.layers:
            stack.enter_context(returning(probe.blocks[layer], held.append))
        logits = probe.logits()
    theirs = torch.autograd.grad(logits[:, -1, 5].sum(), held)
    for site, actual, expected in zip(sites, ours, theirs, strict=True):
        probe.compare(actual, expected, f"the gradient at {site}", near=10 * probe.near)


def generation_is_that_of_hugging_face(probe: Probe) -> None:
    """Greedy continuations equal those of the stock model's generate."""
    ours = probe.model.generate(probe.batch, max_new_tokens=4)
    ends = probe.stock.generation_config.eos_token_id
    theirs = probe.stock.generate(
        input_ids=probe.batch.tokens,
        attention_mask=probe.batch.mask.long(),
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=int(ours.tokens[0, -1]) if ends is None else None,
    )
    for row, alive in enumerate(ours.mask):
        n = int(alive.sum())
        if ours.tokens[row, :n].tolist() != theirs[row, :n].tolist():
            raise AssertionError(
                f"greedy continuations differ: {ours.tokens[row, :n]} and {theirs[row, :n]}"
            )


def the_bridge_sees_the_same(probe: Probe) -> None:
    """Passes through TransformerLens capture the same sites; edits have the same effect."""
    parted = [i for i in probe.layers if probe.model.blocks[i].has_kv] or [*probe.layers]
    layer = parted[len(parted) // 2]
    inner = _any_inner(probe, layer)
    kinds = [kind for kind in BLOCK_KINDS if not (kind == "resid_mid" and probe.model.is_parallel)]
    sites = [Site(kind, layer) for kind in kinds]
    stock = probe.model.forward(probe.batch, capture=sites)
    through = probe.model.forward(probe.batch, capture=[*sites, inner])
    for site in sites:
        probe.compare(
            through.activations[site], stock.activations[site], f"{site} through TransformerLens"
        )
        plan = [Steer(site, probe.direction[0, 0])]
        edited = probe.model.forward(probe.batch, plan=plan, capture=[inner]).logits
        probe.compare(
            edited,
            probe.model.forward(probe.batch, plan=plan).logits,
            f"an edit of {site} through TransformerLens",
        )


def bfloat16_replays_too(probe: Probe) -> None:
    """In bfloat16 blocks replay exactly, and residuals point the same way as in the own type."""
    if sum(parameter.numel() for parameter in probe.stock.parameters()) > _SMALL:
        return
    low = Probe(
        Model(f"{probe.model.name} in bfloat16", copy.deepcopy(probe.stock).bfloat16()),
        n_pos=probe.n_pos,
        seed=probe.seed,
    )
    for layer in range(low.model.n_layers):
        again, what = low.recording.block(layer, low.streams[layer]), f"block {layer} in bfloat16"
        low.compare(again, low.streams[layer + 1], what, near=allowed(torch.bfloat16))
    middle = probe.model.n_layers // 2
    cosine = torch.cosine_similarity(
        low.streams[middle].float(), probe.streams[middle].float(), dim=-1
    ).median()
    if cosine < 0.98:
        raise AssertionError(
            f"residuals in bfloat16 have cosine {float(cosine):.2f}"
            f" with those in {probe.model.dtype}"
        )


def _any_inner(probe: Probe, layer: int) -> Site:
    """Return an inner site, for a pass through TransformerLens; raise SiteError without one."""
    refusals: list[SiteError] = []
    for kind in INNER_KINDS:
        try:
            probe.model.refuse(Site(kind, layer))
        except SiteError as error:
            refusals.append(error)
        else:
            if kind != "router":  # read on the stock modules
                return Site(kind, layer)
    raise refusals[0]


PASS_CHECKS: dict[str, Callable[[Probe], None]] = {
    "logits": logits_are_those_of_hugging_face,
    "sum": sublayers_add_up,
    "replay": replay_is_the_forward_pass,
    "skip": skips_are_skips,
    "tail": tails_are_the_end_of_a_pass,
    "padding": padding_does_not_matter,
    "gradients": gradients_are_those_of_hugging_face,
    "generation": generation_is_that_of_hugging_face,
    "bridge": the_bridge_sees_the_same,
    "bfloat16": bfloat16_replays_too,
}
