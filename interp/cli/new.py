"""`interp new` writes a file to begin with."""

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import AsJson
from interp.cli.terminal import say, say_document
from interp.errors import AnalysisError
from interp.files.whole import write_atomically

app = typer.Typer(no_args_is_help=True, help="Write a file to begin with: an analysis of your own.")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")  # a class's name in snake case
_TEMPLATE = Path(__file__).with_name("template.py")


@app.command()
def analysis(
    name: Annotated[str, typer.Argument(help="Of the analysis: lower case, such as my_norm.")],
    as_json: AsJson = False,
) -> None:
    """Write NAME.py here: a small analysis that works, to be made yours.

    Example: interp new analysis my_norm
    """
    path = Path(f"{name}.py")
    _refuse(name, path)
    class_name = "".join(map(str.capitalize, name.split("_")))
    text = _TEMPLATE.read_text(encoding="utf-8").replace("StreamLength", class_name)
    write_atomically(path, text.replace("stream_length", name))
    asked = f"--model zoo/hops-4l --task two-hop --n 32 --analysis ./{path}"
    command = f"interp run {asked} --out runs/{name}"
    if as_json:
        say_document("new", file=str(path), command=command)
    else:
        say(f"{path} is a small analysis that works; make it yours. It runs with\n{command}")


def _refuse(name: str, path: Path) -> None:
    """Raise AnalysisError for a name that cannot be an analysis's, and for a file that is there."""
    from interp.runs.questions import declared_in_files

    if _NAME.fullmatch(name) is None or keyword.iskeyword(name):
        raise AnalysisError(f"{name!r} given; words in lower case are needed, such as my_norm")
    if name in declared_in_files():
        raise AnalysisError(f"{name} is an analysis that is there already; choose another name")
    if path.exists():
        raise AnalysisError(f"{path} is there already; choose another name, or delete it")
    if importlib.util.find_spec(name) is not None:
        raise AnalysisError(f"{path} would hide the module {name}; choose another name")
