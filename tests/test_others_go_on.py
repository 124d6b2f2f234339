"""One bad prompt, cell or model never stops the others."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp import Prompt, Task
from interp.analyses.activation_patching import ActivationPatching
from interp.analyses.attention_knockout import AttentionKnockout
from interp.analyses.block_influence import BlockInfluence, BlockInfluenceResult
from interp.analyses.relevance_patching import RelevancePatching
from interp.analysis import Analysis, usable_shards
from interp.errors import InterpError, ModelError, RunError
from interp.files.paths import shipped_models
from interp.models import Model
from interp.runs import Study, estimate_costs, execute
from interp.runs.executors import run_jobs
from interp.runs.folder import Cell, folder_name
from interp.runs.plan import Failure, Job, PlannedCell, Spent
from interp.runs.registry import find_analyses

HOPS = "zoo/hops-4l"


@pytest.fixture(autouse=True)
def few_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    interp.load_task("two-hop", n=40).to_jsonl("few.jsonl")


def study(
    *analyses: str,
    models: tuple[str, ...] = (HOPS,),
    tasks: tuple[str, ...] = ("few.jsonl",),
    **more: Any,
) -> Study:
    return Study(models, tasks, {name: {} for name in analyses}, **more)


def by_analysis(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["analysis"]: cell for cell in run["cells"].values()}


# Cells


@pytest.mark.parametrize(
    "error",
    [KeyError("resid"), IndexError("list index"), AttributeError("no"), ZeroDivisionError("0")],
)
def test_any_exception_of_a_cell_is_that_cells_failure(
    error: Exception, tmp_path: Path, monkeypatch: Any
) -> None:
    asked: list[int] = []

    def fails(*_: Any) -> Any:
        asked.append(1)
        raise error

    monkeypatch.setattr(BlockInfluence, "measure", fails)
    cells = by_analysis(execute(study("block_influence", "layer_skip"), tmp_path))
    assert cells["layer_skip"]["status"] == "ok"
    assert cells["block_influence"]["status"] == "failed"
    told = cells["block_influence"]["error"]
    assert type(error).__name__ in told
    assert "test_others_go_on.py:" in told
    assert "Traceback" in cells["block_influence"]["traceback"]
    assert len(asked) == 1  # not once a shard


@pytest.mark.parametrize("stage", ["prepare", "combine", "check"])
def test_whatever_the_stage(stage: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(BlockInfluence, stage, lambda *_: {}["nothing"])
    cells = by_analysis(execute(study("block_influence", "layer_skip"), tmp_path))
    assert (cells["block_influence"]["status"], cells["layer_skip"]["status"]) == ("failed", "ok")
    assert "KeyError" in cells["block_influence"]["error"]


def test_a_result_that_cannot_be_drawn_fails_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(BlockInfluenceResult, "plot", lambda *_: 1 / 0)
    cells = by_analysis(execute(study("block_influence", "layer_skip"), tmp_path))
    assert (cells["block_influence"]["status"], cells["layer_skip"]["status"]) == ("failed", "ok")


class Doing:
    """An executor that does jobs at once, by a function."""

    def __init__(self, do: Callable[[Job], Any]) -> None:
        self.do = do

    def submit(self, _call: str, job: Job) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(self.do(job))
        return future

    def replace(self) -> None: ...

    def close(self) -> None: ...


def test_a_cell_that_has_failed_is_left_out_of_further_jobs() -> None:
    good, bad = (PlannedCell(Cell("m", "t", name), BlockInfluence()) for name in ("good", "bad"))
    failed: dict[Cell, Failure] = {}
    seen: list[tuple[PlannedCell, ...]] = []

    def do(job: Job) -> dict[Cell, Any]:
        seen.append(job.cells)
        return {each.cell: Failure("no", "") if each == bad else Spent() for each in job.cells}

    jobs = [Job("m", "t", (good, bad), 0), Job("m", "t", (good, bad), 1), Job("m", "t", (bad,), 2)]
    for _, outcome in run_jobs([Doing(do)], jobs, is_stopping=lambda: False, failed=failed):
        failed |= {cell: each for cell, each in outcome.items() if isinstance(each, Failure)}
    assert seen == [(good, bad), (good,)]


# Models


def other_family(folder: Path, kind: str, **config: Any) -> None:
    torch.manual_seed(0)
    plain = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**plain, **config}))
    module.save_pretrained(folder)
    for file in shipped_models()[HOPS].glob("tokenizer*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("recurrent_gemma", {"block_types": ["recurrent", "attention"], "lru_width": 32}),
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_family_that_cannot_be_taken_apart_is_refused_in_one_line(
    kind: str, config: dict[str, Any]
) -> None:
    plain = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**plain, **config}))
    with pytest.raises(ModelError) as refused:
        interp.load_model(module)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_beside_a_model_of_another_kind_a_good_one_is_measured(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    recurrent = {"block_types": ["recurrent", "attention"], "lru_width": 32}
    other_family(tmp_path / "other", "recurrent_gemma", **recurrent)
    run = execute(study("block_influence", models=("other", HOPS)), tmp_path / "run")
    of_model = {cell["model"]: cell for cell in run["cells"].values()}
    assert (of_model["other"]["status"], of_model[HOPS]["status"]) == ("failed", "ok")
    assert "\n" not in of_model["other"]["error"]


# Prompts


def mixed() -> Task:
    """Two-hop prompts, and some without a subject, of which the first hop cannot be asked."""
    prompts = interp.load_task("two-hop", n=10).prompts
    without = [
        Prompt(f"without {i}", prompt.text, prompt.answer) for i, prompt in enumerate(prompts[:4])
    ]
    return Task("mixed", (*without, *prompts))


def test_what_one_analysis_cannot_use_is_left_out_of_that_one(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed().to_jsonl("mixed.jsonl")
    asked = study("attention_knockout", "block_influence", tasks=("mixed.jsonl",))
    cells = by_analysis(execute(asked, tmp_path / "run"))
    knockout, influence = cells["attention_knockout"], cells["block_influence"]
    assert (knockout["status"], influence["status"]) == ("ok", "ok")
    assert (knockout["n_prompts"], influence["n_prompts"]) == (10, 14)
    assert "4 prompts" in knockout["left_out"]
    assert not influence["left_out"]
    run = interp.open_run(tmp_path / "run")
    own, all_of_them = (
        run.prompts(HOPS, "mixed.jsonl", name) for name in ("attention_knockout", "block_influence")
    )
    assert [all_of_them[i].id for i in knockout["prompts"]] == [prompt.id for prompt in own]
    with pytest.warns(UserWarning, match="4 prompts"):
        direct = AttentionKnockout().run(interp.load_model(HOPS), mixed())
    alone = AttentionKnockout().run(interp.load_model(HOPS), Task("own", own))
    pd.testing.assert_frame_equal(direct.to_frame(), alone.to_frame())
    pd.testing.assert_frame_equal(
        run[HOPS, "mixed.jsonl", "attention_knockout"].to_frame(), alone.to_frame()
    )


def test_what_it_would_cost_leaves_out_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    mixed().to_jsonl("mixed.jsonl")
    Task.from_texts(["Nora rival teacher"]).to_jsonl("texts.jsonl")
    asked = {"tasks": ("mixed.jsonl", "texts.jsonl"), "only_fitting": True}
    costs = {
        (e.cell.task, e.cell.analysis): e
        for e in estimate_costs(study("attention_knockout", "block_influence", **asked))
    }
    assert costs["mixed.jsonl", "attention_knockout"].n_prompts == 10
    assert "4 prompts" in costs["mixed.jsonl", "attention_knockout"].left_out
    assert costs["texts.jsonl", "attention_knockout"].why_not
    assert costs["texts.jsonl", "block_influence"].n_prompts == 1
    (named,) = estimate_costs(study("attention_knockout", tasks=("texts.jsonl",)))
    assert "answer" in named.why_not


TWINS = "Nora rival teacher", "Dora rival teacher"


def bad_and_good() -> Task:
    """Six good prompts of one length, and one for every way to be unfit for patching."""
    text, twin = TWINS
    known = interp.load_task("two-hop").prompts
    answers = sorted({prompt.answer or "" for prompt in known})[:12]
    asked = {"answer": answers[0], "wrong": answers[1], "corrupted": twin}
    good = [
        Prompt(f"good {i}", text, answer=answers[i], wrong=answers[i + 1], corrupted=twin)
        for i in range(6)
    ]
    bad = [
        Prompt("no twin", text, answer=answers[0], wrong=answers[1]),
        Prompt("long twin", text, **{**asked, "corrupted": f"{twin} boss"}),
        Prompt("own twin", text, **{**asked, "corrupted": text}),
        Prompt("no wrong", text, **{**asked, "wrong": None}),
        Prompt("own wrong", text, **{**asked, "wrong": f"{answers[0]} {answers[2]}"}),
        Prompt("no answer", text, **{**asked, "answer": None}),
        Prompt("long answer", text, **{**asked, "answer": f"{answers[0]} {answers[1]}"}),
        Prompt("short", "Nora", **{**asked, "corrupted": "Dora"}),
    ]
    return Task("bad-and-good", (*bad[:4], *good, *bad[4:]))


@pytest.mark.parametrize("analysis", [ActivationPatching(), RelevancePatching()])
def test_one_prompt_that_cannot_be_patched_is_left_out_alone(analysis: Analysis) -> None:
    model, task = interp.load_model(HOPS), bad_and_good()
    with pytest.warns(UserWarning, match="left out") as told:
        result = analysis.run(model, task)
    (said,) = [str(each.message) for each in told]
    for reason in (
        "1 prompt (prompt 'no twin' has no corrupted twin)",
        "1 prompt (prompt 'long twin' has 4 tokens, its corrupted twin 5; as many are needed)",
        "1 prompt (prompt 'own twin' and its corrupted twin are the same",
        "1 prompt (metric logit_diff needs a wrong answer; prompt 'no wrong' has no wrong",
        "1 prompt (prompt 'own wrong': answer",
        "1 prompt (an answer is needed for every prompt; 1 prompt (first: 'no answer')",
        "1 prompt (answers of one token are needed; 1 prompt (first: 'long answer')",
    ):
        assert reason in said
    kept = [p for p in task.prompts if p.id.startswith("good") or p.id == "short"]
    alone = analysis.run(model, task.of(kept))
    pd.testing.assert_frame_equal(result.to_frame(), alone.to_frame())


def test_every_analysis_leaves_out_single_prompts() -> None:
    model, task = interp.load_model(HOPS), bad_and_good()
    n_usable = {
        "attention_knockout": 0, "back_patching": 0, "depth_score": 0, "entity_description": 0,
        "hop_stages": 0, "sublayer_projection": 0,  # none has a tag, a bridge, or a subject
        "probe": 0,  # no group repeats
        "layer_routers": 0,  # too few groups for three thirds
        "unit_map": 0,  # fewer tokens than an MLP has units
        "depth_map": 0,  # each has enough tokens, but all together have not
        "activation_patching": 7, "circuit_discovery": 7, "patching_agreement": 7,
        "path_patching": 7, "relevance_patching": 7,
        "checkpoint_stitch": 0,  # there is no second model
        "feature_patching": 0,  # no dictionaries are shipped for this model
        "attention_rank": 13, "block_gain": 13, "integrated_gradients": 13, "residual_erasure": 12,
        "layer_removal": 13, "layer_skip": 13, "logit_attribution": 13, "path_search": 13,
    }  # fmt: skip
    batches = [model.tokenize(shard) for shard in model.shards(model.fit(task).task)]
    unusable: dict[str, str] = {}
    for name, declared in find_analyses().items():
        try:
            usable = usable_shards(declared(), model, batches)
        except InterpError as error:
            unusable[name] = str(error)
            continue
        kept = [prompt.id for batch in usable.batches.values() for prompt in batch.prompts]
        assert len(kept) == n_usable.get(name, 14), name
        assert {*kept}.isdisjoint(usable.why_not)
        assert len(kept) + len(usable.why_not) == len(task)
        for batch in usable.batches.values():
            declared().check(model, batch)
            again = model.tokenize(batch.prompts)
            assert torch.equal(again.tokens, batch.tokens)
            assert (again.answer is None) == (batch.answer is None)
            declared().cost(model, batch)
    assert {*unusable} == {name for name, n in n_usable.items() if n == 0}
    assert not any("\n" in why for why in unusable.values())
    assert "tokens to fit maps from the 128 features" in unusable["depth_map"]


def test_a_run_counts_them_by_prompt_and_the_plan_too(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    bad_and_good().to_jsonl("some.jsonl")
    asked = study("relevance_patching", "block_influence", tasks=("some.jsonl",))
    (cost,) = [e for e in estimate_costs(asked) if e.cell.analysis == "relevance_patching"]
    cell = by_analysis(execute(asked, tmp_path / "run"))["relevance_patching"]
    assert (cell["status"], cell["n_prompts"], cost.n_prompts) == ("ok", 7, 7)
    assert cell["left_out"] == cost.left_out
    assert cell["left_out"].count("1 prompt (prompt") == 4
    run = interp.open_run(tmp_path / "run")
    own = run.prompts(HOPS, "some.jsonl", "relevance_patching")
    every = run.prompts(HOPS, "some.jsonl", "block_influence")
    assert [every[i].id for i in cell["prompts"]] == [prompt.id for prompt in own]
    assert {prompt.id for prompt in own} == {"short", *(f"good {i}" for i in range(6))}
    alone = RelevancePatching().run(interp.load_model(HOPS), Task("own", own))
    measured = run[HOPS, "some.jsonl", "relevance_patching"].to_frame()
    pd.testing.assert_frame_equal(measured, alone.to_frame())
    again = by_analysis(execute(asked, tmp_path / "run"))["relevance_patching"]
    assert (again["prompts"], again["left_out"]) == (cell["prompts"], cell["left_out"])


def test_an_analysis_that_can_use_no_prompt_says_why() -> None:
    with pytest.raises(InterpError, match="answer"):
        AttentionKnockout().run(interp.load_model(HOPS), Task.from_texts(["Nora rival teacher"]))


# Folders


NAMES = [
    "a/b", "a--b", "a-b", "..", ".",
    "../x", "/x", "x", "x/", "a//b", "nul", "a b", "a ",
    "\u00e9", "e\u0301", "~", "x" * 300, "a\\b", "\udcff",
]  # fmt: skip


def test_no_two_names_have_one_folder_and_none_leads_outside(tmp_path: Path) -> None:
    folders = [folder_name(name) for name in NAMES]
    assert len({*folders}) == len(NAMES)
    for folder in folders:
        path = tmp_path / folder
        assert path.resolve().parent == tmp_path.resolve()
        path.mkdir()
    assert folder_name("zoo/hops-4l") == "zoo--hops-4l"
    assert ".." not in Cell("..", "..", "layer_skip", "../../x").path.split("/")


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("T.jsonl", "t.jsonl"):
        Task.from_texts(["Nora rival"]).to_jsonl(name)
    with pytest.raises(RunError, match=r"'T\.jsonl' and 't\.jsonl' would share a folder"):
        study("block_influence", tasks=("T.jsonl", "t.jsonl")).check()


def test_a_run_of_an_earlier_version_opens_and_is_not_resumed(tmp_path: Path) -> None:
    asked = study("block_influence")
    execute(asked, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    run = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"} | {
        "schema": 1
    }
    old = (  # an absolute path's folder was not its name's
        "data--some--model/few.jsonl/block_influence"
    )
    run["cells"] = {old: {**next(iter(run["cells"].values())), "model": "/data/some/model"}}
    path.write_text(json.dumps(run))
    (tmp_path / "run" / "zoo--hops-4l").rename(tmp_path / "run" / "data--some--model")
    opened = interp.open_run(tmp_path / "run")
    assert len(opened["/data/some/model", "few.jsonl", "block_influence"].to_frame())
    assert len(opened.prompts("/data/some/model", "few.jsonl")) == 40
    with pytest.raises(RunError, match="can be read, not resumed"):
        execute(asked, tmp_path / "run")


def test_models_are_told_apart_by_their_folder_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a/b", "a--b"):
        shutil.copytree(shipped_models()[HOPS], folder)
    loaded: Model = interp.load_model("a/b")
    with torch.no_grad():
        loaded.module.model.layers[1].mlp.down_proj.weight.zero_()
    loaded.module.save_pretrained("a--b")
    run = execute(study("block_influence", models=("a/b", "a--b")), tmp_path / "run")
    one, other = (cell["summary"] for cell in run["cells"].values())
    assert one != other
