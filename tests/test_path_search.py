"""Paths are searched by a tree that branches; each tried path scores as a naive chain does."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.path_search import PathSearch
from interp.analyses.path_search.kinds import RANDOM, SEARCH
from interp.analyses.path_search.paraphrases import paraphrases
from interp.analyses.path_search.result import PathSearchResult
from interp.errors import AnalysisError, InterpError, TaskError
from interp.models import Model
from interp.runs.registry import make_analysis
from interp.sweeps.path_scores import PathScorer, Search, shortest_right
from interp.sweeps.path_tree import Bandit, Edits, Tree, edited, moved, ordinary
from interp.sweeps.prefix_tree import PrefixTree, prompts_at_once
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from tests.families import tokens

pytestmark = pytest.mark.filterwarnings("ignore")

zoo = cache(lambda name: interp.load_model(f"zoo/{name}"))
some = cache(lambda n: interp.load_task("two-hop", n=n))


@cache
def searched() -> PathSearchResult:
    result = PathSearch(n_simulations=20).run(zoo("hops-4l"), some(48))
    assert isinstance(result, PathSearchResult)
    return result


def first_shard(model: Model, n: int) -> TokenBatch:
    shards = model.shards(model.fit(some(40)).task)
    return model.tokenize(max(shards, key=len)[:n])


# Streams


@torch.no_grad()
def test_streams_behind_paths_equal_naive_chains(model: Model) -> None:
    recording = model.record(tokens())
    paths = [(0, 1, 2), (0, 2), (1, 1, 2), (2, 1, 0), (0, 1, 2, 2), (0, 2)]
    prompts = [0, 0, 1, 2, 2, 2]
    ends = PrefixTree(recording, range(3)).ends(prompts, paths)
    for prompt, path, end in zip(prompts, paths, ends, strict=True):
        assert_close(end, recording.chain(path, recording.resid(0))[prompt, -1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_ordinary_path_is_the_clean_pass_bit_for_bit() -> None:
    model = zoo("hops-4l")
    recording = model.record(first_shard(model, 4))
    ends = PrefixTree(recording, range(4)).ends(range(4), [ordinary(4)] * 4)
    assert torch.equal(ends, recording.resid(4)[:, -1])


@torch.no_grad()
def test_no_prefix_runs_twice() -> None:
    model = zoo("hops-4l")
    recording = model.record(first_shard(model, 2))
    tree, n_pos = PrefixTree(recording, range(2)), recording.n_pos
    begun = recording.work.block_tokens
    tree.ends([0, 0, 1], [(0, 2, 3), (0, 2), (0, 2, 2)])
    assert recording.work.block_tokens - begun == 4 * n_pos  # 2, 3 of one prompt; 2, 2 of the other
    tree.ends([0, 0, 1], [(0, 2, 3), (0, 1, 2), (0, 2)])
    assert recording.work.block_tokens - begun == 4 * n_pos


# The tree


def test_edits_skip_or_repeat_segments() -> None:
    edits = Edits("skips and repeats", longest_segment=2, most_repeats=1, longest=4)
    path = (0, 1, 2)
    made = {edited(path, *edit) for edit in edits.of(path)}
    assert made == {(1, 2), (0, 2), (0, 1), (2,), (0,), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 2, 2)}
    assert all(times < 0 for *_, times in Edits("skips", 2, 1, 4).of(path))
    assert all(times > 0 for *_, times in Edits("repeats", 2, 1, 4).of(path))


def test_the_tree_branches_and_no_path_is_two_nodes() -> None:
    edits, rewarding = Edits("skips and repeats", 4, 4, 16), np.random.default_rng(0)
    tree = Tree(8, edits, Bandit(), seed=0)
    proposed = []
    for _ in range(200):
        proposed.append(tree.propose())
        tree.reward(float(rewarding.integers(2)))
    assert proposed[0] == ordinary(8)
    assert len(set(proposed)) == 200
    assert len(tree.root.children) > 1
    assert sum(len(child.children) > 1 for child in tree.root.children) > 1
    assert tree.root.visits == 200
    assert tree.root.visits == 1 + sum(child.visits for child in tree.root.children)
    assert max(map(len, proposed)) <= 16


def shorter(*, is_led: bool, seed: int) -> float:
    """Return how many of 100 proposals are shorter, which is rewarded if the tree is led."""
    edits = Edits("skips and repeats", 4, 3, 16)
    tree = Tree(8, edits, Bandit(exploration=0.5, length_penalty=0.0), seed=seed)
    are = []
    for _ in range(100):
        are.append(len(tree.propose()) < 8)
        tree.reward(float(are[-1] and is_led))
    return float(np.mean(are))


def test_the_tree_follows_rewards() -> None:
    led, alone = (
        np.mean([shorter(is_led=is_led, seed=seed) for seed in range(8)])
        for is_led in (True, False)
    )
    assert led > alone + 0.1


def test_when_all_is_tried_the_ordinary_path_is_proposed() -> None:
    tree = Tree(3, Edits("skips", 1, 1, 6), Bandit(), seed=1)
    proposed = []
    for _ in range(20):
        proposed.append(tree.propose())
        tree.reward(0.0)
    assert len(set(proposed[:7])) == 7  # all that is not empty
    assert set(proposed[7:]) == {(0, 1, 2)}


def test_random_paths_are_as_long_as_what_they_stand_for() -> None:
    random = np.random.default_rng(0)
    for edits in [((3, 2, -1),), ((0, 1, 3), (5, 4, -1))]:
        path = ordinary(8)
        for edit in edits:
            path = edited(path, *edit)
        assert len(moved(8, edits, random)) == len(path)
    result = searched()
    for prompt in range(6):
        lengths = [sorted(result.tries(prompt, kind)["layers"]) for kind in (SEARCH, RANDOM)]
        assert lengths[0] == lengths[1]


# The search


def test_every_try_scores_as_a_naive_chain() -> None:
    result, model = searched(), zoo("hops-4l")
    prompts = [prompt for shard in model.shards(model.fit(some(48)).task) for prompt in shard]
    for i, prompt in enumerate(prompts[:4]):
        batch = model.tokenize([prompt])
        recording = model.record(batch)
        assert batch.answer is not None
        for kind in (SEARCH, RANDOM):
            for row in result.tries(i, kind).itertuples():
                with torch.no_grad():
                    end = recording.chain(row.path, recording.resid(0))
                    logits = recording.logits(end, positions=[-1])[0, 0]
                log_prob = float(logits.log_softmax(-1)[batch.answer[0]])
                assert row.log_prob == pytest.approx(log_prob, abs=1e-3)
                assert row.is_right == (int(logits.argmax()) == int(batch.answer[0]))


def test_one_simulation_is_the_clean_run() -> None:
    result = PathSearch(n_simulations=1).run(zoo("hops-4l"), some(12))
    for prompt in range(12):
        assert [*result.tries(prompt)["path"]] == [(0, 1, 2, 3)]
        assert [*result.tries(prompt, RANDOM)["path"]] == [(0, 1, 2, 3)]
    assert np.array_equal(result.reached[SEARCH], result.is_right)


def test_an_inserted_identity_block_is_dropped() -> None:
    model = zoo("hops-4l")
    module = deepcopy(model.module)
    extra = deepcopy(module.model.layers[1])
    for weight in (extra.self_attn.o_proj.weight, extra.mlp.down_proj.weight):
        weight.data.zero_()
    module.model.layers.insert(2, extra)
    for i, layer in enumerate(module.model.layers):
        layer.self_attn.layer_idx = i
    module.config.num_hidden_layers = 5
    longer = Model("hops-4l and a block that does nothing", module, model.tokenizer)
    analysis = PathSearch(n_simulations=31, operations="skips", longest_segment=1, transfer="none")
    result = analysis.run(longer, some(12))
    assert result.is_right.sum() > 6
    for prompt in np.flatnonzero(result.is_right):
        path = result.shortest(int(prompt))
        assert path is not None
        assert 2 not in path


def test_another_answer_is_reached_as_often_as_chance_says() -> None:
    result = searched()
    reached, chance = (result.arrays[f"shuffled.{name}"] for name in ("is_right", "chance"))
    error = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
    assert 0 < chance.mean() < 0.5
    assert abs(reached.mean() - chance.mean()) < 3 * error


@torch.no_grad()
def test_prefixes_are_shared() -> None:
    model = zoo("hops-8l")
    batch = first_shard(model, 2)
    assert batch.answer is not None
    recording = model.record(batch)
    recording.resid(0)
    begun = recording.work.block_tokens
    with recording.running():
        scorer = PathScorer(recording, range(2), batch.answer[:, None])
        tries = Search(n_simulations=200).run(scorer, {0: 0, 1: 1}, n_layers=8)
    forwards = (recording.work.block_tokens - begun) / (batch.tokens.numel() * 8)
    assert all(len(each) == 200 for each in tries.values())
    assert forwards <= 0.45 * 200


def test_margins_lead_the_search_too() -> None:
    few = {"n_simulations": 5, "transfer": "none"}
    by_answers = PathSearch(**few).run(zoo("hops-4l"), some(12))
    for reward in ("margin", "logit_diff"):
        result = PathSearch(reward=reward, **few).run(zoo("hops-4l"), some(12))
        assert isinstance(result, PathSearchResult)
        assert isinstance(by_answers, PathSearchResult)
        assert np.array_equal(result.is_right, by_answers.is_right)
        assert result.findings()


def test_results_do_not_depend_on_the_batch() -> None:
    model, task = zoo("hops-4l"), some(12)
    whole = PathSearch(n_simulations=5, transfer="none").run(model, task)
    by_id = [p.id for shard in model.shards(model.fit(task).task) for p in shard]
    turned = task.of(task.prompts[::-1])
    other = PathSearch(n_simulations=5, transfer="none").run(model, turned)
    ids = [p.id for shard in model.shards(model.fit(turned).task) for p in shard]
    for row, prompt_id in enumerate(by_id):
        same = ids.index(prompt_id)
        for name in ("search.path", "random.path", "search.is_right"):
            assert np.array_equal(whole.arrays[name][row], other.arrays[name][same])


def test_few_prompts_at_once_where_streams_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo("hops-4l")
    whole = PathSearch(n_simulations=6).run(model, some(12))
    monkeypatch.setattr("interp.sweeps.prefix_tree._NUMBERS_HELD", 1)
    recording = model.record(first_shard(model, 2))
    assert prompts_at_once(recording, n_paths=6) == 1
    alone = PathSearch(n_simulations=6).run(model, some(12))
    for name in ("search.path", "random.path", "search.is_right", "transfer"):
        assert np.array_equal(whole.arrays[name], alone.arrays[name])


# Fixed paths and paraphrases


def test_the_fixed_path_is_chosen_on_the_other_half() -> None:
    result = searched()
    half, paths = result.arrays["half"], result.arrays["fixed.path"]
    assert set(half.tolist()) == {0, 1}
    assert (paths == paths[0]).all()
    fixed = result.reached["one fixed path"]
    own = np.take_along_axis(result.arrays["fixed.is_right"], half[:, None], 1)[:, 0]
    assert own.mean() >= result.is_right.mean() - 0.1  # chosen on these
    assert ((fixed == 0) | (fixed == 1)).all()


def test_one_group_of_prompts_chooses_a_fixed_path_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, seen = some(6), list[int]()

    def best(_model: Model, _shards: object, _search: object, chosen: torch.Tensor, **_: int):
        seen.append(len(chosen))
        return (0, 1)

    monkeypatch.setattr("interp.analyses.path_search.fixed._best", best)
    one = task.of([replace(prompt, group="all") for prompt in task.prompts])
    PathSearch(n_simulations=4, transfer="none").run(zoo("hops-4l"), one)
    assert seen == [6, 6]


def test_paraphrases_ask_for_the_same() -> None:
    model, task = zoo("hops-4l"), some(12)
    prepared = paraphrases(model, task, are_needed=True)
    assert len(prepared["paraphrase.of"]) == 12
    grouped = Task(
        "grouped",
        tuple(
            Prompt(f"{i}", f"{text} Ada mother", answer="Yann", group=group)
            for i, (text, group) in enumerate([("Pia", "a"), ("Tom", "a"), ("Ned", None)])
        ),
    )
    prepared = paraphrases(model, grouped, are_needed=False)
    assert len(prepared["paraphrase.of"]) == 2
    with pytest.raises(AnalysisError, match="paraphrase of every prompt; 1 prompt"):
        paraphrases(model, grouped, are_needed=True)


def test_a_paraphrase_is_answered_as_it_is_on_its_own() -> None:
    model, task = zoo("hops-4l"), some(48)
    result = searched()
    ids = [p.id for shard in model.shards(model.fit(task).task) for p in shard]
    for row, prompt_id in enumerate(ids[:8]):
        other = task.related[prompt_id]["paraphrase"]
        batch = model.tokenize([other])
        assert batch.answer is not None
        logits = model.logits(batch)[0, -1]
        assert result.arrays["transfer"][row, 0] == int(logits.argmax() == batch.answer[0])
        path = result.shortest(row)
        assert (result.arrays["transfer"][row, 1] >= 0) == (path is not None)


def test_the_front_has_no_try_that_a_shorter_one_beats() -> None:
    result = searched()
    front = result.front(0)
    assert front["layers"].is_monotonic_increasing
    assert front["log_prob"].is_monotonic_increasing
    assert front["log_prob"].iloc[-1] == pytest.approx(result.tries(0)["log_prob"].max())


def test_shortest_right_is_none_where_nothing_is_right() -> None:
    assert shortest_right([]) is None


# Bad input


def test_bad_input_is_one_line_before_any_work() -> None:
    model = zoo("hops-4l")
    plain = Task("plain", (Prompt("a", "Ada mother mother", answer="Emil"),))
    cases = [
        (PathSearch(reward="logit_diff"), plain, TaskError, "wrong"),
        (PathSearch(transfer="needed"), plain, AnalysisError, "paraphrase of every prompt"),
        (PathSearch(), Task("none", (Prompt("a", "Ada mother"),)), InterpError, "answer"),
    ]
    for analysis, task, error, words in cases:
        with pytest.raises(error, match=words) as raised:
            analysis.run(model, task)
        assert "\n" not in str(raised.value)
    with pytest.raises(AnalysisError, match="operations"):
        make_analysis("path_search", {"operations": "swaps"})
    with pytest.raises(AnalysisError, match="n_simulations"):
        make_analysis("path_search", {"n_simulations": 0})
