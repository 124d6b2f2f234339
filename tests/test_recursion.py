"""Layers in a loop: low-rank terms equal to SVDs, whole models equal to weights written by hand."""

import copy

import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.recursion import Recursion, whole
from interp.analyses.recursion.low_rank import LoopWeights, RelaxedLoop, Term, TermSize, shapes_of
from interp.analyses.recursion.places import Place, ends_of, pairs_of
from interp.analyses.recursion.whole import OUTCOMES, run_loops
from interp.errors import AnalysisError, UnsuitedError
from interp.metrics import kl
from interp.models import Model
from interp.models.loops import (
    SVD,
    Loop,
    default_numbers,
    kinds_of,
    loop_of,
    matrices_of,
    random_of,
    svd_of,
    why_not,
)
from interp.result import faults_of
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
ALIKE = (0, 0, 0, 0)


def variant(loop: Loop, size: TermSize) -> RelaxedLoop:
    return RelaxedLoop(loop, loop.n_shared, size.rank, size)


def kl_of(model: Model, loop: Loop, *sizes: TermSize, **how: bool) -> torch.Tensor:
    """Return the KL of a loop [prompt size]."""
    loops = run_loops(model, [tokens()], [variant(loop, size) for size in sizes], **how)["loops"]
    return loops[..., OUTCOMES.index("kl")]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_terms_are_truncated_svds(shape: tuple[int, int]) -> None:
    residue = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(residue, full_matrices=False)
    term, errors = Term(residue, 6), []
    for rank in range(7):
        best = u[:, :rank] * s[:rank] @ v[:rank]
        assert_close(term.of(rank), best, rtol=1e-4, atol=1e-4)
        errors.append((residue - best).square().sum())
        assert term.left(rank) == pytest.approx(float(errors[-1]), rel=1e-3)
    assert errors == sorted(errors, reverse=True)
    sums = s.square().cumsum(0) / s.square().sum()
    right = [int((sums < share).sum()) + 1 for share in (0.5, 0.9)]
    assert_close(term.ranks_for((0.5, 0.9)) * 7, torch.tensor(right).float())
    assert not Term(torch.zeros(3, 4), 1).ranks_for((0.9,)).any()


def test_loops_by_hand() -> None:
    eight = (0,) * 8
    assert loop_of("stepwise", 4, eight).sources == ((0,), (2,), (5,), (7,))
    assert loop_of("lower", 2, eight).sources == ((0,), (1,))
    assert loop_of("average", 2, eight).sources == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert loop_of("stepwise", 1, eight).sources == loop_of("lower", 1, eight).sources
    turns = (0, 1) * 3  # the last layer is of the other kind: the nearest of the first kind
    assert loop_of("stepwise", 2, turns).sources == ((0,), (5,))
    assert loop_of("stepwise", 4, turns[:4] * 2).sources == ((0,), (1,), (4,), (7,))
    for draw in range(3):
        loop = random_of(2, turns, draw=draw, seed=0)
        assert loop.position == (0, 1) * 3
        free = random_of(2, eight, draw=draw, seed=0)
        assert sorted(free.position) == [0] * 4 + [1] * 4
    assert random_of(4, eight, draw=0, seed=0) != random_of(4, eight, draw=0, seed=1)
    assert default_numbers(eight) == (4, 2)
    assert default_numbers(turns) == (2,)
    assert default_numbers((0,) * 16) == (8, 4)
    assert default_numbers((0,) * 30) == (15,)
    assert "divide" in why_not(3, eight)
    assert "layers 0 and 1" in why_not(1, turns)


