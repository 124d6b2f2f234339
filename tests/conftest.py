"""What tests share: tiny random models, one torch thread, no network, one browser."""

import os
import pkgutil
import shutil
from collections.abc import Iterator
from typing import Any

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
def browser() -> Iterator[Any]:
    """Return one Chromium for all tests; a test opens a context of its own in it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the real model's name, fetched if need be; skip where it cannot be downloaded."""
    name = "smollm2-135m"
    try:
        fetch(name)
    except ModelError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    return name
