"""`interp run` runs a study into a folder, or says what it would cost."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from interp.cli.study import StudyFlags, parse_columns, study_of
from interp.cli.terminal import err, note, out, say, say_json

if TYPE_CHECKING:
    from interp.runs import CellCost

_SECONDS = 30.0  # between lines about progress where there is no terminal


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
) -> None:
    """Run analyses into a run folder; call again to resume.

    Ctrl-C ends it after the shards under way, twice at once.

    Examples: interp run --model zoo/hops-4l --task two-hop --out runs/first · interp run study.toml
    --workers 2 · interp run --model ./my-model --task my.jsonl --analysis layer_skip --set
    layer_skip.part=mlp --out runs/mine
    """
    import transformers

    from interp.runs import estimate_costs, execute

    transformers.utils.logging.disable_progress_bar()
    flags = StudyFlags(
        models=model,
        tasks=task,
        n=n,
        seed=seed,
        dtype=dtype,
        device_map=device_map,
        chat=chat or None,
        columns=None if columns is None else parse_columns(columns),
        space=space,
    )
    asked = study_of(study, flags, analyses=analysis or [], settings=set_ or [])
    if dry_run:
        _print_costs(estimate_costs(asked), as_json=as_json)
        return
    with Progress(console=err, disable=not err.is_terminal or err.quiet) as bars:
        record = execute(
            asked,
            folder,
            store=None if no_store else store or str(folder.parent / "store"),
            workers=workers,
            ray=ray,
            gpus=gpus,
            progress=_progress_on(bars),
        )
    if as_json:
        say_json(record)
    else:
        _print_cells(record["cells"], folder)
    statuses = {cell["status"] for cell in record["cells"].values()}
    if "failed" in statuses or "ok" not in statuses:
        raise typer.Exit(1)


def _progress_on(bars: Progress) -> Callable[[str, int, int], None]:
    """Return a progress display: a bar on a terminal, a line now and then elsewhere."""
    bar, last = bars.add_task("loading", total=None), time.monotonic()

    def update(text: str, done: int, total: int) -> None:
        nonlocal last
        bars.update(bar, description=text, completed=done, total=total)
        if not err.is_terminal and time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            note(f"{text}: {done} of {total}")

    return update


def _print_cells(cells: dict[str, dict[str, Any]], folder: Path) -> None:
    """Print one line per cell; one for a whole task whose cells fail for the same reason."""
    paths_of: dict[tuple[str, str], list[str]] = {}
    for path, cell in cells.items():
        text = cell.get("summary") or f"{cell['status']}: {cell['error']}"
        left_out = f" ({cell['left_out']} left out)" if cell.get("left_out") else ""
        paths_of.setdefault((path.rpartition("/")[0], text + left_out), []).append(path)
    for (task, text), paths in paths_of.items():
        where = paths[0] if len(paths) == 1 else f"{task} ({len(paths)} analyses)"
        say(f"{where}: {text}")
    n_finished = sum(cell["status"] == "ok" for cell in cells.values())
    how = f"; look at them with `interp report {folder}` or `interp view {folder}`"
    say(f"{n_finished} finished in {folder}{how if n_finished else ''}")


def _print_costs(costs: "list[CellCost]", *, as_json: bool) -> None:
    if as_json:
        say_json([asdict(cost) for cost in costs])
        return
    table = Table(
        "model", "task", "analysis", "prompts", "shards", "forwards", "memory MB", "disk MB"
    )
    for cost in costs:
        cell = cost.cell
        if cost.why_not:
            note(f"{cell.analysis} is skipped: {cost.why_not}")
            continue
        counts = [str(cost.n_prompts), str(cost.n_shards), f"{cost.forwards:.0f}"]
        sizes = [f"{cost.memory_mb:.0f}", f"{cost.disk_mb:.1f}"]
        table.add_row(cell.model, cell.task, cell.analysis, *counts, *sizes)
    out.print(table)
    examples = {(cost.cell.model, cost.cell.task): cost.example for cost in costs if cost.example}
    for where, example in examples.items():
        say(f"{' · '.join(where)}: {example}")
