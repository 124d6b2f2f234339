"""What the columns of a figure of depth at a glance hold: a model's strips and what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from interp.figures.strips import Strip


@dataclass(frozen=True)
class Beside:
    """A strip with what was found, the address of more, and the same of an untrained model."""

    strip: Strip
    claim: str = ""
    link: str = ""
    untrained: Strip | None = None


@dataclass(frozen=True)
class Column:
    """The strips of one model on its tasks, by question."""

    name: str
    n_layers: int
    strips: Mapping[str, Beside]


def of_one_unit(columns: Sequence[Column]) -> list[Column]:
    """Return columns in which a strip that has several units is in the one that all tasks have."""
    units: dict[str, set[str]] = {}
    for column in columns:
        for key, beside in column.strips.items():
            units.setdefault(key, set()).add(beside.strip.scale)
    several = {key for key, scales in units.items() if len(scales) > 1}
    return [
        replace(
            column,
            strips={
                key: _instead(beside) if key in several else beside
                for key, beside in column.strips.items()
            },
        )
        for column in columns
    ]


def _instead(beside: Beside) -> Beside:
    twin = beside.untrained
    return replace(
        beside,
        strip=beside.strip.instead or beside.strip,
        untrained=twin if twin is None else twin.instead or twin,
    )
