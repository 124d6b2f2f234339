"""What tests share: tiny random models, one torch thread, no network, one browser."""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from jaxtyping import install_import_hook

import interp

PACKAGE = Path(interp.__path__[0])


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# `make test-shapes` checks shapes in every call, where they are written; it takes twice as long
if os.environ.get("CHECK_SHAPES"):
    install_import_hook(
        [
            module_name(file)
            for file in sorted(PACKAGE.rglob("*.py"))
            if "from jaxtyping" in file.read_text("utf-8")
        ],
        "beartype.beartype",
    )

from interp.errors import ModelError
from interp.files.fetched import fetch
from interp.runs import record
from interp.runs.identity import _settings
from interp.tasks import Prompt, Task, fitting
from interp.tasks.encoding import NO_LIMITS, Limits
from tests.families import FAMILIES, tiny

torch.set_num_threads(1)
# a shell's job in the background ignores interruptions, and so would all that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)
_LARGE = 500  # prompts: of a shipped task, which is read once


@pytest.fixture(scope="session", autouse=True)
def _asked_once() -> Iterator[None]:
    """Ask once for a shipped task's hash, and which of its prompts a tokenizer can serve.

    Both are half of a small run.
    """
    ask, hash_of, known, hashes = fitting.misfits, record.hash_of_task, {}, {}

    def hash_of_task(task: Task) -> str:
        if len(task) < _LARGE:
            return hash_of(task)
        key = id(task.prompts), id(task.related), repr(_settings(task))
        if key not in hashes:
            hashes[key] = task, hash_of(task)
        return hashes[key][1]

    def misfits(
        tokenizer: Any, prompts: Sequence[Prompt], needs: Any, *, limits: Limits = NO_LIMITS
    ) -> list[str]:
        if len(prompts) < _LARGE or not getattr(tokenizer, "is_fast", False):
            return ask(tokenizer, prompts, needs, limits=limits)
        key = id(prompts), needs, limits, repr(tokenizer), tokenizer.backend_tokenizer.to_str()
        if key not in known:  # with the prompts, whose id is theirs as long as they are kept
            known[key] = prompts, ask(tokenizer, prompts, needs, limits=limits)
        return list(known[key][1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "misfits", misfits)
        patch.setattr(record, "hash_of_task", hash_of_task)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same tensors in every run: a rare draw would fail a test that is right."""
    torch.manual_seed(0)


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
