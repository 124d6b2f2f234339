"""What components write to logits: they add up, as hooks say, and ablation is exact."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.logit_attribution import LogitAttribution
from interp.analyses.logit_attribution.parts import Parts, directions_of
from interp.analyses.logit_attribution.result import LogitAttributionResult
from interp.errors import AnalysisError, TaskError
from interp.interventions import Ablate
from interp.models import Model
from interp.models.norms import Gain
from interp.sites import Site
from interp.sweeps.heads import output_map
from interp.sweeps.tags import keys_of
from interp.tasks.batch import TokenBatch
from tests.families import tokens


def shard_of(*, has_wrong: bool) -> TokenBatch:
    answer, wrong = torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9])
    given = {"answer": answer, "answer_tokens": answer[:, None]}
    return replace(tokens(), **given, wrong=wrong if has_wrong else None)


def parts_of(model: Model, shard: TokenBatch) -> Parts:
    direction, offset = directions_of(model, shard)
    prepared = {"keys": keys_of(shard.prompts), "directions": direction, "offsets": offset}
    return Parts(model.record(shard), shard, prepared)


@cache
def names() -> Model:
    return interp.load_model("zoo/names-6l")


@cache
def of_names() -> LogitAttributionResult:
    return LogitAttribution().run(names(), interp.load_task("ioi", n=8))


@pytest.mark.parametrize("has_wrong", [True, False])
@torch.no_grad()
def test_parts_add_up_to_the_logit(family: str, model: Model, has_wrong: bool) -> None:
    if model.blocks[0].z_reader is None:
        pytest.skip(f"{family}: heads cannot be told apart")
    shard = shard_of(has_wrong=has_wrong)
    with model.running:
        parts = parts_of(model, shard).measure()
        logits = model.forward(shard).logits[:, -1]
    assert parts["rest"].abs().max() < 1e-4
    config = model.module.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)
    rows = torch.arange(3)
    other = logits[rows, shard.wrong] if has_wrong else logits.mean(-1)
    assert_close(parts["whole"], logits[rows, shard.answer] - other, rtol=1e-4, atol=1e-4)
    assert_close(
        parts["heads"].sum(2) + parts["attention bias"] + parts["mlps"],
        _by_layer(model, shard),
        rtol=1e-3,
        atol=1e-4,
    )


def _by_layer(model: Model, shard: TokenBatch) -> torch.Tensor:
    """Return what each layer adds to the logit difference, from the stream alone."""
    with model.running:
        recording = model.record(shard)
        direction = parts_of(model, shard).direction
        taps = [recording.resid(tap)[:, -1].float() for tap in range(model.n_layers + 1)]
    stream = torch.stack(taps, dim=1)
    return ((stream[:, 1:] - stream[:, :-1]) * direction[:, None]).sum(-1)


@torch.no_grad()
def test_a_head_writes_what_its_map_makes_of_its_output() -> None:
    model = names()
    shard = model.tokenize(interp.load_task("ioi", n=2).prompts[:1])
    with model.running:
        parts = parts_of(model, shard)
        for layer in range(model.n_layers):
            z = parts.recording.inside(Site("z", layer))[:, -1].reshape(1, 1, model.n_heads, -1)
            maps = output_map(parts.recording, layer, z)
            written = torch.einsum("bphd,hdm->bhm", z.float(), maps)
            expected = torch.einsum("bhm,bm->bh", written, parts.direction)
            assert_close(parts._heads(layer), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_lost_without_a_component_is_what_hooks_say() -> None:
    model = names()
    shard = model.tokenize(interp.load_task("ioi", n=2).prompts[:1])
    last, rows = int(shard.last[0]), torch.arange(1)

    def outcome(plan: list[Ablate]) -> torch.Tensor:
        logits = model.forward(shard, plan=plan).logits[:, last]
        return logits[rows, shard.answer] - logits[rows, shard.wrong]

    with model.running:
        parts = parts_of(model, shard)
        head = parts.lost_without(2 * model.n_heads + 3)
        mlp = parts.lost_without(model.n_layers * model.n_heads + 4)
    without_head = Ablate(Site("z", 2), units=[3], positions=[last])
    without_mlp = Ablate(Site("mlp_out", 4), positions=[last])
    assert_close(head, outcome([]) - outcome([without_head]), rtol=1e-3, atol=1e-3)
    assert_close(mlp, outcome([]) - outcome([without_mlp]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(8), torch.nn.RMSNorm(8, eps=1e-3)])
@torch.no_grad()
def test_a_frozen_norm_reads_as_the_norm_does(norm: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x, direction = torch.randn(4, 8), torch.randn(4, 8)
    frozen = Gain.of(norm, x).at(norm, x)
    expected = (norm(x) * direction).sum(-1)
    assert_close((frozen.back(direction) * x).sum(-1) + frozen.offset(direction), expected)


def test_the_known_head_of_a_shipped_model_writes_most() -> None:
    result = of_names()
    assert result.findings()[0].claim.startswith("L2H3 directly contributes")
    assert "L2H3" in result.ablated
    assert np.abs(result.arrays["rest"]).max() < 1e-4


def test_it_compares_nothing_since_a_random_head_copies_a_little_too() -> None:
    assert {finding.kind for finding in of_names().findings()} == {"describes"}


def test_prompts_without_answers_are_one_line() -> None:
    with pytest.raises(TaskError, match="answer"):
        LogitAttribution().check(names(), tokens())


@torch.no_grad()
def test_all_neurons_of_an_mlp_add_up_to_it_but_for_its_bias(family: str, model: Model) -> None:
    if model.blocks[1].mlp_post_reader is None:
        pytest.skip(f"{family}: neurons cannot be told apart")
    shard = shard_of(has_wrong=True)
    with model.running:
        parts = parts_of(model, shard)
        n = parts.recording.inside(Site("mlp_post", 1)).shape[-1]
        neurons = parts.neurons([(1, i) for i in range(n)])
        bias = getattr(model.blocks[1].mlp_post_reader, "bias", None)
        extra = 0 if bias is None else parts.direction @ bias.detach().float()
        assert_close(neurons.sum(1) + extra, parts.measure()["mlps"][:, 1], rtol=1e-3, atol=1e-4)


def test_neurons_are_named_and_told_beside_their_mlp() -> None:
    task = interp.load_task("ioi", n=8)
    frame = LogitAttribution(ablated=0, neurons=("m5.n12", "m0.n3")).run(names(), task).to_frame()
    told = frame[frame["part"].str.startswith("neuron")]
    assert list(told["part"]) == ["neuron m5.n12", "neuron m0.n3"]
    assert list(told["layer"]) == [5, 0]
    for neurons, why in (
        (("m5",), "names are like"),
        (("m9.n1",), "the last layer is 5"),
        (("m0.n512",), "MLP 0 has 512"),
    ):
        with pytest.raises(AnalysisError, match=why):
            LogitAttribution(neurons=neurons).run(names(), task)
