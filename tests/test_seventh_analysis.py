"""A new analysis is one new file: the CLI, a run and the report find it."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

import interp.analyses
from interp import cli
from interp.errors import AnalysisError
from interp.runs import registry
from interp.runs.registry import find_analyses, make_analysis
from tests.documents import read
from tests.test_runs import RUN, invoke

SOURCE = '''
"""How long is the stream, in the end?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.stats.estimate import estimate


@dataclass(frozen=True)
class LastNorm(Analysis):
    """Measure the norm of the last residual."""

    power: float = 1.0
    seed: int = 0
    question: ClassVar[str] = "How long is the stream, in the end?"

    def measure(self, recording, shard, prepared):
        return {"norm": recording.resid(recording.n_layers)[:, -1].norm(dim=-1) ** self.power}

    def combine(self, parts):
        return LastNormResult(torch.cat([part["norm"] for part in parts]))

    def cost(self, model, shard):
        return Cost(0.0, len(shard.prompts))


@dataclass(frozen=True)
class LastNormResult(Result):
    """One norm a prompt."""

    norms: torch.Tensor

    def to_frame(self):
        return pd.DataFrame({"norm": self.norms.numpy()})

    def plot(self):
        return go.Figure(go.Histogram(x=self.norms.numpy()), layout={"title": "The last norm"})

    def findings(self):
        norm = estimate(self.norms.numpy())
        return (Finding(f"The last residual has a norm of {norm:.2f}.", norm, "last norm"),)
'''


@pytest.fixture
def seventh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "last_norm.py").write_text(SOURCE)
    monkeypatch.setattr(
        interp.analyses, "__path__", [*interp.analyses.__path__, str(tmp_path / "new")]
    )


@pytest.mark.usefixtures("seventh")
def test_it_is_listed_run_and_reported(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli.app, ["list", "analyses", "--json"])
    assert "last_norm" in [item["name"] for item in read(listed.stdout)["items"]]
    out = str(tmp_path / "run")
    assert invoke(*RUN, "--analysis", "last_norm", "--set", "last_norm.power=2", "--out", out) == 0
    assert invoke("report", out) == 0
    assert "The last residual has a norm of" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose files are taken for analyses."""
    monkeypatch.setattr(interp.analyses, "__path__", [*interp.analyses.__path__, str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("file", "source", "says"),
    [
        (
            "broken.py",
            "import nothing_of_that_name",
            "broken.py cannot be imported .ModuleNotFoundError",
        ),
        ("lost.py", "def f(:", "lost.py cannot be imported .SyntaxError"),
        (
            "last.py",
            SOURCE,
            (
                "last.py has no analysis of that name; there is LastNorm .which belongs into"
                " last_norm.py"
            ),
        ),
    ],
)
def test_a_file_that_is_no_analysis_is_named(
    folder: Path, file: str, source: str, says: str
) -> None:
    (folder / file).write_text(source)
    with pytest.raises(AnalysisError, match=says):
        find_analyses()


@pytest.mark.usefixtures("seventh")
def test_packages_bring_analyses_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    here = EntryPoint("mine", "interp.analyses.last_norm:LastNorm", registry.GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [here] if group == "interp.analyses" else []
    )
    assert find_analyses()["last_norm"].__name__ == "LastNorm"
    wrong = EntryPoint("mine", "interp.analysis:Result", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [wrong] * bool(group))
    with pytest.raises(AnalysisError, match="Result is not an Analysis"):
        find_analyses()


@pytest.mark.usefixtures("folder")
def test_an_analysis_needs_no_seed(folder: Path) -> None:
    (folder / "last_norm.py").write_text(SOURCE.replace("    seed: int = 0\n", ""))
    sys.modules.pop("interp.analyses.last_norm", None)
    assert not hasattr(make_analysis("last_norm", {}, seed=3), "seed")
    sys.modules.pop("interp.analyses.last_norm", None)
