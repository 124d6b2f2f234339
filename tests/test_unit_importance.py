"""Outputs times their gradients are parameters times theirs; zeroing equals the stock model's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import interp
from interp.analyses.unit_importance import UnitImportance
from interp.analyses.unit_importance.units import KINDS, Drawn, UnitModules
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.sites import Site
from interp.stats.ranks import Resamples, partial_estimate, rank_correlation
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = (
    "llama",
    "gpt2",
    "gpt_neox",
    "gemma2",
    "qwen3",
    "olmo2",
    "opt",
    "falcon",
    "phi",
    "granite",
    "nemotron",
)


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return tiny(request.param)


def answered() -> TokenBatch:
    batch = tokens()
    answers = torch.full((3, 2), -1)
    answers[:, 0], answers[1, 1] = batch.tokens[:, 3], 7  # one prompt's answer has two tokens
    prompts = batch.prompts
    return TokenBatch(prompts, batch.tokens, batch.mask, batch.last, answer_tokens=answers)


def stock_losses(model: Model, batch: TokenBatch) -> torch.Tensor:
    """Return every prompt's loss, computed by the stock module alone."""
    losses = []
    for row, ids in enumerate(batch.tokens):
        answer = ids[1:] if batch.answer_tokens is None else batch.answer_tokens[row]
        answer = answer[answer >= 0]
        given = ids if batch.answer_tokens is None else torch.cat([ids, answer[:-1]])
        given = given[:-1] if batch.answer_tokens is None else given
        logits = model.module(input_ids=given[None], use_cache=False).logits[0].float()
        log_p = logits.log_softmax(-1)[-len(answer) :].gather(1, answer[:, None])
        losses.append(-log_p.mean() if batch.answer_tokens is None else -log_p.sum())
    return torch.stack(losses)


def offset(module: nn.Module) -> float:
    """Return 1 for norms that multiply by 1 + their weight."""
    return float(type(module).__name__.startswith(("Gemma", "Nemotron")))


@pytest.mark.parametrize("batch", [answered(), tokens()], ids=["answers", "texts"])
def test_sums_are_those_of_autograds_parameter_gradients(model: Model, batch: TokenBatch) -> None:
    part = UnitImportance(exact=("layer",)).measure(model.record(batch), batch, {})
    modules = UnitModules.of(model.blocks)
    assert_close(part["loss"], stock_losses(model, batch).detach())
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            losses = stock_losses(model, batch)
            for row, loss in enumerate(losses):
                model.module.zero_grad()
                loss.backward(retain_graph=True)
                for layer, block in enumerate(model.blocks):
                    for key, path in zip(modules.keys, modules.paths, strict=True):
                        module = block.module.get_submodule(path)
                        expected = sum(
                            float(
                                (p.grad * (p + (offset(module) if name == "weight" else 0))).sum()
                            )
                            for name, p in module.named_parameters()
                        )
                        assert_close(
                            float(part[key][row, layer, 0]), expected, atol=1e-5, rtol=1e-3
                        )
    finally:
        model.module.zero_grad(set_to_none=True)
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)


def returning(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]):
    """Return a handle of a hook that changes what a module returns."""

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return module.register_forward_hook(hook)


