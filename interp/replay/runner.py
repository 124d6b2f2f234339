"""What a recording needs from the model that it records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.activations import ForwardPass
from interp.backward import Rules
from interp.interventions import NO_INTERVENTION, Plan
from interp.replay.blocks import Arguments, Block
from interp.sites import Site

# "q", "k", "v", "mlp" or "logits", the layer, the residual: returns what is read instead; None: it
Read = Callable[[str, int, Tensor], Tensor | None]
OnWrite = Callable[
    [str, int, Tensor], None
]  # "embed", "heads" or "mlp", the layer, what is written


@runtime_checkable
class CleanStore(Protocol):
    """Clean activations of one batch that outlive a recording."""

    def read(self, site: Site) -> Tensor | None:
        """Return a clean activation [batch pos d_model] that is known already, or None."""

    def keep(self, clean: Mapping[Site, Tensor]) -> None:
        """Keep what a clean pass computed."""


@runtime_checkable
class Runner(Protocol):
    """A model, as the recordings of one state of its weights see it."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Return the modules of every decoder block."""

    def running(self) -> AbstractContextManager[None]:
        """Return a context for all computation; it raises if the model has changed."""

    def visit(self, layer: int) -> None:
        """Have a block ready to run; other recordings may run before it is."""

    def call(self, layer: int, resid: Tensor, arguments: Arguments) -> Any:
        """Return what a block returns for a residual [rows pos d_model] and these arguments."""

    def with_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager["Runner"]:
        """Return a context with a runner of the same model under other weights, by name."""

    def tokens_at_once(self, device: torch.device) -> int:
        """Return how many tokens a block runs at once on a device."""

    def clean_store(self, tokens: Tensor) -> CleanStore | None:
        """Return what is stored for tokens [batch pos]; None if nothing is."""

    def dry(
        self, tokens: Tensor, mask: Tensor | None, *, start: int
    ) -> tuple[Tensor, list[Arguments]]:
        """Return the embedding and every block's arguments from `start` on; runs no block."""

    @property
    def d_vocab(self) -> int:
        """Return the number of logits per position."""

    def final_norm(self, resid: Tensor) -> Tensor:
        """Return what the unembedding reads [... d_model] of residuals [... d_model]."""

    def unembed(self, resid: Tensor) -> Tensor:
        """Return logits [... d_vocab] of residuals [... d_model]."""

    def forward(
        self,
        tokens: Tensor,
        *,
        capture: Iterable[Site] = (),
        plan: Plan = NO_INTERVENTION,
        backward: Rules | None = None,
        positions: slice | None = None,
    ) -> ForwardPass:
        """Return logits, at `positions`, and captured activations of tokens without padding."""

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
        """Return logits, at `positions`, of a pass in which heads and MLPs read own residuals.

        `read` gets the residual [rows pos d_model] and returns what is read instead, for "q", "k",
        "v" per head [rows pos head d_model]; None leaves it. `on_write` gets the embedding and what
        an MLP adds [rows pos d_model], and what heads add [rows pos head d_model]. `start` is a
        layer and the residual [rows pos d_model] before it; blocks before it are not run.
        """
