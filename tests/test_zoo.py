"""The shipped models know what their records say."""

import json

import numpy as np
import pytest

from interp.analyses.layer_skip import LayerSkip
from interp.models import load_model
from interp.paths import shipped_models
from interp.tasks import load_task
from interp.zoo.evaluate import evaluate
from interp.zoo.prompts import build_tasks
from interp.zoo.world import World


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_shipped_weights_reproduce_their_evaluation(name: str) -> None:
    model = load_model(name)
    table = evaluate(model.module, model.tokenizer, "llama")
    record = json.loads((shipped_models()[name] / "evaluation.json").read_text())
    assert {k: v["n"] for k, v in table.items()} == {k: v["n"] for k, v in record.items()}
    for kind, row in table.items():
        assert row["score"] == pytest.approx(record[kind]["score"], abs=0.005)
    assert table["one-hop"]["score"] >= 0.99
    assert table["unseen"]["score"] >= 0.90
    assert table["first-held-out"]["score"] <= 0.30
    assert table["second-held-out"]["score"] <= 0.15


def test_the_built_in_prompts_are_the_worlds() -> None:
    for task in build_tasks(World()):
        assert load_task(task.name).prompts == task.prompts


def test_compositions_are_consistent() -> None:
    world = World()
    assert len(world.facts) == 400
    assert len(world.held_out) == 40
    for composition, kind in world.compositions.items():
        entity, first, second = composition
        in_training = (entity, first) not in world.held_out and (
            world.bridge(composition),
            second,
        ) not in world.held_out
        assert (kind in ("trained", "unseen")) == in_training


def test_future_tokens_depend_on_skipped_layers_of_the_trained_model() -> None:
    result = LayerSkip(scopes=("all", "future")).run(load_model("zoo/hops-4l"), load_task("two-hop", n=16))
    above = np.triu_indices(4, 1)
    assert (result.grid("future")[above] > 0.05).all()
    assert (np.diag(result.grid("future")) == 0).all()
