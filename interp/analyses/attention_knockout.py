"""Until which layer must the prompt's last token read the first hop?

"Hopping Too Late" (arXiv 2406.12775), section 5: queries are kept from a key in a window of layers
around each layer; what they give to the other keys adds up to 1 again. A layer is critical for a
prompt if the model's first guess changes. The paper compares ten generated tokens and calls two
different right texts equal; here it is the first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import lines_over_depth
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.answers import require_answers
from interp.sweeps.cuts import (
    Cut,
    Key,
    Query,
    cut_of,
    cut_steps,
    elsewhere,
    ends_of_cuts,
    half_width_of,
    require_hiding,
)
from interp.sweeps.hops import compared, counted, groups, predictions, sorted_out
from interp.sweeps.patching import logits_at_the_end, of_token
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

CHANGED, FALL = "first guess changes, share of prompts", "fall of the answer's logit, mean"
_KEYS = {
    "subject": "the first-hop phrase's last token",
    "start": "its first token",
    "phrase": "the whole first-hop phrase",
}
_QUERIES = {
    "last": "the last token",
    "subject": "the phrase's last token",
    "all": "all later tokens",
}
_ELSEWHERE = "another token"


@dataclass(frozen=True)
class AttentionKnockout(Analysis):
    """Hide `key` from `query` in a window of `half_width` layers before and behind its centre (not
    given: 3 in 32).

    Keys are of the first-hop phrase: its last token ("subject"), its first ("start"), all of it
    ("phrase"). Queries: the prompt's last token, the phrase's last, or all behind the keys. The
    control hides as many other earlier keys, drawn at random for each prompt. Prompts are compared
    as in the paper: hops known, shortcuts not.
    """

    key: Key = "subject"
    query: Query = "last"
    half_width: int | None = None
    control: bool = True
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = "Until which layer must the prompt's last token read the first hop?"
    how: ClassVar[str] = (
        "In a window of layers, queries are kept from one key, and their attention to the other"
        " keys adds up to 1 again. A layer is critical for a prompt if the model's first guess"
        " changes. The control hides as many other earlier tokens."
    )
    caveat: ClassVar[str] = (
        "A changed guess says that something was read there, not that it was the first hop; the"
        " control tells how often any hidden token does it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half_width is not None and self.half_width < 0:
            raise AnalysisError(f"half_width={self.half_width}; at least 0 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for missing answers or subjects, AnalysisError for nothing to hide,
        SiteError if it cannot be.
        """
        require_answers(shard)
        self._cuts(shard, model.n_layers)
        require_hiding(model, shard)

    def _cuts(self, shard: TokenBatch, n_layers: int) -> dict[str, Cut]:
        """Return the cut and its control."""
        cut = cut_of(
            shard,
            key=self.key,
            query=self.query,
            half_width=half_width_of(n_layers, self.half_width),
        )
        return {"key": cut} | (
            {"elsewhere": elsewhere(shard, cut, seed=self.seed)} if self.control else {}
        )

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared."""
        return {
            "kept": compared(
                model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts
            )
        }

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return by place ("key", "elsewhere") whether the guess changes, and the fall of the
        answer [batch centre].
        """
        clean, answer = predictions(recording), require_answers(shard)[:, 0]
        tensors = sorted_out(recording, shard, prepared["kept"])
        for place, cut in self._cuts(shard, recording.n_layers).items():
            logits = logits_at_the_end(recording, ends_of_cuts(recording, cut))
            tensors[f"{place}.changed"] = (logits.argmax(-1) != clean.argmax(-1)).T.cpu()
            tensors[f"{place}.fall"] = (of_token(clean, answer) - of_token(logits, answer)).T.cpu()
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> "AttentionKnockoutResult":
        """Return effects of all prompts."""
        return AttentionKnockoutResult(
            self, {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return, for the cut and its control, about L/2 forwards of the positions from the first
        query on.
        """
        n, n_pos = shard.tokens.shape
        cuts = self._cuts(shard, model.n_layers)
        steps = cut_steps(model.n_layers, half_width=cuts["key"].half_width)
        forwards = sum(steps * (n_pos - cut.start) for cut in cuts.values()) / (
            n_pos * model.n_layers
        )
        held = (
            n * model.n_layers * ((n_pos - cuts["key"].start) * model.d_model + 2 * model.d_vocab)
        )
        return Cost(forwards, n * (2 + 2 * len(cuts) * model.n_layers), held)


@dataclass(frozen=True, repr=False)
class AttentionKnockoutResult(Result):
    """Per prompt and centre: `arrays["key.changed"]`, `arrays["key.fall"]` [prompt centre], and of
    "elsewhere".
    """

    analysis: AttentionKnockout
    arrays: dict[str, np.ndarray]

    @property
    def half_width(self) -> int:
        """Return how many layers before and behind a centre are cut."""
        return half_width_of(self.arrays["key.fall"].shape[1], self.analysis.half_width)

    @property
    def _places(self) -> dict[str, str]:
        places = {"key": _KEYS[self.analysis.key], "elsewhere": _ELSEWHERE}
        return {
            place: shown for place, shown in places.items() if f"{place}.changed" in self.arrays
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group, hidden place, measure and layer (the window's centre).

        `mean` is the share of prompts whose first guess changes, or the mean fall of the answer's
        logit, with its 95 % bootstrap interval over prompts. Layer missing: changed at any layer.
        Hidden "difference": the key minus the control.
        """
        rows = [self._rows(group, chosen) for group, chosen in groups(self.arrays).items()]
        frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame([{"n_prompts": 0}])
        types = {"layer": "Int64", "n_prompts": "Int64"} | dict.fromkeys(
            ("mean", "low", "high"), "float64"
        )
        return frame.reindex(columns=["group", "hidden", "measure", *types]).astype(types)

    def _rows(self, group: str, chosen: np.ndarray) -> pd.DataFrame:
        values = {}
        for place, shown in self._places.items():
            changed = self.arrays[f"{place}.changed"][chosen].astype(np.float64)
            values[shown, CHANGED] = np.concatenate(
                [changed, changed.max(1, keepdims=True)], axis=1
            )
            values[shown, FALL] = self.arrays[f"{place}.fall"][chosen].astype(np.float64)
        for measure in (CHANGED, FALL) if len(self._places) > 1 else ():
            values["difference", measure] = (
                values[_KEYS[self.analysis.key], measure] - values[_ELSEWHERE, measure]
            )
        return pd.concat([self._statistics(group, *keys, rows) for keys, rows in values.items()])

    def _statistics(
        self, group: str, hidden: str, measure: str, values: np.ndarray
    ) -> pd.DataFrame:
        low, high = bootstrap_interval(values, seed=self.analysis.seed)
        layers = [*range(self.arrays["key.fall"].shape[1]), None][: values.shape[1]]
        keys = {"group": group, "hidden": hidden, "measure": measure, "layer": layers}
        return pd.DataFrame(
            keys | {"mean": values.mean(0), "low": low, "high": high, "n_prompts": len(values)}
        )

    def plot(self) -> go.Figure:
        """Draw how often the first guess changes, and how far the answer falls, by the layer at the
        window's centre.
        """
        frame = (
            self.to_frame().astype({"group": str, "hidden": str}).dropna(subset=["layer", "mean"])
        )
        frame = frame[frame["hidden"] != "difference"]
        frame["line"] = frame["group"] + ": " + frame["hidden"]
        title = (
            f"What changes when {_KEYS[self.analysis.key]} is hidden from"
            f" {_QUERIES[self.analysis.query]}, in {2 * self.half_width + 1}"
            f" layer{'s' * (self.half_width > 0)} around each"
        )
        if frame.empty:
            return go.Figure().update_layout(title=f"{title}: no prompts are compared")
        figure = lines_over_depth(frame, y="mean", groups="line", panels="measure", title=title)
        figure.update_yaxes(title_text="share of prompts", tickformat=".0%", col=1)
        return figure.update_yaxes(title_text="nats", col=2)

    def findings(self) -> tuple[Finding, ...]:
        """Return how many prompts change their first guess at the most critical layer."""
        frame = self.to_frame()
        rows = frame[
            (frame["measure"] == CHANGED) & (frame["hidden"] == _KEYS[self.analysis.key])
        ].dropna(subset="layer")
        if rows.empty:
            return (old_finding(self.summary()),)
        most = rows.iloc[int(rows["mean"].argmax())]
        low, high, n = float(most["low"]), float(most["high"]), int(most["n_prompts"])
        measure = (
            "share of prompts whose first guess changes, the key hidden at the most critical layer"
        )
        return (old_finding(self.summary(), float(most["mean"]), measure, low, high, n),)

    def summary(self) -> str:
        """Say for which layers hiding the key changes the guess, and how often hiding another token
        does.
        """
        if not groups(self.arrays):
            return f"{counted(self.arrays)}."
        frame = self.to_frame()
        changed = frame[frame["measure"] == CHANGED]
        found = [
            self._found(group, changed[changed["group"] == group]) for group in groups(self.arrays)
        ]
        hidden, query = _KEYS[self.analysis.key], _QUERIES[self.analysis.query]
        window = (
            "one layer"
            if not self.half_width
            else f"{2 * self.half_width + 1} layers around each layer"
        )
        return (
            f"Hiding {hidden} from {query} in {window}: {'; '.join(found)}."
            f" ({counted(self.arrays)}.)"
        )

    def _found(self, group: str, rows: pd.DataFrame) -> str:
        key = rows[rows["hidden"] == _KEYS[self.analysis.key]]
        layers = key.dropna(subset="layer")
        most = layers.iloc[int(layers["mean"].argmax())]
        other = rows[(rows["hidden"] == _ELSEWHERE) & (rows["layer"] == most["layer"])]
        last = layers[layers["mean"] >= 0.1]["layer"]
        return (
            f"with {group}, the first guess changes most at layer {most['layer']}, for"
            f" {most['mean']:.0%} [{most['low']:.0%} to {most['high']:.0%}] of {most['n_prompts']}"
            " prompts"
            + (f" ({_ELSEWHERE} hidden there: {other['mean'].iloc[0]:.0%})" if len(other) else "")
            + (
                f", and for 10 % or more up to layer {last.max()}"
                if len(last)
                else ", and nowhere for 10 %"
            )
        )
