"""Half a sweep equals every window run by itself on the stock model, with hand-written hooks."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from interp.analyses.parallel_window import ParallelWindow, side_by_side
from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import rows
from tests.families import tiny, tokens
from tests.test_logit_lens import hooked
from tests.test_replay import naive

pytestmark = pytest.mark.filterwarnings("ignore")


def write_on(model: Model, batch, layer: int, resid: torch.Tensor) -> torch.Tensor:
    """Return what the stock model's `layer` adds to the stream when the stream before it is
    replaced.
    """
    seen: list[torch.Tensor] = []

    def see(_resid, output):
        seen.append(output)
        return output

    naive(model, batch, {layer - 1: lambda _, __: resid, layer: see})
    return seen[0] - resid


@torch.no_grad()
def test_every_window_equals_the_naive_loop(model: Model) -> None:
    batch, layers = tokens(), model.n_layers
    stream, _ = hooked(model, batch)
    windows = [f"{first}-{last}" for first in range(layers) for last in range(first, layers)]
    part = ParallelWindow(output_windows=tuple(windows)).measure(model.record(batch), batch, {})
    clean = model.logits(batch).double().log_softmax(-1)
    for first in range(layers):
        parallel = stream[first + 1]
        for last in range(first, layers):
            if last > first:
                parallel = parallel + write_on(model, batch, last, stream[first])
            after = stream[last + 1]
            error = (parallel - after).norm(dim=-1) / (after - stream[first]).norm(dim=-1)
            measures = torch.stack(
                [error.mean(1), cosine_similarity(parallel, after, dim=-1).mean(1)], dim=1
            )
            assert_close(part["windows"][:, first, last], measures, rtol=1e-5, atol=1e-5)
            log_q = (
                naive(model, batch, {last: lambda _, __, new=parallel: new})
                .double()
                .log_softmax(-1)
            )
            kls = [(a.exp() * (a - b)).sum(-1).mean(1) for a, b in ((log_q, clean), (clean, log_q))]
            same = (log_q.argmax(-1) == clean.argmax(-1)).double().mean(1)
            got = part["outputs"][:, windows.index(f"{first}-{last}")]
            assert_close(got.double(), torch.stack([*kls, same], dim=1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_pair_equals_the_naive_loop(model: Model) -> None:
    batch, layers = tokens(), model.n_layers
    stream, _ = hooked(model, batch)
    part = ParallelWindow().measure(model.record(batch), batch, {})
    for first in range(layers):
        for last in range(first + 1, layers):
            x = stream[first]
            alone = write_on(model, batch, last, x)
            behind = write_on(model, batch, last, x + (stream[first + 1] - x))
            strength = (behind - alone).norm(dim=-1) / alone.norm(dim=-1)
            assert_close(part["pairs"][:, first, last], strength.mean(1), rtol=1e-4, atol=1e-5)
    assert bool((part["pairs"].tril() == 0).all())


@torch.no_grad()
def test_what_neighbours_miss_side_by_side_is_their_interaction() -> None:
    model, batch = tiny("llama"), tokens()
    recording = model.record(batch)
    for last, (streams, (*_, alone, behind)) in enumerate([*side_by_side(recording)][1:], 1):
        missed = recording.resid(last + 1) - streams[last - 1]
        assert_close(missed, behind - alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_window_of_one_layer_is_exact(model: Model) -> None:
    batch = tokens()
    part = ParallelWindow(output_windows=("2-2",)).measure(model.record(batch), batch, {})
    diagonal = torch.arange(model.n_layers)
    assert bool((part["windows"][:, diagonal, diagonal, 0] == 0).all())
    assert_close(part["outputs"], torch.tensor([0.0, 0.0, 1.0]).expand(3, 1, 3), rtol=0, atol=1e-6)
    assert bool((part["windows"][..., 0].tril(-1) == 0).all())


@torch.no_grad()
def test_nothing_is_missed_if_only_one_layer_writes() -> None:
    model = Model("one layer", copy.deepcopy(tiny("llama").module))
    for layer, block in enumerate(model.module.model.layers):
        if layer != 1:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    part = ParallelWindow().measure(model.record(tokens()), tokens(), {})
    assert_close(
        part["windows"][:, :2, 1:, 0], torch.zeros(3, 2, model.n_layers - 1), rtol=0, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [1, 72])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk_tokens: int) -> None:
    model, batch = tiny("gemma2"), tokens()
    whole = ParallelWindow().measure(model.record(batch), batch, {})
    monkeypatch.setattr(rows, "CPU_TOKENS", chunk_tokens)
    chunked = ParallelWindow().measure(model.record(batch), batch, {})
    assert_close(chunked["windows"], whole["windows"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_work_stays_at_the_bound(tmp_path: Path) -> None:
    model, batch = dataclasses.replace(tiny("llama"), store_folder=tmp_path), tokens()
    recording, layers = model.record(batch), model.n_layers
    ParallelWindow().measure(recording, batch, {})
    assert recording.work.block_tokens == batch.tokens.numel() * (
        layers + layers * (layers - 1) / 2
    )
    stored = model.record(batch)
    asked = ParallelWindow(output_windows=("0-1", "1-2"))
    asked.measure(stored, batch, {})
    assert stored.work.block_tokens == batch.tokens.numel() * (layers * (layers - 1) / 2 + 2 + 1)
    assert asked.cost(model, batch).forwards == pytest.approx(
        stored.work.block_tokens / (batch.tokens.numel() * layers)
    )


@torch.no_grad()
def test_the_first_position_can_be_left_out() -> None:
    model, batch = tiny("llama"), tokens()
    stream, _ = hooked(model, batch)
    part = ParallelWindow(first_position="excluded").measure(model.record(batch), batch, {})
    parallel = stream[2] + write_on(model, batch, 2, stream[1])
    error = (parallel - stream[3]).norm(dim=-1) / (stream[3] - stream[1]).norm(dim=-1)
    assert_close(part["windows"][:, 1, 2, 0], error[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_tokens_are_weighted() -> None:
    parts = [
        {
            "windows": torch.full((1, 2, 2, 2), value),
            "outputs": torch.full((1, 1, 3), value),
            "n_pos": torch.tensor([n]),
        }
        for value, n in ((1.0, 10), (4.0, 20))
    ]
    result = ParallelWindow(output_windows=("0-1",)).combine(parts)
    np.testing.assert_allclose(result.grid(), [[3, 3], [np.nan, 3]])
    frame = result.to_frame()
    assert frame[frame["measure"] == "same first token"]["mean"].tolist() == [3.0]
    assert "Layers 0-1 side by side change the output by 3.00" in result.findings()[1].claim


@pytest.mark.parametrize("window", ["3", "3-2", "a-b", "-1-2", ""])
def test_what_is_no_window_is_refused(window: str) -> None:
    with pytest.raises(AnalysisError, match="a first and a last layer are needed, such as '2-3'"):
        ParallelWindow(output_windows=(window,))


def test_bad_shards_are_refused_before_any_work() -> None:
    with pytest.raises(
        AnalysisError, match="output window '2-4' given; the model's last layer is 3"
    ):
        ParallelWindow(output_windows=("2-4",)).check(tiny("llama"), tokens())
    with pytest.raises(
        AnalysisError, match="prompt '0' has 1 token; first_position='excluded' needs at least 2"
    ):
        ParallelWindow(first_position="excluded").check(tiny("llama"), tokens(n_pos=1))


def test_findings_are_computed_another_way() -> None:
    rng = np.random.default_rng(0)
    windows = rng.uniform(0.2, 0.4, (16, 4, 4, 2))
    windows[:, 1, 2, 0] += 0.5  # this pair misses most
    n_pos = rng.integers(2, 9, 16)
    part = {"windows": torch.from_numpy(windows), "n_pos": torch.from_numpy(n_pos)}
    (finding,) = ParallelWindow().combine([part]).findings()
    pairs = [np.average(windows[:, i, i + 1, 0], weights=n_pos) for i in range(3)]
    assert finding.estimate.value == pytest.approx(np.mean(pairs))
    assert finding.rival.name == "layers 1 and 2, which miss most"
    assert finding.rival.estimate.value == pytest.approx(pairs[1])
    assert finding.control.estimate.value == pytest.approx(
        np.average(windows[:, 0, 3, 0], weights=n_pos)
    )
