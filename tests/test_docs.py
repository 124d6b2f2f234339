"""Every Python block in the README and the docs runs, block after block of one page."""

import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import interp
from interp.catalogue import find_analyses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


IMPORTS = re.compile(r"^\W*from (interp[\w.]*) import ([\w, ]+)", re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCKS[p]], ids=lambda page: page.name)
def test_its_code_runs(page: Path) -> None:
    names: dict[str, object] = {}
    for block in BLOCKS[page]:
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def documented() -> tuple[set[str], set[str]]:
    """Return the names on the API pages, and the modules that stand there as a whole."""
    text = "".join((ROOT / "docs" / page).read_text() for page in ("api.md", "api_analyses.md"))
    targets = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    modules = {target for target in targets if inspect.ismodule(found(target))}
    return targets - modules, modules


def found(target: str) -> object:
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_the_api_pages_have_every_name_that_users_meet() -> None:
    names, modules = documented()
    shown = {id(found(name)) for name in names} | {
        id(value) for module in modules for key, value in vars(found(module)).items() if not key.startswith("_")
    }
    text = "".join(page.read_text() for page in [*PAGES, *(ROOT / "tutorials").glob("*.ipynb")])
    met = {(module, name) for module, several in IMPORTS.findall(text) for name in re.findall(r"\w+", several)}
    met = {(module, name) for module, name in met if find_spec(module)}  # a tutorial shows where a module of one's own goes
    met |= {("interp", name) for name in interp.__all__ if name != "__version__"}
    met |= {(analysis.__module__, analysis.__name__) for analysis in find_analyses().values()}
    missing = [f"{module}.{name}" for module, name in sorted(met) if id(found(f"{module}.{name}")) not in shown]
    assert missing == []
    assert all(inspect.getdoc(found(name)) for name in names | modules)
