"""`interp list` says which models, tasks and analyses there are."""

import json
from typing import Annotated

import typer

from interp.cli.options import AsJson
from interp.cli.terminal import say, say_json
from interp.errors import RunError, unknown
from interp.runs.questions import declared


def list_(
    what: Annotated[str, typer.Argument(metavar="models|tasks|analyses", help="Of what.")],
    as_json: AsJson = False,
) -> None:
    """List what there is, one line each.

    Example: interp list models
    """
    if what not in ("models", "tasks", "analyses"):
        raise RunError(unknown("list", what, ["models", "tasks", "analyses"]))
    rows = {"models": _models, "tasks": _tasks, "analyses": _analyses}[what]()
    if as_json:
        say_json(rows)
        return
    for name, about in rows.items():
        say(f"{name:24s} {about}")


def _models() -> dict[str, str]:
    from interp.files.fetched import described
    from interp.files.paths import shipped_models

    rows = {}
    for name, folder in shipped_models().items():
        recipe = json.loads((folder / "training.json").read_text())["recipe"]
        known = json.loads((folder / "evaluation.json").read_text())
        scores = ", ".join(f"{kind} {row['score']:.2f}" for kind, row in known.items())
        rows[name] = (
            f"{recipe['family']}, {recipe['n_layers']} layers, d={recipe['d_model']}; {scores}"
        )
    return rows | {name: about + _solved_by(name) for name, about in described().items()}


def _solved_by(model: str) -> str:
    """Return the tasks that a model was measured on, with the share of answers that come first."""
    from interp.tasks import describe_tasks

    shares = {task: known["solved_by"].get(model) for task, known in describe_tasks().items()}
    solved = [f"{task} {share:.2f}" for task, share in shares.items() if share is not None]
    return f"; {', '.join(solved)}" if solved else ""


def _tasks() -> dict[str, str]:
    from interp.tasks import describe_tasks, example_of

    rows = {}
    for name, known in describe_tasks().items():
        solved = ", ".join(f"{model} {share:.2f}" for model, share in known["solved_by"].items())
        example = example_of(name)
        rows[name] = f"{known['prompts']} prompts: {known['about']}" + (
            f" Solved: {solved}." if solved else ""
        )
        rows[name] += f" Example: {example}" if example else ""
    return rows


def _analyses() -> dict[str, str]:
    if (known := declared()) is not None:
        return {name: each.question for name, each in known.items()}
    from interp.runs.registry import find_analyses

    return {name: analysis.question for name, analysis in find_analyses().items()}
