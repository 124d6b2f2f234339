"""Circuits: edges add up to nodes, all edges are the model, none is the corrupted run, and what is
cut off is dropped.
"""

import json

import numpy as np
import pytest
import torch

from interp.analyses.circuit_discovery import CircuitDiscovery, is_for_discovery
from interp.analyses.circuit_discovery.circuits import Circuit, Wiring
from interp.analyses.circuit_discovery.edges import circuit_values, edge_scores, plain_pass
from interp.backward import GRADIENT, RELP
from interp.errors import AnalysisError, SiteError, TaskError
from interp.models import Model, load_model
from interp.sites import Site
from interp.sweeps.answers import SameLength
from interp.sweeps.attribution import Attribution
from interp.sweeps.twins import Twins
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral"])
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
    smallest = result.smallest(0.9)
    assert smallest is not None
    assert smallest.n_edges <= 0.1 * result.whole.n_edges
    assert {"a0.h0", "a2.h3"} <= {*smallest.nodes}
    assert result.faithfulness("random")[1] < 0.1
    assert result.faithfulness("complement")[1] < 0.1
    assert result.faithfulness("circuit")[-1] == pytest.approx(1.0, abs=1e-3)


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(AnalysisError, match="rising"):
        CircuitDiscovery(fractions=(0.5, 0.1))
    with pytest.raises(AnalysisError, match="set of rules 'relpp'"):
        CircuitDiscovery(rules="relpp")
    with pytest.raises(AnalysisError, match="5000 edges asked for"):
        Circuit.whole(Wiring(1, 2, 2, is_parallel=False), np.zeros((8, 4))).top(5000)
    with pytest.raises(SiteError, match="cannot be told apart"):
        tiny("olmo2").refuse_edges()
    task = load_task("ioi", n=2)
    one_half = task.of(
        [prompt for prompt in load_task("ioi", n=20).prompts if is_for_discovery(prompt.id)]
    )
    with pytest.raises(TaskError, match="too few"):
        CircuitDiscovery().prepare(load_model("zoo/names-6l"), one_half)
