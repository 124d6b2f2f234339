"""Several workers give the numbers of one, bit for bit; what dies is done again, what is damaged is
made again.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import interp
from interp.analyses.layer_skip import LayerSkip
from interp.errors import AnalysisError, RunError
from interp.runs import Study, execute
from interp.runs.cluster import visible_gpus
from interp.runs.executors import run_jobs
from interp.runs.folder import Cell
from interp.runs.parts import read_part
from interp.runs.plan import Failure, Job, PlannedCell, Spent
from interp.runs.registry import find_analyses
from interp.runs.worker import Worker
from interp.tasks import Task, load_task

ANALYSES: dict[str, dict[str, Any]] = {"layer_skip": {}, "back_patching": {"n_donors": 4}}
STUDY = Study(("zoo/hops-4l",), ("two-hop",), ANALYSES, n=24)
CELL = Cell("zoo/hops-4l", "two-hop", "layer_skip")


def tensors(out: Path) -> dict[str, dict[str, Tensor]]:
    return {
        str(path.relative_to(out)): load_file(path)
        for path in sorted(out.glob("*/*/*/parts/*.safetensors"))
    }


def assert_same(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for path, found in first.items():
        for name, tensor in found.items():
            assert (tensor.nan_to_num(9) == second[path][name].nan_to_num(9)).all(), (path, name)
    for path in one.glob("*/*/*/frame.parquet"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run = execute(STUDY, out)
    assert {cell["status"] for cell in run["cells"].values()} == {"ok"}
    return out


def test_two_workers_give_the_numbers_of_one_bit_for_bit(alone: Path, tmp_path: Path) -> None:
    run = execute(STUDY, tmp_path / "run", workers=2)
    assert {cell["status"] for cell in run["cells"].values()} == {"ok"}
    assert all(cell["seconds"] > 0 and cell["peak_memory_mb"] > 0 for cell in run["cells"].values())
    assert_same(alone, tmp_path / "run")


def test_what_is_prepared_is_kept(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    for part in list((tmp_path / "run").glob("*/*/*/parts/*.safetensors"))[::2]:
        part.unlink()
    monkeypatch.setattr(
        "interp.analyses.back_patching.BackPatching.prepare", None
    )  # would raise if it were called
    run = execute(STUDY, tmp_path / "run")
    assert {cell["status"] for cell in run["cells"].values()} == {"ok"}
    assert_same(alone, tmp_path / "run")


def test_parameters_of_another_set_are_never_mixed_up(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    other = Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {"part": "mlp"}}, n=24)
    execute(other, tmp_path / "run")
    execute(other, tmp_path / "fresh")
    name = f"{CELL.path}/parts/00000.safetensors"
    mixed, fresh, before = (
        tensors(folder)[name] for folder in (tmp_path / "run", tmp_path / "fresh", alone)
    )
    assert all((mixed[key] == fresh[key]).all() for key in fresh)
    assert any((mixed[key] != before[key]).any() for key in fresh)


def test_one_analysis_can_be_there_with_several_parameters(tmp_path: Path) -> None:
    sets = {"layer_skip": {}, "layer_skip@mlp": {"part": "mlp"}}
    execute(Study(("zoo/hops-4l",), ("two-hop",), sets, n=8), tmp_path / "run")
    run = interp.open_run(tmp_path / "run")
    plain, mlp = (run["zoo/hops-4l", "two-hop", name] for name in sets)
    assert mlp.analysis.part == "mlp"
    assert plain.summary() != mlp.summary()
    with pytest.raises(AnalysisError, match="did you mean 'layer_skip'"):
        Study(("zoo/hops-4l",), ("two-hop",), {"layer_skp@mlp": {}}).check()
    with pytest.raises(RunError, match="a model is named twice"):
        Study(("zoo/hops-4l", "zoo/hops-4l"), ("two-hop",), {"layer_skip": {}}).check()


def test_names_are_looked_up_before_the_run_and_not_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, loaded = [], []

    def find() -> dict[str, Any]:
        looked_up.append(1)
        return find_analyses()

    def load(name: str, **how: Any) -> Task:
        loaded.append(name)
        return load_task(name, **how)

    monkeypatch.setattr("interp.runs.registry.find_analyses", find)
    monkeypatch.setattr("interp.runs.study.load_task", load)
    tasks = ("two-hop", "two-hop-facts")
    study = Study(("zoo/hops-4l",), tasks, {"residual_contribution": {}}, n=24, only_fitting=True)
    execute(study, tmp_path / "run")
    assert len(tensors(tmp_path / "run")) > 2
    assert len(looked_up) == 1 + len(tasks)  # of the check, and of the cells of every task
    assert sorted(loaded) == sorted([*tasks, *tasks])  # by the check, and by the worker


# Damage


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("parts/00001.safetensors", "a flipped bit"),
        ("parts/00001.safetensors", "truncated"),
        ("frame.parquet", "a flipped bit"),
        ("figure.json", "truncated"),
        ("result.json", "a flipped bit"),
    ],
)
def test_a_damaged_file_is_made_again(alone: Path, tmp_path: Path, name: str, how: str) -> None:
    shutil.copytree(alone, tmp_path / "run")
    path = tmp_path / "run" / CELL.path / name
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[-40] ^= 1
    path.write_bytes(content)
    if "parts" in name:
        with pytest.raises(RunError, match=r"00001.safetensors is damaged"):
            interp.open_run(tmp_path / "run")["zoo/hops-4l", "two-hop", "layer_skip"]
        (
            tmp_path / "run" / CELL.path / "result.json"
        ).unlink()  # what is finished is not read again
    execute(STUDY, tmp_path / "run")
    assert_same(alone, tmp_path / "run")
    written = (tmp_path / "run" / CELL.path / "figure.json").read_bytes()
    assert written == (alone / CELL.path / "figure.json").read_bytes()


def test_a_damaged_run_json_is_named_and_what_is_finished_is_kept(
    alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path / "run")
    path = tmp_path / "run/run.json"
    path.write_text(path.read_text().replace('"n": 24', '"n": 25'))
    with pytest.raises(RunError, match=r"run.json is damaged.*delete it"):
        execute(STUDY, tmp_path / "run")
    path.unlink()
    run = execute(STUDY, tmp_path / "run")
    assert all(cell["seconds"] < 1 for cell in run["cells"].values())
    assert_same(alone, tmp_path / "run")


def test_a_part_of_another_key_is_not_read(alone: Path, tmp_path: Path) -> None:
    shutil.copy(next(alone.glob("*/*/*/parts/*.safetensors")), tmp_path / "part.safetensors")
    assert read_part(tmp_path / "part.safetensors", "another") is None
    assert not (tmp_path / "part.safetensors").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from interp.runs.session import alone_in
with alone_in(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another process is at work in"):
        execute(STUDY, tmp_path)
    other.kill()
    other.communicate()
    assert execute(Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {}}, n=4), tmp_path)[
        "cells"
    ]


# Workers that die, dawdle or are told to stop


class Fake:
    """An executor whose worker dies so many times, or takes so many seconds, over some shards."""

    def __init__(
        self, *, deaths: dict[int, int] | None = None, seconds: dict[int, float] | None = None
    ) -> None:
        self.deaths, self.seconds, self.replaced, self.did = deaths or {}, seconds or {}, 0, []

    def submit(self, _call: str, job: Job) -> "Future[Any]":
        future: Future[Any] = Future()
        shard = job.shard or 0

        def work() -> None:
            time.sleep(self.seconds.get(shard, 0.01))
            if self.deaths.get(shard, 0) > 0:
                self.deaths[shard] -= 1
                future.set_exception(BrokenProcessPool("died"))
                return
            self.did.append(shard)
            future.set_result({planned.cell: Spent(1.0) for planned in job.cells})

        threading.Thread(target=work, daemon=True).start()
        return future

    def replace(self) -> None:
        self.replaced += 1

    def close(self) -> None: ...


JOBS = [Job("m", "t", (PlannedCell(CELL, LayerSkip()),), i) for i in range(8)]


def test_a_job_whose_worker_dies_is_done_again_and_given_up_after_three() -> None:
    executor = Fake(deaths={2: 2, 5: 9})
    found = {
        job.shard: outcome[CELL]
        for job, outcome in run_jobs([executor], JOBS, is_stopping=lambda: False)
    }
    assert sorted(found) == list(range(8))
    assert isinstance(found[2], Spent)
    assert isinstance(found[5], Failure)
    assert "a worker died 3 times over it" in found[5].error
    assert executor.replaced == 5


def test_a_job_that_takes_too_long_is_done_by_another_worker_too() -> None:
    slow, quick = Fake(seconds=dict.fromkeys(range(8), 60.0)), Fake()
    began = time.monotonic()
    found = [job.shard for job, _ in run_jobs([slow, quick], JOBS, is_stopping=lambda: False)]
    assert sorted(found) == list(range(8))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("allowed", "there_is", "names"),
    [
        (None, 2, ["0", "1"]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-ab, GPU-cd", 2, ["GPU-ab", "GPU-cd"]),
        ("5", 1, ["5"]),
        ("", 0, []),
    ],
)
def test_workers_share_the_gpus_that_this_process_may_use(
    allowed: str | None, there_is: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there_is)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == names


def test_after_a_stop_nothing_new_is_begun() -> None:
    executor, found = Fake(), []
    for job, _ in run_jobs([executor], JOBS, is_stopping=lambda: len(found) >= 3):
        found.append(job.shard)
    assert found == [0, 1, 2]


def test_an_interrupted_run_finishes_its_shards_and_resumes(alone: Path, tmp_path: Path) -> None:
    original, began = Worker._measure, threading.Event()

    def slowly(self: Worker, *args: Any) -> Any:
        if not began.is_set():
            began.set()
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    Worker._measure = slowly  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(STUDY, tmp_path / "run")
    finally:
        Worker._measure = original  # type: ignore[method-assign]
    assert len(tensors(tmp_path / "run")) == 1  # the shard of the cell that was being measured
    execute(STUDY, tmp_path / "run")
    assert_same(alone, tmp_path / "run")


def test_of_twenty_cells_two_fail_and_a_second_run_does_only_those(tmp_path: Path) -> None:
    sets: dict[str, dict[str, Any]] = {f"residual_contribution@{i}": {"seed": i} for i in range(8)}
    sets |= {f"layer_skip@{i}": {"seed": i} for i in range(2)}
    short, longer = tmp_path / "short.jsonl", tmp_path / "longer.jsonl"
    short.write_text('{"text": "Ada boss", "answer": "Ben"}\n')
    longer.write_text('{"text": "Ada friend boss", "answer": "Ben"}\n')
    study = Study(("zoo/hops-4l",), (str(short), str(longer)), sets)
    first = execute(study, tmp_path / "run")["cells"]
    assert len(first) == 20
    failed = {path for path, cell in first.items() if cell["status"] == "failed"}
    assert len(failed) == 2
    assert all("needs at least 4" in first[path]["error"] for path in failed)
    stamps = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*/*/result.json")
    }
    assert len(stamps) == 18
    again = execute(study, tmp_path / "run")["cells"]
    assert {path for path, cell in again.items() if cell["status"] == "failed"} == failed
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_the_log_tells_what_happened(alone: Path) -> None:
    assert "layer_skip finished" in (alone / "run.log").read_text()
    assert "digest" in json.loads((alone / "run.json").read_text())
