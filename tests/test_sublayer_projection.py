"""Ranks of writes are those of what hooks catch; strangers and compared prompts do not depend on
the shard.
"""

import numpy as np
import pytest
import torch

import interp
from interp.analyses.sublayer_projection import SublayerProjection
from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import first
from interp.runs.registry import make_analysis
from interp.stats.shares import share, share_difference
from interp.sweeps.tags import key_of
from interp.sweeps.two_hop import (
    PARTS,
    another_prompts_entities,
    comparable_prompts,
    first_layer,
    other_prompts_entities,
    written_ranks,
)
from tests.test_back_patching import asked

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["gemma2", "gpt2", "gpt_neox", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def test_written_ranks_are_those_of_what_hooks_catch(model: Model) -> None:
    batch = asked()
    caught: dict[tuple[str, int], torch.Tensor] = {}
    handles = []
    for i, block in enumerate(model.blocks):
        for part, module in zip(
            PARTS, (block.attn_write, block.mlp_write, block.module), strict=True
        ):
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, out, key=(part, i): caught.update({key: first(out)})
                )
            )
    model.logits(batch)
    for handle in handles:
        handle.remove()
    found = written_ranks(model.record(batch), batch.subject, [batch.answer, batch.bridge])
    for (part, layer), write in caught.items():
        logits = model.unembed(write[torch.arange(3), batch.subject])
        for i, token in enumerate((batch.answer, batch.bridge)):
            above = logits - logits.gather(1, token[:, None])
            low, high = ((above > margin).sum(1) for margin in (1e-4, -1e-4))
            ours = found[:, PARTS.index(part), layer, i]
            assert bool(((low <= ours) & (ours <= high)).all())


def test_the_first_layer_is_the_first_at_which_it_is_true() -> None:
    there = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    assert first_layer(there).tolist() == [1, -1, 0]


def test_strangers_share_no_entity_and_do_not_depend_on_the_shard() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    prepared = other_prompts_entities(model, task)
    (shard,) = [model.tokenize(prompts) for prompts in [max(model.shards(task), key=len)]]
    bridge, answer = another_prompts_entities(shard, prepared)
    for i, prompt in enumerate(shard.prompts):
        own = {int(shard.bridge[i]), int(shard.answer[i])}
        assert own.isdisjoint({int(bridge[i]), int(answer[i])})
        alone = another_prompts_entities(model.tokenize([prompt]), prepared)
        assert [int(x) for x in alone] == [int(bridge[i]), int(answer[i])]


def test_compared_are_prompts_with_known_hops_whose_shortcuts_do_not_work() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=60)
    every = {key_of(prompt.id) for prompt in task.prompts}
    known = set(comparable_prompts(model, task, known_only=True, no_shortcuts=False).tolist())
    strict = set(comparable_prompts(model, task, known_only=True, no_shortcuts=True).tolist())
    assert (
        set(comparable_prompts(model, task, known_only=False, no_shortcuts=False).tolist()) == every
    )
    assert strict < known <= every
    untrained = interp.load_model("zoo/hops-8l@step-0000")
    assert len(comparable_prompts(untrained, task, known_only=True, no_shortcuts=False)) < 5


def test_the_mlp_writes_the_prediction_and_no_sublayer_the_bridge_at_the_last_token() -> None:
    result = SublayerProjection().run(
        interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=96)
    )
    frame = (
        result.to_frame()
        .query("group == 'right answers' and layer.isna()")
        .set_index(["part", "token"])
    )
    assert frame.loc[("MLP", "prediction"), "rate"] > 0.95
    assert (
        frame.loc[("attention", "bridge"), "low"]
        < frame.loc[("attention", "another's bridge"), "high"]
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(AnalysisError, match="unknown value 'first'; there is last, subject"):
        make_analysis("sublayer_projection", {"position": "first"})


def test_findings_compare_with_another_prompts_entity() -> None:
    rng = np.random.default_rng(0)
    rank = rng.integers(1, 9, (24, 3, 4, 5))  # [prompt part layer token]
    rank[:20, 1, 3, 1] = 0  # the MLP writes the answer in 20 of 24
    rank[:4, 1, 0, 4] = 0  # another's in 4
    rank[5, 0, 2, 0] = rank[7, 0, 1, 3] = 0  # attention writes bridge and another's once each
    part = {
        "rank": torch.from_numpy(rank),
        "is_right": torch.ones(24, dtype=torch.bool),
        "is_compared": torch.arange(24) < 22,
    }
    groups = np.arange(24) // 2
    bridge, answer = SublayerProjection().combine([part]).of_groups(groups).findings()
    assert bridge.estimate.value == 0
    assert "not measurably more often than another prompt's: 0 points" in bridge.claim
    assert answer.estimate.value == pytest.approx((20 - 4) / 22)
    expected = share_difference(np.arange(22) < 20, np.arange(22) < 4, groups=groups[:22])
    assert answer.estimate == expected
    assert expected.excludes()
    assert answer.claim.startswith("With right answers, MLPs write the answer in some layer more")
    assert ": by 73 points [" in answer.claim
    assert answer.control.estimate.value == 4 / 22
    assert answer.note.startswith("its own: 91 %")
    assert "most often in layer 3: 91 %" in answer.note
    frame = SublayerProjection().combine([part]).of_groups(groups).to_frame()
    rows = frame.query("part == 'MLP' and token == 'answer' and layer == 3")
    alone = share(np.arange(22) < 20, groups=groups[:22])
    assert rows[["rate", "low", "high"]].to_numpy()[0] == pytest.approx(
        [alone.value, alone.low, alone.high]
    )
