"""Which nodes carry most of the gap, picked on one half of the prompts, measured on the other.

The residual of a late layer holds all that the layers before it wrote, so findings speak of
components (heads, MLPs) where they were scored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from interp.figures.words import by_sign, head_named, how_picked, listed, mlp_named
from interp.metrics import WORDS
from interp.numerals import with_minus
from interp.result import Compared, Finding
from interp.sites import SiteKind
from interp.stats.estimate import Estimate
from interp.stats.picked import Picked, picked, ranked, widened
from interp.sweeps.behaviour import Behaviour
from interp.sweeps.node_scores import NodeScores

Array = NDArray[np.float64]
_NODES: dict[SiteKind, Callable[[int, int], str]] = {
    "resid_pre": lambda layer, _: f"the residual before layer {layer}",
    "attn_out": lambda layer, _: f"attention of layer {layer}",
    "z": head_named,
    "mlp_out": lambda layer, _: mlp_named(layer),
    "mlp_post": lambda layer, neuron: f"neuron {neuron} of {mlp_named(layer)}",
}
NOUNS: dict[SiteKind, str] = {
    "resid_pre": "residual",
    "attn_out": "attention output",
    "z": "head",
    "mlp_out": "MLP",
    "mlp_post": "neuron",
}
_PLACES = {"first": "the first token", "-1": "the last token"}
_OTHERS = "other nodes of its kind at its position, on average"
_BY_CONSTRUCTION = (
    " By construction the residual carries everything before layer 0, at the changed token if"
    " only one differs, and at the last token once no later layer reads other tokens."
)


def components(kinds: Sequence[SiteKind]) -> tuple[SiteKind, ...]:
    """Return the kinds that are components, the smallest ones of each sort; if none, all kinds.

    Heads stand for attention outputs and neurons for MLPs where both are among the kinds.
    """
    whole = {"attn_out": "z", "mlp_out": "mlp_post"}
    parts = [kind for kind in kinds if kind != "resid_pre" and whole.get(kind) not in kinds]
    return tuple(parts or kinds)


@dataclass(frozen=True)
class Carriers:
    """The nodes of some kinds, and what each carries of the gap [prompt node]."""

    scores: NodeScores
    names: Mapping[SiteKind, str]
    behaviour: Behaviour

    @cached_property
    def _carried(self) -> dict[SiteKind, Array]:
        """Return what every node carries by kind [prompt layer*unit column], whatever direction."""
        # noising takes away what denoising brings back
        sign = np.sign((self.scores.source - self.scores.base).mean())
        return {kind: sign * self.scores.filled(name) for kind, name in self.names.items()}

    @cached_property
    def values(self) -> Array:
        """Return what every node carries [prompt node]."""
        return _flat([*self._carried.values()])

    @cached_property
    def others(self) -> Array:
        """Return what the mean other node of its kind at its position carries [prompt node]."""
        every = self._carried.values()
        return _flat([(v.sum(1, keepdims=True) - v) / max(1, v.shape[1] - 1) for v in every])

    def pick(self, values: Array, *, rank: int = 0) -> Picked:
        """Return `values` [prompt node] of the node that carries most, or the `rank`-th behind."""
        behaviour = self.behaviour
        choose = ranked(self.values, rank)
        return picked(values, choose=choose, groups=behaviour.groups, seed=behaviour.seed)

    def share(self, values: Array, *, rank: int = 0) -> Estimate:
        """Return the share of the gap that `pick` carries."""
        return widened(self.behaviour.share(self.pick(values, rank=rank).measured))

    def kind_of(self, node: int) -> SiteKind:
        """Return the kind of a node."""
        return self._place(node)[0]

    def named(self, node: int) -> str:
        """Return a node in words: "L2H3 at the last token"."""
        kind, row, column = self._place(node)
        name = self.names[kind]
        at = self.scores.scores[name].columns[column]
        what = _NODES[kind](*divmod(row, self.scores.n_units[name]))
        return f"{what} at {_PLACES.get(at, f'position {with_minus(str(at))}')}"

    def _place(self, node: int) -> tuple[SiteKind, int, int]:
        for kind, values in self._carried.items():
            if node < values[0].size:
                return kind, *divmod(node, values.shape[2])
            node -= values[0].size
        raise IndexError(node)

    def note(self) -> str:
        """Return the behaviour in numbers, and how the node was picked."""
        most = self.pick(self.values)
        text = f"{self.behaviour} {how_picked(most.estimate).capitalize()}"
        if not most.is_stable:
            text += f"; the halves pick {listed([self.named(node) for node in most.halves])}"
        return f"{text}.{_BY_CONSTRUCTION * (self.kind_of(most.index) == 'resid_pre')}"

    def finding(self, by: str) -> Finding:
        """Return the share of the gap that the node which carries most has."""
        share, most = self.share(self.values), self.pick(self.values)
        node = self.named(most.index)
        if not most.is_stable:
            noun = NOUNS[next(iter(self.names))] if len(self.names) == 1 else "component"
            node = f"the {noun} that is largest on half of the prompts"
        return Finding(
            f"{by}, {node} carries {share:.0%} of the gap in {WORDS[self.behaviour.metric]}.",
            share,
            f"share of the gap that the largest {' or '.join(self.names)} carries",
            control=Compared(_OTHERS, self.share(self.others)),
            rival=self.second() if self.values.shape[1] > 1 else None,
            note=self.note(),
        )

    def second(self) -> Compared:
        """Return the strongest rival: the second largest node, picked in the same way."""
        second = self.pick(self.values, rank=1)
        name = "the second largest" + f", {self.named(second.index)}" * second.is_stable
        return Compared(name, self.share(self.values, rank=1))

    def beyond_others(self) -> Finding:
        """Return how much more it carries than other nodes of its kind at its position."""
        others = Compared(_OTHERS, self.share(self.others))
        return beyond_others(self.share(self.values - self.others), others, of="nodes")


def beyond_others(beyond: Estimate, others: Compared, *, of: str) -> Finding:
    """Return how much more of the gap the largest of some parts (`of`) carries than others."""
    claim = by_sign(
        beyond,
        above=f"That is {beyond:.0%} of the gap more than {others.name}.",
        below=f"That is {-beyond:.0%} of the gap less than {others.name}.",
        unclear=f"It is not shown to carry more than {others.name}: {beyond:.0%} of the gap.",
    )
    return Finding(
        claim,
        beyond,
        f"share of the gap that it carries beyond other {of}",
        control=others,
        kind="compares",
        note=f"{how_picked(beyond).capitalize()}.",
    )


def carriers(
    scores: NodeScores, names: Mapping[SiteKind, str], *, by: str, behaviour: Behaviour
) -> tuple[Finding, ...]:
    """Return which component carries most, against others, and the largest of other kinds.

    `names` are the scores' names by kind; `by` says how they were found, and begins the claims.
    Without a behaviour, the only finding is that there is none to explain.
    """
    if behaviour.is_absent:
        return (behaviour.finding(),)
    chosen = components([*names])
    every = Carriers(scores, {kind: names[kind] for kind in chosen}, behaviour)
    first = every.kind_of(every.pick(every.values).index)
    rest = [kind for kind in chosen if kind != first] or [
        kind for kind in names if kind not in chosen and kind == "resid_pre"
    ]
    found = (every.finding(by), every.beyond_others())
    if not rest:
        return found
    return *found, Carriers(scores, {kind: names[kind] for kind in rest}, behaviour).finding(by)


def _flat(values: Sequence[Array]) -> Array:
    return np.concatenate([each.reshape(len(each), -1) for each in values], axis=1)
