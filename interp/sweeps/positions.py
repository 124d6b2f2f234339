"""Which positions of a prompt are used: all, or all but the first."""

from interp.errors import AnalysisError
from interp.tasks.batch import TokenBatch


def require_positions(shard: TokenBatch, *, first_position: bool) -> None:
    """Raise AnalysisError, naming a prompt, if position 0 is left out and there is no other."""
    if shard.tokens.shape[1] < 2 and not first_position:
        raise AnalysisError(
            f"prompt {shard.prompts[0].id!r} has 1 token; first_position=False needs at least 2"
        )
