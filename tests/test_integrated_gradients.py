"""Integrated gradients equal whole forwards with hand-written hooks, and add up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.integrated_gradients import IntegratedGradients
from interp.analyses.integrated_gradients.quadrature import integrate, left_riemann
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.replay import first
from interp.runs.registry import make_analysis
from interp.sweeps.answers import by_answer_length
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from tests.families import FAMILIES, tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
PUBLISHED = IntegratedGradients(nodes="published", max_nodes=3)


def answering(
    batch: TokenBatch, *, lengths: tuple[int, ...] = (1, 1, 1), likely: Model | None = None
) -> TokenBatch:
    """Give a batch answers of these lengths: random ones, or first tokens that a model finds
    likely.
    """
    answers = torch.randint(
        3, 97, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1)
    )
    if likely is not None:
        answers[:, 0] = likely.logits(batch)[:, -1].argmax(-1)
    answers[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = -1
    prompts = tuple(dataclasses.replace(prompt, answer="x") for prompt in batch.prompts)
    return dataclasses.replace(batch, prompts=prompts, answer=answers[:, 0], answer_tokens=answers)


def naive_slopes(
    model: Model,
    ids: torch.Tensor,
    answer: torch.Tensor,
    start: int,
    *,
    layer: int,
    part: str,
    at: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return F, and the gradient at one node times the path [pos], of one prompt by a whole forward
    of the stock model.
    """
    block = model.blocks[layer]
    module = {"layer": block.module, "attention": block.attn_write, "mlp": block.mlp_write}[part]
    seen: dict[str, torch.Tensor] = {}

    def run(at: float | None) -> torch.Tensor:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            if at is None:
                seen["clean"] = first(output).detach()
                return output
            baseline = seen["clean"].mean(1, keepdim=True)
            seen["varied"] = (baseline + at * (seen["clean"] - baseline)).requires_grad_()
            return (seen["varied"], *output[1:]) if isinstance(output, tuple) else seen["varied"]

        handle = module.register_forward_hook(hook)
        logits = model.module(input_ids=ids[None], use_cache=False).logits.float()
        handle.remove()
        probabilities = logits[0, start : start + len(answer)].softmax(-1)
        return probabilities.gather(1, answer[:, None]).sum()

    run(None)
    value = run(at)
    value.backward()
    clean, slope = seen["clean"], seen["varied"].grad
    return value.detach(), (slope * (clean - clean.mean(1, keepdim=True))).sum(-1)[0]


