"""Benchmarks: the page says what the results say, and the script for GPUs runs, on a tiny model without one."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import gpu, page


def test_the_page_is_that_of_the_results() -> None:
    before = page.page()
    assert (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8") == before


def test_the_script_for_gpus_runs_on_a_tiny_model(tmp_path: Path) -> None:
    gpu.main(["tiny"], tmp_path, device="cpu", repeats=1)
    found = json.loads((tmp_path / "gpu-tiny.json").read_text())
    assert found["ceilings"]["flops"] > 0
    assert {name.split(",")[0] for name in found["results"]} == {
        "stock forward", "forward with capture", "recording", "skip every layer"
    }  # fmt: skip
    assert all(row["fits"] and row["seconds"] > 0 for row in found["results"].values())


def test_a_length_that_does_not_fit_ends_its_work_and_no_other(monkeypatch) -> None:
    def full(work: object, device: str, repeats: int) -> float:  # noqa: ARG001
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "_median", full)
    ceilings = {"flops": 1.0, "bytes": 1.0}
    found = gpu.measure("tiny", device="cpu", dtype=torch.float32, lengths=(8, 16), ceilings=ceilings, repeats=1)
    assert [row["fits"] for row in found.values()] == [False] * 4


def test_importing_and_helping_load_no_torch() -> None:
    for program in ("import interp", "import interp.cli"):
        done = f"{program}, sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", done], check=True)
