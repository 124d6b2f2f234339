"""Prompts as token ids, with the positions that analyses ask about."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import TaskError
from interp.tasks.prompts import Prompt, followed_by


@dataclass(frozen=True)
class TokenBatch:
    """Token ids [batch pos], padded on the right; `mask` is False on padding.

    `last` is each prompt's last position (of the prompt, also where its answer follows); `subject` the last position of its
    first-hop phrase and `subject_start` the first; `answer`, `wrong` and `bridge` the first token of each. `answer_tokens`
    [batch answer_pos] are whole answers, padded with -1, and `answer_positions` the positions whose logits predict them.
    `corrupted` are the twins' tokens, where every prompt has a twin of as many tokens. What is not there is None.
    """

    prompts: tuple[Prompt, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    subject: Int[Tensor, " batch"] | None = None
    answer: Int[Tensor, " batch"] | None = None
    wrong: Int[Tensor, " batch"] | None = None
    answer_tokens: Int[Tensor, "batch answer_pos"] | None = None
    corrupted: Int[Tensor, "batch pos"] | None = None
    bridge: Int[Tensor, " batch"] | None = None
    subject_start: Int[Tensor, " batch"] | None = None

    @property
    def is_padded(self) -> bool:
        """Tell whether the prompts differ in length."""
        return not bool(self.mask.all())

    @property
    def answer_positions(self) -> Int[Tensor, "batch answer_pos"] | None:
        """Return which positions predict the answer's tokens, if those follow the prompt in this batch."""
        if self.answer_tokens is None:
            return None
        return self.last[:, None] + torch.arange(self.answer_tokens.shape[1], device=self.last.device)

    def require_single_token_answers(self) -> None:
        """Raise TaskError, naming the prompts, if an answer is missing or has several tokens."""
        if self.answer_tokens is None:
            raise TaskError(_no_answer(self.prompts))
        several = (self.answer_tokens >= 0).sum(1) > 1
        bad = [prompt.id for prompt, is_bad in zip(self.prompts, several.tolist(), strict=True) if is_bad]
        if bad:
            raise TaskError(f"answers of one token are needed; {_named(bad)} with more")


def tokenize(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    device: torch.device,
    answers: bool = False,
    corrupted: bool = False,
) -> TokenBatch:
    """Tokenize prompts, with the special tokens that the tokenizer itself adds; raise TaskError naming bad prompts.

    With `answers`, each answer follows its prompt (tokenized together); with `corrupted`, the corrupted twins are tokenized,
    which must have as many tokens as their prompts.
    """
    texts = [_corrupted_text(prompt) if corrupted else prompt.text for prompt in prompts]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    rows = [list(row) for row in encoded["input_ids"]]
    _refuse_unknown(tokenizer, prompts, rows)
    if corrupted:
        _refuse_other_lengths(tokenizer, prompts, rows)
    twins = None if corrupted or answers else _twins(tokenizer, prompts, rows)
    follow = {which: _continuations(tokenizer, prompts, texts, which) for which in ("answer", "wrong", "bridge")}
    if answers and follow["answer"] is None:
        raise TaskError(
            f"an answer is needed for every prompt; {_named([p.id for p in prompts if p.answer is None])} without"
        )
    last = [len(row) - 1 for row in rows]
    if answers and follow["answer"] is not None:
        rows = [row + answer for row, answer in zip(rows, follow["answer"], strict=True)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens = _padded(rows, pad)
    spans = [_subject(*each) for each in zip(prompts, texts, encoded["offset_mapping"], strict=True)]
    first = {which: None if f is None else torch.tensor([tokens[0] for tokens in f]) for which, f in follow.items()}
    batch = TokenBatch(
        prompts=tuple(prompts),
        tokens=tokens,
        mask=torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None],
        last=torch.tensor(last),
        subject=None if None in spans else torch.tensor([span[-1] for span in spans if span]),
        subject_start=None if None in spans else torch.tensor([span[0] for span in spans if span]),
        answer=first["answer"],
        wrong=first["wrong"],
        bridge=first["bridge"],
        answer_tokens=None if follow["answer"] is None else _padded(follow["answer"], -1),
        corrupted=None if twins is None else _padded(twins, pad),
    )
    moved = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
    return replace(batch, **{name: tensor.to(device) for name, tensor in moved.items()})


