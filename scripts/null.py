"""Count how often comparisons claim an effect where there can be none: `python -m scripts.null 20`.

On untrained models (one per seed), and on a trained model whose prompts have each other's answers,
a finding that compares must have an interval that holds 0, but for one in twenty.
"""

import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

from scipy import stats

import interp
from interp.errors import InterpError
from interp.models import Model
from interp.result import Finding
from interp.runs.registry import find_analyses, make_analysis
from interp.tasks import Task

N_PROMPTS = 24
loaded = cache(interp.load_model)
_ANSWERED = ("answer", "wrong", "aliases", "bridge")
# what takes longest, in a form that asks the same; and nothing that an untrained model must know
_ANY_HOPS = {"known_only": False, "no_shortcuts": False}
PARAMETERS: dict[str, dict[str, object]] = {
    "attention_knockout": _ANY_HOPS,
    "back_patching": {"known_only": False},
    "checkpoint_stitch": {"against": "zoo/hops-4l@untrained-99", "maps": ("none",)},
    "circuit_discovery": {"fractions": (0.02, 0.1, 0.5)},
    "entity_description": _ANY_HOPS,
    "feature_patching": {"dictionaries": ("names-6l/resid_pre.3",)},
    "hop_stages": _ANY_HOPS,
    "integrated_gradients": {"max_nodes": 33},
    "layer_removal": {"steps": 2, "text_steps": 1, "n_random": 3},
    "layer_routers": {"n_simulations": 6, "epochs": 20, "penalties": (0.5,), "draws": 1},
    "path_search": {"n_simulations": 8},
    "quantization_order": {"orders": ("LIM",), "points": 3},
    "recursion": {"shared": (2,), "ranks": (8,), "grid": 0},
    "sublayer_projection": _ANY_HOPS,
}


@dataclass
class Claims:
    """How often each comparison was made, and how often its interval excluded 0."""

    made: Counter[tuple[str, str]] = field(default_factory=Counter)
    claimed: Counter[tuple[str, str]] = field(default_factory=Counter)
    sentences: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, analysis: str, findings: tuple[Finding, ...]) -> None:
        """Take in an analysis's findings."""
        for finding in findings:
            if finding.kind != "compares" or finding.estimate is None:
                continue
            key = analysis, finding.measure
            self.made[key] += 1
            if finding.estimate.excludes():
                self.claimed[key] += 1
                self.sentences[key] = f"{finding.claim} {finding.estimate}"

    @property
    def share(self) -> float:
        """Return the share of comparisons that claimed an effect."""
        return self.claimed.total() / max(1, self.made.total())

    @property
    def is_chance(self) -> bool:
        """Tell whether so many claims are one in twenty and its binomial error (1 %)."""
        return bool(stats.binom.sf(self.claimed.total() - 1, self.made.total(), 0.05) > 0.01)


def analyses() -> list[str]:
    """Return all analyses."""
    return sorted(find_analyses())


def places(name: str) -> tuple[str, str]:
    """Return the shipped model and the task that an analysis is asked on."""
    prompts = interp.load_task("two-hop", n=1).prompts
    hops = loaded("zoo/hops-4l")
    try:
        make_analysis(name, {}).check(hops, hops.tokenize(prompts))
    except InterpError as error:
        if "twin" in str(error):
            return "zoo/names-6l", "ioi"
    return "zoo/hops-4l", "two-hop"


def shuffled(task: Task, *, seed: int) -> Task:
    """Return the task with every prompt's answers exchanged for another prompt's."""
    order = list(range(len(task)))
    random.Random(seed).shuffle(order)
    others = [task.prompts[order[(order.index(i) + 1) % len(order)]] for i in range(len(order))]
    prompts = tuple(
        replace(prompt, **{name: getattr(other, name) for name in _ANSWERED})
        for prompt, other in zip(task.prompts, others, strict=True)
    )
    return replace(task, prompts=prompts)


def findings(name: str, model: Model, task: Task, *, seed: int = 0) -> tuple[Finding, ...]:
    """Return an analysis's findings; none where it refuses (no right answers, say).

    What it draws itself, such as depth_map's twins, follows `seed` too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return (
                make_analysis(name, PARAMETERS.get(name, {}), seed=seed).run(model, task).findings()
            )
        except InterpError:
            return ()


def untrained(name: str, seeds: range) -> Iterator[tuple[Finding, ...]]:
    """Yield an analysis's findings on untrained models."""
    model, task = places(name)
    for seed in seeds:
        drawn = interp.load_task(task, n=N_PROMPTS, seed=seed)
        yield findings(name, loaded(f"{model}@untrained-{seed}"), drawn, seed=seed)


def with_others_answers(name: str, seeds: range) -> Iterator[tuple[Finding, ...]]:
    """Yield an analysis's findings on the trained model with exchanged answers."""
    model, task = places(name)
    for seed in seeds:
        drawn = interp.load_task(task, n=N_PROMPTS, seed=seed)
        others = shuffled(drawn, seed=seed)
        yield findings(name, loaded(model), others, seed=seed)


def main() -> None:
    """Print, for each comparison, how often it claimed an effect."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    for title, each in (("untrained", untrained), ("others' answers", with_others_answers)):
        claims = Claims()
        for name in sys.argv[2:] or analyses():
            for found in each(name, seeds):
                claims.add(name, found)
            print(f"{title}: {name} done", file=sys.stderr, flush=True)
        for key, n in sorted(claims.made.items()):
            print(f"{title} | {key[0]} | {key[1]} | {claims.claimed[key]} of {n} |", end=" ")
            print(claims.sentences.get(key, ""))
        print(f"{title}: {claims.share:.1%} of {claims.made.total()}; chance: {claims.is_chance}")


if __name__ == "__main__":
    main()
