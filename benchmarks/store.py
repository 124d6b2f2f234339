"""Keeping and reading a clean pass, against the forward pass and plain files of the same bytes."""

import dataclasses
import itertools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from benchmarks.harness import Row, compare, random_batch, random_llama
from interp.files.whole import write_atomically
from interp.sites import Site


@torch.no_grad()
def run() -> dict[str, Row]:
    """Compare a kept clean pass with a forward and a raw write, and reading with running."""
    seeds = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        model = dataclasses.replace(
            random_llama(n_layers=12, d_model=384), store_folder=Path(folder)
        )
        batch = random_batch(model, batch=8, n_pos=64)
        model.record(batch).resid(0)

        def keep() -> None:
            model.record(random_batch(model, batch=8, n_pos=64, seed=next(seeds) + 1)).resid(0)

        def raw() -> None:
            model.logits(random_batch(model, batch=8, n_pos=64, seed=next(seeds)))
            shape = (3 * model.n_layers + 1, *batch.tokens.shape, model.d_model)
            write_atomically(Path(folder) / "raw", save({"x": torch.zeros(shape)}))

        def read() -> None:
            recording = model.record(batch)
            for layer in range(model.n_layers):
                recording.clean(Site("resid_pre", layer))

        keeping = compare(keep, raw) | {"bound": 1.0, "goal": 1.25}
        reading = compare(read, lambda: model.logits(batch))
    size = "L = 12, d = 384, batch 8, T = 64"
    return {
        f"keep a clean pass / forward and raw write, {size}": keeping,
        f"read all residuals / forward, {size}": reading,
    }