def _named(ids: Sequence[str]) -> str:
    """Return how many prompts, and the first of them."""
    return f"{len(ids)} prompts (first: {', '.join(map(repr, ids[:3]))})"


def _no_answer(prompts: Sequence[Prompt]) -> str:
    return f"an answer is needed for every prompt; {_named([p.id for p in prompts if p.answer is None])} without one"


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def _corrupted_text(prompt: Prompt) -> str:
    if prompt.corrupted is None:
        raise TaskError(f"prompt {prompt.id!r} has no corrupted twin")
    return prompt.corrupted


def put_in_front(tokenizer: Any) -> list[str]:
    """Return the special tokens (BOS) that a tokenizer puts in front of every text."""
    with_them, without = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    front = with_them[: with_them.index(without[0])] if without and without[0] in with_them else []
    return [str(token) for token in tokenizer.convert_ids_to_tokens(front)]


def _refuse_unknown(tokenizer: Any, prompts: Sequence[Prompt], rows: list[list[int]]) -> None:
    unknown = tokenizer.unk_token_id
    bad = [p.id for p, row in zip(prompts, rows, strict=True) if unknown is not None and unknown in row]
    if bad:
        first = next(prompt.text for prompt in prompts if prompt.id == bad[0])
        words = [word for word in dict.fromkeys(first.split()) if unknown in tokenizer(word)["input_ids"]]
        which = f"; not {', '.join(map(repr, words[:3]))}" if words else ""
        raise TaskError(f"the tokenizer does not know every word of {_named(bad)}{which}")


def _refuse_other_lengths(tokenizer: Any, prompts: Sequence[Prompt], rows: list[list[int]]) -> None:
    clean = token_rows(tokenizer, [prompt.text for prompt in prompts])
    for prompt, row, n_clean in zip(prompts, rows, map(len, clean), strict=True):
        if n_clean != len(row):
            raise TaskError(f"prompt {prompt.id!r} has {n_clean} tokens, its corrupted twin {len(row)}; as many are needed")


def _twins(tokenizer: Any, prompts: Sequence[Prompt], rows: list[list[int]]) -> list[list[int]] | None:
    """Return the twins' tokens, if every prompt has a twin that can be set beside it."""
    texts = [prompt.corrupted for prompt in prompts if prompt.corrupted is not None]
    twins = token_rows(tokenizer, texts) if len(texts) == len(prompts) else []
    unknown = tokenizer.unk_token_id
    is_known = unknown is None or not any(unknown in twin for twin in twins)
    return twins if twins and is_known and [*map(len, twins)] == [*map(len, rows)] else None


def token_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return every text's tokens, with the special tokens that the tokenizer adds."""
    return list(map(list, tokenizer(list(texts))["input_ids"])) if texts else []


def continuations(tokenizer: Any, texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
    """Return the tokens that follow each text when it is tokenized with its answer; none if its own tokens change."""
    rows = token_rows(tokenizer, texts)
    together = token_rows(tokenizer, [followed_by(text, answer) for text, answer in zip(texts, answers, strict=True)])
    return [both[len(row) :] if both[: len(row)] == row else [] for row, both in zip(rows, together, strict=True)]


def _continuations(tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str], which: str) -> list[list[int]] | None:
    given = [getattr(prompt, which) for prompt in prompts]
    if None in given:
        return None
    follow = continuations(tokenizer, texts, given)
    for prompt, answer, tokens in zip(prompts, given, follow, strict=True):
        if not tokens:
            raise TaskError(f"prompt {prompt.id!r}: its tokens change when {answer!r} follows; end the text at a word")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
            raise TaskError(f"prompt {prompt.id!r}: the tokenizer does not know its {which}, {answer!r}")
    return follow


def _subject(prompt: Prompt, text: str, offsets: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return the tokens of the subject, found by character offsets."""
    if prompt.subject is None:
        return None
    n_found = text.count(prompt.subject)
    if n_found != 1:
        raise TaskError(f"prompt {prompt.id!r}: subject {prompt.subject!r} found {n_found} times; once is needed")
    start = text.index(prompt.subject)
    end = start + len(prompt.subject)
    return [i for i, (begin, stop) in enumerate(offsets) if begin < end and stop > max(begin, start)]
