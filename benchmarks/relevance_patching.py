"""Scores of all nodes, against three plain passes; exact patching, against one forward a node.

The first is compared with TransformerLens's bridge, which runs the same passes without rules, and
with the stock model. The bound of exact patching counts blocks: (L + 1) / 2L for residuals.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.analyses.activation_patching import ActivationPatching
from interp.analyses.relevance_patching import RelevancePatching
from interp.interventions import Patch
from interp.models import Model
from interp.sites import Site
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

KINDS = ("resid_pre", "attn_out", "z", "mlp_out")


def paired(model: Model, *, batch: int, n_pos: int) -> TokenBatch:
    """Return random prompts whose twins differ at position 1."""
    shard = random_batch(model, batch=batch, n_pos=n_pos)
    twin = shard.tokens.clone()
    twin[:, 1] = (twin[:, 1] + 1) % model.d_vocab
    answer, wrong = shard.tokens[:, 2], shard.tokens[:, 3]
    prompts = tuple(Prompt(str(i), "x", answer="a", wrong="b") for i in range(batch))
    return replace(
        shard,
        prompts=prompts,
        corrupted=twin,
        answer=answer,
        wrong=wrong,
        answer_tokens=answer[:, None],
    )


def relp(model: Model, shard: TokenBatch) -> dict[str, Tensor]:
    """Return the scores of all nodes under the rules."""
    return RelevancePatching(methods=("relevance",), nodes=KINDS).measure(
        model.record(shard), shard, {}
    )


def three_passes(module: Any, shard: TokenBatch, *, is_bridge: bool) -> None:
    """Run two forward passes and one backward to the embeddings, and nothing else."""
    extra = {} if is_bridge else {"use_cache": False}
    with torch.no_grad():
        module(shard.tokens, **extra)
    kept: list[Tensor] = []

    def leaf(activation: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001
        kept.append(activation.detach().requires_grad_())
        return kept[0]

    if is_bridge:
        with module.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", leaf)]):
            logits = module(shard.corrupted)
    else:
        embeddings = leaf(module.get_input_embeddings()(shard.corrupted))
        logits = module(inputs_embeds=embeddings, **extra).logits
    torch.autograd.grad(logits[:, -1, 5].sum(), kept[0])


@torch.no_grad()
def naive_patching(
    model: Model, shard: TokenBatch, *, layers: Sequence[int] | None = None
) -> Tensor:
    """Return effects [batch layer pos] of residuals of all layers or some, a forward each."""
    wanted = range(model.n_layers) if layers is None else layers
    sites = [Site("resid_pre", layer) for layer in wanted]
    clean = model.forward(shard, capture=sites).activations
    twin = replace(shard, tokens=shard.corrupted)

    def value(plan: list[Patch]) -> Tensor:
        logits = model.forward(twin, plan=plan).logits[:, -1]
        rows = torch.arange(len(logits))
        return logits[rows, shard.answer] - logits[rows, shard.wrong]

    start, n_pos = value([]), shard.tokens.shape[1]
    each = [
        torch.stack(
            [
                value([Patch(site, clean[site][:, [pos]], positions=[pos])]) - start
                for pos in range(n_pos)
            ]
        )
        for site in sites
    ]
    return torch.stack(each).permute(2, 0, 1)


@torch.no_grad()
def exact(model: Model, shard: TokenBatch) -> Tensor:
    """Return the same by replayed blocks."""
    return ActivationPatching(nodes=("resid_pre",)).measure(model.record(shard), shard, {})[
        "resid_pre"
    ]


def run() -> dict[str, Row]:
    """Compare at several sizes."""
    rows: dict[str, Row] = {}
    for d_model in (384, 128):
        model = random_llama(n_layers=12, d_model=d_model)
        shard, bridge = paired(model, batch=8, n_pos=64), model.bridge
        for parameter in bridge.parameters():
            parameter.requires_grad_(False)
        for name, module in (
            ("TransformerLens's bridge", bridge),
            ("the stock model", model.module),
        ):
            is_bridge = module is bridge
            row = compare(
                lambda m=model, s=shard: relp(m, s),
                lambda m=module, s=shard, b=is_bridge: three_passes(m, s, is_bridge=b),
            )
            goal = {"bound": 1.0} | ({"goal": 1.3} if is_bridge else {})
            rows[f"all nodes against {name}, {size_of(model, shard)}"] = row | goal
    model = random_llama(n_layers=12, d_model=128)
    for batch, n_pos in ((4, 24), (1, 64)):
        shard = paired(model, batch=batch, n_pos=n_pos)
        torch.testing.assert_close(
            exact(model, shard), naive_patching(model, shard), rtol=1e-3, atol=1e-4
        )
        rows[f"exact patching of residuals, {size_of(model, shard)}"] = compare(
            lambda s=shard: exact(model, s), lambda s=shard: naive_patching(model, s), repeats=5
        ) | {"bound": round(13 / 24, 3), "goal": 0.55}
    return rows
