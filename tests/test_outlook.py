"""What a dry run says of models that it does not load: from configurations and headers alone."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from interp.cli import app
from interp.cli.terminal import out
from interp.errors import AnalysisError, InterpError, ModelError
from interp.models.places import places
from interp.models.weightless import NoNumbers, without_weights
from interp.runs import Study, estimate_costs
from interp.runs.machines import Assumptions, machines_for
from interp.runs.outlook import ModelOutlook, outlooks, why_without
from interp.tasks import load_task
from tests.documents import read
from tests.families import tiny

HOPS = "zoo/hops-4l"
KNOWN = Assumptions.of("memory=100,cpu_speed=0.1,cpu_bandwidth=10,block_ms=1e-6")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a model that has a configuration, and nothing else."""
    return _folder(tmp_path / "model", CONFIG)


def _folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file with 12 prompts of `two-hop`, of three words each."""
    path = tmp_path_factory.mktemp("tasks") / "few.jsonl"
    load_task("two-hop", n=12).to_jsonl(path)
    return str(path)


def _study(model: object, task: str, *analyses: str, **more: Any) -> Study:
    return Study((str(model),), (task,), {name: {} for name in analyses}, **more)


def _outlook(study: Study, assumed: Assumptions = KNOWN) -> ModelOutlook:
    (only,) = outlooks(study, assumed)
    return only


def _run(*words: str) -> Result:
    return CliRunner().invoke(app, ["run", *words, "--dry-run"])


# What is counted


def test_counts_are_those_of_a_dry_run_that_loads_the_model(
    task: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("interp.runs.worker.measure_speed", lambda *_: None)
    names = ("layer_skip", "attention_knockout", "quantization_order", "integrated_gradients")
    study = _study(HOPS, task, *names)
    loaded = estimate_costs(study)
    reckoned = [each.cost for each in _outlook(study).cells]
    alike = {"seconds": None, "memory_mb": 0.0}
    assert [replace(cost, **alike) for cost in reckoned] == [
        replace(cost, **alike) for cost in loaded
    ]
    assert [cost.why_not for cost in loaded] == [""] * 4


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "nemotron_h"])  # dense, experts, hybrid
def test_a_model_without_weights_has_the_modules_and_sizes_of_the_loaded_one(
    family: str, tmp_path: Path
) -> None:
    loaded = tiny(family)
    loaded.module.config.save_pretrained(tmp_path)
    with NoNumbers():
        model = without_weights(str(tmp_path))
    assert [(b.mixer, b.why_whole) for b in model.blocks] == [
        (b.mixer, b.why_whole) for b in loaded.blocks
    ]
    assert model.sizes.in_all == sum(p.numel() for p in loaded.module.parameters())
    chosen, n = (getattr(loaded.module.config, f"num_experts{e}", 1) for e in ("_per_tok", ""))
    experts = [block.experts for block in loaded.blocks if block.experts is not None]
    held = sum(p.numel() for each in experts for p in each.parameters())
    if family == "qwen3_moe":
        assert model.sizes.blocks - model.sizes.used == held * (1 - chosen / n) > 0


def test_times_are_the_arithmetic_of_the_assumptions(folder: Path, task: str) -> None:
    with NoNumbers():
        model = without_weights(str(folder))
        machines = {m.name: m for m in machines_for(model, "bfloat16", [3], KNOWN)}
    n, width = model.sizes.blocks, 2 * 32  # of both layers' heads
    cpu, disk = machines["CPU"].speed.passes[3], machines["disk"].speed.passes[3]
    assert cpu.each == disk.each == pytest.approx((2 * n + 4 * 3 * width) / 0.07e12)
    assert cpu.start == pytest.approx(2 * n / 10e9, rel=1e-3)
    assert disk.start == cpu.start
    assert machines["disk"].read_rate == 2e3
    assert machines["1 GPU"].speed.passes[3].each == pytest.approx(
        (2 * n + 4 * 3 * width) / 0.4 / 990e12
    )
    (cell,) = _outlook(_study(folder, task, "stream_statistics", dtype="bfloat16")).cells
    assert cell.read_mb == pytest.approx(2 * n / 1e6)  # clean passes of all shards together


def test_what_does_not_fit_has_no_time_and_gpus_are_shared_out(folder: Path, task: str) -> None:
    study = _study(folder, task, "block_influence", "integrated_gradients")
    with NoNumbers():
        weights_gb = without_weights(str(folder)).sizes.in_all * 2 / 1e9
    tight = replace(KNOWN, gpu_memory=weights_gb, gpus=4, memory=weights_gb * 0.9)
    outlook = _outlook(replace(study, dtype="bfloat16"), tight)
    machines = {machine.name: machine for machine in outlook.machines}
    assert [bool(machines[name].why_not) for name in ("CPU", "1 GPU", "4 GPUs")] == [
        True,
        True,
        False,
    ]
    assert machines["4 GPUs"].n_workers == 2  # of two each: weights fill four fifths at most
    influence, gradients = _outlook(study).cells
    assert influence.seconds["disk"] is not None
    assert gradients.seconds["disk"] is None  # no way back through blocks on disk
    assert gradients.seconds["CPU"] is not None


def test_without_a_tokenizer_a_word_is_a_token(folder: Path, task: str) -> None:
    outlook = _outlook(_study(folder, task, "layer_skip"))
    assert "no tokenizer" in outlook.about
    assert outlook.cells[0].cost.n_prompts == 12
    assert outlook.cells[0].cost.example.startswith("prompts end like '␣")


def test_assumptions_that_are_not_given_are_measured() -> None:
    times = iter(range(1000))
    known = Assumptions.of("gpus=2, memory=5").measured(torch.float32, clock=lambda: next(times))
    assert (known.gpus, known.memory) == (2, 5.0)
    assert known.cpu_speed == pytest.approx(2 * 256**3 / 1e12)
    assert Assumptions.of("memory=5").measured_here == ("cpu_speed", "cpu_bandwidth")
    for text in ("gpus", "gpu=1", "disk=0", "gpus=half"):
        with pytest.raises(AnalysisError):
            Assumptions.of(text)


# What decides


def test_a_model_is_loaded_if_its_weights_are_here_and_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_without(str(folder)) == "its weights are not on this machine"
    assert why_without(HOPS) == ""
    monkeypatch.setattr("interp.runs.outlook.free_mb", lambda: 1.0)
    assert why_without(f"{HOPS}@untrained").endswith("; 0.001 GB are free")


# On the command line


def test_a_dry_run_of_a_configuration_shows_machines_and_times(folder: Path, task: str) -> None:
    words = ["--model", str(folder), "--task", task, "--analysis", "layer_skip"]
    done = _run(*words, "--assume", "memory=64,cpu_speed=1,cpu_bandwidth=20,gpus=2")
    assert done.exit_code == 0
    assert "not loaded (its weights are not on this machine): 2 layers" in done.stdout
    header = next(line for line in done.stdout.splitlines() if line.startswith("time on"))
    assert header.split()[2:] == ["CPU", "1", "GPU", "2", "GPUs", "disk", "disk", "reads"]
    assert "layer_skip " in done.stdout
    assert "good to a factor of two" in done.stderr
    said = read(_run(*words, "--json").stdout)
    assert said["timed"] == []
    assert {*said["estimated"][0]["cells"][0]["seconds"]} == {"CPU", "1 GPU", "8 GPUs", "disk"}


def test_flags_of_plans_are_refused_in_runs() -> None:
    words = ["run", "--model", HOPS, "--task", "two-hop", "--no-weights"]
    assert isinstance(CliRunner().invoke(app, words).exception, InterpError)


def test_places_of_a_configuration_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    loaded = tiny("llama")
    loaded.module.config.save_pretrained(tmp_path)
    said = read(CliRunner().invoke(app, ["sites", str(tmp_path), "--json"]).stdout)
    assert not said["is_proven"]
    assert said["sites"] == [vars(place) for place in places(loaded)]


# What cannot be


def _weights(folder: Path, **changed: torch.Tensor | None) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    with NoNumbers():
        own = without_weights(str(folder)).module.state_dict()
    held = {name: torch.zeros(t.shape, dtype=torch.bfloat16) for name, t in own.items()} | changed
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture
def bad(tmp_path: Path) -> Iterator[Any]:
    """Return a call with a configuration's changes that returns the error of its folder."""

    def error(**changed: Any) -> str:
        config = {key: value for key, value in (CONFIG | changed).items() if value is not None}
        folder = _folder(tmp_path / str(len([*tmp_path.iterdir()])), config)
        with NoNumbers(), pytest.raises(ModelError) as refused:
            without_weights(str(folder))
        return str(refused.value)

    return error


