"""One shard: scores of all features, and the exact effects of those that were chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from interp.analyses.feature_patching.choice import Seen, joint_sets
from interp.analyses.feature_patching.examples import active_features, texts_around
from interp.analyses.feature_patching.nodes import Nodes, dictionary_of, is_error, n_nodes
from interp.analyses.feature_patching.patches import patched_values
from interp.backward import rules_named
from interp.features import Dictionary
from interp.metrics import Metric
from interp.models import Model
from interp.replay import Recording
from interp.shapes import Tensors
from interp.sweeps.attribution import Attribution, Method
from interp.sweeps.tags import rows_of
from interp.sweeps.twins import Direction, Twins, twins_of
from interp.tasks.batch import TokenBatch


@dataclass(frozen=True)
class ScoredNodes:
    """Prompts with answers of one length: their nodes and scores [batch method node]."""

    twins: Twins
    nodes: Nodes
    scores: Float[Tensor, "batch method node"]
    base: Float[Tensor, " batch"]
    source: Float[Tensor, " batch"]

    def only(self, rows: Int[Tensor, " kept"]) -> "ScoredNodes":
        """Return some of the prompts."""
        parts = (self.scores[rows], self.base[rows], self.source[rows])
        return ScoredNodes(self.twins.only(rows), self.nodes.only(rows), *parts)


@dataclass(frozen=True)
class Measuring:
    """How a shard is measured; the fields are the analysis's."""

    dictionaries: Sequence[Dictionary]
    methods: Sequence[Method]
    rules: str
    metric: Metric
    direction: Direction
    steps: int

    def scored(self, recording: Recording, shard: TokenBatch) -> Iterator[ScoredNodes]:
        """Yield a shard's prompts with the scores of all nodes, one length of answer at a time."""
        sites = sorted({site for d in self.dictionaries for site in (d.reads, d.writes)})
        for twins in twins_of(recording, shard, metric=self.metric, direction=self.direction):
            runs = Attribution(recording, twins, sites)
            rules = rules_named(self.rules)
            found = [
                runs.coefficients(method, rules=rules, steps=self.steps) for method in self.methods
            ]
            nodes = Nodes.of(runs, found[0][0], self.dictionaries)
            scores = torch.stack([nodes.scores(slopes) for _, slopes in found], dim=1)
            yield ScoredNodes(runs.twins, nodes, scores, runs.base_value, runs.source_value)

    def seen(
        self, model: Model, shards: Sequence[TokenBatch], halves: Bool[Tensor, "half prompt"]
    ) -> tuple[Seen, list[Tensor]]:
        """Return means over the prompts of each half, and the tokens of all."""
        size, first, tokens = n_nodes(self.dictionaries), 0, []
        scores = torch.zeros(2, len(self.methods), size)
        rates, distances = torch.zeros(2, 2, size).unbind()
        for shard in shards:
            for each in self.scored(model.record(shard), shard):
                member = halves[:, first + each.twins.clean.rows.cpu()].float()
                scores += torch.einsum("hb,bmn->hmn", member, each.scores.cpu())
                rates += member @ each.nodes.rates().cpu()
                distances += member @ each.nodes.distances().cpu()
                tokens.append(each.twins.clean.tokens)
            first += len(shard.prompts)
        n = halves.sum(1)[:, None]
        return Seen(scores / n[..., None], rates / n, distances / n), tokens

    def of(
        self, recording: Recording, shard: TokenBatch, prepared: Tensors, *, sizes: Sequence[int]
    ) -> Tensors:
        """Return by prompt [batch ...] scores, effects and what was patched.

        "scores" [method candidate], "exact" and "distance" [candidate] are of nodes patched alone;
        "sums" [method dictionary 2] are a site's scores, of features and error; "joint" [variant]
        is the metric with several patched (see `joint_sets`), "base" and "source" without;
        "fit" [dictionary 3] are the squared error, the squared distance from the bias, and the
        number of active features, means over tokens; "text" and "peak" are where a node is largest.
        """
        half = prepared["half"][rows_of(prepared["keys"], shard.prompts)]
        rows, parts = [], []
        for each in self.scored(recording, shard):
            of_group = half[each.twins.clean.rows.cpu()]
            parts.append(self._of_group(recording, each, of_group, prepared, sizes))
            rows.append(each.twins.clean.rows.cpu())
        order = torch.cat(rows).argsort()
        names = parts[0].keys()
        found = {name: torch.cat([part[name].cpu() for part in parts])[order] for name in names}
        for name in ("nodes", "kinds", "dictionaries"):
            found[name] = prepared[name].expand(len(half), *prepared[name].shape).contiguous()
        sizes_of = torch.tensor([d.n_features for d in self.dictionaries])
        return found | {"n_features": sizes_of.repeat(len(half), 1)}

    def _of_group(
        self,
        recording: Recording,
        each: ScoredNodes,
        half: Int[Tensor, " batch"],
        prepared: Tensors,
        sizes: Sequence[int],
    ) -> Tensors:
        nodes, chosen = each.nodes, prepared["nodes"]
        alone = one_hot(chosen, n_nodes(self.dictionaries)).bool()
        values = patched_values(recording, each.twins, nodes, alone)
        is_base = self.direction == "noise"  # the clean run is the base
        active = active_features(nodes, chosen, is_base=is_base)
        where = active.argmax(1)
        return {
            "base": each.base,
            "source": each.source,
            "scores": each.scores[..., chosen.to(each.scores.device)],
            "exact": values - each.base[:, None],
            "distance": nodes.distances()[:, chosen.to(values.device)],
            "sums": self._sums(each.scores),
            "joint": self._joint(recording, each, half, prepared, sizes),
            "fit": self._fit(nodes, is_base=is_base),
            "peak": active.amax(1),
            "text": texts_around(each.twins.clean.tokens, where, prepared),
        }

    def _joint(
        self,
        recording: Recording,
        each: ScoredNodes,
        half: Int[Tensor, " batch"],
        prepared: Tensors,
        sizes: Sequence[int],
    ) -> Float[Tensor, "batch variant"]:
        """Return the metric with several nodes patched, those that the other half chose."""
        values: Tensor | None = None
        for own in sorted({*half.tolist()}):
            top, random = (prepared[name][1 - own] for name in ("top", "random"))
            sets = joint_sets(top, random, self.dictionaries, sizes)
            rows = (half == own).nonzero()[:, 0].to(each.base.device)
            some = each.only(rows)
            measured = patched_values(recording, some.twins, some.nodes, sets)
            if values is None:
                values = measured.new_zeros(len(half), measured.shape[1])
            values[rows] = measured
        assert values is not None  # a group has prompts
        return values

    def _sums(
        self, scores: Float[Tensor, "batch method node"]
    ) -> Float[Tensor, "batch method dictionary part"]:
        of, error = dictionary_of(self.dictionaries), is_error(self.dictionaries)
        part = (2 * of + error.long()).to(scores.device)
        sums = scores.new_zeros(*scores.shape[:2], 2 * len(self.dictionaries))
        sums = sums.index_add(2, part, scores)
        return sums.reshape(*scores.shape[:2], len(self.dictionaries), 2)

    def _fit(self, nodes: Nodes, *, is_base: bool) -> Float[Tensor, "batch dictionary 3"]:
        run = nodes.base if is_base else nodes.source
        fits = []
        for dictionary, (features, error) in zip(self.dictionaries, run, strict=True):
            away = features @ dictionary.w_dec + error
            numbers = (error.square().sum(-1), away.square().sum(-1), (features > 0).sum(-1))
            fits.append(torch.stack([number.float().mean(1) for number in numbers], dim=1))
        return torch.stack(fits, dim=1)
