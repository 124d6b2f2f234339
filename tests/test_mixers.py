"""Blocks that mix positions by something else than attention: what runs, and what is refused."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig

from interp.analysis import usable_shards
from interp.errors import InterpError, SiteError, UnsuitedError
from interp.interventions import Ablate
from interp.models import Model
from interp.models.mixers import mixers_of
from interp.runs.registry import find_analyses, make_analysis
from interp.sites import Site
from interp.testing.doctor import _memory, _mixers
from interp.testing.under_test import batch_of
from tests.families import OTHER_BLOCKS, tiny, tokens
from tests.test_families import speaking, task

pytestmark = pytest.mark.filterwarnings("ignore")
AT_BLOCK_LEVEL: dict[str, dict[str, object]] = {
    "residual_contribution": {},
    "layer_skip": {"scopes": "all"},
    "logit_lens": {},
    "block_influence": {},
    "parallel_window": {},
    "layer_order": {"operations": ("swap", "reverse")},
    "void_detection": {},
}


@pytest.mark.parametrize("family", ["qwen3_5", "nemotron_h"])  # with named parts, and without
@pytest.mark.parametrize("name", AT_BLOCK_LEVEL)
def test_analyses_of_whole_blocks_keep_their_contract(family: str, name: str) -> None:
    result = make_analysis(name, AT_BLOCK_LEVEL[name]).run(speaking(family), task())
    numbers = result.to_frame().select_dtypes("float").to_numpy()
    assert torch.isfinite(torch.from_numpy(numbers)).any()
    assert result.findings()[0].estimate is not None
    assert result.plot().data
    if "layer" in (frame := result.to_frame()):
        at = frame[frame["layer"] == 1]
        assert {*at["mixer"]} == {"attention"}
        assert "shaded" in result.plot().layout.title.text


def test_a_chain_of_other_blocks_is_the_pass_without_the_layers_left_out() -> None:
    for family in OTHER_BLOCKS:
        model = tiny(family)
        recording = model.record(tokens())
        whole = recording.logits(recording.chain(range(model.n_layers), recording.resid(0)))
        assert_close(whole, model.logits(tokens()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_5", "mamba", "mamba2"])
def test_texts_generated_in_a_padded_batch_are_those_of_single_prompts(family: str) -> None:
    model, ids = tiny(family), tokens(batch=2, n_pos=8).tokens
    mask = torch.arange(8) < torch.tensor([[8], [5]])
    together = model.generate(batch_of(torch.where(mask, ids, 0), mask), max_new_tokens=3)
    for row, length in enumerate((8, 5)):
        alone = model.generate(batch_of(ids[row : row + 1, :length]), max_new_tokens=3)
        n = int(alone.mask[0, length:].sum())
        assert_close(together.logits[row, :n], alone.logits[0, :n], rtol=1e-4, atol=1e-4)


def test_what_needs_keys_is_refused_by_layer_and_attention_layers_keep_theirs() -> None:
    model = tiny("qwen3_5")
    recording = model.record(tokens())
    assert recording.kv(1)[0].shape[1] == model.n_kv_heads == 2
    hidden = torch.zeros(3, 12, 12, dtype=torch.bool)
    for asked in (
        lambda: recording.kv(0),
        lambda: recording.tail(1, recording.resid(1)[:, 4:], start=4),
        lambda: recording.block(0, recording.resid(0), hidden=hidden),
    ):
        with pytest.raises(SiteError, match="layer 0 keeps no keys and values"):
            asked()
    with pytest.raises(SiteError, match=r"hook_pattern does not exist: .* is recurrent"):
        model.forward(tokens(), capture=[Site("pattern", 0)])
    site = Site("attn_out", 0)  # what its mixer writes
    without = model.forward(tokens(), plan=[Ablate(site)], capture=[site]).activations[site]
    assert bool((without == 0).all())


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "jamba"])
def test_what_a_recurrent_layer_writes_is_seen_beside_an_inner_site(family: str) -> None:
    model = tiny(family)
    layer = 1 - model.mixers.index("attention")
    sites, inner = [Site("resid_mid", layer), Site("attn_out", layer)], Site("z", 1 - layer)
    beside = model.forward(tokens(), capture=[*sites, inner]).activations
    for site, clean in model.forward(tokens(), capture=sites).activations.items():
        assert_close(beside[site], clean, rtol=1e-4, atol=1e-5)
    plan = [Ablate(sites[1])]
    edited = model.forward(tokens(), plan=plan, capture=[inner]).logits
    assert_close(edited, model.forward(tokens(), plan=plan).logits, rtol=1e-4, atol=1e-5)


def test_a_block_run_as_a_whole_names_no_parts_and_says_why() -> None:
    recording = tiny("nemotron_h").record(tokens())
    for kind in ("attn_out", "mlp_out", "resid_mid"):
        with pytest.raises(SiteError, match="a block of norm, mixer is not one mixer"):
            recording.clean(Site(kind, 0))
    with pytest.raises(SiteError, match="a block of norm, mixer is not one mixer"):
        recording.mlp(0, recording.resid(0))


def test_kinds_of_layers_are_read_from_the_configuration() -> None:
    kinds = ["linear_attention", "full_attention", "conv", "hybrid", "mlp", "sliding_attention"]
    config = AutoConfig.for_model("qwen3", num_hidden_layers=6)
    config.layer_types = kinds
    attention, none = "attention", "none"
    expected = ("recurrent", attention, "convolution", "attention and recurrent", none, attention)
    assert mixers_of(config, n_layers=6) == expected
    config.layer_types = kinds[:2]
    assert mixers_of(config, n_layers=6) == (attention,) * 6
    config.layer_types = ["of later years"] * 6
    assert mixers_of(config, n_layers=6) == ("other",) * 6


def test_the_doctor_says_what_can_be_asked_of_a_hybrid() -> None:
    model = speaking("nemotron_h")
    signs = {sign.check: sign.what for sign in _mixers(model)}
    assert signs["mixers"].startswith("recurrent in 1 layer, attention in 1 layer, none in 1 layer")
    assert signs["blocks"].startswith("NemotronHBlock runs as a whole: ")
    why_not = {row["analysis"]: row.get("why_not") for row in _memory(model)}
    assert "keeps no keys and values" in why_not["void_skip"]
    assert why_not["block_influence"] is None
    assert [*_mixers(tiny("llama"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5", "nemotron_h"])
def test_every_analysis_is_refused_before_any_work_or_measures(family: str) -> None:
    model = speaking(family)
    for name in find_analyses():
        _is_refused_or_measures(name, model)


def _is_refused_or_measures(name: str, model: Model) -> None:
    analysis = make_analysis(name, {})
    model.work.block_tokens = 0
    shards = [model.tokenize(shard) for shard in model.shards(task())]
    try:
        shard = next(iter(usable_shards(analysis, model, shards).batches.values()))
    except InterpError:
        assert model.work.block_tokens == 0, name
        return
    prepared = analysis.prepare(model, task())
    assert analysis.measure(model.record(shard), shard, prepared), name


def test_analyses_of_later_positions_are_refused_with_what_can_be_asked() -> None:
    for name, setting in (("layer_skip", "set layer_skip.scopes to all"), ("back_patching", "")):
        with pytest.raises(UnsuitedError, match=f"keeps no keys and values.*{setting}"):
            make_analysis(name, {}).run(speaking("qwen3_5"), task())


def test_batch_size_changes_nothing_where_layers_are_recurrent() -> None:
    model, batch = tiny("qwen3_5"), tokens()
    together = model.record(batch)
    for row in range(3):
        alone = model.record(batch.only([row]))
        for layer in (1, 2):
            assert_close(alone.resid(layer)[0], together.resid(layer)[row], rtol=1e-5, atol=1e-6)
