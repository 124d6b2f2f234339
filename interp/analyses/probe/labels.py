"""What a probe is to read of each prompt, and how prompts are divided to fit and to judge it.

Prompts of one group (an entity, a fact: the *type* of Hewitt & Liang) stay together, so that a
probe cannot name a label because it has met the group.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from interp.errors import AnalysisError, TaskError
from interp.figures.words import counted
from interp.stats.groups import FEWEST, Grouping
from interp.tasks import Prompt

RIGHT = "right"  # whether the model's first guess is the answer
FIELDS = ("bridge", "answer", "wrong", "subject")  # of a prompt
N_FOLDS = 4
# of all prompts: where an online code's probes are fitted again (arXiv 2003.12298, section 3.2)
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5)

Codes = NDArray[np.int64]


def value_of(prompt: Prompt, label: str) -> str | None:
    """Return a prompt's label: one of `FIELDS`, else its tag of that name."""
    value: str | None = getattr(prompt, label) if label in FIELDS else prompt.tags.get(label)
    return value


def require_label(prompts: Sequence[Prompt], label: str) -> None:
    """Raise TaskError, naming a prompt, where one has no such label."""
    for prompt in prompts:
        if value_of(prompt, label) is None:
            there = [name for name in (*FIELDS, *prompt.tags) if value_of(prompt, name)]
            raise TaskError(
                f"prompt {prompt.id!r} has no label {label!r};"
                f" there is {', '.join([*there, RIGHT])}"
            )


def label_for(prompts: Sequence[Prompt], label: str | None) -> str:
    """Return the label that is read: by default the first that suits the prompts.

    Bridge, tags in their order, answer. Raises AnalysisError if the label does not suit them.
    """
    if label is not None:
        refuse(prompts, label)
        return label
    names = [*FIELDS[:1], *prompts[0].tags, *FIELDS[1:2]]
    known = [name for name in names if all(value_of(prompt, name) for prompt in prompts)]
    if not known:
        raise AnalysisError("no label given, and the prompts share no tag, bridge or answer")
    errors = []
    for name in known:
        try:
            refuse(prompts, name)
        except AnalysisError as error:
            errors.append(error)
        else:
            return name
    raise errors[0]


def refuse(prompts: Sequence[Prompt], label: str) -> None:
    """Raise AnalysisError where the prompts are too few, or too much alike, to probe for a label.

    A group's label must not say which group it is, and a control that is random by group can be
    learned only where groups repeat.
    """
    sizes = Counter(prompt.drawn for prompt in prompts)
    values = {value_of(prompt, label) for prompt in prompts}
    n_classes = 2 if label == RIGHT else len(values)
    where = f"label {label!r} of {counted(len(prompts), 'prompt')}"
    if n_classes < 2:
        raise AnalysisError(f"{where} is always {next(iter(values))!r}; two values are needed")
    fewest = max(FEWEST, 2 * n_classes)
    if len(sizes) < fewest:
        raise AnalysisError(
            f"{where} has {n_classes} values in {counted(len(sizes), 'group')};"
            f" at least {fewest} groups are needed"
        )
    alone = sum(size == 1 for size in sizes.values())
    if 2 * alone > len(prompts):
        raise AnalysisError(
            f"{where}: {alone} are alone in their group; at least half must share one"
        )


def codes_of(prompts: Sequence[Prompt], label: str) -> Codes:
    """Return a number from 0 on for each prompt's label."""
    values = np.array([value_of(prompt, label) or "" for prompt in prompts])
    codes: Codes = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return codes


def both(is_right: Codes) -> Codes:
    """Return which answers are right; raise AnalysisError if all are, or none."""
    if len(np.unique(is_right)) < 2:
        how = "rightly" if is_right.all() else "wrongly"
        raise AnalysisError(
            f"the model answers all of {counted(len(is_right), 'prompt')} {how};"
            " there is nothing to tell apart"
        )
    return is_right


def group_folds(groups: Codes, labels: Codes, *, seed: int) -> Int[Tensor, " prompt"]:
    """Return every prompt's fold, below `N_FOLDS`: no group in two, labels spread evenly."""
    grouping = Grouping.of(len(groups), groups)
    shown = np.array([np.bincount(labels[grouping.codes == g]).argmax() for g in _all(grouping)])
    order = np.lexsort((np.random.default_rng(seed).random(len(shown)), shown))
    folds = np.empty(len(shown), np.int64)
    folds[order] = np.arange(len(shown)) % N_FOLDS
    return torch.from_numpy(folds[grouping.codes])


def prompt_folds(groups: Codes, *, seed: int) -> Int[Tensor, " prompt"]:
    """Return the fold of every prompt, with each group in as many as it can be."""
    order = np.lexsort((np.random.default_rng(seed).random(len(groups)), groups))
    folds = np.empty(len(groups), np.int64)
    folds[order] = np.arange(len(groups)) % N_FOLDS
    return torch.from_numpy(folds)


def control_labels(groups: Codes, labels: Codes, *, seed: int) -> Codes:
    """Return a random label for every group, each as frequent as among the labels (1909.03368)."""
    grouping = Grouping.of(len(groups), groups)
    n = grouping.n_groups
    spread = np.sort(labels)[(np.arange(n) * 2 + 1) * len(labels) // (2 * n)]
    given: Codes = np.random.default_rng(seed).permutation(spread)[grouping.codes]
    return given


def most_frequent(labels: Codes, folds: Int[Tensor, " prompt"]) -> NDArray[np.bool_]:
    """Return whether each prompt's label is the most frequent of the other folds."""
    named = np.empty_like(labels)
    for fold in range(N_FOLDS):
        test = (folds == fold).numpy()
        named[test] = np.bincount(labels[~test]).argmax()
    is_right: NDArray[np.bool_] = named == labels
    return is_right


def in_order(groups: Codes, *, seed: int) -> tuple[Int[Tensor, " prompt"], list[int]]:
    """Return the prompts group by group, groups in random order, and the cuts between chunks.

    Cuts are at `FRACTIONS` of the prompts, moved to where the next group begins.
    """
    grouping = Grouping.of(len(groups), groups)
    place = np.random.default_rng(seed).permutation(grouping.n_groups)
    order = np.argsort(place[grouping.codes], kind="stable")
    ends = np.cumsum(np.bincount(place[grouping.codes], minlength=grouping.n_groups))
    wanted = np.array(FRACTIONS) * len(groups)
    cuts = sorted({int(ends[ends >= share][0]) for share in wanted})
    return torch.from_numpy(order), cuts


def _all(grouping: Grouping) -> range:
    return range(grouping.n_groups)
