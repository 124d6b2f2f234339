"""Train a shipped model: `python -m interp.zoo.train hops-4l`."""

import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.zoo.evaluate import evaluate
from interp.zoo.recipes import RECIPES, Recipe
from interp.zoo.tokenizer import build_tokenizer
from interp.zoo.world import ENTITIES, RELATIONS, World

CHECKPOINT_EVERY = 250


def batch_at(step: int, *, world: World, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return the token ids [batch pos] of a step; a function of the seed and the step alone."""
    rng = np.random.default_rng([recipe.seed, step])
    rows = [world.packed(rng, length=recipe.length) for _ in range(recipe.batch)]
    return torch.tensor([tokenizer.convert_tokens_to_ids(row) for row in rows])


def answer_loss(
    logits: torch.Tensor, tokens: torch.Tensor, *, tokenizer: PreTrainedTokenizerFast, other_weight: float
) -> torch.Tensor:
    """Return the mean loss in nats, where an entity that follows a relation counts 1 and all else `other_weight`."""
    entities = torch.tensor(tokenizer.convert_tokens_to_ids(list(ENTITIES)))
    relations = torch.tensor(tokenizer.convert_tokens_to_ids(list(RELATIONS)))
    is_answer = torch.isin(tokens[:, 1:], entities) & torch.isin(tokens[:, :-1], relations)
    weight = torch.where(is_answer, 1.0, other_weight).flatten()
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return (weight * loss).sum() / weight.sum()


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)


def save_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, *, curve: list[float]) -> None:
    """Write weights, optimizer state and loss curve as one safetensors file, aside and then renamed."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
    aside = folder / "checkpoint.tmp"
    save_file(tensors, aside, metadata={"curve": json.dumps(curve)})
    aside.replace(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> list[float]:
    """Read the last checkpoint into model and optimizer and return the loss curve; empty if there is none."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return []
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, framework="pt") as file:
        return list(json.loads(file.metadata()["curve"]))


def train(
    recipe: Recipe, folder: Path, *, console: Console
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, object]]:
    """Train by a recipe, resuming from `folder`, and return model, tokenizer and the record of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    world, tokenizer = World(), build_tokenizer()
    model = AutoModelForCausalLM.from_config(recipe.config(tokenizer), dtype=torch.float32)
    optimizer = make_optimizer(model, recipe)
    curve = load_checkpoint(folder, model, optimizer)
    start, began = len(curve), time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(recipe.name, total=recipe.steps, completed=start)
        for step in range(start, recipe.steps):
            tokens = batch_at(step, world=world, recipe=recipe, tokenizer=tokenizer)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * recipe.rate(step)
            loss = answer_loss(model(tokens).logits, tokens, tokenizer=tokenizer, other_weight=recipe.other_weight)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            curve.append(round(loss.item(), 4))
            progress.update(bar, advance=1, description=f"{recipe.name} loss {curve[-1]:.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save_checkpoint(folder, model, optimizer, curve=curve)
                known = {kind: row["accuracy"] for kind, row in evaluate(model, tokenizer, world).items()}
                console.log(f"{recipe.name} step {step + 1}: loss {np.mean(curve[-50:]):.3f}, accuracy {known}")
    record = {
        "command": f"python -m interp.zoo.train {recipe.name}",
        "recipe": asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": round(time.monotonic() - began, 1),
        "resumed_from_step": start,
        "loss_every_10_steps": [round(float(np.mean(curve[i : i + 10])), 4) for i in range(0, len(curve), 10)],
    }
    return model.eval(), tokenizer, record


def ship(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, object], folder: Path) -> None:
    """Write the Hugging Face folder: float16 weights that load as float32, tokenizer, training record, evaluation."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    table = evaluate(shipped, tokenizer, World())
    (folder / "evaluation.json").write_text(json.dumps(table, indent=1) + "\n")


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
    model, tokenizer, record = train(RECIPES[name], work / name, console=console)
    ship(model, tokenizer, record, out / name)
    sys.stdout.write((out / name / "evaluation.json").read_text())


if __name__ == "__main__":
    typer.run(main)
