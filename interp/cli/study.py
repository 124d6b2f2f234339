"""What `interp run` is asked for, by a study file and flags; `interp validate` checks a file."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.options import AsJson
from interp.cli.own import check_own
from interp.cli.terminal import say, say_document
from interp.errors import AnalysisError, InterpError, RunError, unknown

if TYPE_CHECKING:
    from interp.runs import Study

_MINUTES = 10.0  # that a run may take where no analysis is named


@dataclass(frozen=True)
class StudyFlags:
    """Flags that override the study's fields of the same names; None where a flag is not given."""

    models: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    n: int | None = None
    seed: int | None = None
    dtype: str | None = None
    device_map: str | None = None
    chat: bool | None = None
    columns: Mapping[str, str] | None = None
    space: str | None = None
    budget: str | None = None
    on: Mapping[str, tuple[str, ...]] | None = None
    against: str | None = None


def study_of(
    path: Path | None, flags: StudyFlags, *, analyses: Sequence[str], settings: Sequence[str]
) -> "Study":
    """Return the study that a file and flags describe.

    `analyses` are those to run (if neither they nor the file name any, all that suit and fit into
    10 minutes or another budget), `settings` their ANALYSIS.PARAMETER=VALUE. Raises RunError or
    AnalysisError for what does not exist.
    """
    from interp.parameters import hints_of, parse
    from interp.runs import Study, find_analyses
    from interp.runs.registry import name_and_file

    fields = {} if path is None else read_study(path)
    fields |= {name: value for name, value in vars(flags).items() if value is not None}
    if flags.budget is not None:
        fields["budget"] = parse(hints_of(Study)["budget"], flags.budget, "--budget")
    parameters: dict[str, dict[str, Any]] = fields.pop("analyses", {})
    if analyses:
        given = {name_and_file(key)[0]: key for key in parameters}
        asked = [given.get(name_and_file(key)[0], key) for key in analyses]
        parameters = {key: parameters.get(key, {}) for key in asked}
    if not parameters:
        parameters = {name: {} for name in find_analyses()}
        fields = {"budget": _MINUTES} | fields | {"only_fitting": True}
    for needed in ("models", "tasks"):
        if not fields.get(needed):
            raise RunError(f"no {needed[:-1]} given; name one with --{needed[:-1]}")
        fields[needed] = tuple(fields[needed])
    study = Study(**fields, analyses=parameters)
    return replace(study, analyses=_set(study, settings))


def parse_columns(text: str) -> dict[str, str]:
    """Return the map that FIELD=COLUMN,… on the command line describes."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(field.strip() and column.strip() for field, _, column in pairs):
        raise RunError(
            f"--columns {text!r} given; FIELD=COLUMN,… is needed, such as text=question,answer=gold"
        )
    return {field.strip(): column.strip() for field, _, column in pairs}


def parse_on(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the map that several ANALYSIS=TASK,… on the command line describe."""
    pairs = [text.partition("=") for text in given]
    for text, (analysis, _, tasks) in zip(given, pairs, strict=True):
        if not analysis.strip() or not tasks.strip():
            raise RunError(f"--on {text!r} given; ANALYSIS=TASK,… is needed")
    on: dict[str, tuple[str, ...]] = {}
    for name, _, tasks in pairs:
        more = (*on.get(name.strip(), ()), *tasks.split(","))
        on[name.strip()] = tuple(dict.fromkeys(more))
    return on


def _set(study: "Study", settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the study's analyses with parameters as ANALYSIS.PARAMETER=VALUE, … say."""
    from interp.runs.folder import Cell
    from interp.runs.registry import parse_parameter

    parameters = {name: dict(values) for name, values in study.analyses.items()}
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, _, parameter = target.rpartition(".")
        if not (name and parameter and equals):
            raise RunError(f"--set {setting!r} given; ANALYSIS.PARAMETER=VALUE is needed")
        analysis = Cell.parse("", "", name).analysis
        file = study.files.get(analysis, "")
        value = parse_parameter(analysis, parameter, text, file=file)
        if name not in parameters:
            names = ", ".join(parameters)
            raise RunError(f"--set {setting!r} given; the analyses of this run are {names}")
        parameters[name][parameter] = value
    return parameters


def read_study(path: Path) -> dict[str, Any]:
    """Return the fields that a study file gives, converted to their declared types.

    Raises RunError if it is not a study file, and for keys or values that cannot be.
    """
    from interp.parameters import coerce, hints_of
    from interp.runs import Study

    if not path.is_file():
        raise RunError(f"no study file {path}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not TOML ({error})") from None
    hints = {name: hint for name, hint in hints_of(Study).items() if name != "files"}
    for key in given:
        if key not in hints:
            raise RunError(f"{path}: {unknown('key', key, hints)}")
    try:
        if given.get("budget") == "none":
            given["budget"] = None
        return {key: coerce(hints[key], value, key) for key, value in given.items()}
    except AnalysisError as error:
        raise RunError(f"{path}: {error}") from None


def validate(
    study: Annotated[Path, typer.Argument(help="A study file (TOML).")],
    as_json: AsJson = False,
) -> None:
    """Check a study file without running it; exit status 2, with a suggestion, if it is wrong.

    Example: interp validate studies/demo.toml
    """
    fields = read_study(study)
    from interp.runs import Study

    for needed in ("models", "tasks", "analyses"):
        if not fields.get(needed):
            raise RunError(f"{study} names no {needed}")
    try:
        checked = Study(**fields)
        checked.check()
        check_own(checked)
    except InterpError as error:
        raise RunError(f"{study}: {error}") from None
    paths = [cell.path for cell in checked.cells()]
    if as_json:
        say_document("validate", valid=True, cells=paths)
        return
    then = f"`interp run {study} --dry-run` says what they cost"
    say(f"{study} is valid: {len(paths)} cells; {then}")
