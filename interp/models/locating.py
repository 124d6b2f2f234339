"""From a model's name to a folder, a GGUF file, or a repository of the hub."""

import json
import re
from difflib import get_close_matches
from pathlib import Path

from interp.errors import ModelError, UnknownModelError, unknown
from interp.files.fetched import FETCHED, folder_of, is_there
from interp.files.paths import shipped_models
from interp.models.network import offline_without_network

ADAPTER = "adapter_config.json"
UNTRAINED = re.compile(r"(?P<base>.+)@untrained(-(?P<seed>\d+))?")
DERIVED = re.compile(  # see `interp.models.derived`
    r"(?P<base>.+)@(bits-(?P<bits>\d+)(:(?P<first>\d+)-(?P<last>\d+))?"
    r"|loop-(?P<shared>\d+)(-(?P<init>average|stepwise|lower))?)"
)
GGUF = ".gguf"
_ONE_FILE = (GGUF, ".safetensors", ".bin", ".pt", ".pth")
_OF_HUB = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)/(?P<file>.+\.gguf)")


def with_gguf(name: str, gguf_file: str | None) -> str:
    """Return the name of one GGUF file of a folder or repository: NAME/FILE."""
    if gguf_file is None:
        return name
    if not gguf_file.endswith(GGUF):
        raise ModelError(f"gguf_file={gguf_file!r} given; the name of a .gguf file is needed")
    if twin := UNTRAINED.fullmatch(name) or DERIVED.fullmatch(name):
        return f"{with_gguf(twin['base'], gguf_file)}{name.removeprefix(twin['base'])}"
    return f"{name.rstrip('/')}/{gguf_file}"


def file_on_hub(source: str) -> tuple[str, str] | None:
    """Return repository and file of "owner/name/x.gguf"; None for what is, or would be, local."""
    found = _OF_HUB.fullmatch(source)
    if found is None or Path(source).parent.is_dir():
        return None
    return found["repository"], found["file"]


def base_of(adapter: str) -> str:
    """Return the base that a PEFT adapter's folder names; raise ModelError if it names none."""
    file = Path(adapter) / ADAPTER
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base or not isinstance(base, str):
        raise ModelError(f"{file} names no base_model_name_or_path")
    return base


def locate(name: str, *, needs_weights: bool = True) -> str:
    """Return the folder, GGUF file or hub id of a name; raise ModelError if it can name none.

    A folder must hold weights, unless it `needs_weights` no more than a config.json.
    """
    if twin := UNTRAINED.fullmatch(name) or DERIVED.fullmatch(name):
        return locate(twin["base"], needs_weights=needs_weights)
    shipped, path = shipped_models(), Path(name)
    if name in shipped:
        return str(shipped[name])
    if name.startswith("zoo/"):
        raise UnknownModelError(unknown("model", name, shipped))
    if name in FETCHED:
        return _fetched(name)
    if path.suffix == GGUF and path.is_file():
        return name
    if file_on_hub(name):
        offline_without_network()
        return name
    if path.is_file() or (path.suffix in _ONE_FILE and not path.exists()):
        raise UnknownModelError(_instead_of(path))
    if not path.is_dir() and (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ):
        what_there_is = f"{shipped_or_near(name)}, a hub id (owner/name), or a folder"
        raise UnknownModelError(f"there is no folder {name}{nearest(name)}; {what_there_is}")
    if path.is_dir() and not (path / ADAPTER).is_file():
        return _only_gguf(path, needs_weights=needs_weights) or name
    offline_without_network()
    return name


def _fetched(name: str) -> str:
    if Path(name).is_dir():
        raise ModelError(
            f"{name} is a model that `interp get` fetches, and a folder here;"
            f" ./{name} means the folder"
        )
    if not is_there(name):
        raise UnknownModelError(
            f"{name} ({FETCHED[name].about}) is not on this machine;"
            f" `interp get {name}` fetches it once"
        )
    return str(folder_of(name))


def _only_gguf(folder: Path, *, needs_weights: bool) -> str:
    """Return the one GGUF file of a folder without other weights; "" if it has those.

    Raises ModelError if the folder is no model's, and for several files.
    """
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    packed = sorted(folder.glob(f"*{GGUF}"))
    if not weights and len(packed) > 1:
        names = ", ".join(path.name for path in packed)
        raise ModelError(
            f"folder {folder} has {len(packed)} GGUF files; name one"
            f" ({packed[0]}, or gguf_file=): {names}"
        )
    if not weights and packed:
        return str(packed[0])
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"folder {folder} has no config.json; a Hugging Face model folder is needed"
        )
    if not weights and needs_weights:
        what_there_is = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise ModelError(f"folder {folder} has no weights; there is {what_there_is}")
    return ""


def _instead_of(path: Path) -> str:
    """Return what to give instead of a single file that is no model."""
    if not path.exists():
        if path.suffix != GGUF:
            needed = "a model is a folder with config.json and weights"
            return f"there is no file {path}{nearest(str(path))}; {needed}"
        others = ", ".join(sorted(other.name for other in path.parent.glob(f"*{GGUF}")))
        there_is = nearest(str(path)) or (f"; there is {others}" if others else "")
        return f"there is no file {path}{there_is}"
    if (path.parent / "config.json").is_file():
        return f"{path} is one file; give the folder with config.json that it is in: {path.parent}"
    return f"{path} is one file; give a folder with config.json, weights and tokenizer"


def nearest(name: str) -> str:
    """Return a hint at the file or folder next to a path with the most similar name."""
    path = Path(name).expanduser()
    neighbours = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, neighbours, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def shipped_or_near(name: str) -> str:
    """Say which models there are by name, and which of them is meant, if one is near."""
    return unknown("model", name, [*shipped_models(), *FETCHED])
