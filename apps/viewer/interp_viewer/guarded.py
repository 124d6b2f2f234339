"""Which files are read at all: those inside the folder of runs and small enough to open."""

from pathlib import Path

from interp.errors import RunError

LARGEST_FILE = 512 * 2**20


def inside(root: Path, path: Path) -> Path:
    """Return a path; raise RunError if it is, or links to, something outside `root`."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise RunError(f"{path} leads out of {root}; only what is inside is shown")
    return path


def require_small(path: Path, *, most: int = LARGEST_FILE) -> Path:
    """Return a path; raise RunError if the file is missing or too large to open here."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); the same `interp run` makes it again"
        ) from None
    if size > most:
        raise RunError(
            f"{path} has {size / 2**20:,.0f} MB;"
            f" the viewer opens files of up to {most / 2**20:,.0f} MB"
        )
    return path
