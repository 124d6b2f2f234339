"""Joined to itself a model stays what it is; with all parts swapped it is the other one."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.analyses.checkpoint_stitch import CheckpointStitch
from interp.analyses.checkpoint_stitch.changes import (
    PERMUTED,
    changed_weights,
    matrix_names,
    permuted,
)
from interp.analyses.checkpoint_stitch.maps import fit_maps, fitted_tokens, mapped
from interp.errors import AnalysisError, InterpError, TaskError, UnsuitedError
from interp.models import Model
from interp.sweeps.entering import ends_of_entering
from interp.sweeps.halves import half_of, halves_of
from interp.tasks import Task

HOPS = "zoo/hops-4l"
QUICK = {"maps": ("none",), "every": 2, "control": "none"}


@pytest.fixture(scope="module")
def zoo() -> Model:
    return interp.load_model(HOPS)


@pytest.fixture(scope="module")
def task() -> Task:
    return interp.load_task("two-hop", n=8)


def beside(model: Model, **others: Model) -> Model:
    """Return a model that knows these others by their names."""
    known = Model(model.name, model.module, model.tokenizer, load_another=others.__getitem__)
    for name, other in others.items():
        object.__setattr__(other, "name", name)
    return known


def changed(model: Model, *, size: float = 0.02) -> Model:
    """Return a copy whose weights all differ a little."""
    module, generator = deepcopy(model.module), torch.Generator().manual_seed(0)
    for weight in module.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data += size * noise * (weight.data.std() if weight.numel() > 1 else 1)
    return Model("changed", module, model.tokenizer)


def rotated(model: Model) -> Model:
    """Return the same function in a rotated stream: gains folded, a rotation in every weight."""
    module: torch.nn.Module = deepcopy(model.module)
    d = model.d_model
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]
    inner = module.model
    head = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    module.lm_head.weight = head
    module.config.tie_word_embeddings = False
    inner.embed_tokens.weight = torch.nn.Parameter(inner.embed_tokens.weight.detach() @ turn)
    with torch.no_grad():
        for layer in inner.layers:
            for norm, readers in (
                (layer.input_layernorm, [getattr(layer.self_attn, f"{x}_proj") for x in "qkv"]),
                (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
            ):
                for reader in readers:
                    reader.weight.copy_((reader.weight * norm.weight) @ turn)
                norm.weight.fill_(1)
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(turn.T @ writer.weight)
        head.copy_((head * inner.norm.weight) @ turn)
        inner.norm.weight.fill_(1)
    return Model("rotated", module, model.tokenizer)


def test_a_model_joined_to_itself_is_clean_everywhere_and_interacts_not_at_all(
    zoo: Model, task: Task
) -> None:
    result = CheckpointStitch(against=HOPS, **QUICK | {"every": 1}).run(zoo, task)
    for outcome in ("log_prob", "accuracy", "kl"):
        plain = result.plain(outcome)
        assert (plain[:, 0] == plain[:, 1]).all()
        assert (result.curve("none", outcome) == plain[:, :1, None]).all()
        swap, between = result.alone("swap", outcome), result.arrays["between"]
        assert swap is not None
        assert (swap == plain[:, :1]).all()
        assert np.isfinite(between).all()
    assert (result.interaction("none") == 0).all()
    assert (result.arrays["weights"][..., :2] == 0).all()
    assert result.random is not None
    assert (result.random == 0).all()
    where, needed, _ = result.findings()
    assert where.estimate.value == 0
    assert "are not shown to add more or less" in needed.claim


def test_cuts_and_swaps_equal_a_module_put_together_by_hand(zoo: Model, task: Task) -> None:
    other = changed(zoo)
    asked = CheckpointStitch(against="other", **QUICK | {"every": 1})
    result = asked.run(beside(zoo, other=other), task)
    batches = [zoo.tokenize(shard) for shard in zoo.shards(task)]

    def by_hand(of_embedding: int, of_layers: tuple[int, ...], of_head: int) -> np.ndarray:
        """Return log-probabilities of a model made of parts of this (0) and the other model (1)."""
        both = [zoo.module, other.module]
        module = deepcopy(both[of_head])
        module.model.embed_tokens = deepcopy(both[of_embedding].model.embed_tokens)
        for layer, which in enumerate(of_layers):
            module.model.layers[layer] = deepcopy(both[which].model.layers[layer])
        made = Model("made", module, zoo.tokenizer)
        log_p = [made.logits(batch)[:, -1].log_softmax(-1) for batch in batches]
        answers = [batch.answer for batch in batches]
        pairs = zip(log_p, answers, strict=True)
        return torch.cat([row.gather(1, a[:, None])[:, 0] for row, a in pairs]).numpy()

    n = zoo.n_layers
    curve, plain = result.curve("none", "log_prob"), result.plain("log_prob")
    same = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(plain[:, 0], by_hand(0, (0,) * n, 0), **same)
    np.testing.assert_allclose(plain[:, 1], by_hand(1, (1,) * n, 1), **same)
    for cut in (0, 1, n):
        below = (0,) * cut + (1,) * (n - cut)
        above = tuple(1 - which for which in below)
        np.testing.assert_allclose(curve[:, 0, cut], by_hand(0, below, 1), **same)
        np.testing.assert_allclose(curve[:, 1, cut], by_hand(1, above, 0), **same)
    swap = result.alone("swap", "log_prob")
    assert swap is not None
    np.testing.assert_allclose(swap[:, 1], by_hand(0, (0, 1, 0, 0), 0), **same)


@torch.no_grad()
def test_a_rotation_folded_into_the_weights_changes_nothing_under_an_orthogonal_map(
    zoo: Model,
) -> None:
    other, task = rotated(zoo), interp.load_task("two-hop", n=64)
    batches = [zoo.tokenize(shard) for shard in zoo.shards(task)]
    halves = halves_of(batches, seed=0)
    cuts = [1, zoo.n_layers]
    maps = fit_maps((zoo, other), batches, halves, cuts=cuts, kinds=["orthogonal", "affine"])
    batch, half = batches[0], half_of(batches[0], halves)
    ours, theirs = zoo.record(batch), other.record(batch)
    for i, cut in enumerate(cuts):
        assert (ours.resid(cut) - theirs.resid(cut)).norm() > 0.5 * ours.resid(cut).norm()
        there = mapped(ours.resid(cut), half, maps, kind="orthogonal", direction=0, cut=i)
        back = mapped(theirs.resid(cut), half, maps, kind="orthogonal", direction=1, cut=i)
        torch.testing.assert_close(there, theirs.resid(cut), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(back, ours.resid(cut), rtol=1e-3, atol=1e-3)
        end = ends_of_entering(theirs, [(cut, there)])[0]
        torch.testing.assert_close(
            theirs.logits(end[:, None]), ours.logits(ours.resid(4)[:, -1:]), rtol=1e-3, atol=5e-3
        )


def test_no_answer_is_in_both_halves_and_the_order_of_prompts_does_not_matter(zoo: Model) -> None:
    task = interp.load_task("two-hop", n=64)
    batches = [zoo.tokenize(shard) for shard in zoo.shards(task)]
    halves = halves_of(batches, seed=0)
    again = halves_of(batches[::-1], seed=0)
    assert all(torch.equal(halves[key], again[key]) for key in halves)
    by_half: list[set[str]] = [set(), set()]
    for batch in batches:
        for prompt, half in zip(batch.prompts, half_of(batch, halves), strict=True):
            by_half[int(half)].add(prompt.answer or "")
    assert not by_half[0] & by_half[1]
    assert abs(len(by_half[0]) - len(by_half[1])) <= 1
    n_tokens = sum(batch.tokens.numel() for batch in batches)
    assert sum(fitted_tokens(batches, halves)) == n_tokens


def test_changes_of_weights_equal_the_textbook(zoo: Model) -> None:
    other = changed(zoo)
    found = changed_weights(zoo, other)[2, matrix_names(zoo).index("mlp.up_proj")]
    w, b = (m.module.model.layers[2].mlp.up_proj.weight.detach() for m in (zoo, other))
    sizes = torch.linalg.svdvals(b - w)
    shares = sizes / sizes.sum()
    top = torch.linalg.svd(w)[2][: w.shape[1] // 8]
    expected = torch.stack(
        [
            (b - w).norm() / w.norm(),
            torch.exp(-(shares * shares.log()).sum()),
            ((b - w) @ top.T).norm() ** 2 / (b - w).norm() ** 2,
            torch.tensor(1 / 8),
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    shuffled = permuted(zoo, other, 2, seed=0)["model.layers.2.mlp.up_proj.weight"] - w
    torch.testing.assert_close(shuffled.norm(), (b - w).norm(), rtol=1e-4, atol=0)
    assert (shuffled - (b - w)).norm() > (b - w).norm()


def _narrow(zoo: Model) -> Iterator[tuple[dict, Model, str]]:
    yield {}, zoo, "two models; name the other with --against"
    yield {"against": "zoo/hops-8l"}, zoo, "zoo/hops-8l has n_layers=8, zoo/hops-4l n_layers=4"
    yield {"against": "zoo/names-6l"}, zoo, "has n_layers=6"


def test_bad_input_is_one_line(zoo: Model, task: Task) -> None:
    for parameters, model, message in _narrow(zoo):
        with pytest.raises(UnsuitedError, match=message):
            CheckpointStitch(**parameters).run(model, task)
    with pytest.raises(AnalysisError, match="one or more different ones are needed"):
        CheckpointStitch(maps=())
    few = task.of(task.prompts[:10])
    with pytest.raises(AnalysisError, match="tokens in a half of the prompts to fit maps='affine'"):
        CheckpointStitch(against=HOPS, maps=("affine",)).run(zoo, few)
    with pytest.raises(TaskError, match="answer"):
        CheckpointStitch(against=HOPS).run(zoo, Task.from_tokens([[5, 6, 7, 8]]))
    wider = deepcopy(zoo.module)
    wider.resize_token_embeddings(zoo.d_vocab + 8)
    with pytest.raises(InterpError, match=r"vocabulary of \d+ tokens, zoo/hops-4l of \d+"):
        CheckpointStitch(against="wider").run(
            beside(zoo, wider=Model("wider", wider, zoo.tokenizer)), task
        )


def test_permuted_copies_of_the_change_are_what_their_own_passes_predict(
    zoo: Model, task: Task
) -> None:
    other = changed(zoo)
    asked = CheckpointStitch(against="other", draws=2, **QUICK)
    result = asked.run(beside(zoo, other=other), task)
    batches = [zoo.tokenize(shard) for shard in zoo.shards(task)]
    clean = torch.cat([zoo.logits(batch)[:, -1].log_softmax(-1) for batch in batches])
    module = deepcopy(zoo.module)
    for layer in range(zoo.n_layers):
        module.load_state_dict(permuted(zoo, other, layer, seed=2 * 2**12), strict=False)
    copy = Model("copy", module, zoo.tokenizer)
    log_p = torch.cat([copy.logits(batch)[:, -1].log_softmax(-1) for batch in batches])
    expected = (log_p.exp() * (log_p - clean)).sum(-1).numpy()
    assert result.random is not None
    np.testing.assert_allclose(result.random[:, 1], expected, rtol=1e-3, atol=1e-5)
    assert (result.random[:, 0] != result.random[:, 1]).all()


def test_plans_price_permuted_copies(zoo: Model, task: Task) -> None:
    batch = zoo.tokenize(next(iter(zoo.shards(task))))
    none, eight = (
        CheckpointStitch(against=HOPS, draws=draws, **QUICK | {"every": 1}).cost(zoo, batch)
        for draws in (0, 8)
    )
    assert eight.once - none.once == pytest.approx(8 * PERMUTED)
    more = none.forwards * (none.weight - 1) * batch.tokens.numel()
    assert more == pytest.approx(PERMUTED)  # every block alone, for every shard


def test_coarser_cuts_keep_the_end() -> None:
    asked = CheckpointStitch(against=HOPS, every=2)
    assert asked.cuts(8) == [0, 2, 4, 6, 8]
    assert asked.coarser() == replace(asked, every=4)
    assert asked.cuts(7)[-1] == 7


@pytest.mark.parametrize(("every", "late"), [(3, "From layer 1 on"), (4, "Alone in this model")])
def test_late_layers_begin_at_a_cut_between_layers(
    zoo: Model, task: Task, every: int, late: str
) -> None:
    result = CheckpointStitch(against=HOPS, **QUICK | {"every": every}).run(zoo, task)
    assert result.findings()[1].claim.startswith(late)  # not the nearest, 4
