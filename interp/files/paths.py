"""Where the library's own data are: the shipped models, dictionaries and prompts."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of the library's data: in the package, or next to it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


def shipped_models() -> dict[str, Path]:
    """Map the names of the shipped models (`zoo/hops-4l`) to their folders."""
    folders = sorted((data_folder() / "zoo").glob("*/config.json"))
    return {f"zoo/{config.parent.name}": config.parent for config in folders}


def shipped_tasks() -> dict[str, Path]:
    """Map the names of the built-in tasks (`two-hop`) to their prompt files."""
    return {path.stem: path for path in sorted((data_folder() / "tasks").glob("*.jsonl"))}


def shipped_dictionaries() -> dict[str, Path]:
    """Map the names of the shipped dictionaries (`names-6l/resid_pre.3`) to their folders."""
    folders = sorted((data_folder() / "dictionaries").glob("*/*/cfg.json"))
    return {
        f"{config.parent.parent.name}/{config.parent.name}": config.parent for config in folders
    }


def cache_folder() -> Path:
    """Return the folder for fetched files: `interp` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"
