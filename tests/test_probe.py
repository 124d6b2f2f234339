"""What a linear probe reads: the fits, how prompts are divided, and what is claimed of models."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import interp
from interp.analyses.probe import N_TWINS, Probe
from interp.analyses.probe.fits import Fit, fitted, held_out, log_p, online_bits, scaled, spanned
from interp.analyses.probe.labels import (
    N_FOLDS,
    control_labels,
    group_folds,
    in_order,
    label_for,
    prompt_folds,
)
from interp.analyses.probe.result import ProbeResult
from interp.errors import AnalysisError, TaskError
from interp.sweeps.tags import bytes_of
from interp.tasks import Prompt, Task

N, D = 96, 12
GROUPS = np.repeat(np.arange(N // 4), 4)


def rows(n_taps: int = 1, *, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n_taps, N, d, generator=torch.Generator().manual_seed(seed))


def random_labels(n_classes: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(N) % n_classes))


# Fits


def test_a_label_that_is_linear_in_one_coordinate_is_read_and_a_random_one_is_not() -> None:
    x = rows(2)
    linear = (x[0, :, 3] > 0).long()
    both = torch.stack([linear, random_labels(2)])
    folds = group_folds(GROUPS, linear.numpy(), seed=0)
    right = held_out(x, both, folds, Fit(2, 0.01)).float().mean(1)
    assert right[0, 0] > 0.9
    assert right[1].max() < 0.7
    assert right[0, 1] < 0.7  # the other tap does not hold it


@pytest.mark.parametrize("n_classes", [2, 5])
def test_random_labels_are_not_compressed_and_linear_ones_are(n_classes: int) -> None:
    x = rows()
    both = torch.stack([random_labels(n_classes), x[0, :, :n_classes].argmax(-1)])
    order, cuts = in_order(GROUPS, seed=0)
    bits = online_bits(x, both, order, cuts, Fit(n_classes, 0.1))[..., 0].mean(1)
    assert bits[0] >= np.log2(n_classes)
    assert bits[1] < 0.9 * np.log2(n_classes)


def test_online_bits_are_those_of_probes_fitted_on_the_prompts_before() -> None:
    x, labels = rows(), random_labels(3)[None]
    order, cuts = torch.arange(N).flip(0), [10, 40]
    bits = online_bits(x, labels, order, cuts, Fit(3, 0.1))[0, :, 0]
    torch.testing.assert_close(bits[order[:10]], torch.full((10,), float(np.log2(3))))
    for before, here in ((order[:10], order[10:40]), (order[:40], order[40:])):
        p = log_p(x[:, before], labels[:, before], x[:, here], Fit(3, 0.1))[0, :, 0]
        naive = -p[torch.arange(len(here)), labels[0, here]] / np.log(2)
        torch.testing.assert_close(bits[here], naive)


def test_fits_of_all_taps_and_labels_at_once_are_those_made_one_by_one() -> None:
    x, l2 = rows(6), 0.1
    labels = torch.stack([random_labels(3), x[1, :, :3].argmax(-1)])
    together = log_p(x[:, :64], labels[:, :64], x[:, 64:], Fit(3, l2))
    for tap in (0, 5):
        train, test = (
            part[0].numpy() for part in scaled(x[[tap], :64], x[[tap], 64:], z_score=True)
        )
        for i, own in enumerate(labels[:, :64].numpy()):

            def loss(flat: np.ndarray, own: np.ndarray = own, train: np.ndarray = train) -> float:
                w = flat.reshape(-1, 3)
                z = train @ w
                log = z - np.log(np.exp(z).sum(-1, keepdims=True))
                return float(l2 / 2 * (w**2).sum() - log[np.arange(len(own)), own].sum())

            best = minimize(loss, np.zeros(3 * (D + 1)), tol=1e-10).x.reshape(-1, 3)
            naive = torch.from_numpy(test @ best).log_softmax(-1).float()
            torch.testing.assert_close(together[tap, :, i], naive, atol=0.02, rtol=0)


def test_more_features_than_prompts_are_fitted_in_the_span_of_the_prompts() -> None:
    x = rows(2, d=3 * N)
    labels = torch.stack([random_labels(3)])
    train, test = scaled(x[:, :64], x[:, 64:], z_score=True)
    plain = (test @ fitted(train, labels[:, :64], Fit(3, 0.1))).log_softmax(-1)
    inside, unseen = spanned(train, test)
    assert inside.shape == (2, 64, 64)
    cheap = (unseen @ fitted(inside, labels[:, :64], Fit(3, 0.1))).log_softmax(-1)
    torch.testing.assert_close(cheap, plain, atol=0.02, rtol=0)


def test_a_constant_coordinate_adds_nothing() -> None:
    x, labels = rows(), random_labels(2)[None]
    more = torch.cat([x, torch.full((1, N, 1), 300.0)], dim=-1)
    one, other = (
        log_p(each[:, :64], labels[:, :64], each[:, 64:], Fit(2, 0.1)) for each in (x, more)
    )
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_without_z_scores_a_rotation_of_the_stream_changes_nothing() -> None:
    x, labels = rows() * torch.linspace(1, 5, D), random_labels(2)[None]
    turn = torch.linalg.qr(rows(seed=1)[0, :D])[0]
    one, other = (
        log_p(each[:, :64], labels[:, :64], each[:, 64:], Fit(2, 0.1, False))
        for each in (x, x @ turn)
    )
    torch.testing.assert_close(one, other, atol=0.01, rtol=0)


def test_what_is_scaled_knows_nothing_of_the_prompts_that_are_judged() -> None:
    x = rows()
    train, _ = scaled(x[:, :64], x[:, 64:], z_score=True)
    again, _ = scaled(x[:, :64], 100 * x[:, 64:], z_score=True)
    torch.testing.assert_close(train, again)


# How prompts are divided


def test_no_group_is_in_two_folds_and_every_label_is_in_each() -> None:
    labels = GROUPS % 3
    folds = group_folds(GROUPS, labels, seed=0).numpy()
    assert all(len(np.unique(folds[group == GROUPS])) == 1 for group in GROUPS)
    assert all(set(labels[folds == fold]) == {0, 1, 2} for fold in range(N_FOLDS))


def test_the_controls_folds_have_every_group_that_repeats_in_several() -> None:
    folds = prompt_folds(GROUPS, seed=0).numpy()
    assert all(len(np.unique(folds[group == GROUPS])) == 4 for group in GROUPS)


def test_control_labels_are_of_groups_and_as_frequent_as_the_labels() -> None:
    labels = np.repeat([0, 0, 1], N // 3)
    control = control_labels(GROUPS, labels, seed=0)
    assert all(len(np.unique(control[group == GROUPS])) == 1 for group in GROUPS)
    assert Counter(control.tolist()) == Counter(labels.tolist())
    assert not np.array_equal(control, labels)


def test_chunks_of_the_online_code_begin_with_a_group_that_was_not_sent() -> None:
    order, cuts = in_order(GROUPS, seed=0)
    sent = GROUPS[order.numpy()]
    assert sorted(order.tolist()) == [*range(N)]
    assert cuts == [4, 8, 12, 24, 48]
    assert all(not set(sent[:cut]) & set(sent[cut:]) for cut in cuts)


# What is refused, and what is read by default


def prompts(n_groups: int = 8, *, of: int = 4, n_classes: int = 2) -> list[Prompt]:
    return [
        Prompt(f"{g} {i}", f"text {g}", group=str(g), tags={"kind": str((g + i) % n_classes)})
        for g in range(n_groups)
        for i in range(of)
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (prompts(n_classes=1), "is always '0'; two values are needed"),
        (prompts(4), "has 2 values in 4 groups; at least 5 groups are needed"),
        (prompts(8, n_classes=6), "has 6 values in 8 groups; at least 12 groups are needed"),
        (prompts(16, of=1), "16 are alone in their group; at least half must share one"),
    ],
)
def test_too_few_groups_are_refused_in_one_line(given: list[Prompt], why: str) -> None:
    for label in (None, "kind"):
        with pytest.raises(AnalysisError, match="label 'kind' of") as refused:
            label_for(given, label)
        assert why in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_label_is_by_default_the_first_that_suits() -> None:
    alike = prompts()
    assert label_for(alike, None) == "kind"
    bridged = [replace(each, bridge=each.id) for each in alike]
    assert label_for(bridged, None) == "kind"  # every bridge is another one
    few = [replace(each, bridge=each.tags["kind"]) for each in alike]
    assert label_for(few, None) == "bridge"


def test_a_label_that_a_prompt_lacks_is_refused_before_any_pass() -> None:
    model = interp.load_model("zoo/hops-4l")
    batch = model.tokenize(interp.load_task("one-hop", n=2).prompts)
    with pytest.raises(TaskError, match="has no label 'colour'; there is answer, set, right"):
        Probe(label="colour").check(model, batch)
    with pytest.raises(TaskError, match="no subject"):
        Probe(position="subject").check(model, batch)


# What is claimed


def by_hand(*, right: list[list[int]], untrained: list[float], n: int = 20) -> ProbeResult:
    """Return a result of 3 taps whose probes name the first so many of 20 prompts."""

    def named(counts: list[int]) -> np.ndarray:
        return np.arange(n)[:, None] < np.array(counts)

    twins = np.stack([named([int(n * each)] * 3) for each in untrained], axis=1)
    return ProbeResult(
        Probe(),
        {
            "label": bytes_of(["kind"] * n).numpy(),
            "right": named(right[0]),
            "control": named(right[1]),
            "shuffled": named([10, 10, 10]),
            "majority": np.arange(n) % 2 == 0,
            "bits": np.full((n, 3), 0.5),
            "shuffled_bits": np.full((n, 3), 1.25),
            "n_classes": np.full(n, 4),
            "untrained": twins,
        },
    )


def test_the_frame_has_what_its_columns_say() -> None:
    frame = by_hand(right=[[8, 12, 20], [6, 6, 10]], untrained=[0.5] * 5).to_frame()
    assert frame["tap"].tolist() == [0, 1, 2]
    assert frame["accuracy"].tolist() == pytest.approx([0.4, 0.6, 1.0])
    assert frame["selectivity"].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert frame["beyond"].tolist() == pytest.approx([-0.1, 0.1, 0.5])  # untrained are better
    assert frame["compression"].tolist() == pytest.approx([4.0] * 3)  # log2(4) / 0.5
    assert frame["shuffled_compression"].tolist() == pytest.approx([1.6] * 3)


def test_no_better_than_untrained_models_is_no_claim_however_good() -> None:
    alike = by_hand(right=[[8, 18, 19], [6, 6, 6]], untrained=[0.9, 0.95, 0.9, 0.85, 0.9])
    assert alike.summary().startswith("No probe reads the kind better than")
    better = by_hand(right=[[8, 8, 19], [6, 6, 6]], untrained=[0.4] * 5)
    assert "better than the embedding's and untrained models' is after the last" in better.summary()


def test_untrained_models_that_differ_make_the_interval_wide() -> None:
    alike, apart = (
        by_hand(right=[[8, 8, 19], [6, 6, 6]], untrained=each)
        for each in ([0.6] * 5, [0.2, 0.4, 0.6, 0.8, 1.0])
    )
    assert alike.beyond_band()[0][2] > 0 > apart.beyond_band()[0][2]


@cache
def known_facts() -> Task:
    """Return single hops to the six entities that are most often the answer."""
    task = interp.load_task("one-hop").tagged(set="trained")
    most = [name for name, _ in Counter(p.answer for p in task.prompts).most_common(6)]
    return task.of(p for p in task.prompts if p.answer in most)


def test_a_trained_model_has_the_answer_at_its_end_and_an_untrained_one_has_not() -> None:
    probe, task = Probe(label="answer"), known_facts()
    trained = probe.run(interp.load_model("zoo/hops-4l"), task)
    frame = trained.to_frame()
    assert frame["accuracy"].iloc[-1] > 0.8 > 0.5 > frame["accuracy"][0]
    assert trained.summary().startswith("The first probe to read the answer better than")
    assert frame["compression"].iloc[-1] > 1.3 > 1.1 > frame["shuffled_compression"].max()
    blank = probe.run(interp.load_model("zoo/hops-4l@untrained-1"), task)
    assert blank.summary().startswith("No probe reads the answer better than")


def test_nothing_is_run_but_the_pass_that_is_read_and_those_of_untrained_models() -> None:
    model, task = interp.load_model("zoo/hops-4l"), known_facts()
    batch = model.tokenize(model.shards(task)[0])
    cost = Probe(label="answer").cost(model, batch)
    keys = torch.tensor([interp.tasks.prompts.key_of(p.id) for p in batch.prompts])
    recording = model.record(batch)
    Probe(label="answer").measure(
        recording, batch, {"keys": keys, "bits": torch.zeros(len(keys), 5)}
    )
    assert recording.work.block_tokens == 0
    assert cost.forwards == N_TWINS


def test_answers_that_are_all_right_are_refused() -> None:
    with pytest.raises(AnalysisError, match=r"answers all of \d+ prompts rightly"):
        Probe(label="right").run(interp.load_model("zoo/hops-4l"), known_facts())
