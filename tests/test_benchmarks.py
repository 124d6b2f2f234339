"""The benchmarks' page says what the results say; the script for GPUs runs without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, harness, page, real_model
from interp.models import Model


def test_the_page_is_that_of_the_results() -> None:
    assert (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(
        encoding="utf-8"
    ) == page.page()


def test_the_table_in_front_has_all_of_its_rows() -> None:
    front = page.page().split("## In short")[1].split("## Goals")[0]
    assert front.count("\n| [") == 10


def test_a_ratio_has_no_unit_whatever_else_its_row_has() -> None:
    assert page._measured({"ratio": 1.5, "seconds": 3.0, "mb": 7}) == "1.5"
    assert page._measured({"seconds": 3.0}) == "3 s"
    assert page._measured({"mb": 4000}) == "4,000 MB"


def test_a_goal_that_is_missed_is_said_first(tmp_path: Path, monkeypatch) -> None:
    rows = {
        "kept": {"ratio": 0.5, "goal": 0.6},
        "missed": {"ratio": 0.7, "lowest": 0.6, "highest": 0.9, "bound": 0.4, "goal": 0.6},
    }
    known = {
        "about": "Some work.",
        "date": "2026-01-01",
        "machine": "made",
        "versions": {"torch": "2"},
        "results": rows,
    }
    (tmp_path / "some_work.json").write_text(json.dumps(known))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    goals, section = page.page().split("## Some work")
    assert "1 of 2 goals are met" in goals
    assert "| [Some work](#some-work) | missed | 0.7 (0.6–0.9) | 0.4 | 0.6 |" in goals
    assert "kept" not in goals.split("met.")[1]
    assert "| kept | 0.5 |" in section


@pytest.mark.slow
@pytest.mark.parametrize("work", [work for work in real_model.WORKS if work != "report"])
def test_parts_of_loops_on_a_real_model_are_compared_with_ours(work: str, monkeypatch) -> None:
    def loaded(_name: str, dtype: str) -> Model:  # noqa: ARG001
        return harness.random_llama(n_layers=4, d_model=64, d_vocab=97)

    monkeypatch.setattr(real_model.interp, "load_model", loaded)
    monkeypatch.setattr(real_model, "_repeats", lambda _batch: 1)
    rows = real_model.run(f"{work}/16")
    assert rows
    assert all(name.endswith(", T = 16") and row["ratio"] > 0 for name, row in rows.items())


@pytest.mark.parametrize("model", ["tiny", pytest.param("tiny-hybrid", marks=pytest.mark.slow)])
def test_the_script_for_gpus_runs_on_a_tiny_model(model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_MOST_VARIANTS", 8)
    gpu.main([model], tmp_path, device="cpu", repeats=1)
    found = json.loads((tmp_path / f"gpu-{model}.json").read_text())
    assert found["ceilings"]["flops"] > 0
    timed = {name: row for name, row in found["results"].items() if "seconds" in row}
    assert {name.split(",")[0] for name in timed} == {
        "stock forward",
        "forward with capture",
        "recording",
        "skip every layer",
        "skip every layer from disk",
    }
    assert timed["skip every layer from disk, T = 16"]["read_by_two"] <= 1
    assert all(row["fits"] and row["seconds"] > 0 for row in timed.values())
    assert found["results"]["variants of one prompt that a block takes at once, T = 16"] == {
        "value": 8
    }


def test_results_of_a_gpu_have_their_place_on_the_page(tmp_path: Path, monkeypatch) -> None:
    fits = {
        "seconds": 0.1,
        "forwards": [1.0],
        "fits": True,
        "share_of_matmul": 0.25,
        "share_of_bandwidth": 0.5,
        "peak_mb": 2048,
    }
    rows = {"stock forward, T = 8": fits, "stock forward, T = 16": {"fits": False}}
    known = {
        "about": "A GPU.",
        "date": "2026-01-01",
        "machine": "made",
        "versions": {},
        "results": rows,
    }
    (tmp_path / "gpu-tiny.json").write_text(json.dumps(known))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert "| stock forward, T = 8 | 0.1 s | 1 | 0.25 | 0.5 | 2,048 MB |" in page.page()
    assert "| stock forward, T = 16 | does not fit |" in page.page()


def test_a_length_that_does_not_fit_ends_its_work_and_no_other(monkeypatch) -> None:
    def full(work: object, device: str, repeats: int) -> float:  # noqa: ARG001
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "_median", full)
    ceilings = {"flops": 1.0, "bytes": 1.0}
    monkeypatch.setattr(gpu, "_MOST_VARIANTS", 2)
    found = gpu.measure(
        "tiny", device="cpu", dtype=torch.float32, lengths=(8, 16), ceilings=ceilings, repeats=1
    )
    by_memory = [row["fits"] for work, row in found.items() if "fits" in row and "disk" not in work]
    assert by_memory == [False] * 4
    assert found["skip every layer from disk, T = 8"]["fits"]


def test_importing_and_helping_load_no_torch() -> None:
    for program in ("import interp", "import interp.cli"):
        done = f"{program}, sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", done], check=True)
