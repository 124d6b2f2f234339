"""Multiple choice scored as evaluation harnesses do: by each option's likelihood."""

import random
from dataclasses import replace

import pandas as pd
import torch

from interp.errors import TaskError
from interp.models import Model
from interp.tasks import Prompt, Task
from interp.tasks.chat import in_template


@torch.no_grad()
def score_choices(model: Model, task: Task) -> pd.DataFrame:
    """Return one row per prompt and option.

    `log_likelihood` is the sum over the option's tokens in nats, `per_byte` the same divided by the
    option's length in UTF-8 bytes; `chosen` and `chosen_per_byte` mark the best option by either,
    `is_answer` the right one, so that `frame.query("is_answer").chosen.mean()` is the accuracy.
    What a user says (`task.chat`) is put into the model's chat template, and options are what the
    assistant says. Raises TaskError, naming the prompt, where there is no choice.
    """
    task = in_template(model.tokenizer, task) if task.chat else task
    asked = [option for prompt in task.prompts for option in _options(prompt)]
    scores: dict[str, float] = {}
    for shard in model.shards(Task(task.name, tuple(asked))):
        scores |= dict(
            zip([prompt.id for prompt in shard], _log_likelihoods(model, shard), strict=True)
        )
    rows = [
        {
            "prompt": option.tags["prompt"],
            "option": option.answer,
            "log_likelihood": scores[option.id],
            "per_byte": scores[option.id] / max(1, len((option.answer or "").encode())),
            "is_answer": option.tags["is_answer"] == "yes",
        }
        for option in asked
    ]
    frame = pd.DataFrame(rows)
    for column, chosen in (("log_likelihood", "chosen"), ("per_byte", "chosen_per_byte")):
        best = frame.groupby("prompt", sort=False)[column].idxmax()
        frame[chosen] = frame.index.isin(best)
    return frame


def is_choice(prompt: Prompt) -> bool:
    """Tell whether a prompt has at least two options, one of which is the answer."""
    return len(prompt.choices) > 1 and prompt.option is not None


def shuffled(prompt: Prompt, *, seed: int = 0) -> tuple[str, ...]:
    """Return a prompt's options in the order of `option_order`."""
    return tuple(prompt.choices[i] for i in option_order(prompt, seed=seed))


def option_order(prompt: Prompt, *, seed: int = 0) -> tuple[int, ...]:
    """Return the order of a prompt's options, drawn by its id and the seed so that ties are fair.

    Raises TaskError, naming the prompt, where there is no choice.
    """
    _require_choice(prompt)
    return tuple(
        random.Random(f"{seed}:{prompt.id}").sample(
            range(len(prompt.choices)), k=len(prompt.choices)
        )
    )


def _require_choice(prompt: Prompt) -> None:
    if not is_choice(prompt):
        raise TaskError(
            f"prompt {prompt.id!r} has {len(prompt.choices)} choices and the answer"
            f" {prompt.answer!r}; the answer must be one of at least two choices"
        )


def _options(prompt: Prompt) -> list[Prompt]:
    """Return a prompt once per option, with that option as its answer."""
    _require_choice(prompt)
    return [
        replace(
            prompt,
            id=f"{prompt.id}:{i}",
            answer=choice,
            answer_index=i,
            wrong=None,
            corrupted=None,
            subject=None,
            bridge=None,
            tags={"prompt": prompt.id, "is_answer": "yes" if i == prompt.option else "no"},
        )
        for i, choice in enumerate(prompt.choices)
    ]


def _log_likelihoods(model: Model, options: tuple[Prompt, ...]) -> list[float]:
    batch = model.tokenize(options, answers=True)
    assert batch.answer_tokens is not None
    assert batch.answer_positions is not None
    log_probs = model.logits(batch).log_softmax(-1)
    positions = batch.answer_positions.clamp(max=batch.tokens.shape[1] - 1)
    rows = torch.arange(len(options), device=positions.device)[:, None]
    of_tokens = log_probs[rows, positions, batch.answer_tokens.clamp(min=0)]
    return [float(x) for x in (of_tokens * (batch.answer_tokens >= 0)).sum(1)]
