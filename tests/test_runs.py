"""A run as its user sees it: finished, resumed, refused, and opened again."""

import json
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp import cli
from interp.analyses.layer_skip import LayerSkip
from interp.analyses.residual_erasure import ResidualErasure
from interp.result import Origin
from interp.runs import Study, execute
from interp.runs.commands import command_of
from interp.runs.executors import ProcessExecutor
from interp.runs.folder import read_run
from interp.runs.parts import pack, unpack, write_part
from interp.runs.registry import find_analyses
from interp.runs.unfinished import unfinished_cells

ASKED = ["--analysis", "layer_skip", "--analysis", "residual_contribution"]
RUN = ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--n", "8", *ASKED]


def invoke(*args: str) -> int:
    return CliRunner().invoke(cli.app, list(args)).exit_code


def main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["interp", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert invoke(*RUN, "--out", str(folder)) == 0
    return folder


def test_a_run_holds_every_analysis_and_opens_again(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert {cell["analysis"] for cell in run["cells"].values()} == {
        "layer_skip",
        "residual_contribution",
    }
    assert all(cell["status"] == "ok" for cell in run["cells"].values())
    again = interp.open_run(finished)["zoo/hops-4l", "two-hop", "layer_skip"]
    direct = LayerSkip().run(interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=8))
    np.testing.assert_array_equal(again.grid("all"), direct.grid("all"))
    assert again.origin == Origin(finished, "zoo/hops-4l", "two-hop", "layer_skip")
    assert direct.origin is None


def test_an_interrupted_run_resumes_to_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    run = json.loads((half / "run.json").read_text())
    run["cells"] = {}
    del run["digest"]
    (half / "run.json").write_text(json.dumps(run))
    parts = sorted(half.glob("*/*/layer_skip/parts/*.safetensors"))
    parts[0].unlink()
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])
    assert invoke(*RUN, "--out", str(half)) == 0
    key = ("zoo/hops-4l", "two-hop", "layer_skip")
    np.testing.assert_array_equal(
        interp.open_run(half)[key].grid("all"), interp.open_run(finished)[key].grid("all")
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "--model", "zoo/hops-4", "--task", "two-hop"], "zoo/hops-4l"),
        (["run", "--model", "zoo/hops-4l", "--task", "twohop"], "did you mean 'two-hop'"),
        (
            ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--analysis", "layer_skp"],
            "did you mean 'layer_skip'",
        ),
        (
            ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--set", "layer_skip.parts=mlp"],
            "did you mean 'part'",
        ),
        (
            ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--set", "layer_skip.part=mlps"],
            "did you mean 'mlp'",
        ),
        (
            [
                "run",
                "--model",
                "zoo/hops-4l",
                "--task",
                "two-hop",
                "--set",
                "layer_skip.n_splits=x",
            ],
            "int is needed",
        ),
        (
            ["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--set", "layer_skip"],
            "ANALYSIS.PARAMETER=VALUE",
        ),
        (["run", "--model", "zoo/hops-4l", "--task", "two-hop", "--n", "0"], "at least 1"),
        (["run", "--model", "zoo/hops-4l"], "no task given"),
        (["run", "none.toml"], "no study file"),
        (["report", "nowhere"], "no run in nowhere"),
        (["list", "model"], "did you mean 'models'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    args: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *args) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error


def test_the_same_folder_with_another_configuration_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, *RUN, "--seed", "1", "--out", str(finished)) == 2
    assert "seed = 0; 1 was asked for" in capsys.readouterr().err
    other = [*RUN, "--analysis", "stream_statistics", "--out", str(finished), "--dry-run"]
    assert main(monkeypatch, *other) == 0
    assert "run with other analyses (stream_statistics)" in capsys.readouterr().err


def test_a_name_that_does_not_exist_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistyped = [word if word != "zoo/hops-4l" else str(tmp_path / "my-modle") for word in RUN]
    assert main(monkeypatch, *mistyped, "--out", str(tmp_path / "run")) == 2
    assert invoke(*RUN, "--out", str(tmp_path / "run")) == 0


def test_an_analysis_runs_on_the_tasks_that_it_is_asked_for(tmp_path: Path) -> None:
    asked = tmp_path / "some.toml"
    asked.write_text(
        'models = ["zoo/hops-4l"]\ntasks = ["one-hop", "two-hop"]\nn = 8\n'
        '[on]\nblock_influence = ["two-hop"]\n'
        "[analyses.residual_contribution]\n[analyses.block_influence]\n"
    )
    assert invoke("run", str(asked), "--out", str(tmp_path / "run")) == 0
    run = read_run(tmp_path / "run")
    cells = {(cell["task"], cell["analysis"]) for cell in run["cells"].values()}
    contribution = {(task, "residual_contribution") for task in ("one-hop", "two-hop")}
    assert cells == contribution | {("two-hop", "block_influence")}
    assert unfinished_cells(tmp_path / "run", run) == {}
    words = command_of(run["config"], out=str(tmp_path / "again"))
    assert "--on block_influence=two-hop" in words
    assert invoke(*shlex.split(words)[1:]) == 0
    assert {*read_run(tmp_path / "again")["cells"]} == {*run["cells"]}


