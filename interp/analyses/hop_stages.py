"""In which order, and how late, is a two-hop query resolved: right answers against wrong ones?

"Hopping Too Late" (arXiv 2406.12775), section 5, joins its measures into four stages per prompt:
(1) the first hop is resolved: the first layer whose vector, at the last token of the first-hop
phrase, says the bridge in another prompt; (2) it reaches the prompt's last token: the mean of the
first layers in which hiding the phrase from it changes the guess, in which attention there writes
the bridge, and whose vector there says the bridge, over those that exist; (3) the second hop is
resolved: the first layer whose vector there says the answer; (4) the first layer in which the MLP
there writes the guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError
from interp.figures.plots import boxes
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval, interval_of_difference
from interp.sweeps.answers import require_answers
from interp.sweeps.cuts import (
    Cut,
    cut_of,
    cut_steps,
    elsewhere,
    ends_of_cuts,
    half_width_of,
    require_hiding,
)
from interp.sweeps.descriptions import (
    place_of,
    said_ranks,
    said_steps,
    says_it_anyway,
    target_layers,
    target_prompt,
)
from interp.sweeps.hops import (
    RIGHT,
    WRONG,
    compared,
    counted,
    first_layer,
    groups,
    of_a_stranger,
    predictions,
    require_bridge,
    require_hops,
    sorted_out,
    strangers,
    written_ranks,
)
from interp.sweeps.patching import logits_at_the_end, outputs_at, span_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

MEASURES = (
    "bridge said from the first hop",
    "hiding the first hop changes the guess",
    "attention writes the bridge",
    "bridge said from the last token",
    "answer said from the last token",
    "MLP writes the prediction",
    "bridge in the lens at the first hop",
    "bridge in the lens at the last token",
    "answer in the lens at the last token",
)
STAGES = {  # by the measures whose mean layer they are
    "1 first hop resolved": MEASURES[:1],
    "2 reaches the last token": MEASURES[1:4],
    "3 second hop resolved": MEASURES[4:5],
    "4 prediction extracted": MEASURES[5:6],
}
_IN_THE_LENS = {"the bridge is there": MEASURES[6], "the answer is": MEASURES[8]}
_WHAT = ["kind", "name"]
_REAL = (
    "defined",
    "low",
    "high",
    "control",
    "control_low",
    "control_high",
    "layer",
    "layer_low",
    "layer_high",
    "median",
)


@dataclass(frozen=True)
class HopStages(Analysis):
    """Find each stage's first layer, for prompts whose hops are known and (`no_shortcuts`) whose
    shortcuts do not work.

    `variant`, `prompt` and `placeholder` are those of entity_description, `half_width` (not given:
    3 in 32 layers) that of attention_knockout. The control looks for another prompt's bridge and
    answer, and hides another token.
    """

    variant: Literal["cheap", "full"] = "cheap"
    prompt: str = ""
    placeholder: str = ""
    half_width: int | None = None
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "In which order, and how late, is a two-hop query resolved: right against wrong answers?"
    )
    how: ClassVar[str] = (
        "Four stages are located for each prompt, from descriptions of vectors, attention knock-out"
        " and projections: first hop resolved, handed on, second hop resolved, guess written. Right"
        " answers are compared with wrong ones, and with another prompt's entities."
    )
    caveat: ClassVar[str] = (
        "Stages are defined only where they are found, so mean layers compare different prompts;"
        " the shares found and their controls belong to them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.prompt) != bool(self.placeholder):
            raise AnalysisError("prompt and placeholder are needed together, or neither")
        if self.half_width is not None and self.half_width < 0:
            raise AnalysisError(f"half_width={self.half_width}; at least 0 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError for missing entities and an unusable target prompt, SiteError where keys
        cannot be hidden.
        """
        require_hops(shard)
        target_prompt(model, self.prompt, self.placeholder)
        self._cuts(shard, model.n_layers)
        require_hiding(model, shard)

    def _cuts(self, shard: TokenBatch, n_layers: int) -> tuple[Cut, Cut]:
        cut = cut_of(shard, half_width=half_width_of(n_layers, self.half_width))
        return cut, elsewhere(shard, cut, seed=self.seed)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, others' bridges and answers, and the target prompt."""
        kept = compared(model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts)
        target = target_prompt(model, self.prompt, self.placeholder)
        return {
            "kept": kept,
            "target": target.tokens,
            "place": torch.tensor(place_of(target)),
        } | strangers(model, task)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return the first layer of every measure, and of its control [batch measure]; -1 where
        there is none.
        """
        own = (require_bridge(shard), require_answers(shard)[:, 0])
        other = of_a_stranger(shard, prepared)
        target = recording.beside(prepared["target"])
        described = self._described(
            recording, target, shard, [*own, *other], place=int(prepared["place"])
        )
        guess = predictions(recording).argmax(-1)
        first, last = (span_of(shard, where)[:, 0] for where in ("subject", "last"))
        at_first = written_ranks(recording, first, [own[0], other[0]]) == 0
        at_last = written_ranks(recording, last, [*own, guess, *other, other[1]]) == 0
        cuts = self._cuts(shard, recording.n_layers)
        changed = [self._changed(recording, cut, guess) for cut in cuts]
        anyway = says_it_anyway(target, [*own, *other])
        tensors = sorted_out(recording, shard, prepared["kept"])
        for i, kind in enumerate(("own", "control")):
            bridge, answer, b, p = 2 * i, 2 * i + 1, 3 * i, 3 * i + 2
            found = (
                described["subject"][..., bridge], changed[i], at_last[:, 0, :, b], described["last"][..., bridge],
                described["last"][..., answer], at_last[:, 1, :, p],
                at_first[:, 2, :, i], at_last[:, 2, :, b], at_last[:, 2, :, b + 1],
            )  # fmt: skip
            tensors[kind] = (
                torch.stack([first_layer(each) for each in found], dim=1).cpu().to(torch.int32)
            )
        tensors["anyway"] = (
            torch.stack([anyway[:, :2].any(1), anyway[:, 2:].any(1)], dim=1).any(1).cpu()
        )
        return tensors

    def _described(
        self,
        recording: Recording,
        target: Recording,
        shard: TokenBatch,
        tokens: list[Tensor],
        *,
        place: int,
    ) -> dict[str, Bool[Tensor, "batch source token"]]:
        """Return which source layers' vectors say each token for any target layer, by position."""
        layers, said = target_layers(recording.n_layers, is_full=self.variant == "full"), {}
        for position in ("subject", "last"):
            vectors = outputs_at(recording, span_of(shard, position))[:, :, 0]
            said[position] = (
                said_ranks(target, vectors, tokens, layers=layers, position=place)[0] == 0
            ).any(2)
        return said

    def _changed(
        self, recording: Recording, cut: Cut, guess: Tensor
    ) -> Bool[Tensor, "batch centre"]:
        changed: Tensor = (
            logits_at_the_end(recording, ends_of_cuts(recording, cut)).argmax(-1) != guess
        ).T
        return changed

    def combine(self, parts: Sequence[Tensors]) -> "HopStagesResult":
        """Return the first layers of all prompts."""
        return HopStagesResult(
            self, {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return the cost of the descriptions from two positions, of two cuts, and of one pass of
        the target prompt.
        """
        (n, n_pos), n_layers = shard.tokens.shape, model.n_layers
        prompt = target_prompt(model, self.prompt, self.placeholder)
        behind = prompt.tokens.shape[1] - place_of(prompt)
        cuts = self._cuts(shard, n_layers)
        steps = (
            2
            * n
            * said_steps(n_layers, layers=target_layers(n_layers, is_full=self.variant == "full"))
            * behind
        )
        steps += sum(
            n * cut_steps(n_layers, half_width=cut.half_width) * (n_pos - cut.start) for cut in cuts
        )
        steps += n_layers * prompt.tokens.shape[1]
        held = n * n_layers * (behind * model.d_model + 2 * model.d_vocab)
        return Cost(steps / (n * n_pos * n_layers), n * (2 * len(MEASURES) + 3), held)


@dataclass(frozen=True, repr=False)
class HopStagesResult(Result):
    """Per prompt: `arrays["own"]` and `arrays["control"]` [prompt measure], first layers of
    `MEASURES` (-1: none).

    A prompt does not count where the target prompt says one of the entities without any vector.
    """

    analysis: HopStages
    arrays: dict[str, np.ndarray]

    def chosen(self, group: str) -> np.ndarray:
        """Return which prompts of a group count."""
        chosen: np.ndarray = groups(self.arrays)[group] & ~self.arrays["anyway"]
        return chosen

    def layers(
        self, group: str, name: str, *, kind: Literal["own", "control"] = "own"
    ) -> np.ndarray:
        """Return the layer [prompt] of a stage or of a measure; NaN where it is not defined."""
        columns = [MEASURES.index(measure) for measure in STAGES.get(name, (name,))]
        found = self.arrays[kind][self.chosen(group)][:, columns]
        there = found >= 0
        total = np.where(there, found, 0).sum(1)
        layers: np.ndarray = np.where(there.any(1), total / there.sum(1).clip(min=1), np.nan)
        return layers

    def to_frame(self) -> pd.DataFrame:
        """Return one row per kind (stage, measure, difference), name and group.

        `defined` is the share of prompts in which it happens at any layer, `control` that of
        another prompt's entities (or of another hidden token), with 95 % bootstrap intervals over
        prompts; `layer` is the mean over the prompts in which it is defined, `median` theirs.
        "difference": the mean layer of wrong answers minus that of right ones.
        """
        rows: list[dict[str, object]] = []
        for kind, names in (("stage", STAGES), ("measure", MEASURES)):
            for name in names:
                rows += [
                    {"kind": kind, "name": name} | self._row(group, name)
                    for group in groups(self.arrays)
                ]
        rows += [
            row for name in (*STAGES, *_IN_THE_LENS.values()) if (row := self._difference(name))
        ]
        types = dict.fromkeys(_REAL, "float64") | dict.fromkeys(("n_defined", "n_prompts"), "Int64")
        return (
            pd.DataFrame(rows or [{"n_prompts": 0}])
            .reindex(columns=[*_WHAT, "group", *types])
            .astype(types)
        )

    def _row(self, group: str, name: str) -> dict[str, object]:
        own, other = (self.layers(group, name, kind=kind) for kind in ("own", "control"))
        row: dict[str, object] = {
            "group": group,
            "n_prompts": len(own),
            "n_defined": int((~np.isnan(own)).sum()),
        }
        for prefix, share in (("", own), ("control_", other)):
            is_there = (~np.isnan(share)).astype(np.float64)
            if len(is_there):
                row |= {"control" if prefix else "defined": is_there.mean()} | self._interval(
                    is_there, prefix
                )
        layers = own[~np.isnan(own)]
        if len(layers):
            row |= {"layer": layers.mean(), "median": float(np.median(layers))} | self._interval(
                layers, "layer_"
            )
        return row

    def _interval(self, values: np.ndarray, prefix: str) -> dict[str, object]:
        (low,), (high,) = bootstrap_interval(values[:, None], seed=self.analysis.seed)
        return {f"{prefix}low": low, f"{prefix}high": high}

    def _difference(self, name: str) -> dict[str, object]:
        """Return how much later a stage is where the answer is wrong; nothing where it is not
        defined in both groups.
        """
        if len(groups(self.arrays)) < 2:
            return {}
        right, wrong = (
            layers[~np.isnan(layers)]
            for layers in (self.layers(RIGHT, name), self.layers(WRONG, name))
        )
        if not len(right) or not len(wrong):
            return {}
        low, high = interval_of_difference(wrong, right, seed=self.analysis.seed)
        row = {
            "kind": "difference",
            "name": name,
            "group": "wrong minus right",
            "layer": wrong.mean() - right.mean(),
        }
        return row | {"layer_low": low, "layer_high": high, "n_defined": len(right) + len(wrong)}

    def plot(self) -> go.Figure:
        """Draw the layers of the four stages as boxes, right answers beside wrong ones; the share
        defined stands above.
        """
        frame = self.to_frame()
        frame = frame[frame["kind"] == "stage"]
        values, notes = {}, {}
        for group in groups(self.arrays):
            values[group] = {name: self.layers(group, name) for name in STAGES}
            shares = frame[frame["group"] == group]["defined"]
            shown = ["" if np.isnan(share) else f"{share:.0%}" for share in shares]
            notes[group] = dict(zip(STAGES, shown, strict=True))
        title = (
            "Layers at which a two-hop query is resolved (above: share of prompts in which it"
            " ever is)"
        )
        return boxes(values, notes=notes, y="layer", title=title)

    def findings(self) -> tuple[Finding, ...]:
        """Return how often the first hop is resolved, right and wrong answers apart."""
        found = list[Finding]()
        for group in groups(self.arrays):
            row = self._row(group, next(iter(STAGES)))
            if n := len(self.layers(group, next(iter(STAGES)))):
                share, low, high = (float(str(row[key])) for key in ("defined", "low", "high"))
                claim = (
                    f"With {group}, the first hop is resolved in {share:.0%} of prompts."
                    if found
                    else self.summary()
                )
                found.append(
                    old_finding(
                        claim,
                        share,
                        f"share of prompts with {group} whose first hop is resolved",
                        low,
                        high,
                        n,
                    )
                )
        return tuple(found) or (old_finding(self.summary()),)

    def summary(self) -> str:
        """Say how often each hop is resolved, right against wrong, and at which layers the stages
        are.
        """
        if not groups(self.arrays):
            return f"{counted(self.arrays)}."
        shares, layers = [], []
        for group in groups(self.arrays):
            rows = {name: self._row(group, name) for name in STAGES}
            first, second = (rows[name] for name in list(STAGES)[::2])
            if first["n_prompts"]:
                shares.append(
                    f"{group}: the first hop in {_share(first)}, the second in {_share(second)}"
                )
                layers.append(f"{group} {', '.join(_layer(row) for row in rows.values())}")
        lens = [f"{which}{self._later(measure)}" for which, measure in _IN_THE_LENS.items()]
        return (
            f"Ever resolved: {'; '.join(shares)}. Mean layers of stages 1 to 4, where reached:"
            f" {'; '.join(layers)}. A description lets the other prompt's layers finish the work;"
            f" by the lens, without them, {' and '.join(lens)}. ({counted(self.arrays)}.)"
        )

    def _later(self, name: str) -> str:
        """Return at which layer a measure is first true, right against wrong."""
        rows = {group: self._row(group, name) for group in groups(self.arrays)}
        text = " " + ", ".join(
            f"{_layer(row, 'at layer ')} with {group}" for group, row in rows.items()
        )
        if row := self._difference(name):
            text += f" ({row['layer']:+.1f} [{row['layer_low']:+.1f} to {row['layer_high']:+.1f}])"
        return text


def _share(row: dict[str, object]) -> str:
    return (
        f"{row['defined']:.0%} [{row['low']:.0%} to {row['high']:.0%}] of {row['n_prompts']}"
        f" (control {row['control']:.0%})"
    )


def _layer(row: dict[str, object], before: str = "") -> str:
    return f"{before}{row['layer']:.1f}" if row["n_defined"] else "never"
