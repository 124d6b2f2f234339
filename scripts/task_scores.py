"""Write what a real model scores on the English tasks: `python scripts/task_scores.py`.

The tables of docs/english_tasks.md, and the shares solved in data/tasks/index.json. It needs
`interp get smollm2-135m`, and takes some minutes on two cores.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
root = Path(__file__).parent.parent
sys.path.insert(0, str(root))

import pandas as pd  # noqa: E402
import torch  # noqa: E402

import interp  # noqa: E402
from interp.errors import TaskError  # noqa: E402
from interp.models import Model  # noqa: E402
from interp.sweeps.two_hop import last_logits  # noqa: E402
from interp.tasks import Prompt, Task, describe_tasks, load_task  # noqa: E402
from interp.zoo.prompts import write_index  # noqa: E402

MODEL = "smollm2-135m"
TASKS = {  # and the tag by which each is told apart
    "ioi-english": "template",
    "facts": "relation",
    "greater-than-english": "decade",
    "agreement": "noun between",
    "induction-text": "between",
    "two-hop-facts": "second",
}
DOCS = root / "docs" / "english_tasks.md"
MARK = "<!-- made by scripts/task_scores.py: do not edit below -->\n"
HEAD = (
    "| {} | prompts | answer first | above `wrong` | gap, nats | with a usable twin |\n"
    "|---|---|---|---|---|---|\n"
)


@torch.no_grad()
def prompt_scores(model: Model, task: Task) -> pd.DataFrame:
    """Return a row per prompt: is its answer, or an alias, the first choice; the gap to `wrong`.

    An answer of several tokens is known by its first. The gap is of log-probability, in nats.
    """
    rows = []
    for shard in model.shards(model.fit(task).task):
        batch = model.tokenize(shard)
        logits = last_logits(model.record(batch)).float()
        for i, prompt in enumerate(shard):
            right, *others = (ids[0] for ids in options(model, prompt))
            wrong = None if batch.wrong is None else int(batch.wrong[i])
            is_rival = wrong is not None and wrong not in (right, *others)
            gap = float(logits[i, right] - logits[i, wrong]) if is_rival else None
            scores = {
                "is_first": int(logits[i].argmax()) in (right, *others),
                "is_above": None if gap is None else float(gap > 0),
                "gap": gap,
                "has_twin": batch.corrupted is not None,
            }
            rows.append(scores | {f"tag_{tag}": value for tag, value in prompt.tags.items()})
    return pd.DataFrame(rows).astype({"is_above": float, "gap": float})


def options(model: Model, prompt: Prompt) -> list[tuple[int, ...]]:
    """Return the tokens of a prompt's answer and, where all can follow it, of its aliases."""
    every = [prompt.answer or "", *prompt.aliases]
    try:
        return model.options(prompt, every)
    except TaskError:  # an alias that the tokenizer would write otherwise
        return model.options(prompt, every[:1])


def row(name: str, scores: pd.DataFrame) -> str:
    """Return a line of the table."""
    first, above = (f"{100 * scores[column].mean():.0f} %" for column in ("is_first", "is_above"))
    rival = f"{above} | {scores['gap'].mean():.1f}" if scores["gap"].notna().any() else "– | –"
    return f"| {name} | {len(scores)} | {first} | {rival} | {scores['has_twin'].sum()} |\n"


def hop(task: Task, which: str) -> Task:
    """Return the single hops that belong to two-hop prompts as a task."""
    return Task(f"{task.name}, {which}", tuple(rel[which] for rel in task.related.values()))


def main() -> None:
    """Score every task and write the tables."""
    torch.set_num_threads(1)  # two fight with whatever else runs
    model, index = interp.load_model(MODEL, dtype="float32"), describe_tasks()
    scores = {}
    for name in TASKS:
        scores[name] = prompt_scores(model, load_task(name))
        print(row(name, scores[name]), end="", flush=True)
    text = HEAD.format("task") + "".join(row(f"`{name}`", of) for name, of in scores.items())
    for which in ("first_hop", "second_hop"):
        alone = prompt_scores(model, hop(load_task("two-hop-facts"), which))
        text += row(f"`two-hop-facts`, {which.replace('_', ' ')} alone", alone)
    for name, tag in TASKS.items():
        by_tag = scores[name].groupby(f"tag_{tag}")
        text += f"\n## {name}, by {tag}\n\n" + HEAD.format(tag)
        text += "".join(row(str(value), of) for value, of in by_tag)
        index[name]["solved_by"][MODEL] = round(float(scores[name]["is_first"].mean()), 3)
    DOCS.write_text(f"{DOCS.read_text().partition(MARK)[0]}{MARK}\n{text}")
    write_index(index)


if __name__ == "__main__":
    main()
