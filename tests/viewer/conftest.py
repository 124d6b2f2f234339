"""Run folders to look at: real ones of small models, and pages without a browser."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from interp.runs import Study, execute

APP = Path(__file__).parents[2] / "apps" / "viewer" / "app.py"
HOPS = {
    "residual_contribution": {}, "layer_skip": {}, "logit_lens": {}, "void_detection": {"max_new_tokens": 3},
    "back_patching": {"controls": ["random"], "known_only": False}, "residual_erasure": {}, "depth_map": {},
    "block_influence": {},
}  # fmt: skip
IOI = {"relevance_patching": {}, "circuit_discovery": {"fractions": [0.01, 0.1, 1.0]}}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two finished runs, not to be changed."""
    root = tmp_path_factory.mktemp("viewer") / "runs"
    execute(Study(("zoo/hops-4l",), ("two-hop",), HOPS, n=16), root / "hops")
    execute(Study(("zoo/names-6l",), ("ioi",), IOI, n=8), root / "ioi")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Return what draws a page of a folder of runs, as it is for an address."""
    st.cache_resource.clear()

    def draw(folder: Path, page: str, **params: object) -> AppTest:
        monkeypatch.setenv("INTERP_VIEWER_ROOT", str(folder))
        at = AppTest.from_file(str(APP), default_timeout=60)
        for name, value in params.items():
            at.query_params[name] = str(value)
        return at.switch_page(f"views/{page}.py").run() if page != "runs" else at.run()

    return draw