@torch.no_grad()
def test_a_heads_size_is_that_of_its_write_behind_the_norm() -> None:
    model, shard = tiny("gemma3"), tokens()
    recording, block = model.record(shard), model.blocks[1]
    sizes = UnitImportance(exact=("layer",)).measure(recording, shard, {})["head"][:, 1, :, 1]
    z = model.forward(shard, capture=[Site("z", 1)]).activations[Site("z", 1)]
    by_head = z.reshape(*z.shape[:2], model.n_heads, -1)
    matrix = block.module.self_attn.o_proj.weight.reshape(model.d_model, model.n_heads, -1)
    parts = torch.einsum("bphd,mhd->bphm", by_head, matrix)
    whole = parts.sum(2)
    scaled = block.module.post_attention_layernorm(whole) / whole
    written = (parts * scaled[:, :, None]).norm(dim=-1)
    expected = (written / recording.resid(1).norm(dim=-1)[..., None]).mean(1)
    assert_close(sizes, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_rises_are_those_of_the_stock_model_with_its_units_zeroed(model: Model) -> None:
    batch = answered()
    part = UnitImportance(KINDS, most=1000).measure(model.record(batch), batch, {})
    clean, modules = stock_losses(model, batch), UnitModules.of(model.blocks)
    writers = {"attention": lambda b: b.attn_write, "mlp": lambda b: b.mlp_write}
    for layer, block in enumerate(model.blocks):
        for kind, writer in writers.items():
            handle = returning(writer(block), torch.zeros_like)
            assert_close(part[f"exact.{kind}"][:, layer], stock_losses(model, batch) - clean)
            handle.remove()
        handles = [returning(writer(block), torch.zeros_like) for writer in writers.values()]
        assert_close(part["exact.layer"][:, layer], stock_losses(model, batch) - clean)
        for handle in handles:
            handle.remove()
        for i, module in enumerate(modules.projections):
            handle = returning(block.module.get_submodule(modules.paths[module]), torch.zeros_like)
            got = part["exact.projection"][:, layer * len(modules.projections) + i]
            assert_close(got, stock_losses(model, batch) - clean, atol=1e-5, rtol=1e-4)
            handle.remove()
        for head in range(model.n_heads):

            def without(_module: nn.Module, args: tuple, head: int = head) -> tuple:
                z = args[0].clone()
                d = z.shape[-1] // model.n_heads
                z[..., head * d : (head + 1) * d] = 0
                return (z, *args[1:])

            handle = block.z_reader.register_forward_pre_hook(without)
            got = part["exact.head"][:, layer * model.n_heads + head]
            assert_close(got, stock_losses(model, batch) - clean, atol=1e-5, rtol=1e-4)
            handle.remove()


def test_a_small_scaling_of_a_unit_changes_the_loss_as_its_sum_says(model: Model) -> None:
    batch, by = answered(), 1e-3
    part = UnitImportance(exact=("layer",)).measure(model.record(batch), batch, {})
    ends = []
    with torch.no_grad():
        for scale in (1 + by, 1 - by):

            def scaled(_module: nn.Module, args: tuple, scale: float = scale) -> tuple:
                z = args[0].clone()
                z[..., : z.shape[-1] // model.n_heads] *= scale
                return (z, *args[1:])

            handle = model.blocks[1].z_reader.register_forward_pre_hook(scaled)
            ends.append(stock_losses(model, batch))
            handle.remove()
    slope = (ends[0] - ends[1]) / (2 * by)
    assert_close(part["head"][:, 1, 0, 0], slope, atol=2e-3, rtol=2e-2)


def test_experts_are_refused_with_a_reason() -> None:
    with pytest.raises(UnsuitedError, match=r"Mixtral.* neither a linear map nor a norm"):
        UnitImportance().check(tiny("mixtral"), tokens())


def test_a_text_of_one_token_and_no_kind_are_refused() -> None:
    with pytest.raises(AnalysisError, match="1 token and no answer"):
        UnitImportance().check(tiny("llama"), tokens(n_pos=1))
    with pytest.raises(AnalysisError, match="no kind of unit"):
        UnitImportance(exact=())


def test_no_more_units_are_zeroed_than_asked_for() -> None:
    drawn = Drawn.of(30, tuple(range(9)), most=64, seed=0)
    assert len({*zip(drawn.layers, drawn.which, strict=True)}) == 64
    assert drawn == Drawn.of(30, tuple(range(9)), most=64, seed=0)
    assert Drawn.of(4, (0,), most=64, seed=0).layers == (0, 1, 2, 3)


def test_parameters_stay_as_they_were() -> None:
    model = interp.load_model("zoo/hops-4l")
    before = model.fingerprint
    UnitImportance(exact=("layer",)).run(model, interp.load_task("two-hop", n=4))
    assert model.fingerprint == before
    for parameter in model.module.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


@pytest.mark.parametrize("seed", range(2))
def test_an_untrained_model_has_nothing_to_rank_units_for(seed: int) -> None:
    model = interp.load_model(f"zoo/hops-4l@untrained-{seed}")
    result = UnitImportance(exact=("head",)).run(model, interp.load_task("two-hop", n=12))
    findings = result.findings()
    assert "nothing to rank" in findings[0].claim
    assert all(finding.kind == "describes" for finding in findings)


def test_an_interval_counts_the_draw_of_units() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(1, 2, 12)), 20, axis=0)  # all prompts alike
    resamples = Resamples(
        {"unit": values}, {"r": lambda means: rank_correlation(means[:, 0], means[:, 1])}
    )
    number = resamples.estimate(resamples.columns["unit", "r"])
    assert number.value == pytest.approx(float(rank_correlation(*values[0])))
    assert number.high - number.low > 0.5
    fisher = partial_estimate(values, np.zeros((0, 12)))
    assert fisher.high - fisher.low > 0.5


def test_a_partial_rank_correlation_is_without_what_is_given() -> None:
    depth = np.arange(40.0)
    noise = np.random.default_rng(0).normal(size=(2, 40))
    rows = depth + noise
    assert partial_estimate(np.repeat(rows[None], 8, axis=0), np.zeros((0, 40))).value > 0.9
    assert not partial_estimate(np.repeat(rows[None], 8, axis=0), depth[None]).excludes()
