"""The wheel, installed where the repository is not, does what the README says."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # which is built once
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (source,) = out.glob("*.tar.gz")
    assert source.stat().st_size < 60e6
    (found,) = out.glob("*.whl")
    return found


def test_it_holds_the_zoo_the_viewer_and_its_type_information_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "interp/py.typed",
        "interp/_viewer/app.py",
        "interp/cli/documents.schema.json",
        "interp/reports/report.schema.json",
    } <= {*names}
    assert any("hops-4l" in name and name.endswith(".safetensors") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"interp"}


def test_it_runs_and_reports_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # with what it says it needs, and nothing else; torch first, from the index of its own that pip
    # may be told of
    for wanted in ("torch", str(wheel)):
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",  # but what is imported
            "--constraint",
            str(ROOT / "constraints.txt"),
            wanted,
        ]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "empty"
    folder.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1"
    }

    def interp(*args: str) -> str:
        command = [str(environment / "bin" / "interp"), *args]
        done = subprocess.run(
            command, cwd=folder, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [python, "-c", "import interp; print(interp.__file__)"]
    assert (
        str(environment).encode()
        in subprocess.run(where, cwd=folder, env=clean, capture_output=True, check=True).stdout
    )
    assert interp("--version").startswith("interp ")
    interp("run", "--model", "zoo/hops-4l", "--task", "two-hop", "--n", "8", "--out", "r")
    interp("report", "r")
    assert "two-hop" in (folder / "r" / "report.html").read_text()
    assert '"findings"' in interp("report", "r", "--json")
