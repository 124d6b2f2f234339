"""Does running late activations through early layers repair the answer, and more often than chance tries do?

"Hopping Too Late" (arXiv 2406.12775), section 6: the output of a source layer at one token is written over the output of an
earlier target layer at the same token, and the rest of the model is run again. A prompt counts there as repaired if any of
the L(L-1)/2 pairs of layers makes the answer come out; here every control has as many tries, and one fixed pair of layers,
chosen on one half of the prompts, is scored on the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from interp.analysis import Analysis, Cost, Result
from interp.errors import AnalysisError, unknown
from interp.interventions import Patch
from interp.models import Model
from interp.plots import grid_beside_bars
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sites import Site
from interp.sweeps.answers import require_answers
from interp.sweeps.patching import (
    donors,
    ends_of_patched,
    key_of,
    known_hops,
    logits_at_the_end,
    of_another,
    of_token,
    outputs_at,
    patching_steps,
    ranks,
    span_of,
)
from interp.sweeps.statistics import bootstrap_interval
from interp.tasks import Prompt, Task
from interp.tasks.batch import TokenBatch

CONTROLS = ("forward", "example", "random", "position", "rescaled")
_SHOWN = {
    "back": "back-patching",
    "forward": "forward (early to late)",
    "example": "another prompt's vector",
    "random": "random direction",
    "position": "random position",
    "sampled": "sampled answers, no patch",
    "rescaled": "back-patching, target's norm",
}
_VARIANTS = ("back", "rescaled")  # these are the method; the others are what it has to beat


@dataclass(frozen=True)
class BackPatching(Analysis):
    """Patch at the last token of the first-hop phrase ("subject") or of the prompt ("last"), `span` tokens together.

    Vectors of other prompts come from the task's first `n_donors`, at the same place, where bridge and answer differ. With
    `known_only`, rates are over the failures on prompts both of whose single hops the model answers.
    """

    position: Literal["subject", "last"] = "subject"
    span: int = 1
    controls: tuple[str, ...] = CONTROLS
    known_only: bool = True
    n_donors: int = 32
    seed: int = 0
    question: ClassVar[str] = "Does running late activations through early layers repair the answer?"

    def __post_init__(self) -> None:
        if self.position not in ("subject", "last"):
            raise AnalysisError(unknown("position", self.position, ("subject", "last")))
        for control in self.controls:
            if control not in CONTROLS:
                raise AnalysisError(unknown("control", control, CONTROLS))
        for name, value, least in (("span", self.span, 1), ("n_donors", self.n_donors, 2)):
            if value < least:
                raise AnalysisError(f"{name}={value}; at least {least} is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:  # noqa: ARG002
        """Raise TaskError where an answer or a subject is missing, AnalysisError where a span does not fit."""
        require_answers(shard)
        positions = self._positions(shard)
        if int(positions.min()) < 0:
            which = shard.prompts[int(positions[:, 0].argmin())].id
            raise AnalysisError(f"prompt {which!r}: a span of {self.span} tokens begins before its first token")
        if "position" in self.controls and (n_pos := shard.tokens.shape[1]) < self.span + 2:
            raise AnalysisError(f"prompt {shard.prompts[0].id!r} has {n_pos} tokens; no other position is left to patch")

    def _positions(self, shard: TokenBatch) -> Int[Tensor, "batch span"]:
        return span_of(shard, self.position, width=self.span)

    def _other_positions(self, shard: TokenBatch) -> Int[Tensor, "batch span"]:
        """Return a random span of each prompt that ends elsewhere, and does not hold position 0 unless it must."""
        chosen = []
        for prompt, end in zip(shard.prompts, self._positions(shard)[:, -1].tolist(), strict=True):
            ends = [e for e in range(self.span, shard.tokens.shape[1]) if e != end]
            chosen.append(ends[(key_of(prompt.id) + self.seed) % len(ends)])
        ends_at = torch.tensor(chosen, device=shard.tokens.device)
        return ends_at[:, None] - torch.arange(self.span - 1, -1, -1, device=ends_at.device)

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which prompts' single hops are known, and the donors' vectors with the tokens they stand for."""
        prepared = {"known": known_hops(model, task) if self.known_only else torch.zeros(0, dtype=torch.int64)}
        if "example" not in self.controls:
            return prepared
        return prepared | donors(model, task, n=self.n_donors, positions=self._positions)

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return per prompt and pair [batch source target] ranks of the answer and changes of logits, by kind of patch.

        0 (rank -1) where a pair is not tried. "own" holds all pairs of the prompt's own vectors: back, identity, forward.
        """
        assert shard.answer is not None
        n, layers = len(shard.prompts), recording.n_layers
        clean = recording.logits(recording.resid(layers), positions=[-1])[:, 0]
        keys = torch.tensor([key_of(prompt.id) for prompt in shard.prompts])
        probability = clean.softmax(-1).gather(-1, shard.answer[:, None])[:, 0]
        tensors: Tensors = {
            "has_bridge": torch.full((n,), shard.bridge is not None),
            "clean_rank": ranks(clean, shard.answer).cpu().to(torch.int32),
            "probability": probability.cpu(),
            "known": torch.isin(keys, prepared["known"]) if self.known_only else torch.ones(n, dtype=torch.bool),
        }
        for kind in self._kinds:
            tensors[f"{kind}.rank"] = torch.full((n, layers, layers), -1, dtype=torch.int32)
            tensors[f"{kind}.answer"] = torch.zeros(n, layers, layers)
            tensors[f"{kind}.difference"] = torch.zeros(n, layers, layers)
        for kind, target, sources, logits in self._patched(recording, shard, prepared):
            change = logits - clean
            answer = of_token(change, shard.answer)
            at = (slice(None), sources, target)
            tensors[f"{kind}.rank"][at] = ranks(logits, shard.answer).T.cpu().to(torch.int32)
            tensors[f"{kind}.answer"][at] = answer.T.cpu()
            if shard.bridge is not None:
                tensors[f"{kind}.difference"][at] = (answer - of_token(change, shard.bridge)).T.cpu()
        return tensors

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("own", *[control for control in self.controls if control != "forward"])

    def _sources(self, kind: str, target: int, n_layers: int) -> list[int]:
        """Return the source layers of a target: the later ones; of the prompt's own vectors all, if forward is asked for."""
        everything = kind == "own" and "forward" in self.controls
        return [*range(n_layers)] if everything else [*range(target + 1, n_layers)]

    def _patched(
        self, recording: Recording, shard: TokenBatch, prepared: Tensors
    ) -> Iterator[tuple[str, int, list[int], Float[Tensor, "variant batch d_vocab"]]]:
        """Yield kind, target layer, source layers, and the logits at the last position."""
        layers, here = recording.n_layers, self._positions(shard)
        own = outputs_at(recording, here)
        vectors = {"own": own, "rescaled": own}
        where = {"position": self._other_positions(shard)} if "position" in self.controls else {}
        if where:
            vectors["position"] = outputs_at(recording, where["position"])
        if "example" in self.controls:
            vectors["example"] = of_another(shard, prepared)
        for kind in self._kinds:
            sources = {target: self._sources(kind, target, layers) for target in range(layers)}
            values: dict[int, Tensor] = {}
            for target in [target for target in range(layers) if sources[target]]:
                drawn = kind == "random"
                value = self._random(shard, own, target, len(sources[target])) if drawn else vectors[kind][sources[target]]
                values[target] = _rescaled(value, own[target]) if kind in ("random", "rescaled") else value
            ends = ends_of_patched(recording, values, positions=where.get(kind, here))
            for target, end in ends.items():
                yield kind, target, sources[target], logits_at_the_end(recording, end)

    def _random(self, shard: TokenBatch, own: Tensor, target: int, n: int) -> Float[Tensor, "variant batch span d_model"]:
        """Return Gaussian vectors; a prompt's depend on nothing but its id, the target and the seed."""
        drawn = []
        for prompt in shard.prompts:
            generator = torch.Generator().manual_seed((key_of(prompt.id) + 1009 * target + self.seed) % 2**63)
            drawn.append(torch.randn(n, *own.shape[2:], generator=generator))
        return torch.stack(drawn, dim=1).to(own)

    def combine(self, parts: Sequence[Tensors]) -> "BackPatchingResult":
        """Return rates over the failures."""
        arrays = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        return BackPatchingResult(self, arrays)

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """Return (L-1)L(2L-1)/6 blocks from the first patched position on, for the patches and for each control."""
        layers, (n, n_pos) = model.n_layers, shard.tokens.shape
        steps = 0
        for kind in self._kinds:
            positions = self._other_positions(shard) if kind == "position" else self._positions(shard)
            variants = [len(self._sources(kind, target, layers)) for target in range(layers)]
            steps += patching_steps(layers, variants=variants) * (n_pos - int(positions.min()))
        behind = n_pos - int(self._positions(shard).min())
        held = n * layers * (2 * layers * behind * model.d_model + 3 * model.d_vocab)
        return Cost(steps / (n_pos * layers), 3 * n * layers**2 * len(self._kinds), held)


