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
from interp.models.quantised import quantised
from interp.models.rounding import allowed
from interp.sites import BLOCK_KINDS, INNER_KINDS, Site
from interp.testing.under_test import ModelUnderTest, batch_of, reading, returning

_SMALL = 500_000_000  # parameters; larger models are not copied to another precision


def logits_are_those_of_hugging_face(tested: ModelUnderTest) -> None:
    """Logits equal the stock model's, and those of attention computed step by step."""
    ours = tested.model.forward(tested.batch).logits
    tested.compare(ours, tested.clean, "logits")
    tested.compare(
        ours, tested.logits(tested.eager), "logits with eager attention", near=10 * tested.near
    )


def sublayers_add_up(tested: ModelUnderTest) -> None:
    """resid_pre + attn_out + mlp_out is what the stock block returns, in every layer."""
    for layer in range(tested.model.n_layers):
        writes = [tested.recording.clean(Site(kind, layer)) for kind in ("attn_out", "mlp_out")]
        tested.compare(
            tested.streams[layer] + writes[0] + writes[1],
            tested.streams[layer + 1],
            f"the sum of layer {layer}",
        )


def replay_is_the_forward_pass(tested: ModelUnderTest) -> None:
    """Every block, called again for several rows at once, returns what it did in the stock pass."""
    for layer in range(tested.model.n_layers):
        twice = torch.cat([tested.streams[layer]] * 2)
        again = tested.recording.block(layer, twice)
        tested.compare(again, torch.cat([tested.streams[layer + 1]] * 2), f"block {layer}")


def skips_are_skips(tested: ModelUnderTest) -> None:
    """Leaving out a layer, and a Skip, equal a hook that returns the stock block's input."""
    for layer in tested.layers:
        held: list[Tensor] = []
        with (
            reading(tested.blocks[layer], held.append),
            returning(tested.blocks[layer], partial(_last_of, held)),
        ):
            expected = tested.logits()
        others = [i for i in range(tested.model.n_layers) if i != layer]
        chained = tested.recording.chain(others, tested.streams[0])
        tested.compare(
            tested.recording.logits(chained), expected, f"the chain without layer {layer}"
        )
        skipped = tested.model.forward(tested.batch, plan=[Skip(layer)]).logits
        tested.compare(skipped, expected, f"Skip({layer})")


def _last_of(held: list[Tensor], _: Tensor) -> Tensor:
    return held[-1]


def tails_are_the_end_of_a_pass(tested: ModelUnderTest) -> None:
    """Changing a residual from a position on and running what follows equals a stock pass."""
    start, layer = tested.n_pos // 2, tested.layers[1 if len(tested.layers) > 2 else 0]

    def changed(resid: Tensor) -> Tensor:
        return torch.cat([resid[:, :start], resid[:, start:] + tested.direction[:, start:]], dim=1)

    with reading(tested.blocks[layer], changed):
        expected = tested.logits()
    resid = changed(tested.streams[layer])[:, start:]
    for i in range(layer, tested.model.n_layers):
        resid = tested.recording.tail(i, resid, start=start)
    tested.compare(
        tested.recording.logits(resid),
        expected[:, start:],
        f"the tail from position {start} of layer {layer}",
    )


