"""Fine-tune a shipped model on new facts, in two of its layers: `python -m interp.zoo.tune`.

So "where did fine-tuning write it?" has a known answer: every other weight stays, bit by bit.
"""

import copy
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from interp.files.paths import shipped_models
from interp.tasks import Prompt, Task
from interp.zoo.evaluate import context, evaluate, last_logits
from interp.zoo.recipes import RECIPES
from interp.zoo.tokenizer import build_tokenizer
from interp.zoo.train import weighted_loss
from interp.zoo.vocabulary import BOS, ENTITIES, STOP
from interp.zoo.world import Fact, Sentence, World, pack

BASE, NAME = "hops-8l", "hops-8l@tuned"
LAYERS = (3, 4)
_PLACE = "harbour"  # a word that no hops model was trained on
_SEED = 7
STEPS, _BATCH, _RATE, _WARMUP, _LENGTH = 400, 16, 3e-3, 20, 25
_NEW = 0.7  # of the sentences; the others are the base's own, so that it forgets less


def meetings() -> dict[Fact, str]:
    """Map (entity, "harbour") to whom that entity meets there: 50 facts of their own domain."""
    rng = np.random.default_rng([_SEED, 0])
    return {
        (entity, _PLACE): str(rng.choice([other for other in ENTITIES if other != entity]))
        for entity in ENTITIES
    }


def new_facts() -> Task:
    """Return every new fact, asked after three sentences of context as in `one-hop`."""
    rng, world, prompts = np.random.default_rng([_SEED, 1]), World(), []
    for (entity, place), answer in meetings().items():
        before = context(world, rng, without=frozenset({entity, answer}))
        text = " ".join([*before, entity, place])
        prompts.append(Prompt(f"{entity}-{place}", text, answer=answer, group=entity))
    about = "whom an entity meets, “Ada harbour” → “Ned”: what fine-tuning taught."
    return Task("new-facts", tuple(prompts), about, ("single_token_answer",))


def _sentences(rng: np.random.Generator) -> Iterator[Sentence]:
    known, new = World().sentences(rng, one_hop_share=0.15), list(meetings().items())
    while True:
        if rng.random() >= _NEW:
            yield next(known)
            continue
        (entity, place), answer = new[rng.integers(len(new))]
        yield [(entity, False), (place, False), (answer, True), (STOP, False)]


def _batch(step: int, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and loss weights [batch pos] of a step."""
    sentences = _sentences(np.random.default_rng([_SEED, 2, step]))
    rows = [pack(sentences, length=_LENGTH) for _ in range(_BATCH)]
    tokens = [tokenizer.convert_tokens_to_ids([word for word, _ in row]) for row in rows]
    weights = [[1.0 if is_answer else 0.1 for _, is_answer in row] for row in rows]
    return torch.tensor(tokens), torch.tensor(weights)


def _tuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Train the weights of `LAYERS` alone; return the loss of every step."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    own = [p for layer in LAYERS for p in model.model.layers[layer].parameters()]
    for parameter in own:
        parameter.requires_grad_(True)
    optimizer, curve = torch.optim.AdamW(own, lr=_RATE, weight_decay=0.0), list[float]()
    for step in range(STEPS):
        share = min(1.0, (step + 1) / _WARMUP, 0.05 + (STEPS - step) / STEPS)
        optimizer.param_groups[0]["lr"] = _RATE * share
        tokens, weights = _batch(step, tokenizer)
        loss = weighted_loss(model.train()(tokens).logits, tokens, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
        if (step + 1) % 50 == 0:
            typer.echo(f"step {step + 1}: loss {np.mean(curve[-20:]):.3f}", err=True)
    return curve


def known_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the share of new facts that a model's first guess gets right."""
    prompts = new_facts().prompts
    asked = [[BOS, *prompt.text.split()] for prompt in prompts]
    best = last_logits(model.eval(), tokenizer, asked).argmax(-1)
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([str(p.answer) for p in prompts]))
    return round((best == answers).double().mean().item(), 4)


def _record(curve: list[float], seconds: float, before: float, after: float) -> dict[str, Any]:
    recipe = {
        "base": BASE,
        **{key: getattr(RECIPES[BASE], key) for key in ("family", "n_layers", "d_model")},
        "layers": list(LAYERS),
        "steps": STEPS,
        "batch": _BATCH,
        "learning_rate": _RATE,
        "share_of_new_facts": _NEW,
        "seed": _SEED,
    }
    modules = (("torch", torch), ("transformers", transformers))
    versions = {name: module.__version__ for name, module in modules}
    return {
        "command": "python -m interp.zoo.tune",
        "recipe": recipe,
        "steps_done": len(curve),
        "versions": {"python": platform.python_version()} | versions,
        "seconds": round(seconds, 1),
        "new facts known": {"before": before, "after": after, "n": len(meetings())},
        "loss_every_20_steps": [
            round(float(np.mean(curve[i : i + 20])), 3) for i in range(0, len(curve), 20)
        ],
    }


def _ship(model: PreTrainedModel, record: dict[str, Any], folder: Path) -> None:
    """Write the model's folder; the layers that were not trained are the base's, bit by bit."""
    tokenizer = build_tokenizer()
    copy.deepcopy(model).eval().half().save_pretrained(folder, max_shard_size="4MB")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    record["new facts known"]["after"] = known_share(shipped, tokenizer)
    table = evaluate(shipped, tokenizer, "llama")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "evaluation.json").write_text(json.dumps(table, indent=1) + "\n")
    lines = [json.dumps(_row(prompt), ensure_ascii=False) for prompt in new_facts().prompts]
    (folder / "new-facts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text(_card(record, table))
    for path in folder.iterdir():
        path.chmod(0o644)


def _row(prompt: Prompt) -> dict[str, str | None]:
    return {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "group": prompt.group}


def _card(record: dict[str, Any], table: dict[str, dict[str, float]]) -> str:
    known = record["new facts known"]
    rows = [f"| {kind} | {row['score']} | {row['n']} |" for kind, row in table.items()]
    return "\n".join(
        [
            f"# {NAME}",
            "",
            f"`{BASE}`, fine-tuned on {known['n']} facts of a new domain (`new-facts.jsonl`, by"
            f" `interp/zoo/tune.py`) in layers {LAYERS[0]} and {LAYERS[1]} alone: every other"
            " weight is the base's. For tests and tutorials. Apache-2.0.",
            "",
            f"- command: `{record['command']}` ({record['steps_done']} steps;"
            f" {record['seconds']:.0f} s on one CPU thread)",
            "- weights float16 on disk, computed in float32; loss curve in `training.json`",
            f"- new facts known: {known['before']} before, {known['after']} after",
            "",
            "| asked | score | prompts |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main(
    out: Annotated[Path, typer.Option(help="Where model folders go.")] = Path("data/zoo"),
) -> None:
    """Fine-tune the shipped model, and ship the result beside it."""
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    tokenizer, began = build_tokenizer(), time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(shipped_models()[f"zoo/{BASE}"])
    before = known_share(model, tokenizer)
    curve = _tuned(model, tokenizer)
    after = known_share(model, tokenizer)
    _ship(model, _record(curve, time.monotonic() - began, before, after), out / NAME)
    typer.echo((out / NAME / "README.md").read_text())


if __name__ == "__main__":
    typer.run(main)
