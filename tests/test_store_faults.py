"""Full disks, killed writers, flipped bits: nothing finished is lost, nothing wrong returned."""

import inspect
import logging
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from interp import Site
from interp import capture as capture_module
from interp.capture import capture
from interp.errors import StoreError
from interp.models import load_model
from interp.store import (
    ActivationStore,
    Corpus,
    Settings,
    configure,
    open_corpus,
    prune,
    shards,
    verify,
)
from tests.families import tiny

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
FORK = multiprocessing.get_context(
    "fork"
)  # what is killed fifty times need not be imported fifty times


def write(folder: Path | str, first: int, last: int, *, say: Callable[[str], object]) -> None:
    store = ActivationStore(folder, model="m")
    for number in range(first, last):
        store.write({f"k{number}": 500}, {"resid.0": expected(number)})
        say(f"k{number}")


def expected(number: int) -> torch.Tensor:
    return torch.randn(500, 64, generator=torch.Generator().manual_seed(number))


WRITER = f"""
import sys
from collections.abc import Callable
from pathlib import Path
import torch
from interp.store import ActivationStore
{inspect.getsource(expected)}
{inspect.getsource(write)}
write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), say=lambda key: print(key, flush=True))
"""


def start(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )


def everything_is_right(folder: Path, keys: list[str]) -> None:
    """Check that what was announced is there, and that nothing that is there is wrong."""
    store = ActivationStore(folder, model="m")
    for key in keys:
        (found,) = store.read([key], "resid.0") or [None]
        assert found is not None, f"{key} was finished and is lost"
        assert torch.equal(found, expected(int(key[1:])))
    assert verify(folder)[1] == []


