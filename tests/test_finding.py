"""Families of which TransformerLens names no modules, and models of texts and images."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaForCausalLM,
    LlamaModel,
)

from interp.errors import ModelError, SiteError
from interp.interventions import Skip
from interp.models import Model, load_model
from interp.models.bridge import building
from interp.models.classes import class_of
from interp.models.finding import find_paths
from interp.models.weightless import NoNumbers
from interp.sites import Site
from interp.testing import examine
from tests.families import WITH_IMAGES, tiny, tokens, untouched

pytestmark = pytest.mark.filterwarnings("ignore")
WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformer_lens":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import interp
from interp.errors import SiteError
from interp.runs.registry import make_analysis

model = interp.load_model("zoo/hops-4l")
task = interp.load_task("two-hop", n=4)
print(make_analysis("layer_skip", {}).run(model, task).findings()[0].claim)
try:
    model.forward("Ada boss", capture="pattern")
except SiteError as error:
    print(error)
assert "transformer_lens" not in sys.modules
"""


@pytest.mark.slow  # the imports of a second process
def test_without_transformer_lens_blocks_are_analysed_and_inner_sites_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    claim, refusal = run.stdout.splitlines()
    assert claim.startswith("Skipping layer")
    assert refusal.endswith(
        "has no places inside attention and MLP here: TransformerLens is not installed"
    )


def test_a_transformer_lens_that_raises_leaves_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> None:
        raise AttributeError("no component_mapping in this release. And more.")

    named = tiny("gemma2")
    monkeypatch.setattr(building, "_components", raises)
    model = Model("gemma2", named.module)
    assert [vars(block) for block in model.blocks] == [vars(block) for block in named.blocks]
    assert examine(model).failed == ()
    why = r"TransformerLens [\d.]+ cannot name its modules \(no component_mapping in this release\)"
    with pytest.raises(SiteError, match=why):
        model.forward(tokens(), capture=[Site("z", 0)])


def test_a_bridge_that_cannot_be_built_is_a_refusal_of_inner_sites_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises(*_: Any, **__: Any) -> None:
        raise NotImplementedError("moved")

    model = Model("llama", tiny("llama").module)
    monkeypatch.setattr("interp.models.bridge.proving.build_bridge", raises)
    with pytest.raises(SiteError, match="cannot be seen through TransformerLens: moved"):
        model.forward(tokens(), capture=[Site("z", 0)])
    assert model.forward(tokens(), capture=["resid_mid"]).activations


@pytest.mark.parametrize(
    "family", ["bloom", "falcon", "mixtral", "olmo2", "opt", "qwen3_next", "lfm2"]
)
def test_a_pass_shows_what_transformer_lens_names(family: str) -> None:
    module = tiny(family).module
    named, seen = building.module_paths(module), find_paths(module, "")
    for part in ("blocks", "ln_final", "unembed"):
        assert getattr(seen, part) == getattr(named, part), part
    for part in ("attn", "attn_post", "mlp", "mlp_post", "z_reader", "is_parallel"):
        assert getattr(seen.of_block, part) == getattr(named.of_block, part), part


class Looped(LlamaModel):
    """Runs its stack twice, as looped models do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().forward(*args, **kwargs).last_hidden_state
        return super().forward(inputs_embeds=inputs, use_cache=False)


def test_stacks_that_do_not_run_once_on_one_stream_are_refused_with_the_reason() -> None:
    module = LlamaForCausalLM(copy.deepcopy(tiny("llama").module.config))
    module.config.architectures = ["LoopedForCausalLM"]
    module.model.__class__ = Looped
    with pytest.raises(ModelError, match=r"runs its last block 2 times in a pass; only stacks"):
        Model("looped", module)
    several = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 97,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0],
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model("gemma3n_text", **several)
    with pytest.raises(ModelError, match=r"of shape \(2, 1, 2, 32\) from its blocks, not \[batch"):
        Model("gemma3n", AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5 with images"])  # one class, and a choice
def test_a_folder_of_texts_and_images_is_its_language_model_on_texts(
    family: str, tmp_path: Path
) -> None:
    whole = untouched(family)
    whole.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert type(model.module) is type(whole)
    batch = tokens()
    ids = batch.tokens
    with torch.no_grad():
        own = whole(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert torch.equal(model.logits(batch), own)
    recording = model.record(batch)
    for layer in range(model.n_layers):
        assert_close(recording.block(layer, recording.resid(layer)), recording.resid(layer + 1))
    skipped = model.forward(batch, plan=[Skip(1)]).logits
    assert_close(recording.logits(recording.resid(1)), skipped)


def test_without_numbers_nothing_is_found_and_languages_of_texts_and_images_are_planned() -> None:
    configs = [tiny(family).module.config for family in ("helium", "llava")]
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(configs[0])
        both = AutoModelForImageTextToText.from_config(configs[1])
    with pytest.raises(ModelError, match="cannot be taken apart without its weights: Trans"):
        Model("helium", found)
    assert class_of(both.config) is AutoModelForImageTextToText
    with NoNumbers():
        assert building.module_paths(both).blocks == "model.language_model.layers"


def test_no_vision_module_is_a_block() -> None:
    for family in WITH_IMAGES:
        module = untouched(family)
        assert "vision" not in building.module_paths(module).blocks
        assert len(module.get_submodule(building.module_paths(module).blocks)) == 2
