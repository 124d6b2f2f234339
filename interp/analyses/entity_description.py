"""From which layer on does a vector say the bridge, or the answer, when it is put into another
prompt?

"Hopping Too Late" (arXiv 2406.12775), section 4, after "Patchscopes" (arXiv 2401.06102): the output
of a source layer at the last token of the first-hop phrase, or of the prompt, is written over a
target layer's output at a word of a list of names said twice; what the model says there is what the
vector stands for. The paper samples 10 tokens three times for every pair of layers; here it is the
first token: its rank (greedy), and its probability (what samples would find).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, unknown
from interp.figures.plots import grid_below, lines_over_depth
from interp.interventions import Patch
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.sites import Site
from interp.stats.bootstrap import bootstrap_interval
from interp.sweeps.answers import require_answers
from interp.sweeps.descriptions import (
    place_of,
    said_ranks,
    said_steps,
    says_it_anyway,
    target_layers,
    target_prompt,
)
from interp.sweeps.hops import (
    compared,
    counted,
    groups,
    of_a_stranger,
    require_bridge,
    require_hops,
    sorted_out,
    strangers,
)
from interp.sweeps.patching import Where, outputs_at, span_of
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

ENTITIES = ("bridge", "answer")  # each is followed by another prompt's, two places on
_FROM = {"subject": "first-hop token", "last": "last token"}
_KEYS = ["statistic", "group", "position", "entity"]
_REAL = (
    "rate",
    "low",
    "high",
    "control",
    "control_low",
    "control_high",
    "gain",
    "gain_low",
    "gain_high",
)


@dataclass(frozen=True)
class EntityDescription(Analysis):
    """Put vectors from each of `positions` into `prompt` in the place of `placeholder`, which is
    found in it once.

    `variant` "cheap" tries target layers 0 to 3, "full" all. Without a prompt a built-in list of
    names is used. The control reads another prompt's bridge and answer from the same vectors, which
    is the paper's pairing of a vector with another example, and has as many tries. `n_samples` are
    the tries per pair of layers of the sampled rate.
    """

    positions: tuple[str, ...] = ("subject", "last")
    variant: Literal["cheap", "full"] = "cheap"
    prompt: str = ""
    placeholder: str = ""
    n_samples: int = 3
    known_only: bool = True
    no_shortcuts: bool = True
    seed: int = 0
    question: ClassVar[str] = (
        "From which layer on does a vector say the bridge, or the answer, in another prompt?"
    )
    how: ClassVar[str] = (
        "A layer's output at a token is written over a word of another, neutral prompt, at several"
        " layers, and what the model says there is what the vector stands for. The control reads"
        " another prompt's entities from the same vectors."
    )
    caveat: ClassVar[str] = (
        "The other prompt's own layers can finish the work, so a vector may say what it does not"
        " yet hold."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for position in self.positions:
            if position not in get_args(Where):
                raise AnalysisError(unknown("position", position, get_args(Where)))
        if not self.positions:
            raise AnalysisError("no positions given; there is subject, last")
        if bool(self.prompt) != bool(self.placeholder):
            given, missing = ("prompt", "placeholder") if self.prompt else ("placeholder", "prompt")
            raise AnalysisError(f"a {given} given without a {missing}; both are needed, or neither")
        if self.n_samples < 1:
            raise AnalysisError(f"n_samples={self.n_samples}; at least 1 is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where an answer, a bridge or a subject is missing, and for an unusable
        target prompt.
        """
        require_hops(shard)
        self.target(model)

    def target(self, model: Model) -> TokenBatch:
        """Return the prompt into which vectors are put."""
        return target_prompt(model, self.prompt, self.placeholder)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts are compared, others' bridges and answers, and the target prompt."""
        kept = compared(model, task, known_only=self.known_only, no_shortcuts=self.no_shortcuts)
        target = self.target(model)
        return {
            "kept": kept,
            "target": target.tokens,
            "place": torch.tensor(place_of(target)),
        } | strangers(model, task)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return ranks and probabilities [batch source target entity] by position, of own entities,
        then another's.
        """
        tokens = [
            require_bridge(shard),
            require_answers(shard)[:, 0],
            *of_a_stranger(shard, prepared),
        ]
        target, place = recording.beside(prepared["target"]), int(prepared["place"])
        layers = target_layers(recording.n_layers, is_full=self.variant == "full")
        tensors = sorted_out(recording, shard, prepared["kept"]) | {
            "anyway": says_it_anyway(target, tokens).cpu()
        }
        for position in get_args(Where):
            if position in self.positions:
                vectors = outputs_at(recording, span_of(shard, position))[:, :, 0]
                found, shares = said_ranks(target, vectors, tokens, layers=layers, position=place)
                tensors |= {
                    f"{position}.rank": found.cpu().to(torch.int32),
                    f"{position}.probability": shares.cpu(),
                }
        return tensors

    def combine(self, parts: Sequence[Tensors]) -> "EntityDescriptionResult":
        """Return ranks and probabilities of all prompts."""
        return EntityDescriptionResult(
            self, {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        )

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return one pass of the target prompt, and per source and target layer the tokens and
        layers behind the word.
        """
        n, n_pos = shard.tokens.shape
        layers, prompt = (
            target_layers(model.n_layers, is_full=self.variant == "full"),
            self.target(model),
        )
        behind = prompt.tokens.shape[1] - place_of(prompt)
        n_positions = len(set(self.positions))
        steps = n_positions * n * said_steps(model.n_layers, layers=layers) * behind
        forwards = (steps + model.n_layers * prompt.tokens.shape[1]) / (n * n_pos * model.n_layers)
        held = n * (model.n_layers * behind * model.d_model + 3 * model.d_vocab)
        return Cost(forwards, n * model.n_layers * len(layers) * 8 * n_positions, held)


