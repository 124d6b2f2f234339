"""Public is what the API pages name: all of it can be imported, and no `__all__` promises more."""

import importlib
import sys
from types import ModuleType

import pytest

import interp
import interp.runs
from interp._moved import MOVED
from tests.test_docs import documented, found

# Names in the `__all__` of a public module that only the library's own packages need.
SHARED = {
    "interp": {"__version__"},
    "interp.replay": {
        "Arguments", "Block", "CacheStandIn", "Read", "Runner", "Work", "OnWrite",
        "dry_pass", "first", "replaced_forward", "with_first",
    },
    "interp.store": {"prompt_key", "stored_name"},
    "interp.tasks": {"SHARD"},
}  # fmt: skip
NAMES, MODULES = documented()


def names_in(module: ModuleType) -> set[str]:
    return {name for name in getattr(module, "__all__", ()) if hasattr(module, name)}


@pytest.mark.parametrize("target", sorted(NAMES))
def test_a_documented_name_stands_where_its_module_shows_it(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert not any(part.startswith("_") for part in target.split("."))
    shown = getattr(importlib.import_module(module), "__all__", [name])
    assert name in shown, f"{module}.__all__ lacks {name}"


HOMES = sorted({"interp"} | {target.rpartition(".")[0] for target in NAMES})


@pytest.mark.parametrize("home", HOMES)
def test_a_public_module_shows_only_documented_names(home: str) -> None:
    pages = {id(found(name)) for name in NAMES}
    module = importlib.import_module(home)
    undocumented = {name for name in names_in(module) if id(getattr(module, name)) not in pages}
    assert undocumented <= SHARED.get(home, set())


def test_the_face_of_the_package_is_documented_by_name() -> None:
    functions = (interp.export, interp.load_model, interp.load_task, interp.open_run, interp.view)
    classes = (interp.Model, interp.Task, interp.Prompt, interp.Site)
    pages = {id(found(name)) for name in NAMES}
    assert {id(value) for value in (*functions, *classes)} <= pages
    assert {*interp.__all__} - {"__version__"} == {
        value.__name__ for value in (*functions, *classes)
    }


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_of_an_earlier_version_is_found_and_says_where_it_went(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    home = importlib.import_module(new)
    public = [name for name in dir(home) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(home, name) for name in public)


def test_names_of_runs_of_an_earlier_version_are_found() -> None:
    with pytest.warns(DeprecationWarning, match="Run is now interp.runs.RunFolder"):
        assert interp.runs.Run is interp.runs.RunFolder
    with pytest.raises(AttributeError, match="has no attribute 'Runs'"):
        _ = interp.runs.Runs
