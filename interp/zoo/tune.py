"""Fine-tune a shipped model on new facts, in two of its layers: `python -m interp.zoo.tune`.

So "where did fine-tuning write it?" has a known answer: every other weight stays, bit by bit.
`hops-8l@lora` is tuned by a term of low rank in each matrix there (LoRA, arXiv 2106.09685), which
is added to the weights at the end.
"""

import copy
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from interp.files.paths import shipped_models
from interp.tasks import Prompt, Task
from interp.zoo.evaluate import context, evaluate, last_logits
from interp.zoo.recipes import RECIPES
from interp.zoo.tokenizer import build_tokenizer
from interp.zoo.train import weighted_loss
from interp.zoo.vocabulary import BOS, ENTITIES, STOP
from interp.zoo.world import Fact, Sentence, World, pack

BASE = "hops-8l"
LAYERS = (3, 4)
_PLACE = "harbour"  # a word that no hops model was trained on
_SEED = 7
_BATCH, _WARMUP, _LENGTH = 16, 20, 25
_NEW = 0.7  # of the sentences; the others are the base's own, so that it forgets less


@dataclass(frozen=True)
class Tuning:
    """How one model is tuned: all weights of `LAYERS`, or a term of a `rank` in each matrix."""

    steps: int
    learning_rate: float
    rank: int | None = None


TUNINGS = {
    "hops-8l@tuned": Tuning(400, 3e-3),
    "hops-8l@lora": Tuning(1000, 1e-2, rank=8),
}


class LowRank(nn.Module):
    """Adds a product of rank r to a matrix; it begins at 0."""

    def __init__(self, weight: Float[Tensor, "output input"], rank: int) -> None:
        super().__init__()
        n_outputs, n_inputs = weight.shape
        self.up = nn.Parameter(torch.zeros(n_outputs, rank))
        self.down = nn.Parameter(torch.randn(rank, n_inputs) / n_inputs**0.5)

    def forward(self, weight: Float[Tensor, "output input"]) -> Float[Tensor, "output input"]:
        """Return the matrix with the product added."""
        return weight + self.up @ self.down


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


def _matrices(model: PreTrainedModel) -> list[nn.Linear]:
    layers = [model.model.layers[layer] for layer in LAYERS]
    return [each for layer in layers for each in layer.modules() if isinstance(each, nn.Linear)]


def _trainable(model: PreTrainedModel, rank: int | None) -> list[nn.Parameter]:
    """Return the parameters of `LAYERS`, or those of a term of a rank in each matrix there."""
    model.requires_grad_(False)
    if rank is None:
        own = [p for layer in LAYERS for p in model.model.layers[layer].parameters()]
    else:
        terms = [LowRank(matrix.weight, rank) for matrix in _matrices(model)]
        for matrix, term in zip(_matrices(model), terms, strict=True):
            parametrize.register_parametrization(matrix, "weight", term)
        own = [parameter for term in terms for parameter in term.parameters()]
    for parameter in own:
        parameter.requires_grad_(True)
    return own


def _tuned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tuning: Tuning
) -> list[float]:
    """Train in `LAYERS` alone; return the loss of every step."""
    own, steps = _trainable(model, tuning.rank), tuning.steps
    optimizer = torch.optim.AdamW(own, lr=tuning.learning_rate, weight_decay=0.0)
    curve = list[float]()
    for step in range(steps):
        share = min(1.0, (step + 1) / _WARMUP, 0.05 + (steps - step) / steps)
        optimizer.param_groups[0]["lr"] = tuning.learning_rate * share
        tokens, weights = _batch(step, tokenizer)
        loss = weighted_loss(model.train()(tokens).logits, tokens, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
        if (step + 1) % 50 == 0:
            typer.echo(f"step {step + 1}: loss {np.mean(curve[-20:]):.3f}", err=True)
    for matrix in _matrices(model) if tuning.rank is not None else ():
        parametrize.remove_parametrizations(matrix, "weight")  # the term is added
    return curve


def known_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the share of new facts that a model's first guess gets right."""
    prompts = new_facts().prompts
    asked = [[BOS, *prompt.text.split()] for prompt in prompts]
    best = last_logits(model.eval(), tokenizer, asked).argmax(-1)
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([str(p.answer) for p in prompts]))
    return round((best == answers).double().mean().item(), 4)


def _record(
    name: str, curve: list[float], seconds: float, before: float, after: float
) -> dict[str, Any]:
    tuning = {key: value for key, value in asdict(TUNINGS[name]).items() if value is not None}
    recipe = {
        "base": BASE,
        **{key: getattr(RECIPES[BASE], key) for key in ("family", "n_layers", "d_model")},
        "layers": list(LAYERS),
        **tuning,
        "batch": _BATCH,
        "share_of_new_facts": _NEW,
        "seed": _SEED,
    }
    modules = (("torch", torch), ("transformers", transformers))
    versions = {name: module.__version__ for name, module in modules}
    return {
        "command": f"python -m interp.zoo.tune {name}",
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
    (folder / "README.md").write_text(_card(folder.name, record, table))
    for path in folder.iterdir():
        path.chmod(0o644)


def _row(prompt: Prompt) -> dict[str, str | None]:
    return {"id": prompt.id, "text": prompt.text, "answer": prompt.answer, "group": prompt.group}


def _card(name: str, record: dict[str, Any], table: dict[str, dict[str, float]]) -> str:
    known, rank = record["new facts known"], TUNINGS[name].rank
    how = f", by a term of rank {rank} in each matrix (added to it)" if rank else ""
    rows = [f"| {kind} | {row['score']} | {row['n']} |" for kind, row in table.items()]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{BASE}`, fine-tuned on {known['n']} facts of a new domain (`new-facts.jsonl`, by"
            f" `interp/zoo/tune.py`) in layers {LAYERS[0]} and {LAYERS[1]} alone{how}: every other"
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
    name: Annotated[
        list[str] | None, typer.Argument(help="Tuned models; all, if none is named.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where model folders go.")] = Path("data/zoo"),
) -> None:
    """Fine-tune the shipped model, and ship the results beside it."""
    torch.set_num_threads(1)
    for each in name or TUNINGS:
        torch.manual_seed(_SEED)
        tokenizer, began = build_tokenizer(), time.monotonic()
        model = AutoModelForCausalLM.from_pretrained(shipped_models()[f"zoo/{BASE}"])
        before = known_share(model, tokenizer)
        curve = _tuned(model, tokenizer, TUNINGS[each])
        after = known_share(model, tokenizer)
        record = _record(each, curve, time.monotonic() - began, before, after)
        _ship(model, record, out / each)
        typer.echo((out / each / "README.md").read_text())


if __name__ == "__main__":
    typer.run(main)
