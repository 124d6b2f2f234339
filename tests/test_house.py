"""The house is as its drawings say: the packages, their floors, and where things are."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = re.findall(r"`((?:interp|apps)/[\w/.]*)`", (ROOT / "CONTRIBUTING.md").read_text())


def drawn() -> list[str]:
    """Return the packages in the drawing, from the roof to the ground."""
    page = (ROOT / "docs" / "concepts.md").read_text()
    (drawing,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line.split()[0] for line in drawing.splitlines()]


def test_the_drawing_names_exactly_the_packages_that_exist() -> None:
    there = {path.parent.name for path in (ROOT / "interp").glob("*/__init__.py")}
    there |= {path.stem for path in (ROOT / "interp").glob("*.py")} - {"__init__", "_moved"}
    assert sorted(drawn()) == sorted(there)


def test_the_drawing_has_the_floors_that_imports_keep_to() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    floor = {name: i for i, layer in enumerate(layers) for name in layer.split(" | ")}
    del floor["_moved"]
    assert [floor[name] for name in drawn()] == sorted(floor.values())


@pytest.mark.parametrize("place", sorted({*MAP}))
def test_the_map_of_the_code_leads_somewhere(place: str) -> None:
    path = ROOT / place
    assert path.exists() or path.with_suffix(".py").exists()


def test_glossary_words_stand_there_once() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| ")]
    words = [word.strip() for row in rows if row.strip() != "word" for word in row.split(",")]
    assert len(words) == len({*words}), words
