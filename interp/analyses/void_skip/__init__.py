"""Does it hurt to skip the layers that leave a token alone, and more or less than skipping others
as often?

"Void in Language Models" (arXiv 2505.14467) finds voids (see void_detection) and reports scores
"with voids skipped". Its code runs every layer and reads the prediction from behind the last active
one. That and two ways of really skipping are kept apart here: "read-out" (as published), "masked
stream" (voids judged on the stream that earlier voids have left; all layers run) and "two-pass"
(voids of a clean pass are bypassed in a second one; without their keys and values, or with them
kept). Each has controls that skip as much: random layers, random tokens, and the layers of least
block influence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from interp.analyses.void_skip.masks import (
    KINDS,
    Streams,
    bypass,
    chunks_of,
    drawn,
    log_likelihood,
    masked_stream,
    n_drawn,
    nats_per_token,
    over_draws,
    read_out,
    share_of_keys,
    with_controls,
)
from interp.analyses.void_skip.options import longer_options, option_tokens
from interp.analyses.void_skip.verdicts import ALIAS, EXACT, NO_ANSWER, known_names, verdict
from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, TaskError, unknown
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.stats.paired import Difference, paired_p
from interp.sweeps.answers import require_answers
from interp.sweeps.choices import is_choice, option_order
from interp.sweeps.cosines import influence
from interp.sweeps.voids import Active, active_layers, keys_of, norms_of, require_alphas, rows_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

EVALUATIONS = ("read-out", "masked stream", "two-pass", "two-pass, keys kept")
_ASKED = ("answer", "choices", "text")
_CLEAN, _MASKED = range(2)
_ACCURACY, _LOGIT, _CHOICE, _TEXT = "accuracy", "answer logit", "choice accuracy", "nats per token"
_EXACT, _ALIAS, _FORMAT = "generated: exact", "generated: exact or alias", "generated: no answer"
SCORES = (_ACCURACY, _LOGIT, _CHOICE, _EXACT, _ALIAS, _FORMAT, _TEXT)
_P = 0.05  # and an interval without 0: only then does the summary call a difference clear
_LOWER_IS_BETTER = (_TEXT, _FORMAT)
_IN_WORDS = {
    _ACCURACY: "accuracy",
    _CHOICE: "choice accuracy",
    _EXACT: "exact answers",
    _TEXT: "perplexity",
}


@dataclass(frozen=True)
class VoidSkip(Analysis):
    """Skip the voids found at `alpha` (and `alphas`) and score the task; random controls are means
    of `n_random` draws.

    `scores`: "answer" (the answer's first token: is it the first choice, and its logit), "choices"
    (the likeliest option), "text" (perplexity); all that suit the prompts, if none is named, text
    only without answers. With `max_new_tokens`, greedy responses of that length are matched with
    the answer too. Without `first_position`, token 0 skips nothing. Rates and block influence are
    measured on the task's first `n_calibration` prompts.
    """

    alpha: float = 0.8
    alphas: tuple[float, ...] = (0.2, 0.4)
    scores: tuple[str, ...] = ()
    max_new_tokens: int = 0
    n_random: int = 2
    first_position: bool = True
    n_calibration: int = 32
    seed: int = 0
    question: ClassVar[str] = (
        "Does skipping void layers hurt, and less than skipping others as often?"
    )
    how: ClassVar[str] = (
        "Layers found void are left out for their tokens in three ways: the prediction is read from"
        " behind the last active layer (as published), the stream is masked, or a second pass"
        " bypasses them. Each is compared with controls that skip as much."
    )
    caveat: ClassVar[str] = (
        "Voids are found by a full pass, so what is saved has to be weighed against finding them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_alphas(self.all_alphas)
        for name in self.scores:
            if name not in _ASKED:
                raise AnalysisError(unknown("score", name, _ASKED))
        for name, least in (("n_random", 1), ("n_calibration", 1), ("max_new_tokens", 0)):
            if getattr(self, name) < least:
                raise AnalysisError(f"{name}={getattr(self, name)}; at least {least} is needed")

    @property
    def all_alphas(self) -> tuple[float, ...]:
        """Return every threshold asked for, in order."""
        return tuple(sorted({self.alpha, *self.alphas}))

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError, naming prompts, where an answer or choices are asked for and missing, or
        a text is too short.
        """
        if "answer" in self.scores or self.max_new_tokens:
            require_answers(shard)
        if self.max_new_tokens:
            model.refuse_texts(shard.prompts)
        if "choices" in self.scores:
            for prompt in shard.prompts:
                option_order(prompt)
        if self.max_new_tokens:
            model.refuse_responses(shard, self.max_new_tokens)
        if self._wants_text(shard) and shard.tokens.shape[1] < 2:
            raise TaskError(
                f"prompt {shard.prompts[0].id!r} has 1 token; perplexity needs at least 2"
            )

    def _wants_text(self, shard: TokenBatch) -> bool:
        return "text" in self.scores or (not self.scores and shard.answer is None)

    # What every shard needs

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return void rates and block influence of the first prompts, options, and verdicts on
        generated texts.
        """
        prepared = self._calibrate(model, task)
        if "choices" in self.scores or (not self.scores and all(map(is_choice, task.prompts))):
            prepared |= {"key": keys_of(task.prompts)} | self._options(model, task.prompts)
        if self.max_new_tokens:
            prepared |= self._spoken(model, task, prepared)
        return prepared

    @torch.no_grad()
    def _calibrate(self, model: Model, task: Task) -> Tensors:
        """Return block influence and the share of weights that make keys [layer], and void rates
        [base alpha layer].
        """
        turned, void, n_tokens = torch.zeros(model.n_layers), torch.zeros(()), 0
        first = task.of(task.prompts[: self.n_calibration])
        for shard in map(model.tokenize, model.shards(first)):
            recording = model.record(shard)
            pairs = [
                (recording.resid(layer), recording.resid(layer + 1))
                for layer in range(model.n_layers)
            ]
            turned = turned + torch.stack([influence(*pair)[..., 0].sum() for pair in pairs]).cpu()
            bases = torch.stack(
                [self._base(recording, name) for name in ("two-pass", "masked stream")]
            )
            void = void + (~bases).sum((2, 4)).cpu()
            n_tokens += shard.tokens.numel() - (0 if self.first_position else len(shard.prompts))
        shares = [share_of_keys(recording, layer) for layer in range(model.n_layers)]
        return {
            "influence": turned / n_tokens,
            "rates": void / n_tokens,
            "key_share": torch.tensor(shares),
        }

    def _base(self, recording: Recording, evaluation: str) -> Active:
        """Return what is active [alpha batch layer pos] by a clean pass, or by the stream that
        voids have left.
        """
        if evaluation == "masked stream":
            return masked_stream(recording, self.all_alphas, first_position=self.first_position)
        clean = active_layers(norms_of(recording), self.all_alphas)
        if not self.first_position:
            clean[..., 0] = True
        return clean

    def _options(self, model: Model, prompts: Sequence[Prompt]) -> Tensors:
        """Return the shuffled options' tokens [prompt option pos], padded with -1, and which of
        them is the answer.
        """
        orders = [option_order(prompt, seed=self.seed) for prompt in prompts]
        right = [
            order.index(prompt.option or 0) for order, prompt in zip(orders, prompts, strict=True)
        ]
        return {
            "options": option_tokens(model, prompts, orders),
            "right_option": torch.tensor(right),
        }

    @torch.no_grad()
    def _spoken(self, model: Model, task: Task, prepared: Tensors) -> Tensors:
        """Return verdicts on greedy texts, of the full model [prompt] and of each way of skipping;
        texts are not resumed.
        """
        known, parts = known_names(task), []
        for shard in map(model.tokenize, model.shards(task)):

            def judged(texts: Sequence[str], prompts: tuple[Prompt, ...] = shard.prompts) -> Tensor:
                return torch.tensor(
                    [verdict(text, p, known[p.id]) for text, p in zip(texts, prompts, strict=True)]
                )

            full = judged(model.generate(shard, max_new_tokens=self.max_new_tokens).texts)
            ways = [
                torch.stack(
                    [
                        judged(texts)
                        for texts in self._texts(model, shard, prepared, evaluation, alpha)
                    ],
                    dim=-1,
                )
                for evaluation in EVALUATIONS
                for alpha in range(len(self.all_alphas))
            ]
            by_way = rearrange(
                torch.stack(ways),
                "(way alpha) batch kind -> batch way alpha kind",
                way=len(EVALUATIONS),
            )
            parts.append((keys_of(shard.prompts), full, by_way))
        keys, said_full, said = (torch.cat(column) for column in zip(*parts, strict=True))
        return {"said.key": keys, "said.full": said_full, "said": said}

    def _texts(
        self, model: Model, shard: TokenBatch, prepared: Tensors, evaluation: str, alpha: int
    ) -> list[list[str]]:
        """Return greedy texts [kind][batch]: every token is chosen after all before it were run,
        and skipped, anew.
        """
        kinds, n_new = range(len(KINDS)), self.max_new_tokens
        drawn_as = [
            alpha * n_drawn(self.n_random) + i
            for i in (0, 1, 1 + self.n_random, 1 + 2 * self.n_random)
        ]
        tokens, prompts = shard.tokens.repeat(len(kinds), 1), shard.prompts * len(kinds)
        recording = model.record(shard)
        mask, last = torch.ones_like(tokens, dtype=torch.bool), shard.last.repeat(len(kinds))
        choose = model.chooser(TokenBatch(prompts, tokens, mask, last), max_new_tokens=n_new)
        for n_said in range(n_new):
            now = recording.of(tokens, is_stored=False)
            masks = self._masks(now, prompts, prepared, evaluation)[drawn_as]
            own = rearrange(
                masks, "drawn (kind batch) layer pos -> drawn kind batch layer pos", kind=len(kinds)
            )
            mask = torch.cat([own[kind, kind] for kind in kinds])[None]
            last = next(self._streams(now, evaluation, mask))[0, :, -1:]
            chosen = choose(tokens[:, tokens.shape[1] - n_said :], now.logits(last)[:, 0])
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        new = tokens[:, -n_new:]
        is_end = torch.isin(new, torch.tensor(choose.ends, dtype=torch.long, device=new.device))
        rows = [
            row[~ended].tolist() for row, ended in zip(new, is_end.cummax(1).values, strict=True)
        ]
        texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            texts[kind * len(shard.prompts) : (kind + 1) * len(shard.prompts)] for kind in kinds
        ]

    # One shard

    def _masks(
        self, recording: Recording, prompts: Sequence[Prompt], prepared: Tensors, evaluation: str
    ) -> Active:
        """Return what is active for every alpha, kind and draw [variant batch layer pos]."""
        base, n_layers, n_pos = (
            self._base(recording, evaluation),
            recording.n_layers,
            recording.n_pos,
        )
        uniform = drawn(
            prompts, n=2 * self.n_random, n_layers=n_layers, n_pos=n_pos, seed=self.seed
        ).to(base.device)
        if not self.first_position:
            uniform[..., 0] = 2.0  # above any rate
        rates = prepared["rates"][_MASKED if evaluation == "masked stream" else _CLEAN].to(
            base.device
        )
        return with_controls(
            base, uniform, rates=rates, influence=prepared["influence"].to(base.device)
        )

    def _streams(self, recording: Recording, evaluation: str, masks: Active) -> Iterator[Streams]:
        """Yield the streams that the unembedding reads, a few variants at a time."""
        for chunk in chunks_of(recording, masks):
            if evaluation == "read-out":
                yield read_out(recording, chunk)
            else:
                yield bypass(recording, chunk, keys_kept=evaluation != "two-pass")

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return scores of the full model [batch] and of each way of skipping [batch evaluation
        alpha kind].

        "skipped" and "skipped.last" are the shares of layers skipped, over all tokens and at the
        last.
        """
        options = (
            prepared["options"][rows_of(prepared["key"], shard.prompts)]
            if "options" in prepared
            else None
        )
        full = recording.resid(recording.n_layers)[None]
        tensors = {
            f"full.{name}": value[0]
            for name, value in self._read(recording, full, shard, options).items()
        }
        ways: dict[str, list[Tensor]] = {"skipped": [], "skipped.last": []}
        for evaluation in EVALUATIONS:
            masks = self._masks(recording, shard.prompts, prepared, evaluation)
            found: dict[str, list[Tensor]] = {}
            for stream in self._streams(recording, evaluation, masks):
                for name, value in self._read(recording, stream, shard, options).items():
                    found.setdefault(name, []).append(value)
            for name, values in found.items():
                ways.setdefault(name, []).append(torch.cat(values))
            skipped = (~masks).float().mean(2)
            ways["skipped"].append(skipped.mean(-1))
            ways["skipped.last"].append(skipped[..., -1])
        tensors |= {name: torch.stack(values, dim=1) for name, values in ways.items()}
        if options is not None:
            tensors = self._chosen(recording, shard, prepared, tensors)
        measured = {name: _by_way(value, n_random=self.n_random) for name, value in tensors.items()}
        measured["n_tokens"] = torch.full((len(shard.prompts),), shard.tokens.shape[1] - 1)
        measured["key_share"] = prepared["key_share"].expand(len(shard.prompts), -1).clone()
        if "said" in prepared:
            rows = rows_of(prepared["said.key"], shard.prompts)
            for name, least, most in (
                (_EXACT, EXACT, EXACT),
                (_ALIAS, ALIAS, EXACT),
                (_FORMAT, NO_ANSWER, NO_ANSWER),
            ):
                for prefix, said in (
                    ("full.", prepared["said.full"][rows]),
                    ("", prepared["said"][rows]),
                ):
                    measured[f"{prefix}{name}"] = ((said >= least) & (said <= most)).float()
        return {name: value.cpu() for name, value in measured.items()}

    def _read(
        self,
        recording: Recording,
        stream: Streams,
        shard: TokenBatch,
        options: Tensor | None,
    ) -> Tensors:
        """Return scores [variant batch] of streams; of options of one token, log-likelihoods as
        "option.NUMBER".
        """
        read: Tensors = {}
        wants_answer = shard.answer is not None and (not self.scores or "answer" in self.scores)
        if wants_answer or options is not None:
            logits = recording.logits(stream[:, :, -1])
        if wants_answer:
            assert shard.answer is not None
            read[_ACCURACY] = (logits.argmax(-1) == shard.answer).float()
            read[_LOGIT] = logits.gather(
                -1, shard.answer[None, :, None].expand(len(stream), -1, 1)
            )[..., 0]
        if options is not None:
            log_p = logits.log_softmax(-1)
            for i, option in enumerate(options.unbind(1)):
                is_single = (option >= 0).sum(1) == 1
                at = (
                    option[:, 0]
                    .clamp(min=0)
                    .to(log_p.device)[None, :, None]
                    .expand(len(stream), -1, 1)
                )
                read[f"option.{i}"] = torch.where(
                    is_single.to(log_p.device), log_p.gather(-1, at)[..., 0], -torch.inf
                )
        if self._wants_text(shard):
            read[_TEXT] = nats_per_token(recording, stream, shard.tokens)
        return read

    def _chosen(
        self, recording: Recording, shard: TokenBatch, prepared: Tensors, tensors: Tensors
    ) -> Tensors:
        """Return the tensors with whether the likeliest option is right, instead of likelihoods."""
        rows = rows_of(prepared["key"], shard.prompts)
        options, right = (
            prepared["options"][rows],
            prepared["right_option"][rows].to(shard.tokens.device),
        )
        for n, pairs in longer_options(options).items():
            self._scorelonger_options(
                recording, shard, prepared, options, pairs=pairs, n=n, into=tensors
            )
        for prefix in ("full.", ""):
            likelihoods = [tensors.pop(f"{prefix}option.{i}") for i in range(options.shape[1])]
            tensors[f"{prefix}{_CHOICE}"] = (torch.stack(likelihoods).argmax(0) == right).float()
        return tensors

    def _scorelonger_options(
        self,
        recording: Recording,
        shard: TokenBatch,
        prepared: Tensors,
        options: Tensor,
        *,
        pairs: Int[Tensor, "pair 2"],
        n: int,
        into: Tensors,
    ) -> None:
        """Write the log-likelihoods of options of `n` tokens, which need texts of their own, into
        "option.NUMBER".
        """
        prompts, which = pairs.unbind(1)
        answer = options[prompts, which, :n].to(shard.tokens.device)
        longer = recording.beside(torch.cat([shard.tokens[prompts], answer[:, :-1]], dim=1))
        of_pairs = tuple(shard.prompts[i] for i in prompts.tolist())
        masks = {name: self._masks(longer, of_pairs, prepared, name) for name in EVALUATIONS}
        full = log_likelihood(longer, longer.resid(longer.n_layers)[None], answer)[0]
        ways = torch.stack(
            [
                torch.cat(
                    [
                        log_likelihood(longer, s, answer)
                        for s in self._streams(longer, name, masks[name])
                    ]
                )
                for name in EVALUATIONS
            ],
            dim=1,
        )
        for i, (prompt, option) in enumerate(pairs.tolist()):
            into[f"full.option.{option}"][prompt] = full[i]
            into[f"option.{option}"][:, :, prompt] = ways[..., i]

    def combine(self, parts: Sequence[Tensors]) -> "VoidSkipResult":
        """Return scores of all prompts; a score that some prompts do not have is of the others."""
        names = dict.fromkeys(name for part in parts for name in part)
        arrays = {
            n: torch.cat([part[n] for part in parts if n in part]).double().numpy() for n in names
        }
        weights = [part["n_tokens"] for part in parts if _TEXT in part]
        return VoidSkipResult(
            self, arrays, torch.cat(weights).double().numpy() if weights else None
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """A pass per alpha for the masked stream, and one for each mask of the three evaluations
        that run layers.

        As many, and a clean one, for options of several tokens. Generated texts are made once,
        before the shards.
        """
        n_alphas = len(self.all_alphas)
        masks = n_alphas * n_drawn(self.n_random)
        passes = n_alphas + (len(EVALUATIONS) - 1) * masks
        forwards, (n, n_pos) = float(passes), shard.tokens.shape
        if "choices" in self.scores or (not self.scores and all(map(is_choice, shard.prompts))):
            options = self._options(model, shard.prompts)["options"]
            for width, pairs in longer_options(options).items():
                forwards += (passes + 1) * len(pairs) * (n_pos + width - 1) / (n * n_pos)
        numbers = n * (len(EVALUATIONS) * n_alphas * len(KINDS) * 6 + model.n_layers)
        held = 8 * shard.tokens.numel() * model.d_model + masks * (
            shard.tokens.numel() * model.n_layers + n * model.d_vocab
        )
        return Cost(forwards, numbers, held)


def _by_way(value: Tensor, *, n_random: int) -> Tensor:
    """Return [batch evaluation alpha kind] of [variant evaluation batch], draws averaged; [batch]
    stays as it is.
    """
    if value.ndim == 1:
        return value
    return torch.stack([over_draws(of, n_random=n_random) for of in value.unbind(1)], dim=1)


@dataclass(frozen=True, repr=False)
class VoidSkipResult(Result):
    """Scores [prompt evaluation alpha kind] by name, those of the full model [prompt] as
    "full.NAME".
    """

    analysis: VoidSkip
    arrays: dict[str, np.ndarray]
    n_tokens: np.ndarray | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """Return what was scored."""
        return tuple(name for name in SCORES if name in self.arrays)

    @property
    def main_score(self) -> str:
        """Return the score that is drawn and spoken of."""
        return next(name for name in (_ACCURACY, _CHOICE, _TEXT) if name in self.arrays)

    def skipped(self, evaluation: str, *, alpha: float | None = None, kind: str = "voids") -> float:
        """Return the share of layers that are skipped, over all tokens."""
        return float(
            self.arrays["skipped"][(slice(None), *self._at(evaluation, alpha, kind))].mean()
        )

    def per_prompt(
        self, score: str, evaluation: str, *, alpha: float | None = None, kind: str = "voids"
    ) -> np.ndarray:
        """Return a score of every prompt [prompt], random kinds averaged over draws."""
        return np.asarray(self.arrays[score][(slice(None), *self._at(evaluation, alpha, kind))])

    def _at(self, evaluation: str, alpha: float | None, kind: str) -> tuple[int, int, int]:
        alphas = self.analysis.all_alphas
        chosen = self.analysis.alpha if alpha is None else alpha
        return EVALUATIONS.index(evaluation), alphas.index(chosen), KINDS.index(kind)

    def _weights(self, score: str) -> np.ndarray | None:
        return self.n_tokens if score == _TEXT else None

    def against_full(
        self, score: str, evaluation: str, *, alpha: float | None = None, kind: str = "voids"
    ) -> Difference:
        """Return by how much a score is above the full model's."""
        own = self.per_prompt(score, evaluation, alpha=alpha, kind=kind)
        return Difference.of(
            own - self.arrays[f"full.{score}"],
            weights=self._weights(score),
            seed=self.analysis.seed,
        )

    def gain(
        self, score: str, evaluation: str, *, over: str, alpha: float | None = None
    ) -> Difference:
        """Return by how much voids are better than a control, in the unit of the score; negative if
        they are worse.
        """
        own, other = (
            self.per_prompt(score, evaluation, alpha=alpha, kind=kind) for kind in ("voids", over)
        )
        better = other - own if score in _LOWER_IS_BETTER else own - other
        return Difference.of(better, weights=self._weights(score), seed=self.analysis.seed)

    def best_control(self, score: str, evaluation: str, *, alpha: float | None = None) -> str:
        """Return the control with the best mean score."""
        sign = -1 if score in _LOWER_IS_BETTER else 1
        means = {
            kind: np.average(
                self.per_prompt(score, evaluation, alpha=alpha, kind=kind),
                weights=self._weights(score),
            )
            for kind in KINDS[1:]
        }
        return max(means, key=lambda kind: sign * means[kind])

    def saved(self, evaluation: str, *, alpha: float | None = None, kind: str = "voids") -> float:
        """Return the share of a forward that skipping leaves out, in the pass that skips: 0 where
        every layer runs.

        Where keys are kept, the share of a layer's weights that makes them is still needed.
        """
        skipped = self.skipped(evaluation, alpha=alpha, kind=kind)
        keys = float(self.arrays["key_share"].mean())
        return {"two-pass": skipped, "two-pass, keys kept": skipped * (1 - keys)}.get(
            evaluation, 0.0
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per score, evaluation, alpha and kind of mask; the full model's as
        evaluation "full model".

        mean, low, high (95 % bootstrap over prompts); difference to the full model with interval
        and p (paired); gain of the voids over this control, positive where voids are better, with
        interval and p. skipped and skipped_last are shares of layers, over all tokens and at the
        last; saved the share of a forward that is left out by the pass that skips, saved_in_all
        counts the first pass, where voids need one.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return pd.concat([*self._full_rows(), *self._rows()], ignore_index=True)

    def _full_rows(self) -> Iterator[pd.DataFrame]:
        for score in self.scores:
            values, weights = self.arrays[f"full.{score}"], self._weights(score)
            (low,), (high,) = bootstrap_interval(
                values[:, None], weights=weights, seed=self.analysis.seed
            )
            mean = np.average(values, weights=weights)
            row = {
                "score": score,
                "evaluation": "full model",
                "alpha": np.nan,
                "kind": "none",
                "mean": mean,
                "low": low,
            }
            row |= {
                "high": high,
                "skipped": 0.0,
                "skipped_last": 0.0,
                "saved": 0.0,
                "saved_in_all": 0.0,
            }
            yield pd.DataFrame([row | {"n_prompts": len(values)}])

    def _rows(self) -> Iterator[pd.DataFrame]:
        each = list(product(EVALUATIONS, self.analysis.all_alphas, KINDS))
        ways = pd.DataFrame(each, columns=["evaluation", "alpha", "kind"])
        is_voids = (ways["kind"] == "voids").to_numpy()
        needs_first = is_voids & ways["evaluation"].str.startswith("two-pass").to_numpy()
        saved = np.array(
            [self.saved(evaluation, alpha=alpha, kind=kind) for evaluation, alpha, kind in each]
        )
        shares = {"skipped": "skipped", "skipped_last": "skipped.last"}
        shared = {name: self.arrays[key].mean(0).ravel() for name, key in shares.items()}
        shared |= {"saved": saved, "saved_in_all": saved - needs_first}
        for score in self.scores:
            values = self.arrays[score]
            sign = -1 if score in _LOWER_IS_BETTER else 1
            differences = values - self.arrays[f"full.{score}"][:, None, None, None]
            numbers = self._numbers(score, "mean", values) | self._numbers(
                score, "difference", differences, is_tested=True
            )
            gains = self._numbers(score, "gain", sign * (values[..., :1] - values), is_tested=True)
            numbers |= {name: np.where(is_voids, np.nan, gain) for name, gain in gains.items()}
            yield ways.assign(score=score, **numbers, **shared, n_prompts=len(values))

    def _numbers(
        self, score: str, name: str, values: np.ndarray, *, is_tested: bool = False
    ) -> dict[str, np.ndarray]:
        """Return the mean of values [prompt ...] with its interval and, of differences, p; one
        number a way of skipping.
        """
        weights, flat = self._weights(score), values.reshape(len(values), -1)
        low, high = bootstrap_interval(flat, weights=weights, seed=self.analysis.seed)
        prefix = f"{name}_" if is_tested else ""
        numbers = {
            name: np.average(flat, axis=0, weights=weights),
            f"{prefix}low": low,
            f"{prefix}high": high,
        }
        return numbers | (
            {f"{name}_p": np.array([paired_p(way) for way in flat.T])} if is_tested else {}
        )

    def plot(self) -> go.Figure:
        """Draw the score against alpha, one panel per evaluation, voids beside their controls and
        the full model.
        """
        score = self.main_score
        frame = self.to_frame()
        frame = frame[frame["score"] == score]
        full = frame[frame["evaluation"] == "full model"]
        shown = frame[frame["evaluation"] != "full model"].rename(columns={"alpha": "α"})
        lines = [
            full.assign(alpha=alpha, evaluation=name, kind="full model").rename(
                columns={"alpha": "α"}
            )
            for name in EVALUATIONS
            for alpha in self.analysis.all_alphas
        ]
        shown = pd.concat([shown, *lines], ignore_index=True)
        title = (
            f"{_IN_WORDS[score].capitalize()} with void layers skipped, and with as many others"
            " skipped"
        )
        if score == _TEXT:
            shown[["mean", "low", "high"]] = np.exp(shown[["mean", "low", "high"]])
        figure = lines_over_depth(
            shown, y="mean", groups="kind", panels="evaluation", title=title, x="α"
        )
        if score != _TEXT:
            figure.update_yaxes(range=[-0.03, 1.03])
        return figure.update_yaxes(title_text=_IN_WORDS[score], col=1)

    def findings(self) -> tuple[Finding, ...]:
        """Return for every way of skipping by how much voids beat the best control."""
        score, found = self.main_score, list[Finding]()
        for evaluation in EVALUATIONS:
            control = self.best_control(score, evaluation)
            gain = self.gain(score, evaluation, over=control)
            claim = (
                f"{evaluation}: voids {self._verdict(score, evaluation)} the best control,"
                f" {control}."
            )
            of = "nats per token" if score == _TEXT else "share right"
            measure = f"gain of voids over the best control, {evaluation} ({of})"
            found.append(
                old_finding(
                    claim if found else self.summary(),
                    gain.mean,
                    measure,
                    gain.low,
                    gain.high,
                    gain.n,
                )
            )
        return tuple(found)

    def summary(self) -> str:
        """Say what each evaluation costs against the full model, whether voids beat their controls,
        and what is saved.
        """
        score = self.main_score
        full = np.average(self.arrays[f"full.{score}"], weights=self._weights(score))
        said = " ".join(self._told(score, evaluation) for evaluation in EVALUATIONS)
        saved = self.saved("two-pass")
        last = self.per_prompt("skipped.last", "two-pass").mean()
        verdicts = [self._verdict(score, evaluation) for evaluation in EVALUATIONS]
        return (
            f"At α = {self.analysis.alpha:g}, {self.skipped('two-pass'):.0%} of all layers are void"
            f" ({last:.0%} at the last token). Voids beat the best control that skips as much in"
            f" {verdicts.count('beat')} of {len(verdicts)} evaluations, and lose to it in"
            f" {verdicts.count('lose to')}. The full model's {_IN_WORDS[score]} is"
            f" {_shown(score, full)} ({len(self.arrays[score])} prompts). {said} Compute: reading"
            " out and the masked stream run every layer and save none; the second pass of two-pass"
            f" leaves out {saved:.0%} ({self.saved('two-pass, keys kept'):.0%} if keys are kept),"
            f" and with the first pass it takes {2 - saved:.2f} forwards instead of"
            f" 1.{self._formats()}"
        )

    def _verdict(self, score: str, evaluation: str) -> str:
        gain = self.gain(score, evaluation, over=self.best_control(score, evaluation))
        if gain.p >= _P or gain.low <= 0 <= gain.high:
            return "do not clearly differ from"
        return "beat" if gain.mean > 0 else "lose to"

    def _told(self, score: str, evaluation: str) -> str:
        difference, control = (
            self.against_full(score, evaluation),
            self.best_control(score, evaluation),
        )
        own, other = (
            np.average(self.per_prompt(score, evaluation, kind=kind), weights=self._weights(score))
            for kind in ("voids", control)
        )
        gain = self.gain(score, evaluation, over=control)
        how = self._verdict(score, evaluation)
        name = evaluation[0].upper() + evaluation[1:]
        return (
            f"{name}: {_shown(score, own)} (against the full model p = {difference.p:.2g}); voids"
            f" {how} the best control, {control} ({_shown(score, other)}): {_gained(score, gain)},"
            f" p = {gain.p:.2g}."
        )

    def _formats(self) -> str:
        if _FORMAT not in self.arrays:
            return ""
        shares = {
            "full model": [self.arrays[f"full.{score}"].mean() for score in (_ALIAS, _FORMAT)]
        }
        shares |= {
            name: [self.per_prompt(score, name).mean() for score in (_ALIAS, _FORMAT)]
            for name in EVALUATIONS
        }
        said = "; ".join(
            f"{name} {right:.0%} and {none:.0%}" for name, (right, none) in shares.items()
        )
        return (
            f" Generated texts ({self.analysis.max_new_tokens} tokens) that begin with the answer"
            " or an alias, and with no known answer (a failure of format, not a wrong answer):"
            f" {said}."
        )


def _shown(score: str, mean: float) -> str:
    return f"{np.exp(mean):.2f}" if score == _TEXT else f"{mean:.0%}"


def _gained(score: str, gain: Difference) -> str:
    if score == _TEXT:
        return f"{gain.mean:+.2f} nats per token [{gain.low:+.2f} to {gain.high:+.2f}]"
    mean, low, high = (100 * x for x in (gain.mean, gain.low, gain.high))
    return f"{mean:+.0f} points [{low:+.0f} to {high:+.0f}]"