def test_parameters_by_hand() -> None:
    shapes = [[(4, 4), (4, 8)]] * 4  # 48 a layer, 192 in all
    half = loop_of("average", 2, ALIKE)
    assert variant(half, TermSize(0)).kept(shapes) == pytest.approx(0.5)
    assert variant(half, TermSize(1)).kept(shapes) == pytest.approx(0.5 + 4 * (8 + 12) / 192)
    assert variant(half, TermSize(9)).kept(shapes) == pytest.approx(1.5)  # at most the matrices
    lower = loop_of("lower", 2, ALIKE)  # two layers are their own shared layer
    assert variant(lower, TermSize(1)).kept(shapes) == pytest.approx(0.5 + 2 * (8 + 12) / 192)
    svd = variant(svd_of(4), TermSize(share=0.5))  # ranks 1 and 1 of 4
    assert svd.kept(shapes) == pytest.approx(4 * (8 + 12) / 192)
    assert variant(svd_of(4), TermSize(share=1.0)).kept(shapes) == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_whole_models_equal_modules_with_such_weights(kind: str) -> None:
    model, rank = tiny(kind), 5
    for norms in ("kept", "shared"):
        loop = loop_of("average", 2, ALIKE)
        module = copy.deepcopy(model.module)
        named = dict(module.named_parameters())
        for layer, block in enumerate(model.blocks):
            for name, own in block.module.named_parameters():
                base = (
                    sum(
                        model.blocks[source].module.get_parameter(name)
                        for source in (layer % 2, layer % 2 + 2)
                    )
                    / 2
                )
                u, s, v = torch.linalg.svd((own - base).reshape(len(own), -1), full_matrices=False)
                if own.ndim == 2:
                    base = base + u[:, :rank] * s[:rank] @ v[:rank]
                elif norms == "kept":
                    base = own
                named[f"{block.name}.{name}"].copy_(base)
        logits = [each.logits(tokens())[:, -1:] for each in (model, Model("by hand", module))]
        found = kl_of(model, loop, TermSize(rank), shares_vectors=norms == "shared")
        assert_close(found[:, 0], -kl(logits[1], logits[0]), rtol=1e-3, atol=1e-5)


def test_full_rank_is_the_model_and_so_are_as_many_shared_layers_as_layers() -> None:
    model, full = tiny("gpt2"), TermSize(32)
    for init in ("average", "lower"):
        assert kl_of(model, loop_of(init, 1, ALIKE), full).abs().max() < 1e-6
        assert kl_of(model, loop_of(init, 4, ALIKE), TermSize(0), TermSize(3)).abs().max() < 1e-6
    assert kl_of(model, loop_of("average", 1, ALIKE), full, shares_vectors=True).max() > 1e-3
    assert kl_of(model, svd_of(4), TermSize(share=1.0)).abs().max() < 1e-6


def test_the_error_of_weights_falls_with_rank_and_is_that_of_the_weights() -> None:
    model, sizes = tiny("llama"), [TermSize(rank) for rank in (0, 2, 8, 20)]
    weights = LoopWeights(model, loop_of("average", 2, ALIKE), sizes)
    errors = [weights.error(size) for size in sizes]
    assert errors == sorted(errors, reverse=True)
    named, at = dict(model.module.named_parameters()), weights.at(TermSize(8))
    own = {
        f"{block.name}.{name}": values
        for block in model.blocks
        for name, values in matrices_of(block).items()
    }
    left = sum((at.get(name, named[name]) - values).square().sum() for name, values in own.items())
    total = sum(values.square().sum() for values in own.values())
    assert errors[2] == pytest.approx(float((left / total) ** 0.5), rel=1e-3)


def test_an_average_is_made_once_for_all_its_layers_and_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sizes, made = tiny("llama"), [TermSize(0), TermSize(2)], []
    base = Loop.base
    monkeypatch.setattr(Loop, "base", lambda *given: made.append(given[2]) or base(*given))
    weights = LoopWeights(model, loop_of("average", 2, ALIKE), sizes)
    for size in sizes:
        weights.at(size)
    assert len(made) == 2 * len(matrices_of(model.blocks[0]))


