"""Ranks of patterns whose rank is known, at one length, and the cost of skipping attention."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp import Prompt
from interp.analyses.attention_rank import AttentionRank
from interp.analyses.attention_rank.result import FEWEST_LAYERS, AttentionRankResult
from interp.analyses.attention_rank.spectra import (
    MEASURES,
    published,
    ranks,
    shuffled,
    shuffles,
    uniform,
    without_first,
)
from interp.errors import AnalysisError
from interp.models import Model
from interp.stats.estimate import Estimate
from tests.families import FAMILIES, stock_logits, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return tiny(request.param)


def test_ranks_of_simple_patterns_are_known() -> None:
    n = 6
    identity, zeros = torch.eye(n), torch.zeros(n, n)
    sink = torch.zeros(n, n)
    sink[:, 0] = 1
    assert ranks(identity).tolist() == pytest.approx([n] * 4)
    assert ranks(sink).tolist() == pytest.approx([1] * 4)
    assert ranks(zeros).tolist() == [0] * 4
    two = torch.diag(torch.tensor([1.0, 0.5, 0, 0, 0, 0]))
    share = torch.tensor([2 / 3, 1 / 3])
    entropy = float(-(share * share.log()).sum())
    assert ranks(two).tolist() == pytest.approx([math.exp(entropy), 1.25, 2, 2])


def test_the_tolerance_counts_singular_values_above_it() -> None:
    values = torch.diag(torch.tensor([1.0, 0.02, 0.005, 0.0005]))
    assert ranks(values)[2:].tolist() == [2, 3]


def test_every_causal_pattern_has_full_rank_with_its_diagonal() -> None:
    pattern = (0.1 + torch.rand(5, 8, 8, dtype=torch.float64)).tril()  # none is next to nothing
    assert torch.linalg.matrix_rank(pattern).tolist() == [8] * 5
    assert published(pattern).tolist() == [7] * 5  # strictly triangular without it


def test_the_published_rank_is_that_of_its_code() -> None:
    pattern = torch.randn(4, 12, 12).masked_fill(~torch.ones(12, 12).tril().bool(), -1e9) * 8
    pattern = pattern.softmax(-1)
    theirs = pattern * torch.tril(torch.ones(12, 12))
    theirs.diagonal(dim1=-2, dim2=-1).zero_()
    assert published(pattern).tolist() == torch.linalg.matrix_rank(theirs).tolist()


def test_without_the_first_rows_add_up_to_1_unless_the_first_has_nearly_all() -> None:
    pattern = uniform(5)[None]
    assert_close(without_first(pattern)[0], uniform(4))
    sink = torch.tensor([[1.0, 0, 0], [1 - 1e-5, 1e-5, 0], [0.5, 0.25, 0.25]])
    assert without_first(sink).sum(-1).tolist() == pytest.approx([1e-2, 1.0], rel=1e-2)


def test_shuffled_rows_keep_weights_and_stay_causal() -> None:
    prompts = [Prompt(str(i), "x") for i in range(3)]
    order = shuffles(prompts, 6, seed=0)
    assert torch.equal(order[1:2], shuffles(prompts[1:2], 6, seed=0))
    pattern = torch.rand(3, 2, 6, 6).tril()
    mixed = shuffled(pattern, order)
    assert torch.equal(mixed, mixed.tril())
    assert_close(mixed.sort(-1).values, pattern.sort(-1).values)
    assert not torch.equal(mixed, pattern)


def prepared_of(n_tokens: int) -> dict[str, torch.Tensor]:
    return {"n_tokens": torch.tensor(n_tokens)}


@torch.no_grad()
def test_ranks_are_those_of_the_models_patterns(model: Model) -> None:
    batch = tokens()
    part = AttentionRank().measure(model.record(batch), batch, prepared_of(8))
    seen = model.forward(batch, capture="pattern").activations
    for site, pattern in seen.items():
        cut = pattern.double()[:, :, :8, :8]
        assert_close(cut.sum(-1), torch.ones(cut.shape[:3], dtype=torch.float64))
        values = torch.linalg.svdvals(cut)
        share = values / values.sum(-1, keepdim=True)
        assert_close(part["rank"][:, site.layer, :, 0, 0], (-(share * share.log()).sum(-1)).exp())


@torch.no_grad()
def test_skipping_attention_costs_what_the_stock_model_says(model: Model) -> None:
    batch = tokens()
    analysis = AttentionRank(skipped_positions="all")
    part = analysis.measure(model.record(batch), batch, prepared_of(8))
    clean = stock_logits(model, batch)[:, -1].log_softmax(-1)
    for layer, block in enumerate(model.blocks):

        def nothing(_module: object, _args: object, output: object) -> object:
            if isinstance(output, tuple):
                return (torch.zeros_like(output[0]), *output[1:])
            return torch.zeros_like(output)

        handle = block.attn_write.register_forward_hook(nothing)
        after = stock_logits(model, batch)[:, -1].log_softmax(-1)
        handle.remove()
        expected = (clean.exp() * (clean - after)).sum(-1)
        assert_close(part["kl"][:, layer], expected, atol=1e-5, rtol=1e-4)


def test_all_prompts_are_read_at_the_shortest_ones_length() -> None:
    model = interp.load_model("zoo/hops-4l")
    task = interp.load_task("two-hop", n=6)
    shortest = min(model.tokenize(shard).tokens.shape[1] for shard in model.shards(task))
    assert AttentionRank().run(model, task).n_tokens == shortest
    assert AttentionRank(n_tokens=5).run(model, task).n_tokens == 5


def test_too_short_prompts_and_lengths_are_refused() -> None:
    with pytest.raises(AnalysisError, match="n_tokens=3; at least 4"):
        AttentionRank(n_tokens=3)
    with pytest.raises(AnalysisError, match="prompt '0' has 6 tokens; 9 are needed"):
        AttentionRank(n_tokens=9).check(tiny("llama"), tokens(n_pos=6))


def result(n_layers: int, *, follows: bool, seed: int = 0) -> AttentionRankResult:
    rng = np.random.default_rng(seed)
    rank = 5 + rng.normal(size=n_layers)
    cost = rank if follows else 5 + rng.normal(size=n_layers)
    noise = 0.01 * rng.normal(size=(10, n_layers))
    ones = np.ones((1, 1, 2, len(MEASURES)))
    ranked = (rank + noise)[:, :, None, None] * ones
    arrays = {
        "rank": ranked[:, :, None],
        "shuffled": ranked,
        "published": (rank + noise)[:, :, None],
        "kl": cost + noise,
        "n_tokens": np.full(10, 8.0),
    }
    return AttentionRankResult(AttentionRank(), arrays)


def test_a_correlation_is_claimed_of_enough_layers_that_follow_it() -> None:
    first = result(20, follows=True).findings()[0]
    assert first.kind == "compares"
    assert first.estimate is not None
    assert first.estimate.excludes()
    claimed = [result(20, follows=False, seed=seed).correlation().excludes() for seed in range(40)]
    assert sum(claimed) <= 6


def test_a_share_of_all_heads_has_an_interval() -> None:
    known = result(20, follows=True)
    zeros = known.arrays | {"published": np.zeros((10, 20, 3))}
    few = replace(known, arrays=zeros).findings()[-1]
    assert few.estimate.value == few.estimate.low == 0
    assert few.estimate.high > 0.1  # 0 of 10 is not "0 % [0, 0]"


def test_no_correlation_is_claimed_of_few_layers() -> None:
    findings = result(FEWEST_LAYERS - 1, follows=True).findings()
    (compared,) = [finding for finding in findings if finding.kind == "compares"]
    assert "too few" in compared.claim
    assert isinstance(compared.estimate, Estimate)
    assert not compared.estimate.has_interval
