"""The documentation's page of benchmarks, from the results that are kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_NOTES = Path(__file__).parent / "notes"
_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

What this library costs in time and memory, beside plain hooks and other libraries. `python -m
benchmarks --page` writes this page from `benchmarks/results/`; `python -m benchmarks NAME` measures
one benchmark again, `make bench` all of them.

A ratio is this library's time or memory divided by the peer's: below 1 is less. It is the ratio of
medians; repeats of both sides alternate in one process, and brackets hold the range of single
repeats. The numbers that both sides compute are compared before anything is timed. A bound is what
counting blocks, or a perfect implementation, would give. One forward is all blocks on all prompts
and tokens. Only ratios carry over to another machine; seconds show how large the work is. The last
line of a section has the machine's load just before: above its number of cores, times are rough.
"""
_FRONT = (
    (
        "A forward that captures three sites in every layer, against a plain forward",
        "capture",
        "L = 12, d = 384, batch 8, T = 64, against the stock forward",
    ),
    (
        "Memory of such a capture, against TransformerLens's filtered cache",
        "capture_memory",
        "3 sites × 8 layers, d = 256, T = 2048, against run_with_cache with a filter",
    ),
    (
        "Skipping every layer of SmolLM2-135M, against a loop with plain hooks",
        "real_model",
        "skip every layer, against plain hooks (peer: 13% of its loop, scaled), T = 64",
    ),
    (
        "The same, against TransformerLens",
        "real_model",
        "skip every layer, against TransformerLens (peer: 13% of its loop, scaled), T = 64",
    ),
    (
        "Relevance of all nodes of SmolLM2-135M, against three passes of the stock model",
        "real_model",
        "relevance patching, against three passes of the stock model, T = 64",
    ),
    (
        "Peak memory of a run of 1,024 prompts, against one of 64",
        "memory",
        "1,024 prompts / 64 prompts",
    ),
    (
        "Capturing a corpus into the store, against forwards and raw writes of as many bytes",
        "store_capture",
        "capture / forward and raw write of the bytes",
    ),
    (
        "Bytes that a layer skip reads of a model left on disk, against two readings of its blocks",
        "streaming",
        "weights read, by two passes",
    ),
    ("A page of the viewer, warm", "viewer", "page of a warm server, 25,088 cells"),
    ("`import interp`", "start", "import interp"),
)


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
        [
            _HEAD,
            _front(results),
            _goals(results),
            *(_section(name, each) for name, each in results.items()),
        ]
    )


def _front(results: dict[str, Any]) -> str:
    """Return the table of what decides most, of the results that are there."""
    rows = [
        f"| [{what}](#{name.replace('_', '-')}) | {_measured(row)} | {_number(row.get('goal'))} |"
        for what, name, key in _FRONT
        if (row := results.get(name, {}).get("results", {}).get(key))
    ]
    table = ["| work | measured | goal |", "|---|---|---|", *rows, ""]
    return "\n".join(["## In short", "", *table]) if rows else ""


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
    more = " The others, and why:" if missed else ""
    reasons = [
        f"**[{_title(name)}](#{name.replace('_', '-')}).** {note.read_text(encoding='utf-8')}"
        for name in dict.fromkeys(name for name, _, _ in missed)
        if (note := _NOTES / f"{name}.md").exists()
    ]
    return "\n".join(["## Goals", "", sentence + more, "", *table, *reasons])


def _section(name: str, results: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    load = f", load {results['load_before']} before" if "load_before" in results else ""
    return "\n".join(
        [
            f"## {_title(name)}",
            "",
            results["about"].strip(),
            "",
            *_table(results["results"]),
            "",
            f"*{results['date']}, {results['machine']}{load}, {versions}.*",
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


def _kind(row: dict[str, Any]) -> str:
    """Return which of a row's numbers is the measured one."""
    return next(kind for kind in ("ratio", "seconds", "mb", "exponent", "value") if kind in row)


def _value(row: dict[str, Any]) -> float:
    value: float = row[_kind(row)]
    return value


def _measured(row: dict[str, Any]) -> str:
    if row.get("fits") is False:
        return "does not fit"
    unit = {"seconds": " s", "mb": " MB"}.get(_kind(row), "")
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
