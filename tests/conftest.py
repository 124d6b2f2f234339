"""Tiny random models of several families, saved nowhere; one torch thread; no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("interp", "beartype.beartype")

from tests.families import FAMILIES, tiny

torch.set_num_threads(1)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str):
    return tiny(family)
