"""Every tutorial runs from its first cell to its last, and is kept without outputs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_it_runs(path: Path) -> None:
    """It has a page, executed now unless `make docs` has executed it with the same library."""
    from scripts.tutorial_pages import page_of

    assert page_of(path).count("```python") == sum(
        cell["cell_type"] == "code" for cell in cells(path)
    )


def test_without_executing_it_is_shown_as_executed_before_or_says_that_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import tutorial_pages

    monkeypatch.setattr(tutorial_pages, "CACHE", tmp_path)
    path = NOTEBOOKS[0]
    page = tutorial_pages.page_at_hand(path)
    title, note = page.split("\n\n")[:2]
    assert title.startswith("# ")
    assert "Not executed" in note
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in cells(path))
    tutorial_pages._kept(path).write_text("as executed")
    assert tutorial_pages.page_at_hand(path) == "as executed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_its_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", "".join(cell["source"])):
            assert target.startswith("http") or (path.parent / target).exists(), target


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS
