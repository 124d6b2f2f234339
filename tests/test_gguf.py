"""GGUF files are models: dequantised, said so, and refused in one line where they cannot be."""

import struct
from pathlib import Path

import gguf
import pytest
import torch
from typer.testing import CliRunner

from interp import cli
from interp.errors import ModelError, UnknownModelError
from interp.files import gguf as files
from interp.files.gguf import read_gguf
from interp.models import Model, load_model
from interp.models.locating import locate
from interp.runs.identity import NumberIdentity
from interp.runs.worker import describe
from interp.testing.doctor import dtype_sign
from tests.packed import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore")


def written(path: Path, **how: object) -> Path:
    write_gguf(path, **how)
    return path


def up(model: Model) -> torch.Tensor:
    return model.module.get_parameter("model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_weights_are_those_of_the_file_dequantised(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "small.gguf", architecture=architecture, kind=kind)
    (stored,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight"]
    model = load_model(path)
    expected = torch.tensor(gguf.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(up(model), expected)
    assert model.module.dtype == torch.float32
    assert not getattr(model.module, "is_quantized", False)
    assert bool(torch.isfinite(model.logits(model.tokenize(['!"#$ %&']))).all())


def test_what_it_is_made_from_is_said(tmp_path: Path) -> None:
    about = "small.gguf, dequantised from Q4_1"
    model = load_model(written(tmp_path / "small.gguf", kind="Q4_1"))
    assert repr(model).endswith(f", {about})")
    described = describe(model)
    assert (described["made from"], described["checkpoint"]) == (about, "Q4_1")
    assert described["computed"] == "computed in float32 on the CPU"
    whole = load_model(written(tmp_path / "whole.gguf", kind="F16"))
    assert (whole.checkpoint, describe(whole).get("made from")) == ("float16", None)
    assert describe(load_model(f"{tmp_path}/small.gguf@untrained")).get("made from") is None


def test_the_same_numbers_are_the_same_model_and_other_bytes_another(tmp_path: Path) -> None:
    path = written(tmp_path / "small.gguf", kind="Q8_0")
    model = load_model(path)
    identity = NumberIdentity.of_model(model)
    other = path.rename(tmp_path / "renamed.gguf")
    assert NumberIdentity.of_model(load_model(other)) == identity
    assert load_model(other, dtype="bfloat16").fingerprint != model.fingerprint
    content = bytearray(other.read_bytes())
    content[-40] ^= 1
    other.write_bytes(content)
    changed = NumberIdentity.of_model(load_model(other))
    assert changed.weights != identity.weights
    assert (changed.tokenizer, changed.generation) == (identity.tokenizer, identity.generation)


def test_the_saved_model_is_the_same_one(tmp_path: Path) -> None:
    model = load_model(written(tmp_path / "small.gguf", kind="Q4_1"))
    model.module.save_pretrained(tmp_path / "saved")
    saved = load_model(tmp_path / "saved")
    assert saved.module.config.made_from == model.module.config.made_from
    assert saved.fingerprint == model.fingerprint


def test_a_folder_holds_one_or_says_which_there_are(tmp_path: Path) -> None:
    one = written(tmp_path / "one.gguf")
    model = load_model(tmp_path)
    assert (model.name, model.fingerprint) == (str(tmp_path), load_model(one).fingerprint)
    written(tmp_path / "two.gguf", seed=1)
    with pytest.raises(ModelError, match=r"2 GGUF files; name one .*: one.gguf, two.gguf$"):
        locate(str(tmp_path))
    two = load_model(tmp_path, gguf_file="two.gguf")
    assert two.name == f"{tmp_path}/two.gguf"
    assert two.fingerprint != model.fingerprint
    assert two.another(str(one)).fingerprint == model.fingerprint
    twin = load_model(f"{tmp_path}@untrained-3", gguf_file="two.gguf")
    assert twin.name == f"{tmp_path}/two.gguf@untrained-3"
    with pytest.raises(ModelError, match=r"gguf_file='two' given; the name of a .gguf file"):
        load_model(tmp_path, gguf_file="two")


def test_a_repository_names_one_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    path, asked = written(snapshot / "x.gguf"), []

    def cached_file(*names: str, **how: object) -> str:
        asked.append((*names, how["revision"]))
        return str(path)

    monkeypatch.setattr("interp.models.loading.cached_file", cached_file)
    model = load_model("owner/name-GGUF", gguf_file="x.gguf", revision="main")
    assert {*asked} == {("owner/name-GGUF", "x.gguf", "main")}
    assert model.name == "owner/name-GGUF/x.gguf" == locate(model.name)
    assert describe(model)["revision"] == "c" * 40
    assert model.tokenizer is not None
    with pytest.raises(ModelError, match="revision='main' asked of the file"):
        load_model(path, revision="main")


def test_offline_a_repository_or_a_misspelt_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(
        UnknownModelError, match=r"'models/lama' is not in the local .* mean models/llama\?$"
    ):
        load_model("models/lama/x.gguf")
    written(tmp_path / "models/llama/small.gguf")
    with pytest.raises(UnknownModelError, match=r"did you mean models/llama/small.gguf\?$"):
        locate("models/llama/smal.gguf")
    with pytest.raises(UnknownModelError, match=r"no file .*/70b.gguf; there is small.gguf$"):
        locate("models/llama/70b.gguf")


def damaged(path: Path, what: str) -> None:
    content = path.read_bytes()
    match what:
        case "cut off":
            path.write_bytes(content[:-100])
        case "cut off in its header":
            path.write_bytes(content[:500])
        case "empty":
            path.write_bytes(b"")
        case "another format":
            path.write_bytes(b"PK" + content)
        case "an old version":
            path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
        case "a new type":
            (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight"]
            start = tensor.field.offset + 8 + len(tensor.name) + 4 + 16
            path.write_bytes(content[:start] + struct.pack("<I", 99) + content[start + 4 :])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut off", r"is cut off: output_norm.weight ends at byte [\d,]+, the file at [\d,]+$"),
        ("cut off in its header", "is no whole GGUF file: its header is cut off"),
        ("empty", "does not begin with GGUF"),
        ("another format", "does not begin with GGUF"),
        ("an old version", "is GGUF version 1; versions 2 and 3 are read"),
        ("a new type", "token_embd.weight has type 99, which the package gguf does not know"),
    ],
)
def test_a_damaged_file_is_one_line(what: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "small.gguf", kind="Q4_1")
    damaged(path, what)
    with pytest.raises(ModelError, match=says) as refused:
        load_model(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("architecture", ["rwkv6", "nobodys"])
def test_an_architecture_without_a_mapping_is_one_line(architecture: str, tmp_path: Path) -> None:
    path = written(tmp_path / "small.gguf", architecture=architecture)
    with pytest.raises(
        ModelError, match=f"no mapping for the GGUF architecture '{architecture}'; give the Hugging"
    ) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)


def test_weights_that_transformers_leaves_out_are_refused(tmp_path: Path) -> None:
    """Llama 3.1's factors of its rotary frequencies, for one: another model without them."""
    path = written(tmp_path / "small.gguf", extra={"rope_freqs.weight": (8,)})
    with pytest.raises(
        ModelError, match=r"19,880 weights .* 19,872 .*leaves some out \(rope_freqs.weight\)"
    ):
        load_model(path)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "small.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"lacks 1 weights \(first: model.layers.1.mlp.up_proj"):
        load_model(path)


def test_a_part_of_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is one of 3 parts of a model; join them"):
        read_gguf(path)


def test_without_the_package_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "small.gguf")
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"is a GGUF file; .*`pip install gguf`"):
        load_model(path)


def test_without_a_tokenizer_it_takes_token_ids(tmp_path: Path) -> None:
    model = load_model(written(tmp_path / "small.gguf", has_tokenizer=False))
    assert model.tokenizer is None
    assert model.logits(model.tokenize([[3, 4, 5]])).shape == (1, 3, 40)


def test_the_doctor_says_what_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "small.gguf", kind="Q8_0")
    sign = dtype_sign(load_model(path))
    assert (sign.verdict, sign.what) == (
        "note",
        "small.gguf, dequantised from Q8_0: computed in float32 on the CPU",
    )
    path.write_bytes(path.read_bytes()[:-100])
    done = CliRunner().invoke(cli.app, ["doctor", "--model", str(path)])
    assert done.exit_code == 1
    assert "is cut off" in " ".join(done.output.split())
