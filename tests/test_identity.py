"""Change anything that a number depends on, and the old number is never returned again."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer

import interp
from interp import Site
from interp.errors import ModelError, RunError
from interp.files.paths import shipped_models
from interp.runs import Study, execute
from tests.test_running import CHANGES, adds_in_place, doubles, mine, tokens

PARAMETERS: dict[str, dict[str, Any]] = {
    "residual_contribution": {},
    "hop_stages": {"known_only": True},
    "depth_map": {"target": "beside", "method": "cka"},
}


def study(**changes: Any) -> Study:
    return dataclasses.replace(Study(("model",), ("prompts.jsonl",), PARAMETERS), **changes)


def tables(out: Path) -> dict[str, pd.DataFrame]:
    run = json.loads((out / "run.json").read_text())
    return {path: pd.read_parquet(out / path / "frame.parquet") for path in run["cells"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, one beside it, prompts, and a finished run of both."""
    folder = tmp_path_factory.mktemp("identity")
    for name in ("model", "beside"):
        shutil.copytree(
            shipped_models()["zoo/hops-4l"],
            folder / name,
            ignore=shutil.ignore_patterns("*.md", "seed*", "step*"),
        )
    records = [
        {**r, "choices": [r["answer"], "Nora", "Dora"]}
        for r in interp.load_task("two-hop", n=12).to_records()
    ]
    write(folder, [r for r in records if r["answer"] not in ("Nora", "Dora")])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = execute(study(), folder / "run")
        assert {cell["status"] for cell in run["cells"].values()} == {"ok"}, run["cells"]
        execute(study(), folder / "run")  # nothing has changed, so nothing is refused
    return folder


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def edit_prompts(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    records = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    change(records)
    write(folder, records)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "down_proj" in name)
    weights[name][0] *= 1.5
    before = file.stat()
    save_file(weights, file, metadata={"format": "pt"})
    assert file.stat().st_size == before.st_size
    os.utime(
        file, ns=(before.st_atime_ns, before.st_mtime_ns)
    )  # as a copy that keeps times would leave it


def tokenizer(folder: Path, change: Callable[[Any], None]) -> None:
    changed = AutoTokenizer.from_pretrained(folder / "model")
    change(changed)
    changed.save_pretrained(folder / "model")


def with_bos(changed: Any) -> None:
    token = changed.convert_ids_to_tokens(0)
    processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, 0)])
    changed.backend_tokenizer.post_processor = processor


def other_order(records: list[dict[str, Any]]) -> None:
    records[0]["choices"] = records[0]["choices"][::-1]


def other_related(records: list[dict[str, Any]]) -> None:
    first, second = (next(iter(r["related"].values())) for r in records[:2])
    first["text"], second["text"] = second["text"], first["text"]


def other_answer(records: list[dict[str, Any]]) -> None:
    records[0]["answer"], records[1]["answer"] = records[1]["answer"], records[0]["answer"]
    for record in records[:2]:
        record.pop("choices")


def other_id(records: list[dict[str, Any]]) -> None:
    records[0]["id"] = "another"


ON_DISK: dict[str, Callable[[Path], Any]] = {
    "a weight": lambda folder: edit_weights(folder / "model"),
    "the target's weights": lambda folder: edit_weights(folder / "beside"),
    "BOS": lambda folder: tokenizer(folder, with_bos),
    "an option's order": lambda folder: edit_prompts(folder, other_order),
    "a related prompt": lambda folder: edit_prompts(folder, other_related),
    "an answer": lambda folder: edit_prompts(folder, other_answer),
    "an id, by which others are drawn": lambda folder: edit_prompts(folder, other_id),
    "the order of prompts": lambda folder: edit_prompts(folder, list.reverse),
    "a prompt less": lambda folder: edit_prompts(folder, lambda records: records.pop()),
    "the configuration": lambda folder: edit_json(
        folder / "model" / "config.json", rms_norm_eps=0.1
    ),
    "how it generates": (
        lambda folder: (folder / "model" / "generation_config.json").write_text(
            '{"repetition_penalty": 2.0}'
        )
    ),
}
IN_THE_STUDY: dict[str, dict[str, Any]] = {
    "a parameter": {"analyses": PARAMETERS | {"depth_map": {"target": "beside", "method": "rsa"}}},
    "the seed": {"seed": 1},
    "the type": {"dtype": "bfloat16"},
    "how many prompts": {"n": 6},
}


