"""Run folders to look at: real ones of small models, and pages without a browser."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import streamlit as st
import torch
from interp_viewer import pane
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest
from transformers import GPT2Config, GPT2LMHeadModel

from interp.runs import Study, execute
from tests.tokenizers import byte_level

APP = Path(__file__).parents[2] / "apps" / "viewer" / "app.py"
HOPS = {
    "residual_contribution": {},
    "layer_skip": {},
    "logit_lens": {},
    "void_detection": {"max_new_tokens": 3},
    "back_patching": {"controls": ["random"], "known_only": False},
    "residual_erasure": {},
    "depth_map": {"control": "none", "continued": True, "every": 2},
    "block_influence": {},
    "checkpoint_stitch": {"against": "zoo/hops-4l@bits-2", "maps": ["none"], "draws": 2},
    "path_search": {"n_simulations": 6},
}
IOI = {
    "relevance_patching": {},
    "circuit_discovery": {"fractions": [0.01, 0.1, 1.0]},
    "head_patterns": {"kept": 3},
    "feature_patching": {"dictionaries": ["names-6l/resid_pre.3"], "sizes": [1, 3], "top_k": 3},
}
SMALL = {"residual_contribution": {}, "logit_lens": {}, "void_detection": {"max_new_tokens": 2}}
WITH_THE_FIRST = {"first_position": "included"}  # of one token there is no other
ONE = SMALL | dict.fromkeys(("residual_contribution", "logit_lens"), WITH_THE_FIRST)
NODES = {"relevance_patching": {"methods": ["attribution"], "nodes": ["attn_out"]}}
LONG = SMALL | NODES | {"layer_skip": {}}
DEEP = {
    **LONG, "head_patterns": {"repeated": 2},
    "depth_map": {"method": "cka", "control": "none"}, "residual_erasure": {"scopes": ["position"]},
    "back_patching": {"controls": [], "known_only": False, "position": "last"},
}  # fmt: skip
GRADIENTS = {"integrated_gradients": {"nodes": "published", "max_nodes": 2}}
# layers, tokens, prompts, analyses
SIZES = {
    "one": (2, 1, 8, ONE | NODES),
    "long": (2, 800, 2, LONG | GRADIENTS),
    "deep": (80, 4, 8, DEEP),
}


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `__main__` back, which AppTest replaces: new processes would run its script."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(scope="session", autouse=True)
def _installed_once() -> Iterator[None]:
    """Look through installed packages once; for every AppTest it takes as long as a page."""
    with pytest.MonkeyPatch.context() as patch:
        scan = cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two finished runs, not to be changed."""
    root = tmp_path_factory.mktemp("viewer") / "runs"
    execute(Study(("zoo/hops-4l",), ("two-hop",), HOPS, n=16), root / "hops")
    execute(Study(("zoo/names-6l",), ("ioi",), IOI, n=8), root / "ioi")
    return root


@pytest.fixture(scope="session")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs of prompts of one token, of 800 tokens, and of a model of 80 layers, not to be
    changed.
    """
    root = tmp_path_factory.mktemp("sizes")
    for name, (n_layers, n_tokens, n_prompts, analyses) in SIZES.items():
        model, task = root / "models" / name, root / f"{name}.jsonl"
        tokenizer = byte_level(["a b c d e f g h i"], vocabulary=280)
        tokenizer.save_pretrained(model)
        torch.manual_seed(0)
        size = {"n_embd": 8, "n_layer": n_layers, "n_head": 2, "n_positions": 2048}
        GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)
        ).save_pretrained(model)
        rest = " b" * (n_tokens - 1)
        rows = [
            {"text": f"{word}{rest}", "corrupted": f"c{rest}", "answer": " d", "wrong": " e"}
            for word in "abdefghi"[:n_prompts]
        ]
        task.write_text(
            "".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows))
        )
        execute(Study((str(model),), (str(task),), analyses), root / "runs" / name)
    return root / "runs"


def drawn(page: str) -> None:
    """Draw a page, in the process of the test."""
    from interp_viewer.menu import entries

    entries()[page].draw()


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return what draws a page of a folder of runs, as it is for an address."""
    st.cache_resource.clear()
    monkeypatch.setattr(pane, "HEAD_START", {"first": 0.0, "later": 0.0})

    def draw(folder: Path, page: str, **params: object) -> AppTest:
        monkeypatch.setenv("INTERP_VIEWER_ROOT", str(folder))
        at = (
            AppTest.from_file(str(APP), default_timeout=60)
            if page == "runs"  # the one that the app opens
            else AppTest.from_function(drawn, args=(page,), default_timeout=60)
        )
        for name, value in params.items():
            at.query_params[name] = str(value)
        return at.run()

    return draw
