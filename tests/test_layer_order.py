"""Orders of the layers run together equal each of them run by itself, block by block."""

import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

import interp
from interp.analyses.layer_order import LayerOrder, Variant
from interp.analyses.layer_order.variants import distant_swaps, swaps, windowed, windows_of
from interp.analyses.layer_order.walks import changes_of, distinct, ends_of
from interp.analyses.parallel_window import side_by_side
from interp.errors import AnalysisError, TaskError
from interp.files.mergekit import mergekit_recipe
from interp.models import Model
from interp.replay import Recording, rows
from interp.stats.beyond import beyond
from interp.stats.estimate import Estimate
from interp.sweeps.continuations import texts_along
from interp.sweeps.texts import holds_answer
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
EVERY = LayerOrder(lengths=(1, 2, 3, 4), distances=(2, 3), control="none")
WINDOW = (1, 2, 3)


def naive(recording: Recording, variant: Variant) -> torch.Tensor:
    """Return the end of a variant's stream, from the embedding on and with no block shared."""
    first, last = variant.layers[0], variant.layers[-1]
    window, stream = variant.layers, recording.chain(range(first), recording.resid(0))
    behind = range(last + 1, recording.n_layers)
    chained, n = recording.chain, len(window)
    match variant.operation:
        case "swap":
            stream = chained([last, *range(first + 1, last), first], stream)
        case "skip":
            stream = chained([i for i in range(first, last + 1) if i not in window], stream)
        case "reverse":
            stream = chained(window[::-1], stream)
        case "shuffle":
            stream = chained(variant.path(recording.n_layers)[first : last + 1], stream)
        case "repeat":
            stream = chained([window[n // 2]] * n, stream)
        case "duplicate":
            stream = chained([*window, *window], stream)
        case "loop":
            stream = chained([*window] * variant.rounds, stream)
        case "parallel_sum":
            stream = stream + sum(recording.block(i, stream) - stream for i in window)
        case "parallel_mean" | "looped_parallel":
            for _ in range(variant.rounds):
                stream = stream + sum(recording.block(i, stream) - stream for i in window) / n
        case "damped_loop":
            for _ in range(variant.rounds):
                stream = stream + (chained(window, stream) - stream) / variant.rounds
    return chained(behind, stream)


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [1, 72, 1024])
def test_shared_runs_equal_naive_chains(monkeypatch: pytest.MonkeyPatch, chunk_tokens: int) -> None:
    monkeypatch.setattr(rows, "CPU_TOKENS", chunk_tokens)
    model, batch = tiny("gemma2"), tokens()  # with layers that see only a window
    recording, variants = model.record(batch), EVERY.orders(model.n_layers).variants
    assert {each.operation for each in variants} >= {"skip", "damped_loop", "looped_parallel"}
    expected = torch.stack([naive(recording, each)[:, -1] for each in variants])
    assert_close(ends_of(recording, variants), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_family_runs_them(model: Model) -> None:
    recording = model.record(tokens())
    variants = [Variant("reverse", WINDOW), Variant("damped_loop", WINDOW, rounds=2)]
    expected = torch.stack([naive(recording, each)[:, -1] for each in variants])
    assert_close(ends_of(recording, variants), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_swapping_twice_is_the_clean_pass_bit_for_bit() -> None:
    model = tiny("llama")
    recording, swap = model.record(tokens()), Variant("swap", (1, 3))
    path = swap.path(model.n_layers)
    assert path == (0, 3, 2, 1)
    again = [path[i] for i in path]
    clean = recording.resid(model.n_layers)
    assert torch.equal(recording.chain(again, recording.resid(0)), clean)


@torch.no_grad()
@pytest.mark.parametrize("operation", ["reverse", "shuffle", "repeat", "parallel_sum"])
def test_a_window_of_one_layer_is_the_clean_pass(operation: str) -> None:
    recording, variant = tiny("llama").record(tokens()), Variant(operation, (2,))
    clean = recording.resid(recording.n_layers)[None, :, -1]
    assert torch.equal(ends_of(recording, [variant]), clean)


@torch.no_grad()
@pytest.mark.parametrize("operation", ["loop", "damped_loop"])
def test_one_round_is_the_clean_pass(operation: str) -> None:
    recording = tiny("llama").record(tokens())
    clean = recording.resid(recording.n_layers)[None, :, -1]
    assert_close(ends_of(recording, [Variant(operation, WINDOW)]), clean, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_identical_layers_have_no_order() -> None:
    model = Model("alike", copy.deepcopy(tiny("llama").module))
    first, *others = model.module.model.layers
    for block in others:
        block.load_state_dict(first.state_dict())
    variants = [
        Variant("swap", (0, 2)),
        Variant("reverse", WINDOW),
        Variant("shuffle", WINDOW),
        Variant("repeat", WINDOW),
    ]
    recording = model.record(tokens())
    clean = recording.resid(recording.n_layers)[None, :, -1].expand(len(variants), -1, -1)
    assert_close(ends_of(recording, variants), clean, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_parallel_sum_is_that_of_parallel_window() -> None:
    model = tiny("llama")
    recording = model.record(tokens())
    *_, (streams, _) = side_by_side(recording)
    ends = ends_of(recording, [Variant("parallel_sum", WINDOW)])
    assert_close(ends[0], streams[1][:, -1])


@torch.no_grad()
def test_what_changes_is_computed_another_way() -> None:
    model, batch = tiny("llama"), tokens()
    recording, variants = model.record(batch), [Variant("skip", (0, 1)), Variant("swap", (0, 1))]
    answer = torch.tensor([5, 6, 7])
    changes, clean = changes_of(recording, variants, answer)
    log_p = model.logits(batch)[:, -1].double().log_softmax(-1)
    for i, variant in enumerate(variants):
        logits = recording.logits(naive(recording, variant))[:, -1].double()
        log_q = logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        kept = (log_q.argmax(-1) == log_p.argmax(-1)).double()
        right = (log_q.argmax(-1) == answer).double()
        expected = torch.stack([kl, kept, log_q[range(3), answer], right], dim=1)
        assert_close(changes[:, i].double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(clean[:, 0].double(), log_p[range(3), answer], rtol=1e-5, atol=1e-5)
    assert bool(changes_of(recording, variants, None)[0][..., 2:].isnan().all())


@torch.no_grad()
def test_work_is_as_stated(tmp_path: Path) -> None:
    model, batch = dataclasses.replace(tiny("llama"), store_folder=tmp_path), tokens()
    model.record(batch).resid(0)
    stored = model.record(batch)
    EVERY.measure(stored, batch, {})
    passes = stored.work.block_tokens / (batch.tokens.numel() * model.n_layers)
    assert EVERY.cost(model, batch).forwards == pytest.approx(passes)


def test_what_runs_the_same_is_run_once() -> None:
    alike = [
        Variant("swap", (1, 2)),
        Variant("reverse", (1, 2)),
        Variant("shuffle", (1, 2)),
        Variant("parallel_mean", (1, 2)),
        Variant("looped_parallel", (1, 2)),
        Variant("duplicate", (1, 2), rounds=2),
        Variant("loop", (1, 2), rounds=2),
    ]
    assert distinct(alike, 4) == [alike[0], alike[3], alike[5]]


def test_which_variants_there_are() -> None:
    assert [each.name for each in swaps(3, every=1)] == [
        "swap 0,1", "swap 1,2", "skip 0-1", "skip 1-2", "skip 0", "skip 1", "skip 2",
    ]  # fmt: skip
    assert [each.layers for each in distant_swaps(8, (2, 4), every=1)[:2]] == [(1, 2), (2, 3)]
    assert {each.layers for each in distant_swaps(8, (2, 4), every=1)} == {
        (1, 2), (2, 3), (1, 3), (2, 4), (1, 5), (2, 6),
    }  # fmt: skip
    assert [window[0] for window in windows_of(30, (), every=1)] == [1, 9, 17, 25]
    assert [window[0] for window in windows_of(30, (), every=2)] == [1, 17]
    assert windows_of(4, (4,), every=1) == [(0, 1, 2, 3)]
    drawn = windowed([WINDOW], ["shuffle"], shuffles=2, rounds=3, seed=0)
    assert [each.name for each in drawn] == ["shuffle 1-3", "shuffle 1-3 #2", "skip 1-3"]
    assert Variant("repeat", WINDOW).path(5) == (0, 2, 2, 2, 4)
    assert Variant("loop", (1, 2), rounds=2).path(4) == (0, 1, 2, 1, 2, 3)
    assert LayerOrder().orders(2).variants  # the smallest model that has an order


@pytest.mark.parametrize("seed", range(20))
def test_a_shuffle_is_another_order(seed: int) -> None:
    path = Variant("shuffle", WINDOW, seed=seed).path(5)
    assert path != tuple(range(5))
    assert sorted(path) == [*range(5)]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"operations": ()}, "no operations given; there is swap, distance"),
        ({"windows": ("3-2",)}, "a first and a last layer are needed, such as '2-3'"),
        ({"windows": ("0-1",), "lengths": (2,)}, "windows and lengths given"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(AnalysisError, match=says) as caught:
        LayerOrder(**parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"windows": ("2-4",)}, "window '2-4' given; the model's last layer is 3"),
        ({"lengths": (5,)}, "windows of 5 layers given; the model has 4"),
        ({"distances": (4,)}, "a distance of 4 layers given; the model has 4"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    parameters: dict[str, object], says: str
) -> None:
    with pytest.raises(AnalysisError, match=re.escape(says)):
        LayerOrder(**parameters).check(tiny("llama"), tokens())


@torch.no_grad()
def test_texts_along_paths_are_read() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=6)
    new = {"max_new_tokens": 2}
    analysis = LayerOrder(operations=("swap", "parallel_mean"), control="none", **new)
    result, held = analysis.run(model, task), {"clean": [], "swap 1,2": []}
    for shard in map(model.tokenize, model.shards(model.fit(task).task)):
        texts = [
            model.generate(shard, **new).texts,
            *texts_along(model, shard, [(0, 2, 1, 3)], **new),
        ]
        for row, of in zip(texts, held.values(), strict=True):
            of += [
                holds_answer(text, prompt) for text, prompt in zip(row, shard.prompts, strict=True)
            ]
    frame = result.to_frame()
    frame = frame[frame["measure"] == "text holds the answer"].set_index("variant")["mean"]
    assert {name: frame[name] for name in held} == {
        name: pytest.approx(np.mean(each)) for name, each in held.items()
    }
    assert not [name for name in frame.index if name.startswith("parallel")]
    assert "texts hold the answer in" in result.findings()[0].note
    shard = model.tokenize(model.shards(model.fit(task).task)[0])
    recording = model.record(shard)
    recording.resid(0)
    clean = recording.work.block_tokens
    analysis.measure(recording, shard, {})
    passes = (recording.work.block_tokens - clean) / clean
    assert analysis.cost(model, shard).forwards == pytest.approx(passes)  # no text ended sooner


def test_texts_without_answers_are_refused_before_any_work() -> None:
    with pytest.raises(TaskError, match="answer") as caught:
        LayerOrder(max_new_tokens=1).check(tiny("llama"), tokens())
    assert "\n" not in str(caught.value)


def _result(changes: np.ndarray, *, n_layers: int = 4, **parameters: object):
    n = len(changes)
    part = {
        "changes": torch.from_numpy(changes),
        "clean": torch.full((n, 2), torch.nan),
        "n_layers": torch.full((n,), n_layers),
        "twins": torch.tensor([[[0.1, 0.9], [1.0, 0.5]], [[0.2, 0.8], [1.0, 0.5]]]).expand(
            n, -1, -1, -1
        ),
    }
    return LayerOrder(operations=("swap",), **parameters).combine([part])


def test_findings_are_computed_another_way() -> None:
    orders = LayerOrder(operations=("swap",)).orders(4)
    names = [each.name for each in orders.variants]
    rng = np.random.default_rng(0)
    changes = rng.uniform(0.5, 1, (24, len(names), 4))
    changes[..., 1] = rng.integers(0, 2, changes.shape[:2])
    changes[:, names.index("swap 1,2"), 0] += 1
    result = _result(changes)
    kept, learned = result.findings()
    swap, skip = (changes[:, names.index(name)] for name in ("swap 1,2", "skip 1-2"))
    assert kept.estimate.value == pytest.approx(swap[:, 1].mean())
    assert kept.control.estimate.value == pytest.approx(skip[:, 1].mean())
    own = swap[:, 0].sum() / skip[:, 0].sum()
    assert learned.estimate.value == pytest.approx(own - 0.15, rel=1e-5)
    assert learned.claim.startswith("Swapping neighbours costs a larger share")
    frame = result.to_frame()
    rows = frame[(frame["variant"] == "swap 1,2") & (frame["measure"] == "KL(clean‖variant), nats")]
    assert rows["mean"].item() == pytest.approx(swap[:, 0].mean())
    assert frame[frame["variant"] == "untrained, swap of two neighbours"]["mean"].tolist() == (
        pytest.approx([0.15, 0.85])
    )


def test_shares_of_several_pairs_have_a_shares_interval() -> None:
    orders = LayerOrder(operations=("swap",)).orders(4)
    kept, _ = _result(np.ones((24, len(orders.variants), 4))).findings()
    assert kept.estimate.value == 1
    assert kept.estimate.low < 1 == kept.estimate.high  # not "100 % [100, 100]"
    pairs = orders.pairs("swap")
    values = np.random.default_rng(0).uniform(0.9, 1, (6, len(orders.variants), 4))
    assert _result(values).estimate(pairs, "first token kept").high <= 1


@pytest.mark.parametrize(("n_layers", "inside"), [(4, True), (3, False)])
def test_a_note_says_that_ends_are_left_out_only_if_they_are(n_layers: int, inside: bool) -> None:
    n_variants = len(LayerOrder(operations=("swap",)).orders(n_layers).variants)
    kept, _ = _result(np.ones((6, n_variants, 4)), n_layers=n_layers).findings()
    assert ("without the first and the last layer" in kept.note) == inside


def test_beyond_others_is_wider_by_how_much_they_differ() -> None:
    more = beyond(Estimate(1.0, 0.9, 1.2, n=20), [0.0, 0.2])
    between = 12.706 * 0.02**0.5 * 1.5**0.5  # Student's t of one degree of freedom
    assert more.value == pytest.approx(0.9)
    assert more.low == pytest.approx(0.9 - np.hypot(0.1, between), rel=1e-4)
    assert more.high == pytest.approx(0.9 + np.hypot(0.2, between), rel=1e-4)
    assert not beyond(Estimate(1.0, 0.9, 1.2, n=20), [0.0]).has_interval


def test_a_variant_is_a_recipe() -> None:
    result = _result(np.ones((2, len(LayerOrder(operations=("swap",)).orders(4).variants), 4)))
    recipe = yaml.safe_load(result.recipe("swap 1,2", "a/model"))
    assert [each["sources"][0]["layer_range"] for each in recipe["slices"]] == [
        [0, 1], [2, 3], [1, 2], [3, 4],
    ]  # fmt: skip
    with pytest.raises(AnalysisError, match="variant 'swap 9,10' asked for; there is 'swap 0,1'"):
        result.recipe("swap 9,10", "a/model")


def test_a_recipe_stacks_slices() -> None:
    recipe = yaml.safe_load(mergekit_recipe([0, 1, 2, 1, 2, 3, 3], "a/model", dtype="float16"))
    assert recipe["merge_method"] == "passthrough"
    assert recipe["dtype"] == "float16"
    sources = [source for each in recipe["slices"] for source in each["sources"]]
    assert {source["model"] for source in sources} == {"a/model"}
    assert [source["layer_range"] for source in sources] == [[0, 3], [1, 4], [3, 4]]


def test_what_is_no_path_has_no_recipe() -> None:
    with pytest.raises(AnalysisError, match="an empty path given; a recipe needs at least one"):
        mergekit_recipe([], "a/model")
    with pytest.raises(AnalysisError, match="layer 4 given; the model's last layer is 3"):
        mergekit_recipe([0, 4], "a/model", n_layers=4)
    with pytest.raises(AnalysisError, match="layer -1 given; layers are counted from 0"):
        mergekit_recipe([-1], "a/model")
