"""A clean pass whose blocks can be run again: the only way analyses run blocks.

A decoder is a chain of blocks. A *dry pass* (every block replaced by the identity) records the
arguments that each block receives besides the residual; with them, a block can be called again on
any residual, for any number of variants at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp.activations import ForwardPass
from interp.backward import Rules
from interp.errors import SiteError
from interp.figures.words import counted
from interp.interventions import NO_INTERVENTION, Plan
from interp.replay.blocks import (
    Arguments,
    CacheStandIn,
    Stop,
    first,
    for_rows,
    of_prompts,
    replacing,
    require_kv,
    without_attention,
    without_hidden,
    writes_of,
)
from interp.replay.rows import Variants, flat, unflat, variants_at_once
from interp.replay.runner import OnWrite, Read, Runner
from interp.replay.work import Work
from interp.shapes import KV, Hidden, Logits, Prefix, Resid
from interp.sites import BLOCK_KINDS, Site, SiteKind

Clean = dict[Site, Tensor]


class Recording:
    """One clean pass over one batch of prompts, whose blocks can be run again on any residual.

    `runner` is the model, `tokens` [batch pos] the prompts, padded if `mask` is given. The clean
    pass's activations are read from the model's store, and kept there, unless `is_stored` is False.
    """

    def __init__(
        self,
        runner: Runner,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        work: Work | None = None,
        is_stored: bool = True,
    ) -> None:
        self.runner, self.tokens, self.mask = runner, tokens, mask
        self.work = Work() if work is None else work
        self.batch_size, self.n_pos = tokens.shape
        self.blocks = runner.blocks
        self._store = runner.clean_store(tokens) if is_stored and mask is None else None
        self._clean: Clean = {}
        self._kv: dict[int, KV] = {}
        self._arguments: dict[int, list[Arguments]] = {}

    def __repr__(self) -> str:
        ran = counted(len(self._clean), "activation") if self._clean else "nothing read yet"
        of = f"{counted(self.batch_size, 'prompt')} of {counted(self.n_pos, 'token')}"
        return f"Recording({of} through {counted(self.n_layers, 'layer')}; {ran})"

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which blocks run; it raises if the model is not as recorded."""
        return self.runner.running()

    def of(self, tokens: Tensor, *, is_stored: bool = True) -> "Recording":
        """Return a recording of other tokens [batch pos], without padding; its work counts here."""
        return Recording(self.runner, tokens, work=self.work, is_stored=is_stored)

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator["Recording"]:
        """Yield a recording under `temporary_weights`, counted here; this one rests meanwhile."""
        with self.runner.with_weights(weights) as runner:
            yield Recording(runner, self.tokens, self.mask, work=self.work, is_stored=False)

    @property
    def n_layers(self) -> int:
        """Return the number of decoder blocks."""
        return len(self.blocks)

    # What the clean pass computed

    def resid(self, layer: int) -> Resid:
        """Return the clean residual [batch pos d_model] before `layer`, or after the last."""
        if not 0 <= layer <= self.n_layers:
            raise SiteError(
                f"layer {layer} asked for; there is 0 to {self.n_layers} (after the last block)"
            )
        if layer == self.n_layers:
            return self.clean(Site("resid_post", layer - 1))
        return self.clean(Site("resid_pre", layer))

    def clean(self, site: Site) -> Resid:
        """Return what the clean pass, run if needed, holds at a block site [batch pos d_model]."""
        if site.kind == "resid_post" and site.layer < self.n_layers - 1:
            site = Site("resid_pre", site.layer + 1)
        if site.kind == "resid_mid":
            return self.resid(site.layer) + self.clean(Site("attn_out", site.layer))
        self.blocks[site.layer].require_parts(site)
        if site.kind not in BLOCK_KINDS:
            raise SiteError(
                f"{site} is inside a block; `model.forward(batch, capture=[...])` reads it"
            )
        with self.running():
            if site not in self._clean:
                known = None if self._store is None else self._store.read(site)
                if known is None:
                    self._run_clean()
                else:
                    self._clean[site] = known
        return self._clean[site]

    def _run_clean(self) -> None:
        resid, _ = self._dry(0)
        clean: Clean = {}
        for layer, block in enumerate(self.blocks):
            clean[Site("resid_pre", layer)] = resid
            self.runner.visit(layer)
            with writes_of(block, resid) as writes:
                if block.has_kv:
                    resid, self._kv[layer] = self.block_kv(layer, resid)
                else:
                    resid = self.block(layer, resid)
            clean |= {Site(kind, layer): write for kind, write in writes.items()}
        clean[Site("resid_post", self.n_layers - 1)] = resid
        self._clean = clean
        if self._store is not None:
            self._store.keep(clean)

    def mlp_reads(self, layer: int, resid: Resid, attn_out: Resid) -> Resid:
        """Return what the MLP of a layer reads where attention adds `attn_out` to `resid`.

        That is `resid` itself in parallel blocks. All are [rows pos d_model], of any precision.
        """
        return resid if self.blocks[layer].is_parallel else resid + attn_out

    def kv(self, layer: int) -> KV:
        """Return the keys and values [batch kv_head pos d_head] of a block in the clean pass."""
        require_kv(self.blocks, layer)
        with self.running():
            if layer not in self._kv:
                resid = self.resid(layer)
                if layer not in self._kv:
                    self._kv[layer] = self.block_kv(layer, resid)[1]
        return self._kv[layer]

    # Running blocks again, on many variants

    def variants_at_once(self, *, start: int = 0) -> int:
        """Return how many variants of this batch run together, from position `start` on."""
        return self._at_once(self.resid(0).device, start)

    def run(
        self,
        layer: int,
        variants: Variants,
        *,
        start: int = 0,
        prefix: Prefix | None = None,
        hidden: Bool[Tensor, "#variant #batch query key"] | None = None,
    ) -> Variants:
        """Run one block on variants [variant batch pos-start d_model], a few of them at a time.

        From a `start` after the first position on, earlier keys and values are read: those of
        `prefix`, for every variant its own (rows variant-major) or for all the same (of the batch);
        None means the clean pass's. Keys that are `hidden` from a query get no attention from it.
        """
        if not len(variants):
            return variants
        n_variants, batch, n_queries, _ = variants.shape
        size = self._at_once(variants.device, start)
        if hidden is not None:
            hidden = hidden.expand(n_variants, batch, n_queries, hidden.shape[-1])
        outputs: list[Tensor] = []
        for first_variant in range(0, n_variants, size):
            some = slice(first_variant, first_variant + size)
            resid, unseen = flat(variants[some]), None if hidden is None else flat(hidden[some])
            if not start:
                outputs.append(self.block(layer, resid, hidden=unseen))
                continue
            own = prefix
            if own is not None and len(own[0]) == n_variants * batch:
                keys, values = (unflat(each, batch)[some] for each in own)
                own = flat(keys), flat(values)
            outputs.append(self.tail(layer, resid, start=start, prefix=own, hidden=unseen))
        return unflat(torch.cat(outputs), batch)

    def run_kv(self, layer: int, variants: Variants) -> tuple[Variants, KV]:
        """Run one block on variants; also return the keys and values it wrote [rows ...]."""
        done = [
            self.block_kv(layer, flat(some))
            for some in torch.split(variants, self._at_once(variants.device, 0))
        ]
        keys, values = (torch.cat(parts) for parts in zip(*(kv for _, kv in done), strict=True))
        return unflat(torch.cat([resid for resid, _ in done]), variants.shape[1]), (keys, values)

    def _at_once(self, device: torch.device, start: int) -> int:
        return variants_at_once(
            self.runner.tokens_at_once(device), batch=self.batch_size, n_pos=self.n_pos, start=start
        )

    # Running blocks again, on rows

    def rows(self, layer: int, resid: Resid, prompts: Int[Tensor, " rows"]) -> Resid:
        """Run one block on residuals [rows pos d_model] of any of the prompts, a few at a time.

        `prompts` says whose each row is, by its number in the batch: rows may be in any order, and
        a prompt may have several, or none.
        """
        size = variants_at_once(
            self.runner.tokens_at_once(resid.device), batch=1, n_pos=self.n_pos, start=0
        )
        pieces = zip(torch.split(resid, size), torch.split(prompts, size), strict=True)
        outputs = [self._run(layer, each, cache=None, start=0, prompts=of) for each, of in pieces]
        return torch.cat(outputs) if outputs else resid

    def block(self, layer: int, resid: Resid, *, hidden: Hidden | None = None) -> Resid:
        """Run one block on residuals [variant*batch pos d_model], with `hidden` keys unattended."""
        return self._run(layer, resid, cache=None, start=0, hidden=hidden)

    def block_kv(self, layer: int, resid: Resid) -> tuple[Resid, KV]:
        """Run one block; also return its keys and values [variant*batch kv_head pos d_head]."""
        require_kv(self.blocks, layer)
        cache = CacheStandIn()
        resid = self._run(layer, resid, cache=cache, start=0)
        if cache.written is None:
            raise SiteError(f"block {layer} wrote no keys and values into its cache")
        return resid, cache.written

    def tail(
        self,
        layer: int,
        resid: Resid,
        *,
        start: int,
        prefix: Prefix | None = None,
        hidden: Hidden | None = None,
    ) -> Resid:
        """Run one block from position `start` on [variant*batch pos-start d_model].

        `prefix` holds the keys and values of earlier positions; None means the clean pass's. A
        query gives no attention to keys that are `hidden` from it; the others' adds up to 1.
        """
        if not 0 < start < self.n_pos:
            raise SiteError(f"tail from position {start} asked for; there is 1 to {self.n_pos - 1}")
        require_kv(self.blocks, layer, *range(self.n_layers))
        keys, values = self.kv(layer) if prefix is None else prefix
        variants = resid.shape[0] // keys.shape[0]
        prefix = (
            repeat(keys[:, :, :start], "batch ... -> (variant batch) ...", variant=variants),
            repeat(values[:, :, :start], "batch ... -> (variant batch) ...", variant=variants),
        )
        return self._run(layer, resid, cache=CacheStandIn(prefix), start=start, hidden=hidden)

    def chain(self, layers: Sequence[int], resid: Resid) -> Resid:
        """Run blocks along any path: skip, repeat or reorder them."""
        for layer in layers:
            resid = self.block(layer, resid)
        return resid

    def attn(self, layer: int, resid: Resid) -> Resid:
        """Return what attention writes to the stream where it reads `resid` [rows pos d_model]."""
        block, written = self.blocks[layer], []

        def stop(_module: nn.Module, _args: object, output: Any) -> None:
            written.append(block.added(output, resid))
            raise Stop

        self.runner.visit(layer)  # before the hook: others may run their blocks meanwhile
        with self.running():
            handle = block.attn_write.register_forward_hook(stop)
            try:
                self._run(layer, resid, cache=None, start=0, share=0.5)
            except Stop:
                pass
            finally:
                handle.remove()
        return written[0]

    def mlp(self, layer: int, resid: Resid) -> Resid:
        """Return what the MLP writes to the stream, where `resid` is what its norm reads."""
        block = self.blocks[layer]
        block.require_parts(Site("mlp_out", layer))
        self.runner.visit(layer)
        with self.running(), without_attention(block, resid), writes_of(block, resid) as writes:
            self._run(layer, resid, cache=None, start=0, share=0.5)
        return writes["mlp_out"]

    def block_with(
        self, layer: int, resid: Resid, *, at: SiteKind, edit: Callable[[Tensor], Tensor]
    ) -> Resid:
        """Run one block with what stands `at` a place inside it replaced by what `edit` returns.

        Places: "attn_out", "mlp_out" [rows pos d_model], "z" (heads side by side), "mlp_post" [rows
        pos d]. Raises SiteError where a block has no such place.
        """
        self.runner.visit(layer)
        with self.running(), replacing(self.blocks[layer], at, edit, resid, site=Site(at, layer)):
            return self.block(layer, resid)

    def inside(self, site: Site) -> Tensor:
        """Return the clean activation at "z" or "mlp_post" [batch pos d]; runs one block."""
        seen: list[Tensor] = []

        def see(activation: Tensor) -> Tensor:
            seen.append(activation)
            return activation

        self.block_with(site.layer, self.resid(site.layer), at=site.kind, edit=see)
        return seen[0]

    def logits(self, resid: Resid, *, positions: slice | Sequence[int] | None = None) -> Logits:
        """Return fp32 logits [rows pos d_vocab] at the given positions (by default at all)."""
        chosen = resid if positions is None else resid[:, positions]
        return self.runner.unembed(chosen).float()

    # The whole model

    def forward(
        self,
        tokens: Tensor,
        *,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
        positions: slice | None = None,
    ) -> ForwardPass:
        """Return logits and captures of tokens [batch pos] without padding: `Model.forward`."""
        self._count_passes(tokens, backward)
        return self.runner.forward(
            tokens, capture=capture, plan=plan, backward=backward, positions=positions
        )

    def forked(
        self,
        tokens: Tensor,
        *,
        read: Read,
        on_write: OnWrite | None = None,
        backward: Rules | None = None,
        positions: slice | None = None,
        start: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Return logits of tokens [batch pos] of a pass that `Runner.forked` describes."""
        self._count_passes(tokens, backward, start=0 if start is None else start[0])
        how: dict[str, Any] = {"backward": backward, "positions": positions, "start": start}
        return self.runner.forked(tokens, read=read, on_write=on_write, **how)

    def _count_passes(self, tokens: Tensor, backward: Rules | None, *, start: int = 0) -> None:
        passes = 1 if backward is None else 2  # the way back costs what the way there does
        self.work.add(float(passes * tokens.numel() * (self.n_layers - start)))

    def _dry(self, start: int) -> tuple[Tensor, list[Arguments]]:
        resid, arguments = self.runner.dry(self.tokens, self.mask, start=start)
        self._arguments[start] = arguments
        return resid, arguments

    def _run(
        self,
        layer: int,
        resid: Tensor,
        *,
        cache: CacheStandIn | None,
        start: int,
        share: float = 1.0,
        hidden: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        block = self.blocks[layer]
        if start not in self._arguments:
            self._dry(start)
        recorded = self._arguments[start][layer]
        rows, n_pos, _ = resid.shape
        if prompts is None:
            arguments = for_rows(recorded, batch=self.batch_size, rows=rows)
        else:
            arguments = of_prompts(recorded, prompts, batch=self.batch_size)
        arguments |= {block.cache_parameter: cache}
        if hidden is not None:
            require_kv(self.blocks, layer)
            arguments["attention_mask"] = without_hidden(
                arguments, hidden, start=start, dtype=resid.dtype
            )
        self.work.add(share * rows * n_pos)
        with self.running():
            return first(self.runner.call(layer, resid, arguments))
