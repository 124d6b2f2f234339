"""A state continued in a stretched copy of its own model reaches exactly twice as far."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.analyses.depth_map import DepthMap
from interp.analyses.depth_map.continued import Onward
from interp.analyses.depth_map.frontier import Frontier
from interp.analyses.depth_map.split import batches_by_role
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.tasks import Task


@pytest.fixture(scope="module")
def zoo() -> Model:
    return interp.load_model("zoo/hops-4l")


def stretched(model: Model) -> Model:
    """Return a model with a layer that does nothing after each of its own."""
    module = deepcopy(model.module)
    layers = []
    for layer in module.model.layers:
        nothing = deepcopy(layer)
        for writer in (nothing.self_attn.o_proj, nothing.mlp.down_proj):
            torch.nn.init.zeros_(writer.weight)
        layers += [layer, nothing]
    for i, layer in enumerate(layers):
        layer.self_attn.layer_idx = i
    module.model.layers = torch.nn.ModuleList(layers)
    module.config.num_hidden_layers = len(layers)
    if getattr(module.config, "layer_types", None):
        module.config.layer_types = [module.config.layer_types[0]] * len(layers)
    return Model("stretched", module, model.tokenizer)


def frontier_of(source: Model, target: Model) -> Frontier:
    shards = source.shards(interp.load_task("two-hop", n=24))
    batches = batches_by_role(source, shards, seed=0)
    onward = Onward(source, target, is_orthogonal=True, every=1, seed=0)
    with torch.no_grad(), source.running, target.running:
        answers = onward.by_prompt(batches, control=False)
    ids = [prompt.id for batch in batches["test"] for prompt in batch.prompts]
    stacks = [torch.stack([answers[f"{kind} {i}"] for i in ids]).numpy() for kind in _KINDS]
    taps = {"sources": tuple(onward.taps(source)), "targets": tuple(onward.taps(target))}
    return Frontier(*stacks, **taps, share=0.8, groups=None, seed=0)


_KINDS = ("onward", "itself", "own")


def test_a_stretched_copy_takes_twice_the_layers_and_the_diagonal_is_clean(zoo: Model) -> None:
    frontier = frontier_of(zoo, stretched(zoo))
    own, grid = frontier.own, frontier.onward[:, 0]
    assert (own[:, 0] == own[:, 1]).all()
    for layer in range(1, zoo.n_layers + 1):  # of what was embedded, not all has been fitted
        assert (grid[:, layer, 2 * layer] == own[:, 0]).mean() >= 0.9
    np.testing.assert_array_equal(grid[:, :, ::2], frontier.itself)
    np.testing.assert_array_equal(
        frontier.frontier()["value"], 2 * frontier.frontier("itself")["value"]
    )
    assert frontier.slope().value == 2
    assert frontier.slope("permuted").value < 0.5


def test_a_frontier_by_hand() -> None:
    onward = np.array([[[[1, 1, 0], [0, 1, 1]]], [[[1, 0, 0], [1, 1, 0]]]], float)
    itself = np.array([[[1, 0], [0, 1]]] * 2, float)
    how = {"sources": (0, 1), "targets": (0, 1, 2), "groups": None, "seed": 0}
    strict = Frontier(onward, itself, np.ones((2, 2)), share=0.8, **how)
    assert strict.frontier()["value"].tolist() == [0, 1]
    lax = replace(strict, share=0.5)
    assert lax.frontier()["value"].tolist() == [1, 2]
    assert lax.slope().value == 2
    never = replace(strict, own=np.zeros((2, 2)))
    assert never.frontier()["value"].tolist() == [0, 0]
    assert never.finding("the other").claim.startswith("No answers to compare depths by: 0 %")


def test_what_cannot_be_continued_is_refused_in_one_line(zoo: Model) -> None:
    with pytest.raises(AnalysisError, match=r"continued=true and method='cka' given"):
        DepthMap(method="cka", continued=True)
    with pytest.raises(TaskError, match="answer"):
        DepthMap(continued=True).run(zoo, Task.from_tokens([[5, 6, 7, 8]] * 4))
    assert DepthMap(continued=True).coarser() == DepthMap(continued=True, every=2)
    assert DepthMap().coarser() is None
