"""Every block of code in the README and the docs runs, page by page, in a folder of its own.

`python`, `sh` and `toml` blocks are run and read. `bash` blocks need what is not here (a cluster, a
GPU, a model of one's own, a browser): of them, and of those in the tutorials' text, every option is
looked up. `text` blocks are no code.
"""

import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

import interp
from interp.cli import app
from interp.figures import export
from interp.runs import Study, execute
from interp.runs.registry import find_analyses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCES = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
BLOCKS = {page: FENCES.findall(page.read_text()) for page in PAGES}
IMPORTS = re.compile(r"^\W*from (interp[\w.]*) import ([\w, ]+)", re.MULTILINE)


def fenced(page: Path) -> list[tuple[str, str]]:
    """Return language and text of a page's blocks; of a tutorial, those in its words."""
    if page.suffix == ".md":
        return BLOCKS[page]
    cells = json.loads(page.read_text())["cells"]
    return [
        block
        for cell in cells
        if cell["cell_type"] == "markdown"
        for block in FENCES.findall("".join(cell["source"]))
    ]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if language in dict(BLOCKS[page])]


def blocks(page: Path, language: str) -> list[str]:
    return [text for of, text in BLOCKS[page] if of == language]


LESS = {  # to be put behind what takes long
    "integrated_gradients.nodes=published": "integrated_gradients.max_nodes=8",
    "checkpoint_stitch.maps=none": "checkpoint_stitch.draws=2",
}


def made_small(text: str) -> str:
    """Return commands or a study with few prompts and short texts, which work just as well."""
    text = re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", text)
    for given, less in LESS.items():
        text = text.replace(f"--set {given}", f"--set {given} --set {less}")
    of_a_name = r"^(interp run (?!.*--n )(?:.* )?--task [\w-]+(?!\S))"
    text = re.sub(of_a_name, r"\1 --n 12", text, flags=re.MULTILINE)
    return re.sub(r"(--n |^n = )\d+", r"\g<1>12", text, flags=re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand where a reader stands: in a folder with studies and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "true")  # the program of that name opens nothing
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/demo.toml").write_text(
        made_small((ROOT / "studies/demo.toml").read_text())
    )
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/checkpoint").symlink_to(ROOT / "data/zoo/hops-4l")
    return tmp_path


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    execute(Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {}}, n=4), out)
    return out


