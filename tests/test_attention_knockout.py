"""Hiding keys equals a full forward with edited patterns; attention that cannot be kept from a key
is refused.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.attention_knockout import AttentionKnockout
from interp.analyses.attention_knockout.result import CHANGED, AttentionKnockoutResult
from interp.errors import AnalysisError, SiteError
from interp.models import Model
from interp.result import faults_of
from interp.runs.registry import make_analysis
from interp.stats.groups import Grouping
from interp.sweeps.cuts import (
    Cut,
    cut_elsewhere,
    cut_of,
    cut_steps,
    ends_of_cuts,
    half_width_of,
    require_hiding,
)
from tests.families import tiny
from tests.test_back_patching import asked

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["gemma2", "gpt2", "gpt_neox", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def spans(*, starts: tuple[int, ...] = (4, 3, 7), ends: tuple[int, ...] = (5, 5, 7)):
    return replace(asked(subjects=ends), subject_start=torch.tensor(starts))


def renormalised(model: Model, batch, pairs: torch.Tensor, layers) -> torch.Tensor:
    """Return the logits of a full forward in which some layers' patterns have hidden keys at 0, and
    the rest sums to 1.
    """

    def edit(pattern, hook):  # noqa: ARG001
        kept = pattern.masked_fill(pairs[:, None], 0)
        return kept / kept.sum(-1, keepdim=True)

    hooks = [(f"blocks.{layer}.attn.hook_pattern", edit) for layer in layers]
    return model.bridge.run_with_hooks(batch.tokens, fwd_hooks=hooks)[:, -1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("key", "query", "width"), [("subject", "last", 0), ("phrase", "last", 1), ("start", "all", 0)]
)
def test_a_cut_is_the_pattern_renormalised_over_the_other_keys(
    model: Model, key: str, query: str, width: int
) -> None:
    batch = spans()
    pairs = torch.zeros(3, 12, 12, dtype=torch.bool)
    for row, (start, end) in enumerate(((4, 5), (3, 5), (7, 7))):
        keys = {"subject": [end], "start": [start], "phrase": [*range(start, end + 1)]}[key]
        for hidden in keys:
            pairs[row, keys[-1] + 1 if query == "all" else 11 :, hidden] = True
    recording = model.record(batch)
    ends = ends_of_cuts(recording, cut_of(batch, key=key, query=query, half_width=width))
    for centre in range(4):
        ours = recording.logits(ends[centre][:, None])[:, 0]
        layers = [layer for layer in range(4) if abs(layer - centre) <= width]
        assert_close(ours, renormalised(model, batch, pairs, layers), rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_empty_cut_and_a_key_behind_its_query_change_nothing(model: Model) -> None:
    batch = spans()
    recording = model.record(batch)
    pos = torch.arange(12)
    queries = (pos == 11).expand(3, 12)
    for keys in (torch.zeros(3, 12, dtype=torch.bool), (pos == 11).expand(3, 12)):
        cut = Cut(queries, keys)
        assert not bool(cut.hidden.any())
        assert_close(
            ends_of_cuts(recording, cut)[1],
            recording.resid(model.n_layers)[:, -1],
            rtol=0,
            atol=2e-5,
        )


@torch.no_grad()
def test_a_hidden_key_is_not_read_and_the_others_are(model: Model) -> None:
    require_hiding(model, spans())
    recording = model.record(spans())
    keys, values = recording.kv(1)
    hidden = torch.zeros(3, 2, 12, dtype=torch.bool)
    hidden[:, :, 6] = True
    resid = recording.resid(1)[:, 10:]

    def changed(at: int) -> torch.Tensor:
        other = values.clone()
        other[:, :, at] += 1
        return recording.tail(1, resid, start=10, prefix=(keys, other), hidden=hidden)

    clean = recording.tail(1, resid, start=10, hidden=hidden)
    assert_close(changed(6), clean, rtol=0, atol=1e-6)
    assert (changed(7) - clean).abs().max() > 1e-3


def test_attention_that_ignores_its_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", seed=3)
    block = model.blocks[2].module
    forward = block.forward
    monkeypatch.setattr(
        block,
        "forward",
        lambda *args, **kwargs: forward(*args, **{**kwargs, "attention_mask": None}),
    )
    monkeypatch.setitem(
        vars(model.modules),
        "blocks",
        (*model.blocks[:2], replace(model.blocks[2]), model.blocks[3]),
    )
    with pytest.raises(SiteError, match="the attention of layer 2 reads what its mask hides"):
        require_hiding(model, spans())


def test_attention_without_a_mask_is_refused() -> None:
    recording = tiny("llama").record(spans())
    recording._dry(10)
    recording._arguments[10][1].pop("attention_mask")
    with pytest.raises(SiteError, match="this attention takes no mask of queries and keys"):
        recording.tail(
            1, torch.zeros(3, 2, 32), start=10, hidden=torch.zeros(3, 2, 12, dtype=torch.bool)
        )


@torch.no_grad()
def test_cuts_run_only_what_comes_behind() -> None:
    model, batch = tiny("llama"), spans()
    recording = model.record(batch)
    recording.kv(3)
    before = recording.work.block_tokens
    ends_of_cuts(recording, cut_of(batch))
    assert recording.work.block_tokens - before == 3 * cut_steps(4, half_width=0) == 3 * 10
    assert [half_width_of(n, None) for n in (4, 8, 12, 32, 80)] == [0, 1, 1, 3, 8]
    assert half_width_of(32, 0) == 0


@torch.no_grad()
def test_the_control_hides_as_many_earlier_positions_elsewhere() -> None:
    batch = spans()
    cut = cut_of(batch, key="phrase")
    other = cut_elsewhere(batch, cut)
    assert other.keys.sum(1).tolist() == cut.keys.sum(1).tolist() == [2, 3, 1]
    assert not bool((other.keys & cut.keys).any() or other.keys[:, [0, 11]].any())


def test_hiding_the_first_hop_matters_and_hiding_another_token_does_not() -> None:
    result = AttentionKnockout().run(
        interp.load_model("zoo/hops-8l"), interp.load_task("two-hop", n=96)
    )
    frame = result.to_frame()
    frame = frame[
        (frame["measure"] == CHANGED) & (frame["layer"] == 4) & (frame["group"] == "right answers")
    ]
    frame = frame.set_index("hidden")
    assert frame.loc["difference", "low"] > 0.15
    assert frame.loc["another token", "mean"] < 0.05
    most, *_, last = result.findings()
    assert most.estimate.low > 0.2
    assert 4 <= last.estimate.value <= 6
    assert faults_of(result.findings()) == []


def made_up(key: np.ndarray, other: np.ndarray | None = None) -> AttentionKnockoutResult:
    """Return a result of right prompts whose guesses change as given [prompt centre]."""
    arrays = {"key.changed": key, "is_right": np.ones(len(key), bool)}
    arrays |= {} if other is None else {"elsewhere.changed": other}
    arrays["is_compared"] = arrays["is_right"]
    groups = np.arange(len(key)) // 2
    return AttentionKnockoutResult(AttentionKnockout(), arrays).of_groups(groups)


def test_the_critical_layer_is_picked_on_the_other_half() -> None:
    half = Grouping.of(40, np.arange(40) // 2).half(seed=0)
    key, other = np.zeros((2, 40, 3), bool)
    key[:, 0] = other[:, 0] = True  # changes most, and not by what is read there
    key[half, 1] = True  # critical on one half alone
    key[:, 2] = np.arange(40) % 4 == 0
    result = made_up(key, other)
    most, last = result.findings()
    # the second half picks layer 2 and is measured at layer 1, and the other way round
    assert most.estimate.value == pytest.approx(key[half, 2].sum() / 40)
    assert most.control.estimate.value == 0
    assert "around one layer changes" in most.claim
    assert most.note.endswith("; the halves pick layers 1 and 2")
    assert last.estimate.value == 2
    nothing = made_up(other, other)
    assert (
        "not measurably more guesses than hiding another token: 0 points"
        in nothing.findings()[0].claim
    )
    assert "at no layer" in nothing.findings()[1].claim
    alone = made_up(key)  # parts of interp 0.1 without losses, and no control
    assert alone.findings()[0].kind == "describes"
    assert set(alone.to_frame()["measure"]) == {CHANGED}


def test_bad_input_is_named() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    with pytest.raises(AnalysisError, match="unknown value 'sujet'; did you mean 'subject'"):
        make_analysis("attention_knockout", {"key": "sujet"})
    with pytest.raises(AnalysisError, match="half_width=-1; at least 0"):
        AttentionKnockout(half_width=-1)
    with pytest.raises(
        AnalysisError,
        match="no query 'subject' stands after the key 'subject'; there is nothing to hide",
    ):
        AttentionKnockout(query="subject").run(model, task)
    short = task.of([replace(task.prompts[0], text="Ada mother boss", subject="Ada mother")])
    with pytest.raises(
        AnalysisError, match="has 1 other positions before its queries; 2 are needed"
    ):
        AttentionKnockout(key="phrase").run(model, short)
