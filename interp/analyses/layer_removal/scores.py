"""What is left of answers, texts and the clean prediction without some layers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import TaskError
from interp.metrics import changes, distribution, outcomes
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Resid
from interp.sweeps.choices import is_choice
from interp.sweeps.surprise import nats_per_token
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

ACCURACY, LOG_PROB, CHOICE = "accuracy", "log_prob", "choice"
TEXT, KL = "nats per token", "KL from clean"
SCORES = (ACCURACY, LOG_PROB, CHOICE, TEXT, KL)
GENERATED = "generated"
SHARES = (ACCURACY, CHOICE, GENERATED)


def answer_log_prob(recording: Recording, end: Resid, shard: TokenBatch) -> Float[Tensor, " batch"]:
    """Return the log-probability of each answer's first token, in nats."""
    assert shard.answer is not None
    log_p = recording.logits(end[:, -1:])[:, 0].log_softmax(-1)
    return log_p.gather(1, shard.answer[:, None])[:, 0]


def options_of(model: Model, prompt: Prompt) -> list[int]:
    """Return the first tokens of a prompt's answer and of its other choices, or its wrong answer.

    Others that begin as the answer does are left out; [] if none is left, or none can be read.
    """
    right = prompt.answer or ""
    others = [c for i, c in enumerate(prompt.choices) if i != prompt.option]
    others = others if is_choice(prompt) else [prompt.wrong] if prompt.wrong else []
    try:
        first, *rest = (tokens[0] for tokens in model.options(prompt, [right, *others]))
    except TaskError:
        return []
    differing = [token for token in dict.fromkeys(rest) if token != first]
    return [first, *differing] if differing else []


def option_tensor(model: Model, prompts: list[Prompt]) -> Int[Tensor, "prompt option"]:
    """Return `options_of` prompts, padded with -1; the answer's comes first."""
    rows = [options_of(model, prompt) for prompt in prompts]
    width = max(2, *map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def scores_of(
    recording: Recording, end: Resid, shard: TokenBatch, clean: Resid, options: Tensor
) -> Float[Tensor, "batch score"]:
    """Return `SCORES` of the last residuals that a set of layers leaves.

    "accuracy" and "log_prob" are of the answer's first token; "choice" is 1 where it is more
    probable than that of every other choice, NaN without one; "nats per token" is the mean surprise
    at the prompt's own tokens, "KL from clean" that of the prediction at the last, in nats.
    """
    assert shard.answer is not None
    last, before = (recording.logits(each[:, -1:])[:, 0] for each in (end, clean))
    read = outcomes(last, shard.answer)
    of_options = last.gather(1, options.clamp(min=0)).masked_fill(options < 0, -torch.inf)
    is_ahead = (of_options[:, :1] > of_options[:, 1:]).all(1).float()
    choice = torch.where(options[:, 0] >= 0, is_ahead, torch.nan)
    kl = changes(last, distribution(before))["kl"]
    text = nats_per_token(recording, end[None], shard.tokens)[0]
    columns = [read["accuracy"], read["log_prob"], choice, text, kl]
    return torch.stack(columns, dim=1).float()


def chance_of(options: Int[Tensor, "batch option"]) -> Float[Tensor, " batch"]:
    """Return the share that a blind choice gets right; NaN without a choice."""
    counts = (options >= 0).sum(1)
    return torch.where(counts > 0, 1 / counts.clamp(min=1), torch.nan)
