"""The lens is the ridge regression of kept states, and exact where the end is affine in a layer."""

import dataclasses
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.affine_lens import AffineLens
from interp.analyses.affine_lens.maps import fitted
from interp.analyses.affine_lens.result import KL, LENSES, MEASURES
from interp.analyses.affine_lens.texts import sampled_texts
from interp.errors import AnalysisError, TaskError, UnsuitedError
from interp.models import Model
from interp.result import faults_of
from interp.sweeps.lens import READINGS
from interp.tasks.batch import TokenBatch
from tests.families import one_layer, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def written(model: Model, n_tokens: int = 400, *, seed: int = 0) -> list[TokenBatch]:
    """Return texts of up to 16 tokens that a model samples."""
    return [*sampled_texts(model, [3, 4, 5], n_tokens=n_tokens, length=16, seed=seed)]


def rows_of(texts: list[TokenBatch]) -> list[list[int]]:
    """Return the tokens of every text."""
    return [
        row[own].tolist()
        for batch in texts
        for row, own in zip(batch.tokens, batch.mask, strict=True)
    ]


def states(model: Model, texts: list[TokenBatch]) -> torch.Tensor:
    """Return the stream [tap token d_model] of all texts behind position 0, in fp64."""
    kept = []
    for batch in texts:
        recording = model.record(batch)
        stream = torch.stack([recording.resid(tap) for tap in range(model.n_layers + 1)])
        kept.append(stream[:, :, 1:][:, batch.mask[:, 1:]])
    return torch.cat(kept, dim=1).double()


