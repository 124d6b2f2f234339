"""Where heads attend to: readings by hand and naively, what heads write, and known heads."""

from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.head_patterns import HeadPatterns
from interp.analyses.head_patterns.targets import (
    BEHIND,
    COPIES,
    DISTANCE,
    ENTROPY,
    FIRST,
    PREVIOUS,
    READINGS,
    SAME,
    SOURCE,
    TARGETS,
    copies_of,
    readings,
    targets_of,
    uniform,
)
from interp.errors import AnalysisError, RunError
from interp.interventions import Ablate
from interp.models import Model
from interp.shapes import per_query_head
from interp.sites import Site
from interp.sweeps import heads
from interp.sweeps.heads import inside_heads, lengths, output_map, output_scale
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens

NO_MARKS = torch.zeros(0, dtype=torch.long)


def batch(tokens: list[int], *, answer: int | None = None) -> TokenBatch:
    prompt = (Prompt("p", "", tokens=tuple(tokens)),)
    rows = torch.tensor([tokens])
    given = None if answer is None else torch.tensor([answer])
    last = torch.tensor([len(tokens) - 1])
    return TokenBatch(prompt, rows, torch.ones_like(rows, dtype=torch.bool), last, answer=given)


def read(pattern: torch.Tensor, shard: TokenBatch, marks: torch.Tensor = NO_MARKS) -> dict:
    found = readings(pattern[None, None], targets_of(shard, marks))[0, :, 0]
    return dict(zip(READINGS, found.tolist(), strict=True))


def test_readings_by_hand() -> None:
    shard = batch([5, 7, 8, 7, 9], answer=8)
    pattern = torch.tensor(
        [
            [1.0, 0, 0, 0, 0],
            [0.5, 0.5, 0, 0, 0],
            [0.2, 0.3, 0.5, 0, 0],
            [0.1, 0.2, 0.6, 0.1, 0],
            [0.0, 0.1, 0.4, 0.3, 0.2],
        ]
    )
    found = read(pattern, shard, torch.tensor([8]))
    assert found[FIRST] == pytest.approx((0.5 + 0.2 + 0.1 + 0.0) / 4)
    assert found[PREVIOUS] == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert found["itself"] == pytest.approx((0.5 + 0.5 + 0.1 + 0.2) / 4)
    assert found[SAME] == pytest.approx(0.2)  # the second 7 looks at the first
    assert found[BEHIND] == pytest.approx(0.6)  # the second 7 looks at the 8 after the first
    assert found["punctuation"] == pytest.approx((0.5 + 0.6 + 0.4) / 3)
    assert found[SOURCE] == pytest.approx(0.4)
    assert found[DISTANCE] == pytest.approx((0.5 + 0.7 + 1.3 + 1.4) / 4, abs=1e-6)


def test_what_a_prompt_does_not_have_is_missing() -> None:
    found = read(torch.eye(3), batch([1, 2, 3]))
    assert {name for name, value in found.items() if np.isnan(value)} == {
        SAME, BEHIND, "punctuation", "subject, from the last token", SOURCE,
    }  # fmt: skip


def test_attending_to_all_alike_gives_the_control() -> None:
    shard = batch([1, 2, 3, 2, 4, 2], answer=2)
    n = shard.tokens.shape[1]
    alike = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    weights = targets_of(shard, torch.tensor([3]))
    assert_close(readings(alike[None, None], weights)[:, : len(TARGETS), 0], uniform(weights),
                 equal_nan=True)  # fmt: skip
    entropy = torch.arange(2, n + 1).float().log().mean()
    assert read(alike, shard)[ENTROPY] == pytest.approx(float(entropy))


def test_copies_by_hand() -> None:
    tokens = torch.tensor([[0, 11, 12, 13, 11, 12, 13]])
    weights = copies_of(tokens, n=3)
    induction = torch.zeros(7, 7)
    for query, key in ((4, 2), (5, 3), (6, 4)):
        induction[query, key] = 1.0
    assert float((induction * weights[0, COPIES.index(BEHIND)]).sum()) == pytest.approx(1.0)
    assert float((induction * weights[0, COPIES.index(SAME)]).sum()) == 0.0
    assert_close(weights.sum((2, 3)), torch.ones(1, 3))


