"""What does the stream predict in every layer, once each layer's own language is translated?

The logit lens reads early layers in the last layer's language. "Eliciting Latent Predictions from
Transformers with the Tuned Lens" (arXiv 2303.08112) trains an affine map per layer, A_l h + b_l,
whose result is given to the final norm and the unembedding. Here the map is a ridge regression of
the stream after the last layer on that before layer l, in closed form from sums over tokens,
and nothing is trained: a stand-in that minimises squared error instead of the tuned lens's KL. It
is fitted on texts that the model samples itself at temperature 1, and judged on the task's prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analyses.affine_lens.maps import Towards, Translators, fitted
from interp.analyses.affine_lens.result import LENSES, AffineLensResult
from interp.analyses.affine_lens.texts import (
    check_length,
    rows_at_once,
    sampled_texts,
    start_tokens,
)
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.models import Model
from interp.models.untrained import N_TWINS, twins_of
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Resid, Tensors
from interp.sweeps.lens import READINGS, held, readings
from interp.sweeps.positions import FirstPosition, first_read, require_positions
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

TOKENS_PER_FEATURE = 10  # of the texts, at least
_TOP_K = 5
_OF_ANSWER = [READINGS.index("answer_probability"), READINGS.index("answer_rank")]
_JUDGED = 4  # prompts on which untrained twins are judged


@dataclass(frozen=True)
class AffineLens(Analysis):
    """Read every layer's input by an affine map to the end of the stream.

    `n_tokens` of sampled text are fitted (None: 10 a feature, the fewest allowed), in texts of
    `length` tokens. `towards` "end" fits each layer's map to the end of the stream; "next" fits it
    to the next layer's input, and multiplies the maps. `first_position` says whether token 0 is
    fitted and judged too. `control` "untrained" does the same in three untrained twins.
    """

    towards: Towards = "end"
    n_tokens: Annotated[int | None, AtLeast(1)] = None
    length: Annotated[int, AtLeast(2)] = 64
    first_position: FirstPosition = "excluded"
    control: Literal["untrained", "none"] = "untrained"
    seed: int = 0
    question: ClassVar[str] = (
        "What does the stream predict at every layer, once translated to the basis of the last?"
    )
    how: ClassVar[str] = (
        "A ridge regression per layer, fitted on text sampled from the model, predicts the end of"
        " the stream; final norm and unembedding read it. Its KL from the final prediction is"
        " compared with the logit lens, the mean alone, maps of shuffled layers and untrained"
        " models."
    )
    caveat: ClassVar[str] = (
        "The map may use what the model itself does not use: that a layer can be read says nothing"
        " of what later layers read there."
    )
    rank: ClassVar[int] = 3
    page: ClassVar[str] = "analysis"

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for one layer, too few tokens to fit, long texts, prompts without a position."""
        if model.n_layers < 2:
            raise UnsuitedError("the model has 1 layer; a lens is compared with another layer's")
        require_positions(shard, first_position=self.first_position)
        fewest = TOKENS_PER_FEATURE * model.d_model
        if self._n_tokens(model) < fewest:
            raise AnalysisError(
                f"n_tokens={self.n_tokens}; a lens of {model.d_model} features needs at least"
                f" {fewest} tokens"
            )
        if model.d_vocab < _TOP_K:
            raise AnalysisError(f"the model has {model.d_vocab} tokens; {_TOP_K} are compared")
        check_length(model, self.length)

    def _n_tokens(self, model: Model) -> int:
        return self.n_tokens or TOKENS_PER_FEATURE * model.d_model

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return the fitted lens, which other layer's map each layer gets, and twins' KLs.

        "order" [layer]; "twins" [twin 2 layer] are KL(final‖lens) in untrained twins, of the affine
        and of the logit lens.
        """
        batches = [model.tokenize(shard) for shard in model.shards(task)]
        starts = start_tokens(batches)
        n_tokens = self._n_tokens(model)
        texts = [
            *sampled_texts(model, starts, n_tokens=n_tokens, length=self.length, seed=self.seed)
        ]
        begin = first_read(self.first_position)
        prepared = self._fitted(model, texts).tensors() | {"order": self._order(model.n_layers)}
        if self.control == "none":
            return prepared
        judged = batches[0].only(range(min(_JUDGED, len(batches[0].prompts))))
        kls = []
        for twin in twins_of(model, seed=self.seed):
            lens, recording = self._fitted(twin, texts), twin.record(judged)
            both = [_read(recording, _streams(recording, lens, of), None, begin) for of in _BOTH]
            kls.append(torch.stack(both)[..., READINGS.index("kl_final_lens")].mean(1))
        return prepared | ({"twins": torch.stack(kls)} if kls else {})

    def _fitted(self, model: Model, texts: Sequence[TokenBatch]) -> Translators:
        return fitted(model, texts, towards=self.towards, begin=first_read(self.first_position))

    def _order(self, n_layers: int) -> Int[Tensor, " layer"]:
        """Return another layer for each layer, from one random cycle through all of them."""
        cycle = torch.randperm(n_layers, generator=torch.Generator().manual_seed(self.seed))
        order = torch.empty_like(cycle)
        order[cycle] = cycle.roll(1)
        return order

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return "readings" [batch lens layer reading] of `LENSES`, means over positions.

        The answer's are those at the last position. "ridge" [batch layer] and "twins"
        [batch twin 2 layer] are the same for all prompts.
        """
        lens, begin = Translators.of(prepared), first_read(self.first_position)
        streams = [_streams(recording, lens, of, prepared["order"]) for of in LENSES]
        read = [_read(recording, stream, shard.answer, begin) for stream in streams]
        n, shape = len(shard.prompts), read[0].shape
        tensors = {
            "readings": torch.stack([each.expand(shape) for each in read], dim=1),
            "ridge": prepared["ridge"].expand(n, -1).contiguous(),
        }
        if "twins" in prepared:
            tensors["twins"] = prepared["twins"].expand(n, -1, -1, -1).contiguous()
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> AffineLensResult:
        """Return the readings of all prompts."""
        return AffineLensResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the readings of three lenses, and once the texts, the fits and the twins."""
        (n, n_pos), n_layers, d = shard.tokens.shape, model.n_layers, model.d_model
        n_twins = N_TWINS if self.control == "untrained" else 0
        n_tokens, rows = self._n_tokens(model), n * n_pos * (3 * n_layers + len(LENSES) + 1)
        # a token is sampled in the time of two passes; a layer's fit takes 13 d / L tokens' passes
        # (measured at d = 576, L = 30), and the unembedding d_vocab / (12 d L) of a pass
        once = float(n_tokens * (3 + n_twins) + 13 * d * (1 + n_twins))
        once += n_twins * min(_JUDGED, n) * n_pos * model.d_vocab / (6 * d)
        numbers = n * n_layers * (len(LENSES) * len(READINGS) + 1 + 2 * n_twins)
        moments = 2 * n_layers * (1 + d) * (1 + 2 * d)
        written = rows_at_once(model.d_vocab, self.length) * self.length * model.d_vocab
        streams = n * n_pos * n_layers * d + held(n * n_pos, model.d_vocab)
        most = max(2 * (moments + n_layers * d**2), written, streams)  # fp64 counts twice
        return Cost(0.0, numbers, most + n_layers * d**2, logits=rows, once=once)


_BOTH = LENSES[:2]


def _streams(
    recording: Recording, lens: Translators, of: str, order: Int[Tensor, " layer"] | None = None
) -> list[Resid]:
    """Return what one of `LENSES` makes of every layer's input; one for all if it is constant."""
    taps = [recording.resid(layer) for layer in range(recording.n_layers)]
    if of == "logit lens":
        return taps
    if of == "mean alone":
        return [lens.constant(taps[-1])]
    layers = range(len(taps)) if of == "affine lens" or order is None else order.tolist()
    return [lens(layer, resid) for layer, resid in zip(layers, taps, strict=True)]


def _read(
    recording: Recording, streams: Sequence[Resid], answer: Tensor | None, begin: int
) -> Float[Tensor, "batch tap reading"]:
    """Return readings of streams: means over positions, and the answer's at the last."""
    read, _ = readings(recording, streams, top_k=_TOP_K, answer=answer)
    of_prompts = read[:, :, begin:].mean(2)
    of_prompts[..., _OF_ANSWER] = read[:, :, -1, _OF_ANSWER]
    return of_prompts.cpu()