@torch.no_grad()
def test_the_maps_are_the_naive_ridge_regression_of_kept_states(model: Model) -> None:
    texts = written(model)
    lens, stream = fitted(model, texts, towards="end", begin=1), states(model, texts)
    for layer in range(model.n_layers):
        x, y = stream[layer], stream[-1] - stream[layer]
        x_mean = x.mean(0)
        centred = x - x_mean
        gram = centred.T @ centred
        ridge = float(lens.ridge[layer]) * gram.trace() / len(gram) * torch.eye(len(gram)).double()
        weight = torch.linalg.solve(gram + ridge, centred.T @ (y - y.mean(0)))
        expected = x + y.mean(0) + centred @ weight
        assert_close(lens(layer, x.float()[None])[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert_close(lens.mean.double(), stream[-1].mean(0), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_maps_to_the_next_layer_are_applied_one_after_the_other() -> None:
    model = tiny("llama")
    texts = written(model)
    whole = fitted(model, texts, towards="next", begin=1)
    last = fitted(model, texts, towards="end", begin=1)
    x = torch.randn(1, 5, model.d_model)
    assert_close(whole(model.n_layers - 1, x), last(model.n_layers - 1, x))
    # a mean vector goes to the mean of the next layer, and so on to the end
    for layer in range(model.n_layers):
        end = whole(layer, whole.x_mean[layer][None, None])[0, 0]
        assert_close(end, whole.mean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_affine_model_is_read_without_an_error() -> None:
    """Without attention and MLPs every layer is the identity: both lenses are exact."""
    model = tiny("llama")
    model = dataclasses.replace(model, module=deepcopy(model.module))
    for block in model.module.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    result = AffineLens(length=16, control="none").combine([measured(model)])
    assert result.values("affine lens", KL) == pytest.approx(0, abs=1e-5)
    assert result.values("logit lens", KL) == pytest.approx(0, abs=1e-5)
    assert (result.values("mean alone", KL) > 1e-3).all()


def measured(model: Model, **parameters: object) -> dict[str, torch.Tensor]:
    """Return the part of one shard."""
    analysis, batch = AffineLens(**{"length": 16, "control": "none", **parameters}), tokens()
    lens = fitted(model, written(model), towards=analysis.towards, begin=1)
    prepared = lens.tensors() | {"order": analysis._order(model.n_layers)}
    return analysis.measure(model.record(batch), batch, prepared)


def test_the_logit_lens_is_the_one_of_logit_lens() -> None:
    from interp.analyses.logit_lens import LogitLens

    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=6)
    result = AffineLens(control="none").run(model, task)
    other = LogitLens().run(model, task)
    for measure in MEASURES:
        mean = result.values("logit lens", measure).mean(0)
        np.testing.assert_allclose(mean, other.curves[measure][:-1], rtol=1e-5, atol=1e-6)
    assert result.arrays["readings"].shape[1:] == (len(LENSES), model.n_layers, len(READINGS))


def test_texts_have_the_tokens_asked_for_and_do_not_depend_on_how_many_are_written_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    together = written(model, 300)
    assert 300 <= sum(int(batch.mask[:, 1:].sum()) for batch in together) < 300 + 15
    monkeypatch.setattr("interp.analyses.affine_lens.texts._ROWS", 3)
    apart = written(model, 300)
    assert len(apart) > len(together)
    assert rows_of(apart) == rows_of(together)
    assert written(model, 300, seed=1)[0].tokens.tolist() != together[0].tokens.tolist()


def test_shuffled_layers_have_another_layers_map() -> None:
    for n_layers in (2, 3, 8):
        for seed in range(5):
            order = AffineLens(seed=seed)._order(n_layers)
            assert sorted(order.tolist()) == [*range(n_layers)]
            assert bool((order != torch.arange(n_layers)).all())


def part(kl: np.ndarray, twins: np.ndarray) -> dict[str, torch.Tensor]:
    """Return a part with KLs [prompt lens layer] and twins' [twin 2 layer]."""
    read = torch.zeros(*kl.shape, len(READINGS))
    read[..., READINGS.index("kl_final_lens")] = torch.from_numpy(kl)
    read[..., READINGS.index("answer_rank")] = -1
    n = len(kl)
    return {
        "readings": read,
        "ridge": torch.ones(n, kl.shape[2]),
        "twins": torch.from_numpy(twins).float().expand(n, -1, -1, -1).contiguous(),
    }


def test_a_gain_as_large_as_in_untrained_twins_is_none() -> None:
    rng = np.random.default_rng(0)
    kl = np.array([1.0, 3.0, 2.0, 4.0])[:, None] + rng.normal(0, 0.1, (12, 4, 5))
    alike = np.array([[[0.0] * 5, [gain] * 5] for gain in (1.8, 2.1, 2.0)])
    result = AffineLens().combine([part(kl, alike)])
    first, *_ = result.findings()
    assert not first.estimate.excludes()
    assert "is not shown to gain more or less" in first.claim
    result = AffineLens().combine([part(kl, alike / 10)])
    first, half, below = result.findings()
    assert first.estimate.low > 0
    assert first.estimate.value == pytest.approx(1.8, abs=0.1)
    assert half.control.estimate.value == pytest.approx(4, abs=0.1)
    assert below.estimate.value == 0
    assert faults_of(result.findings()) == []
    kl[:, 1, 0] = 100  # the embedding does not count
    again = AffineLens().combine([part(kl, alike / 10)])
    assert again.findings()[0].estimate == first.estimate


def test_bad_input_is_one_line() -> None:
    model, batch = tiny("llama"), tokens()
    with pytest.raises(
        AnalysisError, match="n_tokens=100; a lens of 32 features needs at least 320 tokens"
    ):
        AffineLens(n_tokens=100).check(model, batch)
    with pytest.raises(TaskError, match="the model reads 64"):
        AffineLens(length=80).check(model, batch)
    with pytest.raises(AnalysisError, match="has 1 token; first_position='excluded'"):
        AffineLens().check(model, tokens(n_pos=1))
    with pytest.raises(UnsuitedError, match="the model has 1 layer"):
        AffineLens().check(one_layer("llama"), batch)


def test_a_model_that_ends_its_texts_at_once_is_refused() -> None:
    model = tiny("llama")
    config = model.module.generation_config
    before = config.eos_token_id
    config.eos_token_id = [*range(97)]
    try:
        with pytest.raises(AnalysisError, match="the model ends its texts too early"):
            [*sampled_texts(model, [3], n_tokens=400, length=32, seed=0)]
    finally:
        config.eos_token_id = before


def test_it_runs_no_block_beyond_the_clean_pass() -> None:
    model, batch = dataclasses.replace(tiny("llama")), tokens()
    analysis = AffineLens(length=16, control="none")
    lens = fitted(model, written(model), towards="end", begin=1)
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    analysis.measure(recording, batch, lens.tensors() | {"order": analysis._order(4)})
    assert recording.work.block_tokens == clean
