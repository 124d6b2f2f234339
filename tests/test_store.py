"""The store returns what was written, recomputes what is damaged, and saves every block."""

import dataclasses
import json
import logging
import os
import struct
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from interp.analyses.residual_contribution import ResidualContribution
from interp.errors import StoreError
from interp.interventions import Edit
from interp.models import Model
from interp.sites import Site
from interp.store import (
    ActivationStore,
    Settings,
    configure,
    info,
    prompt_key,
    prune,
    shards,
    verify_shard,
)
from interp.store.shard import FORMAT
from tests.families import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def with_store(folder: Path | str, *, family: str = "llama", seed: int = 0) -> Model:
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
    ResidualContribution(first_position="excluded").measure(recording, batch, {})
    assert recording.work.block_tokens == 0


@torch.no_grad()
def test_what_ran_under_an_edit_is_never_stored(tmp_path: Path) -> None:
    model, site = with_store(tmp_path), Site("resid_post", 1)
    plan = [Edit(Site("attn_out", 0), lambda write: write * 2)]
    edited = model.forward(tokens(), capture=[site], plan=plan).activations[site]
    assert list(shards(tmp_path)) == []
    _, clean = recorded(model)
    found = list(shards(tmp_path))
    assert found
    assert torch.equal(model.forward(tokens(), capture=[site], plan=plan).activations[site], edited)
    assert not torch.equal(model.record(tokens()).clean(site), edited)
    assert list(shards(tmp_path)) == found
    assert torch.equal(recorded(with_store(tmp_path))[1], clean)


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
@pytest.mark.parametrize("damage", ["size", "header", "every tensor", "truncate", "empty"])
def test_damage_is_named_and_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, right = recorded(with_store(tmp_path))
    (path,) = tmp_path.glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    match damage:
        case "size":
            content[1] ^= 1
        case "header":
            content[60] ^= 1
        case "every tensor":
            for i in range(start, len(content), 64):
                content[i] ^= 1
        case "truncate":
            content = content[:-100]
        case "empty":
            content = bytearray()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        work, again = recorded(with_store(tmp_path))
    assert torch.equal(right, again)
    assert work > 0
    assert str(path) in caplog.text
    assert verify_shard(next(iter(tmp_path.glob("*/*.safetensors")))) > 0


def test_no_flipped_bit_of_a_header_is_believed(tmp_path: Path) -> None:
    written = {"resid.0": torch.randn(3, 4), "tokens": torch.arange(3, dtype=torch.int32)}
    ActivationStore(tmp_path, model="m").write({"a": 1, "b": 2}, written)
    (path,) = shards(tmp_path)
    right = path.read_bytes()
    n_read = 0
    for i in range(8 + struct.unpack("<Q", right[:8])[0]):
        path.write_bytes(right[:i] + bytes([right[i] ^ (1 << i % 8)]) + right[i + 1 :])
        found = ActivationStore(tmp_path, model="m").read(["b"], "resid.0")
        if found is not None:  # the bit was in a space that pads the header
            assert torch.equal(found[0], written["resid.0"][1:])
            n_read += 1
    assert n_read < 16


def test_bfloat16_and_ragged_lengths_come_back_as_they_were(tmp_path: Path) -> None:
    lengths = {str(i): i + 1 for i in range(3)}
    ragged = [torch.randn(i + 1, 4).to(torch.bfloat16) for i in range(3)]
    ActivationStore(tmp_path, model="m").write(lengths, {"resid.3": torch.cat(ragged)})
    reader = ActivationStore(tmp_path, model="m")
    found = reader.read(["2", "0", "1"], "resid.3")
    assert found is not None
    for read, i in zip(found, (2, 0, 1), strict=True):
        assert_close(read, ragged[i], rtol=0, atol=0)
    assert reader.read(["0", "9"], "resid.3") is None
    assert reader.read(["0"], "resid.4") is None


