"""Replayed blocks are the model's own blocks."""

import os

import pytest
import torch
from torch.testing import assert_close

from interp.models import Model
from interp.replay import first, rows
from interp.sites import Site
from tests.families import stock_logits, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def naive(model: Model, batch, edits: dict[int, object]) -> torch.Tensor:
    """Run the stock model with hand-written hooks: edits[layer](input, output) replaces the block's
    output.
    """

    def hook_of(edit):
        def hook(_module, args, kwargs, output):
            resid = args[0] if args else kwargs["hidden_states"]
            new = edit(resid, first(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    blocks = [block.module for block in model.blocks]
    handles = [
        blocks[i].register_forward_hook(hook_of(edit), with_kwargs=True)
        for i, edit in edits.items()
    ]
    try:
        return stock_logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_replay_is_the_forward(model: Model) -> None:
    batch = tokens()
    recording = model.record(batch)
    logits = model.logits(batch)
    replayed = recording.logits(recording.chain(range(model.n_layers), recording.resid(0)))
    assert_close(replayed, logits, rtol=0, atol=1e-6 * max(1.0, logits.abs().max().item()))
    assert_close(recording.logits(recording.resid(model.n_layers)), logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_stream_is_the_sum_of_its_writes(model: Model) -> None:
    recording = model.record(tokens())
    for layer in range(model.n_layers):
        writes = recording.clean(Site("attn_out", layer)) + recording.clean(Site("mlp_out", layer))
        assert_close(recording.resid(layer) + writes, recording.resid(layer + 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_skipped_layer_equals_a_hook(model: Model) -> None:
    batch = tokens()
    recording = model.record(batch)
    for skipped in range(model.n_layers):
        path = [layer for layer in range(skipped + 1, model.n_layers)]
        ours = recording.logits(recording.chain(path, recording.resid(skipped)))
        assert_close(
            ours, naive(model, batch, {skipped: lambda resid, _: resid}), rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_sublayers_alone_equal_what_they_wrote(model: Model) -> None:
    recording = model.record(tokens())
    for layer in range(model.n_layers):
        resid = recording.resid(layer)
        attn_out, mlp_out = (
            recording.clean(Site("attn_out", layer)),
            recording.clean(Site("mlp_out", layer)),
        )
        assert_close(recording.attn(layer, resid), attn_out, rtol=0, atol=1e-6)
        reads = resid if recording.blocks[layer].is_parallel else resid + attn_out
        assert torch.equal(recording.mlp_reads(layer, resid, attn_out), reads)
        assert_close(recording.mlp(layer, reads), mlp_out, rtol=0, atol=1e-5)


@torch.no_grad()
def test_variants_run_side_by_side(model: Model) -> None:
    recording = model.record(tokens())
    clean = recording.resid(1)
    other = clean + torch.randn_like(clean)
    both = recording.block(1, torch.cat([clean, other]))
    assert_close(
        both, torch.cat([recording.block(1, clean), recording.block(1, other)]), rtol=0, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("n_prompts", [1, 2, 3, 4])
def test_rows_of_any_prompts_run_together(model: Model, n_prompts: int) -> None:
    recording = model.record(tokens(batch=n_prompts))
    whose = torch.tensor([0, n_prompts - 1, n_prompts - 1, 0, n_prompts // 2])
    ran = recording.rows(1, recording.resid(1)[whose], whose)
    assert_close(ran, recording.resid(2)[whose], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("start", [1, 5, 11])
def test_tail_equals_the_whole_sequence(model: Model, start: int) -> None:
    recording = model.record(tokens())
    clean = recording.resid(1)
    changed = clean.clone()
    changed[:, start:] += torch.randn_like(changed[:, start:])
    whole = recording.block(1, changed)[:, start:]
    assert_close(recording.tail(1, changed[:, start:], start=start), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tail_reads_the_prefix_it_is_given(model: Model) -> None:
    recording = model.record(tokens())
    prefix = recording.resid(1) + torch.randn_like(recording.resid(1))
    mixed = torch.cat([prefix[:, :5], recording.resid(1)[:, 5:]], dim=1)
    _, kv = recording.block_kv(1, prefix)
    whole = recording.block(1, mixed)[:, 5:]
    assert_close(recording.tail(1, mixed[:, 5:], start=5, prefix=kv), whole, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tokens_at_once", [1, 80, 1024])
def test_variants_run_a_few_at_a_time(
    model: Model, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, layer, start = model.record(tokens()), 1, 5
    recording.kv(layer)
    monkeypatch.setattr(rows, "CPU_TOKENS", tokens_at_once)
    clean = recording.resid(layer)
    variants = clean + torch.randn(5, *clean.shape)
    one_by_one = [recording.block_kv(layer, each) for each in variants]
    together, kv = recording.run_kv(layer, variants)
    assert_close(together, torch.stack([resid for resid, _ in one_by_one]), rtol=0, atol=1e-5)
    assert_close(kv[0], torch.cat([keys for _, (keys, _) in one_by_one]), rtol=0, atol=1e-5)
    assert_close(recording.run(layer, variants), together, rtol=0, atol=1e-5)
    own = recording.run(layer, variants[:, :, start:], start=start, prefix=kv)
    assert_close(own, together[:, :, start:], rtol=0, atol=1e-5)
    shared = recording.run(layer, variants[:, :, start:], start=start)
    assert_close(shared[3], recording.tail(layer, variants[3, :, start:], start=start))
    assert recording.run(layer, variants[:0]).shape == variants[:0].shape


@torch.no_grad()
def test_keys_are_hidden_from_some_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CPU_TOKENS", 80)
    recording, start = tiny("llama").record(tokens()), 5
    variants = recording.resid(1) + torch.randn(5, *recording.resid(1).shape)
    tails = variants[:, :, start:]
    n_queries, n_keys = tails.shape[2], recording.n_pos
    hidden = torch.zeros(5, 1, n_queries, n_keys, dtype=torch.bool)
    hidden[2:, :, :, 1] = True
    seen = recording.run(1, tails, start=start)
    cut = recording.run(1, tails, start=start, hidden=hidden)
    assert_close(cut[:2], seen[:2], rtol=0, atol=1e-5)
    alone = hidden[2].expand(len(tails[2]), -1, -1)
    assert_close(cut[2], recording.tail(1, tails[2], start=start, hidden=alone), rtol=0, atol=1e-5)
    assert not torch.allclose(cut[2], seen[2], atol=1e-3)


@torch.no_grad()
def test_recording_runs_no_block_and_work_is_counted(model: Model) -> None:
    batch = tokens()
    recording = model.record(batch)
    recording.logits(recording._dry(0)[0])
    assert recording.work.block_tokens == 0
    recording.resid(2)
    assert recording.work.block_tokens == batch.tokens.numel() * model.n_layers


@pytest.mark.skipif(not os.environ.get("CHECK_SHAPES"), reason="make test-shapes checks them")
def test_shapes_are_checked(model: Model) -> None:
    with pytest.raises(TypeError, match="resid"):
        model.record(tokens()).block(0, torch.zeros(3, model.d_model))


@torch.no_grad()
@pytest.mark.parametrize("family", ["mpt", "bloom", "llama"])
@pytest.mark.parametrize("n_prompts", [1, 2, 3, 4])
def test_as_many_prompts_as_heads_do_not_mix_up_what_is_of_heads(
    family: str, n_prompts: int
) -> None:
    model, batch = tiny(family), tokens(batch=n_prompts)
    recording = model.record(batch)
    twice = torch.cat([recording.resid(1)] * 2)
    assert_close(recording.block(1, twice), torch.cat([recording.resid(2)] * 2), rtol=0, atol=1e-5)
