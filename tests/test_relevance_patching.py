"""Scores of nodes: exact patching equals whole passes, cheap scores equal gradients, and both cost
what is said.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.analyses.activation_patching import ActivationPatching
from interp.analyses.patching_agreement import PatchingAgreement
from interp.analyses.relevance_patching import RelevancePatching
from interp.errors import AnalysisError, SiteError, TaskError
from interp.interventions import Patch
from interp.models import Model, load_model
from interp.models.untrained import untrained
from interp.sites import Site
from interp.stats.agreement import Resampled, agreement
from interp.stats.align import Aligned
from interp.stats.bootstrap import draws
from interp.sweeps.carriers import carriers, components
from interp.sweeps.exact_patching import NODE_KINDS
from interp.sweeps.node_scores import NodeScores
from interp.tasks import Prompt, load_task
from interp.tasks.batch import TokenBatch
from tests.families import tiny, tokens


def shard_of(*, n_pos: int = 6, answers: tuple[tuple[int, ...], ...] = ((7,), (8,))) -> TokenBatch:
    batch = tokens(batch=2, n_pos=n_pos)
    twin = batch.tokens.clone()
    twin[:, 2] = torch.tensor([50, 51])
    longest = max(map(len, answers))
    padded = torch.tensor([[*each, *[-1] * (longest - len(each))] for each in answers])
    prompts = tuple(Prompt(str(i), "x", answer="a", wrong="b") for i in range(2))
    return replace(
        batch,
        prompts=prompts,
        corrupted=twin,
        answer=padded[:, 0],
        wrong=torch.tensor([9, 10]),
        answer_tokens=padded,
    )


def value(logits: Tensor, shard: TokenBatch) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, -1, shard.answer] - logits[rows, -1, shard.wrong]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_exact_patching_equals_whole_passes_with_one_node_patched(
    family: str, direction: str
) -> None:
    model, shard = tiny(family), shard_of()
    twin = replace(shard, tokens=shard.corrupted)
    base, source = (twin, shard) if direction == "denoise" else (shard, twin)
    analysis = ActivationPatching(nodes=NODE_KINDS, direction=direction)  # type: ignore[arg-type]
    with torch.no_grad():
        parts = analysis.measure(model.record(shard), shard, {})
    sites = [Site(kind, layer) for kind in NODE_KINDS for layer in (0, 2)]
    there = model.forward(source, capture=sites).activations
    start = value(model.forward(base).logits, shard)
    for site in sites:
        for pos in (1, 2, 5):
            for units in (
                [None] if site.kind in ("resid_pre", "attn_out", "mlp_out") else [[0], [3]]
            ):
                new = there[site][:, [pos]] if units is None else there[site][:, [pos]][:, :, units]
                moved = (
                    value(
                        model.forward(
                            base, plan=[Patch(site, new, positions=[pos], units=units)]
                        ).logits,
                        shard,
                    )
                    - start
                )
                ours = parts[site.kind][:, site.layer, pos]
                ours = ours if units is None else ours[:, units[0]]
                torch.testing.assert_close(
                    ours, moved, atol=1e-5, rtol=1e-4, msg=f"{site} {pos} {units}"
                )


def test_attribution_is_the_gradient_times_the_change() -> None:
    model, shard = tiny("gpt2"), shard_of()
    parts = RelevancePatching(nodes=("mlp_out", "z", "mlp_post")).measure(
        model.record(shard), shard, {}
    )
    twin = replace(shard, tokens=shard.corrupted)
    step = 1e-3
    for site in (Site("mlp_out", 1), Site("z", 2)):
        clean, corrupted = (
            model.forward(batch, capture=[site]).activations[site] for batch in (shard, twin)
        )
        towards = [
            Patch(site, corrupted + sign * step * (clean - corrupted), positions=None)
            for sign in (1, -1)
        ]
        up, down = (value(model.forward(twin, plan=[patch]).logits, shard) for patch in towards)
        total = parts[f"attribution {site.kind}"][:, site.layer].flatten(1).sum(1)
        torch.testing.assert_close(total, (up - down) / (2 * step), atol=5e-3, rtol=5e-3)
    assert parts["relevance mlp_post"].shape == (2, 4, 6, 128)


def test_all_nodes_cost_two_forward_passes_and_one_backward() -> None:
    model, shard = tiny("llama"), shard_of()
    recording = model.record(shard)
    RelevancePatching(methods=("relevance",), nodes=NODE_KINDS).measure(recording, shard, {})
    assert recording.work.block_tokens == 3 * shard.tokens.numel() * model.n_layers


def test_exact_patching_runs_only_blocks_behind_nodes_that_differ() -> None:
    model, shard = tiny("llama"), shard_of()
    recording = model.record(shard)
    with torch.no_grad():
        ActivationPatching(nodes=("resid_pre",)).measure(recording, shard, {})
    n_layers, n_pos = model.n_layers, shard.tokens.shape[1]
    in_each_layer = [1] + [n_pos - 2] * (
        n_layers - 1
    )  # the embeddings differ at one position, all else from there on
    behind = sum(n * (n_layers - layer) for layer, n in enumerate(in_each_layer))
    assert recording.work.block_tokens == (behind + 2 * n_layers) * shard.tokens.numel()


def test_integrated_gradients_along_the_inputs_add_up() -> None:
    model, shard = tiny("gpt2"), shard_of()
    methods = ("integrated_gradients_inputs", "integrated_gradients", "average")
    parts = RelevancePatching(methods=methods, nodes=("resid_pre",), steps=64).measure(
        model.record(shard), shard, {}
    )
    for name in methods[:2]:
        total = parts[f"{name} resid_pre"][:, 0].sum(1)
        torch.testing.assert_close(total, parts["source"] - parts["base"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("metric", ["log_prob", "kl"])
def test_answers_of_several_tokens_and_other_metrics(metric: str) -> None:
    model, shard = tiny("llama"), shard_of(answers=((7,), (8, 11, 12)))
    parts = RelevancePatching(
        methods=("attribution",), nodes=("resid_pre",), metric=metric
    ).measure(model.record(shard), shard, {})
    with torch.no_grad():
        exact = ActivationPatching(nodes=("resid_pre",), metric=metric).measure(
            model.record(shard), shard, {}
        )
    torch.testing.assert_close(parts["base"], exact["base"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts["source"], exact["source"], atol=1e-4, rtol=1e-4)
    if metric == "log_prob":
        row = torch.cat([shard.tokens[1], torch.tensor([8, 11])])[None]
        logits = model.module(input_ids=row).logits.log_softmax(-1)[0, 5:]
        torch.testing.assert_close(
            parts["source"][1], logits[range(3), [8, 11, 12]].sum(), atol=1e-4, rtol=1e-4
        )
    # patched at the last position, the last residual moves everything that is predicted there
    assert exact["resid_pre"][0, 0, :2].abs().max() == 0


def test_agreement_by_hand() -> None:
    exact, estimate = np.array([1.0, 0.2, -0.1]), np.array([0.5, 0.1, 0.1])
    found = agreement(estimate, exact, gap=2.0, top_k=1)
    assert found["top overlap"] == 1.0
    assert found["same sign"] == pytest.approx(2 / 3)
    assert found["mean absolute error"] == pytest.approx((0.5 + 0.1 + 0.2) / 3 / 2)
    assert found["slope"] == pytest.approx((0.5 + 0.02 - 0.01) / (0.25 + 0.01 + 0.01))
    assert np.isnan(found["pearson without the largest"])
    same = agreement(exact, exact, gap=1.0, top_k=2)
    assert same["pearson"] == pytest.approx(1.0)
    assert same["spearman"] == pytest.approx(1.0)
    assert same["slope"] == pytest.approx(1.0)


def test_relp_is_closer_to_exact_patching_than_attribution_on_indirect_objects() -> None:
    result = PatchingAgreement(nodes=("resid_pre", "mlp_out")).run(
        load_model("zoo/names-6l"), load_task("ioi", n=16)
    )
    frame = (
        result.to_frame().set_index(["level", "measure", "node", "method"])["value"].sort_index()
    )
    for node in ("resid_pre", "mlp_out"):
        for level in ("averaged over prompts", "prompt by prompt"):
            assert (
                frame[level, "mean absolute error", node, "relevance"]
                < frame[level, "mean absolute error", node, "attribution"]
            )
    assert frame["averaged over prompts", "pearson", "resid_pre", "relevance"] > 0.95
    finding, beyond, other = result.findings()
    assert finding.estimate is not None
    assert finding.estimate.n == 16
    assert finding.rival is not None
    assert finding.rival.estimate == other.estimate
    exact, cheap, moved = (
        result.scores.mean(f"{name} mlp_out").ravel() for name in ("exact", "relevance", "distance")
    )
    assert finding.estimate.value == pytest.approx(np.corrcoef(cheap, exact)[0, 1])
    assert beyond.kind == "compares"
    assert beyond.estimate is not None
    difference = np.corrcoef(cheap, exact)[0, 1] - np.corrcoef(moved, exact)[0, 1]
    assert beyond.estimate.value == pytest.approx(difference)
    assert beyond.estimate.excludes()


def test_agreement_redraws_groups_of_prompts_for_both_scores_alike() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(12, 5))
    cheap = exact + rng.normal(size=(12, 5))
    exact[0, 2] = cheap[0, 2] = np.nan
    groups, gap = np.arange(12) // 2, rng.normal(2, 1, size=12)
    ours = Resampled.of(cheap, exact, gap=gap, top_k=2, groups=groups, seed=3)
    for row, drawn in enumerate(draws(6, seed=3)[:5], 1):
        rows = np.repeat(np.arange(12), drawn[groups].astype(int))
        means = [np.nanmean(values[rows], 0) for values in (cheap, exact)]
        naive = agreement(*means, gap=gap[rows].mean(), top_k=2)
        assert ours.rows.iloc[row].to_dict() == pytest.approx(naive)
    assert ours.estimate("pearson").n_groups == 6
    itself = ours.estimate("pearson", beyond=ours)
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)
    few = Resampled.of(cheap[:4], exact[:4], gap=gap[:4], top_k=2, groups=None, seed=0)
    assert not few.estimate("pearson").has_interval


def scores_of(values: np.ndarray, *, gap: float) -> NodeScores:
    """Return scores of MLPs [prompt layer] at the last token, in runs that differ by `gap`."""
    both = np.stack([np.zeros_like(values), values], axis=2).astype(np.float32)
    aligned = Aligned(both, np.array([-1]))
    base = np.zeros(len(values))
    return NodeScores({"mlp_out": aligned}, {"mlp_out": 1}, base, base + gap)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_largest_node_is_a_share_of_the_gap_and_compared_with_others(direction: str) -> None:
    sign = 1.0 if direction == "denoise" else -1.0
    # three layers, of which the second carries 5 of 10, the others 1 and 0
    values = sign * np.tile([1.0, 5.0, 0.0], (12, 1))
    scores = scores_of(values, gap=sign * 10.0)
    behaviour = scores.behaviour("log_prob", direction, groups=None, seed=0)  # type: ignore[arg-type]
    assert behaviour.gap.value == 10.0
    first, beyond = carriers(scores, {"mlp_out": "mlp_out"}, by="By hand", behaviour=behaviour)
    assert first.claim.startswith("By hand, MLP 1 at the last token carries 50 % [50, 50]")
    assert first.control is not None
    assert first.control.estimate.value == pytest.approx(0.05)  # the mean of 1 and 0
    assert first.rival is not None
    assert first.rival.name == "the second largest, MLP 0 at the last token"
    assert first.rival.estimate.value == pytest.approx(0.1)
    assert beyond.estimate is not None
    assert beyond.estimate.value == pytest.approx(0.45)
    frame = scores.to_frame({"mlp_out": {"node": "mlp_out"}}, behaviour)
    rows = frame[frame["position"] == "-1"]
    assert rows["share"].tolist() == pytest.approx([0.1, 0.5, 0.0])
    assert frame["exceeds"].tolist() == [False, False, False, True, True, False]


def test_equal_nodes_are_not_told_apart_by_picking_the_largest() -> None:
    fired = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(1.0, 1.0, size=(16, 30))
        scores = scores_of(values, gap=30.0)
        behaviour = scores.behaviour("log_prob", "denoise", groups=None, seed=seed)
        _, beyond = carriers(scores, {"mlp_out": "mlp_out"}, by="", behaviour=behaviour)
        assert beyond.estimate is not None
        fired += beyond.estimate.excludes()
    assert fired <= 7  # 5 % and binomial error


def test_without_a_behaviour_there_are_no_shares() -> None:
    model, task = load_model("zoo/names-6l"), load_task("ioi", n=12)
    swapped = task.of([replace(p, answer=p.wrong, wrong=p.answer) for p in task.prompts])
    result = RelevancePatching(nodes=("mlp_out",)).run(model, swapped)
    (finding,) = result.findings()
    assert finding.claim.startswith("No behaviour to explain: corrupting takes −")
    assert finding.estimate is not None
    assert finding.estimate.high < 0
    assert result.to_frame()["share"].isna().all()
    beginner = untrained(model, seed=0)
    assert beginner is not None
    for analysis in (PatchingAgreement(nodes=("mlp_out",)), ActivationPatching(nodes=("z",))):
        (finding,) = analysis.run(beginner, task).findings()
        assert finding.claim.startswith("No behaviour to explain")


def test_findings_speak_of_components_rather_than_of_residuals() -> None:
    assert components(("resid_pre", "attn_out", "z", "mlp_out")) == ("z", "mlp_out")
    assert components(("resid_pre", "mlp_out", "mlp_post")) == ("mlp_post",)
    assert components(("resid_pre",)) == ("resid_pre",)
    model, task = load_model("zoo/names-6l"), load_task("ioi", n=24)
    first, *_ = RelevancePatching(nodes=("resid_pre", "z")).run(model, task).findings()
    assert first.claim.startswith("By relevance, L2H3 at the last token carries")
    assert first.note.startswith("Clean ")
    (residual, _) = RelevancePatching(nodes=("resid_pre",)).run(model, task).findings()
    assert "By construction" in residual.note


def refused(model: Model, shard: TokenBatch, **settings: object) -> str:
    with pytest.raises((TaskError, SiteError, AnalysisError)) as caught:
        RelevancePatching(**settings).check(model, shard)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_refused_in_one_line() -> None:
    model, shard = tiny("llama"), shard_of()
    assert "are the same" in refused(model, replace(shard, corrupted=shard.tokens))
    assert "start with the same token" in refused(model, replace(shard, wrong=shard.answer))
    assert "needs a wrong answer" in refused(
        model, replace(shard, wrong=None, prompts=(Prompt("0", "x", answer="a"),) * 2)
    )
    assert "one token are needed" in refused(
        model, replace(shard, answer_tokens=torch.tensor([[7, 1], [8, 2]]))
    )
    assert "did you mean 'relp'" in refused(model, shard, rules="rlep")
    assert "cannot noise" in refused(model, shard, metric="kl", direction="noise")
    assert "blocks.0.mlp is a mixture of experts" in refused(tiny("mixtral"), shard)
