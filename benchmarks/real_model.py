"""A real language model, SmolLM2-135M (30 layers, d = 576, 49,152 tokens), one prompt at a time.

Peers are plain hooks on the stock model, TransformerLens and nnsight, as in the other benchmarks.
Naive loops that would take hours run a stated part (of the layers, places or pairs), after one
warm turn as ours; their seconds are scaled by forwards, and the numbers of that part are compared
first. Single rows: `python -m benchmarks real_model:WORK` or `real_model:WORK/64`. The model is
fetched by `interp get smollm2-135m`.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import interp
from benchmarks import back_patching, capture, reductions, relevance_patching, residual_erasure
from benchmarks.harness import Row, Work, random_batch, ratio, seconds
from benchmarks.layer_skip import (
    blocks_run,
    check,
    even_splits,
    naive_all,
    naive_everything,
    ours,
)
from benchmarks.peers import with_nnsight, with_transformer_lens
from interp.models import Model
from interp.runs import Study, execute
from interp.tasks.batch import TokenBatch

NAME, LENGTHS = "smollm2-135m", (16, 64, 256)
_EVERY = ("all", "future", "direct")
_N_REPORT = 8


def compare_part(ours: Work, part: Work, *, share: float, repeats: int) -> Row:
    """Time ours beside a `share` of the peer's loop, in turns, and scale the peer's seconds."""
    ours(), part()
    return ratio([(seconds(ours), seconds(part) / share) for _ in range(repeats)])


def _repeats(batch: TokenBatch) -> int:
    return {16: 5, 64: 3}.get(batch.tokens.shape[1], 1)


def _few(n: int) -> list[int]:
    """Return the first, the middle and the last of `n`."""
    return [0, n // 2, n - 1]


def skips(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Skip every layer at all positions."""
    n, n_pos = model.n_layers, batch.tokens.shape[1]
    some = [*range(n)] if n_pos == LENGTHS[0] else _few(n)
    peers: dict[str, Callable[[], Any]] = {
        "plain hooks": partial(naive_all, model, batch, layers=some),
        "TransformerLens": partial(with_transformer_lens, model, batch, skips=some),
    }
    if find_spec("nnsight"):
        import nnsight

        peers["nnsight"] = partial(with_nnsight, nnsight.NNsight(model.module), batch, skips=some)
    arrays, rows = _only(ours(model, batch, "all"), some), {}
    counted = {"forwards": [blocks_run(model, batch, "all"), n + 1], "bound": _with_head(model)}
    for name, peer in peers.items():
        check(arrays, dict(zip(("all.max", "all.output_max"), peer(), strict=True)))
        share = (len(some) + 1) / (n + 1)
        row = compare_part(
            partial(ours, model, batch, "all"), peer, share=share, repeats=_repeats(batch)
        )
        rows[f"skip every layer, against {name}{_part(share)}"] = row | counted | {"goal": 0.517}
    return rows


