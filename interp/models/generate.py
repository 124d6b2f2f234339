"""Greedy and sampled decoding with a K/V cache, with interventions and captures.

Prompts, responses or both can be intervened on and captured.

Prompts are padded on the left, so that all responses grow at the same place; positions are counted
per prompt. Plans and captures keep the layout of the batch that was given (padding on the right,
the response after it).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.activations import Activations
from interp.errors import SiteError, unknown
from interp.figures.words import counted, shortened
from interp.interventions import Intervention, among
from interp.models.decoding import Chooser
from interp.models.edits import Editing, Edits
from interp.models.forward import bridge_hooks, stock_hooks
from interp.replay import Block
from interp.sites import Site
from interp.tasks.batch import TokenBatch

Phase = Literal["both", "prefill", "decode"]
_KEYS_TOO = ("pattern", "attn_scores")


@dataclass(frozen=True, repr=False)
class Generation:
    """Prompts and responses [batch pos], laid out as in the batch: prompt, padding, response.

    `mask` is False on padding and after the token that ended a response; `prompt` and `response`
    are the spans of both in `tokens`, `mask` and the captured activations. Nothing is captured at
    the last new token, which no pass has read. `logits` [batch new d_vocab] are the model's own at
    each new token, before what `generation_config` makes of them.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    prompt: slice
    response: slice
    logits: Float[Tensor, "batch new d_vocab"]
    activations: Activations
    texts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        new = f"{counted(len(self.tokens), 'response')} of up to {self.logits.shape[1]} tokens"
        shown = [repr(shortened(text)) for text in self.texts[:2]]
        texts = ", ".join([*shown, "…"] if len(self.texts) > len(shown) else shown)
        activations = self.activations.named()
        return f"Generation({'; '.join(filter(None, (new, texts, activations)))})"


