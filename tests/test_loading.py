"""Models load from names, folders and memory; what cannot be trusted is refused in one line."""

import json
import re
import shutil
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer

from interp.errors import ModelError, SiteError
from interp.files.paths import shipped_models
from interp.models import load_model
from interp.models.bridge.building import build_bridge
from interp.models.locating import locate
from interp.models.quantizer import Rounding
from interp.runs.folder import read_run
from interp.sites import Site
from interp.tasks import Task
from tests.families import tiny, tokens


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


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "qwen3"]
)  # of some, transformers makes an empty tokenizer
def test_a_folder_without_a_tokenizer_takes_token_ids(family: str, tmp_path: Path) -> None:
    tiny(family).module.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.tokenizer is None
    assert model.tokenize([[3, 4, 5]]).tokens.tolist() == [[3, 4, 5]]
    with pytest.raises(ModelError, match="has no tokenizer; give token ids, or a tokenizer"):
        model.tokenize("a text")
    with pytest.raises(ModelError, match="has no tokenizer; give token ids, or a tokenizer"):
        model.fit(Task.from_texts(["a text"]))


def test_a_tokenizer_that_is_given_must_be_one(tmp_path: Path) -> None:
    module = tiny("gpt2").module
    module.save_pretrained(tmp_path)
    assert (
        load_model(module, tokenizer=AutoTokenizer.from_pretrained(tmp_path)).tokenizer is None
    )  # an empty one
    with pytest.raises(ModelError, match="tokenizer='gpt2' given; a tokenizer is needed"):
        load_model(module, tokenizer="gpt2")


def test_a_tokenizer_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float16"])
def test_dtypes_are_understood_as_names_and_as_torchs(
    folder: Path, dtype: str | torch.dtype
) -> None:
    assert str(load_model(folder, dtype=dtype).dtype).removeprefix("torch.") == str(
        dtype
    ).removeprefix("torch.")
    with pytest.raises(ModelError, match="unknown dtype 'int8'"):
        load_model(folder, dtype=torch.int8)


def test_a_run_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(Exception, match="schema 99; this version reads up to 2; upgrade"):
        read_run(tmp_path)


