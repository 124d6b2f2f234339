"""Prompts as token ids, with the positions that analyses ask about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import TaskError
from interp.tasks.prompts import Prompt


@dataclass(frozen=True)
class TokenBatch:
    """Token ids [batch pos], padded on the right; `mask` is False on padding.

    `last` is each prompt's last position; `subject` the last position of its first-hop phrase; `answer` and `wrong` the
    first token of each; `answer_is_single` whether the answer is one token. Missing parts are None.
    """

    prompts: tuple[Prompt, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    subject: Int[Tensor, " batch"] | None = None
    answer: Int[Tensor, " batch"] | None = None
    wrong: Int[Tensor, " batch"] | None = None
    answer_is_single: Bool[Tensor, " batch"] | None = None

    @property
    def is_padded(self) -> bool:
        """Tell whether the prompts differ in length."""
        return not bool(self.mask.all())


def tokenize(tokenizer: Any, prompts: Sequence[Prompt], *, device: torch.device) -> TokenBatch:
    """Tokenize prompts with the special tokens that the tokenizer itself adds; raise TaskError naming bad prompts."""
    encoded = [tokenizer(prompt.text, return_offsets_mapping=True) for prompt in prompts]
    rows = [row["input_ids"] for row in encoded]
    _refuse_unknown(tokenizer, prompts, rows)
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    mask = torch.arange(width, device=device) <= last[:, None]
    answers = _continuations(tokenizer, prompts, rows, "answer")
    wrongs = _continuations(tokenizer, prompts, rows, "wrong")
    spans = [_subject(p, row["offset_mapping"]) for p, row in zip(prompts, encoded, strict=True)]
    return TokenBatch(
        prompts=tuple(prompts),
        tokens=tokens,
        mask=mask,
        last=last,
        subject=None if None in spans else torch.tensor(spans, device=device),
        answer=None if answers is None else torch.tensor([a[0] for a in answers], device=device),
        wrong=None if wrongs is None else torch.tensor([w[0] for w in wrongs], device=device),
        answer_is_single=None if answers is None else torch.tensor([len(a) == 1 for a in answers], device=device),
    )


def _refuse_unknown(tokenizer: Any, prompts: Sequence[Prompt], rows: list[list[int]]) -> None:
    unknown = tokenizer.unk_token_id
    bad = [p.id for p, row in zip(prompts, rows, strict=True) if unknown is not None and unknown in row]
    if bad:
        raise TaskError(f"{len(bad)} prompts have words that the tokenizer does not know (first: {bad[0]!r})")


def _continuations(tokenizer: Any, prompts: Sequence[Prompt], rows: list[list[int]], which: str) -> list[list[int]] | None:
    """Return the tokens that follow each prompt when it is tokenized together with its answer."""
    given = [getattr(prompt, which) for prompt in prompts]
    if None in given:
        return None
    follow: list[list[int]] = []
    for prompt, row, answer in zip(prompts, rows, given, strict=True):
        together = tokenizer(prompt.followed_by(answer))["input_ids"]
        if together[: len(row)] != row or len(together) == len(row):
            raise TaskError(f"prompt {prompt.id!r}: its tokens change when {answer!r} follows; end the text at a word")
        follow.append(together[len(row) :])
    return follow


def _subject(prompt: Prompt, offsets: list[tuple[int, int]]) -> int | None:
    """Return the last token of the subject, found by character offsets."""
    if prompt.subject is None:
        return None
    n_found = prompt.text.count(prompt.subject)
    if n_found != 1:
        raise TaskError(f"prompt {prompt.id!r}: subject {prompt.subject!r} found {n_found} times; once is needed")
    end = prompt.text.index(prompt.subject) + len(prompt.subject)
    return max(i for i, (begin, stop) in enumerate(offsets) if begin < end and stop > begin)
