"""`interp show`, `diff`, `validate`, and what all commands share."""

import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from interp import __version__
from interp.cli import app, main
from interp.cli.options import complete_runs
from interp.cli.results import print_results
from interp.cli.terminal import out
from interp.errors import RunError
from interp.files.whole import read_json, write_json
from interp.runs import Study, execute, viewing
from interp.runs.folder import Cell, read_run
from interp.runs.tables import differences, read_frame
from tests.documents import read


def call(*args: object) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    execute(
        Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {}, "logit_lens": {}}, n=8), folder
    )
    return folder


def test_show_lists_cells_and_tables(run: Path) -> None:
    assert "layer_skip" in call("show", run).stdout
    said = call("show", run, "layer_skip", "--rows", 3).stdout
    assert "Skipping layer" in said
    assert "3 of" in said
    (cell,) = read(call("show", run, "layer_skip", "--rows", 0, "--json").stdout)["cells"]
    assert len(cell["rows"]) == len(read_frame(run, Cell("zoo/hops-4l", "two-hop", "layer_skip")))


def test_results_are_a_table_or_sentences(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 200)
    record = next(iter(read_run(run)["cells"].values()))
    finding = record["findings"][0]
    table = call("show", run).stdout
    assert "zoo/hops-4l · two-hop" in table
    assert "number" in table.splitlines()[1]
    assert f"{finding['value']:.3g}" in table
    assert finding["measure"] in table
    assert finding["claim"] not in table
    sentences = call("-v", "show", run).stdout
    assert f"layer_skip: {finding['claim']}" in sentences
    assert "number" not in sentences.splitlines()[1]


