"""Descriptions equal a full forward per pair of layers, with hand-written hooks; texts say what the
ranks say.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.entity_description import EntityDescription, described_texts
from interp.errors import AnalysisError, TaskError
from interp.models import Model
from interp.result import faults_of
from interp.runs.registry import make_analysis
from interp.sweeps.descriptions import described_logits, described_ranks, unpatched_guesses
from interp.sweeps.patches import outputs_at
from tests.families import tokens
from tests.test_back_patching import asked, put
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["gemma2", "gpt2", "gpt_neox", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("position", [4, 11])
def test_descriptions_equal_a_full_forward_per_pair(model: Model, position: int) -> None:
    batch, into = asked(), tokens(batch=1, seed=5)
    vectors = outputs_at(model.record(batch), batch.subject[:, None])[:, :, 0]
    target, names = model.record(into), [batch.bridge, batch.answer]
    layers = range(model.n_layers)
    at_ranks, shares = described_ranks(target, vectors, names, layers=layers, position=position)
    three = replace(batch, tokens=into.tokens.expand(3, -1))
    for layer in layers:
        for source, ours in enumerate(
            described_logits(target, vectors, layer=layer, position=position)
        ):
            wanted = naive(
                model, three, {layer: put(vectors[source][:, None], torch.full((3, 1), position))}
            )[:, -1]
            assert_close(ours, wanted, rtol=0, atol=1e-5)
            for i, token in enumerate(names):
                logit = ours.gather(1, token[:, None])
                assert torch.equal(at_ranks[:, source, layer, i], (ours > logit).sum(1))
                assert_close(
                    shares[:, source, layer, i], ours.softmax(-1).gather(1, token[:, None])[:, 0]
                )


@torch.no_grad()
def test_a_prompts_own_output_put_into_itself_says_what_it_says(model: Model) -> None:
    into = tokens(batch=1)
    recording = model.record(into)
    own = outputs_at(recording, torch.tensor([[6]]))[:, :, 0]
    clean = model.logits(into)[:, -1]
    for layer in range(model.n_layers):
        logits = list(described_logits(recording, own, layer=layer, position=6))[layer]
        assert_close(logits, clean, rtol=0, atol=1e-5)
    assert unpatched_guesses(recording, [clean.argmax(-1), clean.argmin(-1)]).tolist() == [
        [True, False]
    ]


def test_texts_say_what_the_ranks_say() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    analysis = EntityDescription(variant="full", known_only=False, no_shortcuts=False)
    result, shards = analysis.run(model, task), model.shards(task)
    for source, target, position in ((3, 0, "subject"), (1, 2, "last")):
        texts = [
            text
            for shard in shards
            for text in described_texts(
                model, shard, layers=(source, target), position=position, max_new_tokens=1
            )
        ]
        bridges = [prompt.bridge for shard in shards for prompt in shard]
        is_said = [bridge == text.strip() for bridge, text in zip(bridges, texts, strict=True)]
        assert is_said == (result.arrays[f"{position}.rank"][:, source, target, 0] == 0).tolist()


def test_a_prompt_does_not_count_where_the_target_prompt_says_its_bridge_anyway() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12)
    query = (  # followed by Yann, the bridge of every prompt "Ada mother ..."
        "Omar neighbour Nora . Ada mother"
    )
    ada = task.of(
        [
            *task.prompts[:4],
            *[p for p in interp.load_task("two-hop").prompts if p.subject == "Ada mother"][:3],
        ]
    )
    result = EntityDescription(prompt=query, placeholder="mother").run(model, ada)
    assert result.arrays["anyway"][:, 0].sum() == 3


def test_findings_are_the_difference_from_another_prompts_entities() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=48)
    result = EntityDescription().run(model, task)
    bridge, answer, since = result.findings()
    assert faults_of(result.findings()) == []
    kept = result.arrays["is_right"] & result.arrays["is_compared"]
    for finding, position, entity in ((bridge, "subject", 0), (answer, "last", 1)):
        counts = kept & ~result.arrays["anyway"][:, [entity, entity + 2]].any(1)
        said = (result.arrays[f"{position}.rank"][counts] == 0).any((1, 2))
        own, other = said[:, entity], said[:, entity + 2]
        assert finding.estimate.value == pytest.approx(own.mean() - other.mean())
        assert finding.control.estimate.value == pytest.approx(other.mean())
        n_groups = len(np.unique(result.prompt_groups[counts]))
        assert (finding.estimate.n, finding.estimate.n_groups) == (counts.sum(), n_groups)
        assert finding.estimate.low > 0.3
    by_source = (result.arrays["last.rank"][kept][..., 1] == 0).any(2).mean(0)
    assert since.estimate.value == np.flatnonzero(by_source >= 0.5)[0]


def test_an_untrained_models_vectors_say_nothing() -> None:
    model, task = interp.load_model("zoo/hops-8l@step-0000"), interp.load_task("two-hop", n=24)
    result = EntityDescription(known_only=False, no_shortcuts=False).run(model, task)
    bridge, answer, since = result.findings()
    for finding in (bridge, answer):
        assert not finding.estimate.excludes()
        assert "not measurably more often than another prompt's" in finding.claim
    assert since.claim.endswith("at no layer.")


def test_bad_input_is_named() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=4)
    with pytest.raises(AnalysisError, match="unknown value 'first'; there is"):
        make_analysis("entity_description", {"positions": ["first"]})
    with pytest.raises(AnalysisError, match="unknown value 'rich'; there is cheap, full"):
        make_analysis("entity_description", {"variant": "rich"})
    with pytest.raises(AnalysisError, match="n_samples=0; at least 1"):
        EntityDescription(n_samples=0)
    with pytest.raises(AnalysisError, match="prompt and placeholder are needed together"):
        EntityDescription(prompt="Ada friend")
    with pytest.raises(
        TaskError, match="prompt 'target prompt': subject 'Ada' found 2 times; once is needed"
    ):
        EntityDescription(prompt="Ada friend Ada", placeholder="Ada").run(model, task)
    with pytest.raises(TaskError, match="does not know every word of 1 prompt"):
        EntityDescription(prompt="a heliotrope", placeholder="a").run(model, task)
    with pytest.raises(AnalysisError, match="source=4; the model's last layer is 3"):
        described_texts(model, task.prompts, layers=(4, 0), position="last")
