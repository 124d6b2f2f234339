"""At 80 layers every finding is still one short sentence, and every figure is drawn."""

from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

import interp
from interp.errors import TaskError
from interp.models import Model
from interp.result import faults_of
from interp.runs import find_analyses, make_analysis
from interp.tasks import Task
from tests.test_features import weights, written

# less of what takes long
FEWER = {
    "activation_patching": {"nodes": ("mlp_out",)},
    "affine_lens": {"control": "none"},
    "back_patching": {"controls": ("random",), "position": "last"},
    "circuit_discovery": {"draws": 1, "fractions": (0.1, 1.0)},
    "depth_map": {"control": "none"},
    "checkpoint_stitch": {"against": "itself", "maps": ("none",), "every": 16},
    "integrated_gradients": {"max_nodes": 9, "every": 8},
    "layer_order": {"every": 16, "control": "none"},
    "layer_removal": {"orders": ("skip loss",), "steps": 2, "text_steps": 1, "n_random": 2},
    "layer_routers": {
        "n_simulations": 3,
        "epochs": 1,
        "penalties": (0.5,),
        "draws": 1,
        "steps": 10,
    },
    "patching_agreement": {"nodes": ("mlp_out",), "methods": ("relevance", "average")},
    "path_search": {"n_simulations": 4},
    "quantization_order": {"orders": ("LIM",), "points": 2, "control": "none"},
    "recursion": {
        "shared": (40,),
        "inits": ("average",),
        "ranks": (2,),
        "grid": 4,
        "control": "none",
        "draws": 2,
    },
    "residual_erasure": {"scopes": ("prefix",), "every": 40},
    "unit_importance": {"most": 8},
    "unit_map": {"most_layers": 1},
}


@cache
def deep(name: str) -> Model:
    """Return an untrained model of 80 layers that reads the tokens of a shipped one."""
    shipped = interp.load_model(name)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=shipped.d_vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=80,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    module = transformers.LlamaForCausalLM(config)
    model = interp.load_model(module, tokenizer=shipped.tokenizer)
    model.load_another = lambda _name: model  # for analyses of two
    return model


@cache
def of_one_length() -> Task:
    """Return four prompts that are one shard (of two, all is done twice), two of either set."""
    task = interp.load_task("two-hop")
    n_words = len(task.prompts[0].text.split())
    alike = [prompt for prompt in task.prompts if len(prompt.text.split()) == n_words]
    of = {name: [p for p in alike if p.tags["set"] == name] for name in ("trained", "unseen")}
    return task.of([*of["trained"][:2], *of["unseen"][:2]])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(find_analyses()))
def test_findings_are_short_at_80_layers(name: str, tmp_path: Path) -> None:
    parameters = FEWER.get(name, {})
    if name == "feature_patching":  # none is shipped for this model
        tensors = weights(d_in=16, d_out=16)
        own = str(written(tmp_path / "a", tensors, d_in=16))
        parameters = {"dictionaries": (own,), "sizes": (1, 3), "top_k": 3}
    analysis = make_analysis(name, parameters)
    task = of_one_length()
    if name == "probe":  # groups have to repeat
        task = interp.load_task("one-hop", n=40)
    if name == "unit_map":  # as many tokens as neurons
        task = interp.load_task("two-hop", n=24)
    if name == "layer_routers":  # three thirds of groups
        task = interp.load_task("two-hop", n=30)
    try:
        result = analysis.run(deep("zoo/hops-4l"), task)
    except TaskError:  # no twins
        result = analysis.run(deep("zoo/names-6l"), interp.load_task("ioi", n=4))
    assert faults_of(result.findings()) == []
    assert result.plot().layout.title.text
