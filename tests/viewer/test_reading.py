"""What is read of run folders, and what is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from interp_viewer.guarded import LARGEST_FILE
from interp_viewer.listing import summaries
from interp_viewer.reading import find_run
from interp_viewer.selected import Selected
from interp_viewer.selection import Selection
from interp_viewer.tensors import Measured

from benchmarks.viewer import MODEL, TASK, make_run
from interp.errors import RunError
from interp.files.whole import read_json, write_json
from interp.runs.folder import Cell
from interp.runs.parts import pack, write_part

CELL = Cell(MODEL, TASK, "logit_lens")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "one", n_taps=4, n_pos=6, n_prompts=2)
    return tmp_path / "runs"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_list_is_read_from_headers_alone(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "run.json":
            path.unlink()
    (found,) = summaries(folder)
    assert (found.id, found.models, found.analyses, found.n_prompts) == (
        "one",
        (MODEL,),
        ("logit_lens",),
        2,
    )
    assert found.status == "finished"


def test_runs_are_found_below_folders_but_not_below_runs(folder: Path) -> None:
    make_run(folder / "group" / "two", n_taps=3, n_pos=4)
    make_run(folder / "one" / "inner", n_taps=3, n_pos=4)
    assert {summary.id for summary in summaries(folder)} == {"one", "group/two"}


@pytest.mark.parametrize("name", ["../runs/one", "..", "/etc", "one/../one", "one/random", "nope"])
def test_a_run_is_found_by_its_name_only(folder: Path, name: str) -> None:
    with pytest.raises(RunError, match="unknown run"):
        find_run(folder, name)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "secret", n_taps=3, n_pos=4)
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="leads out of"):
        find_run(folder, "link")
    assert (
        next(summary for summary in summaries(folder) if summary.id == "link").status
        == "unreadable"
    )


@pytest.mark.parametrize("file", ["frame.parquet", "figure.json", "parts/00000.safetensors"])
def test_a_linked_file_is_refused(folder: Path, tmp_path: Path, file: str) -> None:
    path = folder / "one" / CELL.path / file
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    run = find_run(folder, "one")
    with pytest.raises(RunError, match="leads out of"):
        {"frame.parquet": run.frame, "figure.json": run.figure}.get(file, run.measured)(CELL)


def test_names_in_a_record_cannot_lead_out(folder: Path) -> None:
    run = find_run(folder, "one")
    for model, task in (("..", ".."), ("a", "../../..")):
        with pytest.raises(RunError):
            run.frame(Cell(model, task, "secret"))
        assert run.prompts(model, task) == []
    path = folder / "one" / "run.json"
    record = next(iter(run.info["cells"].values()))
    for outside in ("../../secret", "/etc/secret", "a/../../../b/secret"):
        path.write_text(json.dumps(run.info | {"cells": {outside: record}}))
        with pytest.raises(RunError, match="outside of the run"):
            find_run(folder, "one")


def test_a_table_of_two_gigabytes_is_refused_by_its_size(folder: Path) -> None:
    path = folder / "one" / CELL.path / "frame.parquet"
    with path.open("r+b") as file:
        file.truncate(2 * 2**30)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"frame\.parquet has 2,048 MB"):
        find_run(folder, "one").frame(CELL)
    assert time.monotonic() - began < 2
    assert path.stat().st_size > LARGEST_FILE


@pytest.mark.parametrize(
    "file", ["frame.parquet", "figure.json", "result.json", "parts/00000.safetensors"]
)
def test_a_flipped_bit_is_named_and_never_read(folder: Path, file: str) -> None:
    flip(folder / "one" / CELL.path / file)
    run = find_run(folder, "one")
    read = {
        "frame.parquet": lambda: run.frame(CELL),
        "figure.json": lambda: run.figure(CELL),
        "result.json": lambda: run.result(CELL),
    }.get(file, lambda: run.measured(CELL).of_prompt("readings", 0))
    with pytest.raises(RunError, match=Path(file).name.replace(".", r"\.")):
        read()


def test_a_file_that_is_damaged_later_is_noticed(folder: Path) -> None:
    run = find_run(folder, "one")
    run.measured(CELL).of_prompt("readings", 0)
    path = folder / "one" / CELL.path / "parts" / "00000.safetensors"
    flip(path)
    os.utime(path, (1, 1))
    with pytest.raises(RunError, match="damaged"):
        run.measured(CELL).of_prompt("readings", 0)


def test_a_damaged_header_does_not_hide_other_runs(folder: Path) -> None:
    make_run(folder / "two", n_taps=3, n_pos=4)
    (folder / "two" / "run.json").write_text("{")
    (folder / "three").mkdir()
    write_json(folder / "three" / "run.json", {"schema": 1, "cells": []})
    found = {summary.id: summary for summary in summaries(folder)}
    assert not found["one"].error
    assert "run.json is damaged" in found["two"].error
    assert "is not a run's" in found["three"].error


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    info = read_json(folder / "one" / "run.json")
    write_json(folder / "one" / "run.json", info | {"schema": 9})
    with pytest.raises(RunError, match="upgrade interp"):
        find_run(folder, "one")


def test_values_are_those_of_the_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(2, 3, n_pos, generator=generator) for n_pos in (4, 6)]
    for i, part in enumerate(parts):
        write_part(
            tmp_path / f"{i}.safetensors",
            pack({"x": part, "flag": torch.tensor([True, False])}, "key"),
        )
    measured = Measured(tuple(sorted(tmp_path.glob("*.safetensors"))))
    assert measured.n_prompts == 4
    np.testing.assert_array_equal(measured.of_prompt("x", 3), parts[1][1])
    np.testing.assert_array_equal(
        measured.at("x", 2, 1), torch.cat([part[:, 2, 1] for part in parts])
    )
    behind = measured.at("x", 2, 5)
    assert np.isnan(behind[:2]).all()
    np.testing.assert_array_equal(behind[2:], parts[1][:, 2, 5])
    assert measured.all("flag").tolist() == [True, False, True, False]
    with pytest.raises(RunError, match="there is 0 to 3"):
        measured.of_prompt("x", 4)
    with pytest.raises(RunError, match="unknown tensor"):
        measured.of_prompt("y", 0)


def test_five_hundred_runs_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path / "a000", n_taps=2, n_pos=2)
    content = (tmp_path / "a000" / "run.json").read_bytes()
    for i in range(1, 500):
        (tmp_path / f"a{i:03d}").mkdir()
        (tmp_path / f"a{i:03d}" / "run.json").write_bytes(content)
    assert len(summaries(tmp_path)) == 500


def test_the_viewer_reads_without_torch(folder: Path) -> None:
    program = (
        "import sys; from interp_viewer.menu import entries; entries()\n"
        "from pathlib import Path; from interp_viewer.reading import"
        f" find_run; from interp.runs.folder import Cell\nrun = find_run(Path({str(folder)!r}),"
        f" 'one'); cell = Cell({MODEL!r}, {TASK!r}, 'logit_lens')\nrun.frame(cell);"
        " run.measured(cell).of_prompt('readings', 0)\nassert 'torch' not in sys.modules, 'torch"
        " was imported'"
    )
    where = os.pathsep.join(
        [str(Path(__file__).parents[2] / "apps" / "viewer"), str(Path(__file__).parents[2])]
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={**os.environ, "PYTHONPATH": where},
        capture_output=True,
    )


def test_a_selection_of_another_prompt_has_its_tokens(folder: Path) -> None:
    run = find_run(folder, "one")
    here = Selected(run, Selection(run="one"), MODEL, TASK, run.prompts(MODEL, TASK), ())
    vocabulary, ids = run.vocabulary(MODEL), run.tokens(MODEL, TASK)
    assert here.at(ex=1).tokens == tuple(vocabulary[i] for i in ids[1])