@pytest.fixture(params=[80, 140])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    """Return a terminal of so many columns, on which commands print."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(
        file=StringIO(), width=request.param, force_terminal=True, color_system="standard"
    )
    for module in ("terminal", "results", "listing"):
        monkeypatch.setattr(f"interp.cli.{module}.out", console)
    return console


def said_on(console: Console) -> list[str]:
    """Return the lines on a terminal, without their colours."""
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()


@pytest.mark.parametrize("verbose", [[], ["-v"]], ids=["numbers", "sentences"])
def test_results_fit_a_terminal_and_are_whole(
    run: Path, terminal: Console, verbose: list[str]
) -> None:
    call(*verbose, "show", run)
    lines = said_on(terminal)
    assert max(map(len, lines)) <= terminal.width
    finding = next(iter(read_run(run)["cells"].values()))["findings"][0]
    said = " ".join(" ".join(lines).split())
    for part in finding["claim" if verbose else "measure"].split():
        assert part in said
    assert "…" not in said


@pytest.mark.parametrize("what", ["models", "tasks", "analyses"])
def test_lists_are_columns_that_fit_a_terminal_and_cut_no_word(
    what: str, terminal: Console
) -> None:
    items = read(call("list", what, "--json").stdout)["items"]
    plain = {item["name"]: item["about"] for item in items}
    call("list", what)
    lines = said_on(terminal)
    assert max(map(len, lines)) <= terminal.width
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*plain]
    words = {word.rstrip(";") for about in plain.values() for word in about.split()}
    assert {word.rstrip(";") for line in lines for word in line.split()} <= words | {*plain}


@pytest.mark.parametrize("asked_for", [True, False])
def test_colours_are_left_out_where_that_is_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, asked_for: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if asked_for:
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=(file := StringIO()), force_terminal=True, color_system="standard")
    monkeypatch.setattr("interp.cli.results.out", console)
    call("show", run)
    is_coloured = re.search(r"\x1b\[(?:\d+;)*3[0-7]m", file.getvalue()) is not None
    assert is_coloured is not asked_for


def test_help_groups_commands_in_the_order_of_their_use() -> None:
    said = call("--help").stdout
    names = ["Begin", "list", "Run and look", "run", "show", "report", "Studies", "store"]
    places = [re.search(rf"^[│|] {name} |─ {name}", said, re.MULTILINE) for name in names]
    starts = [-1 if place is None else place.start() for place in places]
    assert -1 not in starts
    assert starts == sorted(starts)


def test_what_failed_is_said_once_for_all_that_share_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = {"status": "failed", "error": "no [bold]memory[/bold]"}
    cells = {Cell("m", "t", name): lost for name in ("one", "two")}
    print_results(cells | {Cell("m", "u", "one"): {"status": "skipped", "error": "no answer"}})
    assert capsys.readouterr().out.splitlines() == [
        "m · t", "one, two failed: no [bold]memory[/bold]", "m · u", "one skipped: no answer",
    ]  # fmt: skip


def test_show_of_what_is_not_there_says_what_is(run: Path) -> None:
    error = call("show", run, "layer_skp").exception
    assert "layer_skip" in str(error)
    assert "unknown model 'gpt2'; there is zoo/hops-4l in" in str(
        call("show", run, "layer_skip", "--model", "gpt2").exception
    )
    assert "unknown task 'ioi'; there is two-hop in" in str(
        call("show", run, "--task", "ioi").exception
    )


def test_a_run_is_equal_to_its_copy(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    done = call("diff", run, tmp_path / "copy")
    assert (done.exit_code, done.stdout.strip()) == (0, "equal")


def _changed(run: Path, folder: Path, change: float) -> Path:
    """Return a copy of a run with one number of its layer_skip changed."""
    shutil.copytree(run, folder)
    cell = folder / Cell("zoo/hops-4l", "two-hop", "layer_skip").path
    frame = pd.read_parquet(cell / "frame.parquet")
    frame.loc[5, "mean"] += change
    frame.to_parquet(cell / "frame.parquet", index=False)
    from interp.files.whole import digest_of

    result = read_json(cell / "result.json")
    result["files"]["frame.parquet"] = digest_of((cell / "frame.parquet").read_bytes())
    write_json(cell / "result.json", result)
    return folder


def test_diff_finds_the_number_that_differs(run: Path, tmp_path: Path) -> None:
    changed = _changed(run, tmp_path / "changed", 0.5)
    found = differences(run, changed, tolerance=1e-5)
    (cell,) = found.cells
    assert cell.path.endswith("layer_skip")
    assert cell.n_different == 1
    assert cell.largest == pytest.approx(0.5, abs=1e-6)
    assert "mean of scope all" in cell.where
    done = call("diff", run, changed)
    assert done.exit_code == 1
    assert "different" in done.stdout


def test_differences_within_the_tolerance_are_none(run: Path, tmp_path: Path) -> None:
    changed = _changed(run, tmp_path / "changed", 1e-3)
    assert call("diff", run, changed, "--tolerance", 1e-2).exit_code == 0


def test_diff_names_other_cells_and_settings(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    execute(Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {}}, n=4), other)
    found = read(call("diff", run, other, "--json").stdout)
    assert found["settings"]["config.n"] == [8, 4]
    assert [path.rpartition("/")[2] for path in found["only_a"]] == ["logit_lens"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\n[analysis.layer_skip]\n', "analyses"),
        ('models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\n[analyses.layer_skp]\n', "layer_skip"),
        (
            'models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\n[analyses.layer_skip]\nparts = "mlp"\n',
            "part",
        ),
        ('models = ["zoo/hops-4l"]\n[analyses.layer_skip]\n', "names no tasks"),
        (
            'models = ["zoo/hops-4l", 5]\ntasks = ["two-hop"]\n[analyses.layer_skip]\n',
            "models is 5; str is needed",
        ),
        (
            'models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\nn = "ten"\n[analyses.layer_skip]\n',
            "n is 'ten'; int or none is",
        ),
        (
            'models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\nanalyses = ["layer_skip"]\n',
            "a table is needed",
        ),
        (
            'models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\nanalyses.layer_skip = 3\n',
            "analyses.layer_skip is 3; a table is",
        ),
        (
            (
                'models = ["zoo/hops-4l"]\ntasks = ["two-hop"]\ndtype ='
                ' "flaot32"\n[analyses.layer_skip]\n'
            ),
            "did you mean 'float32'",
        ),
        ("models = [", "not TOML"),
    ],
)
def test_a_wrong_study_is_named_with_a_suggestion(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    error = str(call("validate", path).exception)
    assert str(path) in error
    assert said in error


def test_a_single_name_is_a_list_of_one(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('models = "zoo/hops-4l"\ntasks = "two-hop"\n[analyses.layer_skip]\n')
    assert read(call("validate", path, "--json").stdout)["cells"] == [
        "zoo--hops-4l/two-hop/layer_skip"
    ]


def test_the_shipped_studies_are_valid() -> None:
    for path in sorted((Path(__file__).parents[1] / "studies").glob("*.toml")):
        done = call("validate", path)
        assert done.exit_code == 0 or "`interp get " in str(done.exception), path


def test_errors_are_json_where_json_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["interp", "show", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as done:
        main()
    captured = capsys.readouterr()
    assert done.value.code == 2
    assert read(captured.out)["error"]["kind"] == "RunError"
    assert str(tmp_path) in read(captured.out)["error"]["message"]


@pytest.mark.parametrize("words", [("show", "nowhere", "--debug"), ("--debug", "show", "nowhere")])
def test_debug_shows_the_error_itself(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, *words) == 2
    captured = capsys.readouterr()
    assert "RunError: no run in nowhere" in captured.err
    assert "Traceback" in captured.err


def test_a_wrong_word_is_explained_with_the_command_that_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "list", "models", "--colour") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--colour" in captured.err
    assert "interp list --help" in captured.err or "interp list -h" in captured.err


def test_an_interruption_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.cli.look.read_run", interrupted)
    assert exit_status(monkeypatch, "show", "anything") == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "--json"), "Missing argument"),
        (("run", "--n", "few", "--json"), "--n"),
        (("frobnicate", "--json"), "No such command"),
        (("list", "models", "--colour", "--json"), "--colour"),
    ],
)
def test_a_command_that_is_none_is_json_too_where_json_is_asked_for(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert exit_status(monkeypatch, *words) == 2
    captured = capsys.readouterr()
    assert said in read(captured.out)["error"]["message"]


def exit_status(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Return what a shell would see."""
    monkeypatch.setattr("sys.argv", ["interp", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_exit_statuses_are_those_of_the_docs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...]
) -> None:
    changed = str(_changed(run, tmp_path / "changed", 0.5))
    assert exit_status(monkeypatch, "list", "tasks", *as_json) == 0
    assert exit_status(monkeypatch, "diff", str(run), changed, *as_json) == 1
    assert exit_status(monkeypatch, "show", str(tmp_path), *as_json) == 2
    assert exit_status(monkeypatch, "show", *as_json) == 2


