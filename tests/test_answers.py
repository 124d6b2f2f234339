"""Prompts with their answers: which recording serves them, and what predicts them."""

import pytest
import torch
from torch.testing import assert_close

from interp.models import Model
from interp.sweeps.answers import by_answer_length, length_group_sizes, probability
from tests.families import tiny, tokens
from tests.test_integrated_gradients import answering

pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
def test_a_recording_of_other_tokens_is_a_pass_whose_work_counts_there(
    model: Model,
) -> None:
    batch, others = tokens(), tokens(batch=2, n_pos=9, seed=1)
    recording = model.record(batch)
    other = recording.of(others.tokens)
    assert_close(other.logits(other.resid(model.n_layers)), model.logits(others), rtol=0, atol=1e-5)
    assert recording.work.block_tokens == others.tokens.numel() * model.n_layers


@torch.no_grad()
def test_answers_of_one_token_need_no_other_pass() -> None:
    batch = answering(tokens())
    recording = tiny("llama").record(batch)
    (group,) = by_answer_length(recording, batch)
    assert group.recording is recording
    assert [size.passed for size in length_group_sizes(batch)] == [0]
    assert [size.passed for size in length_group_sizes(batch, whole=True)] == [3 * 13]


@torch.no_grad()
def test_longer_answers_follow_their_prompts_but_for_their_last_token() -> None:
    model, batch = tiny("llama"), answering(tokens(), lengths=(1, 3, 1))
    one, three = by_answer_length(model.record(batch), batch)
    assert (one.rows.tolist(), three.rows.tolist()) == ([0, 2], [1])
    assert three.tokens.tolist() == [batch.tokens[1].tolist() + batch.answer_tokens[1, :2].tolist()]
    logits = model.module(input_ids=three.tokens).logits[0].softmax(-1)
    by_hand = sum(logits[11 + k, batch.answer_tokens[1, k]] for k in range(3))
    resid = three.recording.resid(model.n_layers)
    ours = probability(three.recording.logits(resid, positions=three.predicting), three.answer)
    assert_close(ours[0], by_hand, rtol=0, atol=1e-6)
