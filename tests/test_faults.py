"""What happens to long jobs: killed, out of disk, two at a time. Nothing finished is lost, nothing
wrong is returned.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.store import shards, verify_shard

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]  # they share a whole run
KILLS = int(os.environ.get("KILLS", 10))  # KILLS=100 to look longer
ASKED = ["--analysis", "layer_skip", "--analysis", "residual_contribution"]
RUN = [
    sys.executable,
    "-m",
    "interp.cli",
    "run",
    "--model",
    "zoo/hops-4l",
    "--task",
    "two-hop",
    *ASKED,
]


def start(out: Path, *args: str, n: int = 600) -> subprocess.Popen[str]:
    command = [*RUN, "--n", str(n), "--out", str(out), *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    )


def finish(run: subprocess.Popen[str]) -> int:
    """Wait for a run, show what it said, and return its exit status."""
    _, said = run.communicate()
    sys.stderr.write(said)
    return run.returncode


def parts(out: Path) -> list[Path]:
    return list(out.glob("*/*/*/parts/*.safetensors"))


def grids(out: Path) -> dict[str, np.ndarray]:
    result = interp.open_run(out)["zoo/hops-4l", "two-hop", "layer_skip"]
    frame = interp.open_run(out)["zoo/hops-4l", "two-hop", "residual_contribution"].to_frame()
    return result.arrays | {"residual": frame[["mean", "low", "high", "max"]].to_numpy()}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, np.ndarray], float, float]:
    """Return the numbers of a whole run, the seconds until its first part, and those from then to
    its end.
    """
    out = tmp_path_factory.mktemp("whole") / "run"
    run, began = start(out), time.monotonic()
    while not parts(out) and run.poll() is None:
        time.sleep(0.01)
    at_work = time.monotonic()
    assert finish(run) == 0
    return grids(out), at_work - began, time.monotonic() - at_work


Whole = tuple[dict[str, np.ndarray], float, float]


def test_killed_at_many_moments_the_result_is_the_same_bit_for_bit(
    undisturbed: Whole, tmp_path: Path
) -> None:
    """Workers are killed at random while runs of two go on, and the runs too, until so many
    processes have died.
    """
    expected, _, work = undisturbed
    out, moments, n_kills = tmp_path / "run", random.Random(0), 0
    n_parts: list[int] = []
    while n_kills < KILLS:
        run, of_this_run = start(out, "--workers", "2"), 0
        while (
            of_this_run < min(9, KILLS // 2) and run.poll() is None
        ):  # a run gives a job up when its worker has died three times
            time.sleep(moments.uniform(0.05, 0.6))
            if workers := children_of_children(run.pid):
                os.kill(moments.choice(workers), signal.SIGKILL)
                of_this_run += 1
        time.sleep(moments.uniform(0, 0.2) * work)
        run.kill()
        finish(run)
        n_kills += of_this_run + 1
        n_parts.append(len(parts(out)))
    assert n_parts == sorted(n_parts)
    status = finish(start(out, "--workers", "2"))
    if (
        status == 1
    ):  # a job whose worker was killed three times is given up, and done by the next call
        status = finish(start(out))
    assert status == 0
    for name, array in grids(out).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert all(verify_shard(shard) > 0 for shard in shards(tmp_path / "store"))


def children_of_children(pid: int) -> list[int]:
    """Return the processes that a process's children have started: a run's workers."""

    def children(of: int) -> list[int]:
        try:
            return [
                int(child) for child in Path(f"/proc/{of}/task/{of}/children").read_text().split()
            ]
        except OSError:
            return []

    return [grandchild for child in children(pid) for grandchild in children(child)]


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_ends_a_run_that_resumes(
    undisturbed: Whole, tmp_path: Path, times: int
) -> None:
    expected = undisturbed[0]
    out = tmp_path / "run"
    run = start(out, "--workers", "2")
    while not parts(out) and run.poll() is None:
        time.sleep(0.05)
    for _ in range(times):
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted; the same command resumes" in said
    assert "Traceback" not in said
    assert finish(start(out, "--workers", "2")) == 0
    for name, array in grids(out).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_clock_that_jumps_changes_nothing(undisturbed: Whole, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert finish(start(out)) == 0
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))  # as if written in a hundred years
    assert finish(start(out)) == 0
    for name, array in grids(out).items():
        np.testing.assert_array_equal(array, undisturbed[0][name], err_msg=name)


def test_two_processes_fill_one_store_and_lose_nothing(tmp_path: Path) -> None:
    stored = ("--store", str(tmp_path / "shared"))
    runs = [start(tmp_path / name, *stored, n=300) for name in ("one", "two")]
    assert [finish(run) for run in runs] == [0, 0]
    assert finish(start(tmp_path / "alone", n=300)) == 0
    expected = grids(tmp_path / "alone")
    for name in ("one", "two"):
        np.testing.assert_array_equal(grids(tmp_path / name)["all.max"], expected["all.max"])
    assert all(verify_shard(shard) > 0 for shard in shards(tmp_path / "shared"))
    assert finish(start(tmp_path / "three", *stored, n=300)) == 0
    cells = json.loads((tmp_path / "three" / "run.json").read_text())["cells"].values()
    assert {c["analysis"]: c["forwards_per_prompt"] for c in cells}["residual_contribution"] == 0


@pytest.fixture(params=["8k", "200k", "500k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    options = f"size={request.param}"
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_what_was_finished_is_kept(small_disk: Path) -> None:
    run = start(small_disk / "run", "--no-store", n=3000)
    _, error = run.communicate()
    assert run.returncode in (1, 2)
    assert "Traceback" not in error
    info = small_disk / "run" / "run.json"
    cells = json.loads(info.read_text())["cells"].values() if info.exists() else ()
    messages = error + " ".join(cell.get("error", "") for cell in cells)
    assert "No space left" in messages
    assert str(small_disk) in messages


@pytest.fixture(scope="module")
def whole_of_forty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("forty") / "run"
    assert finish(start(out, n=40)) == 0
    return grids(out)


def test_a_disk_that_was_full_at_any_stage_leaves_a_run_that_resumes(
    small_disk: Path, whole_of_forty: dict[str, np.ndarray]
) -> None:
    first = start(small_disk / "run", n=40)
    _, said = first.communicate()
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert finish(start(small_disk / "run", n=40)) == 0
    for name, array in grids(small_disk / "run").items():
        np.testing.assert_array_equal(array, whole_of_forty[name], err_msg=name)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = start(tmp_path / "file" / "run", n=4)
    _, error = run.communicate()
    assert run.returncode == 2
    assert len(error.strip().splitlines()) == 1
    assert "cannot write" in error