def test_every_help_text_has_an_example() -> None:
    assert [
        name for name, command in every_command().items() if "Example" not in (command.help or "")
    ] == []


def test_run_folders_complete(run: Path) -> None:
    assert complete_runs(f"{run.parent}/") == [str(run)]
    assert complete_runs(f"{run.parent}/no") == []


def test_the_version_is_said() -> None:
    assert call("--version").stdout.strip() == f"interp {__version__}"


def test_quiet_leaves_results_alone(run: Path) -> None:
    assert "layer_skip" in call("--quiet", "show", run).stdout


def test_a_viewer_for_others_warns_of_the_folder_that_they_can_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **_how: object) -> None:
        raise RunError("no viewer in tests")

    monkeypatch.setattr(viewing, "start", refused)
    for folder in (run, run.parent):
        said = call("view", folder, "--host", "0.0.0.0").stderr
        assert f"can read all runs in {run.parent.resolve()}" in "".join(said.splitlines())


def every_command() -> dict[str, Any]:
    commands = dict(typer.main.get_command(app).commands)
    store, new = (commands.pop(group).commands for group in ("store", "new"))
    return commands | store | new


def test_every_command_that_prints_results_can_print_json() -> None:
    without = {"view"}  # a server
    for name, command in every_command().items():
        assert name in without or any("--json" in param.opts for param in command.params), name
