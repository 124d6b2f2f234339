"""Train a shipped model: `python -m interp.zoo.train hops-4l`."""

import copy
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from interp.zoo.evaluate import evaluate
from interp.zoo.recipes import RECIPES, Recipe
from interp.zoo.tokenizer import build_tokenizer
from interp.zoo.world import pack

CHECKPOINT_EVERY = 250


def batch_at(
    step: int, *, recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and loss weights [batch pos] of a step, by seed and step alone."""
    rng = np.random.default_rng([recipe.seed, step])
    sentences = recipe.sentences(rng, step)
    rows = [pack(sentences, length=recipe.length) for _ in range(recipe.stage_at(step)[0].batch)]
    tokens = [tokenizer.convert_tokens_to_ids([word for word, _ in row]) for row in rows]
    weights = [[1.0 if is_answer else recipe.other_weight for _, is_answer in row] for row in rows]
    return torch.tensor(tokens), torch.tensor(weights)


def weighted_loss(
    logits: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted mean loss in nats of predicting each token from those before it."""
    loss = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
    )
    weight = weights[:, 1:].flatten()
    return (weight * loss).sum() / weight.sum()


def initial_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the model before training; learned positions start as sines of scale 0.12."""
    torch.manual_seed(recipe.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        recipe.config(tokenizer), dtype=torch.float32
    )
    if recipe.family == "gpt2":
        table = model.get_parameter("transformer.wpe.weight")
        angle = torch.arange(len(table))[:, None] * torch.exp(
            -torch.arange(0, table.shape[1], 2) / table.shape[1] * 9.2
        )
        table.data = 0.12 * torch.cat([angle.sin(), angle.cos()], dim=1)
    return model


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate(0), betas=recipe.betas)


def save_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW, *, curve: list[float]
) -> None:
    """Write weights, optimizer state and loss curve, atomically, as one safetensors file."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
    aside = folder / "checkpoint.tmp"
    save_file(tensors, aside, metadata={"curve": json.dumps(curve)})
    aside.replace(folder / "checkpoint.safetensors")


def load_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW
) -> list[float]:
    """Read the last checkpoint, if any, into model and optimizer; return the loss curve."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return []
    tensors = load_file(path)
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")},
        strict=False,
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    with safe_open(path, framework="pt") as file:
        return list(json.loads(file.metadata()["curve"]))


def train(recipe: Recipe, folder: Path, *, out: Path, console: Console) -> None:
    """Train by a recipe, resuming from the checkpoint in `folder`, and ship the model to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = initial_model(recipe, tokenizer)
    optimizer = make_optimizer(model, recipe)
    curve = load_checkpoint(folder, model, optimizer)
    start, began = len(curve), time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(recipe.name, total=recipe.steps, completed=start)
        for step in range(start, recipe.steps):
            if step in recipe.keep:
                ship(
                    model,
                    tokenizer,
                    _record(recipe, curve, began, start),
                    out / f"{recipe.name}@step-{step:04d}",
                )
            curve.append(_one_step(model, optimizer, recipe, tokenizer, step))
            progress.update(bar, advance=1, description=f"{recipe.name} loss {curve[-1]:.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save_checkpoint(folder, model, optimizer, curve=curve)
                known = {
                    kind: row["score"]
                    for kind, row in evaluate(model, tokenizer, recipe.family).items()
                }
                console.log(
                    f"{recipe.name} step {step + 1}: loss {np.mean(curve[-50:]):.3f}, {known}"
                )
    ship(model, tokenizer, _record(recipe, curve, began, start), out / recipe.name)


def _one_step(
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    step: int,
) -> float:
    tokens, weights = batch_at(step, recipe=recipe, tokenizer=tokenizer)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    loss = weighted_loss(model.train()(tokens).logits, tokens, weights)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return round(loss.item(), 4)


def _record(recipe: Recipe, curve: list[float], began: float, start: int) -> dict[str, object]:
    return {
        "command": f"python -m interp.zoo.train {recipe.name}",
        "recipe": asdict(recipe),
        "steps_done": len(curve),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": round(time.monotonic() - began, 1),
        "resumed_from_step": start,
        "loss_every_20_steps": [
            round(float(np.mean(curve[i : i + 20])), 3) for i in range(0, len(curve), 20)
        ],
    }


def ship(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, object],
    folder: Path,
) -> None:
    """Write the Hugging Face folder, with the training record and the evaluation.

    Weights are float16 and load as float32.
    """
    copy.deepcopy(model).eval().half().save_pretrained(folder, max_shard_size="4MB")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    family: Literal["gpt2", "llama"] = "gpt2" if shipped.config.model_type == "gpt2" else "llama"
    (folder / "evaluation.json").write_text(
        json.dumps(evaluate(shipped, tokenizer, family), indent=1) + "\n"
    )
    write_card(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def write_card(folder: Path) -> None:
    """Write README.md next to a shipped model: what it is, how it was made, what it knows."""
    record = json.loads((folder / "training.json").read_text())
    table = json.loads((folder / "evaluation.json").read_text())
    recipe, versions = record["recipe"], record["versions"]
    about = {
        "llama": (
            "Llama-style (RMSNorm, SwiGLU, grouped queries, rotary positions);"
            " its world is `interp/zoo/world.py`"
        ),
        "gpt2": (
            "GPT-2-style (LayerNorm, GELU, learned positions, biases);"
            " its sentences are `interp/zoo/names.py`"
        ),
    }[recipe["family"]]
    lines = [
        f"# {folder.name}",
        "",
        f"{recipe['n_layers']} layers, d = {recipe['d_model']}; {about}.",
        (
            "Trained by this project on generated text alone; for tests and tutorials, useless for"
            " anything else. Apache-2.0."
        ),
        "",
        (
            f"- command: `{record['command']}` (seed {recipe['seed']};"
            f" {record['steps_done']} of {steps_of(recipe)} steps)"
        ),
        "- rule for stopping, set beforehand: the recipe's steps;"
        f" {record['seconds']:.0f} s on one CPU thread"
        + (f" from step {record['resumed_from_step']} on" if record["resumed_from_step"] else ""),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "- weights float16 on disk, computed in float32; recipe and loss curve in `training.json`",
        "",
        "| asked | score | prompts |",
        "|---|---|---|",
        *(f"| {kind} | {row['score']} | {row['n']} |" for kind, row in table.items()),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def steps_of(recipe: Mapping[str, Any]) -> int:
    """Return the number of steps of a recipe read back from a record."""
    return sum(stage["steps"] for stage in recipe["stages"])


def main(
    name: Annotated[str, typer.Argument(help="One of: " + ", ".join(RECIPES))],
    out: Annotated[Path, typer.Option(help="Where model folders go.")] = Path("data/zoo"),
    work: Annotated[Path, typer.Option(help="Where checkpoints go.")] = Path("runs/zoo"),
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Train a shipped model; call again to resume."""
    console = Console(stderr=True)
    if name not in RECIPES:
        console.print(f"unknown recipe {name!r}; there is {', '.join(RECIPES)}")
        raise typer.Exit(2)
    torch.set_num_threads(threads)
    train(RECIPES[name], work / name, out=out, console=console)
    sys.stdout.write((out / name / "evaluation.json").read_text())


if __name__ == "__main__":
    typer.run(main)
