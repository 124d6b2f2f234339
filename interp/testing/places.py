"""Checks of every kind of site: it is the tensor it claims to be, and edits do what they say."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from interp.interventions import Patch
from interp.shapes import per_query_head
from interp.sites import Site, SiteKind
from interp.testing.under_test import ModelUnderTest, reading, returning

Check = Callable[[ModelUnderTest, int], None]
HEAD = 1


def _reader(tested: ModelUnderTest, kind: SiteKind, layer: int) -> nn.Module:
    block = tested.model.blocks[layer]
    module = {"z": block.z_reader, "mlp_post": block.mlp_post_reader, "router": block.experts}[kind]
    if module is None:
        raise AssertionError(f"{Site(kind, layer)} can be read, but no stock module reads it")
    return module


def _stock_logits(
    tested: ModelUnderTest, *hooks: tuple[nn.Module, str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return logits of a stock pass in which modules read or return something else."""
    with ExitStack() as stack:
        for module, side, hook in hooks:
            stack.enter_context((reading if side == "reads" else returning)(module, hook))
        return tested.logits()


def _edited(tested: ModelUnderTest, site: Site, value: Tensor) -> Tensor:
    return tested.model.forward(tested.batch, plan=[Patch(site, value)]).logits


# Reading


def read_resid_pre(tested: ModelUnderTest, layer: int) -> None:
    """It is what the stock block receives."""
    tested.compare(
        tested.site("resid_pre", layer), tested.streams[layer], f"{Site('resid_pre', layer)}"
    )


def read_resid_post(tested: ModelUnderTest, layer: int) -> None:
    """It is what the stock block returns."""
    tested.compare(
        tested.site("resid_post", layer), tested.streams[layer + 1], f"{Site('resid_post', layer)}"
    )


def read_attn_out(tested: ModelUnderTest, layer: int) -> None:
    """With mlp_out, it is all that the stock block adds."""
    added, mid = tested.streams[layer + 1] - tested.streams[layer], tested.streams[layer + 1]
    tested.compare(
        tested.site("attn_out", layer) + tested.site("mlp_out", layer),
        added,
        f"writes of layer {layer}",
        of=mid,
    )


def read_resid_mid(tested: ModelUnderTest, layer: int) -> None:
    """It is the stock block's output without what the MLP wrote."""
    mid = tested.streams[layer + 1] - tested.site("mlp_out", layer)
    tested.compare(tested.site("resid_mid", layer), mid, f"{Site('resid_mid', layer)}")


def read_what_is_read(kind: SiteKind) -> Check:
    """Return the check that heads or neurons are what the stock module after them reads."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        captured = tested.site(kind, layer).flatten(2)
        tested.compare(
            captured,
            tested.read[_reader(tested, kind, layer)].reshape(captured.shape),
            f"{Site(kind, layer)}",
        )

    return check


def read_pattern(tested: ModelUnderTest, layer: int) -> None:
    """It is the pattern of Hugging Face's eager attention; no query attends to a later key."""
    pattern = tested.site("pattern", layer)
    tested.compare(
        pattern, tested.patterns[layer], f"{Site('pattern', layer)}", near=10 * tested.near
    )
    if bool(pattern.triu(1).any()):
        raise AssertionError(f"{Site('pattern', layer)}: queries attend to later keys")


def read_scores(tested: ModelUnderTest, layer: int) -> None:
    """Their softmax is the pattern, up to what an attention sink takes."""
    pattern = tested.site("pattern", layer).float()
    captured = tested.site("attn_scores", layer).float().softmax(-1)
    tested.compare(
        captured, pattern / pattern.sum(-1, keepdim=True), f"{Site('attn_scores', layer)}"
    )


def read_v(tested: ModelUnderTest, layer: int) -> None:
    """Mixed by the pattern, they are z."""
    v = per_query_head(tested.site("v", layer), tested.model.n_heads)
    z = torch.einsum("bhqk,bkhd->bqhd", tested.site("pattern", layer).to(v.dtype), v)
    tested.compare(z, tested.site("z", layer), f"pattern @ v of layer {layer}")