@dataclass(frozen=True, eq=False)
class _Turned:
    """An intervention whose positions, and those of what it edits, are shifted by the padding."""

    intervention: Editing
    turn: Callable[[Tensor, bool], Tensor]
    turn_resid: Callable[[Tensor, bool], Tensor]

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the activation, edited in the layout of the batch."""
        pre = None if resid_pre is None else self.turn_resid(resid_pre, False)
        return self.turn(self.intervention.edit(self.turn(activation, False), pre), True)


@dataclass
class Generator:
    """Runs the passes of one generation; `module` is the stock model, or the bridge's."""

    module: Any
    blocks: Sequence[Block]
    bridge: Any
    batch: TokenBatch
    plan: Mapping[Site, list[Intervention]]
    capture: set[Site]
    phase: Phase
    _parts: dict[Site, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = self.batch.mask.sum(1)
        self.n_pos = int(self.batch.tokens.shape[1])
        self._refuse()
        index = torch.arange(self.n_pos, device=self.lengths.device)
        self._left = (
            index + self.lengths[:, None]
        ) % self.n_pos  # left[i] = right[(i + length) mod n_pos]
        self._right = (index - self.lengths[:, None]) % self.n_pos

    def _refuse(self) -> None:
        if self.phase not in get_args(Phase):
            raise SiteError(unknown("phase", self.phase, get_args(Phase)))
        for site, interventions in self.plan.items():
            for intervention in interventions:
                self._refuse_positions(site, intervention)

    def _refuse_positions(self, site: Site, intervention: Intervention) -> None:
        """Raise SiteError for positions in the padding, and for any while decoding."""
        positions = intervention.positions
        if positions is None:
            return
        if self.phase == "decode":
            raise SiteError(
                f"{site}: positions {_short(positions)} given for decoding;"
                " they are those of the prompt"
            )
        for prompt, length, row in zip(
            self.batch.prompts, self.lengths.tolist(), _per_prompt(positions, self), strict=True
        ):
            if bad := [pos for pos in row if not 0 <= pos < length]:
                raise SiteError(
                    f"position {bad[0]} of {site} asked for;"
                    f" the last token of prompt {prompt.id!r} is at {length - 1}"
                )

    def run(self, *, max_new_tokens: int, choose: Chooser, pad: int) -> Generation:
        """Return what is generated until every response has ended, or is `max_new_tokens` long."""
        mask = self._turn(self.batch.mask, True)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        tokens, cache = self._turn(self.batch.tokens, True), DynamicCache(config=self.module.config)
        new: list[Tensor] = []
        logits: list[Tensor] = []
        alive = self._alive = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        living: list[Tensor] = []
        ends = torch.tensor(choose.ends, dtype=torch.long, device=tokens.device)
        while True:
            last = self._step(tokens, mask, positions, cache, is_prefill=not new)
            so_far = torch.stack(new, 1) if new else tokens[:, :0]
            chosen = torch.where(alive, choose(so_far, last), pad)
            new.append(chosen)
            logits.append(last)
            living.append(alive)
            alive = self._alive = alive & ~torch.isin(chosen, ends)
            if len(new) == max_new_tokens or not bool(alive.any()):
                break
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return self._finished(torch.stack(new, 1), torch.stack(living, 1), torch.stack(logits, 1))

    def _finished(self, new: Tensor, living: Tensor, logits: Tensor) -> Generation:
        captured = {site: torch.cat(parts, dim=1) for site, parts in self._parts.items()}
        return Generation(
            tokens=torch.cat([self.batch.tokens, new], dim=1),
            mask=torch.cat([self.batch.mask, living], dim=1),
            prompt=slice(0, self.n_pos),
            response=slice(self.n_pos, self.n_pos + new.shape[1]),
            logits=logits,
            activations=Activations(captured),
        )

    def _step(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        *,
        is_prefill: bool,
    ) -> Tensor:
        """Return fp32 logits [batch d_vocab] after the last of these tokens."""
        given: dict[str, Any] = {"attention_mask": mask.long() if not bool(mask.all()) else None}
        parameters = inspect.signature(self.module.forward).parameters
        if "cache_params" in parameters:  # recurrent states alone: only prompts have padding
            given |= {"cache_params": cache} | ({} if is_prefill else {"attention_mask": None})
        else:
            given["past_key_values"] = cache
        if "position_ids" in parameters:
            given["position_ids"] = positions
        with self._hooked(is_prefill=is_prefill):
            output = self.module(input_ids=tokens, use_cache=True, **given)
        last: Tensor = output.logits[:, -1].float()
        return last

    @contextmanager
    def _hooked(self, *, is_prefill: bool) -> Iterator[None]:
        into: dict[Site, Tensor] = {}
        edits = self._edits(is_prefill=is_prefill)
        with self._hooks(edits, into):
            yield
        for site, activation in into.items():
            laid_out = self._turn_at(site)(activation, False) if is_prefill else activation
            self._parts.setdefault(site, []).append(laid_out)

    def _hooks(self, edits: Edits, into: dict[Site, Tensor]) -> AbstractContextManager[Any]:
        if self.bridge is not None:
            hooks: AbstractContextManager[Any] = bridge_hooks(
                self.bridge, edits, self.capture, into=into
            )
            return hooks
        return stock_hooks(self.blocks, edits, self.capture, into=into)

    def _edits(self, *, is_prefill: bool) -> Edits:
        """Return the edits of one pass; named positions are the prompt's, and edited only there."""
        if self.phase == ("decode" if is_prefill else "prefill"):
            return {}
        if is_prefill:
            mask = self.batch.mask if self.batch.is_padded else None
            return {
                site: [_Turned(among(i, mask), self._turn_at(site), self._turn) for i in edits]
                for site, edits in self.plan.items()
            }
        mask = None if bool(self._alive.all()) else self._alive[:, None]
        everywhere = {
            site: [i for i in edits if i.positions is None] for site, edits in self.plan.items()
        }
        return {
            site: [among(i, mask) for i in edits] for site, edits in everywhere.items() if edits
        }

    def _turn_at(self, site: Site) -> Callable[[Tensor, bool], Tensor]:
        """Return a function that moves an activation between the batch's and the padded layout."""
        if site.kind in _KEYS_TOO:
            return lambda t, to_left: self._turn(self._turn(t, to_left, axis=2), to_left, axis=3)
        return self._turn

    def _turn(self, tensor: Tensor, to_left: bool, axis: int = 1) -> Tensor:
        """Rotate each prompt's positions: its padding to the left, or (False) back to the right."""
        if not self.batch.is_padded:
            return tensor
        index = self._left if to_left else self._right
        shape = [1] * tensor.ndim
        shape[0], shape[axis] = tensor.shape[0], self.n_pos
        turned: Tensor = tensor.gather(axis, index.reshape(shape).expand_as(tensor))
        return turned


def _per_prompt(positions: Sequence[int] | Tensor, generator: Generator) -> list[list[int]]:
    if isinstance(positions, Tensor):
        return [[int(pos)] for pos in positions.tolist()]
    return [list(positions)] * len(generator.batch.prompts)


def _short(positions: Sequence[int] | Tensor) -> str:
    given = positions.tolist() if isinstance(positions, Tensor) else list(positions)
    return f"{given[:4]}"