@settings(
    max_examples=len(ON_DISK) + 6,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(changes=st.sets(st.sampled_from(sorted(ON_DISK)), min_size=1, max_size=2))
def test_a_finished_run_is_refused_when_anything_has_changed(
    finished: Path, changes: set[str], tmp_path_factory: Any
) -> None:
    refuses_or_equals_a_fresh_run(finished, changes, tmp_path_factory.mktemp("changed"))


@pytest.mark.parametrize("change", ON_DISK)
def test_what_has_changed_is_named(finished: Path, change: str, tmp_path: Path) -> None:
    refuses_or_equals_a_fresh_run(finished, {change}, tmp_path, must_refuse=True)


def refuses_or_equals_a_fresh_run(
    finished: Path, changes: set[str], folder: Path, *, must_refuse: bool = False
) -> None:
    if folder != finished:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
    for change in sorted(changes):
        ON_DISK[change](folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if must_refuse:
            with pytest.raises(RunError, match="choose another --out"):
                execute(study(), folder / "run")
            return
        try:
            execute(study(), folder / "run")
        except RunError:
            return
        execute(study(), folder / "fresh")
    for path, table in tables(folder / "fresh").items():
        pd.testing.assert_frame_equal(tables(folder / "run")[path], table)


@pytest.mark.parametrize("change", IN_THE_STUDY)
def test_another_question_is_refused(
    finished: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    with pytest.raises(RunError, match="choose another --out"):
        execute(study(**IN_THE_STUDY[change]), finished / "run")


@pytest.mark.parametrize("change", ["a weight", "BOS", "a related prompt", "the target's weights"])
def test_parts_of_an_unfinished_run_are_not_taken_for_what_has_changed(
    finished: Path, change: str, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "run" / "run.json"
    path.write_text(
        json.dumps(
            {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"} | {"cells": {}}
        )
    )
    refuses_or_equals_a_fresh_run(tmp_path, {change}, tmp_path)


def test_a_finished_run_whose_model_is_gone_is_not_called_checked(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    next((tmp_path / "model").glob("*.safetensors")).write_bytes(b"no weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="cannot be checked"):
        execute(study(), tmp_path / "run")


def hooked(module: nn.Module) -> None:
    module.transformer.h[1].register_forward_hook(doubles)


def hooked_in_place(module: nn.Module) -> None:
    module.transformer.h[2].mlp.register_forward_hook(adds_in_place)


def in_training(module: nn.Module) -> None:
    module.train()


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(
        st.sampled_from([*CHANGES, hooked, hooked_in_place, in_training]), min_size=1, max_size=4
    )
)
def test_whatever_is_done_to_a_module_a_recording_is_of_what_it_is_now(
    changes: list[Any], tmp_path_factory: Any
) -> None:
    module = mine().eval()
    model = interp.load_model(module, store=tmp_path_factory.mktemp("store"))
    site = Site("resid_post", 2)
    model.record(tokens()).clean(site)
    for change in changes:
        change(module)
        seen: list[torch.Tensor] = []
        handle = module.transformer.h[2].register_forward_hook(
            lambda _m, _a, output, seen=seen: seen.append(
                (output[0] if isinstance(output, tuple) else output).clone()
            )
        )
        was_training = module.training
        module.eval()
        with torch.no_grad():
            module(tokens().tokens)
        module.train(was_training)
        handle.remove()
        try:
            found = model.record(tokens()).clean(site)
        except ModelError:  # of a hook
            assert {hooked, hooked_in_place} & {*changes}
            continue
        torch.testing.assert_close(found, seen[0], atol=1e-4, rtol=1e-4)
