"""Can a rule choose which layers a prompt needs?

Two rules. "supervised" (Dr.LLM, arXiv 2510.12773): a router before every layer imitates the
shortest path that a search knows to be right, and says skip, run or repeat. "gated" (FiRST, arXiv
2410.12513): gates are trained through the frozen model to close where the answer does not suffer.
Both are judged on a third of the groups of prompts that neither training nor any choice has met,
against a set of layers that is skipped for all prompts alike, as many as the rule saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from interp.analyses.layer_routers.elsewhere import fitted_task, judged_elsewhere
from interp.analyses.layer_routers.gated import THRESHOLDS
from interp.analyses.layer_routers.result import LayerRoutersResult
from interp.analyses.layer_routers.routes import TEST, set_sizes
from interp.analyses.layer_routers.supervised import N_WINDOWS
from interp.analyses.layer_routers.testing import by_controls, by_paths, by_rules, scattered
from interp.analyses.layer_routers.training import learned
from interp.analysis import Analysis, Cost
from interp.errors import AnalysisError, UnsuitedError
from interp.figures.words import counted
from interp.models import Model
from interp.models.quantised import quantised
from interp.parameters import AtLeast
from interp.replay import Recording
from interp.result import joined
from interp.shapes import Tensors
from interp.stats.groups import FEWEST
from interp.sweeps.answers import require_answers
from interp.sweeps.tags import rows_of
from interp.tasks import Task
from interp.tasks.batch import TokenBatch

__all__ = ["LayerRouters", "LayerRoutersResult"]

Rule = Literal["supervised", "gated"]
MOST_WEIGHTS = 2**25  # of a model whose layers are gated
MOST_HELD = 2**29  # numbers of all prompts' windows


@dataclass(frozen=True)
class LayerRouters(Analysis):
    """Let trained rules choose the layers of prompts that they have not met.

    Supervised routers imitate the best of `n_simulations` paths of each prompt for `steps` steps.
    Gates are trained for `epochs` with each of the `penalties` (nats for all layers), of models of
    at most 33 million weights in layers. Random sets of layers are drawn `draws` times. Routers are
    also judged on `other_task`, if one is named.
    """

    rules: tuple[Rule, ...] = ("supervised", "gated")
    n_simulations: Annotated[int, AtLeast(2)] = 50
    steps: Annotated[int, AtLeast(1)] = 200
    epochs: Annotated[int, AtLeast(1)] = 40
    penalties: tuple[Annotated[float, AtLeast(0)], ...] = (0.1, 0.5, 2.0)
    draws: Annotated[int, AtLeast(1)] = 2
    other_task: str = ""
    seed: int = 0
    rank: ClassVar[int] = 105
    question: ClassVar[str] = "Can a rule choose which layers a prompt needs?"
    how: ClassVar[str] = (
        "Routers that imitate each prompt's shortest right path, and gates trained through the"
        " frozen model, choose layers for prompts of groups that they have not met. A set of layers"
        " that is skipped for all alike, as many as they save, is the control."
    )
    caveat: ClassVar[str] = (
        "A task may need fewer layers than the model has: only what a rule gains on a fixed set is"
        " a choice by the prompt."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rules", "penalties"):
            if not getattr(self, name):
                raise AnalysisError(f"{name} is empty; at least one is needed")

    def check(self, model: Model, shard: TokenBatch) -> None:
        """Raise for prompts without answers, a model of one layer, or one too large for gates."""
        require_answers(shard)
        if model.n_layers < 2:
            raise UnsuitedError("the model has 1 layer; routers need at least 2 to choose from")
        if "gated" in self.rules and (how := quantised(model.module)):
            raise UnsuitedError(
                f"{model.name} is quantised ({how}), and gates are trained by gradients:"
                " rules=('supervised',) needs none"
            )
        n = sum(weight.numel() for block in model.blocks for weight in block.module.parameters())
        if "gated" in self.rules and n > MOST_WEIGHTS:
            raise UnsuitedError(
                f"the model's layers have {n:,} weights; gates are trained through at most"
                f" {MOST_WEIGHTS:,}: rules=('supervised',) needs no gradient"
            )

    def check_all(self, model: Model, shards: Sequence[TokenBatch]) -> None:
        """Raise for too few groups, too many prompts, or another task without answers."""
        prompts = [prompt for shard in shards for prompt in shard.prompts]
        n_groups = len({prompt.drawn for prompt in prompts})
        if n_groups < 3 * FEWEST:
            raise AnalysisError(
                f"{counted(n_groups, 'group')} of prompts (entities, facts) given;"
                f" {3 * FEWEST} are needed, a third each to train, to choose and to test"
            )
        held = len(prompts) * model.n_layers * N_WINDOWS * model.d_model
        if "supervised" in self.rules and held > MOST_HELD:
            raise AnalysisError(
                f"the routers' windows of {counted(len(prompts), 'prompt')} are {held:,} numbers;"
                f" at most {MOST_HELD:,} are held"
            )
        if self.other_task:
            for other in fitted_task(model, self.other_task):
                require_answers(model.tokenize(other))

    def prepare(self, model: Model, task: Task) -> Tensors:
        """Return which third each prompt is in ("part", by "keys"), both rules, the controls' sets.

        With another task, also what the rules do there.
        """
        with torch.no_grad():
            prepared = learned(self, model, task)
            if self.other_task:
                prepared["other"] = judged_elsewhere(self, model, prepared)
        return prepared

    def measure(self, recording: Recording, shard: TokenBatch, prepared: Tensors) -> Tensors:
        """Return scores and routes of the prompts of the test third; 0 for all others.

        "is_test" [batch]; by rule and for paths, "scores" [batch score], "visits" [batch layer];
        "own" [batch]; "controls" [batch control size score]; "is_right" [batch], "said" [batch
        layer]; "other" is the same for all prompts.
        """
        n = len(shard.prompts)
        is_test = torch.eq(prepared["part"][rows_of(prepared["keys"], shard.prompts)], TEST)
        rows = is_test.nonzero()[:, 0].to(shard.tokens.device)
        with torch.no_grad():
            measured = by_rules(self, recording, shard, rows, prepared)
            measured |= by_paths(self, recording, shard, rows, prepared)
            measured["controls"] = by_controls(self, recording, shard, rows, prepared)
        whole = {"is_test": is_test} | scattered(measured, rows, n)
        if "other" in prepared:
            whole["other"] = prepared["other"].expand(n, -1, -1).clone()
        return whole

    def combine(self, parts: Sequence[Tensors]) -> LayerRoutersResult:
        """Return what routes of test prompts give, and their controls."""
        return LayerRoutersResult(self, joined(parts))

    def cost(self, model: Model, shard: TokenBatch) -> Cost:
        """A bound: what the dearest third costs, as if all of the shard's prompts were in it.

        Searched paths and routes run each layer twice at most; a clean pass for the first thirds.
        """
        layers, n = model.n_layers, len(shard.prompts)
        search = 2.0 * self.n_simulations + 2.0
        rules = {"supervised": 2.0, "gated": 1.0}
        sets = sum((layers - size) / layers for size in set_sizes(layers))
        is_gated = float("gated" in self.rules)
        gates = is_gated * 2.0 * self.epochs * len(self.penalties)
        training = 1.0 + (layers - 1) / 2 + search + gates
        validation = 1.0 + search + is_gated * (sets + len(THRESHOLDS) * len(self.penalties))
        test = search + sum(rules[rule] for rule in self.rules) + (2 + self.draws) * sets
        forwards = max(training, validation, test)
        usual = (training + validation + test - 3 * (search - 0.5 * self.n_simulations)) / 3
        numbers = n * (layers * (3 + len(self.rules)) + 8 * len(set_sizes(layers)))
        held = n * layers * N_WINDOWS * model.d_model + 3 * n * model.d_vocab
        return Cost(
            forwards,
            numbers,
            held,
            is_bound=True,
            weight=min(1.0, usual / forwards),
            backwards=gates / 2,
            logits=round(n * (self.n_simulations + (2 + self.draws) * len(set_sizes(layers)))),
            once=self._other_tokens(model),
        )

    def _other_tokens(self, model: Model) -> float:
        """Return how many tokens' passes the other task takes."""
        if not self.other_task:
            return 0.0
        passes = 4.0 + sum(1 - size / model.n_layers for size in set_sizes(model.n_layers))
        shards = fitted_task(model, self.other_task)
        return passes * sum(model.tokenize(shard).tokens.numel() for shard in shards)
