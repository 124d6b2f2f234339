"""Variance, massive activations and laws of growth: by hand, and from the stock model's stream."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interp.analyses.stream_statistics import StreamStatistics, statistics_of, where_largest
from interp.analyses.stream_statistics.growth import growth_fits
from interp.analyses.stream_statistics.result import POSITIONS, STATISTICS
from interp.errors import AnalysisError
from interp.models import Model
from tests.families import tiny, tokens
from tests.test_logit_lens import hooked

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_case_done_by_hand() -> None:
    resid = torch.tensor([[[1.0, 3.0, -2.0], [0.0, 0.0, 6.0]]])
    variance = ((1 + 9 + 4) / 3 - (2 / 3) ** 2 + 8) / 2
    median = 1.0  # torch's median of 0 0 1 2 3 6: the lower of the two in the middle
    n_massive = torch.tensor([[1, 2]])
    expected = torch.tensor([[variance, 2.0, 6.0, 6.0 / median, 3.0]])
    assert_close(statistics_of(resid, n_massive), expected)
    assert where_largest(resid).tolist() == [[1, 2]]


def test_a_line_and_an_exponential_are_found() -> None:
    sites = np.arange(12)
    fits = growth_fits(2.0 + 3.0 * sites)
    assert (fits["linear"].intercept, fits["linear"].slope) == pytest.approx((2, 3))
    assert fits["linear"].r2 == pytest.approx(1)
    assert fits["linear"].error < 1e-9 < fits["exponential"].error
    fits = growth_fits(2.0 * np.exp(0.5 * sites))
    assert (fits["exponential"].intercept, fits["exponential"].slope) == pytest.approx(
        (np.log(2), 0.5)
    )
    assert fits["exponential"].error < 1e-9 < fits["linear"].error
    off = np.concatenate([[1e-6], 2.0 + 3.0 * sites[1:]])
    assert growth_fits(off, fit_from=1)["linear"].intercept == pytest.approx(2)


@torch.no_grad()
def test_it_equals_the_stock_models_residuals(model: Model) -> None:
    batch = tokens(n_pos=11)
    part = StreamStatistics(massive_above=1.0, massive_ratio=2.0).measure(
        model.record(batch), batch, {}
    )
    for site, resid in enumerate(hooked(model, batch)[0]):
        for start in (0, 1):
            for row, hidden in enumerate(resid[:, start:].numpy().astype(np.float64)):
                size = np.sort(np.abs(hidden).ravel())
                median = size[(len(size) - 1) // 2]
                whole = np.sort(np.abs(resid[row].numpy().astype(np.float64)).ravel())
                limit = 2 * whole[(len(whole) - 1) // 2]  # of the whole prompt, also without 0
                massive = ((size > 1) & (size >= limit)).sum()
                expected = [hidden.var(1).mean(), size.mean(), size[-1], size[-1] / median, massive]
                assert part["statistics"][row, site, start].tolist() == pytest.approx(
                    expected, rel=1e-5, abs=1e-5
                )
                position, dimension = part["where"][row, site, start].tolist()
                assert abs(hidden[position - start, dimension]) == pytest.approx(size[-1], rel=1e-5)


@torch.no_grad()
def test_it_runs_no_block_and_reads_what_is_stored(tmp_path: Path) -> None:
    model, batch = dataclasses.replace(tiny("llama"), store_folder=tmp_path), tokens()
    model.record(batch).resid(0)
    stored = model.record(batch)
    StreamStatistics().measure(stored, batch, {})
    assert stored.work.block_tokens == 0


def test_the_variance_weights_tokens_and_the_maximum_prompts() -> None:
    def part(value: float, n_pos: int) -> dict[str, torch.Tensor]:
        shape = (1, 3, len(POSITIONS))
        statistics = value * torch.arange(1, 4)[None, :, None, None].expand(*shape, len(STATISTICS))
        where = torch.full((*shape, 2), n_pos, dtype=torch.int32)
        return {"statistics": statistics, "where": where, "n_pos": torch.tensor([n_pos])}

    result = StreamStatistics().combine([part(1.0, 10), part(4.0, 20)])
    np.testing.assert_allclose(result.curve("variance"), [3, 6, 9])
    np.testing.assert_allclose(result.curve("variance", POSITIONS[1])[0], (9 + 4 * 19) / 28)
    np.testing.assert_allclose(result.curve("max |h|"), [2.5, 5, 7.5])
    frame = result.to_frame()
    row = frame[(frame["measure"] == "max |h|") & (frame["layer"] == 2)].iloc[0]
    assert row[["max", "prompt", "position", "dimension"]].tolist() == [12, 1, 20, 20]


def test_findings_are_computed_another_way() -> None:
    rng = np.random.default_rng(0)
    line = np.array([1.0, 5.0, 9.0, 13.0]) * rng.uniform(0.9, 1.1, (24, 1))
    statistics = np.zeros((24, 4, len(POSITIONS), len(STATISTICS)))
    statistics[:, :, 0, 0] = 100 * line[:, ::-1]  # position 0 alone decides the mean of all
    statistics[:, :, 1, 0] = line
    n_pos = rng.integers(3, 9, 24)
    part = {
        "statistics": torch.from_numpy(statistics),
        "where": torch.zeros(24, 4, 2, 2, dtype=torch.int32),
        "n_pos": torch.from_numpy(n_pos),
    }
    growth, law, _ = StreamStatistics().combine([part]).findings()
    mean = np.average(line, axis=0, weights=n_pos - 1)
    assert growth.estimate.value == pytest.approx(mean[3] / mean[0])
    assert growth.rival.estimate.value == pytest.approx(mean[3] / mean[1])
    assert growth.note == "all positions: 0.0769"
    assert law.claim.startswith("A line fits the variance better than an exponential")
    fits = growth_fits(mean)
    assert law.estimate.value == pytest.approx(fits["exponential"].error - fits["linear"].error)
    assert law.rival.estimate.value == pytest.approx(0, abs=1e-9)


def test_bad_input_is_one_line() -> None:
    with pytest.raises(AnalysisError, match=r"massive_ratio=-1\.0; at least 0 is needed"):
        StreamStatistics(massive_ratio=-1.0)
    with pytest.raises(
        AnalysisError, match="fit_from=3; the model has taps 0 to 4, and a fit needs 3"
    ):
        StreamStatistics(fit_from=3).check(tiny("llama"), tokens())
    with pytest.raises(AnalysisError, match="prompt '0' has 1 token; at least 2 are needed"):
        StreamStatistics().check(tiny("llama"), tokens(n_pos=1))
