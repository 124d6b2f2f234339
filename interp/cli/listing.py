"""`interp list` says which models, tasks and analyses there are."""

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from interp.cli.options import AsJson
from interp.cli.terminal import note, out, say, say_document
from interp.errors import RunError, unknown
from interp.runs.questions import declared

Rows = dict[str, list[str]]  # by name, what is said of it: the most important first


def list_(
    what: Annotated[str, typer.Argument(metavar="models|tasks|analyses", help="Of what.")],
    as_json: AsJson = False,
) -> None:
    """List models, tasks or analyses, and what they are.

    Example: interp list models
    """
    if what not in ("models", "tasks", "analyses"):
        raise RunError(unknown("list", what, ["models", "tasks", "analyses"]))
    rows = {"models": _models, "tasks": _tasks, "analyses": _analyses}[what]()
    if as_json:
        items = [{"name": name, "about": " ".join(about)} for name, about in rows.items()]
        say_document("list", of=what, items=items)
    elif out.is_terminal:
        out.print(_in_columns(rows))
    else:
        for name, about in rows.items():
            say(f"{name:24s} {' '.join(about)}")
    if what == "analyses" and not as_json:
        note("Yours: `interp new analysis NAME` writes ./NAME.py; `--analysis ./NAME.py` runs it.")


def _in_columns(rows: Rows) -> Table:
    """Return a row for each name, with what is said of it in lines that end between words."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, (first, *more) in rows.items():
        about = Text(first.rstrip(";"))
        for line in more:
            about.append(f"\n{line}", style="dim")
        table.add_row(Text(name), about)
    return table


def _models() -> Rows:
    from interp.files.fetched import described
    from interp.files.paths import shipped_models

    rows = {}
    for name, folder in shipped_models().items():
        recipe = json.loads((folder / "training.json").read_text())["recipe"]
        known = json.loads((folder / "evaluation.json").read_text())
        scores = ", ".join(f"{kind} {row['score']:.2f}" for kind, row in known.items())
        shape = f"{recipe['family']}, {recipe['n_layers']} layers, d={recipe['d_model']}"
        rows[name] = [f"{shape};", scores]
    for name, about in described().items():
        solved = _solved_by(name)
        rows[name] = [f"{about};", solved] if solved else [about]
    return rows


def _solved_by(model: str) -> str:
    """Return the tasks that a model was measured on, with the share of answers that come first."""
    from interp.tasks import describe_tasks

    shares = {task: known["solved_by"].get(model) for task, known in describe_tasks().items()}
    solved = [f"{task} {share:.2f}" for task, share in shares.items() if share is not None]
    return ", ".join(solved)


def _tasks() -> Rows:
    from interp.tasks import describe_tasks, example_of

    rows = {}
    for name, known in describe_tasks().items():
        solved = ", ".join(f"{model} {share:.2f}" for model, share in known["solved_by"].items())
        example = example_of(name)
        rows[name] = [f"{known['prompts']} prompts: {known['about']}"]
        rows[name] += [f"Solved: {solved}."] if solved else []
        rows[name] += [f"Example: {example}"] if example else []
    return rows


def _analyses() -> Rows:
    if (known := declared()) is not None:
        return {name: [each.question] for name, each in known.items()}
    from interp.runs.registry import find_analyses

    return {name: [analysis.question] for name, analysis in find_analyses().items()}
