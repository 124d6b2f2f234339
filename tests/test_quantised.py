"""Weights computed with as they are stored, quantised: what runs, and what is refused."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from interp.analysis import refuse_weights
from interp.backward import GRADIENT
from interp.errors import AnalysisError, ModelError, SiteError, UnsuitedError
from interp.models import Model, load_model, temporary_weights
from interp.models.quantised import quantised
from interp.models.untrained import untrained
from interp.runs.registry import find_analyses, make_analysis
from interp.testing import examine
from interp.testing.doctor import _memory, _quantised, dtype_sign
from tests.families import ALL, tiny, tokens, untouched
from tests.test_families import speaking, task

pytestmark = pytest.mark.filterwarnings("ignore")


class Rounded(nn.Module):
    """A linear map whose weights are bytes: as layers of packages look from outside."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.out_features = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


def by_hand(family: str = "llama") -> Model:
    """Return a model all of whose linear maps are bytes, the unembedding too."""
    module = untouched(family)
    for name, inside in [*module.named_modules()]:
        if isinstance(inside, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, Rounded(inside))
    return Model("by-hand", module, speaking("llama").tokenizer)


def checked(model: Model) -> None:
    """Check that blocks are read and replayed, and that what is refused is refused in one line."""
    how = quantised(model.module)
    assert how
    examination = examine(model)
    assert [f"{f.check} ({f.aspect}): {f.why}" for f in examination.failed] == []
    for name in ("logits", "sum", "replay", "skip", "tail", "padding", "generation"):
        assert examination.status(name, "pass").status == "ok", name
    assert examination.status("gradients", "pass").why.endswith("unquantised for that")
    recording = model.record(tokens())
    for layer in range(model.n_layers):
        again = recording.block(layer, recording.resid(layer))
        assert torch.equal(again, recording.resid(layer + 1))
    with pytest.raises(SiteError, match=r"is quantised \(.*\): gradients cannot"):
        model.forward(tokens(), backward=GRADIENT)
    with pytest.raises(SiteError, match="the numbers of its weights cannot be had"):
        model.W_OV(0, 0)
    name = next(name for name, _ in model.module.named_parameters() if "layernorm" in name)
    weights = {name: torch.ones_like(model.module.get_parameter(name))}
    with (
        pytest.raises(ModelError, match="cannot be replaced: the model is quantised"),
        temporary_weights(model, weights),
    ):
        pass
    assert untrained(model, seed=0) is None
    assert model.fingerprint == model.fingerprint


def test_bytes_by_hand_are_read_and_replayed_and_the_rest_is_refused() -> None:
    model = by_hand()
    assert quantised(model.module) == "int8 matrices of Rounded"
    assert model.d_vocab == 97
    checked(model)
    before = model.fingerprint
    model.module.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert model.fingerprint != before


@pytest.mark.parametrize("name", ["layer_skip", "residual_contribution"])
def test_block_analyses_measure_what_the_same_numbers_unquantised_give(name: str) -> None:
    model, plain = by_hand(), untouched("llama")
    for path, inside in model.module.named_modules():
        if isinstance(inside, Rounded):
            plain.get_submodule(path).weight.data = inside.weight.float() * inside.scale
    same = Model("plain", plain, model.tokenizer)
    frames = [make_analysis(name, {}).run(each, task()).to_frame() for each in (model, same)]
    ours, theirs = (torch.from_numpy(f.select_dtypes("float").to_numpy()) for f in frames)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_analyses_that_ask_more_of_weights_are_refused_before_any_work() -> None:
    model = by_hand()
    refused = {name for name, kind in find_analyses().items() if kind.asks_of_weights}
    assert refused >= {"integrated_gradients", "quantization_order", "recursion", "unit_importance"}
    for name in refused:
        model.work.block_tokens = 0
        with pytest.raises(
            UnsuitedError, match=rf"{name} needs .*, and by-hand is quantised \(int8"
        ):
            make_analysis(name, {}).run(model, task())
        assert model.work.block_tokens == 0
        refuse_weights(make_analysis(name, {}), tiny("llama"))
    with pytest.raises(AnalysisError, match="gates are trained by gradients"):
        make_analysis("layer_routers", {}).run(model, task())


