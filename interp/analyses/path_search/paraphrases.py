"""Other texts that ask for the same, and whether a prompt's path serves them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import AnalysisError
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.answers import require_answers
from interp.sweeps.path_scores import PathScorer
from interp.sweeps.path_tree import Path, ordinary
from interp.sweeps.tags import keys_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import named
from interp.tasks.prompts import key_of

ROLE = "paraphrase"


def paraphrases(model: Model, task: Task, *, are_needed: bool) -> Tensors:
    """Return "paraphrase.of" [other], its "paraphrase.tokens" [other pos] and "paraphrase.answer".

    A prompt's paraphrase is its related prompt of that name, else the next one of its group, in the
    order of the task, with the same answer and another text. Tokens are padded with -1. Raises
    AnalysisError if they are needed and a prompt has none.
    """
    alike: dict[tuple[str | None, str | None], list[Prompt]] = defaultdict(list)
    for prompt in task.prompts:
        alike[prompt.group, prompt.answer].append(prompt)
    pairs: dict[str, Prompt] = {}
    for prompt in task.prompts:
        own = task.related.get(prompt.id, {}).get(ROLE)
        if other := own or _next(prompt, alike[prompt.group, prompt.answer]):
            pairs[prompt.id] = replace(other, id=f"{ROLE} of {prompt.id}")
    without = [prompt.id for prompt in task.prompts if prompt.id not in pairs]
    if are_needed and without:
        raise AnalysisError(
            f"transfer needs a paraphrase of every prompt; {named(without)} without"
        )
    asked = {other.id: prompt_id for prompt_id, other in pairs.items()}
    shards = []
    if pairs:
        others = model.fit(Task(ROLE, tuple(pairs.values()))).task
        shards = [model.tokenize(shard) for shard in model.shards(others)]
    rows = [
        (key_of(asked[prompt.id]), tokens, answer)
        for shard in shards
        for prompt, tokens, answer in zip(
            shard.prompts, shard.tokens.tolist(), require_answers(shard)[:, 0].tolist(), strict=True
        )
    ]
    width = max((len(tokens) for _, tokens, _ in rows), default=0)
    padded = [tokens + [-1] * (width - len(tokens)) for _, tokens, _ in rows]
    return {
        f"{ROLE}.of": torch.tensor([key for key, _, _ in rows], dtype=torch.int64),
        f"{ROLE}.tokens": torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width),
        f"{ROLE}.answer": torch.tensor([answer for *_, answer in rows], dtype=torch.int64),
    }


def _next(prompt: Prompt, alike: Sequence[Prompt]) -> Prompt | None:
    """Return the next prompt of a group with another text, in a circle; None without one."""
    if prompt.group is None:
        return None
    at = next(i for i, other in enumerate(alike) if other.id == prompt.id)
    later = (*alike[at + 1 :], *alike[:at])
    return next((other for other in later if other.text != prompt.text), None)


def transferred(
    recording: Recording,
    shard: TokenBatch,
    prepared: Tensors,
    paths: Sequence[Sequence[Path | None]],
) -> Int[Tensor, "batch path"]:
    """Return whether each prompt's paraphrase is answered: by the ordinary path, then by each.

    1 or 0; -1 where there is no paraphrase, or no such path.
    """
    n_paths = len(paths[0])
    answered = torch.full((len(paths), 1 + n_paths), -1)
    of = {key: row for row, key in enumerate(prepared.get(f"{ROLE}.of", torch.zeros(0)).tolist())}
    by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, key in enumerate(keys_of(shard.prompts).tolist()):
        if key in of:
            length = int((prepared[f"{ROLE}.tokens"][of[key]] >= 0).sum())
            by_length[length].append((i, of[key]))
    for length, pairs in sorted(by_length.items()):
        rows = [row for _, row in pairs]
        tokens = prepared[f"{ROLE}.tokens"][rows, :length].to(shard.tokens.device)
        answers = prepared[f"{ROLE}.answer"][rows, None].to(shard.tokens.device)
        other = recording.of(tokens)
        scorer = PathScorer(other, range(len(rows)), answers)
        clean = ordinary(recording.n_layers)
        asked = [
            (at, i, column, path)
            for at, (i, _) in enumerate(pairs)
            for column, path in enumerate((clean, *paths[i]))
            if path is not None
        ]
        scores = scorer.scores([at for at, *_ in asked], [path for *_, path in asked])
        for (_, i, column, _), score in zip(asked, scores, strict=True):
            answered[i, column] = int(score.is_right())
    return answered
