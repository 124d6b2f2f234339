"""A pass in which every head and every MLP may read its own residual: circuits of edges need it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from interp.errors import SiteError
from interp.models.forward import NO_RULES, Hook, RuleHooks
from interp.models.rounding import is_near
from interp.replay import OnWrite, Read
from interp.sites import Site

Projection = Literal["q", "k", "v"]


class Forked:
    """Runs TransformerLens's bridge with a residual of its own for every receiver.

    `read` is asked for every receiver's input; `on_write`, if any, is given every sender's output.
    """

    def __init__(
        self,
        bridge: Any,
        *,
        read: Read,
        on_write: OnWrite | None = None,
        rules: RuleHooks = NO_RULES,
        needs_graph: bool = False,
    ) -> None:
        self.bridge, self.read, self.on_write, self.rules, self.needs_graph = (
            bridge,
            read,
            on_write,
            rules,
            needs_graph,
        )
        self._resid: dict[int, Tensor] = {}
        self._heads: dict[int, Tensor] = {}
        self._scale: dict[int, Tensor] = {}
        self._is_inside = False  # hooks of modules that a hook itself calls are left alone

    def run(self, tokens: Tensor) -> Tensor:
        """Return logits [rows pos d_vocab]."""
        hooks: list[Hook] = [*self.rules.changing]
        for layer, block in enumerate(self.bridge.blocks):
            parts = block.submodules
            hooks.append(self._hook(Site("resid_pre", layer), self._enter, layer))
            hooks += [
                self._hook(Site(kind, layer), partial(self._project, kind=kind), layer)
                for kind in ("q", "k", "v")
            ]
            hooks.append(self._hook(Site("z", layer), self._split, layer))
            if "ln1_post" in parts:
                hooks.append(
                    self._hook(f"blocks.{layer}.ln1_post.hook_scale", self._see_scale, layer)
                )
            hooks.append(self._hook(Site("attn_out", layer), self._attend, layer))
            reader = "ln2.hook_in" if "ln2" in parts else "mlp.hook_in"
            hooks.append(
                self._hook(
                    f"blocks.{layer}.{reader}",
                    partial(self._enter_mlp, shares_norm="ln1" in parts and "ln2" not in parts),
                    layer,
                )
            )
            hooks.append(self._hook(Site("mlp_out", layer), self._leave_mlp, layer))
        hooks.append(
            self._hook(
                "ln_final.hook_in",
                lambda x, layer: self.read("logits", layer, x),
                len(self.bridge.blocks),
            )
        )
        with self.bridge.hooks(fwd_hooks=[*hooks, *self.rules.watching]):
            logits: Tensor = self.bridge(tokens)
        return logits.float()

    def _hook(self, at: Site | str, function: Callable[..., Tensor | None], layer: int) -> Hook:
        def hook(activation: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
            return None if self._is_inside else function(activation, layer=layer)

        return str(at), hook

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False

    def _enter(self, resid: Tensor, *, layer: int) -> Tensor | None:
        if layer == 0 and self.needs_graph:
            resid = resid.detach().requires_grad_()
        if layer == 0:
            self._write("embed", 0, resid)
        self._resid[layer] = resid
        return resid

    def _write(self, kind: str, layer: int, write: Tensor) -> None:
        if self.on_write is not None:
            self.on_write(kind, layer, write)

    def _project(self, activation: Tensor, *, kind: Projection, layer: int) -> Tensor | None:
        """Return what each head reads of its own residual, in the shape of the hook."""
        block = self.bridge.blocks[layer]
        forked = self.read(kind, layer, self._resid[layer])
        if forked is None:
            return None
        rows, _, n_heads, _ = forked.shape
        with self._inside():
            normed = rearrange(forked, "rows pos head d -> (head rows) pos d")
            if "ln1" in block.submodules:
                normed = block.ln1(normed)
            every = getattr(block.attn, kind)(normed)
        every = every.reshape(n_heads, rows, activation.shape[1], n_heads, -1)
        own = torch.diagonal(every, dim1=0, dim2=3)
        joined: Tensor = rearrange(own, "rows pos d_head head -> rows pos head d_head").reshape(
            activation.shape
        )
        return joined

    def _split(self, z: Tensor, *, layer: int) -> None:
        """Keep what each head writes, without the bias that all share."""
        if self.on_write is None:
            return
        attn, n_heads = self.bridge.blocks[layer].attn, self.bridge.cfg.n_heads
        flat = z.reshape(*z.shape[:2], n_heads, -1)
        alone = (
            flat[None] * torch.eye(n_heads, device=z.device, dtype=z.dtype)[:, None, None, :, None]
        )
        alone = rearrange(alone, "one rows pos head d_head -> (one rows) pos (head d_head)")
        with self._inside():
            bias = attn.o(torch.zeros_like(alone[:1, :1]))
            writes = attn.o(alone) - bias
        self._heads[layer] = rearrange(writes, "(head rows) pos d -> rows pos head d", head=n_heads)

    def _see_scale(self, scale: Tensor, *, layer: int) -> None:
        self._scale[layer] = scale

    def _attend(self, activation: Tensor, *, layer: int) -> None:
        if self.on_write is None:
            return
        heads = self._heads.pop(layer)
        if (
            layer in self._scale
        ):  # after a norm that is read as linear: its scale is that of this run
            norm = self.bridge.blocks[layer].ln1_post
            weight = norm.original_component.weight
            gain = 1.0 + weight.float() if norm.uses_weight_offset else weight.float()
            heads = (heads.float() * gain / self._scale.pop(layer)[:, :, None]).to(heads.dtype)
        self._write("heads", layer, heads)

    def _enter_mlp(self, activation: Tensor, *, layer: int, shares_norm: bool) -> Tensor | None:
        if not shares_norm:
            return self.read("mlp", layer, activation)
        forked = self.read("mlp", layer, self._resid[layer])
        if forked is None:
            return None
        with self._inside():
            normed: Tensor = self.bridge.blocks[layer].ln1(forked)
        return normed

    def _leave_mlp(self, activation: Tensor, *, layer: int) -> None:
        self._write("mlp", layer, activation)


def refuse_fork(bridge: Any) -> None:
    """Raise SiteError where a forked pass with unchanged residuals is not the ordinary pass."""
    tokens = torch.arange(1, 4, device=next(bridge.parameters()).device)[None]

    def read(kind: str, layer: int, resid: Tensor) -> Tensor:  # noqa: ARG001
        heads = {"q": bridge.cfg.n_heads, "k": bridge.cfg.n_key_value_heads or bridge.cfg.n_heads}
        n_heads = heads.get(kind.replace("v", "k"))
        return resid if n_heads is None else resid[:, :, None].expand(-1, -1, n_heads, -1)

    with torch.no_grad():
        try:
            actual = Forked(bridge, read=read, on_write=lambda *_: None).run(tokens)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise SiteError(f"edges of this family cannot be told apart: {error}") from None
        expected = bridge(tokens)
        if not is_near(actual.to(expected.dtype), expected, depth=len(bridge.blocks)):
            raise SiteError(
                "edges of this family cannot be told apart:"
                " its heads or MLPs do not read the residual by one norm"
            )
