"""The store returns what was written, recomputes what is damaged, and saves every block."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from interp.analyses.residual_contribution import ResidualContribution
from interp.models import Model
from interp.sites import Site
from interp.store import ActivationStore, prompt_key, verify_shard
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def with_store(folder: Path, *, family: str = "llama", seed: int = 0) -> Model:
    return dataclasses.replace(tiny(family, seed=seed), store_folder=folder)


def recorded(model: Model, seed: int = 0) -> tuple[float, torch.Tensor]:
    recording = model.record(tokens(seed=seed))
    attn = recording.clean(Site("attn_out", 2))
    return recording.work.block_tokens, torch.cat([attn, recording.resid(model.n_layers)])


@torch.no_grad()
def test_what_is_stored_runs_no_block(tmp_path: Path) -> None:
    work, first = recorded(with_store(tmp_path))
    assert work > 0
    work, again = recorded(with_store(tmp_path))
    assert work == 0
    assert torch.equal(first, again)


@torch.no_grad()
def test_another_analysis_reads_it_too(tmp_path: Path) -> None:
    batch = tokens()
    ResidualContribution().measure(with_store(tmp_path).record(batch), batch, {})
    recording = with_store(tmp_path).record(batch)
    ResidualContribution(first_position=False).measure(recording, batch, {})
    assert recording.work.block_tokens == 0


@torch.no_grad()
def test_tail_over_stored_residuals_is_exact(tmp_path: Path) -> None:
    fresh, stored = (with_store(tmp_path).record(tokens()) for _ in range(2))
    resid = fresh.resid(1)[:, 5:] + 1
    assert torch.equal(fresh.tail(1, resid, start=5), stored.tail(1, resid, start=5))


@torch.no_grad()
def test_a_changed_weight_or_token_reads_nothing(tmp_path: Path) -> None:
    recorded(with_store(tmp_path))
    assert recorded(with_store(tmp_path, seed=1))[0] > 0
    assert recorded(with_store(tmp_path), seed=1)[0] > 0


@torch.no_grad()
@pytest.mark.parametrize("damage", ["flip early", "flip late", "truncate", "empty"])
def test_damage_is_named_and_computed_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    _, right = recorded(with_store(tmp_path))
    (path,) = tmp_path.glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    match damage:
        case "flip early":
            content[60] ^= 1
        case "flip late":
            content[-7] ^= 1
        case "truncate":
            content = content[:-100]
        case "empty":
            content = bytearray()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        work, again = recorded(with_store(tmp_path))
    assert torch.equal(right, again)
    if damage != "flip early":  # may hit the description of the axes, which no number depends on
        assert work > 0
        assert str(path) in caplog.text
    assert verify_shard(next(iter(tmp_path.glob("*/*.safetensors")))) > 0


def test_bfloat16_and_ragged_lengths_come_back_as_they_were(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, model="m")
    ragged = {f"{i}/resid": torch.randn(3, i + 1, 4).to(torch.bfloat16) for i in range(3)}
    store.write(ragged)
    reader = ActivationStore(tmp_path, model="m")
    for i in range(3):
        read = reader.read(str(i), "resid")
        assert read is not None
        assert_close(read, ragged[f"{i}/resid"], rtol=0, atol=0)
    assert reader.read("9", "resid") is None


def test_a_shard_of_another_process_is_seen(tmp_path: Path) -> None:
    one, two = ActivationStore(tmp_path, model="m"), ActivationStore(tmp_path, model="m")
    assert two.read("a", "resid") is None
    one.write({"a/resid": torch.ones(1, 2, 3)})
    assert two.read("a", "resid") is not None


def test_keys_depend_on_context_and_tokens() -> None:
    keys = {prompt_key(c, t) for c in (["w"], ["w", "fp32"]) for t in ([1, 2], [12], [1, 2, 0])}
    assert len(keys) == 6
