"""A real model: what it knows, and that its numbers are those of plain transformers."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import interp
from interp import Prompt, Site, Task, cli
from interp.analyses.layer_skip import LayerSkip
from interp.analyses.logit_lens import LogitLens
from interp.analyses.relevance_patching import RelevancePatching
from interp.files.fetched import folder_of
from interp.models import Model
from interp.runs.worker import describe
from interp.sweeps.exact_patching import clean_runs
from interp.sweeps.lens import READINGS
from interp.sweeps.paths import Between, Paths
from interp.sweeps.twins import twins_of
from interp.sweeps.wiring import Wiring
from interp.tasks.batch import TokenBatch
from interp.testing.doctor import diagnose
from tests.test_path_patching import naive

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Cuba": "Havana",
    "Norway": "Oslo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Ireland": "Dublin",
}
TASK = Task(
    "capitals",
    tuple(
        Prompt(land, f"The capital of {land} is the city of", answer=city)
        for land, city in CAPITALS.items()
    ),
)
SKIPPED = (0, 13, 29)


@cache
def loaded(name: str, dtype: str) -> Model:
    return interp.load_model(name, dtype=dtype)


@cache
def stock(name: str) -> PreTrainedModel:
    """Return the model as transformers loads it, never seen by this library."""
    return AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32).eval()


def two_prompts(model: Model) -> TokenBatch:
    (shard,) = model.shards(
        TASK.of(prompt for prompt in TASK.prompts if prompt.id in ("France", "Japan"))
    )
    return model.tokenize(shard)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_knows_capitals_in_every_type(smollm2: str, dtype: str) -> None:
    """13 of 16: it says something else of Spain, Russia and Poland."""
    model, right = loaded(smollm2, dtype), set()
    assert (model.n_layers, model.d_model, model.d_vocab) == (30, 576, 49152)
    for shard in model.shards(TASK):
        batch = model.tokenize(shard)
        said = model.logits(batch)[torch.arange(len(shard)), batch.last].argmax(-1)
        right |= {
            prompt.id
            for prompt, is_right in zip(shard, said == batch.answer, strict=True)
            if is_right
        }
    assert len(right) >= 13
    assert {"France", "Japan", "Kenya"} <= right


@torch.no_grad()
def test_half_precision_says_what_full_precision_says(smollm2: str) -> None:
    batch = two_prompts(loaded(smollm2, "float32"))
    full = loaded(smollm2, "float32").logits(batch)
    assert torch.equal(full, stock(smollm2)(batch.tokens).logits)
    for dtype in ("bfloat16", "float16"):
        half = loaded(smollm2, dtype).logits(batch).float()
        assert torch.corrcoef(torch.stack([full.flatten(), half.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_bridge_is_accepted_in_every_type(smollm2: str, dtype: str) -> None:
    model = loaded(smollm2, dtype)
    pattern = Site("pattern", 13)
    rows = model.forward(two_prompts(model), capture=[pattern]).activations[pattern].float().sum(-1)
    assert_close(rows, torch.ones_like(rows), rtol=0, atol=0.02)


def test_the_doctor_finds_it_healthy_in_its_own_type(smollm2: str) -> None:
    diagnosis = diagnose(smollm2, dtype="float16")
    assert diagnosis.is_healthy, diagnosis.signs
    assert {"dtype", "precision", "contract"} <= {sign.check for sign in diagnosis.signs}


def test_relevance_in_half_precision_is_that_in_fp32(smollm2: str) -> None:
    text = "Then Mary and John went to the shop. {} gave a ball to"
    prompt = Prompt(
        "1", text.format("John"), answer="Mary", wrong="John", corrupted=text.format("Mary")
    )
    scores = {}
    for dtype in ("float32", "bfloat16", "float16"):
        frame = (
            RelevancePatching(methods=("relevance",))
            .run(loaded(smollm2, dtype), Task("ioi", (prompt,)))
            .to_frame()
        )
        scores[dtype] = torch.tensor(frame["mean"].to_numpy(float)).nan_to_num()
    for dtype, least in (("bfloat16", 0.999), ("float16", 0.9999)):
        assert torch.corrcoef(torch.stack([scores["float32"], scores[dtype]]))[0, 1] > least


@torch.no_grad()
def test_the_lens_equals_the_stock_models_hidden_states(smollm2: str) -> None:
    model = loaded(smollm2, "float32")
    batch, plain = two_prompts(model), stock(smollm2)
    readings = LogitLens().measure(model.record(batch), batch, {})["readings"].double()
    out = plain(batch.tokens, output_hidden_states=True)
    final = out.logits.double().log_softmax(-1)
    lens = [plain.lm_head(plain.model.norm(resid)) for resid in out.hidden_states[:-1]] + [
        out.logits
    ]
    assert len(lens) == 31
    for layer, logits in enumerate(lens):
        q = logits.double().log_softmax(-1)
        kl = (q.exp() * (q - final)).sum(-1)
        at_answer = q[:, -1].gather(1, batch.answer[:, None])
        rank = (q[:, -1] > at_answer).sum(-1)
        assert_close(
            readings[:, layer, :, READINGS.index("kl_lens_final")], kl, rtol=1e-4, atol=1e-4
        )
        probability = readings[:, layer, -1, READINGS.index("answer_probability")]
        assert_close(probability, at_answer[:, 0].exp(), rtol=1e-4, atol=1e-5)
        assert readings[:, layer, -1, READINGS.index("answer_rank")].tolist() == rank.tolist()
    assert readings[:, -1, -1, READINGS.index("answer_rank")].tolist() == [0, 0]


def without(
    plain: PreTrainedModel, tokens: torch.Tensor, skipped: int | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the stream at every tap, and logits, with `skipped` left out."""
    stream: list[torch.Tensor] = []
    layers = plain.model.layers
    handles = [
        layer.register_forward_pre_hook(lambda _, args: stream.append(args[0])) for layer in layers
    ]
    if skipped is not None:

        def keep(_: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return torch.cat([output[:, :1], args[0][:, 1:]], dim=1)

        handles.append(layers[skipped].register_forward_hook(keep))
    handles.append(
        plain.model.norm.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
    )
    try:
        logits = plain(tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    return stream, logits


@torch.no_grad()
def test_skipping_layers_equals_hooks_on_the_stock_model(smollm2: str) -> None:
    model = loaded(smollm2, "float32")
    batch, plain = two_prompts(model), stock(smollm2)
    arrays = LayerSkip(scopes=("all",)).measure(model.record(batch), batch, {})
    clean, logits = without(plain, batch.tokens, None)
    for skipped in SKIPPED:
        changed, now = without(plain, batch.tokens, skipped)
        output = (logits.softmax(-1) - now.softmax(-1)).norm(dim=-1)[:, 1:].amax(-1)
        assert_close(arrays["all.output_max"][:, skipped], output, rtol=1e-3, atol=1e-4)
        for layer in range(skipped, 30):
            c, d = (stream[layer + 1] - stream[layer] for stream in (clean, changed))
            effect = ((c - d).norm(dim=-1) / c.norm(dim=-1))[:, 1:].amax(-1)
            assert_close(arrays["all.max"][:, skipped, layer], effect, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_without_layer_0_every_answer_is_lost_though_logits_hardly_fall(
    smollm2: str,
) -> None:
    """Recomputed by hooks on the stock model, where nothing but position 0 runs layer 0."""
    model, plain = loaded(smollm2, "float32"), stock(smollm2)
    lost, falls, right = [], [], torch.zeros(2)
    for shard in model.shards(TASK):
        batch = model.tokenize(shard)
        rows = torch.arange(len(shard))
        clean, after = (without(plain, batch.tokens, skip)[1][:, -1] for skip in (None, 0))
        log_p = [each.log_softmax(-1)[rows, batch.answer] for each in (clean, after)]
        lost += (log_p[0] - log_p[1]).tolist()
        falls += (clean - after)[rows, batch.answer].tolist()
        choices = torch.stack([clean, after]).argmax(-1)
        right += (choices == batch.answer).sum(1)
    result = LayerSkip(scopes=("all",)).run(model, TASK)
    cost, accuracy, *_ = result.findings()
    assert sum(lost) / len(lost) == pytest.approx(17.2, abs=0.1)
    assert sum(falls) / len(falls) == pytest.approx(1.9, abs=0.1)  # why no finding is in logits
    assert cost.claim.startswith("Skipping layer 0 costs most: 17.2")
    assert cost.estimate.value == pytest.approx(sum(lost) / len(lost), rel=1e-3)
    assert right.tolist() == [13, 0]
    assert accuracy.rival.estimate.value == 13 / 16
    assert accuracy.estimate.low > 0.3


def test_its_tokenizer_puts_nothing_in_front_and_has_a_chat_template(smollm2: str) -> None:
    model = loaded(smollm2, "float32")
    assert model.tokenizer.bos_token == "<|im_start|>"
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("The city")["input_ids"]) == [
        "The",
        "Ġcity",
    ]
    assert describe(model)["before every prompt"] == "nothing"
    said = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False
    )
    assert said.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_a_run_of_it_says_what_it_is(smollm2: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "--model",
        smollm2,
        "--task",
        "two-hop-facts",
        "--n",
        "2",
        "--analysis",
        "residual_contribution",
    ]
    done = CliRunner().invoke(cli.app, ["run", *words, "--no-store", "--out", str(out)])
    assert done.exit_code == 0, done.exception or done.output
    for kind in ("html", "md"):
        assert CliRunner().invoke(cli.app, ["report", str(out), "--format", kind]).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    about = "SmolLM2-135M-Instruct, dequantised from Q4_1"
    model = report["provenance"]["models"][smollm2]
    assert model["made from"] == about
    assert model["computed"] == "float16 checkpoint, computed in float32 on the CPU"
    for page in ("report.html", "report.md"):
        assert f"{smollm2} is {about}" in (out / page).read_text()


@pytest.mark.parametrize(("receiver", "between"), [("logits", "recomputed"), ("v23.h1", "frozen")])
@torch.no_grad()
def test_paths_are_two_forwards_with_hooks(smollm2: str, receiver: str, between: Between) -> None:
    model = loaded(smollm2, "float32")
    shard = model.tokenize(interp.load_task("ioi-english", n=1).prompts)
    recording = model.record(shard)
    (twins,) = twins_of(recording, shard, metric="logit_diff", direction="denoise")
    with model.running:
        twins, base, source, values = clean_runs(recording, twins)
        paths = Paths(twins, base, source, Wiring.of(model), between)
        effects = paths.effects(["embed", "m0", "a20.h0"], [receiver])
        for i, sender in enumerate(["embed", "m0", "a20.h0"]):
            logits = naive(model, twins, sender, receiver, between)
            assert_close(effects[:, i], twins.value(logits) - values["base"], atol=2e-3, rtol=1e-3)
