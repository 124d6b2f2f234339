"""An analysis in a file of one's own is run, resumed, reported and opened as all others are."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import interp
from interp import cli
from interp.cli.study import StudyFlags, study_of
from interp.errors import AnalysisError, RunError
from interp.runs import Study, execute, own
from interp.runs.folder import Cell, read_run
from interp.runs.identity import _code_of
from interp.runs.own import analysis_in
from interp.runs.plan import PlannedCell
from interp.runs.speed import Pace, Speed
from interp.testing import check_analysis

TEMPLATE = Path(cli.__file__).with_name("template.py").read_text()
RUN = ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--n", "8", "--analysis"]
CELL = ("zoo/hops-4l", "two-hop", "my_norm")


def call(*args: Any) -> Any:
    return CliRunner().invoke(cli.app, [*map(str, args)])


def said(result: Any) -> str:
    return result.stderr if result.exception is None else f"{result.stderr}{result.exception}"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder in which `interp new analysis` has written a file."""
    monkeypatch.chdir(tmp_path)
    assert call("new", "analysis", "my_norm").exit_code == 0
    return tmp_path / "my_norm.py"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a process that has run no file yet."""
    for module in own._SOURCES:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(own, "_SOURCES", {})


def test_a_new_analysis_keeps_the_contract(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 71
    my_norm = analysis_in("my_norm.py")()
    check_analysis(my_norm, interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=6))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MyNorm", "lower case"),
        ("my_2nd", "lower case"),
        ("class", "lower case"),
        ("../norm", "lower case"),
        ("layer_skip", "there already"),
        ("json", "would hide the module json"),
        ("my_norm", "there already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(file: Path, name: str, says: str) -> None:
    before = sorted(file.parent.iterdir()), file.read_text()
    with pytest.raises(AnalysisError, match=says):
        cli.app(["new", "analysis", name], standalone_mode=False)
    assert (sorted(file.parent.iterdir()), file.read_text()) == before


def test_it_is_run_resumed_shown_reported_and_opened(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*RUN, "./my_norm.py", "--set", "my_norm.n_random=4", "--out", "run"]
    assert call(*asked).exit_code == 0
    finished = read_run(Path("run"))
    file = file.rename("moved.py")
    assert call(*RUN, file, *asked[len(RUN) + 1 :]).exit_code == 0
    assert read_run(Path("run"))["cells"] == finished["cells"]
    assert "times as long" in call("-v", "show", "run").stdout
    assert call("report", "run").exit_code == 0
    command = "--analysis moved.py:MyNorm --set my_norm.n_random=4"
    assert command in Path("run/report.html").read_text()
    file.unlink()
    here = interp.open_run("run")[CELL].to_frame()  # this process has run that file
    forget(monkeypatch)
    with pytest.raises(RunError, match=r"code in run/analyses/my_norm\.py.*trust_code=True"):
        interp.open_run("run")[CELL]
    there = interp.open_run("run", trust_code=True)[CELL].to_frame()
    np.testing.assert_array_equal(here, there)


@pytest.mark.usefixtures("file")
def test_labels_and_a_study_file_name_it_too() -> None:
    Path("study.toml").write_text(
        'models = "zoo/hops-4l"\ntasks = ["two-hop", "one-hop"]\nn = 8\n'
        '[analyses."./my_norm.py"]\n[analyses."./my_norm.py:MyNorm@few"]\nn_random = 2\n'
        '[on]\nmy_norm = ["two-hop"]\n"my_norm@few" = ["two-hop"]\n'
    )
    assert call("validate", "study.toml").exit_code == 0
    assert call("run", "study.toml", "--out", "run").exit_code == 0
    run = interp.open_run("run")
    assert {path.rpartition("/")[2] for path in run.info["cells"]} == {"my_norm", "my_norm@few"}
    many, few = run[CELL], run[(*CELL[:2], "my_norm@few")]
    np.testing.assert_array_equal(many.to_frame()["mean"], few.to_frame()["mean"])
    assert (many.to_frame()["control"] != few.to_frame()["control"]).all()


@pytest.mark.usefixtures("file")
def test_a_flag_chooses_it_from_a_study_file_by_its_name() -> None:
    Path("study.toml").write_text(
        '[analyses."./my_norm.py"]\nn_random = 2\n[analyses.layer_skip]\n'
    )
    flags = StudyFlags(models=["zoo/hops-4l"], tasks=["two-hop"])
    for name in ("my_norm", "my_norm.py:MyNorm"):
        study = study_of(Path("study.toml"), flags, analyses=[name], settings=["my_norm.seed=5"])
        assert study.analyses == {"my_norm": {"n_random": 2, "seed": 5}}
        assert study.files == {"my_norm": "./my_norm.py:MyNorm"}


def test_a_changed_file_does_not_resume_on_what_the_old_one_measured(file: Path) -> None:
    study = Study(("zoo/hops-4l",), ("two-hop",), {str(file): {}}, n=8)
    execute(study, Path("run"))
    file.write_text(TEMPLATE.replace("StreamLength", "MyNorm").replace("norm(dim=-1)", "sum(-1)"))
    with pytest.raises(RunError, match=r"has changed since, and run/analyses/my_norm.py is what"):
        execute(study, Path("run"))


def test_a_file_that_failed_may_be_corrected(file: Path) -> None:
    right = file.read_text()
    file.write_text(right.replace("n_random: int", "n: int").replace('prepared["random"]', "None"))
    study = Study(("zoo/hops-4l",), ("two-hop",), {str(file): {}}, n=8)
    (cell,) = execute(study, Path("run"))["cells"].values()
    assert cell["status"] == "failed"
    assert "(my_norm.py:" in cell["error"]
    file.write_text(right)
    (cell,) = execute(study, Path("run"))["cells"].values()
    assert cell["status"] == "ok"


def test_a_corrected_file_changes_no_plan_of_other_analyses(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = Speed({5: Pace(0.0, 0.1)}, 2.0), Speed({5: Pace(0.0, 1e-9)}, 2.0)
    asked = {str(file): {}, "residual_erasure": {}}
    study = Study(("zoo/hops-4l",), ("two-hop",), asked, n=20, only_fitting=True, budget=3.0)
    right = file.read_text()
    file.write_text(right.replace("n_random: int", "n: int").replace('prepared["random"]', "None"))
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: slow)
    first = execute(study, Path("run"))
    file.write_text(right)
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: quick)
    again = execute(study, Path("run"))
    own, other = ("zoo--hops-4l/two-hop/" + name for name in ("my_norm", "residual_erasure"))
    assert (first["cells"][own]["status"], again["cells"][own]["status"]) == ("failed", "ok")
    assert first["cells"][other]["n_prompts"] < 20
    assert again["cells"][other]["identity"] == first["cells"][other]["identity"]


def test_what_is_measured_is_what_was_read_though_the_file_changes(
    file: Path,
) -> None:
    study = Study(("zoo/hops-4l",), ("two-hop",), {str(file): {}}, n=8)

    def change(_: object) -> None:
        file.write_text("raise ValueError")

    (cell,) = execute(study, Path("run"), announce=change)["cells"].values()
    assert cell["status"] == "ok"


def test_workers_and_actors_make_it_without_its_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = analysis_in(str(file))(n_random=3)
    planned = PlannedCell(Cell(*CELL), analysis)
    code = _code_of(type(analysis))
    cloudpickle = pytest.importorskip("cloudpickle")
    sent = [module.dumps(planned) for module in (pickle, cloudpickle)]
    file.unlink()
    for each in sent:
        forget(monkeypatch)
        there = pickle.loads(each).analysis
        assert vars(there) == vars(analysis)
        assert type(there) is not type(analysis)
        assert _code_of(type(there)) == code != ""


@pytest.mark.slow
def test_two_workers_find_the_same_numbers(file: Path) -> None:
    study = Study(("zoo/hops-4l",), ("two-hop",), {str(file): {}}, n=40)
    execute(study, Path("one"))
    execute(study, Path("two"), workers=2)
    frames = [interp.open_run(folder)[CELL].to_frame() for folder in ("one", "two")]
    np.testing.assert_array_equal(*frames)


WHOLE = TEMPLATE.replace("StreamLength", "MyNorm")
SEVERAL = f"{WHOLE}\n\n@dataclass(frozen=True)\nclass Another(MyNorm):\n    pass\n"
WRONG = {
    "no file": (None, "./wrong.py", r"no file wrong\.py"),
    "a syntax error": ("x = 1\ndef f(:\n", "./wrong.py", r"wrong\.py .* line 2: SyntaxError"),
    "a missing import": (
        "\n\nimport nothing_so\n",
        "./wrong.py",
        r"wrong\.py .* line 3: ModuleNotFoundError: No module named 'nothing_so'$",
    ),
    "a script": ("import sys\nsys.exit(3)\n", "./wrong.py", r"line 2: SystemExit: 3$"),
    "an error below": (
        "def f():\n    return 1 / 0\n\nf()\n",
        "./wrong.py",
        r"line 2: ZeroDivisionError",
    ),
    "no analysis": ("x = 1\n", "./wrong.py", r"wrong\.py has no analysis; a class that extends"),
    "several": (SEVERAL, "./wrong.py", r"several analyses \(Another, MyNorm\); name one"),
    "another class": (WHOLE, "./wrong.py:MyNrm", r"no analysis 'MyNrm'; there is MyNorm"),
    "half an analysis": (
        WHOLE.replace("def combine", "def other").replace("def cost", "def costs"),
        "./wrong.py",
        r"MyNorm lacks combine, cost",
    ),
    "no default": (
        WHOLE.replace("n_random: int = 32", "n_random: int"),
        "./wrong.py",
        r"MyNorm\.n_random has no default",
    ),
    "a name that is taken": (
        WHOLE.replace("MyNorm", "LayerSkip"),
        "./wrong.py",
        r"LayerSkip would be called layer_skip",
    ),
    "a broken promise": (
        WHOLE.replace("forwards=0.0", "forwards=2.0").replace("Every layer's", "").replace(
            "it reads.", "it reads"
        ),
        "./wrong.py",
        r"wrong\.py:MyNorm on zoo/hops-4l, two-hop: question, how and caveat: .* does not end",
    ),
    "a check that fails": (
        WHOLE.replace("def cost(", "def check(self, *_):\n        1 / 0\n\n    def cost("),
        "./wrong.py",
        r"ZeroDivisionError: division by zero \(wrong\.py:\d+, in check\)",
    ),
    "bytes": (b"\xff\xfe", "./wrong.py", r"no text in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_in_one_line_before_any_work(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, given, says = WRONG[what]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("wrong.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnalysisError, match=says) as raised:
        cli.app([*RUN, given, "--out", "run"], standalone_mode=False)
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_a_file_given_twice_or_two_of_one_name_are_refused(file: Path) -> None:
    models, tasks = ("zoo/hops-4l",), ("two-hop",)
    with pytest.raises(RunError, match="my_norm is given twice"):
        Study(models, tasks, {"my_norm.py": {}, "./my_norm.py:MyNorm": {}})
    Path("other.py").write_text(file.read_text())
    with pytest.raises(RunError, match=r"other.py:MyNorm and my_norm.py:MyNorm have one name"):
        Study(models, tasks, {"my_norm.py": {}, "other.py@few": {}})


def test_one_that_suits_no_shipped_model_is_left_to_the_run(file: Path) -> None:
    refusing = (
        'def check(self, model, shard):\n        raise AnalysisError("not this")\n\n    def cost('
    )
    text = file.read_text().replace("def cost(", refusing)
    file.write_text(
        text.replace("import torch\n", "import torch\nfrom interp.errors import AnalysisError\n")
    )
    assert call(*RUN, "my_norm.py", "--out", "run").exit_code == 1
    (cell,) = json.loads(Path("run/run.json").read_text())["cells"].values()
    assert cell["error"] == "not this"


def test_the_list_of_analyses_says_how_to_bring_one() -> None:
    listed = call("list", "analyses")
    assert "interp new analysis NAME" in listed.stderr
    assert "interp new" not in listed.stdout
