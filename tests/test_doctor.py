"""A healthy checkpoint passes; a broken one is told apart, with its cause."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmarks.harness import random_llama
from interp import cli
from interp.errors import UnknownModelError
from interp.files.paths import shipped_models
from interp.testing.doctor import diagnose
from interp.testing.under_test import ModelUnderTest
from tests.documents import read
from tests.test_loading import halves, with_config
from tests.tokenizers import byte_level

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(shipped_models()["zoo/hops-4l"], copy)
    return copy


def doctor(folder: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["doctor", "--model", str(folder), *more])
    return done.exit_code, done.stdout


def test_a_healthy_checkpoint_passes(folder: Path) -> None:
    status, text = doctor(folder, "--json")
    found = read(text)
    assert status == 0
    assert found["healthy"]
    by_check = {sign["check"]: sign for sign in found["signs"]}
    assert by_check["contract"]["verdict"] == "ok"
    assert "places in layers 0, 2, 3 (the first" in by_check["contract"]["what"]
    assert "351 tokens for 351 rows" in by_check["tokenizer"]["what"]
    assert "a BOS token is put before" in by_check["BOS"]["what"]
    assert {row["analysis"] for row in found["memory"] if row.get("memory_mb", 0) > 0} >= {
        "layer_skip",
        "back_patching",
    }


@pytest.mark.parametrize("name", ["zoo/hops-5l", "./nowhere", "nobody/nothing"])
def test_a_model_that_is_not_there_is_no_finding(name: str) -> None:
    done = CliRunner().invoke(cli.app, ["doctor", "--model", name])
    assert isinstance(done.exception, UnknownModelError)
    assert done.stdout == ""


def break_it(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "missing shard":
            (halves(folder) / "model-00002-of-00002.safetensors").unlink()
        case "wrong vocabulary size":
            with_config(folder, vocab_size=400)
        case "NaN weights":
            tensors = load_file(weights)
            tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
            save_file(tensors, weights, metadata={"format": "pt"})
        case "tokenizer of another model":
            byte_level(["some other text"], vocabulary=300).save_pretrained(folder)
        case "larger tokenizer":
            byte_level(
                [f"other words {i} of an other text" for i in range(999)], vocabulary=600
            ).save_pretrained(folder)
        case "config of another size":
            with_config(folder, hidden_size=64)
        case "config of other layers":
            with_config(folder, num_hidden_layers=6)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated weights", "cannot be loaded"),
        ("missing shard", "model-00002-of-00002.safetensors"),
        ("wrong vocabulary size", "has size (351, 128); config.json makes it (400, 128)"),
        ("NaN weights", "model.layers.1.mlp.down_proj.weight has NaN or infinite weights"),
        ("tokenizer of another model", "another model"),
        ("larger tokenizer", "it belongs to another model"),
        ("config of another size", "config.json makes it"),
        ("config of other layers", "lacks 18 weights (first: model.layers.4"),
    ],
)
def test_a_broken_checkpoint_is_named_with_its_cause(folder: Path, how: str, says: str) -> None:
    break_it(folder, how)
    status, text = doctor(folder)
    lines = text.splitlines()
    assert status == 1
    failed = [line for line in lines if line.startswith("✗")]
    assert len(failed) >= 1
    assert says in failed[0]
    assert lines[-1].endswith("is not to be trusted")


def test_numbers_that_overflow_are_found(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 6e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = diagnose(str(folder), dtype="float16")
    assert not found.is_healthy


def test_the_first_layer_of_every_kind_is_looked_at() -> None:
    model = random_llama(n_layers=9, d_model=64, d_vocab=97)
    assert ModelUnderTest(model).layers == (0, 4, 8)
    model.module.config.layer_types = ["full_attention"] * 2 + ["sliding_attention"] * 7
    assert ModelUnderTest(model).layers == (0, 2, 4, 8)
    model.module.model.layers[6].mlp.act_fn = torch.nn.ReLU()
    assert ModelUnderTest(model).layers == (0, 2, 4, 6, 8)