def read_projection(kind: SiteKind) -> Check:
    """Return the check that queries or keys have one vector a head: [batch pos head d_head]."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        n_heads = {"q": tested.model.n_heads, "k": tested.model.n_kv_heads}[kind]
        captured = tested.site(kind, layer)
        if captured.shape[:3] != (tested.batch_size, tested.n_pos, n_heads):
            raise AssertionError(
                f"{Site(kind, layer)}: shape {tuple(captured.shape)}, expected {n_heads} heads"
            )

    return check


def read_pre(tested: ModelUnderTest, layer: int) -> None:
    """It has a value for every neuron."""
    if tested.site("mlp_pre", layer).shape != tested.site("mlp_post", layer).shape:
        raise AssertionError(f"{Site('mlp_pre', layer)} has another shape than mlp_post")


def read_router(tested: ModelUnderTest, layer: int) -> None:
    """Mixing each expert's output with its weight is what the stock experts return."""
    experts = _reader(tested, "router", layer)
    held: list[Tensor] = []
    with reading(experts, held.append), returning(experts, held.append):
        tested.logits()
    weights = tested.site("router", layer).flatten(0, 1)
    mixed = sum(weights[:, [i]] * _expert(experts, held[0], i) for i in range(weights.shape[1]))
    tested.compare(
        torch.as_tensor(mixed), held[1].reshape(held[0].shape), f"{Site('router', layer)}"
    )


def _expert(experts: nn.Module, tokens: Tensor, i: int) -> Tensor:
    only = torch.full((len(tokens), 1), i, device=tokens.device)
    alone: Tensor = experts(tokens, only, torch.ones_like(only, dtype=tokens.dtype))
    return alone


# Writing


def write_stream(kind: SiteKind) -> Check:
    """Return the check that adding a direction equals adding it to the stock block's tensor."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        side = "reads" if kind == "resid_pre" else "returns"
        ours = _steered(tested, Site(kind, layer))
        theirs = tested.once(
            ("steered", side, layer),
            lambda: _stock_logits(
                tested, (tested.blocks[layer], side, lambda resid: resid + tested.direction)
            ),
        )
        tested.compare(ours, theirs, f"an edit of {Site(kind, layer)}")

    return check


def _steered(tested: ModelUnderTest, site: Site) -> Tensor:
    value = tested.site(site.kind, site.layer) + tested.direction
    return _edited(tested, site, value)


def write_middle(kind: SiteKind) -> Check:
    """Return the check that an edit reaches both the stream and, after a norm, the MLP."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        if tested.model.is_parallel:
            return write_stream(kind)(tested, layer)
        expected = tested.once(("steered middle", layer), lambda: _steered_middle(tested, layer))
        return tested.compare(
            _steered(tested, Site(kind, layer)), expected, f"an edit of {Site(kind, layer)}"
        )

    return check


def _steered_middle(tested: ModelUnderTest, layer: int) -> Tensor:
    """Return logits where a block returns what follows from a steered stream in its middle."""
    mid = tested.streams[layer] + tested.site("attn_out", layer) + tested.direction
    after = mid + tested.recording.mlp(layer, mid)
    return _stock_logits(tested, (tested.blocks[layer], "returns", lambda _: after))


def write_heads(kind: SiteKind) -> Check:
    """Return the check that silencing a head equals silencing it before the stock matrix."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        value, n_heads = tested.site(kind, layer).clone(), tested.model.n_heads
        group = n_heads // value.shape[2] if kind == "v" else 1
        (
            value.select(1, HEAD) if kind == "pattern" else value.select(2, HEAD % value.shape[2])
        ).zero_()
        first_head = (HEAD % value.shape[2]) * group if kind == "v" else HEAD

        silent = _with_heads(
            slice(first_head, first_head + group), torch.zeros(()), n_heads=n_heads
        )
        key = ("silent heads", layer, first_head, group)
        theirs = tested.once(
            key, lambda: _stock_logits(tested, (_reader(tested, "z", layer), "reads", silent))
        )
        tested.compare(
            _edited(tested, Site(kind, layer), value),
            theirs,
            f"a silenced head of {Site(kind, layer)}",
        )

    return check


def _with_heads(heads: slice, value: Tensor, *, n_heads: int) -> Callable[[Tensor], Tensor]:
    """Return what puts a value in the place of some of the heads that stand side by side."""

    def put(side_by_side: Tensor) -> Tensor:
        z: Tensor = rearrange(
            side_by_side, "batch pos (head d_head) -> batch pos head d_head", head=n_heads
        ).clone()
        z[:, :, heads] = value.to(z)
        joined: Tensor = rearrange(z, "batch pos head d_head -> batch pos (head d_head)")
        return joined

    return put


def write_scores(tested: ModelUnderTest, layer: int) -> None:
    """A head whose scores all point at the query's own token returns that token's value."""
    scores, n_heads = tested.site("attn_scores", layer).clone(), tested.model.n_heads
    scores[:, HEAD] += 1e4 * torch.eye(tested.n_pos, device=scores.device, dtype=scores.dtype)
    value = per_query_head(tested.site("v", layer), n_heads)[:, :, [HEAD]]
    own_value = _with_heads(slice(HEAD, HEAD + 1), value, n_heads=n_heads)
    theirs = _stock_logits(tested, (_reader(tested, "z", layer), "reads", own_value))
    tested.compare(
        _edited(tested, Site("attn_scores", layer), scores),
        theirs,
        f"an edit of {Site('attn_scores', layer)}",
    )


def write_projection(kind: SiteKind) -> Check:
    """Return the check that silent queries and silent keys of a group of heads give one pattern."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        group = tested.model.n_heads // tested.model.n_kv_heads
        captured = {
            each: tested.once(("silent", each, layer), partial(_silent, tested, each, layer, group))
            for each in ("q", "k")
        }
        tested.compare(
            captured["q"], captured["k"], f"the pattern of silent queries and keys of layer {layer}"
        )
        if torch.allclose(captured[kind], tested.site("pattern", layer)[:, :group], atol=1e-4):
            raise AssertionError(f"silencing {Site(kind, layer)} leaves the pattern as it was")

    return check


