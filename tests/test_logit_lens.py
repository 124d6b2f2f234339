"""The lens equals the stock model's own head; divergences, overlap, ranks and effective depths by
hand.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import interp
from interp.analyses.logit_lens import LogitLens
from interp.analyses.logit_lens.depths import depth_by_cosine, depth_by_kl, depth_by_overlap
from interp.analyses.logit_lens.guesses import CHANGES, COMMON, DIFFERS, NO_GUESS, of_guesses
from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import first
from interp.stats.estimate import estimates
from interp.stats.shares import share
from interp.sweeps import lens
from interp.sweeps.lens import READINGS, Prediction, compare
from tests.families import tiny, tokens
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


def hooked(model: Model, batch) -> tuple[list[torch.Tensor], dict[str, list[torch.Tensor]]]:
    """Run the stock model; return the stream before every layer and after the last, and what
    sublayers wrote.
    """
    stream: list[torch.Tensor] = []
    writes: dict[str, list[torch.Tensor]] = {"attn": [], "mlp": []}
    blocks = [block.module for block in model.blocks]
    handles = [
        block.register_forward_pre_hook(
            lambda _m, a, k: stream.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
        for block in blocks
    ]
    handles.append(blocks[-1].register_forward_hook(lambda _m, _a, out: stream.append(first(out))))
    for block in model.blocks:
        handles.append(
            block.attn_write.register_forward_hook(
                lambda _m, _a, out: writes["attn"].append(first(out))
            )
        )
        handles.append(
            block.mlp_write.register_forward_hook(
                lambda _m, _a, out: writes["mlp"].append(first(out))
            )
        )
    model.logits(batch)
    for handle in handles:
        handle.remove()
    return stream, writes


def by_hand(q: torch.Tensor, p: torch.Tensor, answer: int, k: int) -> list[float]:
    """Compare two rows of logits, in float64."""
    q, p = q.double().softmax(-1), p.double().softmax(-1)
    tops = [set(t.argsort(descending=True)[:k].tolist()) for t in (q, p)]
    kls = [(q * (q / p).log()).sum(), (p * (p / q).log()).sum()]
    first, second = q.log().topk(2).values
    return [
        *map(float, kls),
        len(tops[0] & tops[1]) / k,
        float(q[answer]),
        float((q > q[answer]).sum()),
        -float((q * q.log()).sum()),
        float(first - second),
    ]


@torch.no_grad()
def test_it_equals_the_stock_models_head_on_every_residual(model: Model) -> None:
    batch = tokens()
    stream, writes = hooked(model, batch)
    part = LogitLens().measure(model.record(batch), batch, {})
    final = model.logits(batch)
    for layer, resid in enumerate(stream):
        logits = naive(model, batch, {model.n_layers - 1: lambda _, __, resid=resid: resid})
        expected = [
            [
                by_hand(logits[row, pos], final[row, pos], int(batch.answer[row]), 5)
                for pos in range(batch.tokens.shape[1])
            ]
            for row in range(len(batch.tokens))
        ]
        assert_close(part["readings"][:, layer], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    for layer in range(model.n_layers):
        pre, attn, mlp = stream[layer], writes["attn"][layer], writes["mlp"][layer]
        mid = pre if model.blocks[layer].is_parallel else pre + attn
        cosines = [
            cosine_similarity(w, s, dim=-1)[:, 1:].mean(1)
            for w, s in ((attn, pre), (mlp, mid), (attn + mlp, pre))
        ]
        assert_close(part["cosines"][:, layer], torch.stack(cosines, dim=1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_behind_the_last_layer_nothing_differs(model: Model) -> None:
    batch = tokens()
    last = LogitLens().measure(model.record(batch), batch, {})["readings"][:, -1]
    for reading, value in (("kl_lens_final", 0.0), ("kl_final_lens", 0.0), ("overlap", 1.0)):
        assert bool((last[..., READINGS.index(reading)] == value).all())


@torch.no_grad()
def test_it_runs_no_block_and_reads_what_is_stored(tmp_path: Path) -> None:
    model, batch = dataclasses.replace(tiny("llama"), store_folder=tmp_path), tokens()
    recording = model.record(batch)
    recording.resid(0)
    clean = recording.work.block_tokens
    one = LogitLens().measure(recording, batch, {})
    assert recording.work.block_tokens == clean
    stored = model.record(batch)
    two = LogitLens().measure(stored, batch, {})
    assert stored.work.block_tokens == 0
    assert all(torch.equal(one[key], two[key]) for key in one)


@torch.no_grad()
def test_no_more_logits_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("llama"), tokens()
    whole = LogitLens().measure(model.record(batch), batch, {})
    monkeypatch.setattr(lens, "LOGITS_HELD", 5 * model.d_vocab)
    recording, sizes = model.record(batch), []

    def unembed(resid: torch.Tensor) -> torch.Tensor:
        logits = model.unembed(resid)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(recording.runner, "unembed", unembed)
    chunked = LogitLens().measure(recording, batch, {})
    assert max(sizes) == 5 * model.d_vocab
    assert_close(chunked["readings"], whole["readings"], rtol=1e-5, atol=1e-6)


def test_a_comparison_done_by_hand() -> None:
    q, p = torch.tensor([[0.5, 0.25, 0.125, 0.125]]), torch.tensor([[0.25, 0.5, 0.125, 0.125]])
    kl = 0.5 * np.log(2) - 0.25 * np.log(2)
    row = compare(
        Prediction.of(q.log(), top_k=1), Prediction.of(p.log(), top_k=1), answer=torch.tensor([1])
    )
    certain = [1.75 * np.log(2), np.log(2)]  # entropy, margin
    assert_close(row, torch.tensor([[kl, kl, 0.0, 0.25, 1.0, *certain]], dtype=torch.float32))
    lens, final = (
        Prediction.of(torch.tensor([row]).log(), top_k=2) for row in ([0.5, 0.5], [0.75, 0.25])
    )
    row = compare(lens, final, answer=None)
    kls = [0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(2), 0.75 * np.log(1.5) + 0.25 * np.log(0.5)]
    flat = [np.log(2), 0.0]
    assert_close(row, torch.tensor([[*kls, 1.0, -1.0, -1.0, *flat]], dtype=torch.float32))


def test_effective_depths_by_hand() -> None:
    kl = np.array([30.0, 10.0, 6.0, 4.9, 1.0, 0.5])
    assert depth_by_kl(kl, share=0.5, since="as published") == 1  # the embedding decides
    assert depth_by_kl(kl, share=0.5, since="behind the first layer") == 3
    assert depth_by_kl(kl, share=0.7, since="behind the first layer") == 2
    for since in ("as published", "behind the first layer"):
        never = np.array([1.0, 1.0, 0.1])  # the last layer does not count
        assert depth_by_kl(never, share=0.5, since=since) is None
    assert depth_by_kl(np.array([1.0]), share=0.5, since="behind the first layer") is None
    overlap = np.array([0.0, 0.1, 0.3, 0.2, 0.31, 0.9])
    assert depth_by_overlap(overlap, above=0.3) == 4
    assert depth_by_overlap(overlap, above=0.05) == 1
    assert depth_by_overlap(np.array([0.0, 0.0, 0.9]), above=0.3) is None
    assert depth_by_cosine(np.array([-0.1, 0.0, -0.2, 0.1, 0.2, -0.3])) == 2
    assert depth_by_cosine(np.array([0.1, 0.1, 0.1])) is None


def part_of(*prompts: list[float], answered: bool = True) -> dict[str, torch.Tensor]:
    """Return a part with one KL per position, the same at two taps, and ranks 0."""
    read = torch.zeros(len(prompts), 2, len(prompts[0]), len(READINGS))
    read[..., 0] = torch.tensor(prompts)[:, None]
    if not answered:
        read[..., 3:] = -1
    return {"readings": read, "cosines": torch.full((len(prompts), 1, 3), prompts[0][0])}


@pytest.mark.parametrize(("weighting", "first_position", "mean"), [
    ("prompt", "included", (2.0 + 5.0) / 2), ("token", "included", (1 + 2 + 3 + 4 + 6) / 5),
    ("prompt", "excluded", (2.5 + 6.0) / 2), ("token", "excluded", (2 + 3 + 6) / 3),
])  # fmt: skip
def test_prompts_or_tokens_are_weighted(weighting: str, first_position: str, mean: float) -> None:
    parts = [part_of([1.0, 2.0, 3.0]), part_of([4.0, 6.0])]
    result = LogitLens(weighting=weighting, first_position=first_position).combine(parts)
    assert result.curves["KL(lens‖final), nats"][0] == pytest.approx(mean)
    frame = result.to_frame()
    rows = frame[
        (frame["measure"] == "KL(lens‖final), nats")
        & (frame["layer"] == 0)
        & frame["position"].notna()
    ]
    assert rows[["position", "mean", "n_prompts"]].to_numpy().tolist() == [
        [-3, 1, 1],
        [-2, 3, 2],
        [-1, 4.5, 2],
    ]


def test_prompts_without_an_answer_are_left_out_of_its_readings() -> None:
    result = LogitLens().combine([part_of([1.0, 1.0]), part_of([1.0, 1.0, 1.0], answered=False)])
    frame = result.to_frame()
    assert set(frame[frame["measure"] == "answer rank"]["n_prompts"]) == {1}
    assert frame[frame["measure"] == "answer is first"]["mean"].to_numpy().tolist() == [1.0] * 6
    silent = LogitLens().combine([part_of([1.0, 1.0], answered=False)])
    assert "answer" not in silent.summary()
    assert silent.plot().layout.title.text


@pytest.mark.parametrize(("parameters", "message"), [
    ({"top_k": 0}, "top_k=0; at least 1 is needed"),
    ({"kl_share": 1.5}, "kl_share=1.5; a number between 0 and 1 is needed"),
    ({"overlap_above": 0.0}, "overlap_above=0.0; a number between 0 and 1 is needed"),
])  # fmt: skip
def test_bad_parameters_are_one_line(parameters: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        LogitLens(**parameters)


def test_bad_shards_are_refused_before_any_work() -> None:
    with pytest.raises(AnalysisError, match="top_k=98; the model has 97 tokens"):
        LogitLens(top_k=98).check(tiny("llama"), tokens())
    with pytest.raises(
        AnalysisError, match="prompt '0' has 1 token; first_position='excluded' needs at least 2"
    ):
        LogitLens(first_position="excluded").check(tiny("llama"), tokens(n_pos=1))


def test_guesses_are_counted_by_hand() -> None:
    """Final guesses are 7, 7, 8 behind position 0; the padding of the short prompt counts never."""
    guesses = np.array([[[9, 7, 7], [8, 7, 7]], [[NO_GUESS, 9, 8], [NO_GUESS, 9, 8]]])
    of = of_guesses(guesses, begin=np.array([1, 2]))
    nan = np.nan
    np.testing.assert_equal(of[DIFFERS][0], [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_equal(of[CHANGES], [[[1, 0, 0]], [[nan, 0, 0]]])
    np.testing.assert_equal(of[COMMON[10]][0], [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_equal(of[COMMON[10]][1], [[nan, 0, 1], [nan, 0, 1]])
    many = np.arange(24).reshape(1, 1, 24) // 2
    many[0, 0, -1] = 0  # three times, and 11 once
    assert of_guesses(many, begin=np.array([0]))[COMMON[10]].sum() == 21


@torch.no_grad()
def test_guesses_are_the_first_choices_of_the_lens_and_the_final_ones_stay() -> None:
    model, task = interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=8)
    result = LogitLens().run(model, task)
    curves = result.curves
    assert curves[DIFFERS][-1] == 0 < curves[DIFFERS][0]
    assert curves[CHANGES][-1] == curves[DIFFERS][-2]
    assert len(curves[CHANGES]) == model.n_layers
    finding = result.findings()[-1]
    assert finding.estimate.value == curves[DIFFERS][1]
    assert finding.estimate.low < finding.estimate.value < finding.estimate.high


def test_parts_of_earlier_runs_have_fewer_readings_and_no_guesses() -> None:
    old = part_of([1.0, 2.0], [3.0, 4.0])
    old["readings"] = old["readings"][..., :5]
    new = part_of([1.0, 2.0, 5.0])
    measures = set(LogitLens().combine([old, new]).to_frame()["measure"])
    assert not any(name.startswith(("guess", "entropy", "margin")) for name in measures)
    frame = LogitLens().combine([new | {"top": torch.zeros(1, 2, 3, 5)}]).to_frame()
    assert {DIFFERS, "entropy, nats", "margin of the first guess, nats"} <= set(frame["measure"])


def lens_of(kl: np.ndarray, *, first: float) -> dict[str, torch.Tensor]:
    """Return a part with these KLs [prompt tap] at two positions and `first` at position 0."""
    read = torch.zeros(len(kl), kl.shape[1], 3, len(READINGS))
    read[..., 0] = torch.from_numpy(kl)[..., None]
    read[:, :, 0, 0] = first
    read[..., READINGS.index("answer_rank")] = (torch.arange(len(kl)) % 3)[:, None, None]
    return {"readings": read, "cosines": torch.ones(len(kl), kl.shape[1] - 1, 3)}


def test_the_depth_by_kl_leaves_out_position_0_and_the_embedding() -> None:
    curve = np.array([90.0, 9.0, 7.0, 5.0, 4.0, 1.0, 0.0])
    kl = curve + np.random.default_rng(0).normal(0, 0.1, (12, 7))
    result = LogitLens().combine([lens_of(kl, first=20.0)])
    assert result.effective_depths == {"KL": 4, "overlap": None, "cosine": None}
    (finding,) = result.findings()
    assert finding.estimate.value == finding.estimate.low == finding.estimate.high == 4 / 6
    assert finding.rival.name == "KL, as published"
    assert finding.rival.estimate.value == 1 / 6  # at position 0, KL is 20 at every tap
    rows = result.to_frame().set_index("measure")["mean"]
    assert rows["effective depth (KL)"] == 4 / 6
    assert np.isnan(rows["effective depth (KL, position 0 included)"])
    published = LogitLens(first_position="included", kl_from="as published")
    (finding,) = published.combine([lens_of(kl, first=20.0)]).findings()
    assert (finding.estimate.value, finding.rival) == (1 / 6, None)


def test_groups_and_shares_make_the_intervals() -> None:
    kl = np.random.default_rng(0).normal(9, 1, (12, 4))
    part, groups = lens_of(kl, first=1.0), np.arange(12) // 2
    frame = LogitLens().combine([part]).of_groups(groups).to_frame()
    rows = frame[frame["position"].isna()].set_index(["measure", "layer"])
    expected = estimates(kl.astype(np.float32), groups=groups)
    row = rows.loc[("KL(lens‖final), nats", 1)]
    assert (row["low"], row["high"]) == pytest.approx((expected["low"][1], expected["high"][1]))
    is_first = share(np.arange(12) % 3 == 0, groups=groups)
    row = rows.loc[("answer is first", 1)]
    assert row[["mean", "low", "high"]].tolist() == pytest.approx(
        [is_first.value, is_first.low, is_first.high]
    )


def test_effective_depths_have_intervals() -> None:
    result = LogitLens().run(interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=12))
    rows = result.to_frame().set_index("measure").loc["effective depth (KL)"]
    finding = next(f for f in result.findings() if "by KL" in f.measure)
    depth = finding.estimate
    assert (rows["mean"], rows["low"], rows["high"]) == (depth.value, depth.low, depth.high)
    assert depth.low <= depth.value <= depth.high