def padding_does_not_matter(tested: ModelUnderTest) -> None:
    """Padding changes nothing: on the right in passes, on the left in generation."""
    tokens, lengths = tested.batch.tokens[:2], [tested.n_pos, tested.n_pos // 2]
    mask = (
        torch.arange(tested.n_pos, device=tokens.device)
        < torch.tensor(lengths, device=tokens.device)[:, None]
    )
    padded = batch_of(torch.where(mask, tokens, 0), mask)
    together = tested.model.forward(padded).logits
    recording = tested.model.record(padded)
    replayed = recording.logits(recording.chain(range(tested.model.n_layers), recording.resid(0)))
    generated = tested.model.generate(padded, max_new_tokens=2).logits
    for row, length in enumerate(lengths):
        alone = batch_of(tokens[row : row + 1, :length])
        expected = tested.model.forward(alone).logits[0]
        tested.compare(
            together[row, :length], expected, f"a prompt of {length} tokens padded on the right"
        )
        tested.compare(
            replayed[row, :length], expected, f"the replay of {length} tokens padded on the right"
        )
        tested.compare(
            generated[row, 0], expected[-1], f"a prompt of {length} tokens padded on the left"
        )


@torch.enable_grad()
def gradients_are_those_of_hugging_face(tested: ModelUnderTest) -> None:
    """Gradients of a logit reach every residual and equal those of the stock model."""
    sites = [Site("resid_post", layer) for layer in tested.layers]
    done = tested.model.forward(tested.batch, capture=sites, backward=GRADIENT)
    ours = torch.autograd.grad(
        done.logits[:, -1, 5].sum(), [done.activations[site] for site in sites]
    )
    held: list[Tensor] = []

    def leaf(resid: Tensor) -> Tensor:
        return resid.detach().requires_grad_()

    with ExitStack() as stack:
        stack.enter_context(reading(tested.blocks[0], leaf))
        for layer in tested.layers:
            stack.enter_context(returning(tested.blocks[layer], held.append))
        logits = tested.logits()
    theirs = torch.autograd.grad(logits[:, -1, 5].sum(), held)
    for site, actual, expected in zip(sites, ours, theirs, strict=True):
        tested.compare(actual, expected, f"the gradient at {site}", near=10 * tested.near)


def generation_is_that_of_hugging_face(tested: ModelUnderTest) -> None:
    """Greedy continuations equal those of the stock model's generate."""
    ours = tested.model.generate(tested.batch, max_new_tokens=4)
    ends = tested.stock.generation_config.eos_token_id
    theirs = tested.stock.generate(
        input_ids=tested.batch.tokens,
        attention_mask=tested.batch.mask.long(),
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


def the_bridge_sees_the_same(tested: ModelUnderTest) -> None:
    """Passes through TransformerLens capture the same sites; edits have the same effect."""
    parted = [i for i in tested.layers if tested.model.blocks[i].has_kv] or [*tested.layers]
    layer = parted[len(parted) // 2]
    inner = _any_inner(tested, layer)
    kinds = [kind for kind in BLOCK_KINDS if not (kind == "resid_mid" and tested.model.is_parallel)]
    sites = [Site(kind, layer) for kind in kinds]
    stock = tested.model.forward(tested.batch, capture=sites)
    through = tested.model.forward(tested.batch, capture=[*sites, inner])
    for site in sites:
        tested.compare(
            through.activations[site], stock.activations[site], f"{site} through TransformerLens"
        )
        plan = [Steer(site, tested.direction[0, 0])]
        edited = tested.model.forward(tested.batch, plan=plan, capture=[inner]).logits
        tested.compare(
            edited,
            tested.model.forward(tested.batch, plan=plan).logits,
            f"an edit of {site} through TransformerLens",
        )


def bfloat16_replays_too(tested: ModelUnderTest) -> None:
    """In bfloat16 blocks replay exactly, and residuals point the same way as in the own type."""
    if how := quantised(tested.stock):
        raise SiteError(
            f"{tested.model.name} is in no other type: its weights are quantised ({how})"
        )
    if sum(parameter.numel() for parameter in tested.stock.parameters()) > _SMALL:
        return
    low = ModelUnderTest(
        Model(f"{tested.model.name} in bfloat16", copy.deepcopy(tested.stock).bfloat16()),
        n_pos=tested.n_pos,
        seed=tested.seed,
    )
    for layer in range(low.model.n_layers):
        again, what = low.recording.block(layer, low.streams[layer]), f"block {layer} in bfloat16"
        low.compare(again, low.streams[layer + 1], what, near=allowed(torch.bfloat16))
    middle = tested.model.n_layers // 2
    cosine = torch.cosine_similarity(
        low.streams[middle].float(), tested.streams[middle].float(), dim=-1
    ).median()
    if cosine < 0.98:
        raise AssertionError(
            f"residuals in bfloat16 have cosine {float(cosine):.2f}"
            f" with those in {tested.model.dtype}"
        )


def _any_inner(tested: ModelUnderTest, layer: int) -> Site:
    """Return an inner site, for a pass through TransformerLens; raise SiteError without one."""
    refusals: list[SiteError] = []
    for kind in INNER_KINDS:
        try:
            tested.model.refuse(Site(kind, layer))
        except SiteError as error:
            refusals.append(error)
        else:
            if kind != "router":  # read on the stock modules
                return Site(kind, layer)
    raise refusals[0]


PASS_CHECKS: dict[str, Callable[[ModelUnderTest], None]] = {
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