def test_configurations_of_nothing_known_are_one_line(bad: Any, tmp_path: Path) -> None:
    said = [
        bad(model_type="martian"),
        bad(model_type=None),
        bad(num_hidden_layers=None),
        bad(model_type="t5", num_layers=2),
        bad(quantization_config={"quant_method": "gptq", "bits": 4}),
    ]
    needed = ["'martian'", "no model_type", "no number of layers", "causal", "quantised"]
    for line, part in zip(said, needed, strict=True):
        assert part in line
        assert "\n" not in line
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        why_without(str(tmp_path / "empty"))


def test_headers_that_contradict_the_configuration_are_named(folder: Path) -> None:
    norm = "model.norm.weight"
    _weights(folder, **{norm: torch.zeros(33, dtype=torch.bfloat16)})
    with NoNumbers(), pytest.raises(ModelError, match=r"norm\.weight has size \(33,\)"):
        without_weights(str(folder))
    _weights(folder, **{f"model.layers.1.mlp.{p}_proj.weight": None for p in ("up", "gate")})
    with NoNumbers(), pytest.raises(ModelError, match="million numbers"):
        without_weights(str(folder))
    _weights(folder)
    with NoNumbers():
        assert without_weights(str(folder)).sizes.dtype == "bfloat16"


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, (20).to_bytes(8, "little") + b"{" * 40])
def test_a_header_that_cannot_be_read_is_one_line(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    done = _run("--model", str(folder), "--task", "two-hop")
    assert isinstance(done.exception, ModelError)
    assert "model.safetensors has" in str(done.exception)


def test_files_shorter_than_their_headers_are_named(folder: Path) -> None:
    path = _weights(folder)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelError, match="its header describes"):
        why_without(str(folder))


def test_an_index_counts_shards_that_are_not_there(folder: Path) -> None:
    index = {"metadata": {"total_size": 10**15}, "weight_map": {"a": "1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert why_without(str(folder)).startswith("its weights are 1e+06 GB")
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="is not an index"):
        why_without(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen3-235b-a22b"])
def test_the_plans_of_the_docs_are_what_the_command_prints(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = Path(__file__).parents[1] / "docs"
    monkeypatch.chdir(docs / "plans")
    monkeypatch.setattr(out, "width", 200)
    page = (docs / "scale.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```text\n\$ (interp run --model {model} .*?)```", page, re.DOTALL)
    asked, _, said = block.replace("\\\n", "").partition("\n")
    done = CliRunner().invoke(app, asked.split()[1:])
    assert [line.rstrip() for line in done.stdout.splitlines()] == said.splitlines()
