"""`interp view` opens the viewer on a folder of runs."""

import signal
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.terminal import note, say


def view(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(help="Port (default: the first free one from 8501 on).")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine can connect.")
    ] = "localhost",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    page: Annotated[
        str, typer.Option("--open", help="Page and selection, such as skip?run=first&layer=2")
    ] = "",
) -> None:
    """Look at runs in a browser; Ctrl-C ends it.

    Examples: interp view runs · interp view runs/first --port 8600 --no-browser
    """
    from interp.runs.viewing import LOCAL, served, start

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the viewer's process is ended too

    if host not in LOCAL:
        root, _ = served(folder)
        note(f"interp: listening on {host}: whoever reaches it can read all runs in {root}")
    with start(folder, port=port, host=host, page=page) as viewer:
        say(viewer.url)
        if not no_browser:
            webbrowser.open(viewer.url)
        try:
            viewer.process.wait()
        except KeyboardInterrupt:
            note("interp: the viewer is closed")
