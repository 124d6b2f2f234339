"""`interp store`: what is in a store, is it whole, what can go."""

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from interp.cli import app, main
from interp.store import ActivationStore, read_settings, shards
from interp.store.files import Files
from tests.documents import read


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["store", *map(str, args)])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for model, key in (("a" * 32, "k"), ("b" * 32, "k"), ("b" * 32, "l")):
        kept = ActivationStore(tmp_path, model=model, name=f"model-{model[0]}")
        kept.write(
            {key: 100},
            {"resid.0": torch.randn(100, 10), "tokens": torch.zeros(100, dtype=torch.int32)},
        )
    return tmp_path


def test_info_lists_models(store: Path) -> None:
    said = read(call("info", store, "--json").stdout)
    assert [(m["name"], m["shards"], m["prompts"], m["tokens"]) for m in said["models"]] == [
        ("model-a", 1, 1, 100),
        ("model-b", 2, 2, 200),
    ]
    assert said["bytes"] == sum(path.stat().st_size for path in shards(store))
    assert "model-b" in call("info", store).stdout


def test_verify_names_what_is_damaged_and_exits_1(store: Path) -> None:
    assert call("verify", store).exit_code == 0
    path = next(shards(store))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = call("verify", store)
    assert said.exit_code == 1
    assert str(path) in said.stdout
    assert read(call("verify", store, "--json").stdout)["whole"] == 2


def test_prune_by_model_age_and_size(store: Path) -> None:
    old = sorted(shards(store))[-1]
    os.utime(old, (0, 0))
    assert "1 files" in call("prune", store, "--older-than", "1d", "--dry-run").stdout
    assert old.exists()
    said = read(call("prune", store, "--older-than", "1d", "--json").stdout)
    assert [file["name"] for file in said["removed"]] == [f"{old.parent.name}/{old.name}"]
    assert not old.exists()
    assert call("prune", store, "--model", "model-a").exit_code == 0
    assert [m["name"] for m in read(call("info", store, "--json").stdout)["models"]] == ["model-b"]
    assert call("prune", store, "--max-size", "1kb").exit_code == 0
    assert not list(shards(store))


def test_an_age_in_the_future_is_no_age_and_a_jump_of_the_clock_loses_the_oldest_first(
    store: Path,
) -> None:
    ahead, *others = sorted(shards(store))
    os.utime(ahead, (4e9, 4e9))
    assert (
        read(call("prune", store, "--older-than", "0s", "--model", "model-a", "--json").stdout)[
            "removed"
        ]
        == []
    )
    size = sum(path.stat().st_size for path in others)
    said = read(call("prune", store, "--max-size", str(size), "--json").stdout)
    assert len(said["removed"]) == 1
    assert ahead.exists()


def test_what_a_writer_left_behind_goes_but_not_what_it_may_still_write(store: Path) -> None:
    folder = next(shards(store)).parent
    stale, fresh = folder / ".aside-old", folder / ".aside-new"
    stale.write_bytes(b"x" * 2000)
    fresh.write_bytes(b"x")
    os.utime(stale, (0, 0))
    assert read(call("info", store, "--json").stdout)["aside"] == 2001
    call("prune", store, "--max-size", "1GB")
    assert not stale.exists()
    assert fresh.exists()


def test_nothing_else_is_ever_removed(store: Path) -> None:
    others = [
        store / "notes.txt",
        store / "gpt2" / "model.safetensors",
        store / "gpt2" / "config.json",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    call("prune", store, "--max-size", "0")
    assert not list(shards(store))
    assert all(path.exists() for path in others)


def test_configure_keeps_what_is_not_named(store: Path) -> None:
    assert call("configure", store, "--quota", "20GB").exit_code == 0
    assert call("configure", store, "--dtype", "float16").exit_code == 0
    settings = read_settings(Files(store))
    assert (settings.quota, settings.dtype) == (20_000_000_000, "float16")
    call("configure", store, "--quota", "none")
    assert read_settings(Files(store)).quota is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["info", "nowhere"], "no store in nowhere"),
        (["prune", "STORE"], "nothing to prune by"),
        (["prune", "STORE", "--older-than", "soon"], "'soon' given; an age such as 12h"),
        (["prune", "STORE", "--max-size", "many"], "'many' given; a size"),
        (["prune", "STORE", "--model", "other"], "holds nothing of 'other'"),
        (["configure", "STORE", "--dtype", "int8"], "unknown type 'int8'"),
        (["configure", "STORE"], "nothing to configure"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    store: Path,
    args: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["interp", "store", *(str(store) if arg == "STORE" else arg for arg in args)]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