def described_texts(
    model: Model, prompts: Sequence[Prompt], *, source: int, target: int, position: Where, max_new_tokens: int = 10,
    analysis: EntityDescription | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return what the model says, greedily, behind the target prompt with each prompt's vector in
    it.
    """
    analysis = analysis or EntityDescription()
    shard, filled = model.tokenize(prompts), analysis.target(model)
    for what, layer in (("source", source), ("target", target)):
        if not 0 <= layer < model.n_layers:
            raise AnalysisError(f"{what}={layer}; the model's last layer is {model.n_layers - 1}")
    outputs = model.forward(shard, capture=[Site("resid_post", source)]).activations[
        Site("resid_post", source)
    ]
    at = span_of(shard, position)[:, 0]
    vectors = outputs[torch.arange(len(at), device=at.device), at]
    into = model.tokenize([Prompt(prompt.id, filled.prompts[0].text) for prompt in prompts])
    plan = [Patch(Site("resid_post", target), vectors[:, None], positions=[place_of(filled)])]
    return model.generate(into, max_new_tokens=max_new_tokens, plan=plan, phase="prefill").texts


@dataclass(frozen=True, repr=False)
class EntityDescriptionResult(Result):
    """Per prompt: `arrays["subject.rank"]` [prompt source target entity], own bridge and answer,
    then another's.

    A prompt does not count where the target prompt says the entity, or its control, without any
    vector.
    """

    analysis: EntityDescription
    arrays: dict[str, np.ndarray]

    @property
    def positions(self) -> list[str]:
        """Return where vectors are from."""
        return [position for position in _FROM if f"{position}.rank" in self.arrays]

    @property
    def _asked(self) -> list[tuple[str, str]]:
        """Return what is shown: the bridge from both positions, and the answer from the last."""
        shown = (("subject", "bridge"), ("last", "bridge"), ("last", "answer"))
        return [(position, entity) for position, entity in shown if position in self.positions]

    def said(self, group: str, position: str, entity: str) -> tuple[np.ndarray, np.ndarray]:
        """Return whether the entity, and whether another's, is said first [prompt source target]."""
        own, other = self._of(group, position, entity, "rank")
        return own == 0, other == 0

    def _of(
        self, group: str, position: str, entity: str, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        i = ENTITIES.index(entity)
        chosen = groups(self.arrays)[group] & ~self.arrays["anyway"][:, [i, i + 2]].any(1)
        found = self.arrays[f"{position}.{what}"][chosen]
        return found[..., i], found[..., i + 2]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per statistic, group, position of the vector, entity, and source and
        target layer.

        "pair": the entity is the first guess for this pair of layers; "any target": for any target
        of this source; "first source": this is the first such source; "anywhere": for any pair;
        "sampled anywhere": expected, if each of the pairs is sampled `n_samples` times. Each `rate`
        stands beside its control, another prompt's entity with as many `tries`, and their paired
        difference `gain`; with 95 % bootstrap intervals over prompts.
        """
        rows = [
            row
            for group in groups(self.arrays)
            for position in self.positions
            for entity in ENTITIES
            for row in self._rows(group, position, entity)
        ]
        frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame([{"n_prompts": 0}])
        types = dict.fromkeys(("source", "target", "tries", "n_prompts"), "Int64") | dict.fromkeys(
            _REAL, "float64"
        )
        return frame.reindex(columns=[*_KEYS, *types]).astype(types)

    def _rows(self, group: str, position: str, entity: str) -> Iterator[pd.DataFrame]:
        hits = self.said(group, position, entity)
        n, n_sources, n_targets = hits[0].shape
        if not n:
            return
        sources, targets = (axis.ravel() for axis in np.mgrid[:n_sources, :n_targets])
        of_source = [np.asarray(each.any(2)) for each in hits]
        first = [each & (each.cumsum(1) == 1) for each in of_source]
        n_samples = self.analysis.n_samples
        missed = [
            np.log1p(-p.astype(np.float64).clip(max=1 - 1e-9))
            for p in self._of(group, position, entity, "probability")
        ]
        sampled = [-np.expm1(n_samples * each.sum((1, 2)))[:, None] for each in missed]
        layers, pairs = np.arange(n_sources), n_sources * n_targets
        for statistic, (own, other), at, tries in (
            (
                "pair",
                [each.reshape(n, -1) for each in hits],
                {"source": sources, "target": targets},
                1,
            ),
            ("any target", of_source, {"source": layers}, n_targets),
            ("first source", first, {"source": layers}, n_targets),
            (
                "anywhere",
                [each.any(1, keepdims=True) for each in of_source],
                {"source": [None]},
                pairs,
            ),
            ("sampled anywhere", sampled, {"source": [None]}, n_samples * pairs),
        ):
            keys = dict(zip(_KEYS, (statistic, group, position, entity), strict=True)) | at
            yield pd.DataFrame(keys | {"tries": tries, "n_prompts": n} | self._rates(own, other))

    def _rates(self, own: Any, other: Any) -> dict[str, np.ndarray]:
        """Return own, another's and the difference's mean over the first axis, with intervals."""
        own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
        rates = {}
        for name, low_name, high_name, values in (
            ("rate", "low", "high", own),
            ("control", "control_low", "control_high", other),
            ("gain", "gain_low", "gain_high", own - other),
        ):
            rates[low_name], rates[high_name] = bootstrap_interval(values, seed=self.analysis.seed)
            rates[name] = values.mean(0)
        return rates

    def plot(self) -> go.Figure:
        """Draw how often each source layer's vector says the entity for any target layer; below,
        one grid of all pairs.
        """
        frame = self.to_frame()
        title = (
            "What a vector says in another prompt, by its source layer: share of prompts, any"
            " target layer"
        )
        lines = [
            line
            for group in groups(self.arrays)
            for asked in self._asked
            for line in self._lines(frame, group, *asked)
        ]
        if not lines:
            return go.Figure().update_layout(title=f"{title}: no prompts are compared")
        figure = lines_over_depth(
            pd.concat(lines), y="rate", groups="line", panels="panel", title=title
        )
        figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
        group, (position, entity) = list(groups(self.arrays))[-1], self._asked[0]
        said = self.said(group, position, entity)[0]
        if not len(said):
            return figure
        of = f"{entity} said, {_FROM[position]},<br>{group}: share"
        return grid_below(figure, said.mean(0), x="target layer", y="source layer", of=of, top=1.0)

    def _lines(
        self, frame: pd.DataFrame, group: str, position: str, entity: str
    ) -> Iterator[pd.DataFrame]:
        rows = frame[(frame[_KEYS] == ("any target", group, position, entity)).all(axis=1)]
        panel = f"{entity}, {_FROM[position]}"
        own = rows.rename(columns={"source": "layer"})[["layer", "rate", "low", "high"]]
        yield own.assign(panel=panel, line=group)
        control = {
            "source": "layer",
            "control": "rate",
            "control_low": "low",
            "control_high": "high",
        }
        yield (
            rows[[*control]]
            .rename(columns=control)
            .assign(panel=panel, line=f"{group}, another prompt's")
        )

    def findings(self) -> tuple[Finding, ...]:
        """Return how often the first vector asked for says its entity, for any pair of layers."""
        frame = self.to_frame()
        rows = frame[frame["statistic"] == "anywhere"] if groups(self.arrays) else frame.head(0)
        if rows.empty:
            return (old_finding(self.summary()),)
        first = rows.iloc[0]
        measure = (
            f"share of prompts ({first['group']}) whose {_FROM[first['position']]}'s vector says"
            f" the {first['entity']}"
        )
        low, high = float(first["low"]), float(first["high"])
        return (
            old_finding(
                self.summary(), float(first["rate"]), measure, low, high, int(first["n_prompts"])
            ),
        )

    def summary(self) -> str:
        """Say from which source layer on the bridge and the answer are said, and how often another
        prompt's would be.
        """
        if not groups(self.arrays):
            return f"{counted(self.arrays)}."
        frame = self.to_frame()
        found = []
        for group in groups(self.arrays):
            said = [self._found(frame, group, position, entity) for position, entity in self._asked]
            found.append(f"{group.capitalize()}: {'; '.join(said)}.")
        return f"{' '.join(found)} ({counted(self.arrays)}; in brackets another prompt's entity.)"

    def _found(self, frame: pd.DataFrame, group: str, position: str, entity: str) -> str:
        rows = frame[(frame[_KEYS[1:]] == (group, position, entity)).all(axis=1)]
        if rows.empty:
            return f"the {entity} from the {_FROM[position]} cannot be judged"
        sources, anywhere = (
            rows[rows["statistic"] == statistic] for statistic in ("any target", "anywhere")
        )
        half = sources[sources["rate"] >= 0.5]["source"]
        from_layer = f"from layer {half.min()} on" if len(half) else "at no layer"
        total = anywhere.iloc[0]
        return (
            f"the {_FROM[position]}'s vector says the {entity} in half of the prompts {from_layer},"
            f" for any pair of layers in {total['rate']:.0%} ({total['control']:.0%})"
        )
