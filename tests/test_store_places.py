"""Stores behave alike: a local folder, memory, a file system without atomic writes, S3."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from interp import Site
from interp.capture import capture
from interp.errors import StoreError
from interp.models import Model, load_model
from interp.store import (
    ActivationStore,
    Settings,
    configure,
    info,
    open_corpus,
    prune,
    shards,
    to_numpy,
    verify,
)
from interp.store.files import Files
from tests.families import tiny

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start moto's server and return a bucket in it."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    pytest.importorskip("flask")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://{host}:{port}",
        "key": "x",
        "secret": "y",
        "client_kwargs": {"region_name": "eu-west-1"},
    }
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    fsspec.config.conf.clear()
    fsspec.config.conf.update(before)
    server.stop()


@pytest.fixture(params=["local", "memory", "not atomic", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "local":
            return str(tmp_path / "store")
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
        case "not atomic":
            return f"dir::file://{tmp_path}/store"
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


def test_what_is_written_is_read(url: str) -> None:
    store = ActivationStore(url, model="m", name="some-model")
    assert store.read(["a"], "resid.0") is None
    values = torch.randn(5, 3).to(torch.bfloat16)
    store.write({"a": 2, "b": 3}, {"resid.0": values})
    found = ActivationStore(url, model="m").read(["b", "a"], "resid.0")
    assert found is not None
    assert torch.equal(torch.cat(found), torch.cat([values[2:], values[:2]]))
    assert verify(url) == (1, [])
    assert [(m.name, m.prompts, m.tokens) for m in info(url).models] == [("some-model", 2, 5)]


def test_a_long_header_takes_a_second_read(url: str) -> None:
    store = ActivationStore(url, model="m")
    store.write({f"{i:032x}": 1 for i in range(3000)}, {"resid.0": torch.arange(3000.0)[:, None]})
    (found,) = ActivationStore(url, model="m").read([f"{2999:032x}"], "resid.0") or []
    assert found.item() == 2999


def test_a_corpus_is_captured_and_resumed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    store = ActivationStore(url, model=model.fingerprint, name=model.name)
    rows = [
        torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in range(4, 14)
    ]
    capture(model, rows, sites=[Site("resid_post", 1)], name="few", store=store)
    again = ActivationStore(url, model=model.fingerprint, name=model.name)
    monkeypatch.setattr(Model, "forward", None)  # nothing is left to compute
    capture(model, rows, sites=[Site("resid_post", 1)], name="few", store=again)
    corpus = open_corpus(url, "few")
    assert corpus.tokens(3).tolist() == rows[3].tolist()
    assert corpus.read(3, Site("resid_post", 1), start=-2).shape == (2, model.d_model)


def test_damage_is_found_and_recovered_from(url: str) -> None:
    store = ActivationStore(url, model="m")
    shard = store.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    content = store.files.read(shard)
    store.files.publish(shard, content[:-1] + bytes([content[-1] ^ 1]))
    assert len(verify(url)[1]) == 1
    assert ActivationStore(url, model="m").read(["a"], "resid.0") is None
    store.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    assert verify(url) == (1, [])


def test_a_truncated_shard_is_found(url: str) -> None:
    store = ActivationStore(url, model="m")
    shard = store.write({"a": 2}, {"resid.0": torch.ones(2, 3)})
    store.files.publish(shard, store.files.read(shard)[:-5])
    assert ActivationStore(url, model="m").read(["a"], "resid.0") is None


def test_prune_and_quota(url: str) -> None:
    store = ActivationStore(url, model="m", name="first")
    for key in "abc":
        store.write({key: 100}, {"resid.0": torch.randn(100, 3)})
        time.sleep(0.01)
    ActivationStore(url, model="n", name="second").write({"a": 1}, {"resid.0": torch.ones(1, 3)})
    size = info(url).models[0].bytes // 3
    assert len(prune(url, older_than=3600.0)) == 0
    assert len(prune(url, model="first", max_bytes=2 * size, dry_run=True)) == 1
    assert len(prune(url, model="first", max_bytes=2 * size)) == 1
    assert [m.shards for m in info(url).models] == [2, 1]
    assert len(prune(url, model="second")) == 1
    configure(url, Settings(quota=3 * size))
    limited = ActivationStore(url, model="m")
    for key in "def":
        limited.write({key: 100}, {"resid.0": torch.randn(100, 3)})
    assert info(url).bytes <= 3 * size
    with pytest.raises(StoreError, match="nothing to prune by"):
        prune(url)


def test_a_model_keeps_its_activations_at_a_url(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    model = load_model(tiny("llama").module, store=url)
    rows = [[3, 4, 5], [6, 7, 8, 9]]
    corpus = capture(model, rows, sites=[Site("attn_out", 0)], name="c")
    assert to_numpy(corpus, tmp_path)["attn_out.0"].exists()
    assert [m.shards for m in info(url).models] == [1]


def test_no_store_is_one_line(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "none"), f"memory://{uuid.uuid4().hex}"):
        with pytest.raises(StoreError, match="no store in"):
            info(missing)
    with pytest.raises(StoreError, match="nosuch"):
        Files("nosuch://x")


def test_two_processes_write_one_store(tmp_path: Path) -> None:
    program = """
import sys, torch
from interp.store import ActivationStore
store = ActivationStore(sys.argv[1], model="m")
for i in range(40):
    torch.manual_seed(i)
    store.write({f"k{i}": 5}, {"resid.0": torch.randn(5, 3)})
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
        for _ in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert len(list(shards(tmp_path))) == 40
    assert verify(tmp_path) == (40, [])
