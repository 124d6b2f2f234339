"""Listing analyses imports none of them, and says the same as if it did."""

import subprocess
import sys
from pathlib import Path

import pytest

import interp.analyses
from interp.runs.questions import questions
from interp.runs.registry import find_analyses


def test_questions_are_those_of_the_analyses() -> None:
    assert questions() == {name: analysis.question for name, analysis in find_analyses().items()}


def test_listing_analyses_loads_no_torch() -> None:
    program = (
        "import sys; from interp.cli import app; app(['list', 'analyses'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "source", ["def f(:", "class Other: pass", "class Odd:\n    question: str = 'a' + 'b'"]
)
def test_what_a_file_does_not_tell_is_found_by_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "odd.py").write_text(source)
    monkeypatch.setattr(interp.analyses, "__path__", [*interp.analyses.__path__, str(tmp_path)])
    assert questions() is None
