"""Train small sparse autoencoders: `python scripts/train_dictionary.py zoo/names-6l SITE ...`.

ReLU features, by Adam on |x - x̂|² + λ Σ f |W_dec| (Templeton et al., 2024), from a store's shuffled
tokens. Models that are not shipped need `--texts`: tasks (both twins), or text files (paragraphs).
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

import interp
from interp.capture import capture
from interp.features import Dictionary, load_dictionary, save_dictionary
from interp.files.paths import data_folder
from interp.sites import Site
from interp.store import ActivationStore, Corpus, TokenVectors
from scripts.dictionary_texts import encoded, rows, split

BATCH, LEARNING_RATE, WARM_UP = 512, 2e-3, 0.1
MASSIVE = 10  # times the median norm: tokens that take all of a squared error


def usual(x: Tensor) -> Tensor:
    """Return activations [token d_model] but the massive ones, mostly of first tokens."""
    norms = x.norm(dim=1)
    return x[norms < MASSIVE * norms.median()]


def batches(corpus: Corpus, site: Site, *, seed: int, n_steps: int) -> Iterator[Tensor]:
    """Yield shuffled activations [batch d_model] in fp32, epoch after epoch."""
    while n_steps > 0:
        seed += 1
        for batch in TokenVectors(corpus, [site], batch_size=BATCH, seed=seed):
            if (n_steps := n_steps - 1) >= 0:
                yield usual(batch[str(site)].float())


def train(corpus: Corpus, site: Site, *, n_features: int, l1: float, n_steps: int, seed: int):
    """Return a dictionary and its last loss; inputs are scaled to a mean norm of √d_model."""
    first = next(batches(corpus, site, seed=seed, n_steps=1))
    scale, d = first.shape[1] ** 0.5 / first.norm(dim=1).mean(), first.shape[1]
    directions = torch.randn(n_features, d, generator=torch.Generator().manual_seed(seed))
    w_dec = (0.1 * directions / directions.norm(dim=1, keepdim=True)).requires_grad_()
    w_enc = (10 * w_dec.detach().T).clone().requires_grad_()
    b_enc = torch.zeros(n_features, requires_grad=True)
    b_dec = (scale * first.mean(0)).requires_grad_()
    optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=LEARNING_RATE)
    loss = torch.zeros(())
    for step, batch in enumerate(batches(corpus, site, seed=seed, n_steps=n_steps)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 5 * (1 - step / n_steps))
        x = scale * batch
        features = ((x - b_dec) @ w_enc + b_enc).relu()
        error = (x - features @ w_dec - b_dec).square().sum(1).mean()
        sparsity = (features @ w_dec.norm(dim=1)).mean()
        loss = error + l1 * min(1.0, step / (WARM_UP * n_steps)) * sparsity
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    enc, b, dec, centre = (weight.detach() for weight in (w_enc, b_enc, w_dec, b_dec))
    norms = dec.norm(dim=1)  # directions of norm 1, so that activations have the stream's unit
    b = (b - centre @ enc) * norms / scale
    tensors = (enc * norms, b, dec / norms[:, None], centre / scale)
    return Dictionary(str(site), site, site, *tensors), loss.item()


@torch.no_grad()
def reached(dictionary: Dictionary, corpus: Corpus) -> dict[str, float]:
    """Return explained variance, L0, and the share of features that are active at all."""
    x = usual(torch.cat([piece.float() for piece in corpus.column(dictionary.reads)]))
    features = dictionary.encode(x)
    error = (x - dictionary.decode(features)).square().sum() / (x - x.mean(0)).square().sum()
    is_active = features > 0
    numbers = (1 - error, is_active.sum(1).float().mean(), is_active.any(0).float().mean())
    return dict(zip(("explained_variance", "l0", "alive"), map(float, numbers), strict=True))


def main(
    model: str,
    sites: list[str],
    n_features: int = 768,
    l1: float = 0.4,
    n_tokens: int = 200_000,
    n_steps: int = 2000,
    seed: int = 0,
    out: str = "",
    texts: Annotated[list[str], typer.Option()] = [],  # noqa: B006
) -> None:
    """Train a dictionary for each site and write it under data/dictionaries, or `out`."""
    read, every = interp.load_model(model), [Site.named(site) for site in sites]
    folder = Path(out) if out else data_folder() / "dictionaries" / Path(model).name
    how = {"n_features": n_features, "l1": l1, "n_steps": n_steps, "seed": seed}
    with tempfile.TemporaryDirectory() as kept:
        store = ActivationStore(kept, model=read.fingerprint, name=read.name)
        if texts:
            known, new = (encoded(read, each, n_tokens) for each in split(texts, seed=seed))
        else:
            known, new = rows(read, n_tokens, seed=seed), rows(read, n_tokens // 10, seed=seed + 1)
        corpus = capture(read, known, sites=every, name="texts", store=store)
        held_out = capture(read, new, sites=every, name="new", store=store)
        for site in every:
            dictionary, loss = train(corpus, site, **how)
            where = folder / f"{site.kind}.{site.layer}"
            save_dictionary(dictionary, where, model=read.name)
            about = how | {"n_tokens": corpus.n_tokens, "loss": loss}
            about |= reached(load_dictionary(where), held_out)
            (where / "training.json").write_text(json.dumps(about, indent=1) + "\n")
            typer.echo(f"{where}: {about}")


if __name__ == "__main__":
    typer.run(main)
