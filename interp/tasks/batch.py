"""Prompts as token ids, with the positions that analyses ask about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import TaskError
from interp.figures.words import counted, shortened
from interp.tasks.encoding import NO_LIMITS, UNKNOWN, Encoded, Encoder, Limits, named
from interp.tasks.given import described, is_ids, list_of, plain, read_ids
from interp.tasks.prompts import Prompt, key_of

_ASKED = ("answer", "wrong", "corrupted", "subject", "bridge")


@dataclass(frozen=True, repr=False)
class TokenBatch:
    """Token ids [batch pos], padded on the right; `mask` is False on padding.

    `last` is each prompt's last position (even if its answer follows); `subject` and
    `subject_start` are the last and first position of its first-hop phrase; `answer`, `wrong` and
    `bridge` are the first token of each. `answer_tokens` [batch answer_pos] are whole answers,
    padded with -1, and `answer_positions` the positions whose logits predict them. `corrupted` are
    the twins' tokens, if every prompt has a twin of as many tokens. What is missing, or unusable
    for one of the prompts, is None; `why` says why, by field, naming the prompt.
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
    why: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lengths = sorted(set(self.mask.sum(1).tolist()))
        of = "" if not lengths else f" of {counted(lengths[-1], 'token')}"
        if len(lengths) > 1:
            of = f" of {lengths[0]} to {counted(lengths[-1], 'token')}"
        shown = [repr(shortened(prompt.text)) for prompt in self.prompts[:2]]
        texts = ", ".join([*shown, "…"] if len(self.prompts) > len(shown) else shown)
        known = ", ".join(name for name in _ASKED if getattr(self, name) is not None)
        what = f"{counted(len(self.prompts), 'prompt')}{of}"
        return f"TokenBatch({'; '.join(filter(None, (what, texts, known and f'with {known}')))})"

    @property
    def groups(self) -> Int[Tensor, " batch"]:
        """Return a number for each prompt's group: prompts with equal ones were drawn together."""
        return torch.tensor([key_of(prompt.drawn) for prompt in self.prompts])

    @property
    def is_padded(self) -> bool:
        """Tell whether the prompts differ in length."""
        return not bool(self.mask.all())

    def only(self, rows: Sequence[int]) -> "TokenBatch":
        """Return some of the prompts, cut to the longest of them."""
        device = self.tokens.device
        chosen = torch.tensor([*rows], device=device)
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        values: dict[str, Any] = {
            name: value[chosen] for name, value in kept.items() if isinstance(value, Tensor)
        }
        n_pos = int(values["mask"].sum(1).max())
        for name in ("tokens", "mask", "corrupted"):
            if name in values:
                values[name] = values[name][:, :n_pos]
        if "answer_tokens" in values:
            n_answer = int((values["answer_tokens"] >= 0).sum(1).max())
            values["answer_tokens"] = values["answer_tokens"][:, :n_answer]
        return replace(self, prompts=tuple(self.prompts[i] for i in rows), **values)

    @property
    def answer_positions(self) -> Int[Tensor, "batch answer_pos"] | None:
        """Return the positions that predict the answer's tokens, if those follow the prompt."""
        if self.answer_tokens is None:
            return None
        return self.last[:, None] + torch.arange(
            self.answer_tokens.shape[1], device=self.last.device
        )

    def require_single_token_answers(self) -> None:
        """Raise TaskError, naming the prompts, if an answer is missing or has several tokens."""
        if self.answer_tokens is None:
            raise TaskError(self.missing("answer"))
        several = (self.answer_tokens >= 0).sum(1) > 1
        bad = [
            prompt.id
            for prompt, is_bad in zip(self.prompts, several.tolist(), strict=True)
            if is_bad
        ]
        if bad:
            raise TaskError(f"answers of one token are needed; {named(bad)} with more")

    def missing(self, name: str) -> str:
        """Return which prompts lack a field, or why it cannot be used."""
        if name in self.why:
            return self.why[name]
        bad = [prompt.id for prompt in self.prompts if getattr(prompt, name) is None]
        article = "an" if name == "answer" else "a"
        return f"{article} {name} is needed for every prompt; {named(bad)} without one"

    def first_without(self, name: str) -> str:
        """Return a message that names the first prompt without a field."""
        first = next(
            (prompt.id for prompt in self.prompts if getattr(prompt, name) is None),
            self.prompts[0].id,
        )
        return f"prompt {first!r} has no {name}"


