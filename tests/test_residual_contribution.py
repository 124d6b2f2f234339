"""Norms, ratios and cosines: by hand, and against the stock model's own hidden states."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from interp.analyses.residual_contribution import MEASURES, ResidualContribution, measures_of
from interp.errors import TaskError
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


def test_means_weight_tokens_and_not_prompts() -> None:
    shape = (1, len(MEASURES))
    parts = [
        {
            "mean": torch.full((1, *shape), value),
            "max": torch.full((1, *shape), value),
            "n_pos": torch.tensor([n]),
        }
        for value, n in ((1.0, 10), (4.0, 20))
    ]
    result = ResidualContribution().combine(parts)
    np.testing.assert_allclose(result.mean, 3.0)
    np.testing.assert_allclose(result.maximum, 4.0)


def test_prompts_of_one_token_have_nothing_behind_the_first(model: Model) -> None:
    one, more = tokens(batch=2, n_pos=1), tokens()
    with torch.no_grad():
        parts = [
            ResidualContribution().measure(model.record(batch), batch, {}) for batch in (one, more)
        ]
    assert parts[0]["max_without_first"].isnan().all()
    without = ResidualContribution(first_position="excluded")
    np.testing.assert_array_equal(without.combine(parts).mean, without.combine(parts[1:]).mean)
    assert np.isfinite(ResidualContribution().combine(parts).mean).all()
    with pytest.raises(
        TaskError, match="every prompt has 1 token; first_position='excluded' needs at least 2"
    ):
        without.combine(parts[:1])
