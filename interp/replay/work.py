"""How much was run."""

from dataclasses import dataclass


@dataclass
class Work:
    """Blocks run so far, as rows × positions.

    One forward of B prompts of T tokens through L blocks is B·T·L. Work counts in `total` too.
    """

    block_tokens: float = 0.0
    total: "Work | None" = None

    def add(self, block_tokens: float) -> None:
        """Count blocks that were run."""
        self.block_tokens += block_tokens
        if self.total is not None:
            self.total.add(block_tokens)
