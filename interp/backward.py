"""What a gradient sees: the rules by which nonlinearities are treated in a backward pass.

A forward pass with rules keeps its graph, from the first residual on; parameters need no gradient.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """A named set of rules; the empty set is the ordinary gradient."""

    name: str


GRADIENT = Rules("gradient")
