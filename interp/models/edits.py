"""Edits of an activation while a model runs, and what a capture keeps of it."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from interp.sites import Site


@runtime_checkable
class Editing(Protocol):
    """What replaces an activation; `resid_pre` is the block's input, where it is known."""

    def edit(self, activation: Tensor, resid_pre: Tensor | None) -> Tensor:
        """Return the activation with something else in its place."""


class Leaf:
    """Starts the graph of a backward pass: the gradient is taken from this residual on."""

    @staticmethod
    def edit(activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:  # noqa: ARG004
        """Return the activation as a leaf that needs a gradient."""
        return activation.detach().requires_grad_()


Edits = dict[Site, list[Editing]]


def kept(activation: Tensor) -> Tensor:
    """Return what a capture keeps: a copy, or the tensor itself where there is a graph."""
    return activation if activation.requires_grad else activation.clone()
