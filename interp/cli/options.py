"""Options that commands share, and where --json and --debug are kept for errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp.cli.terminal import note

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Revision = Annotated[str | None, typer.Option(help="Branch or commit of the hub.")]
TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the checkpoint.")]


@dataclass
class Shared:
    """How errors are shown; `main` passes it to the command line, which fills it in."""

    as_json: bool = False
    debug: bool = False


class Commands(TyperGroup):
    """The commands; --debug may stand anywhere, and --json holds even for a wrong command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note both flags before anything is parsed, which may fail, and put --debug in front."""
        shared = ctx.ensure_object(Shared)
        shared.as_json, shared.debug = "--json" in args, "--debug" in args
        words = [word for word in args if word != "--debug"]
        return super().parse_args(ctx, ["--debug", *words] if shared.debug else words)

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command; an interruption exits with status 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("interp: interrupted; the same command resumes")
            raise typer.Exit(130) from None


def complete_runs(incomplete: str) -> list[str]:
    """Return folders with a run whose names begin so, for the shell's completion."""
    parent = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    runs = [*parent.glob("*/run.json"), *parent.glob("*/*/run.json")]
    folders = sorted(str(path.parent) for path in runs)
    return [folder for folder in folders if folder.startswith(incomplete.removeprefix("./"))]


RunArgument = Annotated[Path, typer.Argument(help="A run folder.", autocompletion=complete_runs)]
