"""Gains equal derivatives and known maps, gradients those of the stock model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import interp
from interp.analyses.block_gain import BlockGain
from interp.analyses.block_gain.measures import gain_along, random_directions, rounding_of
from interp.errors import AnalysisError
from interp.models import Model
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens


def answered() -> TokenBatch:
    batch = tokens()
    answers = torch.full((3, 2), -1)
    answers[:, 0], answers[1, 1] = batch.tokens[:, 3], 7  # one prompt's answer has two tokens
    return TokenBatch(batch.prompts, batch.tokens, batch.mask, batch.last, answer_tokens=answers)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_gains_are_those_of_the_derivative(family: str) -> None:
    recording = tiny(family).record(tokens())
    stream = recording.resid(1)
    (direction,) = random_directions(tokens().prompts, (1, *stream.shape[1:]), seed=0)
    unit = direction / direction.norm(dim=-1, keepdim=True)
    step = unit * stream.norm(dim=-1, keepdim=True)
    step[:, 0] = 0
    with recording.running(), sdpa_kernel(SDPBackend.MATH):
        _, change = torch.func.jvp(lambda h: recording.block(1, h) - h, (stream,), (step,))
    expected = change.norm(dim=-1) / step.norm(dim=-1)
    got = gain_along(recording, 1, direction)
    assert_close(got, expected[:, 1:], rtol=5e-3, atol=5e-4)


@torch.no_grad()
def test_the_gain_of_a_linear_block_is_that_of_its_matrix() -> None:
    module = copy.deepcopy(tiny("llama").module)
    layer = module.model.layers[1]
    layer.self_attn.o_proj.weight.zero_()
    layer.post_attention_layernorm = nn.Identity()
    weight = torch.randn(32, 32)
    layer.mlp.forward = lambda hidden: hidden @ weight.T
    recording = Model("linear", module).record(tokens())
    direction = torch.randn(3, recording.n_pos, 32)
    expected = (direction @ weight.T).norm(dim=-1) / direction.norm(dim=-1)
    assert_close(gain_along(recording, 1, direction), expected[:, 1:], rtol=1e-3, atol=1e-3)
    assert_close(
        gain_along(recording, 1, recording.resid(1)),
        ((h := recording.resid(1)[:, 1:]) @ weight.T).norm(dim=-1) / h.norm(dim=-1),
        rtol=1e-3,
        atol=1e-3,
    )


@torch.no_grad()
def test_blocks_that_read_only_the_normed_stream_have_no_gain_along_it() -> None:
    batch = tokens()
    parallel = tiny("gpt_neox")
    without_attention = copy.deepcopy(tiny("llama").module)
    for layer in without_attention.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    for model in (parallel, Model("MLPs", without_attention)):
        gains = BlockGain().measure(model.record(batch), batch, {})["gains"]
        assert bool((gains[:, 1:, 2] < 3e-3).all())
        assert bool((gains[:, 1:, 0] > 0.1).all())


def test_gradients_are_those_of_the_stock_model() -> None:
    model, batch = tiny("llama"), answered()
    part = BlockGain().measure(model.record(batch), batch, {})
    for row, ids in enumerate(batch.tokens):
        answer = batch.answer_tokens[row]
        answer = answer[answer >= 0]
        streams: list[torch.Tensor] = []

        def see(_module: nn.Module, args: tuple, kwargs: dict, seen: list = streams) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        hooks = [
            block.register_forward_pre_hook(see, with_kwargs=True)
            for block in (*model.module.model.layers, model.module.model.norm)
        ]
        embedded = model.module.model.embed_tokens(torch.cat([ids, answer[:-1]])[None])
        embedded = embedded.detach().requires_grad_()
        logits = model.module(inputs_embeds=embedded, use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        log_p = logits.log_softmax(-1)[-len(answer) :].gather(1, answer[:, None])
        gradients = torch.autograd.grad(-log_p.sum(), streams)
        norms = torch.stack([gradient[:, 1:].norm() for gradient in gradients])
        assert_close(part["gradient"][row], norms, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_cosines_are_those_of_writes_to_one_token_and_to_another() -> None:
    model, batch = tiny("gemma2"), tokens()
    recording = model.record(batch)
    got = BlockGain().measure(recording, batch, {})["cosines"]
    n_pos = recording.n_pos
    for one, other in ((0, 2), (3, 1)):
        a, b = (recording.resid(i + 1) - recording.resid(i) for i in (one, other))
        pairs = [(pos, pos) for pos in range(1, n_pos)]
        shift = (n_pos - 1) // 2
        apart = [(pos, 1 + (pos - 1 - shift) % (n_pos - 1)) for pos in range(1, n_pos)]
        for i, positions in enumerate((pairs, apart)):
            cosines = [torch.cosine_similarity(a[:, p], b[:, q], dim=-1) for p, q in positions]
            assert_close(got[:, one, other, i], torch.stack(cosines).mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_gains_are_as_exact_as_is_said(dtype: str) -> None:
    (prompt,) = interp.load_task("two-hop", n=1).prompts
    direction = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    mean = []
    for model in (interp.load_model("zoo/hops-4l", dtype=name) for name in ("float32", dtype)):
        recording = model.record(model.tokenize([prompt]))
        along = direction[:, : recording.n_pos]
        mean.append([float(gain_along(recording, layer, along).mean()) for layer in range(4)])
    assert mean[1] == pytest.approx(mean[0], rel=0.05, abs=rounding_of(getattr(torch, dtype)))


def test_findings_are_computed_another_way_and_only_describe() -> None:
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.1, 1, (12, 4, 3))
    gains[:, 0, 1] = np.nan
    n_pos = rng.integers(2, 9, 12)
    part = {
        "gains": gains,
        "sizes": rng.uniform(0.1, 1, (12, 4, 2)),
        "gradient": rng.uniform(0.1, 1, (12, 5)),
        "cosines": rng.uniform(-1, 1, (12, 4, 4, 2)),
        "n_pos": n_pos,
        "rounding": np.full(12, 6e-5),
    }
    result = BlockGain().combine([{key: torch.from_numpy(part[key]) for key in part}])
    of_gain, of_gradient, of_writes = result.findings()
    mean = np.average(gains[..., 0], axis=0, weights=n_pos)
    assert of_gain.estimate.value == pytest.approx(np.sqrt(mean[2] * mean[3] / mean[0] / mean[1]))
    later = [np.average(gains[:, 1:, i].mean(1), weights=n_pos) for i in range(3)]
    said = [
        f"{mean:.2g} along {of}" for mean, of in zip(later, ("random", "the", "h"), strict=True)
    ]
    assert all(each in of_gain.note for each in said)
    gradient = part["gradient"].mean(0)
    assert of_gradient.estimate.value == pytest.approx(gradient[0] / gradient[4])
    pairs = [part["cosines"][:, i, j, 0] for i in range(4) for j in range(4) if i != j]
    assert of_writes.estimate.value == pytest.approx(np.average(np.mean(pairs, 0), weights=n_pos))
    assert {finding.kind for finding in result.findings()} == {"describes"}


def test_bad_shards_are_refused_before_any_work() -> None:
    with pytest.raises(AnalysisError, match="prompt '0' has 2 tokens; at least 3 are needed"):
        BlockGain().check(tiny("llama"), tokens(n_pos=2))
