"""Comparisons claim nothing where there is nothing, and something where there is."""

import pytest

import interp
from scripts.null import (
    Claims,
    analyses,
    findings,
    loaded,
    places,
    untrained,
    with_others_answers,
)

_SEEDS = range(1)  # the script is for more
# what a comparison is about does not depend on which answer is asked for
_WITHOUT_ANSWERS = {
    "affine_lens",
    "attention_knockout",
    "checkpoint_stitch",
    "depth_map",
    "depth_score",
    "layer_order",
    "quantization_order",
    "recursion",
    "unit_importance",
}
_FIRE = (
    "activation_patching",
    "circuit_discovery",
    "entity_description",
    "hop_stages",
    "layer_skip",
    "patching_agreement",
    "relevance_patching",
)


@pytest.mark.slow
def test_untrained_models_do_nothing() -> None:
    claims = Claims()
    for name in analyses():
        for found in untrained(name, _SEEDS):
            claims.add(name, found)
    assert len({analysis for analysis, _ in claims.made}) >= 8
    assert claims.is_chance, claims.sentences


@pytest.mark.slow
def test_others_answers_are_not_explained() -> None:
    claims = Claims()
    for name in analyses():
        for found in with_others_answers(name, _SEEDS) if name not in _WITHOUT_ANSWERS else ():
            claims.add(name, found)
    assert claims.is_chance, claims.sentences


@pytest.mark.slow
@pytest.mark.parametrize("name", _FIRE)
def test_trained_models_do_something(name: str) -> None:
    model, task = places(name)
    claims = Claims()
    claims.add(name, findings(name, loaded(model), interp.load_task(task, n=24)))
    assert claims.claimed.total() > 0
