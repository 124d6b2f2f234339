"""Block influence and its siblings: by hand, and against the stock model's own residuals."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import interp
from interp.analyses.block_influence import (
    MEASURES,
    BlockInfluence,
    influence,
    share_of_large_weights,
)
from interp.errors import AnalysisError
from interp.models import Model
from tests.families import tiny, tokens
from tests.test_logit_lens import hooked

pytestmark = pytest.mark.filterwarnings("ignore")


def prepared(model: Model) -> dict[str, torch.Tensor]:
    return {"large_weights": torch.zeros(model.n_layers)}


def test_a_case_done_by_hand() -> None:
    pre, post = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])
    expected = [[1 - 9 / 15, 1 - 5 / 41**0.5, 4 / 3], [1.0, 1 - 1 / 6**0.5, 5**0.5 / 2]]
    assert_close(influence(pre, post), torch.tensor([expected]))


def test_orthogonal_writes_have_the_block_influence_of_their_lengths() -> None:
    pre, write = torch.tensor([[[2.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 3.0]]])
    bi, orthogonal, _ = influence(pre, pre + write)[0, 0]
    assert_close(bi, orthogonal)


def test_large_weights_are_counted_over_all_of_a_layers_weights() -> None:
    weights = [torch.tensor([[0.0, 0.0], [0.0, 10.0]]), torch.tensor([[2.0, -2.0]])]
    together = np.array([0, 0, 0, 10, 2, -2])
    assert share_of_large_weights(weights) == pytest.approx(
        (together > together.mean() + together.std()).mean()
    )
    normal = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    assert share_of_large_weights([normal[:100], normal[100:]]) == pytest.approx(0.1587, abs=0.003)


@torch.no_grad()
@pytest.mark.parametrize("first_position", ["included", "excluded"])
def test_it_equals_the_stock_models_residuals(model: Model, first_position: str) -> None:
    batch, start = tokens(), int(first_position == "excluded")
    stream_of_all = hooked(model, batch)[0]
    stream = [resid[:, start:].double().numpy() for resid in stream_of_all]
    part = BlockInfluence(first_position=first_position).measure(
        model.record(batch), batch, prepared(model)
    )

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))

    for row in range(len(batch.tokens)):
        for layer in range(model.n_layers):
            pre, post = stream[layer][row], stream[layer + 1][row]
            bi = np.mean([1 - cosine(a, b) for a, b in zip(pre, post, strict=True)])
            size = np.mean(np.linalg.norm(post - pre, axis=1) / np.linalg.norm(post, axis=1))
            got = part["means"][row, layer].tolist()
            assert [
                got[MEASURES.index("BI")],
                got[MEASURES.index("relative magnitude")],
            ] == pytest.approx([bi, size], abs=1e-5)
            every = [resid[row].double().numpy() for resid in stream_of_all[layer : layer + 2]]
            other = np.mean([1 - cosine(a, b) for a, b in zip(*every, strict=True)][1 - start :])
            assert float(part["other_means"][row, layer, 0]) == pytest.approx(other, abs=1e-5)
            assert float(part["flat_cosine"][row, layer]) == pytest.approx(
                cosine(pre, post), abs=1e-5
            )
        lasts = [resid[row, -1] for resid in stream]
        for i, j in np.ndindex(len(lasts), len(lasts)):
            assert float(part["last_cosine"][row, i, j]) == pytest.approx(
                cosine(lasts[i], lasts[j]), abs=1e-5
            )


@torch.no_grad()
def test_the_last_block_is_read_before_the_final_norm() -> None:
    model, batch = tiny("llama"), tokens()
    other = Model("other norm", copy.deepcopy(model.module))
    other.module.model.norm.weight.data *= torch.linspace(-3, 3, model.d_model)
    one, two = (
        BlockInfluence().measure(m.record(batch), batch, prepared(m)) for m in (model, other)
    )
    assert torch.equal(one["means"], two["means"])


@torch.no_grad()
def test_scaling_the_stream_changes_no_influence() -> None:
    pre, post = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    assert_close(influence(pre, post), influence(7 * pre, 7 * post))


@torch.no_grad()
def test_it_runs_no_block_and_reads_what_is_stored(tmp_path: Path) -> None:
    model, batch = dataclasses.replace(tiny("llama"), store_folder=tmp_path), tokens()
    model.record(batch).resid(0)
    stored = model.record(batch)
    BlockInfluence().measure(stored, batch, prepared(model))
    assert stored.work.block_tokens == 0


def test_lim_is_block_influence_less_one_and_orders_layers_alike() -> None:
    result = BlockInfluence().run(
        interp.load_model("zoo/hops-4l"), interp.load_task("two-hop", n=8)
    )
    frame = result.to_frame().query("positions != 'all positions'").set_index(["measure", "layer"])
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(frame.loc["LIM"][column], frame.loc["BI"][column] - 1)
    angles = result.angles.mean(0)
    assert (angles >= 0).all()
    np.testing.assert_allclose(angles, angles.T, atol=1e-6)
    assert (angles[0, 2] <= angles[0, 1] + angles[1, 2]).all()  # the angle is a distance


def test_a_prompt_of_one_token_is_refused_without_its_first_position() -> None:
    with pytest.raises(
        AnalysisError, match="prompt '0' has 1 token; first_position='excluded' needs at least 2"
    ):
        BlockInfluence(first_position="excluded").check(tiny("llama"), tokens(n_pos=1))


def test_the_extreme_layers_are_picked_on_halves() -> None:
    rng = np.random.default_rng(0)
    bi = np.array([0.5, 0.1, 0.2, 0.3]) + rng.normal(0, 0.01, (20, 4))
    orthogonal = 2 * bi  # of the layer picked, not the least of its own
    orthogonal[:, 1] = 0.9
    n_pos = rng.integers(2, 9, 20)
    part = {
        "means": torch.from_numpy(np.stack([bi, orthogonal, bi], axis=-1)),
        "other_means": torch.from_numpy(np.stack([bi + 1] * 3, axis=-1)),
        "flat_cosine": torch.zeros(20, 4),
        "last_cosine": torch.ones(20, 5, 5),
        "large_weights": torch.zeros(20, 4),
        "n_pos": torch.from_numpy(n_pos),
    }
    result = BlockInfluence().combine([part])
    least, most = result.findings()
    mean = np.average(bi, axis=0, weights=n_pos)
    assert "Layer 1 turns the stream least" in least.claim
    assert least.estimate.value == pytest.approx(mean[1])
    assert least.estimate.low < mean[1] < least.estimate.high
    assert least.control.estimate.value == pytest.approx(0.9)
    assert least.rival.name == "layer 2, the next"
    assert "Layer 0 turns the stream most" in most.claim
    assert most.rival.name == "layer 3, the next"
    frame = result.to_frame().set_index(["positions", "measure", "layer"])["mean"]
    assert frame["all positions", "BI", 2] == pytest.approx(
        np.average(bi[:, 2] + 1, weights=n_pos + 1)
    )
