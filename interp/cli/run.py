"""`interp run` runs a study into a folder, or says what it would cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import events
from interp.cli.own import check_own
from interp.cli.plan import plan, print_plan
from interp.cli.progress import watching
from interp.cli.study import StudyFlags, parse_columns, parse_on, study_of
from interp.cli.terminal import err, is_verbose, note, say
from interp.errors import RunError
from interp.runs.folder import Cell

if TYPE_CHECKING:
    from interp.runs import Study
    from interp.runs.budget import TaskPlanned
    from interp.runs.progress import Progress, Standing

StudyArgument = Annotated[
    Path | None, typer.Argument(help="A study file (TOML); flags override it.")
]
Models = Annotated[
    list[str] | None, typer.Option(help="Model name, folder, GGUF file or Hugging Face id.")
]
Tasks = Annotated[list[str] | None, typer.Option(help="Task name or .jsonl file.")]
Analyses = Annotated[
    list[str] | None,
    typer.Option(
        help="Analysis, or a .py file with one; all that suit the task, if none is named."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="ANALYSIS.PARAMETER=VALUE; items with commas between them."),
]
On = Annotated[
    list[str] | None,
    typer.Option(help="ANALYSIS=TASK,… for one that runs on some of the tasks only."),
]
PromptCount = Annotated[int | None, typer.Option(help="Prompts per task.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Out = Annotated[Path, typer.Option("--out", help="The run folder.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="Where clean activations are kept: a folder or URL (default: next to the run)."
    ),
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Keep no activations.")]
Workers = Annotated[int, typer.Option(help="Processes (with --ray: actors) that share the work.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster: auto, HOST:PORT, or local.")
]
Gpus = Annotated[
    float | None, typer.Option(help="GPUs of each Ray actor (default: 1 where there are any)")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 (default: the checkpoint's; on a CPU, what is fast)"
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread models over devices (auto), or leave their blocks on disk (disk)."),
]
Chat = Annotated[
    bool,
    typer.Option("--chat", help="Texts are what a user says; put them into the chat template."),
]
Columns = Annotated[
    str | None, typer.Option(help="Keys of task files, such as text=question,answer=gold")
]
Space = Annotated[
    str | None, typer.Option(help="Between text and answer: auto (by script), always, never.")
]
Against = Annotated[
    str | None, typer.Option(help="A second model, for the analyses that compare two.")
]
Budget = Annotated[
    str | None,
    typer.Option(help="Minutes that a run without named analyses may take (default: 10), or none."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run, and its cost.")]
NoWeights = Annotated[
    bool, typer.Option("--no-weights", help="With --dry-run: load no model, reckon from configs.")
]
Assume = Annotated[
    str | None,
    typer.Option(help="With --dry-run: KEY=VALUE,… of machines, such as gpu_memory=141,disk=5"),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print what happens as JSON, one event per line.")
]


def run(
    study: StudyArgument = None,
    model: Models = None,
    task: Tasks = None,
    analysis: Analyses = None,
    set_: Settings = None,
    on: On = None,
    n: PromptCount = None,
    seed: Seed = None,
    folder: Out = Path("runs/run"),
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 1,
    ray: RayAddress = None,
    gpus: Gpus = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    chat: Chat = False,
    columns: Columns = None,
    space: Space = None,
    budget: Budget = None,
    against: Against = None,
    dry_run: DryRun = False,
    no_weights: NoWeights = False,
    assume: Assume = None,
    as_json: AsJson = False,
) -> None:
    """Run analyses into a run folder; call again to resume. Ctrl-C once finishes what is under way.

    Examples:
    interp run --model zoo/hops-4l --task two-hop --out runs/first
    interp run --model my-model --task my.jsonl --analysis layer_skip --set layer_skip.part=mlp
    interp run --model tuned --against base --task my.jsonl --analysis depth_map
    interp run study.toml --workers 2
    interp run --model my-70b --task two-hop --dry-run --assume gpu_memory=141
    """
    keys = None if columns is None else parse_columns(columns)
    only = parse_on(on) if on else None
    if not dry_run and (no_weights or assume is not None):
        raise RunError("--no-weights or --assume given; they are for --dry-run")
    flags = StudyFlags(
        model, task, n, seed, dtype, device_map, chat or None, keys, space, budget, only, against
    )
    asked = study_of(study, flags, analyses=analysis or [], settings=set_ or [])
    _hide_loading_bars()
    check_own(asked)
    if dry_run:
        plan(asked, assume or "", n_workers=workers, never_loads=no_weights, as_json=as_json)
        _warn_of_other(asked, folder)
        return
    kept = None if no_store else store or str(folder.parent / "store")
    how: dict[str, Any] = {"store": kept, "workers": workers, "ray": ray, "gpus": gpus}
    _execute(asked, folder, how, as_json=as_json)


def _warn_of_other(study: "Study", folder: Path) -> None:
    """Say that a folder holds a run of something else, which the run itself would refuse."""
    from interp.runs.record import begun

    try:
        begun(study, folder)
    except RunError as error:
        note(f"interp: {error}", style="red")


def _hide_loading_bars() -> None:
    """Let transformers draw no bars of its own between ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def _execute(study: "Study", folder: Path, how: dict[str, Any], *, as_json: bool) -> None:
    """Run a study and print what became of it; exit with 1 if a cell failed or none is finished."""
    from interp.runs import execute
    from interp.runs.memory import return_large_blocks

    return_large_blocks()

    def announce(planned: "TaskPlanned") -> None:
        print_plan(planned.costs, err, n_workers=how["workers"])
        if as_json:
            events.say_plan(planned)

    if as_json:
        events.say_started(study, folder)
        how |= {"on_cell": events.say_cell}
    try:
        with watching() as hear:
            progress = _also_said(hear) if as_json else hear
            record = execute(study, folder, announce=announce, progress=progress, **how)
    except KeyboardInterrupt:
        if as_json:
            events.say_interrupted()
        raise
    statuses = {cell["status"] for cell in record["cells"].values()}
    status = 1 if "failed" in statuses or "ok" not in statuses else 0
    if as_json:
        events.say_finished(record, status=status)
    else:
        _print_cells(record["cells"], folder)
    if status:
        raise typer.Exit(status)


def _also_said(hear: "Progress") -> "Progress":
    """Return what shows progress on stderr and says it as an event."""

    def hear_and_say(standing: "Standing") -> None:
        hear(standing)
        events.say_progress(standing)

    return hear_and_say


def _print_cells(cells: dict[str, dict[str, Any]], folder: Path) -> None:
    from interp.cli.results import print_results

    by_cell = {Cell.of(path, cell): cell for path, cell in cells.items()}
    print_results(by_cell, has_sentences=is_verbose())
    n_finished = sum(cell["status"] == "ok" for cell in cells.values())
    how = f"; look at them with `interp report {folder}` or `interp view {folder}`"
    say(f"{n_finished} finished in {folder}{how if n_finished else ''}")