def test_heads_add_up_to_what_attention_writes(family: str, model: Model) -> None:
    prompts = [Prompt(str(i), "", tokens=(1, 5, 9, 7, 3, 5)) for i in range(2)]
    shard = model.tokenize(prompts)
    blocks = model.blocks
    if blocks[0].z_reader is None or blocks[0].attn_write is not blocks[0].attn:
        pytest.skip(f"{family}: heads are not all that attention adds to the stream")
    with model.running, torch.no_grad():
        recording = model.record(shard)
        for layer, seen in inside_heads(recording, shard.tokens, ("z",), n_heads=model.n_heads):
            maps = output_map(recording, layer, seen["z"])
            nothing = torch.zeros(1, 1, maps.shape[0] * maps.shape[1], dtype=model.dtype)
            bias = blocks[layer].z_reader(nothing).float()
            written = torch.einsum("bphd,hdm->bpm", seen["z"], maps) + bias
            clean = recording.clean(Site("attn_out", layer)).float() / blocks[layer].write_scale
            assert_close(written, clean, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_heads_write_passes_the_norm_behind_attention(family: str) -> None:
    model, shard = tiny(family), tokens()
    recording, block = model.record(shard), model.blocks[1]
    z = model.forward(shard, capture=[Site("z", 1)]).activations[Site("z", 1)].float()
    by_head = z.reshape(*z.shape[:2], model.n_heads, -1)
    matrix = block.module.self_attn.o_proj.weight.reshape(model.d_model, model.n_heads, -1)
    parts = torch.einsum("bphd,mhd->bphm", by_head, matrix)
    norm, whole = block.module.post_attention_layernorm, parts.sum(2)
    scaled = norm(whole) / whole  # what the norm multiplies each feature by
    written = parts * scaled[:, :, None]
    maps, scale = output_map(recording, 1, by_head), output_scale(block, z.flatten(2))
    found = torch.einsum("bphd,hdm->bphm", by_head, maps) * scale[..., None, None]
    assert_close(found, written, rtol=1e-3, atol=1e-4)
    assert_close(found.sum(2), recording.clean(Site("attn_out", 1)).float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_value_weighted_attention_is_the_length_of_what_is_moved() -> None:
    model = loaded("zoo/names-6l")
    shard = model.tokenize(interp.load_task("ioi", n=2).prompts[:1])
    with model.running:
        recording = model.record(shard)
        for layer, seen in inside_heads(
            recording, shard.tokens, ("pattern", "v"), n_heads=model.n_heads
        ):
            values = per_query_head(seen["v"], model.n_heads)
            maps = output_map(recording, layer, values)
            moved = torch.einsum("bhqk,bkhd,hdm->bhqkm", seen["pattern"], values, maps)
            found = seen["pattern"] * lengths(values, maps)[:, :, None, :]
            assert_close(found, moved.norm(dim=-1), rtol=1e-4, atol=1e-5)


def test_passes_over_some_layers_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = loaded("zoo/hops-4l"), interp.load_task("two-hop", n=3)
    whole = HeadPatterns(kept=1).run(model, task)
    monkeypatch.setattr(heads, "_HELD", 1)
    split = HeadPatterns(kept=1).run(model, task)
    assert_close(torch.tensor(whole.readings), torch.tensor(split.readings), equal_nan=True)


def test_kept_patterns_are_those_of_the_pass() -> None:
    model, task = loaded("zoo/hops-4l"), interp.load_task("two-hop", n=6)
    result = HeadPatterns(kept=3).run(model, task)
    assert [*result.kept] == [0, 1, 2]  # the first, as results number prompts
    prompts = [p for shard in model.shards(task) for p in shard]
    for number in result.kept:
        shard = model.tokenize(prompts[number : number + 1])
        site = Site("pattern", 2)
        clean = model.forward(shard, capture=[site]).activations[site][0, 1]
        found = result.pattern(number, 2, 1)
        assert np.abs(found.attention - clean.detach().numpy()).max() <= 0.5 / 255 + 1e-6
        assert found.weighted.sum(-1) == pytest.approx(1, abs=0.03)
        assert len(found.promoted) == 5
    other = next(i for i in range(6) if i not in result.kept)
    with pytest.raises(RunError, match=f"no pattern of prompt {other} was kept; there is"):
        result.pattern(other, 0, 0)


def test_long_prompts_keep_no_pattern() -> None:
    result = HeadPatterns(longest=2).run(loaded("zoo/hops-4l"), interp.load_task("two-hop", n=3))
    assert result.kept == {}


def test_too_few_tokens_to_draw_are_one_line() -> None:
    model, task = loaded("zoo/hops-4l"), interp.load_task("two-hop", n=2)
    with pytest.raises(AnalysisError, match="repeated=10000; the model has"):
        HeadPatterns(repeated=10_000).run(model, task)


def test_an_untrained_model_has_no_induction_head() -> None:
    model = interp.load_model("zoo/names-6l@untrained")
    result = HeadPatterns().run(model, interp.load_task("ioi", n=16))
    (induction,) = [finding for finding in result.findings() if finding.kind == "compares"]
    assert not induction.estimate.excludes()
    assert induction.claim.startswith("No head")


@pytest.mark.real
def test_induction_heads_of_a_real_model_are_what_induction_needs(smollm2: str) -> None:
    model, task = interp.load_model(smollm2), interp.load_task("induction-text", n=16)
    result = HeadPatterns(kept=0).run(model, task)
    scores = (result.repeated - result.unrelated)[:, COPIES.index(BEHIND)].mean(0)
    best = [divmod(i, model.n_heads) for i in np.argsort(-scores, axis=None)[:6]]
    assert scores.max() > 0.8
    generator = np.random.default_rng(0)
    rest = [i for i in range(scores.size) if divmod(i, model.n_heads) not in best]
    others = [divmod(i, model.n_heads) for i in generator.choice(rest, 6, replace=False)]
    assert accuracy(model, task, best) < accuracy(model, task, others) - 0.3


def accuracy(model: Model, task: object, ablated: list[tuple[int, int]]) -> float:
    """Return the share of right answers with some heads' outputs set to zero."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in ablated:
        by_layer.setdefault(int(layer), []).append(int(head))
    plan = [Ablate(Site("z", layer), units=units) for layer, units in by_layer.items()]
    right = []
    for prompts in model.shards(model.fit(task).task):
        shard = model.tokenize(prompts)
        logits = model.forward(shard, plan=plan).logits[range(len(prompts)), shard.last]
        right += (logits.argmax(-1) == shard.answer).tolist()
    return float(np.mean(right))


@cache
def loaded(name: str) -> Model:
    return interp.load_model(name)
