"""Circuits: edges add up to nodes, all edges are the model, none is the corrupted run, and what is
cut off is dropped.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.analyses.circuit_discovery import CircuitDiscovery
from interp.analyses.circuit_discovery.areas import (
    MIB_FRACTIONS,
    area_of,
    chosen_at,
    chosen_by_halves,
    why_not_comparable,
)
from interp.analyses.circuit_discovery.circuits import Circuit
from interp.analyses.circuit_discovery.controls import random_circuits
from interp.analyses.circuit_discovery.halves import is_for_discovery
from interp.analyses.circuit_discovery.result import CircuitDiscoveryResult
from interp.backward import GRADIENT, RELP
from interp.errors import AnalysisError, SiteError, TaskError
from interp.models import Model, load_model
from interp.sites import Site
from interp.sweeps.answers import SameLength
from interp.sweeps.attribution import Attribution
from interp.sweeps.edges import circuit_values, edge_scores, plain_pass
from interp.sweeps.twins import Twins
from interp.sweeps.wiring import Wiring
from interp.tasks import load_task
from tests.families import tiny, tokens


def twins_of(model: Model) -> Twins:
    clean, twin = tokens(batch=2, n_pos=6), tokens(batch=2, n_pos=6).tokens.clone()
    twin[:, 2] = torch.tensor([50, 51])
    group = SameLength(
        torch.arange(2), model.record(clean), clean.tokens, torch.tensor([[7], [8]]), 5
    )
    return Twins(group, twin, torch.tensor([9, 10]), "logit_diff", "denoise")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("rules", [GRADIENT, RELP], ids=lambda rules: rules.name)
def test_scores_of_all_edges_that_leave_a_node_add_up_to_its_score(family: str, rules) -> None:
    model = tiny(family)
    twins, wiring = twins_of(model), Wiring.of(model)
    edges = edge_scores(twins.clean.recording, twins, wiring, rules=rules).sum(1)
    sites = [Site(kind, layer) for layer in range(4) for kind in ("z", "mlp_out")] + [
        Site("resid_pre", 0)
    ]
    nodes = Attribution(twins.clean.recording, twins, sites).scores(
        "relevance", rules=rules, steps=1
    )
    expected = [nodes[Site("resid_pre", 0)].sum(1)[:, None]]
    for layer in range(4):
        expected += [nodes[Site("z", layer)].sum(1), nodes[Site("mlp_out", layer)].sum(1)[:, None]]
    torch.testing.assert_close(edges, torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral", "olmo2"])
def test_all_edges_are_the_model_and_none_is_the_corrupted_run(family: str) -> None:
    model = tiny(family)
    twins, wiring = twins_of(model), Wiring.of(model)
    recording = twins.clean.recording
    away = plain_pass(recording, twins.corrupted, wiring)
    tried = [wiring.is_edge, np.zeros_like(wiring.is_edge)]
    every, none = circuit_values(recording, twins, wiring, tried, away=away)
    for value, ids in ((every, twins.clean.tokens), (none, twins.corrupted)):
        logits = recording.forward(ids).logits[:, -1:]
        torch.testing.assert_close(value, twins.value(logits), atol=1e-4, rtol=1e-4)


def test_one_edge_to_the_logits_adds_what_its_sender_says() -> None:
    model = tiny("llama")
    twins, wiring = twins_of(model), Wiring.of(model)
    recording, layer = twins.clean.recording, 3
    kept = np.zeros_like(wiring.is_edge)
    kept[-1, wiring.senders.index("m0")] = True
    value = circuit_values(
        recording, twins, wiring, [kept], away=plain_pass(recording, twins.corrupted, wiring)
    )[0]
    # with nothing else, the MLP of layer 0 reads what it reads in the corrupted run: nothing
    # changes
    away = recording.of(twins.corrupted)
    torch.testing.assert_close(
        value, twins.value(away.logits(away.resid(layer + 1), positions=[5])), atol=1e-4, rtol=1e-4
    )
    kept[wiring.receivers.index("m0"), :] = wiring.is_edge[wiring.receivers.index("m0")]
    kept[wiring.receivers.index("m0"), 1:] = False  # the embedding alone
    value = circuit_values(
        recording, twins, wiring, [kept], away=plain_pass(recording, twins.corrupted, wiring)
    )[0]
    clean = recording
    mid = away.clean(Site("resid_mid", 0)) - away.resid(0) + clean.resid(0)
    last = away.resid(4) + away.mlp(0, mid) - away.clean(Site("mlp_out", 0))
    torch.testing.assert_close(
        value, twins.value(away.logits(last, positions=[5])), atol=1e-4, rtol=1e-4
    )


def test_what_is_cut_off_from_embedding_or_logits_is_dropped() -> None:
    wiring = Wiring(n_layers=2, n_heads=2, n_kv_heads=1, is_parallel=False)
    names, receivers = wiring.senders, wiring.receivers
    scores = np.zeros(wiring.is_edge.shape)
    for worth, (sender, receiver) in enumerate(
        [
            ("m1", "logits"),
            ("a0.h0", "m1"),
            ("embed", "v0.h0"),
            ("embed", "m0"),
            ("a1.h1", "logits"),
        ],
        start=1,
    ):
        scores[receivers.index(receiver), names.index(sender)] = 10 - worth
    circuit = Circuit.whole(wiring, scores).top(5)
    assert [edge[:2] for edge in circuit.edges] == [
        ("m1", "logits"),
        ("a0.h0", "m1"),
        ("embed", "v0.h0"),
    ]
    assert {"embed", "a0.h0", "m1", "logits"} <= {*circuit.nodes}
    assert json.loads(circuit.to_json())["edges"][0] == {
        "sender": "m1",
        "receiver": "logits",
        "score": 9.0,
    }
    assert (
        circuit.to_networkx().number_of_edges() == 4
    )  # the value head feeds both heads of its group
    assert Circuit.whole(wiring, scores).share(0.2).n_edges == 0


def test_few_edges_keep_indirect_objects_and_contain_the_heads_that_move_the_name() -> None:
    result = CircuitDiscovery(fractions=(0.05, 0.1, 1.0)).run(
        load_model("zoo/names-6l"), load_task("ioi", n=32)
    )
    smallest = result.smallest()
    assert smallest is not None
    assert smallest.n_edges <= 0.1 * result.whole.n_edges
    assert {"a0.h0", "a2.h3"} <= {*smallest.nodes}
    assert not result.is_absent
    assert result.is_faithful
    assert result.by_draw.max() < 0.8 * result.kept().value
    assert result.kept("random").value == pytest.approx(result.by_draw.mean())
    assert result.beyond_random.low > 0.5
    assert result.faithfulness("complement")[1] < 0.1
    assert result.faithfulness("circuit")[-1] == pytest.approx(1.0, abs=1e-3)


def untrained(seed: int) -> Model:
    """Return names-6l as it was before training, but for the seed."""
    trained = load_model("zoo/names-6l")
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(trained.module.config).float().eval()
    return load_model(module, tokenizer=trained.tokenizer)


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_has_no_behaviour_to_explain(seed: int) -> None:
    result = CircuitDiscovery(fractions=(0.05, 1.0), draws=2).run(
        untrained(seed), load_task("ioi", n=32)
    )
    assert result.is_absent == (result.gap.low <= 0)
    assert result.is_absent
    (finding,) = result.findings()
    assert finding.claim.startswith("No behaviour to explain: ")
    assert finding.estimate == result.gap
    assert np.isnan(result.faithfulness("circuit")).all()
    assert np.isnan(result.cpr)


def made(values: dict[str, list[Any]], chosen: tuple[int, int] = (0, 0)) -> CircuitDiscoveryResult:
    """Return a result with given metrics for three circuits of a model of 38 edges."""
    wiring = Wiring(2, 2, 2, is_parallel=False)
    whole = Circuit.whole(wiring, np.random.default_rng(0).normal(size=wiring.is_edge.shape))
    arrays = {name: np.array(value, float) for name, value in values.items()}
    analysis = CircuitDiscovery(fractions=(0.2, 0.5, 1.0), draws=2)
    unseen = np.ones(len(arrays["all"]), bool)
    return CircuitDiscoveryResult(analysis, whole, arrays, chosen, 0.25, unseen)


def test_what_a_half_chose_is_measured_on_the_other() -> None:
    values = {
        "all": [2.0, 2.0, 4.0, 4.0],
        "none": [0.0, 0.0, 0.0, 2.0],
        "half": [0, 1, 0, 1],
        "circuit": [[1.0, 1.5, 2], [1.2, 1.6, 2], [2.0, 3.0, 4], [2.6, 3.4, 4]],
        "complement": [[0.0] * 3] * 4,
        "random": [[[0.1, 0.3], [0.5, 0.7]]] * 3 + [[[2.1, 2.3], [2.5, 2.7]]],
    }
    result = made(values, chosen=(0, 1))  # half 0 chose the first circuit, half 1 the second
    # prompts 0 and 2 are measured by the second, 1 and 3 by the first; gaps are 2, 2, 4 and 2
    assert result.kept().value == pytest.approx((1.5 + 1.2 + 3.0 + 0.6) / 10)
    np.testing.assert_allclose(
        result.by_draw, [(0.5 + 0.1 + 0.5 + 0.1) / 10, (0.7 + 0.3 + 0.7 + 0.3) / 10]
    )
    assert result.kept("random").value == pytest.approx(1.6 / 10)
    f = np.array([1.0 + 1.2 + 2.0 + 0.6, 1.5 + 1.6 + 3.0 + 1.4, 10]) / 10
    np.testing.assert_allclose(result.faithfulness("circuit"), f)
    cpr = (0.3 * (f[0] + f[1]) / 2 + 0.5 * (f[1] + f[2]) / 2) / 0.8
    assert result.cpr == pytest.approx(cpr)
    assert result.cmd == pytest.approx(1 - cpr)  # as f is below 1 here
    assert (result.clean.value, result.corrupted.value, result.gap.value) == (3.0, 0.5, 2.5)


def test_one_group_of_prompts_is_said_to_choose_for_itself() -> None:
    values = {
        "all": [1.0, 1.1],
        "none": [0.0, 0.0],
        "half": [0, 0],
        "circuit": [[0.9, 1.0, 1.0]] * 2,
        "complement": [[0.0] * 3] * 2,
        "random": [[[0.1, 0.2], [0.1, 0.2]]] * 2,
    }
    result = made(values).of_groups(np.zeros(2, int))
    assert "Chosen on the new prompts that it is measured on" in result.findings()[0].note


def test_what_halves_chose_has_a_wider_interval() -> None:
    rng, n = np.random.default_rng(0), 20
    gained = rng.uniform(0.5, 1, n)
    values = {
        "all": [1.0] * n,
        "none": [0.0] * n,
        "half": [0, 1] * (n // 2),
        "circuit": np.repeat(gained[:, None], 3, 1).tolist(),
        "complement": [[0.0] * 3] * n,
        "random": [[[0.0, 0.0], [0.0, 0.0]]] * n,
    }
    result = made(values)
    plain = result.behaviour.share(gained)
    for kept in (result.kept(), result.beyond_random):
        assert kept.value - kept.low == pytest.approx(1.1 * (plain.value - plain.low))


def test_a_circuit_that_keeps_less_than_random_paths_is_said_to() -> None:
    n = 20
    values = {
        "all": [1.0] * n,
        "none": [0.0] * n,
        "half": [0, 1] * (n // 2),
        "circuit": [[0.2, 0.2 + i / 100, 1.0] for i in range(n)],
        "complement": [[0.0] * 3] * n,
        "random": [[[0.6, 0.7], [0.6, 0.7]]] * n,
    }
    _, beyond, _ = made(values, chosen=(0, 1)).findings()
    assert beyond.estimate.value < 0
    assert beyond.claim.startswith(f"That is {-beyond.estimate:.0%} of the gap less than random")


def test_a_perfect_circuit_has_areas_1_and_0_and_mibs_protocol_alone_is_comparable() -> None:
    f = np.ones(10)
    assert area_of("CPR", f, MIB_FRACTIONS) == pytest.approx(1.0)
    assert area_of("CMD", f, MIB_FRACTIONS) == 0.0
    assert area_of("CPR", np.ones(2), (0.3, 0.4)) == pytest.approx(1.0)
    assert why_not_comparable("CMD", CircuitDiscovery()) == ""
    assert why_not_comparable("CPR", CircuitDiscovery(ranking="signed")) == ""
    assert "ranking" in why_not_comparable("CPR", CircuitDiscovery())
    other = CircuitDiscovery(fractions=(0.1, 1.0), metric="kl", ablation="mean")
    assert why_not_comparable("CMD", other).endswith("other fractions, metric, ablation")


def test_what_keeps_more_than_all_is_not_faithful() -> None:
    gap, is_part = np.full(4, 2.0), np.array([True, True, True, False])
    kept = gap[:, None] * np.array([0.5, 1.3, 0.95, 1.0])
    assert chosen_at(kept, gap, is_part=is_part) == 2
    assert chosen_at(kept[:, [0, 1, 3]], gap, is_part=is_part[[0, 1, 3]]) == 1  # the closest
    assert chosen_at(kept[:, 3:], gap, is_part=is_part[3:]) == 0


def test_a_group_of_prompts_chooses_or_is_measured_never_both() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(40, 5)), np.arange(40) // 4
    half, _ = chosen_by_halves(values, [3, 5, 7, 9], groups=groups, seed=0)
    assert {len({*half[groups == group].tolist()}) for group in range(10)} == {1}
    assert half.sum() == 20
    one, (first, other) = chosen_by_halves(values, [3, 5, 7, 9], groups=0 * groups, seed=0)
    assert len({*one.tolist()}) == 1
    assert first == other


WIRINGS = {
    "each head its own keys": Wiring(6, 4, 4, is_parallel=False),
    "groups of heads": Wiring(5, 6, 2, is_parallel=False),
    "parallel": Wiring(4, 4, 1, is_parallel=True),
}


def a_circuit(wiring: Wiring, share: float) -> Circuit:
    scores = np.exp(2 * np.random.default_rng(1).normal(size=wiring.is_edge.shape))
    whole = Circuit.whole(wiring, scores)
    return whole.top(round(share * whole.n_edges))


def makeup(wiring: Wiring, kept: np.ndarray) -> list[Counter[str]]:
    """Return how many edges there are by kinds, by the sender's layer and by the receiver's."""
    rows = [(wiring.senders[s], wiring.receivers[r]) for r, s in zip(*kept.nonzero(), strict=True)]
    return [
        Counter(f"{sender[0]} {receiver[0]}" for sender, receiver in rows),
        Counter(sender.split(".")[0] for sender, _ in rows),
        Counter(receiver.split(".")[0] for _, receiver in rows),
    ]


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS)
def test_random_circuits_are_paths_of_the_same_kinds_and_layers(
    wiring: Wiring, share: float
) -> None:
    circuit = a_circuit(wiring, share)
    draws = random_circuits(circuit, 20, seed=0)
    assert circuit.n_edges
    for kept in draws:
        assert not (kept & ~wiring.is_edge).any()
        np.testing.assert_array_equal(Circuit(wiring, circuit.scores, kept).connected().kept, kept)
        assert makeup(wiring, kept) == makeup(wiring, circuit.kept)
    assert len({kept.tobytes() for kept in draws}) == 20
    in_common = (draws & circuit.kept).sum() / draws.sum()
    assert in_common < 0.5 + 0.5 * share
    np.testing.assert_array_equal(draws[:1], random_circuits(circuit, 1, seed=0))


def test_random_circuits_of_all_edges_and_of_none_are_the_same() -> None:
    wiring = WIRINGS["groups of heads"]
    for kept in (wiring.is_edge, np.zeros_like(wiring.is_edge)):
        draws = random_circuits(Circuit(wiring, np.zeros(kept.shape), kept), 3, seed=0)
        np.testing.assert_array_equal(draws, np.stack([kept] * 3))


def test_random_circuits_of_all_edges_keep_everything() -> None:
    analysis = CircuitDiscovery(fractions=(0.9999, 1.0), draws=3)
    result = analysis.run(load_model("zoo/names-6l"), load_task("ioi", n=12))
    assert result.circuits[0].n_edges == result.whole.n_edges
    np.testing.assert_allclose(result.by_draw, 1.0, atol=1e-4)
    assert result.shared == pytest.approx(1.0)
    assert "No smaller circuit tried" in result.summary()


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(AnalysisError, match="rising"):
        CircuitDiscovery(fractions=(0.5, 0.1))
    with pytest.raises(AnalysisError, match="set of rules 'relpp'"):
        CircuitDiscovery(rules="relpp")
    with pytest.raises(AnalysisError, match="5000 edges asked for"):
        Circuit.whole(Wiring(1, 2, 2, is_parallel=False), np.zeros((8, 4))).top(5000)
    with pytest.raises(SiteError, match="cannot be told apart"):
        tiny("deepseek_v2").refuse_edges()
    task = load_task("ioi", n=2)
    one_half = task.of(
        [prompt for prompt in load_task("ioi", n=20).prompts if is_for_discovery(prompt.id)]
    )
    with pytest.raises(TaskError, match="too few"):
        CircuitDiscovery().prepare(load_model("zoo/names-6l"), one_half)
