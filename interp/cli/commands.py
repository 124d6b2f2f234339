"""What does each layer of a language model do, who needs it, and is the depth used?

Exit status: 0 ok; 1 a cell failed (run), damage (doctor, store verify) or a difference (diff); 2
bad input; 130 interrupted. Results are on stdout, everything else on stderr; --json prints one
document, also for errors.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from interp import __version__
from interp.cli import get, look
from interp.cli.look import complete_runs
from interp.cli.store import app as store_app
from interp.cli.terminal import err, note, out, say, say_json, set_verbosity
from interp.errors import InterpError, RunError, unknown
from interp.runs.questions import declared

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_app, name="store")
for command in (look.show, look.diff, look.validate, get.get):
    app.command()(command)
_UsageError: Any = typer.BadParameter.__mro__[
    1
]  # where it is imported from differs between versions of Typer
_LOADING = ("n", "seed", "dtype", "device_map", "chat", "columns", "space")
_EVERY = 30.0  # seconds between lines about progress where there is no terminal


def main() -> None:
    """Run a command; an error is one line on stderr and exit status 2, an interruption 130."""
    try:
        sys.exit(app(standalone_mode="--json" not in sys.argv))
    except (InterpError, OSError, _UsageError) as error:
        if "--debug" in sys.argv:
            raise
        message = error.format_message() if isinstance(error, _UsageError) else str(error)
        if "--json" in sys.argv:
            say_json({"error": {"kind": type(error).__name__, "message": message}})
        err.quiet = False
        note(f"interp: {message}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        note("interp: interrupted; the same command resumes")
        sys.exit(130)


def _version(is_asked: bool) -> bool:
    if is_asked:
        say(f"interp {__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def common(
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Tell more; -vv everything.")
    ] = 0,
) -> None:
    """Set what every command shares."""
    set_verbosity(is_quiet=quiet, verbose=verbose)


@app.command()
def run(
    study: Annotated[
        Path | None, typer.Argument(help="A study file (TOML); flags override it.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model name, folder or Hugging Face id.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task name or .jsonl file.")] = None,
    analysis: Annotated[
        list[str] | None, typer.Option(help="Analysis; all that suit the task, if none is named.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="ANALYSIS.PARAMETER=VALUE; items with commas between them."),
    ] = None,
    n: Annotated[int | None, typer.Option(help="Prompts per task.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/run"),
    store: Annotated[
        str | None,
        typer.Option(
            help="Where clean activations are kept: a folder or URL (default: beside the run)."
        ),
    ] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Keep no activations.")] = False,
    workers: Annotated[
        int, typer.Option(help="Processes (with --ray: actors) that share the work.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster: auto, HOST:PORT, or local.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of each Ray actor (default: 1 where there are any)")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 (default: the checkpoint's)")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Spread models over devices, e.g. auto.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Texts are what a user says; put them into the chat template."),
    ] = False,
    columns: Annotated[
        str | None, typer.Option(help="Keys of task files, such as text=question,answer=gold")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Between text and answer: auto (by script), always, never.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and its cost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001
) -> None:
    """Run analyses into a run folder; call again to resume. Ctrl-C ends it after the shards under
    way, twice at once.

    Examples: interp run --model zoo/hops-4l --task two-hop --out runs/first · interp run study.toml
    --workers 2 · interp run --model ./my-model --task my.jsonl --analysis layer_skip --set
    layer_skip.part=mlp --out runs/mine
    """
    import transformers

    from interp.runs import estimate, execute

    transformers.utils.logging.disable_progress_bar()
    flags: dict[str, Any] = {"n": n, "seed": seed, "dtype": dtype, "device_map": device_map}
    flags |= {
        "chat": chat or None,
        "space": space,
        "columns": None if columns is None else _columns(columns),
    }
    asked = _study(study, model=model, task=task, analysis=analysis, sets=set_ or [], **flags)
    if dry_run:
        _print_estimates([asdict(e) for e in estimate(asked)], as_json=as_json)
        return
    try:
        with Progress(console=err, disable=not err.is_terminal or err.quiet) as bars:
            done = execute(
                asked,
                folder,
                store=None if no_store else store or str(folder.parent / "store"),
                workers=workers,
                ray=ray,
                gpus=gpus,
                progress=_shown_on(bars),
            )
    except KeyboardInterrupt:
        note("interp: interrupted; the same command resumes")
        raise typer.Exit(130) from None
    finished = [cell for cell in done["cells"].values() if cell["status"] == "ok"]
    is_failed = any(cell["status"] == "failed" for cell in done["cells"].values())
    if as_json:
        say_json(done)
    else:
        for (where, text), paths in _said(done["cells"]).items():
            where = paths[0] if len(paths) == 1 else f"{where} ({len(paths)} analyses)"
            say(f"{where}: {text}")
        how = (
            f"; look at them with `interp report {folder}` or `interp view {folder}`"
            if finished
            else ""
        )
        say(f"{len(finished)} finished in {folder}{how}")
    if is_failed or not finished:
        raise typer.Exit(1)


def _shown_on(bars: Progress) -> Callable[[str, int, int], None]:
    """Return what shows progress: a bar on a terminal, a line now and then elsewhere."""
    bar, last = bars.add_task("loading", total=None), time.monotonic()

    def show(text: str, done: int, total: int) -> None:
        nonlocal last
        bars.update(bar, description=text, completed=done, total=total)
        if not err.is_terminal and time.monotonic() - last > _EVERY:
            last = time.monotonic()
            note(f"{text}: {done} of {total}")

    return show


def _said(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Map (model/task, what there is to say) to the cells that it is said of: one line where all
    fail of the same cause.
    """
    said: dict[tuple[str, str], list[str]] = {}
    for path, cell in cells.items():
        text = cell.get("summary") or f"{cell['status']}: {cell['error']}"
        said.setdefault((path.rpartition("/")[0], text + _left_out(cell)), []).append(path)
    return said


