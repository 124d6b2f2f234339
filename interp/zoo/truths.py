"""Measured truths of the shipped models: `python -m interp.zoo.truths` writes truths.json."""

import json
import re
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from interp.files.paths import shipped_models
from interp.interventions import Skip
from interp.models import Model, load_model
from interp.sites import Site
from interp.tasks import Task, load_task
from interp.tasks.batch import TokenBatch

N_PROMPTS = 96
Truths = dict[str, Any]


def truths_of(model: Model) -> Truths:
    """Return a model's truths: heads [layer][head] of a names model, layers of a hops model."""
    if model.module.config.model_type == "gpt2":
        names = {
            name: load_task(name, n=N_PROMPTS) for name in ("ioi", "induction", "greater-than")
        }
        return {
            "attention, last token to indirect object": attention_to_answer(model, names["ioi"]),
            "attention, last token to second word of the asked pair": attention_to_answer(
                model, names["induction"]
            ),
            "attention, last token to position 0": attention_to_start(model, names["ioi"]),
            "solved without a layer": {
                name: solved_without_layers(model, task) for name, task in names.items()
            },
        }
    task = load_task("two-hop")
    sets = {kind: task.tagged(set=kind).take(N_PROMPTS) for kind in ("unseen", "first-held-out")}
    return {
        "bridge readable at the first relation": {
            k: readable(model, t, "bridge") for k, t in sets.items()
        },
        "answer readable at the last token": {
            k: readable(model, t, "answer") for k, t in sets.items()
        },
        "solved without a layer": {"unseen": solved_without_layers(model, sets["unseen"])},
    }


def _batches(model: Model, task: Task) -> list[TokenBatch]:
    return [model.tokenize(shard) for shard in model.shards(task)]


def _mean(parts: list[Tensor]) -> list[Any]:
    """Return the mean over prompts, the first axis of every part, as rounded numbers."""
    numbers: list[Any] = (torch.cat(parts).double().mean(0) * 1000).round().div(1000).tolist()
    return numbers


def _last_rows(model: Model, batch: TokenBatch) -> Tensor:
    """Return attention patterns [batch layer head key] of the last token."""
    sites = [Site("pattern", layer) for layer in range(model.n_layers)]
    captured = model.forward(batch, capture=sites).activations
    return torch.stack([captured[site][:, :, -1].float() for site in sites], dim=1)


@torch.no_grad()
def attention_to_answer(model: Model, task: Task) -> list[list[float]]:
    """Return mean attention [layer head] from the last token to where the answer stood first."""
    parts = []
    for batch in _batches(model, task):
        assert batch.answer is not None
        where = (batch.tokens == batch.answer[:, None]).int().argmax(1)
        rows = _last_rows(model, batch)
        parts.append(rows[torch.arange(len(where)), :, :, where])
    return _mean(parts)


@torch.no_grad()
def attention_to_start(model: Model, task: Task) -> list[list[float]]:
    """Return attention [layer head] from the last token to position 0, mean over prompts."""
    return _mean([_last_rows(model, batch)[..., 0] for batch in _batches(model, task)])


@torch.no_grad()
def readable(model: Model, task: Task, what: str) -> list[float]:
    """Return, after 0 to L layers, how often the lens's first guess is the bridge or answer."""
    parts = []
    for batch in _batches(model, task):
        names = [getattr(prompt, what) for prompt in batch.prompts]
        ids = torch.tensor(model.tokenizer.convert_tokens_to_ids(names))
        where = batch.subject if what == "bridge" else batch.last
        recording = model.record(batch)
        rows = [
            recording.resid(layer)[torch.arange(len(ids)), where]
            for layer in range(model.n_layers + 1)
        ]
        parts.append(
            torch.stack([(model.unembed(row).argmax(-1) == ids).float() for row in rows], dim=1)
        )
    return _mean(parts)


@torch.no_grad()
def solved_without_layers(model: Model, task: Task) -> dict[str, Any]:
    """Return how often the first guess is right: with all layers, and without each."""

    def solved(plan: list[Skip]) -> float:
        right: list[bool] = []
        for batch in _batches(model, task):
            logits = model.forward(batch, plan=plan).logits[
                torch.arange(len(batch.prompts)), batch.last
            ]
            guesses = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
            right += [
                guess in (p.answer, *p.aliases)
                for guess, p in zip(guesses, batch.prompts, strict=True)
            ]
        return round(sum(right) / len(right), 3)

    return {
        "none left out": solved([]),
        "without layer": [solved([Skip(layer)]) for layer in range(model.n_layers)],
    }


def main(
    name: Annotated[
        list[str] | None, typer.Argument(help="Shipped models; all, if none is named.")
    ] = None,
) -> None:
    """Measure shipped models and write truths.json next to their weights."""
    for model in name or [
        name for name in shipped_models() if not re.search("@(step|tuned|lora)", name)
    ]:
        text = json.dumps(truths_of(load_model(model)), indent=1)
        (shipped_models()[model] / "truths.json").write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
