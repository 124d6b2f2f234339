"""The shipped models know what their records say."""

import json
from collections import Counter
from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pytest
import torch

from interp.analyses.checkpoint_stitch import CheckpointStitch
from interp.analyses.checkpoint_stitch.changes import permuted
from interp.analyses.checkpoint_stitch.findings import against_random, needed_range
from interp.analyses.layer_skip import LayerSkip
from interp.errors import ModelError
from interp.files.paths import shipped_models
from interp.models import Model, load_model
from interp.tasks import Task, describe_tasks, load_task
from interp.zoo.evaluate import evaluate
from interp.zoo.names import Names
from interp.zoo.prompts import build_tasks
from interp.zoo.recipes import RECIPES
from interp.zoo.truths import truths_of
from interp.zoo.tune import LAYERS, TUNINGS, known_share, new_facts
from interp.zoo.vocabulary import ENTITIES
from interp.zoo.world import World

TUNED, LORA = (f"zoo/{name}" for name in TUNINGS)
TRAINED = [name for name in sorted(shipped_models()) if name not in (TUNED, LORA)]
FINISHED = [name for name in TRAINED if "@step" not in name]
SHIPPED = [
    pytest.param(name, marks=[pytest.mark.slow] if "@" in name or "16l" in name else [])
    for name in sorted(shipped_models())
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_reproduce_their_evaluation(name: str) -> None:
    model = load_model(name)
    family: Literal["gpt2", "llama"] = (
        "gpt2" if model.module.config.model_type == "gpt2" else "llama"
    )
    table = evaluate(model.module, model.tokenizer, family)
    record = json.loads((shipped_models()[name] / "evaluation.json").read_text())
    assert {k: v["n"] for k, v in table.items()} == {k: v["n"] for k, v in record.items()}
    for kind, row in table.items():
        assert row["score"] == pytest.approx(record[kind]["score"], abs=0.005)


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_model_knows_what_it_was_taught_and_not_what_was_held_out(name: str) -> None:
    score = {
        k: v["score"]
        for k, v in json.loads((shipped_models()[name] / "evaluation.json").read_text()).items()
    }
    if name.startswith("zoo/hops"):
        assert score["one-hop"] >= 0.99
        assert score["unseen"] >= 0.90
        assert score["second-held-out"] <= 0.15
        assert score["first-held-out"] <= {"zoo/hops-4l": 0.30, "zoo/hops-8l": 0.40}.get(name, 1.0)
    else:
        assert score["ioi"] >= 0.98
        assert score["ioi logit difference"] > 2
        assert score["induction"] >= 0.95
        assert score["greater-than mass"] >= {"zoo/names-6l": 0.94}.get(name, 0.8)


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_was_trained_by_its_recipe(name: str) -> None:
    record = json.loads((shipped_models()[name] / "training.json").read_text())
    recipe = RECIPES[name.removeprefix("zoo/").split("@step")[0]]
    assert record["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert record["steps_done"] in (recipe.steps, *recipe.keep)


def _known(name: str) -> dict[str, float]:
    record = json.loads((shipped_models()[name] / "training.json").read_text())
    known: dict[str, float] = record["new facts known"]
    return known


def test_fine_tuning_wrote_new_facts_into_two_layers_alone_and_noise_of_its_size_writes_none() -> (
    None
):
    base = load_model("zoo/hops-8l")
    for name in (TUNED, LORA):
        tuned = load_model(name)
        weights = [dict(model.module.named_parameters()) for model in (base, tuned)]
        written = {name for name, w in weights[0].items() if not torch.equal(w, weights[1][name])}
        layers = {int(name.split(".")[2]) for name in written}  # model.layers.3.…
        assert layers == {*LAYERS}
        task = Task.from_jsonl(shipped_models()[name] / "new-facts.jsonl")
        assert task.prompts == new_facts().prompts
        modules = [model.module for model in (base, tuned, _noise(base, tuned, seed=0))]
        shares, known = [known_share(module, base.tokenizer) for module in modules], _known(name)
        assert shares[:2] == [known["before"], known["after"]]
        assert known["after"] > 0.9
        assert max(shares[0], shares[2]) < 0.1


def test_the_change_by_terms_of_low_rank_has_their_rank_and_touches_no_vector() -> None:
    base, tuned = (
        dict(load_model(name).module.named_parameters()) for name in ("zoo/hops-8l", LORA)
    )
    changes = {name: tuned[name] - w for name, w in base.items() if not tuned[name].equal(w)}
    assert len(changes) == 2 * 7
    rank = TUNINGS[LORA.removeprefix("zoo/")].rank
    for change in changes.values():
        energy = torch.linalg.svdvals(change.detach()).square()
        assert energy[:rank].sum() > 0.9999 * energy.sum()  # the rest is rounding


def _noise(base: Model, like: Model, *, seed: int) -> Model:
    """Return a base with the change to another model, the entries of every matrix permuted."""
    module = deepcopy(base.module)
    for layer in LAYERS:
        module.load_state_dict(permuted(base, like, layer, seed=seed), strict=False)
    return Model("noise", module, base.tokenizer)


def test_a_stitch_names_the_layers_that_were_trained_and_none_of_noise_of_the_same_size() -> None:
    base, tuned = load_model("zoo/hops-8l"), load_model(TUNED)
    others = {TUNED: tuned, LORA: load_model(LORA), "noise": _noise(base, tuned, seed=1)}
    asking = Model(base.name, base.module, base.tokenizer, load_another=others.__getitem__)
    task = Task.from_jsonl(shipped_models()[TUNED] / "new-facts.jsonl").take(12)
    how: dict[str, Any] = {"maps": ("none",), "control": "none", "every": 1}
    results = {name: CheckpointStitch(against=name, **how).run(asking, task) for name in others}
    for name in (TUNED, LORA):
        first, behind = needed_range(results[name])
        assert LAYERS[0] <= first < behind <= LAYERS[-1] + 1
        claim, times = results[name].summary(), against_random(results[name])
        assert claim.startswith("To keep 80 % of the change, layer")
        assert times is not None
        assert times.low > 1
    nowhere = results["noise"].findings()[0]
    assert nowhere.claim.startswith("The change is nowhere in particular")
    assert nowhere.estimate is not None
    assert not nowhere.estimate.excludes(1.0)


def test_what_is_written_down_as_true_is_measured() -> None:
    written = json.loads((shipped_models()["zoo/hops-4l"] / "truths.json").read_text())
    assert truths_of(load_model("zoo/hops-4l")) == written


def test_the_late_bridge() -> None:
    """A bridge whose fact was held out of compositions becomes readable later than others."""
    written = json.loads((shipped_models()["zoo/hops-4l"] / "truths.json").read_text())
    after = written["bridge readable at the first relation"]
    assert after["unseen"][1] > after["first-held-out"][1] + 0.2
    assert after["first-held-out"][-1] > 0.9


def test_a_checkpoint_is_a_revision() -> None:
    assert (
        load_model("zoo/hops-8l", revision="seed1").fingerprint
        == load_model("zoo/hops-8l@seed1").fingerprint
    )
    with pytest.raises(ModelError, match=r"unknown model 'zoo/hops-8l@step-9999'; did you mean"):
        load_model("zoo/hops-8l", revision="step-9999")


def test_the_built_in_prompts_are_the_worlds() -> None:
    for task, source in build_tasks():
        shipped = load_task(task.name)
        assert shipped.prompts == task.prompts
        assert shipped.related == task.related
        assert (shipped.about, shipped.needs) == (task.about, task.needs)
        assert describe_tasks()[task.name]["source"] == source


def test_names_are_balanced_and_held_out() -> None:
    task, names = load_task("ioi"), Names()
    assert len(task) == 300
    assert all(frozenset((p.answer, p.wrong)) in names.held_out for p in task.prompts)
    assert Counter((p.tags["order"], p.tags["template"]) for p in task.prompts) == {
        (order, str(i)): 25 for order in ("ABBA", "BABA") for i in range(6)
    }


def test_sentences_never_show_a_held_out_pair() -> None:
    names, rng = Names(), np.random.default_rng(0)
    for _ in range(500):
        words = {word for word, _ in names.sentence(rng, "ioi")} & set(ENTITIES)
        assert frozenset(words) not in names.held_out


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
    result = LayerSkip(scopes=("all", "future")).run(
        load_model("zoo/hops-4l"), load_task("two-hop", n=16)
    )
    above = np.triu_indices(4, 1)
    assert (result.grid("future")[above] > 0.05).all()
    assert (np.diag(result.grid("future")) == 0).all()
