"""Norms, ratios and cosines: by hand, and against the stock model's own hidden states."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from interp.analyses.residual_contribution import MEASURES, ResidualContribution, measures_of
from interp.errors import TaskError
from interp.figures.words import ALL, ALL_BUT_FIRST
from interp.models import Model
from interp.sweeps.cosines import writes_of
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_case_done_by_hand() -> None:
    stream = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]])
    attn = torch.tensor([[[0.0, 0.0, 5.0], [0.0, 0.0, -1.0]]])
    mlp = torch.tensor([[[6.0, 8.0, 0.0], [0.0, 3.0, 0.0]]])
    first = [
        5,
        5,
        10,
        1,
        10 / 50**0.5,
        125**0.5 / 5,
        0,
        (18 + 32) / (10 * 50**0.5),
        50 / (5 * 125**0.5),
    ]
    second = [2, 1, 3, 0.5, 3, 10**0.5 / 2, -1, 0, -2 / (2 * 10**0.5)]
    in_and_out = [(27 + 48) / (5 * 250**0.5), 2 / (2 * 10**0.5)]
    expected = torch.tensor([[[*first, in_and_out[0]], [*second, in_and_out[1]]]])
    writes = [(attn, stream), (mlp, stream + attn), (attn + mlp, stream)]
    assert_close(measures_of(writes), expected, rtol=1e-5, atol=1e-6)
    writes[1] = (mlp, stream)  # as in a parallel block
    assert_close(measures_of(writes)[0, :, 4], torch.tensor([2.0, 1.5]))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_parallel_blocks_mlp_writes_to_what_it_reads(family: str) -> None:
    batch, model = tokens(), tiny(family)
    recording = model.record(batch)
    attn, mlp, layer = writes_of(recording, 1)
    reads = recording.resid(1) + (0 if recording.blocks[1].is_parallel else attn[0])
    assert_close(mlp[1], reads)
    assert_close(layer[1] + layer[0], recording.resid(2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_equals_the_stock_models_hidden_states(model: Model) -> None:
    batch = tokens()
    hidden = model.module(batch.tokens, output_hidden_states=True, use_cache=False).hidden_states
    part = ResidualContribution().measure(model.record(batch), batch, {})
    for layer in range(model.n_layers - 1):  # the last hidden state of transformers is normed
        pre, post = hidden[layer], hidden[layer + 1]
        naive = {
            ("norm", "stream"): pre.norm(dim=-1),
            ("norm relative to the stream", "layer"): (post - pre).norm(dim=-1) / pre.norm(dim=-1),
            ("cosine with the stream", "layer"): cosine_similarity(post - pre, pre, dim=-1),
            ("cosine with the stream", "layer's output"): cosine_similarity(post, pre, dim=-1),
        }
        for measure, values in naive.items():
            i = MEASURES.index(measure)
            assert_close(part["mean"][:, layer, i], values.mean(1), rtol=1e-4, atol=1e-5)
            assert_close(
                part["max_without_first"][:, layer, i], values[:, 1:].amax(1), rtol=1e-4, atol=1e-5
            )


def part(ratios: list[list[float]], *, n_pos: int = 4) -> dict[str, torch.Tensor]:
    """Return a part of prompts with these relative writes [prompt layer], ten times at token 0."""
    values = torch.zeros(len(ratios), len(ratios[0]), len(MEASURES))
    values[:, :, MEASURES.index(("norm relative to the stream", "layer"))] = torch.tensor(ratios)
    values[:, :, MEASURES.index(("norm", "stream"))] = 2.0
    values[:, :, MEASURES.index(("cosine with the stream", "layer"))] = torch.tensor(ratios) - 1
    return {
        "mean": 10 * values,
        "max": 20 * values,
        "mean_without_first": values,
        "max_without_first": 2 * values,
        "n_pos": torch.full((len(ratios),), n_pos),
    }


def test_means_weight_tokens_and_not_prompts() -> None:
    parts = [part([[1.0, 1.0]], n_pos=10), part([[4.0, 4.0]], n_pos=20)]
    result = ResidualContribution().combine(parts)
    at = (..., MEASURES.index(("norm relative to the stream", "layer")))
    np.testing.assert_allclose(result.writes().mean[at], (9 * 1 + 19 * 4) / 28)
    np.testing.assert_allclose(result.writes(ALL).mean[at], (10 * 10 + 20 * 40) / 30)
    frame = result.to_frame().set_index(["positions", "measure", "component", "layer"])
    row = frame.loc[(ALL_BUT_FIRST, "norm relative to the stream", "layer", 1)]
    assert (row["max"], row["n_prompts"]) == (8, 2)
    assert row["mean"] == pytest.approx((9 * 1 + 19 * 4) / 28)


def test_a_layer_is_named_only_if_both_halves_pick_it() -> None:
    ratios = np.full((24, 4), 0.5)
    ratios[::2, 2], ratios[1::2, 3] = 4.0, 4.1  # who is largest depends on the prompts drawn
    _, most, _ = ResidualContribution().combine([part(ratios.tolist())]).findings()
    assert most.claim.startswith("The layer that writes most on half of the prompts writes")
    assert "; the halves pick layer" in most.note


def test_findings_are_computed_another_way() -> None:
    rng = np.random.default_rng(0)
    layers = np.array([9.0, 1.0, 2.0, 4.0, 3.0, 0.5])  # the first writes to a small embedding
    ratios = layers * rng.uniform(0.9, 1.1, (24, 6))
    halves, most, erasing = ResidualContribution().combine([part(ratios.tolist())]).findings()
    mean = ratios.mean(0)
    expected = np.median(mean[3:]) / np.median(mean[:3])
    assert halves.estimate.value == pytest.approx(expected, rel=1e-6)
    assert halves.estimate.low < expected < halves.estimate.high
    assert halves.control.estimate.value == pytest.approx(1)  # the stream does not grow
    assert halves.rival.estimate.value == pytest.approx(expected, rel=1e-6)
    assert "Layer 0 writes most" in most.claim
    assert most.estimate.value == pytest.approx(mean[0], rel=1e-6)
    assert most.rival.name == "layer 3, the next"
    assert most.rival.estimate.value == pytest.approx(mean[3], rel=1e-6)
    assert "all positions: layer 0" in most.note
    assert erasing.claim == (
        "Layer 5 writes against the stream (negative cosine), position 0 left out."
    )


def test_a_layer_erases_only_where_all_layers_together_show_it() -> None:
    rng = np.random.default_rng(1)
    ratios = np.array([0.99, 0.5]) + rng.normal(0, 0.2, (32, 2))  # cosines -0.01 and -0.5
    erasing = ResidualContribution().combine([part(ratios.tolist())]).findings()[2]
    assert erasing.claim.startswith("Layer 1 writes against")
    few = ResidualContribution().combine([part([[0.99, 0.5]])]).findings()[2]
    assert few.claim.startswith("Layers 0 and 1 write against")
    assert "fewer than 5" in few.note


def test_prompts_of_one_token_have_nothing_behind_the_first(model: Model) -> None:
    one, more = tokens(batch=2, n_pos=1), tokens()
    with torch.no_grad():
        parts = [
            ResidualContribution().measure(model.record(batch), batch, {}) for batch in (one, more)
        ]
    assert parts[0]["max_without_first"].isnan().all()
    without = ResidualContribution()
    both = without.combine(parts).of_groups(np.arange(len(one.tokens) + len(more.tokens)))
    np.testing.assert_array_equal(both.writes().mean, without.combine(parts[1:]).writes().mean)
    assert np.isfinite(both.writes(ALL).mean).all()
    assert np.isfinite(both.findings()[0].estimate.value)
    with pytest.raises(
        TaskError, match="every prompt has 1 token; first_position='excluded' needs at least 2"
    ):
        without.combine(parts[:1])
    alone = ResidualContribution(first_position="included").combine(parts[:1])
    assert set(alone.to_frame()["positions"]) == {ALL}
