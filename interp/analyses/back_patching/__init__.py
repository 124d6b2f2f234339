"""Does running late activations through early layers repair the answer, and more often than chance
tries do?

"Hopping Too Late" (arXiv 2406.12775), section 6: the output of a source layer at one token is
written over the output of an earlier target layer at the same token, and the rest of the model is
run again. A prompt counts there as repaired if any of the L(L-1)/2 pairs of layers makes the answer
come out; here every control has as many tries, and one fixed pair of layers, chosen on one half of
the prompts, is scored on the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Int
from torch import Tensor

from interp.analyses.back_patching.tries import (
    CONTROLS,
    Tries,
    all_tries,
    kinds_of,
    n_pairs,
    other_positions,
    sources_of,
)
from interp.analysis import Analysis, Cost, Finding, Result
from interp.errors import AnalysisError, unknown
from interp.figures.plots import grids_over_rates
from interp.models import Model
from interp.replay import Recording
from interp.result import old_finding
from interp.shapes import Tensors
from interp.stats.bootstrap import bootstrap_interval
from interp.stats.rates import Rate, any_try, chosen_try
from interp.sweeps.answers import require_answers
from interp.sweeps.patching import (
    donors,
    ends_of_patched,
    known_hops,
    logits_at_the_end,
    of_token,
    outputs_at,
    patching_steps,
    ranks,
    span_of,
)
from interp.sweeps.tags import keys_of, read_tags, tags_of
from interp.sweeps.texts import all_say, patched_texts, sampled_texts
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

_SHOWN = {
    "back": "back-patching",
    "identity": "own output (identity)",
    "forward": "forward (early to late)",
    "example": "another prompt's vector",
    "random": "random direction",
    "position": "random position",
    "sampled": "sampled answers, no patch",
    "rescaled": "back-patching at the target's norm",
}
_WHERE = {"subject": "the first hop's last token", "last": "the last token"}
_RIVALS = (
    "forward",
    "example",
    "random",
    "position",
    "sampled",
)  # to be beaten; "rescaled" is a variant of the method
_FEWEST = 10  # failures in a group that is spoken of
_MOST = 5  # groups that are spoken of


@dataclass(frozen=True)
class BackPatching(Analysis):
    """Patch at the last token of the first-hop phrase ("subject") or of the prompt ("last"), `span`
    tokens together.

    Right is a prompt whose answer's first token is the first guess or, with `max_new_tokens`, whose
    greedy text of so many tokens says the answer or an alias. With `known_only`, failures are wrong
    prompts both of whose single hops the model answers. Vectors of other prompts come from the
    task's first `n_donors`, at the same place, where bridge and answer differ. Rates are given for
    all prompts and for each value of the tag `by`.
    """

    position: Literal["subject", "last"] = "subject"
    span: int = 1
    controls: tuple[str, ...] = CONTROLS
    known_only: bool = True
    max_new_tokens: int | None = None
    by: str = "set"
    n_donors: int = 32
    seed: int = 0
    question: ClassVar[str] = (
        "Does running late activations through early layers repair the answer?"
    )
    how: ClassVar[str] = (
        "A later layer's output at one token is written over an earlier layer's output at the same"
        " token, and the rest is run again, for every pair of layers. One fixed pair is chosen on"
        " half of the failures and scored on the other; every control has as many tries."
    )
    caveat: ClassVar[str] = (
        "Any of many pairs repairs some prompts by chance; only the difference to controls with as"
        " many tries is evidence."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for control in self.controls:
            if control not in CONTROLS:
                raise AnalysisError(unknown("control", control, CONTROLS))
        new = 1 if self.max_new_tokens is None else self.max_new_tokens
        for name, value, least in (
            ("span", self.span, 1),
            ("n_donors", self.n_donors, 2),
            ("max_new_tokens", new, 1),
        ):
            if value < least:
                raise AnalysisError(f"{name}={value}; at least {least} is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise TaskError where an answer or a subject is missing, AnalysisError where a span or
        pair does not fit.
        """
        require_answers(shard)
        if self.max_new_tokens is not None:
            model.refuse_texts(shard.prompts)
        if model.n_layers < 2:
            raise AnalysisError(
                f"model {model.name!r} has 1 layer; back-patching needs a later and an earlier one"
            )
        if self.max_new_tokens is not None:
            model.refuse_responses(shard, self.max_new_tokens)
        positions = self._positions(shard)
        if int(positions.min()) < 0:
            which = shard.prompts[int(positions[:, 0].argmin())].id
            raise AnalysisError(
                f"prompt {which!r}: a span of {self.span} tokens begins before its first token"
            )
        if "position" in self.controls and (n_pos := shard.tokens.shape[1]) < self.span + 1:
            raise AnalysisError(
                f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; no other position is left to"
                " patch"
            )

    def _positions(self, shard: TokenBatch) -> Int[Tensor, "batch span"]:
        return span_of(shard, self.position, width=self.span)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which single hops are known, the donors' vectors, and what texts say, by prompt
        (texts are not resumed).
        """
        prepared = (
            known_hops(model, task, max_new_tokens=self.max_new_tokens) if self.known_only else {}
        )
        if "example" in self.controls:
            prepared |= donors(model, task, n=self.n_donors, positions=self._positions)
        if self.max_new_tokens is None:
            return prepared
        shards = [model.tokenize(prompts) for prompts in model.shards(task)]
        said = [self._said(model, shard, prepared) for shard in shards]
        return prepared | {
            f"said.{key}": torch.cat([part[key] for part in said]) for key in said[0]
        }

    @torch.no_grad()
    def _said(self, model: Model, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return what texts decide: which prompts are right, clean, patched and sampled."""
        assert self.max_new_tokens is not None
        n, layers = len(shard.prompts), model.n_layers
        clean = model.generate(shard, max_new_tokens=self.max_new_tokens).texts
        sampled = sampled_texts(
            model, shard, n=n_pairs(layers), max_new_tokens=self.max_new_tokens, seed=self.seed
        )
        drawn = all_say(sampled, shard.prompts)
        tensors: Tensors = {
            "key": keys_of(shard),
            "is_right": all_say([clean], shard.prompts)[0],
            "sampled.one": drawn.float().mean(0),
            "sampled.any": drawn.any(0).float(),
            "is_unchanged": torch.ones(n, dtype=torch.bool),
        }
        for tries in self._tries(model.record(shard), shard, prepared):
            right = tensors[f"{tries.kind}.right"] = torch.full(
                (n, layers, layers), -1, dtype=torch.int8
            )
            for target, values in tries.values.items():
                texts = patched_texts(
                    model,
                    shard,
                    values,
                    layer=target,
                    positions=tries.positions,
                    max_new_tokens=self.max_new_tokens,
                )
                right[:, tries.sources[target], target] = all_say(texts, shard.prompts).T.to(
                    torch.int8
                )
                if tries.kind == "own" and target in tries.sources[target]:
                    own = texts[tries.sources[target].index(target)]
                    tensors["is_unchanged"] &= torch.tensor(
                        [a == b for a, b in zip(own, clean, strict=True)]
                    )
        return tensors

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt and pair [batch source target] ranks, changes of logits and what is
        right, by kind of patch.

        0 (rank and right -1) where a pair is not tried. "own" holds the pairs of the prompt's own
        vectors: back, identity and forward.
        """
        assert shard.answer is not None
        n, layers = len(shard.prompts), recording.n_layers
        clean = recording.logits(recording.resid(layers), positions=[-1])[:, 0]
        chance = of_token(clean.softmax(-1), shard.answer).double().cpu()
        tensors: Tensors = {
            "tag": tags_of(shard, self.by),
            "hops": self._hops(shard, prepared),
            "bridge_rank": self._bridge_ranks(recording, shard),
            "is_right": ranks(clean, shard.answer).cpu() == 0,
            "sampled.one": chance.float(),
            "sampled.any": -torch.expm1(torch.log1p(-chance) * n_pairs(layers)).float(),
        }
        for tries in self._tries(recording, shard, prepared):
            rank = tensors[f"{tries.kind}.rank"] = torch.full(
                (n, layers, layers), -1, dtype=torch.int32
            )
            right = tensors[f"{tries.kind}.right"] = torch.full(
                (n, layers, layers), -1, dtype=torch.int8
            )
            answer = tensors[f"{tries.kind}.answer"] = torch.zeros(n, layers, layers)
            difference = tensors[f"{tries.kind}.difference"] = torch.zeros(n, layers, layers)
            for target, end in ends_of_patched(
                recording, tries.values, positions=tries.positions
            ).items():
                at = (slice(None), tries.sources[target], target)
                logits = logits_at_the_end(recording, end)
                change = logits - clean
                rank[at] = ranks(logits, shard.answer).T.cpu().to(torch.int32)
                right[at] = (rank[at] == 0).to(torch.int8)
                answer[at] = of_token(change, shard.answer).T.cpu()
                if shard.bridge is not None:
                    difference[at] = answer[at] - of_token(change, shard.bridge).T.cpu()
        if self.max_new_tokens is None:
            return tensors
        rows = [int((prepared["said.key"] == key).nonzero()[0, 0]) for key in keys_of(shard)]
        said = {
            key.removeprefix("said."): value[rows]
            for key, value in prepared.items()
            if key.startswith("said.")
        }
        return tensors | {key: value for key, value in said.items() if key != "key"}

    def _bridge_ranks(self, recording: Recording, shard: TokenBatch) -> Int[Tensor, "batch layer"]:
        """Return how many tokens the lens puts above the bridge where the patch ends, after each
        layer; -1 without one.
        """
        if shard.bridge is None:
            return torch.full((len(shard.prompts), recording.n_layers), -1)
        last = outputs_at(recording, self._positions(shard))[:, :, -1]
        return ranks(logits_at_the_end(recording, last), shard.bridge).T.cpu()

    def _hops(self, shard: TokenBatch, prepared: Tensors) -> Tensor:
        """Return 1 where both single hops are known, 0 where one is not, -1 where they were not
        asked.
        """
        if not self.known_only:
            return torch.full((len(shard.prompts),), -1, dtype=torch.int8)
        asked, unknown_ = (
            torch.isin(keys_of(shard), prepared[name]) for name in ("asked", "unknown")
        )
        return torch.where(asked, (~unknown_).to(torch.int8), -1).to(torch.int8)

    def _tries(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Iterator[Tries]:
        positions = self._positions(shard)
        return all_tries(
            recording, shard, prepared, controls=self.controls, positions=positions, seed=self.seed
        )

    def combine(self, parts: Sequence[Tensors]) -> "BackPatchingResult":
        """Return rates over the failures."""
        arrays = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        return BackPatchingResult(self, arrays)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return (L-1)L(2L-1)/6 blocks from the first patched position on, for the patches and for
        each control.

        Texts add a forward each.
        """
        layers, (n, n_pos), positions = model.n_layers, shard.tokens.shape, self._positions(shard)
        steps, n_texts, kinds = 0, n_pairs(layers), kinds_of(self.controls)
        for kind in kinds:
            where = (
                other_positions(shard, positions, seed=self.seed)
                if kind == "position"
                else positions
            )
            asked = [
                len(sources_of(kind, target, n_layers=layers, controls=self.controls))
                for target in range(layers)
            ]
            steps += patching_steps(layers, variants=asked) * (n_pos - int(where.min()))
            n_texts += sum(asked)
        decoding = (
            0.0
            if self.max_new_tokens is None
            else n_texts * (n_pos + self.max_new_tokens - 1) / n_pos
        )
        behind = n_pos - int(positions.min())
        held = n * layers * (2 * layers * behind * model.d_model + 3 * model.d_vocab)
        return Cost(steps / (n_pos * layers) + decoding, 4 * n * layers**2 * len(kinds), held)


