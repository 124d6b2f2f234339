""" "auto" is decided once: what checkpoints are computed in, said, and kept when a run resumes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import RunError
from interp.files.paths import shipped_models
from interp.files.whole import read_json, write_json
from interp.models import dtypes, load_model
from interp.models.dtypes import AutoDtype, how_computed, kind_of_device
from interp.reports.gather import gather
from interp.runs import Study, execute
from interp.tasks import load_task
from interp.testing.doctor import dtype_sign

HALVES = ("float16", "bfloat16")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    """Let the CPU have, or lack, instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bfloat16})


@pytest.fixture
def halves(tmp_path: Path) -> dict[str, Path]:
    """Return folders of the same model in float16 and in bfloat16."""
    folders = {}
    for dtype in HALVES:
        folders[dtype] = tmp_path / dtype
        shutil.copytree(shipped_models()["zoo/hops-4l"], folders[dtype])
        load_model("zoo/hops-4l", dtype=dtype).module.save_pretrained(folders[dtype])
    return folders


def type_of(folder: Path, **how: Any) -> str:
    return dtypes.name_of(load_model(folder, **how).dtype)


def test_a_cpu_computes_in_what_it_is_fast_in_and_a_gpu_in_the_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_with(monkeypatch, bfloat16=True)
    assert AutoDtype.on("cpu") == AutoDtype(float16="float32", bfloat16="bfloat16")
    cpu_with(monkeypatch, bfloat16=False)
    assert AutoDtype.on("cpu") == AutoDtype(float16="float32", bfloat16="float32")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older torch
    assert AutoDtype.on("cpu") == AutoDtype(float16="float32", bfloat16="float32")
    for kind in ("cuda", "mps"):
        assert [AutoDtype.on(kind).of(dtype) for dtype in HALVES] == [*HALVES]
    assert AutoDtype.on("cpu").of("float64") == "float64"


def test_the_kind_of_a_device_is_where_a_model_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has=has_gpu: has)
        assert kind_of_device() == kind_of_device(device_map="auto") == kind
        assert kind_of_device("cpu") == kind_of_device(device_map="cpu") == "cpu"
        assert kind_of_device("mps") == "mps"
        assert kind_of_device("cuda:1") == kind_of_device(device_map={"": 1}) == "cuda"
        assert kind_of_device(device_map={"a": "cpu", "b": "disk"}) == "cpu"


def test_checkpoints_load_in_what_auto_means_and_an_explicit_type_is_obeyed(
    halves: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with(monkeypatch, bfloat16=True)
    assert {dtype: type_of(folder) for dtype, folder in halves.items()} == {
        "float16": "float32",
        "bfloat16": "bfloat16",
    }
    cpu_with(monkeypatch, bfloat16=False)
    for dtype, folder in halves.items():
        assert type_of(folder) == "float32"
        assert type_of(folder, dtype=dtype) == dtype
        assert type_of(folder, dtype=AutoDtype()) == dtype
        wide = load_model(folder, dtype="float32")
        assert load_model(folder).fingerprint == wide.fingerprint
        assert load_model(folder, dtype=dtype).fingerprint != wide.fingerprint
        assert type_of(f"{folder}@untrained") == "float32"


def test_a_checkpoint_whose_config_names_no_type_has_that_of_its_weights(
    halves: dict[str, Path],
) -> None:
    path = halves["float16"] / "config.json"
    config = json.loads(path.read_text())
    del config["dtype"]
    path.write_text(json.dumps(config))
    model = load_model(halves["float16"])
    assert (model.dtype, model.checkpoint) == (torch.float32, "float16")


def test_the_checkpoints_type_is_said(halves: dict[str, Path]) -> None:
    model = load_model(halves["float16"])
    assert how_computed(model) == "float16 checkpoint, computed in float32 on the CPU"
    assert dtype_sign(model).verdict == "note"
    own = load_model(halves["float16"], dtype="float16")
    assert how_computed(own) == "computed in float16 on the CPU"
    assert dtype_sign(own).verdict == "ok"


# Runs


@pytest.fixture
def task(tmp_path: Path) -> str:
    """Return a file of few prompts."""
    load_task("one-hop", n=8).to_jsonl(tmp_path / "few.jsonl")
    return str(tmp_path / "few.jsonl")


def study(task: str, *models: str, **how: Any) -> Study:
    return Study(models, (task,), {"residual_contribution": {}}, **how)


def test_a_resumed_run_keeps_its_types_whatever_the_machine(
    halves: dict[str, Path], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, name = tmp_path / "run", str(halves["bfloat16"])
    cpu_with(monkeypatch, bfloat16=True)
    execute(study(task, name), out)
    cpu_with(monkeypatch, bfloat16=False)
    shutil.rmtree(out / next(iter(json.loads((out / "run.json").read_text())["cells"])))
    record = execute(study(task, name), out)
    assert record["auto"] == {"float16": "float32", "bfloat16": "bfloat16"}
    assert record["models"][name]["dtype"] == "bfloat16"
    asked = r"holds a run in auto \(bfloat16\); float16 was asked for; choose another --out"
    with pytest.raises(RunError, match=asked):
        execute(study(task, name, dtype="float16"), out)


def test_a_run_says_its_types_and_goes_on_when_asked_for_the_one_it_has(
    halves: dict[str, Path], task: str, tmp_path: Path
) -> None:
    out, name = tmp_path / "run", str(halves["float16"])
    about = execute(study(task, name), out)["models"][name]
    assert (about["checkpoint"], about["dtype"]) == ("float16", "float32")
    assert about["computed"] == "float16 checkpoint, computed in float32 on the CPU"
    provenance = gather(out)["provenance"]
    assert "--dtype float32" in provenance["command"]
    assert provenance["models"][name]["computed"] == about["computed"]
    record = execute(study(task, name, dtype="float32"), out)
    assert record["config"]["dtype"] == "auto"
    assert {cell["status"] for cell in record["cells"].values()} == {"ok"}


def test_a_run_of_an_earlier_version_keeps_the_checkpoints_type(
    halves: dict[str, Path], task: str, tmp_path: Path
) -> None:
    out, name = tmp_path / "run", str(halves["float16"])
    execute(study(task, name, dtype="float16"), out)
    values = read_json(out / "run.json")
    values["config"]["dtype"] = "auto"
    del values["auto"]
    write_json(out / "run.json", values)
    assert execute(study(task, name), out)["models"][name]["dtype"] == "float16"


def test_workers_decide_nothing_also_not_of_a_second_model(
    halves: dict[str, Path], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver asks the CPU once; the target of a depth map and a twin take its answer."""
    asked = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: asked.append(1) or {"bf16": True})
    one, other = str(halves["float16"]), str(halves["bfloat16"])
    maps = {"depth_map": {"target": other, "method": "rsa", "control": "none"}}
    record = execute(Study((one, f"{one}@untrained"), (task,), maps), tmp_path / "run")
    assert asked == [1]
    assert {cell["status"] for cell in record["cells"].values()} == {"ok"}
