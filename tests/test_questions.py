"""Listing analyses imports none of them, and says the same as if it did."""

import subprocess
import sys
from pathlib import Path

import pytest

import interp.analyses
from interp.runs.questions import Declared, declared
from interp.runs.registry import find_analyses


def test_what_is_read_is_what_the_analyses_declare() -> None:
    assert declared() == {
        name: Declared(analysis.question, analysis.page, analysis.rank)
        for name, analysis in find_analyses().items()
    }


def test_listing_analyses_loads_no_torch() -> None:
    program = (
        "import sys; from interp.cli import app; app(['list', 'analyses'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose files are taken for analyses."""
    monkeypatch.setattr(interp.analyses, "__path__", [*interp.analyses.__path__, str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        "class Other: pass",
        "class Odd:\n    question: str = 'a' + 'b'",
        "class Odd:\n    question: str = 'a?'\n    rank = len('ab')",
    ],
)
def test_what_a_file_does_not_tell_is_found_by_importing(folder: Path, source: str) -> None:
    (folder / "odd.py").write_text(source)
    assert declared() is None


def test_page_and_rank_are_read_with_and_without_a_declared_type(folder: Path) -> None:
    source = "class Odd:\n    question: str = 'a?'\n    page: ClassVar[str] = 'odd'\n    rank = 3\n"
    (folder / "odd.py").write_text(source)
    assert (declared() or {})["odd"] == Declared("a?", page="odd", rank=3)
