"""What does each layer of a language model do, what needs it, and is the depth used?

Exit status: 0 ok; 1 a cell failed (run), a figure (export), damage (doctor, store verify) or a
difference (diff); 2 bad input; 70 a bug; 130 interrupted. Results are on stdout, everything else on
stderr; --json prints one document, also for errors, and, for a run, one event per line.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Protocol, runtime_checkable

import typer

from interp import __version__
from interp.cli.compare import compare
from interp.cli.doctor import doctor
from interp.cli.export import export
from interp.cli.get import get
from interp.cli.listing import list_
from interp.cli.look import diff, show
from interp.cli.new import app as new
from interp.cli.options import Commands, Shared
from interp.cli.report import report
from interp.cli.run import run
from interp.cli.schemas import schema
from interp.cli.sites import sites
from interp.cli.store import app as store
from interp.cli.study import validate
from interp.cli.terminal import err, note, say, say_document, set_verbosity
from interp.cli.view import view
from interp.errors import InterpError

BAD_INPUT, BUG, INTERRUPTED = 2, 70, 130  # exit statuses; 1 is an answer of a command's own
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="\n\n".join(" ".join(part.split()) for part in __doc__.split("\n\n")),
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Begin": (list_, get, doctor, sites),
    "Run and look": (run, show, report, view, export, compare, diff),
    "Studies, stores and programs": (validate, schema),
}
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)
app.add_typer(new, name="new", rich_help_panel=next(iter(_PANELS)))
app.add_typer(store, name="store", rich_help_panel=[*_PANELS][-1])


@runtime_checkable
class _UsageError(Protocol):
    """Typer's errors about words on the command line; their module is private to Typer."""

    def format_message(self) -> str: ...

    def show(self) -> None: ...


def main() -> None:
    """Run a command; an error is one line on stderr, a bug a traceback above it."""
    shared = Shared()
    try:
        sys.exit(app(standalone_mode=False, obj=shared))
    except KeyboardInterrupt:  # while commands are made; `Commands` sees to all others
        sys.exit(INTERRUPTED)
    except Exception as error:
        is_bug = not isinstance(error, InterpError | OSError | _UsageError)
        if shared.debug or is_bug:
            traceback.print_exc()
        status = BUG if is_bug else BAD_INPUT
        _explain(error, status, as_json=shared.as_json)
        sys.exit(status)


def _explain(error: Exception, status: int, *, as_json: bool) -> None:
    err.quiet = False
    if isinstance(error, _UsageError) and not as_json:
        error.show()
        return
    message = error.format_message() if isinstance(error, _UsageError) else str(error)
    kind = type(error).__name__
    if as_json:
        about = {"kind": kind, "message": message}
        say_document("error", exit_status=status, error=about)
    said = f"a bug ({kind}: {message})" if status == BUG else message
    note(f"interp: {said}", style="red")


def _version(is_asked: bool) -> bool:
    if is_asked:
        say(f"interp {__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def common(
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Show more; -vv shows everything.")
    ] = 0,
    debug: Annotated[  # noqa: ARG001
        bool, typer.Option("--debug", help="Show tracebacks; may follow a command too.")
    ] = False,
) -> None:
    """Set what every command shares; `Commands` has read `debug`."""
    set_verbosity(is_quiet=quiet, verbose=verbose)