@dataclass(frozen=True, repr=False)
class BackPatchingResult(Result):
    """Per prompt and pair: `arrays["own.right"]` [prompt source target]; rates are over the
    failures.
    """

    analysis: BackPatching
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["own.rank"].shape[1])

    @property
    def is_failure(self) -> np.ndarray:
        """Return which prompts [prompt] are asked to be repaired: wrong ones none of whose single
        hops is unknown.
        """
        failure: np.ndarray = ~self.arrays["is_right"] & (self.arrays["hops"] != 0)
        return failure

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the method, its variant and its controls, each with as many tries."""
        asked = [
            kind for kind in ("rescaled", *_RIVALS) if kind in (*self.analysis.controls, "sampled")
        ]
        return ("back", *asked)

    @property
    def has_bridge(self) -> np.ndarray:
        """Return which prompts [prompt] have a bridge."""
        there: np.ndarray = self.arrays["bridge_rank"][:, 0] >= 0
        return there

    def readable(self, which: np.ndarray) -> np.ndarray:
        """Return whether the bridge is the lens's first guess where the patch ends [prompt layer],
        of some prompts.
        """
        first: np.ndarray = self.arrays["bridge_rank"][which & self.has_bridge] == 0
        return first

    @property
    def n_tries(self) -> int:
        """Return how many pairs of layers each kind has."""
        return n_pairs(self.n_layers)

    def groups(self) -> dict[str, "BackPatchingResult"]:
        """Return the result for all prompts and, where they differ, for each value of the tag."""
        tags = np.array(read_tags(self.arrays["tag"]))
        found: dict[str, BackPatchingResult] = {"all": self}
        for tag in sorted({*tags} - {""}) if len({*tags}) > 1 else []:
            found[str(tag)] = BackPatchingResult(
                self.analysis, {key: a[tags == tag] for key, a in self.arrays.items()}
            )
        return found

    def pairs(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target layers of the pairs of a kind."""
        later, earlier = np.tril_indices(self.n_layers, -1)
        return (earlier, later) if kind == "forward" else (later, earlier)

    def of_pairs(self, kind: str, what: str) -> np.ndarray:
        """Return what is right, ranks or changes [prompt pair]."""
        array: np.ndarray = self.arrays[f"{'own' if kind in ('back', 'forward') else kind}.{what}"]
        picked: np.ndarray = array[(slice(None), *self.pairs(kind))]
        return picked

    def repaired(self, kind: str) -> np.ndarray:
        """Return which pairs repair which failures [failure pair]."""
        done: np.ndarray = self.of_pairs(kind, "right")[self.is_failure] == 1
        return done

    def scores(self, kind: str, statistic: str) -> np.ndarray:
        """Return whether each failure [failure] is repaired by any pair ("oracle"), or by one fixed
        pair ("fixed").

        The fixed pair is the best on the other half of the failures. Of sampled answers it is the
        chance that one in as many, or a single one, is right.
        """
        if kind == "sampled":
            sampled = self.arrays["sampled.any" if statistic == "oracle" else "sampled.one"]
            return np.asarray(sampled[self.is_failure], dtype=np.float64)
        repaired = self.repaired(kind)
        return any_try(repaired) if statistic == "oracle" else chosen_try(repaired)

    def best_pair(self, kind: str = "back") -> tuple[int, int]:
        """Return the source and target layer that repair most failures."""
        best = self.repaired(kind).sum(0).argmax()
        sources, targets = self.pairs(kind)
        return int(sources[best]), int(targets[best])

    def best_control(self, statistic: str) -> str:
        """Return the control that repairs most failures."""
        rivals = [kind for kind in self.kinds if kind in _RIVALS]
        return max(rivals, key=lambda kind: float(self.scores(kind, statistic).mean()))

    def rate(self, kind: str, statistic: str, *, over: str | None = None) -> Rate:
        """Return the share of the failures that are repaired, or how far it lies above another
        kind's, with its interval.
        """
        scores = self.scores(kind, statistic)
        if over is not None:
            scores = scores - self.scores(over, statistic)
        return Rate.of(scores, seed=self.analysis.seed)

    def identity_change(self) -> float:
        """Return the largest change of an answer's logit, in nats, where a layer's own output is
        written over it.
        """
        own = np.arange(self.n_layers)
        return float(np.abs(self.arrays["own.answer"][:, own, own]).max())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per group of prompts, statistic and kind of patch; for "pair" also per
        source and target layer.

        "oracle": the share of failures that any of `tries` pairs repairs; "fixed": that one pair
        does, chosen on one half and scored on the other (source and target: the best on all);
        "oracle gain" and "fixed gain": the method's rate minus this control's; "pair": what this
        pair does: mean rank of the answer and mean changes of its logit, and of its logit minus the
        bridge's, over the failures, and `kept`, the share of right answers that stay right; "lens":
        the share of failures, or of right answers, of which the bridge is the lens's first guess
        where the patch ends, after layer `source`. 95 % bootstrap intervals over prompts.
        """
        frames = [
            result._group_frame().assign(group=group) for group, result in self.groups().items()
        ]
        whole = dict.fromkeys(("source", "target", "tries", "n_prompts"), "Int64")
        real = dict.fromkeys(
            ("rate", "low", "high", "rank", "answer", "difference", "kept"), "float64"
        )
        frame = pd.concat([frame.astype(object) for frame in frames], ignore_index=True)
        words = dict.fromkeys(("group", "statistic", "kind"), "str")
        return frame.reindex(columns=[*words, *whole, *real]).astype(words | whole | real)

    def _group_frame(self) -> pd.DataFrame:
        if not self.is_failure.any():
            return pd.DataFrame(
                [{"statistic": "oracle", "kind": kind, "n_prompts": 0} for kind in self.kinds]
            )
        rows: list[dict[str, object]] = []
        for statistic, tries in (("oracle", self.n_tries), ("fixed", 1)):
            for kind in self.kinds:
                named = statistic == "fixed" and kind != "sampled"
                pair = (
                    dict(zip(("source", "target"), self.best_pair(kind), strict=True))
                    if named
                    else {}
                )
                keys = {"statistic": statistic, "kind": kind, "tries": tries}
                rows.append(keys | pair | self.rate(kind, statistic).columns())
            for kind in [kind for kind in self.kinds if kind in _RIVALS]:
                gain = self.rate("back", statistic, over=kind)
                rows.append(
                    {"statistic": f"{statistic} gain", "kind": kind, "tries": tries}
                    | gain.columns()
                )
        for name, which in (
            ("failures", self.is_failure),
            ("right answers", self.arrays["is_right"]),
        ):
            for layer, scores in enumerate(
                self.readable(which).T if (which & self.has_bridge).any() else ()
            ):
                lens = Rate.of(scores, seed=self.analysis.seed)
                rows.append({"statistic": "lens", "kind": name, "source": layer} | lens.columns())
        frames = [
            pd.DataFrame(rows),
            *[self._of_pairs(kind) for kind in self.kinds if kind != "sampled"],
        ]
        return pd.concat([frame.astype(object) for frame in frames])

    def _of_pairs(self, kind: str) -> pd.DataFrame:
        sources, targets = self.pairs(kind)
        repaired = self.repaired(kind).astype(np.float64)
        low, high = bootstrap_interval(repaired, seed=self.analysis.seed)
        bridged = self.is_failure & self.has_bridge
        return pd.DataFrame(
            {
                "statistic": "pair", "kind": kind, "source": sources, "target": targets, "tries": 1,
                "rate": repaired.mean(0), "low": low, "high": high, "n_prompts": len(repaired),
                "rank": self.of_pairs(kind, "rank")[self.is_failure].mean(0),
                "answer": self.of_pairs(kind, "answer")[self.is_failure].mean(0),
                "difference": self.of_pairs(kind, "difference")[bridged].mean(0) if bridged.any() else np.nan,
                "kept": self.kept(kind),
            }
        )  # fmt: skip

    def kept(self, kind: str) -> np.ndarray:
        """Return by pair the share of right answers that stay right; NaN if none is right."""
        right = self.arrays["is_right"]
        stay = self.of_pairs(kind, "right")[right] == 1
        return np.asarray(stay.mean(0) if len(stay) else np.full(stay.shape[1], np.nan))

    def _spoken_of(self) -> dict[str, "BackPatchingResult"]:
        """Return the groups with enough failures, up to five with the most; all prompts together if
        there is none.
        """
        groups = self.groups()
        enough = {
            name: r for name, r in groups.items() if name != "all" and r.is_failure.sum() >= _FEWEST
        }
        most = sorted(enough, key=lambda name: -int(enough[name].is_failure.sum()))[:_MOST]
        return {name: r for name, r in enough.items() if name in most} or {"all": self}

    def plot(self) -> go.Figure:
        """Draw by group the share of failures that each pair of layers repairs, and one pair's rate
        against the controls.
        """
        shown = self._spoken_of() if self.is_failure.any() else {}
        grids, bars = {}, {}
        for name, result in shown.items():
            grid = np.full((self.n_layers, self.n_layers), np.nan)
            for kind in ("back", "forward") if "forward" in self.analysis.controls else ("back",):
                grid[self.pairs(kind)] = result.repaired(kind).mean(0)
            title = f"{name}: {int(result.is_failure.sum())} failures"
            grids[title] = grid
            rates = [
                {"kind": _SHOWN[kind]} | result.rate(kind, "fixed").columns() for kind in self.kinds
            ]
            bars[title] = pd.DataFrame(rates)
        where = _WHERE[self.analysis.position]
        return grids_over_rates(
            grids, bars, x="target layer", y="source layer", of="share of the failures repaired",
            below="share repaired by one fixed pair, chosen on the other half of the failures (95 % intervals)",
            title=f"Back-patching at {where} (below the diagonal, as a control: early layers over late ones)",
        )  # fmt: skip

    def findings(self) -> tuple[Finding, ...]:
        """Return the gain of one fixed pair over the best control, where there are enough failures
        for rates.
        """
        if self.is_failure.sum() < _FEWEST:
            failing = Rate.of(self.is_failure, seed=self.analysis.seed)
            measure = "share of prompts to repair; too few for rates"
            return (
                old_finding(
                    self.summary(), failing.share, measure, failing.low, failing.high, failing.n
                ),
            )
        gain = self.rate("back", "fixed", over=self.best_control("fixed"))
        measure = (
            "share of failures that one fixed pair of layers repairs, above the best control's"
        )
        return (old_finding(self.summary(), gain.share, measure, gain.low, gain.high, gain.n),)

    def summary(self) -> str:
        """Say how many failures one fixed pair repairs, what the best control does, and what the
        oracle hides; by group.
        """
        n, failures = len(self.is_failure), int(self.is_failure.sum())
        asked = bool((self.arrays["hops"] >= 0).all())
        hops = "both single hops known" if asked else "single hops not asked"
        if not failures:
            right = int(self.arrays["is_right"].sum())
            wrong = (
                f", {n - right} wrong but with a single hop that is not known" if right < n else ""
            )
            return f"Nothing to repair: of {n} prompts {right} are right{wrong}."
        if failures < _FEWEST:
            repaired, luckiest = (
                self.scores(kind, "oracle").sum() for kind in ("back", self.best_control("oracle"))
            )
            return (
                f"{failures} of {n} prompts fail ({hops}): too few for rates ({_FEWEST} are"
                f" needed). Any of {self.n_tries} pairs repairs {repaired:.0f} of them, as many"
                f" tries of the best control {luckiest:.1f}."
            )
        groups = self._spoken_of()
        first = max(groups, key=lambda name: groups[name].scores("back", "fixed").mean())
        text = (
            f"{failures} of {n} prompts fail ({hops})."
            f" {groups[first]._told('' if first == 'all' else first)}"
        )
        others = [
            f"{name} {result._in_short()}" for name, result in groups.items() if name != first
        ]
        text += f" The same elsewhere: {'; '.join(others)}." if others else ""
        text += self._lens_in_words({first: groups[first], **groups})
        if "identity" in self.analysis.controls:
            text += (
                " A layer's own output in its place changes the answer's logit by"
                f" {self.identity_change():.1g} at most"
            )
            same = self.arrays.get("is_unchanged")
            text += "." if same is None else f", and the text of {int((~same).sum())} prompts."
        return text

    def _lens_in_words(self, groups: dict[str, "BackPatchingResult"]) -> str:
        """Say after how many layers the bridge is first readable; one more than there are if it
        never is.
        """
        never = self.n_layers + 1

        def layers(of: BackPatchingResult, which: np.ndarray) -> str:
            first = of.readable(which)
            return f"{np.where(first.any(1), first.argmax(1) + 1, never).mean():.1f}"

        told = [(name, r, r.is_failure) for name, r in groups.items()] + [
            ("all right answers", self, self.arrays["is_right"])
        ]
        said = [
            f"{name} {layers(r, which)}" for name, r, which in told if (which & r.has_bridge).any()
        ]
        return (
            f" Layers until the lens reads the bridge there ({self.n_layers + 1}: never):"
            f" {'; '.join(said)}."
            if said
            else ""
        )

    def _told(self, group: str) -> str:
        (source, target), fixed, oracle = (
            self.best_pair(),
            self.rate("back", "fixed"),
            self.rate("back", "oracle"),
        )
        control, luckiest = self.best_control("fixed"), self.best_control("oracle")
        right, kept = (
            int(self.arrays["is_right"].sum()),
            self.kept("back")[self.repaired("back").sum(0).argmax()],
        )
        stays = f"; it leaves {kept:.0%} of {right} right answers right" if right else ""
        return (
            f"{f'{group}: at' if group else 'At'} {_WHERE[self.analysis.position]}, one pair of"
            f" layers repairs {fixed.share:.0%} [{fixed.low:.0%} to {fixed.high:.0%}] of {fixed.n}"
            " failures (chosen on half of them, scored on the other; on all, the best is layer"
            f" {source}'s output over layer {target}'s{stays}). One try of the best control,"
            f" {_SHOWN[control]}: {self.scores(control, 'fixed').mean():.0%};"
            f" {self.rate('back', 'fixed', over=control).as_gain}. Any of {self.n_tries} pairs:"
            f" {oracle.share:.0%}; {self.n_tries} tries of the best control, {_SHOWN[luckiest]}:"
            f" {self.scores(luckiest, 'oracle').mean():.0%};"
            f" {self.rate('back', 'oracle', over=luckiest).as_gain}."
        )

    def _in_short(self) -> str:
        gain = self.rate("back", "fixed", over=self.best_control("fixed"))
        return f"{self.scores('back', 'fixed').mean():.0%} of {gain.n}, {gain.as_gain}"