def test_the_doctor_says_how_weights_are_quantised_and_what_is_refused() -> None:
    model = by_hand()
    sign = dtype_sign(model)
    assert (sign.verdict, sign.what) == (
        "note",
        "quantised (int8 matrices of Rounded), computed in float32 on the CPU",
    )
    (signs,) = _quantised(model)
    assert "gradients (" in signs.what
    assert "integrated_gradients" in signs.what
    why_not = {row["analysis"]: row.get("why_not") for row in _memory(model)}
    assert "is quantised" in why_not["integrated_gradients"]
    assert why_not["block_influence"] is None
    assert [*_quantised(tiny("llama"))] == []


PACKAGES: dict[str, tuple[str, Any]] = {
    "bitsandbytes, 8 bits": (
        "bitsandbytes",
        lambda: transformers.BitsAndBytesConfig(load_in_8bit=True),
    ),
    "bitsandbytes, 4 bits": (
        "bitsandbytes",
        lambda: transformers.BitsAndBytesConfig(load_in_4bit=True),
    ),
    "torchao": ("torchao", lambda: _torchao()),
    "quanto, int8": ("optimum.quanto", lambda: transformers.QuantoConfig(weights="int8")),
}


def _torchao() -> Any:
    return transformers.TorchAoConfig(import_module("torchao.quantization").Int8WeightOnlyConfig())


@pytest.mark.slow
@pytest.mark.parametrize("how", PACKAGES)
def test_checkpoints_of_packages_are_read_where_they_are_installed(
    how: str, tmp_path: Path
) -> None:
    package, config = PACKAGES[how]
    pytest.importorskip(package, reason=f"{package} is not installed")
    untouched("llama").save_pretrained(tmp_path / "plain")
    module = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config(), device_map="cpu"
    )
    model = Model(how, module)
    if package != "optimum.quanto":  # which transformers does not save
        module.save_pretrained(tmp_path / "quantised")
        model = load_model(tmp_path / "quantised")
        assert torch.equal(model.logits(tokens()), Model(how, module).logits(tokens()))
        assert load_model(tmp_path / "quantised").fingerprint == model.fingerprint
    assert quantised(model.module) == how
    checked(model)
    model = Model(how, model.module, speaking("llama").tokenizer)
    for name in ("layer_skip", "residual_contribution"):
        assert make_analysis(name, {}).run(model, task()).findings()[0].estimate is not None


def rewritten(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Make a saved model a quantised checkpoint: of these tensors, and a `quantization_config`."""
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"quantization_config": config}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def fours(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return the numbers of MXFP4 blocks [... block 16] of two fours a byte, the low one first."""
    sizes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    both = torch.stack([blocks & 15, blocks >> 4], dim=-1).long().flatten(-2)
    values = torch.where(both > 7, -1.0, 1.0) * sizes[both & 7]
    return (values * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2)


def test_a_checkpoint_that_is_dequantised_is_an_ordinary_model_and_says_so(tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt_oss", **{**ALL["gpt_oss"][1], "intermediate_size": 32})
    )
    module.save_pretrained(tmp_path)
    random, tensors = torch.Generator().manual_seed(0), load_file(tmp_path / "model.safetensors")
    expected: dict[str, Tensor] = {}
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, read, written = tensors.pop(name).shape
        shape = (experts, written, read // 32)
        blocks = torch.randint(256, (*shape, 16), generator=random, dtype=torch.uint8)
        scales = torch.randint(120, 125, shape, generator=random, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = fours(blocks, scales).transpose(1, 2)
    model = load_model(rewritten(tmp_path, {"quant_method": "mxfp4"}, tensors))
    assert quantised(model.module) == ""
    assert model.module.config.made_from == f"{tmp_path.name}, dequantised from mxfp4"
    assert "dequantised from mxfp4" in dtype_sign(model).what
    for name, weight in expected.items():
        assert torch.equal(model.module.get_parameter(name).float(), weight)
    recording = model.record(tokens())
    for layer in range(model.n_layers):
        again = recording.block(layer, recording.resid(layer))
        assert torch.equal(again, recording.resid(layer + 1))
