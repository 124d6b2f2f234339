"""One sweep over the layers that serves every skipped layer at once.

The variant "layer s is skipped" joins after layer s, so layers below s never run for it. As many
variants as fit together run as one batch, and effects are reduced on the fly. With causal attention
the variant "skip s before position t" agrees with the all-token skip of s before t: only its
positions from t on are run, over the keys and values that the skip's own row just wrote. ("Do
Language Models Use Their Depth Efficiently?", section 3.2.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from interp.replay import Recording
from interp.shapes import KV
from interp.sites import Site
from interp.sweeps.cosines import SMALLEST_NORM, Part, write_of

Scope = Literal["all", "future", "direct", "direct_future"]


@dataclass(frozen=True)
class Step:
    """The relative change of one layer's contribution [variant batch pos-start] from `start` on."""

    scope: Scope
    layer: int
    start: int
    change: Tensor


@dataclass(frozen=True)
class Ends:
    """The last residuals [variant batch pos-start d_model] of every skip, from `start` on."""

    scope: Scope
    start: int
    resid: Tensor


def _write(after: Tensor, before: Tensor) -> Tensor:
    """Return what stands between two residuals, in fp32."""
    return after.float() - before.float()


def relative_change(
    clean: Float[Tensor, "*_ d_model"], changed: Float[Tensor, "*variants d_model"]
) -> Tensor:
    """Return ||c - c'|| / ||c|| over the last axis, in fp32."""
    clean = clean.float()
    change: Tensor = vector_norm(clean - changed.float(), dim=-1) / vector_norm(
        clean, dim=-1
    ).clamp_min(SMALLEST_NORM)
    return change


def skipped(recording: Recording, layer: int, part: Part, *, begin: int = 1) -> Tensor:
    """Return the residual behind `layer` [batch pos d_model] without its part from `begin` on."""
    pre, post = recording.resid(layer), recording.resid(layer + 1)
    match part:
        case "layer":
            without = pre
        case "attention":
            without = pre + recording.mlp(layer, pre)
        case "mlp":
            without = pre + recording.clean(Site("attn_out", layer))
    return torch.cat([post[:, :begin], without[:, begin:]], dim=1)


def staircase(
    recording: Recording,
    *,
    part: Part,
    scopes: Sequence[Scope],
    splits: Sequence[int],
    begin: int = 1,
) -> Iterator[Step | Ends]:
    """Yield each layer's relative change for every skipped layer, then the skips' last residuals.

    Layers are skipped from position `begin` on. Variants are the skipped layers 0 .. layer - 1; an
    "all" step also has the skipped layer itself as its last variant.
    """
    how: dict[str, Any] = {"part": part, "begin": begin}
    all_rows: list[Tensor] = []
    future_rows: dict[int, list[Tensor]] = {t: [] for t in splits if "future" in scopes}
    for layer in range(recording.n_layers):
        clean = recording.resid(layer)
        write = _write(recording.resid(layer + 1), clean)
        if all_rows:
            before = torch.stack(all_rows)
            after, kv = _run(recording, layer, before, with_kv=bool(future_rows))
            futures = {t: torch.stack(rows) for t, rows in future_rows.items()}
            for t, rows in futures.items():
                behind = recording.run(layer, rows, start=t, prefix=kv)
                yield Step("future", layer, t, relative_change(write[:, t:], _write(behind, rows)))
                future_rows[t] = list(behind)
            all_rows = list(after)
            changes = relative_change(write, _write(after, before))
            del before, after, kv, futures
            yield from _direct(recording, layer, scopes=scopes, splits=splits, **how)
        out = skipped(recording, layer, **how)
        own = relative_change(write, _write(out, clean))[None]
        yield Step("all", layer, 0, torch.cat([changes, own]) if all_rows else own)
        all_rows.append(out)
        for t in future_rows:
            future_rows[t].append(recording.resid(layer + 1)[:, t:])
    yield Ends("all", 0, torch.stack(all_rows))
    for t, ends in future_rows.items():
        yield Ends("future", t, torch.stack(ends))


def _direct(
    recording: Recording,
    layer: int,
    *,
    part: Part,
    scopes: Sequence[Scope],
    splits: Sequence[int],
    begin: int,
) -> Iterator[Step]:
    """Yield how `layer` changes if it reads the clean residual minus one earlier layer's write."""
    if "direct" not in scopes and "direct_future" not in scopes:
        return
    clean = recording.resid(layer)
    write = _write(recording.resid(layer + 1), clean)
    writes = torch.stack([write_of(recording, i, part).to(clean.dtype) for i in range(layer)])
    writes[:, :, :begin] = 0
    before = clean - writes
    after, kv = _run(recording, layer, before, with_kv="direct_future" in scopes)
    yield Step("direct", layer, 0, relative_change(write, _write(after, before)))
    for t in splits if "direct_future" in scopes else ():
        rows = repeat(clean[:, t:], "batch pos d_model -> variant batch pos d_model", variant=layer)
        ends = recording.run(layer, rows, start=t, prefix=kv)
        yield Step("direct_future", layer, t, relative_change(write[:, t:], _write(ends, rows)))


def _run(
    recording: Recording, layer: int, rows: Tensor, *, with_kv: bool
) -> tuple[Tensor, KV | None]:
    """Run a block on rows [variant batch pos d_model]; return the keys and values if asked for."""
    if with_kv:
        return recording.run_kv(layer, rows)
    return recording.run(layer, rows), None
