"""The documentation's page of benchmarks, from the results that are kept."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by `python -m benchmarks --page` from `benchmarks/results/`; `python -m benchmarks NAME` measures one again. A ratio
is ours by the peer's, medians of interleaved repeats in one process, so below 1 is faster; in brackets the range of the
repeats. The bound counts blocks: what no implementation that computes the same could beat with equal use of the machine.
Numbers are compared before anything is timed. Only ratios travel between machines.
"""
# What is aimed at, by benchmark and what a row's name has in it; the first that fits counts.
GOALS: dict[str, dict[str, float]] = {
    "back_patching": {"": 1 / 18},
    "capture": {
        "d = 384, batch 8, T = 64, against `run_with_cache` with": 1.0,
        "d = 384, batch 8, T = 64, against `run_with_cache` of": 0.75,
        "d = 128, batch 8, T = 64, against `run_with_cache` with": 0.7,
        "d = 128, batch 8, T = 64, against `run_with_cache` of": 0.5,
        "stock": 1.15,
    },
    "depth_map": {"compute": 0.01},
    "integrated_gradients": {"ratio of blocks": 0.25},
    "layer_skip": {"all positions, L=12": 0.62, "all positions, L=48": 0.59, "future and direct": 0.35},
    "memory": {"ratio": 1.1},
    "peers": {"plain hooks": 0.62},
    "relevance_patching": {"bridge": 1.3, "exact patching": 0.55},
    "residual_erasure": {"": 0.35},
    "start": {"import": 0.3, "--help": 0.5},
    "store": {"keep": 1.25},
    "store_capture": {"peak ratio": 1.2},
}


def write_page() -> None:
    """Write docs/benchmarks.md."""
    _PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    return "\n".join([_HEAD, *(_section(name, found[name]) for name in sorted(found))])


def _section(name: str, found: dict[str, Any]) -> str:
    about, versions = found["about"].strip(), ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    rows = [
        f"| {key} | {_measured(value)} | {_number(value.get('bound'))} | {_number(_goal(name, key))} |"
        for key, value in _flat(found["results"])
    ]
    table = ["| work | measured | bound | goal |", "|---|---|---|---|", *rows]
    note = f"*{found['date']}, {found['machine']}, {versions}.*"
    return "\n".join([f"## {name.replace('_', ' ').capitalize()}", "", about, "", *table, "", note, ""])


def _goal(name: str, row: str) -> float | None:
    return next((goal for part, goal in GOALS.get(name, {}).items() if part in row), None)


def _flat(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return rows: what was measured, and its numbers; bare numbers become rows of their own."""
    rows = []
    for key, value in results.items():
        if isinstance(value, dict) and {"ratio", "seconds", "exponent"} & set(value):
            rows.append((key, value))
        elif isinstance(value, dict):
            rows += [(f"{key}: {inner}", {"value": number}) for inner, number in value.items()]
        else:
            rows.append((key, {"value": value}))
    return rows


def _measured(value: dict[str, Any]) -> str:
    for name, unit in (("ratio", ""), ("seconds", " s"), ("exponent", "")):
        if name in value:
            spread = f" ({_number(value['lowest'])}–{_number(value['highest'])})" if "lowest" in value else ""
            return f"{_number(value[name])}{unit}{spread}"
    return _number(value["value"])


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
