"""200 paths searched for every prompt, against one hooked forward along each of the same paths.

Ours shares what paths have in common at their beginning, and runs prompts together; the peer runs
each prompt's path on the stock model, layer by layer.
"""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.harness import Row, compare, random_batch, random_llama, size_of
from interp.models import Model
from interp.sweeps.path_scores import PathScorer, Search, Try
from interp.sweeps.path_tree import Path
from interp.tasks.batch import TokenBatch

_SEARCH = Search(n_simulations=200)


@torch.no_grad()
def ours(model: Model, batch: TokenBatch) -> tuple[dict[int, list[Try]], float]:
    """Return every prompt's tries, and how many forwards they took, the clean pass counted in."""
    recording = model.record(batch)
    assert batch.answer is not None
    prompts = range(len(batch.prompts))
    with recording.running():
        scorer = PathScorer(recording, prompts, batch.answer[:, None])
        tries = _SEARCH.run(scorer, {i: i for i in prompts}, n_layers=model.n_layers)
    return tries, recording.work.block_tokens / (batch.tokens.numel() * model.n_layers)


@torch.no_grad()
def naive(model: Model, batch: TokenBatch, paths: Mapping[int, Sequence[Path]]) -> list[float]:
    """Return the answer's log-probability along every path, prompt by prompt, without sharing."""
    assert batch.answer is not None
    layers, values = model.module.model.layers, []
    try:
        for prompt, own in paths.items():
            for path in own:
                model.module.model.layers = torch.nn.ModuleList([layers[i] for i in path])
                model.module.config.num_hidden_layers = len(path)
                tokens = batch.tokens[prompt : prompt + 1]
                logits = model.module(input_ids=tokens, use_cache=False).logits[0, -1].float()
                values.append(float(logits.log_softmax(-1)[batch.answer[prompt]]))
    finally:
        model.module.model.layers = layers
        model.module.config.num_hidden_layers = len(layers)
    return values


def run() -> dict[str, Row]:
    """Compare forwards and time at several sizes, after checking that both agree."""
    rows: dict[str, Row] = {}
    for n_layers, d_model, batch_size, n_pos in ((12, 384, 8, 24), (12, 128, 32, 24)):
        model = random_llama(n_layers=n_layers, d_model=d_model)
        batch = random_batch(model, batch=batch_size, n_pos=n_pos)
        tries, forwards = ours(model, batch)
        paths = {prompt: [each.path for each in own] for prompt, own in tries.items()}
        known = [each.score.log_probs[0] for own in tries.values() for each in own]
        torch.testing.assert_close(
            torch.tensor(known), torch.tensor(naive(model, batch, paths)), rtol=1e-4, atol=1e-4
        )
        row = compare(
            lambda m=model, b=batch: ours(m, b),
            lambda m=model, b=batch, p=paths: naive(m, b, p),
        )
        counted = {"forwards": [round(forwards, 2), _SEARCH.n_simulations]}
        rows[size_of(model, batch)] = counted | row
    return rows
