"""Numbers and names in sentences: short at 4 layers and at 80."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from interp.numerals import number, with_minus

if TYPE_CHECKING:
    from interp.stats.estimate import Estimate
    from interp.stats.picked import Picked

MOST_NAMED = 3
PICKED = "picked on one half of the prompts, measured on the other"  # a finding's note
_SAME = "picked on the same prompts"
_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gguf")
ALL, ALL_BUT_FIRST = "all positions", "all positions but the first"


def layers_named(layers: Iterable[int], *, of: int | None = None, what: str = "layer") -> str:
    """Return layers in words: "layer 3", "layers 1, 4 and 9", "layers 12–18", "9 of 30 layers".

    Neighbours count as one name; beyond three names it is "9 of 30 layers", or "9 layers" without
    `of`. `what` is the noun.
    """
    ordered = sorted(set(layers))
    if not ordered:
        return f"no {what}"
    spans = _spans(ordered)
    if len(spans) > MOST_NAMED:
        return f"{len(ordered)} {f'of {of} ' if of else ''}{what}s"
    names = [str(a) if a == b else f"{a}–{b}" for a, b in spans]
    return f"{what}{'s' * (len(ordered) > 1)} {listed(names)}"


def _spans(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Return spans of neighbours; two alone do not make a span."""
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1]
    runs = [ordered[a:b] for a, b in pairwise([0, *cuts, len(ordered)])]
    return [
        span
        for run in runs
        for span in ([(run[0], run[-1])] if len(run) > 2 else [(i, i) for i in run])
    ]


def listed(names: Sequence[str]) -> str:
    """Return names with commas and "and"; if more than three, the first two and how many more."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def counted(n: int, noun: str) -> str:
    """Return "1 prompt", "1,200 prompts"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def shortened(text: str, *, most: int = 48) -> str:
    """Return a text on one line; the middle of a long one is left out: "Before … gave it to"."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    half = (most - 3) // 2
    return f"{line[:half].rsplit(' ', 1)[0]} … {line[-half:].split(' ', 1)[-1]}"


def shape_named(shape: Iterable[int]) -> str:
    """Return a tensor's shape as docstrings write it: "[8 13 49152]"."""
    return f"[{' '.join(map(str, shape))}]"


def duration(seconds: float) -> str:
    """Return a time in round numbers: "20 s", "3 min", "2 h 10 min"."""
    if seconds < 95:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return " ".join(filter(None, (f"{hours} h" * (hours > 0), f"{rest} min" * (rest > 0))))


def by_sign(difference: "Estimate", *, above: str, below: str, unclear: str) -> str:
    """Return the words for a difference above 0, below it, or not known to be either.

    It is unclear where its interval holds 0, or where there are too few prompts for one.
    """
    if not difference.excludes():
        return unclear
    return above if difference.value > 0 else below


def costs_than(more: "Estimate") -> str:
    """Return how a cost compares with another, by the interval of what it is more."""
    unclear = "is not shown to cost less or more than"
    return by_sign(more, above="costs more than", below="costs less than", unclear=unclear)


def how_often(gain: "Estimate", than: str) -> str:
    """Return "more often than by chance: by 5 points", "less often", or "not measurably more"."""
    return by_sign(
        gain,
        above=f"more often than {than}: by {points(gain)}",
        below=f"less often than {than}: by {points(-gain)}",
        unclear=f"not measurably more often than {than}: {points(gain)}",
    )


def how_picked(estimate: "Estimate") -> str:
    """Return how what is estimated was picked: one group of prompts has no halves."""
    return _SAME if estimate.n_groups == 1 else PICKED


def halves_pick(most: "Picked") -> str:
    """Return "; the halves pick layers 3 and 6" where they differ from what all prompts pick."""
    return "" if most.is_stable else f"; the halves pick {layers_named(most.halves)}"


def capital(text: str) -> str:
    """Return a text with a capital first letter; a Greek alpha, which is a symbol, stays."""
    return text if text.startswith("α") else text[:1].upper() + text[1:]


def points(share: "Estimate") -> str:
    """Return a difference of shares in points: "7 points [2, 11]"."""
    text = format(share, ".0%")
    return text.replace(" %", " point" if text.split()[0] in {"1", "−1"} else " points")


def value_text(value: object, spec: str = ".3g") -> str:
    """Return a value as text: a float by `spec`, as `interp.numerals` does; "–" if missing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return with_minus(str(value))
    return number(value, spec) if isinstance(value, float) else str(value)


def head_named(layer: int, head: int) -> str:
    """Return a head's name: "L23H3" is head 3 of layer 23."""
    return f"L{layer}H{head}"


def mlp_named(layer: int) -> str:
    """Return an MLP's name: "MLP 23" is that of layer 23."""
    return f"MLP {layer}"


CIRCUITS = {
    "circuit": "the best edges",
    "random": "random paths of the same kinds and layers",
    "complement": "all but the best edges",
}
_READS = {"a": "", "q": " (query)", "k": " (key)", "v": " (value)"}


def node_named(key: str) -> str:
    """Return a circuit's node in words: "a2.h3" is "L2H3", "q2.h3" its query, "m2" is "MLP 2".

    The embedding and the logits keep their names.
    """
    layer, _, head = key[1:].partition(".h")
    if not layer.isdecimal():
        return key
    return head_named(int(layer), int(head)) + _READS[key[0]] if head else mlp_named(int(layer))


def called(names: Iterable[str]) -> dict[str, str]:
    """Map names of models or tasks to what they are called where people read: no paths.

    A path is called by its last part, as long as that is no other's; "owner/name" is no path.
    """
    every = list(dict.fromkeys(names))
    short = {name: _last_part(name) if _is_path(name) else name for name in every}
    clash = [*short.values()]
    return {name: name if clash.count(last) > 1 else last for name, last in short.items()}


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(_FILES)


def _last_part(path: str) -> str:
    last = path.rstrip("/").rpartition("/")[2]
    return last.removesuffix(next((ending for ending in _FILES if last.endswith(ending)), ""))