def everything(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Skip every layer in all scopes, as published."""
    n, splits = model.n_layers, even_splits(batch.tokens.shape[1])
    some = _few(n)
    peer = partial(naive_everything, model, batch, splits, layers=some)
    check(_only(ours(model, batch, *_EVERY), some), peer())
    forwards, share = [10 * k + 1 for k in (n, len(some))], (10 * len(some) + 1) / (10 * n + 1)
    repeats = min(2, _repeats(batch))
    row = compare_part(partial(ours, model, batch, *_EVERY), peer, share=share, repeats=repeats)
    counted = blocks_run(model, batch, *_EVERY)
    bound = {"forwards": [counted, forwards[0]], "bound": round(counted / forwards[0], 3)}
    return {f"everything that is published{_part(share)}": row | bound | {"goal": 0.35}}


def captures(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Capture three sites in every layer."""
    rows = capture.rows_of(model, batch, n_turns=1 + 2 * _repeats(batch), rtol=1e-2)
    goals = {"the stock forward": 1.15}
    return {
        f"capture, against {name}": row | {"goal": goals.get(name, 1.0)}
        for name, row in rows.items()
    }


def erasure(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Erase every position at every site; (L + 1) T / 4 forwards, so not of the longest prompt."""
    n_pos = batch.tokens.shape[1]
    if n_pos > LENGTHS[1]:
        return {}
    sites, mean = [model.n_layers // 2], torch.zeros(model.n_layers + 1, model.d_model)
    changes, forwards = residual_erasure.ours(model, batch, mean)
    peer = partial(residual_erasure.naive, model, batch, mean, sites=sites)
    torch.testing.assert_close(changes[:, sites], peer()[:, sites], rtol=1e-3, atol=1e-4)
    n_naive = (model.n_layers + 1) * n_pos
    share = len(sites) / (model.n_layers + 1)
    row = compare_part(
        partial(residual_erasure.ours, model, batch, mean), peer, share=share, repeats=1
    )
    counted = {"forwards": [round(forwards, 1), n_naive], "bound": round(forwards / n_naive, 3)}
    return {f"erase every position{_part(share)}": row | counted | {"goal": 0.35}}


def relp(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Score all nodes by relevance patching, against three passes."""
    shard, rows = _with_twins(model, batch), {}
    for parameter in model.bridge.parameters():
        parameter.requires_grad_(False)
    modules = {"TransformerLens's bridge": model.bridge, "the stock model": model.module}
    for name, module in modules.items():
        passes = partial(
            relevance_patching.three_passes, module, shard, is_bridge=module is model.bridge
        )
        row = compare_part(
            partial(relevance_patching.relp, model, shard), passes, share=1, repeats=_repeats(batch)
        )
        rows[f"relevance patching, against three passes of {name}"] = row | {"bound": 1.0}
    return rows


def patching(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Patch every residual exactly; (L + 1) T / 2 forwards, so of the shortest prompt only."""
    n_pos = batch.tokens.shape[1]
    if n_pos > LENGTHS[0]:
        return {}
    shard, layers = _with_twins(model, batch), [model.n_layers // 2]
    effects = relevance_patching.exact(model, shard)[:, layers]
    peer = partial(relevance_patching.naive_patching, model, shard, layers=layers)
    torch.testing.assert_close(effects, peer(), rtol=1e-3, atol=1e-3)
    share, bound = len(layers) / model.n_layers, (model.n_layers + 1) / (2 * model.n_layers)
    row = compare_part(
        partial(relevance_patching.exact, model, shard), peer, share=share, repeats=1
    )
    return {f"patch every residual{_part(share)}": row | {"bound": round(bound, 3), "goal": 0.55}}


def back_patches(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Patch every later layer's output over every earlier one's, at the last token."""
    n, source = model.n_layers, model.n_layers // 3
    changes, forwards = back_patching.ours(model, batch)
    peer = partial(back_patching.naive, model, batch, sources=[source])
    torch.testing.assert_close(changes[:, source], peer()[:, source], rtol=1e-3, atol=1e-3)
    n_naive, share = n * (n - 1) // 2, _pairs(source, n)
    row = compare_part(
        partial(back_patching.ours, model, batch), peer, share=share, repeats=_repeats(batch)
    )
    counted = {"forwards": [round(forwards, 2), n_naive], "bound": round(forwards / n_naive, 3)}
    return {f"back-patch every pair{_part(share)}": row | counted | {"goal": round(1 / 18, 4)}}


def report(model: Model, batch: TokenBatch) -> dict[str, Row]:
    """Run four analyses with files and figures, against the bare loops of one prompt, scaled."""
    if batch.tokens.shape[1] > LENGTHS[0]:
        return {}
    task = interp.load_task("two-hop-facts", n=_N_REPORT)
    shards = [model.tokenize(prompts) for prompts in model.shards(model.fit(task).task)]
    shard = replace(shards[0], **_row(shards[0]))
    few = _few(model.n_layers)
    splits, n = even_splits(shard.tokens.shape[1]), model.n_layers
    loops: list[tuple[Work, float]] = [
        (partial(reductions.naive_contribution, model, shard), 1.0),
        (partial(reductions.naive_lens, model, shard), 1.0),
        (partial(naive_everything, model, shard, splits, layers=few), 31 / (10 * n + 1)),
        (partial(back_patching.naive, model, shard, sources=[n // 3]), _pairs(n // 3, n)),
    ]
    back = {"position": "last", "known_only": False, "controls": ()}
    analyses: dict[str, dict[str, Any]] = {
        "residual_contribution": {},
        "logit_lens": {},
        "layer_skip": {},
        "back_patching": back,
    }
    study = Study((NAME,), ("two-hop-facts",), analyses, n=_N_REPORT, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        done = execute(study, Path(folder) / "run")
    took = sum(cell["seconds"] for cell in done["cells"].values())
    peer = _N_REPORT * sum(seconds(loop) / share for loop, share in loops)
    return {f"a report on {_N_REPORT} prompts, against bare loops": ratio([(took, peer)])}


WORKS: dict[str, Callable[[Model, TokenBatch], dict[str, Row]]] = {
    "skips": skips,
    "everything": everything,
    "captures": captures,
    "erasure": erasure,
    "relp": relp,
    "patching": patching,
    "back_patches": back_patches,
    "report": report,
}


def run(chosen: str = "") -> dict[str, Row]:
    """Compare all works at all lengths, or those `chosen` as "WORK" or "WORK/LENGTH"."""
    work, _, length = chosen.partition("/")
    model, rows = interp.load_model(NAME, dtype="float32"), {}
    for n_pos in [int(length)] if length else LENGTHS:
        batch = random_batch(model, batch=1, n_pos=n_pos)
        for name in [work] if work else WORKS:
            for what, row in WORKS[name](model, batch).items():
                rows[f"{what}, T = {n_pos}"] = row
    return rows


def _with_head(model: Model) -> float:
    """Return half of the blocks and every output head, as a share of all, by their weights."""
    n, head = model.n_layers, model.d_vocab * model.d_model
    blocks = sum(each.numel() for block in model.blocks for each in block.module.parameters())
    share = ((n + 1) / (2 * n) * blocks + head) / (blocks + head)
    return round(share, 3)


def _pairs(n_part: int, n_layers: int) -> float:
    """Return the share of all back-patches, clean pass included, that `n_part` are."""
    return (n_part + 1) / (n_layers * (n_layers - 1) / 2 + 1)


def _part(share: float) -> str:
    return "" if share == 1 else f" (peer: {share:.0%} of its loop, scaled)"


def _only(arrays: dict[str, torch.Tensor], skipped: Sequence[int]) -> dict[str, torch.Tensor]:
    return {key: value[:, skipped] for key, value in arrays.items() if value.ndim > 1}


def _with_twins(model: Model, batch: TokenBatch) -> TokenBatch:
    return relevance_patching.paired(model, batch=1, n_pos=batch.tokens.shape[1])


def _row(shard: TokenBatch) -> dict[str, Any]:
    """Return what a batch of the first prompt alone has."""
    return {
        "prompts": shard.prompts[:1],
        **{
            name: value[:1]
            for name in ("tokens", "mask", "last", "answer", "answer_tokens")
            if (value := getattr(shard, name)) is not None
        },
    }
