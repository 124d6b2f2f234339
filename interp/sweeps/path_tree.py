"""A tree search over paths: which layers to run, how often, in what order.

A path is a sequence of layers; the ordinary one is 0, 1, …, L - 1. An edit skips a segment of a
path, or runs it again. After "Skip a Layer or Loop it?" (arXiv 2507.07996) and Dr.LLM (arXiv
2510.12773), with a tree that can branch: every path is one node however it is reached, a node gets
more children the more often it is visited, and siblings are compared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Path = tuple[int, ...]
Edit = tuple[int, int, int]  # a segment's start, its width, how often it runs more (-1: never)
Operations = Literal["skips and repeats", "skips", "repeats"]


def ordinary(n_layers: int) -> Path:
    """Return the path of a clean pass."""
    return tuple(range(n_layers))


@dataclass(frozen=True)
class Edits:
    """Which edits a search may make: of segments so long, repeated so many times more.

    No path is empty, and none is longer than `longest` layers.
    """

    operations: Operations
    longest_segment: int
    most_repeats: int
    longest: int

    def of(self, path: Path) -> list[Edit]:
        """Return all edits of a path."""
        skips = [-1] if self.operations != "repeats" else []
        repeats = [*range(1, self.most_repeats + 1)] if self.operations != "skips" else []
        return [
            (start, width, times)
            for width in range(1, min(self.longest_segment, len(path)) + 1)
            for start in range(len(path) - width + 1)
            for times in (*skips, *repeats)
            if 0 < len(path) + times * width <= self.longest
        ]


def edited(path: Path, start: int, width: int, times: int) -> Path:
    """Return a path whose segment runs `times` more; -1: not at all."""
    end = start + width
    return path[:start] + path[start:end] * (1 + times) + path[end:]


@dataclass
class _Node:
    path: Path
    untried: Iterator[Edit]
    edits: tuple[Edit, ...] = ()  # that made it of the ordinary path
    visits: int = 0
    total: float = 0.0
    children: "list[_Node]" = field(default_factory=list)
    is_spent: bool = False  # nothing is left to try here or behind


@dataclass(frozen=True)
class Bandit:
    """How a tree is searched: the mean reward, plus `exploration` · √(ln V / v), less the length.

    V and v are the visits of a node and of its child; the length counts `length_penalty` times the
    path's share of the model's layers. With probability `random_share` a child is drawn instead. A
    node visited v times has at most ⌈√v⌉ children.
    """

    exploration: float = 1.8
    length_penalty: float = 5.0
    random_share: float = 0.1


class Tree:
    """The search for one prompt, or for several with one path: `propose`, then `reward`, in turn.

    The first proposal is the ordinary path. What is proposed depends only on the rewards and on the
    seed.
    """

    def __init__(self, n_layers: int, edits: Edits, bandit: Bandit, *, seed: int) -> None:
        self._edits, self._bandit, self._n_layers = edits, bandit, n_layers
        self._random = np.random.default_rng(seed)
        self._known: set[Path] = set()
        self.root = self._node(ordinary(n_layers))
        self._way: list[_Node] = []

    def _node(self, path: Path, edits: tuple[Edit, ...] = ()) -> _Node:
        self._known.add(path)
        possible = self._edits.of(path)
        order = _shuffled([times < 0 for *_, times in possible], self._random)
        return _Node(path, (possible[i] for i in order), edits)

    def propose(self) -> Path:
        """Return the next path to score: a new one, or the ordinary one if all were tried."""
        while not self.root.is_spent:
            self._way = [node := self.root]
            while node.visits:
                child = self._grown(node) or self._best(node)
                if child is None:
                    node.is_spent = True
                    break
                self._way.append(node := child)
            else:
                return node.path
        self._way = [self.root]
        return self.root.path

    @property
    def edits_made(self) -> tuple[Edit, ...]:
        """Return the edits that made the last proposal of the ordinary path."""
        return self._way[-1].edits

    def reward(self, value: float) -> None:
        """Give a reward to the last proposal and to the nodes on the way to it."""
        for node in self._way:
            node.visits += 1
            node.total += value

    def _grown(self, node: _Node) -> _Node | None:
        """Return a new child, if the node may have one more and an edit is left that makes one."""
        is_stuck = all(child.is_spent for child in node.children)
        if not is_stuck and len(node.children) >= math.ceil(math.sqrt(node.visits)):
            return None
        for edit in node.untried:
            path = edited(node.path, *edit)
            if path not in self._known:
                node.children.append(self._node(path, (*node.edits, edit)))
                return node.children[-1]
        return None

    def _best(self, node: _Node) -> _Node | None:
        """Return the most promising child after which something is left to try."""
        children = [child for child in node.children if not child.is_spent]
        if not children:
            return None
        if self._random.random() < self._bandit.random_share:
            return children[int(self._random.integers(len(children)))]
        seen = math.log(node.visits)
        how = self._bandit

        def promise(child: _Node) -> float:
            explored = how.exploration * math.sqrt(seen / child.visits)
            length = how.length_penalty * len(child.path) / self._n_layers
            return child.total / child.visits + explored - length

        return max(children, key=promise)


def _shuffled(are_skips: list[bool], random: np.random.Generator) -> list[int]:
    """Return a random order of edits in which skips come as early as repeats, of which are more."""
    is_skip = np.array(are_skips, bool)
    share = np.where(is_skip, is_skip.sum(), (~is_skip).sum())
    order: list[int] = np.argsort(random.exponential(size=len(is_skip)) * share).tolist()
    return order


def moved(n_layers: int, edits: tuple[Edit, ...], random: np.random.Generator) -> Path:
    """Return a path by the same edits at random places: of the same length, chosen by nothing."""
    path = ordinary(n_layers)
    for _, width, times in edits:
        path = edited(path, int(random.integers(len(path) - width + 1)), width, times)
    return path
