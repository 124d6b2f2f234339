"""What a notebook prints of an object: a line that says what is in it, and runs no model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.activations import Activations, ForwardPass
from interp.interventions import Ablate, Patch, Skip, Steer
from interp.models import Model, load_model
from interp.sites import Site
from interp.tasks import Prompt, Task, load_task
from interp.tasks.batch import TokenBatch

LONGEST = 240  # characters: two lines of a notebook
LONG = "Before Martin and Daniel went to the shop,\nSarah gave them money. " * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model("zoo/hops-4l", store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def batch(model: Model) -> TokenBatch:
    return model.tokenize(load_task("two-hop", n=40).prompts)


SITES = [Site("resid_post", layer) for layer in range(4)]
SHOWN: dict[str, tuple[Callable[[Model, TokenBatch], Any], tuple[str, ...]]] = {
    "model": (lambda model, batch: model, ("zoo/hops-4l", "n_layers=4", "float32")),
    "task": (lambda model, batch: load_task("two-hop"), ("'two-hop'", "prompts", " → ")),
    "batch": (lambda model, batch: batch, ("40 prompts of ", "with answer, wrong")),
    "empty batch": (
        lambda model, batch: TokenBatch(
            (), batch.tokens[:0], mask=batch.mask[:0], last=batch.last[:0]
        ),
        ("0 prompts",),
    ),
    "pass": (
        lambda model, batch: model.forward(batch, capture=SITES),
        ("logits [40 ", "4 sites: blocks.0.hook_resid_post [40 ", " …, blocks.3."),
    ),
    "nothing captured": (
        lambda model, batch: ForwardPass(torch.zeros(0, 2, 3), Activations({})),
        ("logits [0 2 3]", "0 sites"),
    ),
    "recording": (lambda model, batch: model.record(batch), ("40 prompts of ", "4 layers")),
    "responses": (lambda model, batch: model.generate(batch, max_new_tokens=2), ("40 responses",)),
    "fitted": (lambda model, batch: model.fit(load_task("two-hop")), ("left out: none",)),
    "store": (lambda model, batch: model.store, ("ActivationStore(", "zoo/hops-4l")),
    "patch": (lambda model, batch: Patch(SITES[0], torch.zeros(9, 99)), ("value=[9 99]",)),
    "steering": (lambda model, batch: Steer(SITES[0], torch.zeros(99)), ("direction=[99]",)),
    "skip": (lambda model, batch: Skip(1, positions=torch.arange(999)), ("positions=[999]",)),
    "ablation": (lambda model, batch: Ablate(SITES[0], "mean"), ("by='mean'",)),
    "long prompt": (
        lambda model, batch: Prompt("1", LONG, answer=LONG, choices=("a", "b")),
        (" … ", "2 choices"),
    ),
    "long task": (lambda model, batch: Task("own", (Prompt("1", LONG),)), ("1 prompt,", " … ")),
}


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_inside_is_said_in_a_line_or_two(
    what: str, model: Model, batch: TokenBatch
) -> None:
    make, parts = SHOWN[what]
    shown = repr(make(model, batch))
    assert len(shown) <= LONGEST
    assert "\n" not in shown
    assert "tensor(" not in shown
    for part in parts:
        assert part in shown, shown


def test_printing_runs_no_block(model: Model, batch: TokenBatch) -> None:
    recording = model.record(batch)
    before = model.work.block_tokens
    assert "nothing read yet" in repr(recording)
    assert model.work.block_tokens == before
    recording.resid(2)
    assert "nothing read yet" not in repr(recording)


def test_prompts_of_different_length_are_a_range(model: Model) -> None:
    batch = model.tokenize(["Ada friend", "Ada friend boss"])
    first, last = sorted(batch.mask.sum(1).tolist())
    assert f"2 prompts of {first} to {last} tokens" in repr(batch)
