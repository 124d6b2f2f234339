"""Blocks that lie on disk: the same numbers, weights read once for all shards, and no deadlock."""

import _thread
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

import interp
from interp.errors import ModelError, SiteError, UnsuitedError
from interp.files.paths import shipped_models
from interp.models import Model, load_model, temporary_weights
from interp.models.turns import in_turns
from interp.replay import Recording
from interp.runs import Study, execute, open_run
from interp.runs.budget import estimate_costs
from interp.runs.registry import make_analysis
from interp.sites import Site
from interp.tasks import Task
from tests.families import tiny, tokens

NAME = "zoo/hops-4l"


@cache
def resident() -> Model:
    return load_model(NAME)


@cache
def streamed() -> Model:
    return load_model(NAME, device_map="disk")


@cache
def task() -> Task:
    return interp.load_task("two-hop", n=12)  # of three lengths


def passes_read(model: Model, work: Callable[[], object]) -> float:
    """Return how often `work` reads the weights of all blocks."""
    before = model.stream.bytes_read
    work()
    return (model.stream.bytes_read - before) / model.stream.disk_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(shipped_models()[NAME], copy)
    return copy


def recordings(model: Model) -> list[Recording]:
    return [model.record(model.tokenize(shard)) for shard in model.shards(task())]


def chained(recording: Recording) -> torch.Tensor:
    return recording.chain(range(recording.n_layers), recording.resid(0))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("layer_skip", 2.0),  # the clean pass and the sweep
        ("residual_contribution", 1.0),
        ("logit_lens", 1.0),
        ("attention_knockout", 5.0),  # the cut and its control, a proof, and the single hops
        ("block_gain", 6.0),  # on the way back, every shard reads for itself
        ("block_influence", 2.0),  # of its own weights, ZD
    ],
)
def test_numbers_are_the_same_and_weights_are_read_once_for_all_shards(
    name: str, most: float
) -> None:
    less = {"scopes": ("all",)} if name == "layer_skip" else {}
    analysis, results = make_analysis(name, less), []
    assert len(resident().shards(task())) == 3
    n_read = passes_read(streamed(), lambda: results.append(analysis.run(streamed(), task())))
    assert_frame_equal(
        results[0].to_frame(), analysis.run(resident(), task()).to_frame(), check_exact=True
    )
    assert n_read <= most


def test_loading_reads_twice_and_a_fingerprint_once() -> None:
    model = load_model(NAME, device_map="disk")
    assert model.stream.bytes_read <= 2.3 * model.stream.disk_bytes
    assert passes_read(model, lambda: model.fingerprint) == 1
    assert passes_read(model, lambda: model.fingerprint) == 0
    assert model.fingerprint == resident().fingerprint
    assert model.stream.held_bytes < 0.6 * model.stream.streamed_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_saved_models_compute_the_same(family: str, dtype: str, tmp_path: Path) -> None:
    module = tiny(family).module
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    if family == "gpt2":
        assert "lm_head.weight" not in _names(tmp_path)  # tied
    disk = load_model(tmp_path, device_map="disk", dtype=dtype)
    whole = load_model(tmp_path, dtype=dtype)
    assert torch.equal(disk.logits(tokens()), whole.logits(tokens()))
    assert disk.fingerprint == whole.fingerprint