def as_prompts(given: Any) -> tuple[Prompt, ...]:
    """Return texts, prompts or token ids (arrays, or lists of lists), one or many, as prompts.

    Raises TaskError for anything else, a single list of numbers too: it may be one prompt, or one
    token of several.
    """
    if isinstance(given, str | Prompt) or (hasattr(given, "dtype") and is_ids(given)):
        given = [given]
    elif is_ids(given):
        raise TaskError(
            f"a list of numbers given, {list_of(given, 'ids')!r:.60};"
            " one prompt of token ids is [[…]]"
        )
    items = list_of(given, "prompts")
    if not items:
        raise TaskError("no prompts given; at least one is needed")
    return tuple(_as_prompt(i, item) for i, item in enumerate(items))


def _as_prompt(i: int, given: Any) -> Prompt:
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(str(i), given)
    if isinstance(plain(given), list | tuple):
        return Prompt(str(i), "", tokens=read_ids(given, f"prompt {str(i)!r}"))
    raise TaskError(
        f"prompt {str(i)!r} is {described(given)}; a text, a Prompt or token ids are needed"
    )


def tokenize(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    device: torch.device,
    answers: bool = False,
    corrupted: bool = False,
    limits: Limits = NO_LIMITS,
) -> TokenBatch:
    """Return prompts as a batch, with the tokenizer's special tokens in front and none behind.

    With `answers`, each answer follows its prompt (tokenized together); with `corrupted`, the
    corrupted twins are tokenized, which must have as many tokens as their prompts. Raises
    TaskError, naming it, for a prompt that cannot be used, or whose answer or twin cannot be used
    where it is asked for; what else cannot be used of a prompt is None in the batch.
    """
    encoder = Encoder(tokenizer, limits)
    encoded = _usable(encoder, prompts)
    if corrupted:
        encoded = _usable(encoder, [_twin(each) for each in encoded])
    rows = [[*each.tokens, *(each.answer or ())] if answers else [*each.tokens] for each in encoded]
    pad = padding(tokenizer, limits.n_ids)
    tokens = _padded(rows, pad)
    batch = TokenBatch(
        prompts=tuple(prompts),
        tokens=tokens,
        mask=torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None],
        last=torch.tensor([len(each.tokens) - 1 for each in encoded]),
        subject=_each(each.subject and each.subject[1:] for each in encoded),
        subject_start=_each(each.subject for each in encoded),
        answer=_each(each.answer for each in encoded),
        wrong=_each(each.wrong for each in encoded),
        bridge=_each(each.bridge for each in encoded),
        answer_tokens=_all([each.answer for each in encoded], -1),
        corrupted=None if corrupted or answers else _all([each.corrupted for each in encoded], pad),
        why=_why(encoded),
    )
    if answers and batch.answer is None:
        raise TaskError(batch.missing("answer"))
    return _on(device, batch)


def _on(device: torch.device, batch: TokenBatch) -> TokenBatch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(batch, **moved)


def _usable(encoder: Encoder, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Return prompts as tokens; raise TaskError, naming them, where some cannot be used."""
    encoded = encoder.encode(prompts)
    for each in encoded:
        if each.misfit == UNKNOWN:
            raise TaskError(encoder.unknown_in(encoded))
        if each.misfit:
            raise TaskError(each.problem)
    return encoded


def _twin(encoded: Encoded) -> Prompt:
    """Return a prompt's corrupted twin as a prompt; raise TaskError if it cannot be used."""
    prompt = encoded.prompt
    if prompt.corrupted is None:
        raise TaskError(f"prompt {prompt.id!r} has no corrupted twin")
    if encoded.corrupted is None:
        raise TaskError(encoded.why["corrupted"])
    tokens = None if prompt.tokens is None else encoded.corrupted
    return replace(prompt, text=prompt.corrupted, tokens=tokens, corrupted=None)


def _why(encoded: Sequence[Encoded]) -> dict[str, str]:
    """Return by field why it cannot be used, from the first prompt for which it cannot."""
    why: dict[str, str] = {}
    for each in reversed(encoded):
        why |= each.why
    return why


def padding(tokenizer: Any, n_ids: int | None) -> int:
    """Return an id to pad with: the tokenizer's padding or end token, if the model has it, or 0."""
    known = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    there = [i for i in known if i is not None and i >= 0 and (n_ids is None or i < n_ids)]
    return int(there[0]) if there else 0


def _each(ids: Iterable[Sequence[int] | None]) -> Tensor | None:
    """Return the first id of every prompt's list, if all have one."""
    given = list(ids)
    return None if None in given else torch.tensor([each[0] for each in given if each])


def _all(rows: Sequence[Sequence[int] | None], pad: int) -> Tensor | None:
    """Return all ids of every prompt's list, if all have one."""
    there = [row for row in rows if row is not None]
    return _padded(there, pad) if len(there) == len(rows) else None


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
