"""`python -m benchmarks [NAME[:PART] ...]`: ratios of medians to a peer, repeats interleaved.

Each benchmark leaves `benchmarks/results/NAME.json`, with versions and machine; `--page` writes
docs/benchmarks.md from what is there, and from `benchmarks/notes/NAME.md`, where a result wants
words. A benchmark with parts measures one anew and keeps its other rows.
"""

import importlib
import json
import os
import pkgutil
import sys

import torch

import benchmarks
from benchmarks.harness import machine
from benchmarks.page import RESULTS, write_page

_NO_BENCHMARKS = ("gpu", "harness", "page")


def main(names: list[str]) -> None:
    """Run the benchmarks named, or all, or write the page."""
    known = [
        m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")
    ]
    known = [name for name in known if name not in _NO_BENCHMARKS]
    if names == ["--page"]:
        write_page()
        return
    for name in [given.partition(":")[0] for given in names]:
        if name not in known:
            sys.exit(f"unknown benchmark {name!r}; there is {', '.join(known)}")
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for given in names or known:
        name, _, part = given.partition(":")
        module = importlib.import_module(f"benchmarks.{name}")
        load, path = os.getloadavg()[0], RESULTS / f"{name}.json"
        before = json.loads(path.read_text("utf-8")) if part and path.exists() else {"results": {}}
        measured = {
            "about": module.__doc__,
            **machine(),
            "load_before": round(load, 2),
            "results": before["results"] | (module.run(part) if part else module.run()),
        }
        path.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(
            json.dumps({name: measured["results"]}, indent=1, ensure_ascii=False) + "\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
