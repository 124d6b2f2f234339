"""Models load from names, folders and memory; what cannot be trusted is refused in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import ModelError
from interp.folder import read_run
from interp.models import load_model
from interp.paths import shipped_models
from tests.families import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(shipped_models()["zoo/hops-4l"], copy)
    return copy


def test_a_folder_is_the_same_model_as_the_shipped_one(folder: Path) -> None:
    local, shipped = load_model(folder), load_model("zoo/hops-4l")
    assert local.fingerprint == shipped.fingerprint
    assert local.dtype == torch.float32
    assert (local.n_layers, local.n_heads, local.d_model, local.d_vocab) == (4, 4, 128, 351)


def test_a_module_in_memory_is_taken_as_it_is() -> None:
    module = tiny("gpt2").module
    model = load_model(module)
    assert model.module is module
    with pytest.raises(ModelError, match="has no tokenizer"):
        model.tokenize("hello")


def test_dtype_is_honoured(folder: Path) -> None:
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="did you mean 'bfloat16'"):
        load_model(folder, dtype="bfloat")


def damage(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    match what:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "no tokenizer":
            for path in folder.glob("tokenizer*"):
                path.unlink()
        case "nan":
            tensors = load_file(weights)
            tensors["model.norm.weight"][3] = float("nan")
            save_file(tensors, weights, metadata={"format": "pt"})
        case "missing":
            tensors = load_file(weights)
            del tensors["model.layers.2.mlp.up_proj.weight"]
            save_file(tensors, weights, metadata={"format": "pt"})
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no config", "has no config.json"),
        ("no weights", "has no weights; there is README.md, config.json"),
        ("no tokenizer", "has no tokenizer"),
        ("nan", "model.norm.weight has NaN"),
        ("missing", "lacks 1 weights"),
        ("truncated", "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, what: str, says: str) -> None:
    damage(folder, what)
    with pytest.raises(ModelError, match=says) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)


def test_a_run_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(Exception, match="schema 99; this version reads up to 1; upgrade"):
        read_run(tmp_path)


def test_importing_and_listing_need_no_torch() -> None:
    code = "import sys, interp, interp.cli, interp.folder; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bridge_shares_the_weights_and_leaves_the_model_alone() -> None:
    model = tiny("llama")
    before = set(model.module.state_dict())
    pointers = {p.data_ptr() for p in model.bridge.original_model.parameters()}
    assert {p.data_ptr() for p in model.module.parameters()} <= pointers
    assert set(model.module.state_dict()) == before
