"""Position 0, often an attention sink: whether an analysis measures it, and whether it skips it.

Positions are 0 for the first token and -1 for the last. Two words say what happens at position 0:
`FirstPosition` whether it takes part in what is averaged or maximised, `SkippedPositions` whether
what is skipped is skipped there too.
"""

from typing import Annotated, Literal

from interp.errors import AnalysisError
from interp.figures.words import ALL, ALL_BUT_FIRST
from interp.parameters import Formerly
from interp.tasks.batch import TokenBatch

FirstPosition = Annotated[
    Literal["included", "excluded"], Formerly({True: "included", False: "excluded"})
]
SkippedPositions = Annotated[
    Literal["all", "all but the first"], Formerly({True: "all", False: "all but the first"})
]


def first_read(first_position: FirstPosition) -> int:
    """Return the first position that is measured: 0, or 1 if position 0 is excluded."""
    return int(first_position == "excluded")


def first_skipped(skipped_positions: SkippedPositions) -> int:
    """Return the first position at which something is skipped: 0 or 1."""
    return int(skipped_positions == "all but the first")


def positions_skipped(skipped_positions: SkippedPositions) -> str:
    """Return where something is skipped, in words."""
    return ALL_BUT_FIRST if first_skipped(skipped_positions) else ALL


def positions_read(first_position: FirstPosition) -> str:
    """Return which positions are measured, in words."""
    return ALL_BUT_FIRST if first_read(first_position) else ALL


def require_positions(shard: TokenBatch, *, first_position: FirstPosition) -> None:
    """Raise AnalysisError, naming a prompt, if position 0 is excluded and there is no other."""
    if shard.tokens.shape[1] <= first_read(first_position):
        raise AnalysisError(
            f"prompt {shard.prompts[0].id!r} has 1 token;"
            " first_position='excluded' needs at least 2"
        )
