"""`python -m interp.atlas RUN... --out docs/atlas` writes the atlas's pages from finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from interp.atlas.pages import write_atlas


def main(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, such as of studies/atlas-*.")],
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("docs/atlas"),
    pictures: Annotated[bool, typer.Option(help="Draw what is known of each model anew.")] = True,
) -> None:
    """Write a page for every model of finished runs, and the table of claims."""
    for path in write_atlas(runs, out, has_pictures=pictures):
        typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