def test_importing_and_listing_need_no_torch_and_no_numbers() -> None:
    code = (
        "import sys, interp, interp.cli, interp.runs.folder;"
        " sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'numpy', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bridge_shares_the_weights_and_leaves_the_model_alone() -> None:
    model = tiny("llama")
    before = set(model.module.state_dict())
    pointers = {p.data_ptr() for p in model.bridge.original_model.parameters()}
    assert {p.data_ptr() for p in model.module.parameters()} <= pointers
    assert set(model.module.state_dict()) == before


# What users bring


def halves(folder: Path) -> Path:
    """Save a folder's weights as two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: shard for shard, kept in shards.items() for name in kept},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def with_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_sharded_weights_are_the_same_model(folder: Path) -> None:
    assert load_model(halves(folder)).fingerprint == load_model("zoo/hops-4l").fingerprint


def test_unexpected_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.extra": torch.zeros(3)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ModelError, match=r"has unexpected 1 weights \(first: model.layers.0.extra\)"
    ):
        load_model(folder)


def test_offloaded_layers_replay_and_inner_sites_say_why_not(folder: Path) -> None:
    pytest.importorskip("accelerate")
    places = dict.fromkeys(
        ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], "cpu"
    )
    places |= {f"model.layers.{i}": "disk" if i == 2 else "cpu" for i in range(4)}
    spread, whole = load_model(folder, device_map=places), load_model(folder)
    assert spread.fingerprint == whole.fingerprint
    batch = tokens()
    with torch.no_grad():
        recording = spread.record(batch)
        replayed = recording.logits(recording.chain(range(4), recording.resid(0)))
    assert torch.equal(replayed, whole.logits(batch))
    with pytest.raises(SiteError, match="is spread over devices"):
        spread.forward(batch, capture=[Site("z", 1)])


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = load_model(folder).module
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    given = json.loads((tmp_path / "adapter/adapter_config.json").read_text()) | {
        "base_model_name_or_path": str(folder)
    }
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(given))
    with torch.no_grad():
        expected = adapted(input_ids=tokens().tokens).logits
    merged = load_model(tmp_path / "adapter")
    assert_close(merged.logits(tokens()), expected, rtol=0, atol=1e-4)
    assert type(merged.module).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match="merge_and_unload"):
        load_model(adapted)


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_an_adapter_of_a_shipped_model_has_its_tokenizer_and_a_broken_one_is_a_line(
    tmp_path: Path,
) -> None:
    peft = pytest.importorskip("peft")
    base = load_model("zoo/hops-4l")
    module = deepcopy(base.module)
    peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "zoo/hops-4l"}
    file.write_text(json.dumps(config))
    assert load_model(tmp_path).tokenizer.get_vocab() == base.tokenizer.get_vocab()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="the adapter cannot be merged"):
        load_model(tmp_path)
    file.write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json names no base_model_name_or_path"):
        load_model(tmp_path)


def test_a_transformer_bridge_is_taken_as_it_is() -> None:
    model = tiny("gpt2")
    bridge = build_bridge(model.module)
    taken = load_model(bridge)
    assert taken.bridge is bridge
    assert_close(taken.logits(tokens()), model.logits(tokens()), rtol=0, atol=1e-5)
    weights = {parameter.data_ptr() for parameter in bridge.original_model.parameters()}
    assert {parameter.data_ptr() for parameter in taken.module.parameters()} <= weights
    assert_close(
        taken.forward(tokens(), capture=[Site("z", 1)]).logits,
        model.logits(tokens()),
        rtol=0,
        atol=1e-5,
    )


def test_other_modules_are_refused() -> None:
    with pytest.raises(
        ModelError, match="a Linear given; a name, a transformers model or a TransformerBridge"
    ):
        load_model(torch.nn.Linear(2, 2))


def test_code_of_a_checkpoint_is_run_on_request_only(folder: Path) -> None:
    with_config(
        folder,
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"},
        model_type="own",
    )
    (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelError, match="brings its own code"):
        load_model(folder)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            GatedRepoError,
            (
                "is gated; accept its terms at https://huggingface.co/org/model, then run `hf auth"
                " login`"
            ),
        ),
        (RepositoryNotFoundError, "no model 'org/model' on the hub"),
        (LocalEntryNotFoundError, "is not in the local cache and the hub cannot be asked"),
    ],
)
def test_repositories_that_cannot_be_had_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: type, says: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        cause = error.__new__(error)
        raise OSError("You are trying to access something") from cause

    monkeypatch.setattr("interp.models.classes.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(ModelError, match=re.escape(says)):
        load_model("org/model")


def test_offline_the_hub_is_not_asked() -> None:
    with pytest.raises(
        ModelError, match="is not in the local cache and the hub cannot be asked"
    ) as refused:
        load_model("openai-community/gpt2-of-nobody")
    assert "\n" not in str(refused.value)


def test_a_revision_of_a_folder_is_refused() -> None:
    folder = shipped_models()["zoo/hops-4l"]
    with pytest.raises(ModelError, match=r"revision='main' asked of the folder"):
        load_model(folder, revision="main")


def test_rounded_and_looped_twins_have_the_weights_that_the_analyses_try() -> None:
    model = load_model("zoo/hops-4l")
    name = "model.layers.{}.mlp.up_proj.weight"
    own = [model.module.get_parameter(name.format(layer)) for layer in range(4)]

    def weights(at: str) -> list[torch.Tensor]:
        twin = load_model(f"zoo/hops-4l@{at}")
        assert twin.name == f"zoo/hops-4l@{at}"
        assert twin.fingerprint != model.fingerprint
        gains = [each.module.model.layers[1].input_layernorm.weight for each in (twin, model)]
        assert torch.equal(*gains)
        return [twin.module.get_parameter(name.format(layer)) for layer in range(4)]

    for layer, rounded in enumerate(weights("bits-3:1-2")):
        expected = (
            Rounding(3, 32, "asymmetric").matrix(own[layer]) if layer in (1, 2) else own[layer]
        )
        assert torch.equal(rounded, expected)
    shared, last = weights("loop-2"), weights("loop-2-stepwise")
    assert torch.equal(shared[0], shared[2])
    assert_close(shared[1], (own[1] + own[3]) / 2)
    assert [*map(torch.equal, last, (own[0], own[3], own[0], own[3]))] == [True] * 4
    for at, message in (
        ("bits-0", "0 bits given"),
        ("bits-3:2-4", "layers 2 to 4 given; there is 0 to 3"),
        ("loop-3", "3 shared layers given; that must divide the model's 4"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(f"zoo/hops-4l@{at}")


def test_untrained_twins_have_the_initial_weights_of_the_same_configuration() -> None:
    trained, twin, same, other = (
        load_model(f"zoo/hops-4l{at}") for at in ("", "@untrained", "@untrained-0", "@untrained-1")
    )
    assert (twin.n_layers, twin.d_model, twin.dtype) == (
        trained.n_layers,
        trained.d_model,
        trained.dtype,
    )
    assert twin.name == "zoo/hops-4l@untrained"
    assert twin.fingerprint == same.fingerprint
    assert len({trained.fingerprint, twin.fingerprint, other.fingerprint}) == 3
    weight = next(iter(twin.module.state_dict().values()))
    assert weight.std() == pytest.approx(twin.module.config.initializer_range, rel=0.05)
    with pytest.raises(ModelError, match="no-such"):
        load_model("zoo/no-such@untrained")


@pytest.mark.parametrize("is_set", [False, True])
def test_without_network_the_hub_is_asked_for_its_cache_alone(
    monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    def unknown_host(*_: object) -> list[object]:
        raise socket.gaierror

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_set)
    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    locate("somebody/something")
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [object()])
    locate("somebody/something")
    assert is_set == constants.HF_HUB_OFFLINE  # what the user has set stays
