"""A user's texts in the tokens that a chat model's own template makes of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from interp.errors import TaskError
from interp.tasks.encoding import Encoder
from interp.tasks.given import Ids
from interp.tasks.prompts import Prompt
from interp.tasks.task import Task

Message = dict[str, Any]
_FOLLOWING = ("answer", "wrong", "bridge")


def in_template(tokenizer: Any, task: Task) -> Task:
    """Return a chat task as the tokens that end where the model is to answer.

    Raises TaskError if the tokenizer has no template. An answer's tokens are those that the
    template gives when the assistant says it, without what ends its turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(f"task {task.name!r} is a chat; this tokenizer has no chat template")
    template = _Template(tokenizer, task.name)
    related = {
        key: {what: template.filled(prompt) for what, prompt in others.items()}
        for key, others in task.related.items()
    }
    return replace(
        task, prompts=tuple(map(template.filled, task.prompts)), related=related, chat=False
    )


class _Template:
    def __init__(self, tokenizer: Any, task: str) -> None:
        self.tokenizer, self.task, self.encoder = tokenizer, task, Encoder(tokenizer)

    def filled(self, prompt: Prompt) -> Prompt:
        """Return a prompt as the template makes it, with its answers as the assistant's words."""
        if prompt.tokens is not None:
            raise TaskError(
                f"prompt {prompt.id!r} is token ids; the task is a chat, in which a user says texts"
            )
        rendered, tokens = self._rendered(prompt, prompt.text)
        asked = [getattr(prompt, name) for name in _FOLLOWING if getattr(prompt, name) is not None]
        spelling = {
            text: self._answer(prompt, rendered, tokens, text)
            for text in dict.fromkeys([*asked, *prompt.choices])
        }
        twin = None
        if prompt.corrupted is not None:
            whole, ids = self._rendered(prompt, prompt.corrupted)
            twin = self._without_bos(whole)
            spelling[twin] = ids
        return replace(
            prompt,
            text=self._without_bos(rendered),
            corrupted=twin,
            tokens=tokens,
            spelling=spelling,
        )

    def _without_bos(self, rendered: str) -> str:
        """Return a rendered text without the BOS that the tokenizer puts before texts."""
        return (
            rendered.removeprefix(self.encoder.decode(self.encoder.front))
            if self.encoder.front
            else rendered
        )

    def _rendered(self, prompt: Prompt, text: str) -> tuple[str, Ids]:
        """Return a conversation up to where the assistant answers, as text and as tokens."""
        rendered = self._apply(prompt, [_message("user", text)], add_generation_prompt=True)
        if text.strip() not in rendered[0]:
            parts = {"role": "user", "content": [{"type": "text", "text": text}]}
            rendered = self._apply(prompt, [parts], add_generation_prompt=True)
        if text.strip() not in rendered[0]:
            raise TaskError(
                f"prompt {prompt.id!r}:"
                f" the chat template leaves out what the user says, {text!r:.80}"
            )
        return rendered

    def _answer(self, prompt: Prompt, rendered: str, tokens: Ids, answer: str) -> Ids:
        """Return the tokens of the assistant's answer; none if they merge with those around it."""
        messages = [_message("user", prompt.text), _message("assistant", answer)]
        if (
            prompt.text.strip()
            not in self._apply(prompt, messages[:1], add_generation_prompt=True)[0]
        ):
            messages = [
                {**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages
            ]
        whole, ids = self._apply(prompt, messages, add_generation_prompt=False)
        behind = whole.removeprefix(rendered)
        if not whole.startswith(rendered) or not behind.strip().startswith(answer.strip()):
            instead = behind[:40] if whole.startswith(rendered) else whole[-60:]
            raise TaskError(
                f"task {self.task!r}: the chat template does not put what the assistant says,"
                f" {answer!r:.40}, after the prompt that it makes; there is {instead!r}"
            )
        if ids[: len(tokens)] != tokens:
            return ()
        follow = ids[len(tokens) :]
        ends = (
            n
            for n in range(1, len(follow) + 1)
            if self.encoder.decode(follow[:n]).strip() == answer.strip()
        )
        return follow[: next(ends, 0)]

    def _apply(
        self, prompt: Prompt, messages: list[Message], *, add_generation_prompt: bool
    ) -> tuple[str, Ids]:
        how: Mapping[str, Any] = {"add_generation_prompt": add_generation_prompt}
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **how)
            ids = self.tokenizer.apply_chat_template(messages, tokenize=True, **how)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TaskError(
                f"prompt {prompt.id!r}: the chat template cannot be filled in ({error})"
            ) from None
        return str(text), tuple(
            ids["input_ids"] if isinstance(ids, Mapping) or hasattr(ids, "input_ids") else ids
        )


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}