@pytest.mark.parametrize(
    "page",
    [
        # one for each analysis, and most alike
        pytest.param(page, marks=pytest.mark.slow) if page.parent.name == "analyses" else page
        for page in pages_with("python")
    ],
    ids=lambda page: page.name,
)
def test_its_code_runs(
    page: Path, folder: Path, a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(a_run, folder / "runs/demo")
    monkeypatch.setattr(export, "drawn", lambda figures, kind, width: [b""] * len(figures))
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.fixture(scope="module")
def interp_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return how a shell runs `interp`, without importing it anew for every command."""
    address = tmp_path_factory.mktemp("commands") / "socket"
    serve = f"from tests.forked import serve; serve({str(address)!r})"
    server = subprocess.Popen(
        [sys.executable, "-c", serve],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BROWSER": "true"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    yield shlex.join([sys.executable, "-I", "-S", str(ROOT / "tests/forked.py"), str(address)])
    server.communicate()


@pytest.mark.slow
@pytest.mark.xdist_group("commands")
@pytest.mark.parametrize("page", pages_with("sh"), ids=lambda page: page.name)
def test_its_commands_run(page: Path, folder: Path, a_run: Path, interp_command: str) -> None:
    for text in blocks(page, "toml"):
        if name := re.match(r"# (\w+\.toml)\n", text):
            (folder / name[1]).write_text(made_small(text))
    script = made_small("\n".join(blocks(page, "sh")))
    if "--out runs/first" not in script:
        shutil.copytree(a_run, folder / "runs/first")
    begin = f'set -euo pipefail; interp() {{ {interp_command} "$@"; }}\n'
    # a viewer ends when its reader ends it; figures need a browser
    script = re.sub(r"^interp (view|export).*$", "", script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", begin + script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_block_says_what_it_is() -> None:
    found = {(page.name, language) for page in PAGES for language, _ in BLOCKS[page]}
    assert {language for _, language in found} <= {"python", "sh", "toml", "bash", "text"}


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_its_commands_and_their_options_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    code = "".join(
        text for language, text in fenced(page) if language in ("", "sh", "bash")
    ).replace("\\\n", " ")
    for line in re.findall(r"^(?:srun )?interp (.*)$", code, re.MULTILINE):
        words = shlex.split(re.split(r" [|>;] ", line)[0], comments=True)
        command, name = group, ""
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)


@pytest.mark.parametrize("page", pages_with("toml"), ids=lambda page: page.name)
def test_its_settings_can_be_read(page: Path) -> None:
    for text in blocks(page, "toml"):
        assert tomllib.loads(text)


def test_what_the_readme_makes_is_in_the_makefile() -> None:
    targets = re.findall(r"^make (\w+)", "".join(blocks(ROOT / "README.md", "text")), re.MULTILINE)
    assert targets == ["report", "real", "test"]
    for target in targets:
        assert f"\n{target}: " in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if target.startswith("tutorials/") and page.parent == ROOT / "docs":
            target = f"../{Path(target).with_suffix('.ipynb')}"  # of which the page is made
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", sorted(find_analyses()))
def test_an_analysis_has_its_figure_and_its_formula(name: str) -> None:
    text = (ROOT / f"docs/analyses/{name}.md").read_text()
    figure = re.search(
        rf"^!\[(.{{40,}})\]\(\.\./images/analyses/{name}\.png\)\n\*(.+)\*$", text, re.M
    )
    assert figure, "a figure with what it shows in words, and a caption below"
    assert (ROOT / f"docs/images/analyses/{name}.png").stat().st_size <= 60_000
    assert re.search(r"^\$\$\n.+?\n\$\$$", text, re.M | re.S)
    assert f"]({name}.md)" in (ROOT / "docs/analyses/index.md").read_text()


def test_the_page_of_half_precision_has_a_row_per_analysis_in_order() -> None:
    rows = (ROOT / "docs/precision.md").read_text().split("| --- | --- | --- |\n")[1]
    names = [row.split("|")[1].strip() for row in rows.splitlines()]
    assert names == [name for name in sorted(find_analyses()) if name in names]
    assert {"affine_lens", "feature_patching", "head_patterns", "logit_attribution"} < {*names}
    assert {"path_patching", "probe"} < {*names}


def test_every_figure_names_a_run_that_a_command_makes() -> None:
    text = (ROOT / "scripts/analysis_figures.py").read_text()
    made = {*re.findall(r"RUNS_DIR/(\w+)", text.split("import io")[0])}
    assert {*re.findall(r'Source\("(\w+)"', text)} <= made


def test_figures_of_analyses_are_few_bytes_and_all_of_analyses() -> None:
    figures = [*(ROOT / "docs/images/analyses").iterdir()]
    assert {figure.name for figure in figures} == {f"{name}.png" for name in find_analyses()}
    assert sum(figure.stat().st_size for figure in figures) <= 40_000 * len(figures)


def test_every_page_is_in_the_navigation_and_every_image_says_what_it_shows() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f" {page.relative_to(ROOT / 'docs')}\n" in navigation, page
        assert "![](" not in page.read_text(), page


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
        id(value)
        for module in modules
        for key, value in vars(found(module)).items()
        if not key.startswith("_")
    }
    text = "".join(page.read_text() for page in [*PAGES, *TUTORIALS])
    met = {
        (module, name)
        for module, several in IMPORTS.findall(text)
        for name in re.findall(r"\w+", several)
    }
    met = {
        (module, name) for module, name in met if find_spec(module)
    }  # a tutorial shows where a module of one's own goes
    met |= {("interp", name) for name in interp.__all__ if name != "__version__"}
    met |= {(analysis.__module__, analysis.__name__) for analysis in find_analyses().values()}
    missing = [
        f"{module}.{name}"
        for module, name in sorted(met)
        if id(found(f"{module}.{name}")) not in shown
    ]
    assert missing == []
    assert all(inspect.getdoc(found(name)) for name in names | modules)
