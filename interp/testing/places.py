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
from interp.testing.probe import Probe, reading, returning

Check = Callable[[Probe, int], None]
HEAD = 1


def _reader(probe: Probe, kind: SiteKind, layer: int) -> nn.Module:
    block = probe.model.blocks[layer]
    module = {"z": block.z_reader, "mlp_post": block.mlp_post_reader, "router": block.experts}[kind]
    if module is None:
        raise AssertionError(f"{Site(kind, layer)} can be read, but no stock module reads it")
    return module


def _stock_logits(
    probe: Probe, *hooks: tuple[nn.Module, str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return logits of a stock pass in which modules read or return something else."""
    with ExitStack() as stack:
        for module, side, hook in hooks:
            stack.enter_context((reading if side == "reads" else returning)(module, hook))
        return probe.logits()


def _edited(probe: Probe, site: Site, value: Tensor) -> Tensor:
    return probe.model.forward(probe.batch, plan=[Patch(site, value)]).logits


# Reading


def read_resid_pre(probe: Probe, layer: int) -> None:
    """It is what the stock block receives."""
    probe.compare(
        probe.site("resid_pre", layer), probe.streams[layer], f"{Site('resid_pre', layer)}"
    )


def read_resid_post(probe: Probe, layer: int) -> None:
    """It is what the stock block returns."""
    probe.compare(
        probe.site("resid_post", layer), probe.streams[layer + 1], f"{Site('resid_post', layer)}"
    )


def read_attn_out(probe: Probe, layer: int) -> None:
    """With mlp_out, it is all that the stock block adds."""
    added, mid = probe.streams[layer + 1] - probe.streams[layer], probe.streams[layer + 1]
    probe.compare(
        probe.site("attn_out", layer) + probe.site("mlp_out", layer),
        added,
        f"writes of layer {layer}",
        of=mid,
    )


def read_resid_mid(probe: Probe, layer: int) -> None:
    """It is the stock block's output without what the MLP wrote."""
    mid = probe.streams[layer + 1] - probe.site("mlp_out", layer)
    probe.compare(probe.site("resid_mid", layer), mid, f"{Site('resid_mid', layer)}")


def read_what_is_read(kind: SiteKind) -> Check:
    """Return the check that heads or neurons are what the stock module behind them reads."""

    def check(probe: Probe, layer: int) -> None:
        captured = probe.site(kind, layer).flatten(2)
        probe.compare(
            captured,
            probe.read[_reader(probe, kind, layer)].reshape(captured.shape),
            f"{Site(kind, layer)}",
        )

    return check


def read_pattern(probe: Probe, layer: int) -> None:
    """It is the pattern of Hugging Face's eager attention; no query attends to a later key."""
    pattern = probe.site("pattern", layer)
    probe.compare(pattern, probe.patterns[layer], f"{Site('pattern', layer)}", near=10 * probe.near)
    if bool(pattern.triu(1).any()):
        raise AssertionError(f"{Site('pattern', layer)}: queries attend to later keys")


def read_scores(probe: Probe, layer: int) -> None:
    """Their softmax is the pattern, up to what an attention sink takes."""
    pattern = probe.site("pattern", layer).float()
    captured = probe.site("attn_scores", layer).float().softmax(-1)
    probe.compare(
        captured, pattern / pattern.sum(-1, keepdim=True), f"{Site('attn_scores', layer)}"
    )


def read_v(probe: Probe, layer: int) -> None:
    """Mixed by the pattern, they are z."""
    v = per_query_head(probe.site("v", layer), probe.model.n_heads)
    z = torch.einsum("bhqk,bkhd->bqhd", probe.site("pattern", layer).to(v.dtype), v)
    probe.compare(z, probe.site("z", layer), f"pattern @ v of layer {layer}")


def read_projection(kind: SiteKind) -> Check:
    """Return the check that queries or keys have one vector a head: [batch pos head d_head]."""

    def check(probe: Probe, layer: int) -> None:
        n_heads = {"q": probe.model.n_heads, "k": probe.model.n_kv_heads}[kind]
        captured = probe.site(kind, layer)
        if captured.shape[:3] != (probe.batch_size, probe.n_pos, n_heads):
            raise AssertionError(
                f"{Site(kind, layer)}: shape {tuple(captured.shape)}, expected {n_heads} heads"
            )

    return check


def read_pre(probe: Probe, layer: int) -> None:
    """It has a value for every neuron."""
    if probe.site("mlp_pre", layer).shape != probe.site("mlp_post", layer).shape:
        raise AssertionError(f"{Site('mlp_pre', layer)} has another shape than mlp_post")


def read_router(probe: Probe, layer: int) -> None:
    """Mixing each expert's output with its weight is what the stock experts return."""
    experts = _reader(probe, "router", layer)
    held: list[Tensor] = []
    with reading(experts, held.append), returning(experts, held.append):
        probe.logits()
    weights = probe.site("router", layer).flatten(0, 1)
    mixed = sum(weights[:, [i]] * _expert(experts, held[0], i) for i in range(weights.shape[1]))
    probe.compare(
        torch.as_tensor(mixed), held[1].reshape(held[0].shape), f"{Site('router', layer)}"
    )


def _expert(experts: nn.Module, tokens: Tensor, i: int) -> Tensor:
    only = torch.full((len(tokens), 1), i, device=tokens.device)
    alone: Tensor = experts(tokens, only, torch.ones_like(only, dtype=tokens.dtype))
    return alone


# Writing


def write_stream(kind: SiteKind) -> Check:
    """Return the check that adding a direction equals adding it to the stock block's tensor."""

    def check(probe: Probe, layer: int) -> None:
        side = "reads" if kind == "resid_pre" else "returns"
        ours = _steered(probe, Site(kind, layer))
        theirs = probe.once(
            ("steered", side, layer),
            lambda: _stock_logits(
                probe, (probe.blocks[layer], side, lambda resid: resid + probe.direction)
            ),
        )
        probe.compare(ours, theirs, f"an edit of {Site(kind, layer)}")

    return check


def _steered(probe: Probe, site: Site) -> Tensor:
    value = probe.site(site.kind, site.layer) + probe.direction
    return _edited(probe, site, value)


def write_middle(kind: SiteKind) -> Check:
    """Return the check that an edit reaches both the stream and, behind a norm, the MLP."""

    def check(probe: Probe, layer: int) -> None:
        if probe.model.is_parallel:
            return write_stream(kind)(probe, layer)
        expected = probe.once(("steered middle", layer), lambda: _steered_middle(probe, layer))
        return probe.compare(
            _steered(probe, Site(kind, layer)), expected, f"an edit of {Site(kind, layer)}"
        )

    return check


def _steered_middle(probe: Probe, layer: int) -> Tensor:
    """Return logits where a block returns what follows from a steered stream in its middle."""
    mid = probe.streams[layer] + probe.site("attn_out", layer) + probe.direction
    after = mid + probe.recording.mlp(layer, mid)
    return _stock_logits(probe, (probe.blocks[layer], "returns", lambda _: after))


def write_heads(kind: SiteKind) -> Check:
    """Return the check that silencing a head equals silencing it in front of the stock matrix."""

    def check(probe: Probe, layer: int) -> None:
        value, n_heads = probe.site(kind, layer).clone(), probe.model.n_heads
        group = n_heads // value.shape[2] if kind == "v" else 1
        (
            value.select(1, HEAD) if kind == "pattern" else value.select(2, HEAD % value.shape[2])
        ).zero_()
        first_head = (HEAD % value.shape[2]) * group if kind == "v" else HEAD

        silent = _with_heads(
            slice(first_head, first_head + group), torch.zeros(()), n_heads=n_heads
        )
        key = ("silent heads", layer, first_head, group)
        theirs = probe.once(
            key, lambda: _stock_logits(probe, (_reader(probe, "z", layer), "reads", silent))
        )
        probe.compare(
            _edited(probe, Site(kind, layer), value),
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


def write_scores(probe: Probe, layer: int) -> None:
    """A head whose scores all point at the query's own token returns that token's value."""
    scores, n_heads = probe.site("attn_scores", layer).clone(), probe.model.n_heads
    scores[:, HEAD] += 1e4 * torch.eye(probe.n_pos, device=scores.device, dtype=scores.dtype)
    value = per_query_head(probe.site("v", layer), n_heads)[:, :, [HEAD]]
    own_value = _with_heads(slice(HEAD, HEAD + 1), value, n_heads=n_heads)
    theirs = _stock_logits(probe, (_reader(probe, "z", layer), "reads", own_value))
    probe.compare(
        _edited(probe, Site("attn_scores", layer), scores),
        theirs,
        f"an edit of {Site('attn_scores', layer)}",
    )


def write_projection(kind: SiteKind) -> Check:
    """Return the check that silent queries and silent keys of a group of heads give one pattern."""

    def check(probe: Probe, layer: int) -> None:
        group = probe.model.n_heads // probe.model.n_kv_heads
        captured = {
            each: probe.once(("silent", each, layer), partial(_silent, probe, each, layer, group))
            for each in ("q", "k")
        }
        probe.compare(
            captured["q"], captured["k"], f"the pattern of silent queries and keys of layer {layer}"
        )
        if torch.allclose(captured[kind], probe.site("pattern", layer)[:, :group], atol=1e-4):
            raise AssertionError(f"silencing {Site(kind, layer)} leaves the pattern as it was")

    return check


def _silent(probe: Probe, kind: SiteKind, layer: int, group: int) -> Tensor:
    """Return the pattern of the first group of heads when their queries, or their keys, are 0."""
    value, pattern = probe.site(kind, layer).clone(), Site("pattern", layer)
    value[:, :, : group if kind == "q" else 1] = 0
    done = probe.model.forward(
        probe.batch, plan=[Patch(Site(kind, layer), value)], capture=[pattern]
    )
    return done.activations[pattern][:, :group]


def write_neurons(kind: SiteKind) -> Check:
    """Return the check that silencing a neuron equals silencing it in front of the stock matrix."""

    def check(probe: Probe, layer: int) -> None:
        value = probe.site(kind, layer).clone()
        neuron = int(probe.site("mlp_post", layer).abs().sum((0, 1)).argmax())
        value[:, :, neuron] = 0

        def silent(post: Tensor) -> Tensor:
            changed = post.clone()
            changed[..., neuron] = 0
            return changed

        reader = _reader(probe, "mlp_post", layer)
        theirs = probe.once(
            ("silent neuron", layer), lambda: _stock_logits(probe, (reader, "reads", silent))
        )
        probe.compare(
            _edited(probe, Site(kind, layer), value),
            theirs,
            f"a silenced neuron of {Site(kind, layer)}",
        )

    return check


def write_router(probe: Probe, layer: int) -> None:
    """Taking away the weight of an expert takes away what it adds."""
    experts, weights = _reader(probe, "router", layer), probe.site("router", layer).clone()
    expert = int(weights.sum((0, 1)).argmax())
    held: list[Tensor] = []
    with reading(experts, held.append):
        probe.logits()
    added = weights.flatten(0, 1)[:, [expert]] * _expert(experts, held[0], expert)
    weights[..., expert] = 0
    theirs = _stock_logits(
        probe, (experts, "returns", lambda output: output - added.reshape(output.shape))
    )
    probe.compare(
        _edited(probe, Site("router", layer), weights),
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
