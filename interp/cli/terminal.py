"""What commands say: results on stdout, everything else on stderr; JSON where it is asked for."""

import json
import logging
import math
import os
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.padding import Padding
from rich.text import Text

SCHEMA = 1  # of the documents that commands print; see documents.schema.json
out = Console()
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 200  # a file or a pipe: no table is cut to a screen that is not there
err = Console(stderr=True)


def say(text: str) -> None:
    """Print a result as it is: no markup, no wrapping."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def say_words(text: str | Text, *, indent: int = 0) -> None:
    """Print a result, on a terminal in lines that end between words; in a file as it is."""
    whole = Text(text) if isinstance(text, str) else text
    if out.is_terminal:
        out.print(Padding(whole, (0, 0, 0, indent)))
    else:
        out.print(Text(" " * indent).append(whole), soft_wrap=True)


def note(text: str, *, style: str | None = None) -> None:
    """Print to stderr what is not a result."""
    err.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def is_verbose() -> bool:
    """Tell whether -v was given."""
    return any(isinstance(h, RichHandler) for h in logging.getLogger("interp").handlers)


def say_json(value: Any) -> None:
    """Print a value as JSON, on one line; numbers that are not finite become null."""
    line = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()  # whoever follows a run reads each event as it happens
    except BrokenPipeError:
        out.on_broken_pipe()


def say_document(name: str, /, **fields: Any) -> None:
    """Print a command's answer as JSON, headed by its name and version; `interp schema NAME`."""
    say_json({"document": name, "schema": SCHEMA, **fields})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def set_verbosity(*, is_quiet: bool, verbose: int) -> None:
    """Show on stderr only errors, or more: 1 what a run does, 2 everything."""
    err.quiet = is_quiet
    logger = logging.getLogger("interp")
    for handler in [h for h in logger.handlers if isinstance(h, RichHandler)]:
        logger.removeHandler(handler)
    if verbose:
        logger.addHandler(RichHandler(console=err, show_path=False, markup=False))
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