def note(path: Path, text: str) -> None:
    """Append a line in one write, so that a killed process leaves whole lines."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)


def killed(target: Callable[[], object], after: float) -> None:
    """Start a function in a process of its own and kill it."""
    process = FORK.Process(target=target)
    process.start()
    time.sleep(after)
    process.kill()
    process.join()


def test_writers_killed_at_fifty_moments_lose_nothing_that_was_finished(tmp_path: Path) -> None:
    moments, done = random.Random(0), tmp_path / "done"
    for round_ in range(25):
        writer = partial(
            write, tmp_path, 1000 * round_, 1000 * round_ + 999, say=partial(note, done)
        )
        other = FORK.Process(target=writer)
        other.start()
        killed(writer, moments.uniform(0.01, 0.2))
        time.sleep(moments.uniform(0, 0.1))
        other.kill()
        other.join()
    finished = sorted(set(done.read_text().split()))
    assert len(finished) > 50
    everything_is_right(tmp_path, finished)
    for aside in tmp_path.glob("m/.aside-*"):
        os.utime(aside, (0, 0))
    prune(tmp_path, max_bytes=10**12)
    assert not list(tmp_path.glob("m/.aside-*"))
    everything_is_right(tmp_path, finished)


def test_a_capture_killed_at_twenty_moments_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "SHARD_TOKENS", 256)
    rows = torch.randint(3, 97, (400, 32), generator=torch.Generator().manual_seed(0))

    def run(folder: Path) -> Corpus:
        model = load_model(tiny("llama").module, store=folder)
        return capture(model, rows, sites=[Site("resid_post", 2)], name="c")

    began, whole = time.monotonic(), run(tmp_path / "whole")
    seconds, moments, counts = time.monotonic() - began, random.Random(0), []
    for _ in range(20):
        killed(partial(run, tmp_path / "store"), moments.uniform(0, 0.3) * seconds)
        counts.append(len(list((tmp_path / "store").glob("*/*.safetensors"))))
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    again = run(tmp_path / "store")
    assert whole.manifest == again.manifest
    for ours, theirs in zip(
        whole.column(whole.sites[0]), again.column(again.sites[0]), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_two_processes_write_different_things_into_one_store(tmp_path: Path) -> None:
    writers = [start(tmp_path, 0, 60), start(tmp_path, 30, 90)]
    assert [len(writer.communicate()[0].split()) for writer in writers] == [60, 60]
    everything_is_right(tmp_path, [f"k{i}" for i in range(90)])
    assert len(list(shards(tmp_path))) == 90


def test_a_reader_beside_a_writer_and_a_pruner_reads_right_or_nothing(tmp_path: Path) -> None:
    writer = start(tmp_path, 0, 150)
    store, n_read = ActivationStore(tmp_path, model="m"), 0
    moments = random.Random(0)
    while writer.poll() is None:
        number = moments.randrange(150)
        found = store.read([f"k{number}"], "resid.0")
        if found is not None:
            n_read += 1
            assert torch.equal(found[0], expected(number))
        if n_read % 20 == 1:
            prune(tmp_path, max_bytes=40 * 130_000)
    assert n_read > 0
    assert writer.returncode == 0
    assert verify(tmp_path)[1] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_what_was_finished_is_kept(small_disk: Path) -> None:
    writer = start(small_disk / "store", 0, 100)
    said, error = writer.communicate()
    assert writer.returncode == 1
    assert f"cannot write {small_disk}/store/m/" in error
    assert "No space left on device" in error
    keys = said.split()
    assert keys
    everything_is_right(small_disk / "store", keys)
    assert not list(small_disk.glob("store/m/.aside-*")), "a failed write leaves nothing behind"


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-c", WRITER, str(tmp_path), "0", "3"]
    done = subprocess.run(
        command, preexec_fn=limited, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not list(shards(tmp_path))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << 3
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.0, 0.001, 0.01, 0.3, 0.999])
def test_a_flipped_bit_in_a_shard_is_named_and_computed_again(
    tmp_path: Path, place: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    rows = torch.randint(3, 97, (20, 12), generator=torch.Generator().manual_seed(0))
    right = capture(model, rows, sites=[Site("resid_post", 1)], name="c")
    values = torch.cat([piece.clone() for piece in right.column(right.sites[0])])
    (path,) = shards(tmp_path)
    flip(path, place)
    (problem,) = verify(tmp_path)[1]
    assert str(path) in problem
    corpus = open_corpus(tmp_path, "c")
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="capture it again"):
        [*corpus.column(corpus.sites[0]), corpus.tokens(0)]
    assert str(path) in caplog.text
    again = capture(
        load_model(tiny("llama").module, store=tmp_path),
        rows,
        sites=[Site("resid_post", 1)],
        name="c",
    )
    assert torch.equal(torch.cat(list(again.column(again.sites[0]))), values)
    assert verify(tmp_path)[1] == []


@pytest.mark.parametrize("kind", ["corpus", "settings"])
def test_no_flipped_bit_of_a_json_file_is_believed(tmp_path: Path, kind: str) -> None:
    model = load_model(tiny("llama").module, store=tmp_path)
    corpus = capture(model, [[3, 4, 5]], sites=[Site("resid_post", 1)], name="c")
    configure(tmp_path, Settings(quota=10**9, dtype="float16"))
    (path,) = tmp_path.glob("*/c.corpus.json") if kind == "corpus" else [tmp_path / "store.json"]
    right = path.read_bytes()
    for i in range(len(right)):
        path.write_bytes(right[:i] + bytes([right[i] ^ (1 << i % 8)]) + right[i + 1 :])
        try:
            found = (
                open_corpus(tmp_path, "c").manifest
                if kind == "corpus"
                else ActivationStore(tmp_path, model="m").settings
            )
        except StoreError as error:
            if str(path) not in str(error):
                raise
        else:
            assert found == (corpus.manifest if kind == "corpus" else Settings(10**9, "float16"))


def test_a_clock_that_jumped_removes_no_work_in_progress(tmp_path: Path) -> None:
    """A `prune` with a clock far ahead takes aside files for stale; their writers write again."""
    program = (
        """
import os, pathlib, sys
from interp.files import whole
from interp.store import files
real, jumps = whole.write_atomically, [1]
def pruned(path, content):
    if jumps.pop() if jumps else 0:
        raise FileNotFoundError(2, "the aside file is gone")
    real(path, content)
files.write_atomically = pruned
"""
        + WRITER
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "0", "3"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.stderr == ""
    everything_is_right(tmp_path, ["k0", "k1", "k2"])
