"""What the streams that skipping leaves predict: answers, options, surprise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.void_skip.evaluations import EVALUATIONS, FULL, Streams
from interp.analyses.void_skip.masks import Skipping
from interp.analyses.void_skip.texts import NO_KNOWN_ANSWER, TEXT_SCORES
from interp.metrics import outcomes
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.choices import option_order
from interp.sweeps.surprise import nats_per_token
from interp.sweeps.tags import keys_of, rows_of
from interp.tasks import Prompt
from interp.tasks.batch import TokenBatch

ACCURACY, CHOICE, TEXT = "accuracy", "choice accuracy", "nats per token"
SHARES = (ACCURACY, CHOICE, *TEXT_SCORES)
_LOWER_IS_BETTER = (TEXT, NO_KNOWN_ANSWER)

Options = Int[Tensor, "prompt option pos"]
Likelihoods = Float[Tensor, "variant batch"]


def sign_of(score: str) -> int:
    """Return -1 for a score of which less is better, else 1."""
    return -1 if score in _LOWER_IS_BETTER else 1


def option_tensors(model: Model, prompts: Sequence[Prompt], *, seed: int) -> Tensors:
    """Return "options" [prompt option pos], their tokens in a shuffled order padded with -1.

    "right_option" [prompt] is the answer's number, "key" [prompt] stands for the prompt. Raises
    TaskError, naming the prompt, where its own tokens change when an option follows.
    """
    orders = [option_order(prompt, seed=seed) for prompt in prompts]
    right = [order.index(p.option or 0) for order, p in zip(orders, prompts, strict=True)]
    rows = [
        model.options(prompt, [prompt.choices[i] for i in order])
        for prompt, order in zip(prompts, orders, strict=True)
    ]
    n_options, width = max(map(len, rows)), max(len(option) for row in rows for option in row)
    options = torch.full((len(rows), n_options, width), -1)
    for i, row in enumerate(rows):
        for j, option in enumerate(row):
            options[i, j, : len(option)] = torch.tensor(option)
    key = keys_of(prompts)
    return {"key": key, "options": options, "right_option": torch.tensor(right)}


def longer_options(options: Options) -> dict[int, Int[Tensor, "places 2"]]:
    """Return by number of tokens, from 2 on, which options (prompt, option) have it."""
    lengths = (options >= 0).sum(-1)
    return {n: (lengths == n).nonzero() for n in sorted(set(lengths.flatten().tolist())) if n > 1}


@dataclass(frozen=True)
class ScoredOptions:
    """The options [batch option pos] of a shard, and what is known of the longer ones.

    `longer` maps an evaluation to (prompts, options, log-likelihoods [variant option]) of options
    of several tokens, which need texts of their own.
    """

    tokens: Options
    right: Int[Tensor, " batch"]
    longer: dict[str, list[tuple[Tensor, Tensor, Tensor]]]

    @classmethod
    def of(
        cls, recording: Recording, shard: TokenBatch, prepared: Tensors, skipping: Skipping
    ) -> "ScoredOptions":
        """Score the options of several tokens of a shard in every evaluation."""
        rows, device = rows_of(prepared["key"], shard.prompts), shard.tokens.device
        tokens, right = (prepared[name][rows].to(device) for name in ("options", "right_option"))
        scored = cls(tokens, right, {way: [] for way in (FULL, *EVALUATIONS)})
        for n, places in longer_options(tokens).items():
            prompts, which = places.unbind(1)
            option = tokens[prompts, which, :n]
            text = recording.of(torch.cat([shard.tokens[prompts], option[:, :-1]], dim=1))
            of_texts = tuple(shard.prompts[i] for i in prompts.tolist())
            for way, of_way in scored.longer.items():
                streams = skipping.streams(text, of_texts, way)
                likelihoods = [log_likelihood(text, stream, option) for stream in streams]
                of_way.append((prompts, which, torch.cat(likelihoods)))
        return scored

    def single(self, log_p: Float[Tensor, "variant batch d_vocab"]) -> Tensor:
        """Return log-likelihoods [variant batch option] of options of one token; -inf of others."""
        is_single = (self.tokens >= 0).sum(-1) == 1
        first = self.tokens[..., 0].clamp(min=0).expand(len(log_p), -1, -1)
        return torch.where(is_single, log_p.gather(-1, first), -torch.inf)

    def is_right(self, single: Tensor, evaluation: str) -> Likelihoods:
        """Return whether the likeliest option is the answer, given the options of one token."""
        likelihoods = single.clone()
        for prompts, which, longer in self.longer[evaluation]:
            likelihoods[:, prompts, which] = longer
        return (likelihoods.argmax(-1) == self.right).float()


def scores_of(
    recording: Recording,
    streams: Iterable[Streams],
    shard: TokenBatch,
    *,
    wants: Iterable[str],
    options: ScoredOptions | None,
    evaluation: str,
) -> Tensors:
    """Return every wanted score [variant batch] of the streams of an evaluation."""
    scores: dict[str, list[Tensor]] = {}
    for stream in streams:
        read = _read(recording, stream, shard, wants, options)
        for name, value in read.items():
            scores.setdefault(name, []).append(value)
    whole = {name: torch.cat(values) for name, values in scores.items()}
    if options is not None:
        whole[CHOICE] = options.is_right(whole[CHOICE], evaluation)
    return whole


def _read(
    recording: Recording,
    stream: Streams,
    shard: TokenBatch,
    wants: Iterable[str],
    options: ScoredOptions | None,
) -> Tensors:
    """Return scores [variant batch] of streams; of options, likelihoods [variant batch option]."""
    read: Tensors = {}
    if "answer" in wants or options is not None:
        logits = recording.logits(stream[:, :, -1])
    if "answer" in wants:
        assert shard.answer is not None
        read.update(outcomes(logits, shard.answer, shard.wrong).items())
    if options is not None:
        read[CHOICE] = options.single(logits.log_softmax(-1))
    if "text" in wants:
        read[TEXT] = nats_per_token(recording, stream, shard.tokens)
    return read


def log_likelihood(
    recording: Recording, resid: Streams, answer: Int[Tensor, "batch answer_pos"]
) -> Likelihoods:
    """Return the log-probability, in nats, of answers that the last positions predict."""
    n = answer.shape[1]
    log_p = torch.stack([recording.logits(stream[:, -n:]).log_softmax(-1) for stream in resid])
    index = answer[None, ..., None].expand(len(resid), -1, -1, 1)
    of_tokens: Tensor = log_p.gather(-1, index)[..., 0]
    return of_tokens.sum(-1)