def _rescaled(values: Tensor, like: Tensor) -> Tensor:
    """Return the vectors, each with the norm of the one it replaces."""
    norms = vector_norm(like.float(), dim=-1, keepdim=True) / vector_norm(values.float(), dim=-1, keepdim=True)
    rescaled: Tensor = (values.float() * norms).to(values.dtype)
    return rescaled


def back_patched_texts(
    model: Model, prompts: Sequence[Prompt], *, source: int, target: int, analysis: BackPatching, max_new_tokens: int = 10
) -> tuple[str, ...]:
    """Return greedy continuations of prompts in which `source`'s output was written over `target`'s."""
    shard = model.tokenize(prompts)
    analysis.check(model, shard)
    for what, layer in (("source", source), ("target", target)):
        if not 0 <= layer < model.n_layers:
            raise AnalysisError(f"{what}={layer}; the model's last layer is {model.n_layers - 1}")
    positions = analysis._positions(shard)
    captured = model.forward(shard, capture=[Site("resid_post", source)]).activations[Site("resid_post", source)]
    rows = torch.arange(len(positions), device=positions.device)
    plan = [Patch(Site("resid_post", target), captured[rows, at][:, None], positions=at) for at in positions.T]
    return model.generate(shard, max_new_tokens=max_new_tokens, plan=plan, phase="prefill").texts


