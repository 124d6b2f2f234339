"""What a stranger's store can do: nothing but be refused."""

import json
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch

import interp
from interp.errors import StoreError
from interp.store import ActivationStore, info, open_corpus, shards, verify
from interp.store.shard import FORMAT, text_checksum

ROOT = Path(interp.__file__).parent


def test_no_module_of_the_library_can_unpickle() -> None:
    unsafe = re.compile(
        r"(?<!copyreg\.)\b(pickle|torch\.load|joblib|dill|marshal|shelve|allow_pickle|weights_only=False)\b|trust_remote_code=True"
    )
    found = [
        f"{path}: {line}"
        for path in ROOT.rglob("*.py")
        for line in path.read_text().splitlines()
        if unsafe.search(line)
    ]
    assert not found


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_pickle_in_place_of_a_shard_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ActivationStore("store", model="m")
    path = Path(store.files.path(store.write({"a": 1}, {"resid.0": torch.ones(1, 1)})))
    path.write_bytes(pickle.dumps(Malicious()))
    (tmp_path / "store" / "m" / "c.corpus.json").write_bytes(pickle.dumps(Malicious()))
    (tmp_path / "store" / "store.json").write_bytes(pickle.dumps(Malicious()))
    assert len(verify("store")[1]) == 3
    with pytest.raises(StoreError, match=r"c.corpus.json is not what was written"):
        open_corpus("store", "c")
    (tmp_path / "store" / "store.json").unlink()
    assert ActivationStore("store", model="m").read(["a"], "resid.0") is None
    assert not (tmp_path / "owned").exists()


def with_header(path: Path, change: dict[str, object], entries: dict[str, object]) -> None:
    """Write a shard's header anew, with checksums that fit."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = {k: v for k, v in header.pop("__metadata__").items() if k != "checksum"} | change
    metadata["checksum"] = text_checksum(metadata)
    changed = json.dumps({"__metadata__": metadata, **header, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        ({"prompts": json.dumps([["../../escape", 1]])}, {}),
        ({"prompts": json.dumps([["/etc/passwd", 1]])}, {}),
        ({"prompts": json.dumps([["a", -1], ["b", 2]])}, {}),
        ({"prompts": json.dumps([["a", 5]])}, {}),
        ({"prompts": json.dumps({"a": 1})}, {}),
        (
            {"checksums": json.dumps({"../x": "0"})},
            {"../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        ),
        ({}, {"resid.0": {"dtype": "F32", "shape": [1], "data_offsets": [-100, 4]}}),
        ({}, {"resid.0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]}}),
        ({}, {"resid.0": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}),
        ({}, {"resid.0": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}),
        ({}, {"resid.0": "[" * 100}),
    ],
)
def test_headers_that_nobody_should_write_are_refused(
    tmp_path: Path, change: dict[str, object], entries: dict[str, object]
) -> None:
    store = ActivationStore(tmp_path / "store", model="m")
    path = tmp_path / "store" / store.write({"a": 1}, {"resid.0": torch.ones(1, 1)})
    with_header(path, change, entries)
    assert ActivationStore(tmp_path / "store", model="m").read(["a"], "resid.0") is None
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    "shard",
    ["../../secret.safetensors", "/etc/passwd", "m/../../x", "n/" + "0" * 24 + ".safetensors"],
)
def test_a_corpus_cannot_lead_out_of_its_model(tmp_path: Path, shard: str) -> None:
    (tmp_path / "m").mkdir()
    runs = {"tokens": [[shard, 0, 1]]}
    content = {"format": FORMAT, "model": "m", "model_name": "", "n_tokens": 1, "runs": runs}
    content["checksum"] = text_checksum(content)
    (tmp_path / "m" / "c.corpus.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="is not what was written"):
        open_corpus(tmp_path, "c")


def test_names_that_are_written_cannot_escape(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a fingerprint is needed"):
        ActivationStore(tmp_path, model="../other")
    store = ActivationStore(tmp_path, model="m")
    with pytest.raises(StoreError, match=r"'\.\./x' given"):
        store.write({"../x": 1}, {"resid.0": torch.ones(1, 1)})
    with pytest.raises(StoreError, match=r"'\.\./x'"):
        store.write({"a": 1}, {"../x": torch.ones(1, 1)})


@pytest.mark.parametrize("what", ["shard", "folder", "settings", "corpus"])
def test_symbolic_links_are_refused_by_name(tmp_path: Path, what: str) -> None:
    folder, outside = tmp_path / "store", tmp_path / "outside"
    store = ActivationStore(folder, model="m")
    path = folder / store.write({"a": 1}, {"resid.0": torch.ones(1, 1)})
    outside.mkdir()
    link = {
        "shard": path,
        "folder": path.parent,
        "settings": folder / "store.json",
        "corpus": path.parent / "c.corpus.json",
    }[what]
    target = outside / "target"
    if link.exists():
        link.rename(target)
    else:
        target.write_text("{}")
    link.symlink_to(target)
    with pytest.raises(StoreError, match=f"{link} is a symbolic link"):
        info(folder)
    if what != "corpus":
        with pytest.raises(StoreError, match=f"{link} is a symbolic link"):
            ActivationStore(folder, model="m").read(["b"], "resid.0")
    assert target.exists()


def test_a_store_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "scratch")
    store = ActivationStore(tmp_path / "store", model="m")
    store.write({"a": 1}, {"resid.0": torch.ones(1, 1)})
    assert len(list(shards(tmp_path / "store"))) == 1
