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
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.answers import require_answers
from interp.sweeps.hops import (
    PARTS,
    RIGHT,
    compared,
    counted,
    groups,
    of_a_stranger,
    predictions,
    require_bridge,
    require_hops,
    sorted_out,
    strangers,
    written_ranks,
)
from interp.sweeps.patching import span_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

TOKENS = ("bridge", "answer", "prediction", "another's bridge", "another's answer")


@dataclass(frozen=True)
class SublayerProjection(Analysis):
    """Unembed every write at the prompt's last token, or at the last of the first-hop phrase
    ("subject").

    Compared are prompts both of whose single hops the model answers (`known_only`) and, with
    `no_shortcuts`, whose shortcuts it does not. The control is the bridge and the answer of another
    prompt, with as many tries.
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
        kept = compared(model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts)
        return {"kept": kept} | strangers(model, task)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks [batch part layer token], and which prompts are right and compared."""
        own = (
            require_bridge(shard),
            require_answers(shard)[:, 0],
            predictions(recording).argmax(-1),
        )
        positions = span_of(shard, self.position)[:, 0]
        found = written_ranks(recording, positions, [*own, *of_a_stranger(shard, prepared)])
        return sorted_out(recording, shard, prepared["kept"]) | {
            "rank": found.cpu().to(torch.int32)
        }

    def combine(self, parts: Sequence[Tensors]) -> "SublayerProjectionResult":
        """Return ranks of all prompts."""
        return SublayerProjectionResult(
            self, {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Nothing beyond the clean pass but three unembeddings of one token per layer."""
        n = len(shard.prompts)
        return Cost(0.0, n * len(PARTS) * model.n_layers * len(TOKENS), 3 * n * model.d_vocab)


@dataclass(frozen=True, repr=False)
class SublayerProjectionResult(Result):
    """Per prompt: `arrays["rank"]` [prompt part layer token] of `PARTS` and `TOKENS`, `is_right`
    and `is_compared`.
    """

    analysis: SublayerProjection
    arrays: dict[str, np.ndarray]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, part, token and layer.

        `rate` is the share of prompts in which the part projects the token (rank 0), with its 95 %
        bootstrap interval over prompts; layer missing: in any layer, which is as many tries as
        there are layers. `median_rank` is the median number of tokens above it.
        """
        rows = [
            self._rows(group, chosen, part, token)
            for group, chosen in groups(self.arrays).items()
            for part in range(len(PARTS))
            for token in range(len(TOKENS))
        ]
        empty = pd.DataFrame([{"n_prompts": 0}])
        whole, real = (
            {"layer": "Int64", "n_prompts": "Int64"},
            dict.fromkeys(("rate", "low", "high", "median_rank"), "float64"),
        )
        frame = pd.concat(rows, ignore_index=True) if rows else empty
        return frame.reindex(columns=["group", "part", "token", *whole, *real]).astype(whole | real)

    def _rows(self, group: str, chosen: np.ndarray, part: int, token: int) -> pd.DataFrame:
        found = self.arrays["rank"][chosen, part, :, token]
        hits = np.concatenate([found == 0, (found == 0).any(1, keepdims=True)], axis=1).astype(
            np.float64
        )
        low, high = bootstrap_interval(hits, seed=self.analysis.seed)
        medians = [*np.median(found, axis=0), np.median(found.min(1))]
        keys = {
            "group": group,
            "part": PARTS[part],
            "token": TOKENS[token],
            "layer": [*range(found.shape[1]), None],
        }
        return pd.DataFrame(
            keys
            | {
                "rate": hits.mean(0),
                "low": low,
                "high": high,
                "median_rank": medians,
                "n_prompts": len(hits),
            }
        )

    def plot(self) -> go.Figure:
        """Draw the share of prompts in which each sublayer projects each token, layer by layer."""
        frame = self.to_frame().astype({"group": str, "part": str}).dropna(subset=["layer", "rate"])
        is_same = (frame["group"] == RIGHT) & (
            frame["token"] == "prediction"
        )  # there it is the answer
        frame = frame[(frame["part"] != "stream") & ~is_same]
        frame["panel"] = frame["part"] + ", " + frame["group"]
        where = {
            "last": "at the prompt's last token",
            "subject": "at the last token of the first-hop phrase",
        }
        title = (
            "Share of prompts in which a write alone projects an entity,"
            f" {where[self.analysis.position]}"
        )
        if frame.empty:
            return go.Figure().update_layout(title=f"{title}: no prompts are compared")
        figure = lines_over_depth(frame, y="rate", groups="token", panels="panel", title=title)
        figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
        return figure.update_yaxes(title_text="share of prompts", col=1)

    def findings(self) -> tuple[Finding, ...]:
        """Return how often attention writes the bridge in any layer, right and wrong answers apart."""
        frame, found = self.to_frame(), list[Finding]()
        for group in groups(self.arrays):
            rows = frame[
                (frame["group"] == group)
                & (frame["part"] == "attention")
                & (frame["token"] == "bridge")
            ]
            row = rows[rows["layer"].isna()].iloc[0]
            claim = f"With {group}, attention writes the bridge in {row['rate']:.0%} of prompts."
            measure = f"share of prompts with {group} in which attention writes the bridge"
            low, high, n = float(row["low"]), float(row["high"]), int(row["n_prompts"])
            found.append(
                old_finding(
                    claim if found else self.summary(), float(row["rate"]), measure, low, high, n
                )
            )
        return tuple(found) or (old_finding(self.summary()),)

    def summary(self) -> str:
        """Say in which layer most prompts' attention and MLP project the bridge, the answer and the
        prediction.
        """
        if not groups(self.arrays):
            return f"{counted(self.arrays)}."
        frame = self.to_frame()
        found = [self._found(frame, group) for group in groups(self.arrays)]
        return f"{' '.join(found)} ({counted(self.arrays)}.)"

    def _found(self, frame: pd.DataFrame, group: str) -> str:
        said = []
        last = ("attention", "answer") if group == RIGHT else ("MLP", "prediction")
        for part, token in (("attention", "bridge"), ("MLP", "answer"), last):
            rows = frame[
                (frame["group"] == group) & (frame["part"] == part) & (frame["token"] == token)
            ]
            layers = rows.dropna(subset="layer")
            best, ever = (
                layers.iloc[int(layers["rate"].argmax())],
                rows[rows["layer"].isna()].iloc[0],
            )
            said.append(
                f"{part} writes the {token} most often in layer {best['layer']}"
                f" ({best['rate']:.0%}; in any layer {ever['rate']:.0%} [{ever['low']:.0%} to"
                f" {ever['high']:.0%}])"
            )
        control = frame[
            (frame["group"] == group)
            & frame["token"].str.startswith("another's")
            & frame["layer"].isna()
        ]
        by_chance = f"another prompt's entity in any layer {control['rate'].max():.0%} at most"
        return f"{group.capitalize()}: {'; '.join(said)}; {by_chance}."