def _names(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


def test_gradients_are_the_same_and_those_of_patched_blocks_are_refused() -> None:
    slopes = []
    for model in (resident(), streamed()):
        recording = recordings(model)[0]
        start = recording.resid(0).clone().requires_grad_()
        with torch.enable_grad():
            slopes += torch.autograd.grad(recording.chain(range(4), start).sum(), [start])
    assert torch.equal(*slopes)
    with torch.enable_grad(), pytest.raises(ModelError, match="this gradient needs all blocks"):
        recording.block_with(1, start, at="mlp_out", edit=torch.zeros_like)


def test_a_job_that_fails_inside_a_layer_leaves_the_others_alone() -> None:
    first, second, third = recordings(streamed())

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("inside a layer")

    def failing() -> torch.Tensor:
        second.block_with(2, second.resid(2), at="mlp_out", edit=fail)
        return second.resid(0)

    done: dict[int, torch.Tensor] = {}

    def other(i: int, recording: Recording) -> torch.Tensor:
        done[i] = chained(recording)
        return done[i]

    with torch.no_grad(), pytest.raises(ValueError, match="inside a layer"):
        in_turns(streamed(), [partial(other, 0, first), failing, partial(other, 2, third)])
    assert_as_resident(done)


def assert_as_resident(done: dict[int, torch.Tensor]) -> None:
    """All that was done is right, and the model can be used again."""
    with torch.no_grad():
        expected = [chained(recording) for recording in recordings(resident())]
        again = in_turns(streamed(), [partial(chained, each) for each in recordings(streamed())])
    assert all(torch.equal(resid, expected[i]) for i, resid in done.items())
    assert all(map(torch.equal, again, expected))
    assert streamed().running.is_outermost
    assert streamed().stream.turns is None


def test_an_interruption_ends_all_jobs_while_they_wait() -> None:
    first, second, third = recordings(streamed())
    ended: list[int] = []

    def job(i: int, recording: Recording) -> None:
        try:
            for layer in [*range(4)] * 200:
                recording.block(layer, recording.resid(0))
                if i == 1 and layer == 3:
                    _thread.interrupt_main()
        finally:
            ended.append(i)

    jobs = [partial(job, i, each) for i, each in enumerate((first, second, third))]
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        in_turns(streamed(), jobs)
    assert sorted(ended) == [0, 1, 2]
    assert_as_resident({})


def test_hooks_and_other_weights_are_not_seen_by_jobs_that_wait() -> None:
    first, second, _ = recordings(streamed())
    model, seen = streamed(), []

    def patched() -> torch.Tensor:
        handle = model.blocks[1].module.register_forward_hook(lambda *_: seen.append(1))
        try:
            return chained(first)
        finally:
            handle.remove()

    def replaced() -> torch.Tensor:
        with temporary_weights(model, {"model.norm.weight": torch.ones(model.d_model)}):
            return chained(model.record(model.tokenize(model.shards(task())[0])))

    with torch.no_grad():
        jobs = [patched, partial(chained, second), replaced]
        results = in_turns(model, jobs)
    assert len(seen) == 3  # its dry pass, its clean pass, and its chain
    assert torch.equal(results[0], results[2])
    other = temporary_weights(model, {"model.layers.0.mlp.up_proj.weight": torch.ones(1)})
    with pytest.raises(ModelError, match="it is not in memory"):
        other.__enter__()


@pytest.mark.parametrize(("what", "says"), [("removed", "was removed"), ("changed", "was changed")])
def test_weights_that_are_no_longer_there_end_an_analysis(
    folder: Path, what: str, says: str
) -> None:
    model, weights = load_model(folder, device_map="disk"), folder / "model.safetensors"
    if what == "removed":
        weights.unlink()
    else:
        os.utime(weights, ns=(0, 0))
    with pytest.raises(ModelError, match=says) as refused:
        make_analysis("logit_lens", {}).run(model, task())
    assert "\n" not in str(refused.value)
    before = threading.active_count()
    with torch.no_grad(), pytest.raises(ModelError, match=says):  # in the middle of a group
        in_turns(model, [partial(model.stream.visit, layer) for layer in (1, 2, 3)])
    assert threading.active_count() <= before


def test_a_run_measures_shards_together_and_its_numbers_are_the_same(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"block_influence": {}, "attention_knockout": {}}  # both prepare
    tables = []
    for device_map in ("disk", None):
        study = Study((NAME,), ("two-hop",), asked, n=6, device_map=device_map)
        execute(study, tmp_path / str(device_map))
        run = open_run(tmp_path / str(device_map))
        tables.append([run[NAME, "two-hop", name].to_frame() for name in asked])
    for disk, whole in zip(*tables, strict=True):
        assert_frame_equal(disk, whole, check_exact=True)


def test_a_dry_run_states_what_is_read() -> None:
    study = Study((NAME,), ("two-hop",), {"logit_lens": {}, "layer_skip": {}}, n=12)
    disk = estimate_costs(replace(study, device_map="disk"))
    passes = [cost.read_mb * 1e6 / streamed().stream.disk_bytes for cost in disk]
    assert passes == [1, 2]
    assert disk[0].memory_mb < 5000


def test_a_run_whose_weights_go_away_ends_with_failed_cells(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study((str(folder),), ("two-hop",), {"logit_lens": {}}, n=12, device_map="disk")
    monkeypatch.setattr(
        "interp.runs.worker.in_turns",
        lambda model, jobs: [(folder / "model.safetensors").unlink(), *in_turns(model, jobs)][1:],
    )
    values = execute(study, tmp_path / "run")
    (cell,) = values["cells"].values()
    assert cell["status"] == "failed"
    assert "was removed while the model in it was in use" in cell["error"]


def test_what_cannot_be_streamed_is_refused_before_any_work(folder: Path) -> None:
    recursion = make_analysis("recursion", {})

    def refused() -> None:
        with pytest.raises(UnsuitedError, match="has them on disk: load it without"):
            recursion.run(streamed(), task())

    assert passes_read(streamed(), refused) == 0
    with pytest.raises(SiteError, match="lie on disk"):
        streamed().forward("a", capture=[Site("z", 1)])
    with pytest.raises(ModelError, match="has no weights on disk"):
        load_model(f"{NAME}@untrained", device_map="disk")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj\.weight has NaN"):
        load_model(folder, device_map="disk")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        load_model(folder, device_map="disk")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="its header describes"):
        load_model(folder, device_map="disk")
    torch.save(tensors, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_model(folder, device_map="disk")


@pytest.mark.real
def test_a_real_model_on_disk_is_read_once_for_all_shards() -> None:
    name, lens, results = "smollm2-135m", make_analysis("logit_lens", {}), []  # tied embeddings
    disk, whole, few = (
        load_model(name, device_map="disk"),
        load_model(name),
        interp.load_task("facts", n=4),
    )
    assert disk.fingerprint == whole.fingerprint
    n_read = passes_read(disk, lambda: results.append(lens.run(disk, few)))
    assert n_read <= 1
    assert_frame_equal(results[0].to_frame(), lens.run(whole, few).to_frame(), check_exact=True)