def test_local_reads_are_mapped_not_copied(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, model="m")
    store.write({"a": 4}, {"resid.0": torch.zeros(4, 2)})
    (read,) = store.read(["a"], "resid.0") or []
    (path,) = shards(tmp_path)
    assert path.name in Path("/proc/self/maps").read_text()
    assert torch.equal(read, torch.zeros(4, 2))


def test_what_was_read_longest_ago_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ActivationStore(tmp_path, model="m")
    for i in range(4):
        store.write({str(i): 4}, {"resid.0": torch.full((4, 2), float(i))})
    monkeypatch.setattr("interp.store.reader._MAPPED", 2 * 4 * 2 * 4)  # two of them
    for i in (0, 1, 2, 3, 0):
        (read,) = store.read([str(i)], "resid.0") or []
        assert torch.equal(read, torch.full((4, 2), float(i)))
        del read
    maps = Path("/proc/self/maps").read_text()
    assert sum(path.name in maps for path in shards(tmp_path)) == 2


def test_a_shard_of_another_process_is_seen(tmp_path: Path) -> None:
    one, two = ActivationStore(tmp_path, model="m"), ActivationStore(tmp_path, model="m")
    assert two.read(["a"], "resid.0") is None
    one.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    assert two.read(["a"], "resid.0") is not None


def test_a_shard_that_another_process_removed_is_missed_not_fatal(tmp_path: Path) -> None:
    one, two = ActivationStore(tmp_path, model="m"), ActivationStore(tmp_path, model="m")
    one.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    assert two.places(["a"], "resid.0") is not None
    prune(tmp_path, model="m")
    assert two.read(["a"], "resid.0") is None
    one.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    assert two.read(["a"], "resid.0") is not None


@pytest.mark.parametrize("gone", ["evicted", "pruned", "removed"])
def test_what_is_gone_is_missing_whoever_removed_it(tmp_path: Path, gone: str) -> None:
    size = (
        (
            tmp_path
            / ActivationStore(tmp_path, model="m").write({"x": 9}, {"resid.0": torch.ones(9, 9)})
        )
        .stat()
        .st_size
    )
    prune(tmp_path, model="m")
    store = ActivationStore(tmp_path, model="m", settings=Settings(quota=2 * size - 1))
    path = tmp_path / store.write({"a": 9}, {"resid.0": torch.zeros(9, 9)})
    assert store.missing(["a"], ["resid.0"]) == []
    match gone:
        case "evicted":
            store.write({"b": 9}, {"resid.0": torch.ones(9, 9)})
        case "pruned":
            prune(tmp_path, max_bytes=1)
        case "removed":
            path.unlink()
    assert not path.exists()
    assert store.missing(["a"], ["resid.0"]) == ["resid.0"]
    assert store.places(["a"], "resid.0") is None
    assert store.read(["a"], "resid.0") is None
    store.write({"a": 9}, {"resid.0": torch.full((9, 9), 2.0)})
    (read,) = store.read(["a"], "resid.0") or []
    assert read[0, 0] == 2


def test_what_is_held_stays(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, model="m")
    held = tmp_path / store.write({"a": 9}, {"resid.0": torch.zeros(9, 9)})
    store = ActivationStore(
        tmp_path, model="m", settings=Settings(quota=2 * held.stat().st_size + 9)
    )
    assert store.hold(["a"], ["resid.0", "resid.1"]) == ["resid.1"]
    other = tmp_path / store.write({"b": 9}, {"resid.0": torch.ones(9, 9)})
    third = tmp_path / store.write({"c": 9}, {"resid.0": torch.full((9, 9), 2.0)})
    assert (held.exists(), other.exists(), third.exists()) == (True, False, True)


@torch.no_grad()
def test_what_can_never_fit_removes_nothing_and_fails_no_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ActivationStore(tmp_path, model="m")
    small = tmp_path / store.write({"a": 9}, {"resid.0": torch.zeros(9, 9)})
    configure(tmp_path, Settings(quota=2 * small.stat().st_size))
    work, clean = recorded(with_store(tmp_path))
    again, same = recorded(with_store(tmp_path))
    assert again == work > 0
    assert torch.equal(same, clean)
    assert small.exists()
    assert "a clean pass is not kept" in caplog.messages[0]
    assert "0 are in use" in caplog.messages[0]