def says(text: str, prompt: Prompt) -> bool:
    """Tell whether a text names a prompt's answer or one of its aliases (of two letters or more), in any case."""
    names = [prompt.answer or "", *[alias for alias in prompt.aliases if len(alias) > 1]]
    return any(name.lower() in text.lower() for name in names if name)


@dataclass(frozen=True)
class BackPatchingResult(Result):
    """Per prompt and pair: `arrays["own.rank"]` [prompt source target]; rates are over the failures."""

    analysis: BackPatching
    arrays: dict[str, np.ndarray]

    @property
    def n_layers(self) -> int:
        """Return the number of layers."""
        return int(self.arrays["own.rank"].shape[1])

    @property
    def is_failure(self) -> np.ndarray:
        """Return which prompts [prompt] are asked to be repaired: wrong ones whose single hops are known."""
        failure: np.ndarray = (self.arrays["clean_rank"] > 0) & self.arrays["known"]
        return failure

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the method, its variants and its controls."""
        return ("back", *self.analysis.controls, "sampled")

    @property
    def n_tries(self) -> int:
        """Return how many pairs of layers each kind has."""
        return self.n_layers * (self.n_layers - 1) // 2

    def pairs(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target layers of the pairs of a kind."""
        later, earlier = np.tril_indices(self.n_layers, -1)
        return (earlier, later) if kind == "forward" else (later, earlier)

    def of_pairs(self, kind: str, what: str) -> np.ndarray:
        """Return ranks or changes [prompt pair]."""
        array: np.ndarray = self.arrays[f"{'own' if kind in ('back', 'forward') else kind}.{what}"]
        picked: np.ndarray = array[(slice(None), *self.pairs(kind))]
        return picked

    def repaired(self, kind: str) -> np.ndarray:
        """Return which pairs repair which failures [failure pair]."""
        done: np.ndarray = self.of_pairs(kind, "rank")[self.is_failure] == 0
        return done

    def oracle(self, kind: str) -> np.ndarray:
        """Return whether any pair repairs each failure [failure]; for sampling, the chance that as many tries do."""
        if kind == "sampled":
            missed: np.ndarray = np.log1p(-self._probabilities) * self.n_tries
            return np.asarray(-np.expm1(missed), dtype=np.float64)
        done: np.ndarray = self.repaired(kind)
        return np.asarray(done.any(1), dtype=np.float64)

    @property
    def _probabilities(self) -> np.ndarray:
        probabilities: np.ndarray = self.arrays["probability"][self.is_failure].astype(np.float64)
        return probabilities

    def fixed(self, kind: str) -> np.ndarray:
        """Return whether one pair, the best on the other half of the failures, repairs each [failure]."""
        if kind == "sampled":
            return self._probabilities
        repaired = self.repaired(kind)
        scores = np.zeros(len(repaired))
        halves = np.arange(len(repaired)) % 2 == 0
        for half in (halves, ~halves):
            scores[half] = repaired[half][:, repaired[~half].sum(0).argmax()] if (~half).any() else 0
        return scores

    def best_pair(self, kind: str) -> tuple[int, int]:
        """Return the source and target layer that repair most failures."""
        best = self.repaired(kind).sum(0).argmax()
        sources, targets = self.pairs(kind)
        return int(sources[best]), int(targets[best])

    def identity_change(self) -> float:
        """Return the largest change of an answer's logit when a layer's own output is written over it.

        Nothing but rounding. These pairs are run along with the forward ones.
        """
        own = np.arange(self.n_layers)
        return float(np.abs(self.arrays["own.answer"][:, own, own]).max())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per statistic and kind, and for "pair" per source and target layer.

        "oracle": the share of failures that any of `tries` pairs repairs; "fixed pair": that one pair does, chosen on one
        half and scored on the other (source and target: the best on all); "gain": the method's rate minus the best
        control's; "pair": that this pair does, with the mean change of the answer's logit and of its difference to the
        bridge's over the failures, and `kept`, the share of right answers that stay right. 95 % bootstrap intervals over
        prompts.
        """
        rows: list[dict[str, object]] = []
        if not self.is_failure.any():
            return _typed(pd.DataFrame([{"statistic": "oracle", "kind": kind, "n_prompts": 0} for kind in self.kinds]))
        for statistic, scores in (("oracle", self.oracle), ("fixed pair", self.fixed)):
            for kind in self.kinds:
                pair = dict(zip(("source", "target"), self.best_pair(kind), strict=True)) if kind != "sampled" else {}
                keys = {"statistic": statistic, "kind": kind, "tries": self.n_tries if statistic == "oracle" else 1}
                rows.append(keys | (pair if statistic == "fixed pair" else {}) | self._rate(scores(kind)))
            gain, control = self.gain(statistic)
            rows.append({"statistic": "gain", "kind": f"{statistic}, over {control}"} | self._rate(gain))
        frame = pd.concat([pd.DataFrame(rows), *[self._of_pairs(kind) for kind in self.kinds if kind != "sampled"]])
        return _typed(frame.reset_index(drop=True))

    def gain(self, statistic: str) -> tuple[np.ndarray, str]:
        """Return the method's scores minus the best control's [failure], and that control."""
        scores = self.oracle if statistic == "oracle" else self.fixed
        control = max((kind for kind in self.kinds if kind not in _VARIANTS), key=lambda kind: scores(kind).mean())
        return scores("back") - scores(control), control

    def _rate(self, scores: np.ndarray) -> dict[str, object]:
        (low,), (high,) = bootstrap_interval(scores[:, None], seed=self.analysis.seed)
        return {"rate": float(scores.mean()), "low": float(low), "high": float(high), "n_prompts": len(scores)}

    def _of_pairs(self, kind: str) -> pd.DataFrame:
        sources, targets = self.pairs(kind)
        solved = self.arrays["clean_rank"] == 0
        kept = (self.of_pairs(kind, "rank")[solved] == 0).mean(0) if solved.any() else np.full(len(sources), np.nan)
        repaired = self.repaired(kind).astype(np.float64)
        low, high = bootstrap_interval(repaired, seed=self.analysis.seed)
        bridged = self.is_failure & self.arrays["has_bridge"]
        difference = self.of_pairs(kind, "difference")[bridged].mean(0) if bridged.any() else np.nan
        return pd.DataFrame(
            {
                "statistic": "pair", "kind": kind, "source": sources, "target": targets, "tries": 1,
                "rate": repaired.mean(0), "low": low, "high": high, "n_prompts": len(repaired),
                "answer": self.of_pairs(kind, "answer")[self.is_failure].mean(0),
                "difference": difference, "kept": kept,
            }
        )  # fmt: skip

    def plot(self) -> go.Figure:
        """Draw the share of failures that each pair of layers repairs, and the rates of the method and its controls."""
        frame = self.to_frame()
        frame["kind"] = frame["kind"].map(lambda kind: _SHOWN.get(kind, kind))
        grid = np.full((self.n_layers, self.n_layers), np.nan)
        if self.is_failure.any():
            for kind in ("back", "forward") if "forward" in self.analysis.controls else ("back",):
                grid[self.pairs(kind)] = self.repaired(kind).mean(0)
        bars = {
            f"any of {self.n_tries} pairs": frame[frame["statistic"] == "oracle"],
            "one pair, chosen on the other half": frame[frame["statistic"] == "fixed pair"],
        }
        where = {"subject": "the first hop's last token", "last": "the last token"}[self.analysis.position]
        return grid_beside_bars(
            grid, bars, x="target layer", y="source layer", of="share of the failures that are repaired",
            title=f"Back-patching at {where}: {int(self.is_failure.sum())} failures of {len(self.is_failure)} prompts",
        )  # fmt: skip

    def summary(self) -> str:
        """Say how many failures one fixed pair repairs, what the best control does, and what the oracle hides."""
        n, failures = len(self.is_failure), int(self.is_failure.sum())
        which = "whose single hops are known" if self.analysis.known_only else "in all"
        if not failures:
            return f"Nothing to repair: none of {n} prompts is a failure {which}."
        (source, target), fixed = self.best_pair("back"), self._rate(self.fixed("back"))
        scores, control = self.gain("fixed pair")
        gain = self._rate(scores)
        any_scores, any_control = self.gain("oracle")
        any_gain = self._rate(any_scores)
        verdict = "more than" if float(str(gain["low"])) > 0 else "not clearly more than"
        return (
            f"Of {failures} failures ({n} prompts; {which}), writing layer {source}'s output back over layer {target}'s "
            f"repairs {_said(fixed)} (one pair, chosen on the other half), {verdict} the best control "
            f"({_SHOWN[control]}, {self.fixed(control).mean():.0%}; gain {_said(gain)}). Some one of {self.n_tries} pairs "
            f"repairs {self.oracle('back').mean():.0%}, but as many tries of the best control ({_SHOWN[any_control]}) "
            f"repair {self.oracle(any_control).mean():.0%} (gain {_said(any_gain)})."
        )


def _said(rate: dict[str, object]) -> str:
    return f"{rate['rate']:.0%} [{rate['low']:.0%} to {rate['high']:.0%}]"


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    whole = dict.fromkeys(("source", "target", "tries", "n_prompts"), "Int64")
    real = dict.fromkeys(("rate", "low", "high", "answer", "difference", "kept"), "float64")
    return frame.reindex(columns=["statistic", "kind", *whole, *real]).astype(whole | real)