@pytest.mark.parametrize(
    ("family", "part"),
    [(family, "layer") for family in FAMILIES]
    + [
        (family, part)
        for family in ("llama", "gpt_neox", "gemma2")
        for part in ("attention", "mlp")
    ],
)
def test_as_published_equals_whole_forwards(family: str, part: str) -> None:
    model = tiny(family)
    batch = answering(tokens(), lengths=(1, 3, 1))
    n_pos = batch.tokens.shape[1]
    with torch.no_grad():
        arrays = dataclasses.replace(PUBLISHED, part=part).measure(model.record(batch), batch, {})
    for row, n in ((0, 1), (1, 3)):
        answer = batch.answer_tokens[row, :n]
        ids = torch.cat([batch.tokens[row], answer[:-1]])
        assert arrays["n_pos"][row] == len(ids)
        for layer in range(model.n_layers):
            slopes = [
                naive_slopes(model, ids, answer, n_pos - 1, layer=layer, part=part, at=step / 3)[1]
                for step in range(3)
            ]
            ours = arrays["attribution"][row, layer, : len(ids)]
            assert_close(ours, torch.stack(slopes).mean(0), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_nodes_placed_where_needed_reach_what_many_equal_steps_reach() -> None:
    model = tiny("llama")
    batch = answering(tokens(), likely=model)
    ours = IntegratedGradients().measure(model.record(batch), batch, {})
    many = dataclasses.replace(PUBLISHED, max_nodes=500).measure(model.record(batch), batch, {})
    assert_close(ours["difference"], many["difference"], rtol=0, atol=1e-5)
    assert ours["difference"].abs().max() > 0.01
    assert_close(ours["attribution"], many["attribution"], rtol=0.02, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_attributions_add_up(family: str) -> None:
    model = tiny(family)
    batch = answering(tokens(), lengths=(1, 2, 1), likely=model)
    arrays = IntegratedGradients().measure(model.record(batch), batch, {})
    sums, difference = arrays["attribution"].sum(-1), arrays["difference"]
    allowed = 0.01 * difference.abs().clamp_min(0.01)
    is_routed = (
        model.name == "tiny-mixtral"
    )  # the answer's probability jumps where a token changes its experts
    assert bool(((arrays["error"] <= allowed) | (arrays["capped"].bool() & is_routed)).all())
    assert_close((sums - difference).abs(), arrays["error"], rtol=1e-3, atol=1e-6)
    assert is_routed or not arrays["capped"].any()


@torch.no_grad()
def test_behind_the_last_layer_only_tokens_that_predict_the_answer_matter() -> None:
    model = tiny("gpt2")
    batch = answering(tokens(), lengths=(1, 2, 1))
    arrays = IntegratedGradients().measure(model.record(batch), batch, {})
    assert bool((arrays["attribution"][:, -1, :11] == 0).all())
    assert bool((arrays["attribution"][1, -1, 11:] != 0).all())


@torch.no_grad()
def test_the_answers_last_token_gets_nothing_but_moves_the_baseline() -> None:
    model, batch = tiny("gpt2"), answering(tokens())
    whole = dataclasses.replace(PUBLISHED, whole_answer=True).measure(
        model.record(batch), batch, {}
    )
    assert whole["attribution"].shape[-1] == 13
    assert bool((whole["attribution"][..., -1] == 0).all())
    plain = PUBLISHED.measure(model.record(batch), batch, {})
    assert not torch.allclose(whole["difference"], plain["difference"], atol=1e-7)


@torch.no_grad()
def test_cases_that_want_more_nodes_are_counted() -> None:
    model = tiny("llama")
    batch = answering(tokens(), likely=model)
    analysis = IntegratedGradients(tolerance=1e-9, max_nodes=20)
    part = analysis.measure(model.record(batch), batch, {})
    assert part["nodes"].max() <= 20
    assert part["capped"].any()
    sums = analysis.combine([part]).findings()[1]
    assert f"{int(part['capped'].sum())} of 12 cases wanted more nodes" in sums.claim


def errors_and_nodes(
    model: Model, task: Task, *, layers: Sequence[int], n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each case's worst error of a token against `n` midpoints, and its number of nodes.

    Errors are relative to the token or 5 % of all tokens together; cases are those in which F
    changes by 0.05 or more.
    """
    analysis, errors, counts = IntegratedGradients(), [], []
    for prompts in model.shards(task):
        batch = model.tokenize(prompts)
        recording = model.record(batch)
        for group in by_answer_length(recording, batch):
            for layer in layers:
                evaluate = analysis._slopes(group, layer)
                ours = integrate(evaluate, len(group.rows), tolerance=0.01, max_nodes=256)
                for i, integral in enumerate(ours):
                    if abs(integral.difference) < 0.05:
                        continue
                    assert not integral.is_capped
                    right = evaluate([i] * n, [(step + 0.5) / n for step in range(n)])[1]
                    right = right.double().mean(0)
                    size = right.abs().clamp_min(0.05 * right.abs().sum())
                    errors.append(((integral.components - right).abs() / size).max())
                    counts.append(integral.n_nodes)
    assert errors
    return torch.stack(errors), torch.tensor(counts)


@torch.no_grad()
def test_errors_of_tokens_that_cancel_in_the_sum_are_seen() -> None:
    """A rule that tests the sum only gives a token -0.037 where -0.021 is right."""
    two_hop = interp.load_task("two-hop", n=43)
    task = two_hop.of(prompt for prompt in two_hop.prompts if prompt.id == "Zara-neighbour-boss")
    errors, _ = errors_and_nodes(interp.load_model("zoo/hops-8l"), task, layers=[1], n=1024)
    assert errors.max() < 0.01


PLACES = (("hops-4l", "two-hop"), ("hops-8l", "two-hop"), ("names-6l", "ioi"))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("name", "task"), PLACES)
def test_every_token_is_within_one_percent_of_many_midpoints(name: str, task: str) -> None:
    model = interp.load_model(f"zoo/{name}")
    errors, _ = errors_and_nodes(
        model, interp.load_task(task, n=4), layers=range(model.n_layers), n=2048
    )
    assert errors.max() < 0.01


@pytest.mark.slow
def test_a_quarter_of_the_published_nodes_is_enough_in_the_median() -> None:
    nodes = [
        IntegratedGradients()
        .run(interp.load_model(f"zoo/{name}"), interp.load_task(task, n=4))
        .arrays["nodes"]
        for name, task in PLACES
    ]
    assert np.median(np.concatenate([each.ravel() for each in nodes])) <= 256 / 4


@pytest.mark.real
@torch.no_grad()
@pytest.mark.parametrize("layer", [20, 27])
def test_every_token_of_a_real_model_is_within_one_percent(smollm2: str, layer: int) -> None:
    text = "The capital of {} is the city of"
    task = Task("capitals", (Prompt("Japan", text.format("Japan"), answer="Tokyo"),))
    model = interp.load_model(smollm2, dtype="float32")
    errors, nodes = errors_and_nodes(model, task, layers=[layer], n=2048)
    assert errors.max() < 0.01
    assert nodes.max() <= 256 / 2


def test_a_sum_by_hand() -> None:
    # F(a) = a^2 + a along the path, of which components 2a and 1
    def evaluate(_which: Any, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.tensor(at)
        return a * a + a, torch.stack([2 * a, torch.ones_like(a)], 1)

    (exact,) = integrate(evaluate, 1, tolerance=0.01, max_nodes=64)
    assert_close(exact.components, torch.tensor([1.0, 1.0]).double())
    assert exact.worst_error < 1e-6
    assert (exact.n_nodes, exact.difference, exact.is_capped) == (9, 2.0, False)
    (steps,) = left_riemann(evaluate, 1, n_nodes=4, ends=[2.0])
    assert_close(
        steps.components, torch.tensor([0.75, 1.0]).double()
    )  # 2 (0 + 1/4 + 1/2 + 3/4) / 4
    assert steps.error == pytest.approx(0.25)
    assert_close(steps.component_error, torch.tensor([0.25, 0.0]).double())  # 0.75 - 2 (1/2) / 2


def test_nodes_gather_where_the_path_is_steep() -> None:
    asked: list[float] = []

    def evaluate(_which: Any, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
        asked.extend(at)
        a = torch.tensor(at)
        value = torch.sigmoid((a - 0.7) / 0.01)
        return value, (value * (1 - value) / 0.01)[:, None]

    (steep,) = integrate(evaluate, 1, tolerance=0.01, max_nodes=256)
    assert steep.error < 0.01
    assert len(set(asked)) == len(asked) == steep.n_nodes < 70
    assert sum(0.5 < a < 0.9 for a in asked) > 0.7 * len(asked)


def test_bad_input_is_one_line() -> None:
    model = interp.load_model("zoo/hops-4l")
    with pytest.raises(
        TaskError,
        match=r"an answer is needed for every prompt; 1 prompt \(first: '0'\) without one",
    ):
        IntegratedGradients().run(model, Task.from_texts(["Ada mother mother"]))
    short = Task("short", (Prompt("a", "Ada", answer="Emil"),))
    with pytest.raises(AnalysisError, match="prompt 'a' has 2 tokens; a baseline needs at least 3"):
        IntegratedGradients(first_position="excluded").run(model, short)
    with pytest.raises(AnalysisError, match="max_nodes=4; at least 9 are needed"):
        IntegratedGradients(max_nodes=4)
    with pytest.raises(
        AnalysisError,
        match=r"integrated_gradients.part: unknown value 'head'; there is attention, layer",
    ):
        make_analysis("integrated_gradients", {"part": "head"})
    with pytest.raises(AnalysisError, match="tolerance=0"):
        IntegratedGradients(tolerance=0.0)


def test_a_result_reads_well() -> None:
    task = interp.load_task("two-hop", n=6)
    result = IntegratedGradients().run(interp.load_model("zoo/hops-4l"), task)
    frame = result.to_frame()
    added = frame[frame["measure"] == "attribution"].groupby("layer")["mean"].sum()
    assert len(added) == 4
    assert (frame[frame["measure"] == "relative error"]["max"] <= 0.01).all()
    assert "add up" in result.findings()[1].claim