def _silent(tested: ModelUnderTest, kind: SiteKind, layer: int, group: int) -> Tensor:
    """Return the pattern of the first group of heads when their queries, or their keys, are 0."""
    value, pattern = tested.site(kind, layer).clone(), Site("pattern", layer)
    value[:, :, : group if kind == "q" else 1] = 0
    done = tested.model.forward(
        tested.batch, plan=[Patch(Site(kind, layer), value)], capture=[pattern]
    )
    return done.activations[pattern][:, :group]


def write_neurons(kind: SiteKind) -> Check:
    """Return the check that silencing a neuron equals silencing it before the stock matrix."""

    def check(tested: ModelUnderTest, layer: int) -> None:
        value = tested.site(kind, layer).clone()
        neuron = int(tested.site("mlp_post", layer).abs().sum((0, 1)).argmax())
        value[:, :, neuron] = 0

        def silent(post: Tensor) -> Tensor:
            changed = post.clone()
            changed[..., neuron] = 0
            return changed

        reader = _reader(tested, "mlp_post", layer)
        theirs = tested.once(
            ("silent neuron", layer), lambda: _stock_logits(tested, (reader, "reads", silent))
        )
        tested.compare(
            _edited(tested, Site(kind, layer), value),
            theirs,
            f"a silenced neuron of {Site(kind, layer)}",
        )

    return check


def write_router(tested: ModelUnderTest, layer: int) -> None:
    """Taking away the weight of an expert takes away what it adds."""
    experts, weights = _reader(tested, "router", layer), tested.site("router", layer).clone()
    expert = int(weights.sum((0, 1)).argmax())
    held: list[Tensor] = []
    with reading(experts, held.append):
        tested.logits()
    added = weights.flatten(0, 1)[:, [expert]] * _expert(experts, held[0], expert)
    weights[..., expert] = 0
    theirs = _stock_logits(
        tested, (experts, "returns", lambda output: output - added.reshape(output.shape))
    )
    tested.compare(
        _edited(tested, Site("router", layer), weights),
        theirs,
        f"an expert taken from {Site('router', layer)}",
    )


READ: dict[SiteKind, Check] = {
    "resid_pre": read_resid_pre,
    "q": read_projection("q"),
    "k": read_projection("k"),
    "v": read_v,
    "attn_scores": read_scores,
    "pattern": read_pattern,
    "z": read_what_is_read("z"),
    "attn_out": read_attn_out,
    "resid_mid": read_resid_mid,
    "mlp_pre": read_pre,
    "router": read_router,
    "mlp_post": read_what_is_read("mlp_post"),
    "mlp_out": read_attn_out,
    "resid_post": read_resid_post,
}
WRITE: dict[SiteKind, Check] = {
    "resid_pre": write_stream("resid_pre"),
    "q": write_projection("q"),
    "k": write_projection("k"),
    "v": write_heads("v"),
    "attn_scores": write_scores,
    "pattern": write_heads("pattern"),
    "z": write_heads("z"),
    "attn_out": write_middle("attn_out"),
    "resid_mid": write_middle("resid_mid"),
    "mlp_pre": write_neurons("mlp_pre"),
    "router": write_router,
    "mlp_post": write_neurons("mlp_post"),
    "mlp_out": write_stream("mlp_out"),
    "resid_post": write_stream("resid_post"),
}
