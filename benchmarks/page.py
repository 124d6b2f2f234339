"""The documentation's page of benchmarks, from the results that are kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_NOTES = Path(__file__).parent / "notes"
_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by `python -m benchmarks --page` from `benchmarks/results/`; `python -m benchmarks NAME`
measures one again, `make bench` all of them. A ratio is ours by the peer's, the ratio of medians of
interleaved repeats in one process, so below 1 is less; in brackets the range of single repeats.
Numbers are compared before anything is timed. A bound is what counting, or a perfect
implementation, would give; forwards are counted, one being all blocks on all prompts and tokens.
Only ratios travel between machines; seconds are there to tell large work from small.
"""


def write_page() -> None:
    """Write docs/benchmarks.md."""
    _PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("*.json"))
    }
    return "\n".join(
        [_HEAD, _goals(results), *(_section(name, each) for name, each in results.items())]
    )


def _goals(results: dict[str, Any]) -> str:
    rows = [
        (name, key, row)
        for name, each in results.items()
        for key, row in each["results"].items()
        if row.get("goal")
    ]
    missed = [(name, key, row) for name, key, row in rows if _value(row) > row["goal"]]
    lines = [
        f"| [{_title(name)}](#{name.replace('_', '-')}) | {key} | {_measured(row)} "
        f"| {_number(row.get('bound'))} | {_number(row['goal'])} |"
        for name, key, row in missed
    ]
    table = (
        ["| benchmark | work | measured | bound | goal |", "|---|---|---|---|---|", *lines, ""]
        if missed
        else []
    )
    sentence = f"{len(rows) - len(missed)} of {len(rows)} goals are met."
    more = " These are not; why, and what was tried, stands in their sections." if missed else ""
    return "\n".join(["## Goals", "", sentence + more, "", *table])


def _section(name: str, results: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    note = _NOTES / f"{name}.md"
    return "\n".join(
        [
            f"## {_title(name)}",
            "",
            results["about"].strip(),
            "",
            *_table(results["results"]),
            "",
            *([note.read_text(encoding="utf-8")] if note.exists() else []),
            f"*{results['date']}, {results['machine']}, {versions}.*",
            "",
        ]
    )


def _table(rows: dict[str, Any]) -> Iterator[str]:
    """Yield a table of the columns that some row fills."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "measured": _measured,
        "ours, peer": _both,
        "forwards": lambda row: " / ".join(map(_number, row.get("forwards", ()))),
        "of matrix products": lambda row: _number(row.get("share_of_matmul")),
        "of bandwidth": lambda row: _number(row.get("share_of_bandwidth")),
        "peak": lambda row: f"{row['peak_mb']:,} MB" if row.get("peak_mb") else "",
        "bound": lambda row: _number(row.get("bound")),
        "goal": lambda row: _number(row.get("goal")),
    }
    cells = {title: [tell(row) for row in rows.values()] for title, tell in columns.items()}
    cells = {"work": [*rows]} | {title: column for title, column in cells.items() if any(column)}
    yield f"| {' | '.join(cells)} |"
    yield "|---" * len(cells) + "|"
    for row in zip(*cells.values(), strict=True):
        yield f"| {' | '.join(row)} |"


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value(row: dict[str, Any]) -> float:
    return next(
        row[kind] for kind in ("ratio", "seconds", "mb", "exponent", "value") if kind in row
    )


def _measured(row: dict[str, Any]) -> str:
    if row.get("fits") is False:
        return "does not fit"
    unit = " s" if "seconds" in row else " MB" if "mb" in row else ""
    spread = f" ({_number(row['lowest'])}–{_number(row['highest'])})" if "lowest" in row else ""
    more = f" ({row['values']})" if "values" in row else ""
    return f"{_number(_value(row))}{unit}{spread}{more}"


def _both(row: dict[str, Any]) -> str:
    for ours, peer, unit in (("ours_s", "peer_s", "s"), ("ours_mb", "peer_mb", "MB")):
        if ours in row:
            return f"{_number(row[ours])} / {_number(row[peer])} {unit}"
    return ""


def _number(value: object) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
