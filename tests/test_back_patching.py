"""Patching a late output back equals one full forward per pair, with hand-written hooks; controls
have equal tries.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.back_patching import CONTROLS, BackPatching
from interp.analyses.back_patching.result import BackPatchingResult
from interp.analyses.back_patching.tries import other_positions
from interp.errors import AnalysisError, SiteError, TaskError
from interp.interventions import Patch
from interp.models import Model
from interp.runs.registry import make_analysis
from interp.sites import Site
from interp.stats.groups import Grouping
from interp.stats.shares import share_difference
from interp.sweeps.patches import ends_of_patched, outputs_at
from interp.sweeps.tags import keys_of, tags_of, texts_of
from interp.sweeps.texts import holds_answer, patched_texts
from interp.sweeps.two_hop import hops_known, known_hops
from interp.tasks import Prompt, Task
from tests.families import tiny, tokens
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


zoo = cache(lambda name: interp.load_model(f"zoo/{name}"))
two_hop = cache(lambda: interp.load_task("two-hop"))


def asked(*, subjects: tuple[int, ...] = (5, 5, 7)):
    """Return three prompts with subjects, answers and bridges, all random."""
    batch = tokens()
    known = {"answer": batch.tokens[:, 1], "bridge": batch.tokens[:, 2]}
    first_tokens = batch.tokens[:, 1:2]
    return replace(batch, subject=torch.tensor(subjects), answer_tokens=first_tokens, **known)


def put(value: torch.Tensor, at: torch.Tensor):
    def edit(_resid, out):
        out = out.clone()
        out[torch.arange(len(out))[:, None], at] = value
        return out

    return edit


@torch.no_grad()
@pytest.mark.parametrize(("position", "span"), [("subject", 1), ("last", 1), ("subject", 2)])
def test_the_grid_equals_the_naive_double_loop(model: Model, position: str, span: int) -> None:
    batch = asked()
    analysis = BackPatching(
        position=position,
        span=span,
        controls=("identity", "forward", "rescaled", "position"),
        known_only=False,
    )
    arrays = analysis.measure(model.record(batch), batch, {})
    recording, clean = model.record(batch), model.logits(batch)[:, -1]
    here = analysis._positions(batch)
    places = {"own": here, "rescaled": here, "position": other_positions(batch, here, seed=0)}
    rows = torch.arange(3)[:, None]
    for source in range(model.n_layers):
        for target in range(model.n_layers):
            for kind, at in places.items():
                if kind != "own" and source <= target:
                    assert bool((arrays[f"{kind}.rank"][:, source, target] == -1).all())
                    continue
                value, there = (
                    recording.resid(source + 1)[rows, at],
                    recording.resid(target + 1)[rows, at],
                )
                if kind == "rescaled":
                    value = (
                        value / value.norm(dim=-1, keepdim=True) * there.norm(dim=-1, keepdim=True)
                    )
                logits = naive(model, batch, {target: put(value, at)})[:, -1]
                answer = logits.gather(1, batch.answer[:, None])[:, 0]
                likelier = logits.log_softmax(-1) - clean.log_softmax(-1)
                log_prob = likelier.gather(1, batch.answer[:, None])[:, 0]
                bridge = likelier.gather(1, batch.bridge[:, None])[:, 0]
                for what, wanted in (("log_prob", log_prob), ("difference", log_prob - bridge)):
                    ours = arrays[f"{kind}.{what}"][:, source, target]
                    assert_close(ours, wanted, rtol=0, atol=2e-5)
                rank = (logits > answer[:, None] + 1e-5).sum(-1)
                assert bool((arrays[f"{kind}.rank"][:, source, target] - rank).abs().max() <= 1)


@torch.no_grad()
def test_at_the_last_token_it_is_a_second_visit_of_the_layers(model: Model) -> None:
    batch = asked()
    recording = model.record(batch)
    last = batch.last[:, None]
    own = outputs_at(recording, last)
    for target, source in ((0, 1), (0, 3), (1, 2)):
        ends = ends_of_patched(recording, {target: own[source][None]}, positions=last)[target][0]
        resid = own[source]
        for layer in range(target + 1, model.n_layers):
            resid = recording.tail(layer, resid, start=recording.n_pos - 1)
        assert_close(ends, resid[:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_layers_own_output_changes_nothing(model: Model) -> None:
    batch = asked()
    clean = model.forward(
        batch, capture=[Site("resid_post", layer) for layer in range(model.n_layers)]
    )
    for at in (batch.subject[:, None], torch.zeros(3, 1, dtype=torch.long)):
        own = outputs_at(model.record(batch), at)
        for layer in range(model.n_layers):
            site = Site("resid_post", layer)
            value = clean.activations[site][torch.arange(3)[:, None], at]
            patched = model.forward(batch, plan=[Patch(site, value, positions=at[:, 0])]).logits
            assert torch.equal(patched, clean.logits)
            recording = model.record(batch)
            ends = ends_of_patched(recording, {layer: own[layer][None]}, positions=at)[layer][0]
            assert_close(ends, recording.resid(model.n_layers)[:, -1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_vectors_of_other_prompts_and_models_of_the_same_width_can_be_patched() -> None:
    target, batch, others = tiny("llama"), asked(), tokens(seed=1)
    for source in (target, tiny("gpt2")):
        values = outputs_at(source.record(others), others.last[:, None])
        ends = ends_of_patched(target.record(batch), {1: values}, positions=batch.subject[:, None])[
            1
        ]
        for layer in range(source.n_layers):
            wanted = naive(target, batch, {1: put(values[layer], batch.subject[:, None])})[:, -1]
            assert_close(target.unembed(ends[layer]), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_work_stays_at_the_bound() -> None:
    model, batch = tiny("llama"), asked()
    recording, layers = model.record(batch), model.n_layers
    recording.kv(layers - 1)
    before = recording.work.block_tokens
    BackPatching(position="last", controls=(), known_only=False).measure(recording, batch, {})
    assert recording.work.block_tokens - before == 3 * (layers - 1) * layers * (2 * layers - 1) / 6


@pytest.mark.parametrize(
    ("name", "controls"), [("hops-4l", CONTROLS), ("hops-8l", ("identity", "forward", "example"))]
)
def test_a_first_fact_held_out_is_repaired_at_the_bridge_and_a_second_is_not(
    name: str, controls: tuple[str, ...]
) -> None:
    """The first hop of such a prompt is resolved after the layers that would use it; a second hop
    is nowhere to be found.
    """
    model, task = zoo(name), two_hop()
    held_out = [
        p
        for which in ("first", "second")
        for p in task.tagged(set=f"{which}-held-out").take(96).prompts
    ]
    result = BackPatching(controls=controls).run(model, task.of(held_out))
    groups = result.groups()
    first, second = groups["first-held-out"], groups["second-held-out"]
    assert first.best_pair() == (model.n_layers - 1, 0)
    assert first.rate("back", "fixed").value > 0.5
    for statistic in ("oracle", "fixed"):
        assert first.rate("back", statistic, over=first.best_control(statistic)).low > 0.2
        assert second.rate("back", statistic, over=second.best_control(statistic)).low <= 0
    assert second.rate("back", "fixed").value < 0.1
    assert result.identity_change() < 1e-4
    readable = [group.readable(group.is_failure)[:, 0].mean() for group in (first, second)]
    assert readable[0] < readable[1] - 0.3
    frame = result.to_frame()
    assert set(frame.group) == {"all", "first-held-out", "second-held-out"}
    assert set(frame[frame.statistic == "oracle"].kind) == {"back", "sampled", *controls} - {
        "identity"
    }
    assert set(frame[frame.statistic == "oracle"].tries) == {result.n_tries}
    pairs = frame[frame.statistic == "pair"].groupby(["group", "kind"]).size()
    assert set(pairs) == {result.n_tries}
    whole, *tags = result.findings()
    assert whole.kind == "compares"
    assert whole.estimate.low > 0.1
    effects = {finding.claim.split(":")[0]: finding.estimate for finding in tags}
    assert effects["first-held-out"].low > 0.2
    assert not effects["second-held-out"].excludes()
    assert sum(" not measurably more of the failures" in finding.claim for finding in tags) == 1


def test_at_the_last_token_nothing_is_repaired() -> None:
    model, task = zoo("hops-4l"), two_hop().tagged(set="first-held-out").take(96)
    result = BackPatching(position="last").run(model, task)
    assert result.rate("back", "fixed").value < 0.1
    assert result.rate("back", "fixed", over=result.best_control("fixed")).high < 0
    assert result.rate("back", "oracle", over=result.best_control("oracle")).low < 0


def test_texts_of_one_token_say_what_ranks_say() -> None:
    model, task = zoo("hops-4l"), two_hop().tagged(set="first-held-out").take(12)
    by_rank, by_text = (BackPatching(max_new_tokens=new).run(model, task) for new in (None, 1))
    for key, array in by_rank.arrays.items():
        if key.endswith("right"):
            assert (by_text.arrays[key] == array).all(), key
    assert by_text.arrays["is_unchanged"].all()
    assert by_text.arrays["sampled.one"].mean() == pytest.approx(
        by_rank.arrays["sampled.one"].mean(), abs=0.2
    )


@torch.no_grad()
def test_patched_texts_go_on_from_the_patched_prompt() -> None:
    """Greedy decoding by whole forwards in which the patch stands in the prompt alone; other
    prompts' vectors included.
    """
    model, task = zoo("hops-4l"), two_hop().tagged(set="first-held-out").take(6)
    batch = model.tokenize(max(model.shards(task), key=len))
    at = batch.subject[:, None]
    own = outputs_at(model.record(batch), at)
    values = torch.stack([own[3], own[3].roll(1, 0)])
    texts = patched_texts(model, batch, values, layer=0, positions=at, max_new_tokens=4)
    for value, said in zip(values, texts, strict=True):
        grown = batch
        for _ in range(4):
            chosen = naive(model, grown, {0: put(value, at)})[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([grown.tokens, chosen], dim=1)
            grown = replace(batch, tokens=ids, mask=torch.ones_like(ids, dtype=torch.bool))
        assert list(said) == model.tokenizer.batch_decode(grown.tokens[:, -4:])


def test_an_alias_counts_and_a_letter_does_not() -> None:
    prompt = Prompt("1", "The author of", answer="Jane Austen", aliases=("Austen", "J"))
    assert holds_answer(" is miss austen.", prompt)
    assert not holds_answer(" is J. Doe", prompt)


def made_up(groups: np.ndarray, **right: np.ndarray) -> BackPatchingResult:
    """Return a result of wrong prompts with what pairs [prompt source target] repair."""
    n, n_layers = len(groups), right["own"].shape[1]
    arrays = {
        "is_right": np.zeros(n, bool),
        "hops": np.ones(n, np.int8),
        "sampled.one": np.zeros(n),
        "own.rank": np.zeros((n, n_layers, n_layers)),
    }
    arrays |= {f"{kind}.right": value.astype(np.int8) for kind, value in right.items()}
    analysis = BackPatching(controls=tuple(kind for kind in right if kind != "own"))
    return BackPatchingResult(analysis, arrays).of_groups(groups)


def test_pair_and_control_are_picked_on_the_other_half_of_the_groups() -> None:
    """What is only good where it was picked repairs nothing elsewhere."""
    groups = np.arange(24) // 2
    half = Grouping.of(24, groups).half(seed=0)
    own, random, example = np.zeros((3, 24, 3, 3))
    own[half, 1, 0], own[~half, 2, 0], own[:, 2, 1] = 1, 1, np.arange(24) % 3 == 0
    random[np.arange(24), 2, np.arange(24) % 2] = half  # half of one half by each of two pairs
    example[:, 2, 0] = np.arange(24) % 4 == 0
    result = made_up(groups, own=own, random=random, example=example)
    assert result.scores("back", "fixed").tolist() == [0] * 24
    assert result.scores("example", "fixed").mean() == 0.25
    control, gain = result.over_best_control()
    # the first half picks "random", with nothing to repair in the second, which picks "example"
    assert control.value == (example[half, 2, 0].sum()) / 24
    assert gain.value == -control.value
    assert (gain.n, gain.n_groups) == (24, 12)


def test_the_gain_is_less_certain_over_first_hops_than_over_prompts() -> None:
    model, task = zoo("hops-4l"), two_hop().tagged(set="first-held-out")
    result = BackPatching(controls=("forward",)).run(model, task)
    one, other = (result.scores(kind, "fixed") for kind in ("back", "forward"))
    over = result.rate("back", "fixed", over="forward")
    assert over.value == pytest.approx(one.mean() - other.mean())
    hops = [result.groups_of(result.is_failure), None]
    by_hop, by_prompt = (share_difference(one, other, groups=groups) for groups in hops)
    assert by_hop.n_groups < by_prompt.n / 4
    assert 1.3 <= (by_hop.high - by_hop.low) / (by_prompt.high - by_prompt.low) <= 1.4


def test_intervals_are_wider_where_prompts_share_a_first_hop() -> None:
    repaired = np.repeat(np.arange(20) % 2, 4)  # by first hop
    own = np.zeros((80, 2, 2))
    own[:, 1, 0] = repaired
    width = {}
    for groups in (np.arange(80), np.arange(80) // 4):
        gain = made_up(groups, own=own).rate("back", "fixed", over="sampled")
        assert gain.value == 0.5
        width[gain.n_groups] = gain.high - gain.low
    assert width[20] > 1.7 * width[80]  # four of a kind: twice, and Student's t
    few = made_up(np.arange(80) // 20, own=own)
    assert "too few for rates (10 are needed, of 5 groups)" in few.summary()


def test_known_hops_are_those_that_the_model_answers() -> None:
    model, task = zoo("hops-4l"), two_hop().take(12)
    for new in (None, 1):
        hops = known_hops(model, task, max_new_tokens=new)
        assert (len(hops["asked"]), len(hops["unknown"])) == (12, 0)
    assert len(known_hops(zoo("hops-8l@step-0000"), task)["unknown"]) > 0
    alone = BackPatching(controls=("forward",)).run(
        model, Task("alone", two_hop().tagged(set="first-held-out").prompts[:9])
    )
    assert (alone.arrays["hops"] == -1).all()
    assert "single hops not asked" in alone.summary()
    hops = {  # every prompt's have the same ids, and one has a wrong answer
        p.id: {hop: replace(other, id=hop) for hop, other in task.related[p.id].items()}
        for p in task.prompts
    }
    wrong = replace(hops[task.prompts[0].id]["first_hop"], answer=task.prompts[0].answer)
    hops[task.prompts[0].id]["first_hop"] = wrong
    unknown = known_hops(model, replace(task, related=hops))["unknown"]
    assert unknown.tolist() == keys_of(task.prompts[:1]).tolist()
    first = {p.id: {"first_hop": task.related[p.id]["first_hop"]} for p in task.prompts}
    half_asked = replace(task, related=first)
    assert len(known_hops(model, half_asked)["asked"]) == 0
    both, one = (
        {"asked": keys_of(task.prompts), "unknown": torch.tensor([], dtype=torch.long)},
        known_hops(model, half_asked),
    )
    shard = model.tokenize(task.prompts[:1])
    assert (hops_known(shard, both).item(), hops_known(shard, one).item()) == (1, -1)
    assert hops_known(shard, one | {"unknown": keys_of(task.prompts)}).item() == 0
    assert "too few for rates" in alone.summary()


def test_where_nothing_fails_there_is_nothing_to_repair() -> None:
    model, task = zoo("hops-4l"), two_hop().tagged(set="trained").take(3)
    result = BackPatching(controls=("forward",)).run(model, task)
    assert result.summary() == "Nothing to repair: of 3 prompts 3 are right."
    assert result.plot().layout.title.text
    assert set(result.to_frame().n_prompts) == {0}
    ignorant = BackPatching(controls=()).run(zoo("hops-8l@step-0000"), task)
    assert (
        ignorant.summary()
        == "Nothing to repair: of 3 prompts 0 are right, 3 wrong but with a single hop that is not"
        " known."
    )


def test_tags_come_back_from_tensors() -> None:
    batch = replace(
        tokens(),
        prompts=tuple(
            Prompt(str(i), "x", tags={"set": s}) for i, s in enumerate(("a", "häuser", ""))
        ),
    )
    assert texts_of(tags_of(batch, "set").numpy()) == ["a", "häuser", ""]
    assert texts_of(tags_of(batch, "other").numpy()) == ["", "", ""]


def test_bad_input_is_named() -> None:
    model, task = zoo("hops-4l"), two_hop().take(4)
    with pytest.raises(AnalysisError, match="unknown value 'rescale'; did you mean 'rescaled'"):
        make_analysis("back_patching", {"controls": ["rescale"]})
    with pytest.raises(AnalysisError, match="span=0; at least 1"):
        BackPatching(span=0)
    with pytest.raises(AnalysisError, match="a span of 40 tokens begins before its first token"):
        BackPatching(span=40).run(model, task)
    with pytest.raises(TaskError, match=f"prompt {task.prompts[0].id!r} has no subject"):
        BackPatching().run(model, task.of([replace(task.prompts[0], subject=None)]))
    with pytest.raises(TaskError, match="found 0 times; once is needed"):
        BackPatching().run(model, task.of([replace(task.prompts[0], subject="nobody")]))
    with pytest.raises(
        AnalysisError,
        match="1 prompt given; the control takes another prompt's entities: at least 2",
    ):
        BackPatching().run(model, task.take(1))
    with pytest.raises(AnalysisError, match="max_new_tokens=0; at least 1"):
        BackPatching(max_new_tokens=0)
    with pytest.raises(TaskError, match="tokens with the response"):
        BackPatching(max_new_tokens=500).run(model, task)
    batch = model.tokenize(task.prompts)
    recording, at = model.record(batch), batch.last[:, None]
    narrow = torch.zeros(1, 4, 1, 32)
    with pytest.raises(
        AnalysisError, match="vectors of width 32 given; the residuals here have width 128"
    ):
        ends_of_patched(recording, {0: narrow}, positions=at)
    with pytest.raises(
        AnalysisError,
        match=f"position {recording.n_pos} given; the last position is {recording.n_pos - 1}",
    ):
        ends_of_patched(recording, {0: outputs_at(recording, at)}, positions=at + 1)
    ragged = model.tokenize(
        [task.prompts[0], replace(task.prompts[1], text="Ada friend", subject="Ada")]
    )
    vectors = torch.zeros(1, 2, 1, 128)
    with pytest.raises(SiteError, match="the last token of prompt"):
        patched_texts(
            model,
            ragged,
            vectors,
            layer=0,
            positions=ragged.last[:1, None].repeat(2, 1),
            max_new_tokens=1,
        )
