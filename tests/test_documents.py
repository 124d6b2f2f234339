"""What programs read: every command's JSON has a published schema, and runs say what happens."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from interp.cli import app, terminal
from interp.cli.schemas import documents, schema_of
from interp.runs import find_analyses
from tests.documents import read, read_events
from tests.test_look_cli import every_command, exit_status

HOPS, TASK = "zoo/hops-4l", "two-hop"


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def words(folder: Path) -> list[object]:
    (folder / "own.jsonl").write_text('{"text": "Ada friend boss"}\n')
    asked = ["--analysis", "logit_lens", "--analysis", "attention_knockout"]
    only = ["--on", f"attention_knockout={folder / 'own.jsonl'}", "--on", f"logit_lens={TASK}"]
    tasks = ["--task", TASK, "--task", folder / "own.jsonl"]
    return ["run", "--model", HOPS, *tasks, *asked, *only, "--n", 4, "--no-store"]


@pytest.fixture(scope="module")
def first(folder: Path, words: list[object]) -> Result:
    return call(*words, "--out", folder / "run", "--json")


def test_a_run_says_what_happens_one_event_a_line(folder: Path, first: Result) -> None:
    said = read_events(first.stdout)
    assert first.exit_code == 1  # an answer is needed
    assert (said[0]["event"], said[0]["document"], said[0]["schema"]) == ("started", "events", 1)
    kinds = [event["event"] for event in said if event["event"] != "progress"]
    assert kinds == ["started", "plan", "cell", "plan", "failed", "finished"]
    ended = {event["cell"]: event for event in said if event["event"] in ("cell", "failed")}
    assert [*ended] == said[0]["cells"]
    (cell, failed), last = ended.values(), said[-1]
    assert cell["findings"][0]["claim"] == cell["summary"]
    assert "an answer is needed" in failed["error"]
    assert (last["exit_status"], last["n_of"]) == (1, {"cell": 1, "left_out": 0, "failed": 1})
    on_disk = json.loads((folder / "run/run.json").read_text())
    assert last["record"] == {key: on_disk[key] for key in on_disk if key != "digest"}
    assert "logit_lens" in first.stderr  # what people read


def test_a_run_that_goes_on_says_what_was_finished_before(
    folder: Path, words: list[object], first: Result
) -> None:
    again = read_events(call(*words, "--out", folder / "run", "--json").stdout)
    before = [event for event in read_events(first.stdout) if event["event"] == "cell"]
    assert [event for event in again if event["event"] == "cell"] == before


def test_a_run_that_is_interrupted_ends_with_that(
    folder: Path, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.runs.execute", interrupted)
    done = call(*words, "--out", folder / "other", "--json")
    assert [event["event"] for event in read_events(done.stdout)] == ["started", "interrupted"]
    assert done.exit_code == 130


def test_documents_of_a_run_are_as_their_schemas_say(folder: Path, first: Result) -> None:
    del first
    run = folder / "run"
    (cell, failed) = read(call("show", run, "--json").stdout)["cells"]
    assert (cell["status"], failed["status"]) == ("ok", "failed")
    (table,) = read(call("show", run, "logit_lens", "--rows", 2, "--json").stdout)["cells"]
    assert (len(table["rows"]), table["n_rows"] > 2) == (2, True)
    assert read(call("diff", run, run, "--json").stdout)["equal"]
    (plan,) = read(call(*_plan(folder), "--json").stdout)["timed"]
    assert (plan["cell"], plan["n_prompts"]) == (cell["cell"], 4)


def _plan(folder: Path) -> list[object]:
    words = ["run", "--model", HOPS, "--task", TASK, "--n", 4, "--analysis", "logit_lens"]
    return [*words, "--out", folder / "run", "--dry-run"]


def test_documents_without_a_run_are_as_their_schemas_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for of in ("models", "tasks", "analyses"):
        assert read(call("list", of, "--json").stdout)["of"] == of
    monkeypatch.chdir(folder)
    new = read(call("new", "analysis", "my_own", "--json").stdout)
    assert Path(new["file"]).is_file()


def test_every_command_has_a_schema_and_every_schema_is_one() -> None:
    titles = [schema_of(name)["title"] for name in documents()]
    for name in ("report", "events"):  # the latter has the parts of all others
        jsonschema.Draft202012Validator.check_schema(schema_of(name))
    for name in every_command().keys() - {"view", "schema", "report"}:
        assert any(f" {name} " in title for title in titles), name
    assert json.loads(call("schema", "events").stdout) == schema_of("events")


def test_an_analysis_has_a_schema_of_its_parameters_that_its_defaults_keep() -> None:
    for name, analysis in find_analyses().items():
        schema = schema_of(name)
        jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(asdict(analysis()))))
        assert schema["properties"].keys() == asdict(analysis()).keys()
    part = schema_of("layer_skip")["properties"]["part"]
    assert (part["default"], "mlp" in part["enum"]) == ("layer", True)
    assert schema_of("integrated_gradients")["properties"]["every"]["minimum"] == 1


def test_an_error_is_a_document_with_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "schema", "shwo", "--json") == 2
    said = read(capsys.readouterr().out)
    assert said["exit_status"] == 2
    assert "did you mean 'show'" in said["error"]["message"]


def test_a_bug_has_a_status_of_its_own_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Path) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("interp.cli.look.read_run", broken)
    assert exit_status(monkeypatch, "show", "anything", "--json") == 70
    captured = capsys.readouterr()
    assert read(captured.out)["error"] == {"kind": "KeyError", "message": "'lost'"}
    assert "Traceback" in captured.err
    assert captured.err.splitlines()[-1] == "interp: a bug (KeyError: 'lost')"


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    words = f"{sys.executable} -m interp.cli list analyses --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")  # 0: it had written all by then


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say_document("x", values=[float("nan"), (float("inf"), 1.5)])
    assert json.loads(capsys.readouterr().out)["values"] == [None, [None, 1.5]]
