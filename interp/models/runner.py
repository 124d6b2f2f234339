"""What a recording needs of a model: its blocks, dry passes, store, and whole passes."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations import ForwardPass
from interp.backward import Rules
from interp.errors import ModelError
from interp.interventions import NO_INTERVENTION, Plan
from interp.models.batch_store import BatchStore
from interp.models.bridge.forked import Forked
from interp.models.bridge.rules import rule_hooks
from interp.models.forward import NO_RULES, unembedded_at
from interp.models.gradients import graph
from interp.models.quantised import refuse_quantised
from interp.models.temporary import temporary_weights
from interp.replay import Arguments, Block, OnWrite, Read, replaced_forward
from interp.sites import Site
from interp.tasks.batch import TokenBatch

if TYPE_CHECKING:
    from interp.models.model import Model

_log = logging.getLogger(__name__)


class ModelRunner:
    """Runs a model as it is now; raises ModelError where its weights have changed since."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        self._weights = model.weights.state()
        self._edition = model.weights.edition

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the modules of every decoder block."""
        return self.model.blocks

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let blocks run; raise ModelError if the weights have changed since this was made."""
        model = self.model
        if model.weights.edition is not self._edition:
            raise ModelError(
                f"{model.name!r} has other weights, for a while, than this recording was begun"
                " with; inside temporary_weights, and outside, record anew"
            )
        if model.running.is_outermost and model.weights.state() != self._weights:
            raise ModelError(
                f"the weights of {model.name!r} have changed since this recording was begun;"
                " record it again"
            )
        with model.running:
            yield

    def visit(self, layer: int) -> None:
        """Have a block's weights in memory; other recordings may run before they are."""
        if (stream := self.model.stream) is not None:
            stream.visit(layer)

    def call(self, layer: int, resid: Tensor, arguments: Arguments) -> Any:
        """Return what a block returns for a residual [rows pos d_model] and these arguments."""
        if (stream := self.model.stream) is not None:
            return stream.call(layer, resid, arguments)
        return self.blocks[layer].module(resid, **arguments)

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator["ModelRunner"]:
        """Yield a runner of the same model under other weights: see `temporary_weights`."""
        with self.running(), temporary_weights(self.model, weights):
            yield ModelRunner(self.model)

    @torch.no_grad()
    def dry(
        self, tokens: Tensor, mask: Tensor | None, *, start: int
    ) -> tuple[Tensor, list[Arguments]]:
        """Return the embedding and every block's arguments from `start` on; runs no block."""
        with self.running():
            return self.model.modules.dry(tokens, mask, start=start)

    @property
    def d_vocab(self) -> int:
        """Return the number of logits per position."""
        return self.model.d_vocab

    def final_norm(self, resid: Tensor) -> Tensor:
        """Return what the unembedding reads [... d_model] of residuals [... d_model]."""
        with self.running():
            read: Tensor = self.model.modules.ln_final(resid)
        return read

    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals [... d_model]."""
        with self.running():
            return self.model.unembed(resid)

    def tokens_at_once(self, device: torch.device) -> int:
        """Return how many tokens a block runs at once on a device."""
        return self.model.tokens_at_once(device)

    def clean_store(self, tokens: Tensor) -> BatchStore | None:
        """Return what the store holds of tokens [batch pos]; None if nothing is stored.

        Neither is it where the store would round what is computed: what a pass has, and what is
        read of it later, would be different numbers.
        """
        model = self.model
        if model.store_folder is None:
            return None
        if model.weights.edition is not None:
            return None
        if why := model.not_stored:
            _warn_not_stored(model.name, why)
            return None
        if (store := model.store) is None:
            return None
        if store.dtype and torch.promote_types(model.dtype, store.dtype) != store.dtype:
            kept, computed = (
                str(each).removeprefix("torch.") for each in (store.dtype, model.dtype)
            )
            _warn_not_stored(model.name, f"the store keeps {kept}, which rounds its {computed}")
            return None
        return BatchStore(
            store,
            model.keys(tokens.tolist()),
            tokens,
            model.dtype,
            lambda: model.refuse_hooks(tokens, of_blocks=True),
        )

    def forward(
        self,
        tokens: Tensor,
        *,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
        positions: slice | None = None,
    ) -> ForwardPass:
        """Run the whole model on tokens [batch pos] without padding, as `Model.forward` does."""
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        batch = TokenBatch((), tokens, torch.ones_like(tokens, dtype=torch.bool), last)
        with self.running():
            return self.model.forward(
                batch, capture=capture, plan=plan, backward=backward, positions=positions
            )

    def forked(
        self,
        tokens: Tensor,
        *,
        read: Read,
        on_write: OnWrite | None = None,
        backward: Rules | None = None,
        positions: slice | None = None,
        start: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Return logits of a pass in which every head and MLP reads its own residual."""
        model, needs_graph = self.model, backward is not None
        if needs_graph:
            refuse_quantised(model.module, "gradients")
        with self.running():
            rules = NO_RULES if backward is None else rule_hooks(model.bridge, backward)
            with graph(needs_graph):
                model.refuse_hooks(tokens, None)
                fork = Forked(
                    model.bridge, read=read, on_write=on_write, rules=rules, needs_graph=needs_graph
                )
                with unembedded_at(model.bridge.unembed, positions), self._starting(start):
                    return fork.run(tokens)

    @contextmanager
    def _starting(self, start: tuple[int, Tensor] | None) -> Iterator[None]:
        """Let the bridge's blocks before a layer return the residual there, and do nothing."""
        with ExitStack() as stack:
            layer, resid = start or (0, torch.empty(0))
            for i in range(layer):
                instead = partial(_returned, self.blocks[i].call.returning(resid))
                block = self.model.bridge.blocks[i].original_component
                stack.enter_context(replaced_forward(block, instead))
            yield


def _returned(output: Any, *_: object, **__: object) -> Any:
    return output


@cache
def _warn_not_stored(name: str, why: str) -> None:
    """Log, once, why a model's activations are not stored."""
    _log.warning("%s: %s; its activations are neither stored nor read from a store", name, why)
