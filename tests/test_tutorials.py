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


def n_blocks(path: Path) -> int:
    """Return how many blocks of code a tutorial's page has: its cells and its solutions."""
    from scripts.tutorial_pages import solutions_of

    n_cells = sum(cell["cell_type"] == "code" for cell in cells(path))
    return n_cells + len(solutions_of({"cells": cells(path)}))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_it_runs(path: Path) -> None:
    """It has a page, executed now, solutions too, unless `make docs` did with this library."""
    from scripts.tutorial_pages import page_of

    assert page_of(path).count("```python") == n_blocks(path)


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
    assert page.count("```python") == n_blocks(path)
    tutorial_pages._kept(path).write_text("as executed")
    assert tutorial_pages.page_at_hand(path) == "as executed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_its_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", "".join(cell["source"])):
            assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_exercises_whose_solutions_are_folded_and_compile(path: Path) -> None:
    from scripts.tutorial_pages import solutions_of

    solutions = solutions_of({"cells": cells(path)})
    text = "".join("".join(cell["source"]) for cell in cells(path))
    assert len(solutions) == text.count("<details") == text.count("</details>") >= 2
    for solution in solutions:
        assert "assert " in solution
        compile(solution, str(path), "exec")


def test_a_solution_that_is_wrong_fails(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    from scripts.tutorial_pages import executed

    (notebook,) = (path for path in NOTEBOOKS if path.stem.startswith("10_"))
    whole = json.loads(notebook.read_text(encoding="utf-8"))
    (exercises,) = (
        cell for cell in whole["cells"] if "".join(cell["source"]).startswith("## Exercises")
    )
    words = "".join(exercises["source"]).split("```python")[0] + "```python\nassert x == 2\n```\n"
    begin, *_ = (cell for cell in whole["cells"] if cell["cell_type"] == "code")
    whole["cells"] = [begin | {"source": ["x = 1"]}, exercises | {"source": [words]}]
    (tmp_path / "wrong.ipynb").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(CellExecutionError, match="assert x == 2"):
        executed(tmp_path / "wrong.ipynb")


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS
