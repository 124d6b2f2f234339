"""Greedy texts while layers are skipped, and whether they give the answer."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from interp.analyses.void_skip.evaluations import EVALUATIONS, streams_of
from interp.analyses.void_skip.masks import KINDS, Skipping, drawn_first
from interp.models import Model
from interp.shapes import Tensors
from interp.sweeps.tags import keys_of, rows_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

NO_ANSWER, WRONG, ALIAS, EXACT = range(4)
NO_KNOWN_ANSWER = "generated: no answer"
TEXT_SCORES = {
    "generated: exact": (EXACT, EXACT),
    "generated: exact or alias": (ALIAS, EXACT),
    NO_KNOWN_ANSWER: (NO_ANSWER, NO_ANSWER),
}  # the lowest and the highest verdict that counts


@torch.no_grad()
def verdicts_on_texts(model: Model, task: Task, skipping: Skipping, *, n_new: int) -> Tensors:
    """Return verdicts on greedy texts of `n_new` tokens: "said.full" [prompt] of the full model.

    "said" [prompt evaluation alpha kind] are those of each way of skipping, "said.key" [prompt]
    stand for the prompts.
    """
    known, parts = known_names(task), []
    for shard in map(model.tokenize, model.shards(task)):
        full = _judged(shard, known, model.generate(shard, max_new_tokens=n_new).texts)
        ways = []
        for evaluation, alpha in product(EVALUATIONS, range(len(skipping.alphas))):
            by_kind = greedy_texts(model, shard, skipping, evaluation, alpha, n_new)
            ways.append(torch.stack([_judged(shard, known, texts) for texts in by_kind], dim=-1))
        by_way = rearrange(
            torch.stack(ways),
            "(way alpha) batch kind -> batch way alpha kind",
            way=len(EVALUATIONS),
        )
        parts.append((keys_of(shard.prompts), full, by_way))
    key, of_full, of_ways = (torch.cat(column) for column in zip(*parts, strict=True))
    return {"said.key": key, "said.full": of_full, "said": of_ways}


def _judged(
    shard: TokenBatch, known: Mapping[str, Sequence[str]], texts: Sequence[str]
) -> Int[Tensor, " batch"]:
    each = zip(texts, shard.prompts, strict=True)
    return torch.tensor([verdict(text, prompt, known[prompt.id]) for text, prompt in each])


def greedy_texts(
    model: Model,
    shard: TokenBatch,
    skipping: Skipping,
    evaluation: str,
    alpha: int,
    n_new: int,
) -> list[list[str]]:
    """Return greedy texts [kind][batch]; the whole text is run anew for every token."""
    n_kinds, prompts = len(KINDS), shard.prompts * len(KINDS)
    tokens, last = shard.tokens.repeat(n_kinds, 1), shard.last.repeat(n_kinds)
    recording = model.record(shard)
    whole = TokenBatch(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool), last)
    choose = model.chooser(whole, max_new_tokens=n_new)
    variants = drawn_first(alpha, skipping.n_random)
    for n_written in range(n_new):
        text = recording.of(tokens, is_stored=False)
        masks = rearrange(
            skipping.masks(text, prompts, evaluation)[variants],
            "variant (kind batch) layer pos -> variant kind batch layer pos",
            kind=n_kinds,
        )
        own = torch.cat([masks[kind, kind] for kind in range(n_kinds)])[None]
        stream = next(streams_of(text, evaluation, own))[0, :, -1:]
        chosen = choose(tokens[:, tokens.shape[1] - n_written :], text.logits(stream)[:, 0])
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    written = _decoded(model, tokens[:, -n_new:], ends=choose.ends)
    n = len(shard.prompts)
    return [written[kind * n : (kind + 1) * n] for kind in range(n_kinds)]


def _decoded(model: Model, new: Int[Tensor, "rows pos"], *, ends: Iterable[int]) -> list[str]:
    """Return the text of tokens up to one that ends it."""
    is_end = torch.isin(new, torch.tensor(list(ends), dtype=torch.long, device=new.device))
    has_ended = is_end.cummax(1).values
    rows = [row[~ended].tolist() for row, ended in zip(new, has_ended, strict=True)]
    return list(model.tokenizer.batch_decode(rows, skip_special_tokens=True))


def text_scores(prepared: Tensors, prompts: Sequence[Prompt]) -> Tensors:
    """Return each of `TEXT_SCORES` of some prompts as 0 or 1; the full model's as "full.NAME"."""
    rows = rows_of(prepared["said.key"], prompts)
    scores = {}
    for name, (least, most) in TEXT_SCORES.items():
        for prefix, key in (("full.", "said.full"), ("", "said")):
            verdicts = prepared[key][rows]
            scores[f"{prefix}{name}"] = ((verdicts >= least) & (verdicts <= most)).float()
    return scores


def verdict(text: str, prompt: Prompt, known: Iterable[str]) -> int:
    """Return EXACT if a text begins with the answer, ALIAS if with it or an alias in any case.

    Otherwise WRONG if it begins with another of the `known` names, and NO_ANSWER if with none: a
    failure of format, which says nothing about what the model knows. A name ends where a word does.
    """
    text = text.strip()
    if prompt.answer and _begins(text, prompt.answer):
        return EXACT
    folded = text.casefold()
    right = [name for name in (prompt.answer, *prompt.aliases) if name]
    if any(_begins(folded, name.casefold()) for name in right):
        return ALIAS
    return WRONG if any(_begins(folded, name.casefold()) for name in known) else NO_ANSWER


def known_names(task: Task) -> dict[str, tuple[str, ...]]:
    """Map every prompt's id to its choices or, without any, to all answers of the task."""
    answers = {n for p in task.prompts for n in (p.answer, p.wrong, *p.aliases) if n}
    every = tuple(sorted(answers))
    return {prompt.id: prompt.choices or every for prompt in task.prompts}


def _begins(text: str, name: str) -> bool:
    name = name.strip()
    return text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()
