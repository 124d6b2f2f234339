"""Features as nodes: their scores add up, and their patches are what they say."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.analyses.feature_patching import FeaturePatching
from interp.analyses.feature_patching.choice import largest, random_like
from interp.analyses.feature_patching.nodes import Nodes, dictionary_of, is_error, n_nodes
from interp.analyses.feature_patching.patches import patched_values
from interp.analyses.feature_patching.result import FeaturePatchingResult
from interp.backward import rules_named
from interp.errors import AnalysisError, UnsuitedError
from interp.features import Dictionary, load_dictionary
from interp.features.splitting import split
from interp.interventions import Patch
from interp.models import Model
from interp.replay import Recording
from interp.sites import Site
from interp.sweeps.attribution import Attribution, Method
from interp.sweeps.twins import twins_of

SHIPPED = "names-6l/resid_pre.3"
AT, MLP = Site("resid_pre", 3), Site("mlp_out", 2)


@cache
def model() -> Model:
    return interp.load_model("zoo/names-6l")


@cache
def result() -> FeaturePatchingResult:
    analysis = FeaturePatching(dictionaries=(SHIPPED,), sizes=(1, 10), top_k=10)
    found = analysis.run(model(), interp.load_task("ioi", n=24))
    assert isinstance(found, FeaturePatchingResult)
    return found


def random_dictionary(reads: Site, writes: Site, *, n: int = 40, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((128, n), (n,), (n, 128), (128,))
    tensors = [torch.randn(*shape, generator=generator) / 8 for shape in shapes]
    return Dictionary(f"random of {writes}", reads, writes, *tensors)


def runs_of(
    *dictionaries: Dictionary, method: Method = "relevance"
) -> tuple[Recording, Attribution, Nodes, dict[Site, Tensor]]:
    shard = model().tokenize(interp.load_task("ioi", n=4).prompts[:1])
    recording = model().record(shard)
    (twins,) = twins_of(recording, shard, metric="logit_diff", direction="noise")
    sites = sorted({site for d in dictionaries for site in (d.reads, d.writes)})
    runs = Attribution(recording, twins, sites)
    base, slopes = runs.coefficients(method, rules=rules_named("relp"), steps=2)
    return recording, runs, Nodes.of(runs, base, dictionaries), slopes


@pytest.mark.parametrize("method", ["relevance", "attribution", "integrated_gradients"])
@pytest.mark.parametrize("reads", [AT, MLP, Site("resid_mid", 2)])
def test_scores_of_features_and_error_add_up_to_the_sites(method: Method, reads: Site) -> None:
    writes = MLP if reads.kind == "resid_mid" else reads
    dictionary = random_dictionary(reads, writes)
    _, runs, nodes, slopes = runs_of(dictionary, method=method)
    whole = runs.scores(method, rules=rules_named("relp"), steps=2)[writes].sum(1)
    torch.testing.assert_close(nodes.scores(slopes).sum(1), whole, rtol=1e-4, atol=1e-4)


def test_one_patched_feature_moves_the_site_along_its_direction() -> None:
    dictionary = load_dictionary(SHIPPED)
    recording, runs, nodes, _ = runs_of(dictionary)
    feature = int(nodes.distances()[0, :-1].argmax())
    chosen = torch.zeros(1, n_nodes([dictionary]), dtype=torch.bool)
    chosen[0, feature] = True
    value = patched_values(recording, runs.twins, nodes, chosen)[:, 0]
    clean = model().forward(runs.twins.base, capture=[AT]).activations[AT]
    twin = model().forward(runs.twins.source, capture=[AT]).activations[AT]
    change = dictionary.encode(twin)[..., feature] - dictionary.encode(clean)[..., feature]
    moved = clean + change[..., None] * dictionary.w_dec[feature]
    run = model().forward(runs.twins.base, plan=[Patch(AT, moved)])
    expected = runs.twins.value(run.logits[:, runs.twins.clean.predicting])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert (value - runs.base_value).abs().max() > 0.01


def test_all_nodes_patched_are_the_site_patched() -> None:
    dictionaries = [
        load_dictionary(SHIPPED),
        random_dictionary(Site("resid_mid", 4), Site("mlp_out", 4)),
    ]
    recording, runs, nodes, _ = runs_of(*dictionaries)
    every = torch.ones(1, n_nodes(dictionaries), dtype=torch.bool)
    value = patched_values(recording, runs.twins, nodes, every)[:, 0]
    sites = [dictionary.writes for dictionary in dictionaries]
    source = model().forward(runs.twins.source, capture=sites).activations
    run = model().forward(runs.twins.base, plan=[Patch(site, source[site]) for site in sites])
    expected = runs.twins.value(run.logits[:, runs.twins.clean.predicting])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_a_transcoders_features_are_those_of_what_it_reads_in_the_patched_run() -> None:
    first = random_dictionary(AT, AT)
    second = random_dictionary(Site("resid_mid", 4), Site("mlp_out", 4), seed=1)
    recording, runs, nodes, _ = runs_of(first, second)
    chosen = torch.zeros(2, n_nodes([first, second]), dtype=torch.bool)
    chosen[0, : first.n_features + 1] = chosen[1, : first.n_features + 1] = True
    chosen[1, first.n_features + 1 : -1] = True  # the transcoder's features, not its error
    value = patched_values(recording, runs.twins, nodes, chosen)[:, 1]
    source = model().forward(runs.twins.source, capture=[AT]).activations[AT]
    at = [second.reads, second.writes]
    here = model().forward(runs.twins.base, plan=[Patch(AT, source)], capture=at).activations
    error = split(second, *(here[site] for site in at)).error
    new = second.decode(nodes.source[1].features) + error
    plan = [Patch(AT, source), Patch(second.writes, new)]
    run = model().forward(runs.twins.base, plan=plan)
    expected = runs.twins.value(run.logits[:, runs.twins.clean.predicting])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_random_features_are_of_the_same_dictionary_alike_and_none_twice() -> None:
    # so many that the nearest ten of any are alike, though twelve are chosen
    dictionaries = [random_dictionary(AT, AT, n=80), random_dictionary(MLP, MLP, n=100)]
    size, rng = n_nodes(dictionaries), np.random.default_rng(0)
    rates, distances = torch.rand(2, size).unbind()
    rates[::2] = 1e-6  # every second one is hardly ever active
    chosen = largest(torch.randn(size), dictionaries, n=12)
    drawn = random_like(chosen, dictionaries, (rates, distances), rng=rng)
    of = dictionary_of(dictionaries)
    assert torch.equal(of[drawn], of[chosen])
    assert len({*drawn.tolist(), *chosen.tolist()}) == 24
    assert not is_error(dictionaries)[drawn].any()
    assert torch.equal(rates[drawn] > 1e-3, rates[chosen] > 1e-3)


def test_the_largest_features_carry_what_random_ones_do_not() -> None:
    found, random = result().share("largest"), result().share("random")
    assert found.low > random.high
    assert found.value > 0.1


def test_scores_predict_what_patching_a_feature_does() -> None:
    exact = result().values["exact"].mean(0)
    scores = result().values["scores"][:, 0].mean(0)
    features = np.array([kind != "error" for kind in result().kinds])
    assert np.corrcoef(scores[features], exact[features])[0, 1] > 0.8


def test_shares_follow_the_metric_with_nodes_patched() -> None:
    found, values = result(), result().values
    gap = values["base"] - values["source"]  # noised: the base run is the clean one
    everything = (values["base"] - values["joint"][:, -1]).mean() / gap.mean()
    assert found.share("all").value == pytest.approx(everything)
    assert everything == pytest.approx(1.0, abs=1e-3)  # all of the stream is patched
    n = found.analysis.all_sizes
    kept = values["joint"][:, len(n) + n.index(10)] - values["joint"][:, -1]
    whole = values["base"] - values["joint"][:, -1]
    assert found.faithfulness(10).value == pytest.approx(kept.mean() / whole.mean())


def test_examples_show_the_token_at_which_a_feature_is_most_active() -> None:
    dictionary, feature = next(
        node for node, kind in zip(result().nodes, result().kinds, strict=True) if kind == "largest"
    )
    assert feature is not None
    first = result().examples(dictionary, feature, n=1).iloc[0]
    shards = model().shards(model().fit(interp.load_task("ioi", n=24)).task)
    prompt = [prompt for shard in shards for prompt in shard][first["prompt"]]
    batch = model().tokenize([prompt])
    recording = model().record(batch)
    active = load_dictionary(dictionary).encode(recording.clean(AT))[0, :, feature]
    assert first["activation"] == pytest.approx(float(active.max()), rel=1e-3)
    (token,) = model().token_names([int(batch.tokens[0, active.argmax()])])
    assert f"«{token.strip('␣')}»" in first["text"]
    with pytest.raises(AnalysisError, match="unknown feature"):
        result().examples(dictionary, 10**6)


def test_an_untrained_model_has_nothing_to_explain() -> None:
    untrained = interp.load_model("zoo/names-6l@untrained")
    analysis = FeaturePatching(dictionaries=(SHIPPED,), sizes=(1,), top_k=2, draws=1)
    (finding,) = analysis.run(untrained, interp.load_task("ioi", n=12)).findings()
    assert finding.claim.startswith("No behaviour to explain")


def test_what_cannot_be_patched_is_refused_in_a_line(tmp_path: Path) -> None:
    hops, task = interp.load_model("zoo/hops-4l"), interp.load_task("ioi", n=2)
    shard = model().tokenize(task.prompts[:1])
    with pytest.raises(UnsuitedError, match="none are shipped for zoo/hops-4l; there is names-6l/"):
        FeaturePatching().names(hops)
    with pytest.raises(AnalysisError, match="unknown dictionary"):
        FeaturePatching(dictionaries=(str(tmp_path / "none"),)).check(model(), shard)
    with pytest.raises(AnalysisError, match="more than 2000 are needed"):
        FeaturePatching(dictionaries=(SHIPPED,), sizes=(1000,)).check(model(), shard)
    with pytest.raises(AnalysisError, match="each may be named once"):
        FeaturePatching(dictionaries=(SHIPPED, SHIPPED))