@pytest.mark.parametrize(
    ("on", "why"),
    [
        ("block_influnce=two-hop", "on: unknown analysis 'block_influnce'; did you mean"),
        ("block_influence=to-hop", "on: unknown task 'to-hop'; did you mean 'two-hop'"),
        ("block_influence", "--on 'block_influence' given; ANALYSIS=TASK,… is needed"),
    ],
)
def test_on_what_does_not_exist(
    on: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ("run", "--model", "zoo/hops-4l", "--task", "two-hop", "--analysis", "block_influence")
    assert main(monkeypatch, *run, "--on", on, "--out", str(tmp_path / "run")) == 2
    assert why in capsys.readouterr().err


def test_a_failed_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "Ada boss", "answer": "Ben"}\n')
    args = ["run", "--model", "zoo/hops-4l", "--task", str(short), "--out", str(tmp_path / "run")]
    assert invoke(*args, *ASKED) == 1
    cells = {
        c["analysis"]: c
        for c in json.loads((tmp_path / "run" / "run.json").read_text())["cells"].values()
    }
    assert cells["residual_contribution"]["status"] == "ok"
    assert "needs at least 4" in cells["layer_skip"]["error"]


def test_without_a_name_all_analyses_that_suit_the_task_run(tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "Ada boss", "answer": "Ben"}\n')
    assert (
        invoke(
            "run", "--model", "zoo/hops-4l", "--task", str(short), "--out", str(tmp_path / "run")
        )
        == 0
    )
    cells = {
        c["analysis"]: c
        for c in json.loads((tmp_path / "run" / "run.json").read_text())["cells"].values()
    }
    assert set(cells) == set(find_analyses())
    assert cells["residual_contribution"]["status"] == "ok"
    assert (cells["layer_skip"]["status"], "needs at least 4" in cells["layer_skip"]["error"]) == (
        "skipped",
        True,
    )


def test_the_report_is_one_file_that_escapes_prompts(finished: Path) -> None:
    assert invoke("report", str(finished)) == 0
    page = (finished / "report.html").read_text()
    assert "src=" not in page.split("<script>")[0]
    assert "Skipping layer" in page


def test_what_is_prepared_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = [
        "--analysis",
        "residual_erasure",
        "--set",
        "residual_erasure.scopes=position",
        "--no-store",
    ]
    assert (
        invoke(
            "run",
            "--model",
            "zoo/hops-4l",
            "--task",
            "two-hop",
            "--n",
            "4",
            *asked,
            "--out",
            str(out),
        )
        == 0
    )
    (cell,) = json.loads((out / "run.json").read_text())["cells"].values()
    model = interp.load_model("zoo/hops-4l")
    analysis = ResidualErasure(scopes=("position",))
    task = interp.load_task("two-hop").take(4)
    analysis.run(model, task)
    forward = (
        sum(model.tokenize(shard).tokens.numel() for shard in model.shards(task)) * model.n_layers
    )
    assert cell["forwards_per_prompt"] == pytest.approx(model.work.block_tokens / forward, rel=1e-3)


def test_one_cause_is_told_once(tmp_path: Path) -> None:
    asked = [
        "run",
        "--model",
        "zoo/hops-4l",
        "--task",
        "two-hop-facts",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 1
    assert (
        done.output.count(
            "does not fit this tokenizer: 319 prompts with words that the tokenizer does not know"
        )
        == 1
    )


def test_a_part_of_one_prompt_is_kept_whatever_its_strides(tmp_path: Path) -> None:
    column = torch.arange(12.0).reshape(1, 12)[:, 5]  # one number, of stride 12
    write_part(tmp_path / "part", pack({"x": column}, "key"))
    assert unpack(tmp_path / "part", key="key")["x"].tolist() == [5.0]


def test_some_prompts_of_two_tasks_are_run_one_task_after_the_other(tmp_path: Path) -> None:
    study = Study(("zoo/hops-4l",), ("two-hop", "one-hop"), {"block_influence": {}}, n=6)
    run = execute(study, tmp_path)
    assert [cell["status"] for cell in run["cells"].values()] == ["ok", "ok"]
    assert {name: task["prompts"] for name, task in run["tasks"].items()} == {
        "two-hop": 6,
        "one-hop": 6,
    }


def test_parts_and_prompts_of_an_earlier_plan_go(tmp_path: Path) -> None:
    study = Study(("zoo/hops-4l",), ("two-hop",), {"block_influence": {}}, n=6)
    execute(study, tmp_path)
    (part,) = tmp_path.glob("*/*/block_influence/parts/00000.safetensors")
    earlier = [part.with_name("00007.safetensors"), part.parents[1] / "prompts.jsonl"]
    for path in earlier:
        path.write_bytes(b"of another plan")
    (tmp_path / "run.json").unlink()
    execute(study, tmp_path)
    assert not any(path.exists() for path in earlier)
    assert interp.open_run(tmp_path)["zoo/hops-4l", "two-hop", "block_influence"].findings()


def test_a_worker_that_died_while_it_had_nothing_to_do_is_replaced() -> None:
    executor = ProcessExecutor("text", threads=1, gpu=None)  # a worker of which one can ask `upper`
    try:
        assert executor.submit("upper").result() == "TEXT"
        pool = executor._pool
        for process in pool._processes.values():
            process.kill()
        while not pool._broken:
            time.sleep(0.01)
        assert executor.submit("upper").result() == "TEXT"
    finally:
        executor.close()