def test_keys_depend_on_context_and_tokens() -> None:
    keys = {prompt_key(c, t) for c in (["w"], ["w", "fp32"]) for t in ([1, 2], [12], [1, 2, 0])}
    assert len(keys) == 6


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_store_that_would_round_a_models_numbers_is_not_used(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(tmp_path, Settings(dtype=dtype))
    work, exact = recorded(with_store(tmp_path))
    again, read = recorded(with_store(tmp_path))
    assert again == work
    assert torch.equal(read, exact)
    assert not info(tmp_path).bytes
    (told,) = caplog.messages
    assert f"the store keeps {dtype}, which rounds its float32" in told
    half = with_store(tmp_path)
    module = deepcopy(half.module).to(getattr(torch, dtype))
    half = Model("half", module, store_folder=tmp_path)
    work, exact = recorded(half)
    again, read = recorded(half)
    assert (again, work > 0) == (0, True)
    assert torch.equal(read, exact)


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, model="m", settings=Settings(dtype="float16"))
    with pytest.raises(StoreError, match=r"resid.0 has 7e\+04; float16 ends at 65504"):
        store.write({"a": 1}, {"resid.0": torch.tensor([[70000.0]])})
    store.write({"a": 1}, {"resid.0": torch.tensor([[float("inf")]])})


def of_age(path: Path, seconds: float) -> None:
    when = path.stat().st_mtime - seconds
    os.utime(path, (when, when))


def test_beyond_the_quota_what_was_used_least_recently_goes(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, model="m")
    paths = [tmp_path / store.write({key: 100}, {"resid.0": torch.randn(100, 10)}) for key in "abc"]
    for age, path in enumerate(reversed(paths)):
        of_age(path, 100.0 * (age + 1))
    size = paths[0].stat().st_size
    limited = ActivationStore(tmp_path, model="m", settings=Settings(quota=3 * size + 100))
    assert limited.read(["a"], "resid.0") is not None, "reading counts as use"
    limited.write({"d": 100}, {"resid.0": torch.randn(100, 10)})
    fresh = ActivationStore(tmp_path, model="m")
    assert [key for key in "abcd" if fresh.read([key], "resid.0") is not None] == ["a", "c", "d"]
    assert info(tmp_path).bytes <= 3 * size + 100
    with pytest.raises(StoreError, match=f"quota of {3 * size + 100} bytes"):
        limited.write({"e": 500}, {"resid.0": torch.randn(500, 10)})


def test_settings_that_were_damaged_name_the_file(tmp_path: Path) -> None:
    configure(tmp_path, Settings(quota=1234))
    path = tmp_path / "store.json"
    path.write_text(path.read_text().replace("1234", "9234"))
    with pytest.raises(StoreError, match=f"{path} is not what was written"):
        ActivationStore(tmp_path, model="m")


@pytest.mark.parametrize(("format_", "error"), [(str(FORMAT + 1), "upgrade interp"), ("1", None)])
def test_a_newer_format_is_refused_by_name_and_an_older_one_passed_over(
    tmp_path: Path, format_: str, error: str | None
) -> None:
    store = ActivationStore(tmp_path, model="m")
    path = tmp_path / store.write({"a": 1}, {"resid.0": torch.ones(1, 1)})
    size = struct.unpack("<Q", (content := path.read_bytes())[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] |= {"format": format_, "checksum": "of another kind"}
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])
    fresh = ActivationStore(tmp_path, model="m")
    if error is None:
        assert fresh.read(["a"], "resid.0") is None
        assert path.exists()
        assert prune(tmp_path, max_bytes=10**9)[0].name == f"m/{path.name}"
    else:
        with pytest.raises(
            StoreError, match=f"{path} has format {format_}; this version reads {FORMAT}; {error}"
        ):
            fresh.read(["a"], "resid.0")
        assert path.exists()
