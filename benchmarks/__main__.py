"""`python -m benchmarks [NAME ...]`: interleaved repeats against a peer in the same run; ratios of medians as JSON."""

import importlib
import json
import pkgutil
import sys

import benchmarks


def main(names: list[str]) -> None:
    """Run the benchmarks named, or all, and print one JSON document."""
    there_is = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    there_is.remove("harness")
    for name in names:
        if name not in there_is:
            sys.exit(f"unknown benchmark {name!r}; there is {', '.join(there_is)}")
    results = {name: importlib.import_module(f"benchmarks.{name}").run() for name in names or there_is}
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


main(sys.argv[1:])
