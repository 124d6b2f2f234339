"""The commands that repeat a run, or run one of its cells alone; no torch here."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from interp.runs.folder import Cell


def command_of(config: Mapping[str, Any], *, out: str) -> str:
    """Return the command that runs what `config` of run.json asks for."""
    return shlex.join(["interp", "run", *_words(config), "--out", out])


def command_of_cell(config: Mapping[str, Any], cell: Cell) -> str:
    """Return the command that runs one cell alone and whole, into a folder of its own."""
    alone = {
        **config,
        "models": [cell.model],
        "tasks": [cell.task],
        "analyses": {cell.name: config["analyses"][cell.name]},
        "only_fitting": False,
        "on": {},
    }
    own = Cell(cell.model, cell.task, cell.analysis, cell.label).path
    return command_of(alone, out=f"runs/{own.replace('/', '--')}")


def _words(config: Mapping[str, Any]) -> Iterator[str]:
    for name in ("model", "task"):
        for value in config[f"{name}s"]:
            yield from (f"--{name}", value)
    files = config.get("files") or {}
    are_named = not config.get("only_fitting")
    for analysis, parameters in config["analyses"].items():
        name, at, label = analysis.partition("@")
        given = f"{files.get(name, name)}{at}{label}"
        yield from ("--analysis", given) if are_named else ()
        for key, value in parameters.items():
            yield from ("--set", f"{analysis}.{key}={as_text(value)}")
    for analysis, tasks in (config.get("on") or {}).items():
        yield from ("--on", f"{analysis}={','.join(tasks)}")
    yield from () if are_named else ("--budget", as_text(config.get("budget")))
    yield from ("--n", str(config["n"])) if config.get("n") else ()
    yield from ("--against", config["against"]) if config.get("against") else ()
    yield from ("--dtype", config["dtype"]) if config.get("dtype", "auto") != "auto" else ()
    yield from ("--device-map", config["device_map"]) if config.get("device_map") else ()
    if columns := config.get("columns"):
        yield from ("--columns", ",".join(f"{field}={key}" for field, key in columns.items()))
    yield from ("--chat",) if config.get("chat") else ()
    yield from ("--space", config["space"]) if config.get("space", "auto") != "auto" else ()
    yield from ("--seed", str(config["seed"])) if config["seed"] else ()


def as_text(value: Any) -> str:
    """Return a parameter's value in the form that `--set` reads."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