@torch.no_grad()
def test_copied_layers_can_be_shared() -> None:
    module = copy.deepcopy(tiny("llama").module)
    for layer in module.model.layers[1:]:
        layer.load_state_dict(module.model.layers[0].state_dict())
    model = Model("copies", module)
    for init in ("average", "stepwise", "lower"):
        assert kl_of(model, loop_of(init, 1, ALIKE), TermSize(0)).abs().max() < 1e-6
    recording, places = model.record(tokens()), pairs_of(4, ALIKE)
    ends = ends_of(recording, places, shares_vectors=False)
    assert_close(ends, recording.resid(4)[:, -1].expand_as(ends), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_layer_with_anothers_weights_equals_a_module_with_them_and_keeps_its_arguments() -> None:
    model = tiny("gemma2")  # windows in turn
    module = copy.deepcopy(model.module)
    module.model.layers[1].load_state_dict(module.model.layers[2].state_dict())
    recording = model.record(tokens())
    ends = ends_of(recording, [Place(1, 2)], shares_vectors=False)
    other = Model("by hand", module)
    assert_close(ends[0], other.record(tokens()).resid(4)[:, -1], rtol=1e-4, atol=1e-5)
    assert pairs_of(4, kinds_of(model)) == [Place(0, 2), Place(1, 3), Place(2, 0), Place(3, 1)]


def test_the_model_is_restored_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = tiny("llama"), tiny("llama").weights.state()
    clean = model.logits(tokens())

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(whole, "read", fails)
        with pytest.raises(ZeroDivisionError):
            kl_of(model, loop_of("average", 2, ALIKE), TermSize(1))
    assert model.weights.state() == before
    assert torch.equal(model.logits(tokens()), clean)


def test_what_the_pilot_measured() -> None:
    model, task = interp.load_model("zoo/hops-8l"), interp.load_task("two-hop", n=64)
    batches, eight = [model.tokenize(shard) for shard in model.shards(task)], (0,) * 8
    two = [variant(loop_of(init, 2, eight), TermSize(32)) for init in ("average", "lower")]
    strict = variant(loop_of("average", 1, eight), TermSize(0))
    kl = run_loops(model, batches, [*two, strict])["loops"][..., 0].mean(0)
    assert_close(kl, torch.tensor([0.286, 0.371, 11.67]), rtol=0.01, atol=0)


def test_of_two_broken_models_neither_is_said_to_be_better() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=8)
    how = {"inits": ("average",), "ranks": (8,), "grid": 0, "draws": 0, "control": "none"}
    result = Recursion(shared=(2,), **how).run(model, task)
    assert "sharing costs" in result.summary()
    stays = OUTCOMES.index("same")
    result.arrays["loops"][..., stays] = 0.0
    assert [each.kind for each in result.findings()] == ["describes"] * 2
    assert "0 % [0, " in result.summary()
    assert not faults_of(result.findings())
    result.arrays["loops"][0, result.variants["name"] == SVD, stays] = 1.0  # 1 of 8 stays
    assert "sharing costs" in result.summary()


def test_the_compared_loop_has_as_many_parameters_as_the_truncated_svd() -> None:
    model = interp.load_model("zoo/hops-4l")
    one, other = Recursion().design(model).pair
    shapes = shapes_of(model.blocks)
    assert one.loop.name == "average"
    assert one.rank
    assert 0.97 * one.kept(shapes) < other.kept(shapes) <= one.kept(shapes) <= 0.75


def test_what_cannot_be_asked_is_refused() -> None:
    for parameters, why in (
        ({"shared": (0,)}, "at least 1"),
        ({"shared": (2, 2)}, "needed once"),
        ({"inits": ()}, "no inits"),
        ({"ranks": (-1,)}, "at least 0"),
        ({"norms": "zero"}, "norms"),
    ):
        with pytest.raises(AnalysisError, match=why):
            Recursion(**parameters)
    with pytest.raises(AnalysisError, match="3 shared layers given; that must divide"):
        Recursion(shared=(3,)).check(tiny("llama"), tokens())
    with pytest.raises(AnalysisError, match="differ in type"):
        Recursion(shared=(1,)).check(tiny("gemma2"), tokens())
    with pytest.raises(UnsuitedError, match="experts"):
        Recursion().check(tiny("mixtral"), tokens())
