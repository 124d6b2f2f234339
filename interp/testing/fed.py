"""What a model is really fed: one prompt of each kind, as tokens."""

from collections.abc import Iterator

from interp.errors import InterpError, TaskError
from interp.models import Model
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch
from interp.tasks.encoding import special_tokens

_TEXT, _ANSWER, _SHOWN = "The capital of France is", "Paris", 10


def fed(model: Model) -> Iterator[tuple[str, str]]:
    """Yield each kind of prompt (a text, a chat, token ids) and what becomes of it."""
    if model.tokenizer is None:
        yield "text prompt", "there is no tokenizer: prompts are token ids"
    else:
        yield "text prompt", _of_text(model)
        if getattr(model.tokenizer, "chat_template", None):
            yield "chat prompt", _of_chat(model)
    ids = list(range(min(3, model.d_vocab)))
    yield "token ids", f"{model.tokenize([ids]).tokens[0].tolist()} are fed as they are"


def _of_text(model: Model) -> str:
    try:
        batch, answer = model.tokenize([Prompt("text", _text_of(model), answer=_ANSWER)]), ""
        if batch.answer is not None:
            answer = f"; the answer {_ANSWER!r} begins with {_names(model, batch.answer.tolist())}"
    except InterpError as error:
        return str(error)
    front, behind = special_tokens(model.tokenizer)
    put = f"{_names(model, front)} put in front" if front else "nothing put in front"
    cut = f", {_names(model, behind)} after it left out" if behind else ""
    return f"{_as_fed(model, batch)}: {put}{cut}{answer}"


def _text_of(model: Model) -> str:
    """Return an English text, or one of the tokenizer's own words where it knows no English."""
    try:
        model.tokenize(_TEXT)
    except TaskError:
        middle = len(model.tokenizer) // 2
        return str(model.tokenizer.decode(list(range(middle, middle + 4))))
    return _TEXT


def _of_chat(model: Model) -> str:
    try:
        task = model.fit(Task("chat", (Prompt("chat", "Hello", answer=_ANSWER),), chat=True)).task
    except TaskError as error:
        try:
            task = model.fit(Task.from_texts(["Hello"], chat=True)).task
        except TaskError:
            return str(error)
        return f"{_as_fed(model, model.tokenize(task.prompts))}; answers cannot be given: {error}"
    batch = model.tokenize(task.prompts)
    if batch.answer is None:
        return f"{_as_fed(model, batch)}; {batch.missing('answer')}"
    return (
        f"{_as_fed(model, batch)}; an answer {_ANSWER!r} begins with"
        f" {_names(model, batch.answer.tolist())}"
    )


def _as_fed(model: Model, batch: TokenBatch) -> str:
    row = batch.tokens[0].tolist()
    if len(row) <= 2 * _SHOWN:
        return _names(model, row)
    return f"{_names(model, row[:_SHOWN])} … {_names(model, row[-_SHOWN:])} ({len(row)} tokens)"


def _names(model: Model, ids: list[int]) -> str:
    return " ".join(map(repr, model.token_names(ids)))
