"""In which layers do attention and MLP write the bridge, the answer and the prediction?

"Hopping Too Late" (arXiv 2406.12775), section 5: what a sublayer adds to the stream at one token is
given alone to the final norm and the unembedding; it projects an entity if no token stands above
the entity's first. The paper looks at the prompt's last token and takes any alias; here it is the
first token of the name as the task writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.analysis import Analysis, Cost
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import Compared, Finding, Result, joined
from interp.shapes import Tensors
from interp.stats.groups import Groups
from interp.stats.shares import share, share_difference, shares
from interp.sweeps.answers import require_answers
from interp.sweeps.patches import span_of
from interp.sweeps.two_hop import (
    PARTS,
    RIGHT,
    another_prompts_entities,
    answer_groups,
    comparable_prompts,
    compared_frame,
    empty_figure,
    last_logits,
    nothing_compared,
    other_prompts_entities,
    require_bridge,
    require_hops,
    right_and_compared,
    written_ranks,
)
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

TOKENS = ("bridge", "answer", "prediction", "another's bridge", "another's answer")
_WHERE = {
    "last": "the prompt's last token",
    "subject": "the last token of the first-hop phrase",
}


@dataclass(frozen=True)
class SublayerProjection(Analysis):
    """Unembed every write at the prompt's last token, or the first-hop phrase's last ("subject").

    With `known_only`, only prompts whose two single hops the model answers are compared; with
    `no_shortcuts`, only those whose shortcuts it does not answer. The control is the bridge and the
    answer of another prompt, with as many tries.
    """

    position: Literal["last", "subject"] = "last"
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "In which layers do attention and MLP write the bridge, the answer and the prediction?"
    )
    how: ClassVar[str] = (
        "What attention or MLP adds to the stream at one token is given alone to the final norm and"
        " the unembedding; it writes an entity if no token stands above the entity's first. The"
        " control is another prompt's entity."
    )
    caveat: ClassVar[str] = (
        "A write that names a token can be undone by later ones; it is a sign, not an effect."
    )

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where an answer, a bridge or a subject is missing."""
        require_hops(shard)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, and bridges and answers of others."""
        kept = comparable_prompts(
            model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts
        )
        return {"kept": kept} | other_prompts_entities(model, task)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks [batch part layer token], and which prompts are right and compared."""
        prediction = last_logits(recording).argmax(-1)
        own = (require_bridge(shard), require_answers(shard)[:, 0], prediction)
        tokens = [*own, *another_prompts_entities(shard, prepared)]
        rank = written_ranks(recording, span_of(shard, self.position)[:, 0], tokens)
        return right_and_compared(recording, shard, prepared["kept"]) | {"rank": rank.cpu().int()}

    def combine(self, parts: Sequence[Tensors]) -> "SublayerProjectionResult":
        """Return ranks of all prompts."""
        return SublayerProjectionResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but three unembeddings of one token per layer."""
        n = len(shard.prompts)
        return Cost(0.0, n * len(PARTS) * model.n_layers * len(TOKENS), 3 * n * model.d_vocab)


@dataclass(frozen=True, repr=False)
class SublayerProjectionResult(Result):
    """Per prompt: `arrays["rank"]` [prompt part layer token] of `PARTS` and `TOKENS`."""

    analysis: SublayerProjection
    arrays: dict[str, np.ndarray]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, part, token and layer.

        `rate` is the share of prompts in which the part projects the token (rank 0), with its 95 %
        (Wilson's) interval over groups of prompts; layer missing: in any layer, which is as many
        tries as there are layers. `median_rank` is the median number of tokens above it.
        """
        rows = [
            self._rows(group, part, token)
            for group in answer_groups(self.arrays)
            for part in PARTS
            for token in TOKENS
        ]
        whole = dict.fromkeys(("layer", "n_prompts"), "Int64")
        real = dict.fromkeys(("rate", "low", "high", "median_rank"), "float64")
        return compared_frame(rows, keys=["group", "part", "token"], types=whole | real)

    def _ranks(self, group: str, part: str, token: str) -> np.ndarray:
        """Return the token's ranks [prompt layer] in what a part writes."""
        rank = self.arrays["rank"][answer_groups(self.arrays)[group]]
        of_token: np.ndarray = rank[:, PARTS.index(part), :, TOKENS.index(token)]
        return of_token

    def _rows(self, group: str, part: str, token: str) -> pd.DataFrame:
        ranks = self._ranks(group, part, token)
        ranks = np.concatenate([ranks, ranks.min(1, keepdims=True)], axis=1)
        keys = {"group": group, "part": part, "token": token}
        layers = {"layer": [*range(ranks.shape[1] - 1), None]}
        rates = shares(ranks == 0, groups=self._groups(group))
        columns = keys | layers | rates | {"median_rank": np.median(ranks, axis=0)}
        return pd.DataFrame(columns).rename(columns={"mean": "rate"})

    def plot(self) -> go.Figure:
        """Draw the share of prompts in which each sublayer projects each token, layer by layer."""
        frame = self.to_frame().astype({"group": str, "part": str}).dropna(subset=["layer", "rate"])
        is_answer = (frame["group"] == RIGHT) & (frame["token"] == "prediction")
        frame = frame[(frame["part"] != "stream") & ~is_answer]
        frame["panel"] = frame["part"] + ", " + frame["group"]
        title = (
            "Share of prompts in which a write alone projects an entity, at"
            f" {_WHERE[self.analysis.position]}"
        )
        if frame.empty:
            return empty_figure(title)
        figure = lines_over_depth(frame, y="rate", groups="token", panels="panel", title=title)
        figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
        return figure.update_yaxes(title_text="share of prompts", col=1)

    def _groups(self, group: str) -> Groups | None:
        """Return the groups of the prompts with such answers."""
        chosen = answer_groups(self.arrays)[group]
        return None if self.prompt_groups is None else self.prompt_groups[chosen]

    def findings(self) -> tuple[Finding, ...]:
        """Return whether attention writes the bridge, and MLPs the answer, beyond chance."""
        groups = answer_groups(self.arrays)
        if not groups:
            return (Finding(nothing_compared(self.arrays)),)
        written = [self._written(group, "attention", "bridge") for group in groups]
        if RIGHT in groups:
            written.insert(1, self._written(RIGHT, "MLP", "answer"))
        return tuple(written)

    def _written(self, group: str, part: str, entity: str) -> Finding:
        """Return in how many more prompts a part writes their own entity than another's."""
        own, others = (
            (self._ranks(group, part, token) == 0).any(1)
            for token in (entity, f"another's {entity}")
        )
        groups = self._groups(group)
        more = share_difference(own, others, groups=groups)
        who = "attention writes" if part == "attention" else "MLPs write"
        often = (
            f"in {more:.0%} of prompts more than another prompt's"
            if more.excludes() and more.value > 0
            else f"no more often than another prompt's: {more:.0%} of prompts"
        )
        return Finding(
            f"With {group}, {who} the {entity} in some layer {often}.",
            more,
            f"share of prompts with {group} in which {part} writes the {entity} in any layer, less"
            f" that in which it writes another prompt's {entity}",
            control=Compared(f"another prompt's {entity}", share(others, groups=groups)),
            kind="compares",
            note=f"its own {entity}: {share(own, groups=groups):.0%}",
        )