def _left_out(cell: dict[str, Any]) -> str:
    return f" ({cell['left_out']} left out)" if cell.get("left_out") else ""


def _study(path: Path | None, *, sets: list[str], **flags: Any) -> Any:
    """Return the study of a file and flags; unknown keys are errors."""
    from interp.runs import Study
    from interp.runs.registry import find_analyses

    given: dict[str, Any] = {} if path is None else look.read_study(path)
    given |= {f"{key}s": flags[key] for key in ("model", "task") if flags[key]}
    given |= {key: flags[key] for key in _LOADING if flags[key] is not None}
    if flags["analysis"]:
        given["analyses"] = {
            name: given.get("analyses", {}).get(name, {}) for name in flags["analysis"]
        }
    if not given.get("analyses"):
        given |= {"analyses": {name: {} for name in find_analyses()}, "only_fitting": True}
    for item in sets:
        _set(given["analyses"], item)
    for needed in ("models", "tasks"):
        if not given.get(needed):
            raise RunError(f"no {needed[:-1]} given; name one with --{needed[:-1]}")
        given[needed] = tuple(given[needed])
    return Study(**given)


def _columns(text: str) -> dict[str, str]:
    """Return a map of fields to columns, as it is written on the command line."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(field.strip() and column.strip() for field, _, column in pairs):
        raise RunError(
            f"--columns {text!r} given; FIELD=COLUMN,… is needed, such as text=question,answer=gold"
        )
    return {field.strip(): column.strip() for field, _, column in pairs}


def _set(analyses: dict[str, dict[str, Any]], item: str) -> None:
    """Give a parameter of one of these analyses the value that ANALYSIS.PARAMETER=VALUE says."""
    from interp.runs.registry import parse_parameter

    target, equals, text = item.partition("=")
    name, _, parameter = target.rpartition(".")
    if not (name and parameter and equals):
        raise RunError(f"--set {item!r} given; ANALYSIS.PARAMETER=VALUE is needed")
    value = parse_parameter(name.partition("@")[0], parameter, text)
    if name not in analyses:
        raise RunError(f"--set {item!r} given; the analyses of this run are {', '.join(analyses)}")
    analyses[name][parameter] = value


def _print_estimates(estimates: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        say_json(estimates)
        return
    table = Table(
        "model", "task", "analysis", "prompts", "shards", "forwards", "memory MB", "disk MB"
    )
    for e in estimates:
        cell = e["cell"]
        if e["why_not"]:
            note(f"{cell['analysis']} is skipped: {e['why_not']}")
            continue
        costs = [f"{e['forwards']:.0f}", f"{e['memory_mb']:.0f}", f"{e['disk_mb']:.1f}"]
        table.add_row(
            cell["model"],
            cell["task"],
            cell["analysis"],
            str(e["n_prompts"]),
            str(e["n_shards"]),
            *costs,
        )
    out.print(table)
    for where, example in {
        (e["cell"]["model"], e["cell"]["task"]): e["example"] for e in estimates if e["example"]
    }.items():
        say(f"{' · '.join(where)}: {example}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.", autocompletion=complete_runs)],
    kind: Annotated[
        str, typer.Option("--format", help="html, json or md; report.json is written in any case.")
    ] = "html",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001
) -> None:
    """Write a report, self-contained, from what is on disk.

    Examples: interp report runs/first · interp report runs/first --format md
    """
    from interp.reports import write_report

    path = write_report(folder, kind)
    if as_json:
        say_json(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    else:
        say(f"{path} is ready" + ("; open it in a browser" if kind == "html" else ""))


@app.command()
def schema(what: Annotated[str, typer.Argument(help="report")] = "report") -> None:
    """Print the JSON Schema of report.json.

    Example: interp schema report > report.schema.json
    """
    if what != "report":
        raise RunError(unknown("schema", what, ["report"]))
    from interp.reports import schema as of_report

    say_json(of_report())


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(help="Port (default: the first free one from 8501 on).")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines reach it only if this says so.")
    ] = "localhost",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    page: Annotated[
        str, typer.Option("--open", help="Page and selection, such as skip?run=first&layer=2")
    ] = "",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001
) -> None:
    """Look at runs in a browser; Ctrl-C ends it.

    Examples: interp view runs · interp view runs/first --port 8600 --no-browser
    """
    import signal
    import webbrowser

    from interp.runs.viewing import LOCAL, start

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the viewer's process is ended too

    if host not in LOCAL:
        note(f"interp: listening on {host}: whoever reaches it can read the runs in {folder}")
    with start(folder, port=port, host=host, page=page) as viewer:
        say(viewer.url)
        if not no_browser:
            webbrowser.open(viewer.url)
        try:
            viewer.process.wait()
        except KeyboardInterrupt:
            note("interp: the viewer is closed")


@app.command()
def doctor(
    model: Annotated[str, typer.Option(help="Model name, folder or Hugging Face id.")],
    device: Annotated[
        str, typer.Option(help="cpu, cuda, mps … (default: the best there is)")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 (default: the checkpoint's)")
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch or commit of the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001
) -> None:
    """Check a checkpoint: is it whole, and is every place in it what its name says? Exits 1 if not,
    2 if there is none.

    Example: interp doctor --model path/to/checkpoint
    """
    import transformers

    from interp.testing.doctor import diagnose

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with err.status("loading", spinner="dots") as status:
        how: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
        found = diagnose(model, progress=status.update, trust_remote_code=trust_remote_code, **how)
    if as_json:
        say_json(found.to_dict())
    else:
        _print_diagnosis(found.to_dict())
    if not found.is_healthy:
        raise typer.Exit(1)


def _print_diagnosis(found: dict[str, Any]) -> None:
    marks = {"ok": "✓", "note": "·", "failed": "✗"}
    for sign in found["signs"]:
        say(f"{marks[sign['verdict']]} {sign['check']}: {sign['what']}")
    if found["memory"]:
        table = Table(
            "analysis",
            "memory MB",
            "forwards",
            title="For 32 prompts of 64 tokens, with each analysis's defaults",
        )
        for row in found["memory"]:
            costs = (
                (str(row["memory_mb"]), f"{'≤ ' if row['is_bound'] else ''}{row['forwards']}")
                if "forwards" in row
                else ("–", row["why_not"])
            )
            table.add_row(row["analysis"], *costs)
        out.print(table)
    said = "healthy" if found["healthy"] else "not to be trusted"
    say(f"{found['model']} is {said}")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="models|tasks|analyses", help="Of what.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what there is, one line each.

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
    from interp.files.fetched import told
    from interp.files.paths import shipped_models

    rows = {}
    for name, folder in shipped_models().items():
        recipe = json.loads((folder / "training.json").read_text())["recipe"]
        known = json.loads((folder / "evaluation.json").read_text())
        scores = ", ".join(f"{kind} {row['score']:.2f}" for kind, row in known.items())
        rows[name] = (
            f"{recipe['family']}, {recipe['n_layers']} layers, d={recipe['d_model']}; {scores}"
        )
    return rows | told()


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


if __name__ == "__main__":
    main()
