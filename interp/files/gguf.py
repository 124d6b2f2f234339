"""GGUF files: what is in one, by its header, and the model in it, dequantised."""

import struct
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import ModelError

if TYPE_CHECKING:
    import torch

_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9  # kinds of values of any size
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NOT_KEPT = ("quantization_config", "_model_name_or_path")
_NO_TOKENIZER = ("none", "no_vocab")
_LEFT_OUT = 4  # names that an error lists


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file: its shape (first axis fastest), its type's number, and where it begins.

    `start` is in bytes after the header.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: its architecture, the kind of its tokenizer, its tensors by name.

    `tokenizer` is "" if there is none.
    """

    path: Path
    architecture: str
    tokenizer: str
    tensors: dict[str, GgufTensor]

    @property
    def types(self) -> dict[str, int]:
        """Return how many weights the file has of each type, by the type's name ("Q4_1")."""
        from gguf import GGMLQuantizationType

        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = GGMLQuantizationType(tensor.kind).name
            counts[name] = counts.get(name, 0) + prod(tensor.shape)
        return counts

    @property
    def stored(self) -> str:
        """Return the type of most weights: torch's name of a float, or GGUF's of blocks."""
        types = self.types
        most = max(types, key=lambda name: types[name])
        return _FLOATS.get(most, most)

    @property
    def is_quantised(self) -> bool:
        """Tell whether weights are kept in blocks."""
        return not {*self.types} <= {*_FLOATS}

    @property
    def about(self) -> str:
        """Say what weights are made from, if they were quantised; "" if not."""
        return f"{self.path.name}, dequantised from {self.stored}" if self.is_quantised else ""


def read_gguf(path: Path) -> GgufFile:
    """Return what is in a GGUF file; the weights are not read.

    Raises ModelError, in one line, for a file that is another one, cut off, in several parts or of
    unknown types, and without the package `gguf`.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"{path} is a GGUF file; the package gguf reads it: `pip install gguf`")
    try:
        file, end = _header(path)
    except (struct.error, IndexError, UnicodeDecodeError, KeyError):
        raise ModelError(f"{path} is no whole GGUF file: its header is cut off") from None
    _check_tensors(file, end)
    return file


def _header(path: Path) -> tuple[GgufFile, int]:
    """Return a file's header, and where its tensors begin."""
    with path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF")
        with mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
            return _read_header(path, _Reader(content))


def _read_header(path: Path, reader: "_Reader") -> tuple[GgufFile, int]:
    (version,) = reader.numbers("I")
    if version not in (2, 3):
        raise ModelError(f"{path} is GGUF version {version}; versions 2 and 3 are read")
    n_tensors, n_values = reader.numbers("QQ")
    values = {reader.text(): reader.value() for _ in range(n_values)}
    if (parts := values.get("split.count") or 1) > 1:
        part = f"{path} is one of {parts} parts of a model"
        raise ModelError(f"{part}; join them first (llama-gguf-split --merge)")
    tensors = {reader.text(): _tensor(reader) for _ in range(n_tensors)}
    align = values.get("general.alignment") or 32
    end = -(-reader.at // align) * align
    kind = values.get("tokenizer.ggml.model", "none")
    tokenizer = "" if kind in _NO_TOKENIZER else str(kind)
    return GgufFile(path, str(values["general.architecture"]), tokenizer, tensors), end


def _tensor(reader: "_Reader") -> GgufTensor:
    (n_axes,) = reader.numbers("I")
    shape = reader.numbers("Q" * n_axes)
    kind, start = reader.numbers("IQ")
    return GgufTensor(shape, kind, start)


class _Reader:
    """Reads a header from its fifth byte on; texts in arrays are passed over."""

    def __init__(self, content: mmap) -> None:
        self.content, self.at = content, 4

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        """Return little-endian numbers of these kinds (of `struct`), without padding."""
        found = struct.unpack_from(f"<{kinds}", self.content, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        found = self.content[self.at : self.at + length].decode()
        self.at += length
        return found

    def value(self) -> Any:
        """Return a value with its kind in front; None for an array."""
        (kind,) = self.numbers("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.numbers(_SIZES[kind])[0]
        inner, count = self.numbers("IQ")
        if inner != _STRING:
            self.at += count * struct.calcsize(f"<{_SIZES[inner]}")
            return None
        for _ in range(count):
            (length,) = self.numbers("Q")
            self.at += length
        return None


def _check_tensors(file: GgufFile, end: int) -> None:
    """Raise ModelError for a type that is unknown, and for tensors after the end of the file."""
    from gguf import GGML_QUANT_SIZES

    size = file.path.stat().st_size
    for name, tensor in file.tensors.items():
        known = {int(kind): about for kind, about in GGML_QUANT_SIZES.items()}.get(tensor.kind)
        if known is None:
            unknown = f"{name} has type {tensor.kind}, which the package gguf does not know"
            raise ModelError(f"{file.path}: {unknown}; is there a newer one?")
        last = end + tensor.start + prod(tensor.shape) // known[0] * known[1]
        if last > size:
            cut = f"{name} ends at byte {last:,}, the file at {size:,}"
            raise ModelError(f"{file.path} is cut off: {cut}")


def load_gguf(file: GgufFile, *, dtype: "torch.dtype", **how: Any) -> Any:
    """Return the module of a GGUF file, its weights dequantised and rounded to `dtype`.

    It is what the Hugging Face folder of these weights would be: it can be saved, and its config
    says what it was `made_from`, if that was quantised. `how` is for `from_pretrained`. Raises
    ModelError for an architecture that transformers does not map, and for tensors that it leaves
    out.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    if (gguf_config := getattr(transformers, "GgufConfig", None)) is not None:
        how["quantization_config"] = gguf_config(dequantize=True)  # else it may stay in blocks
    where = {"gguf_file": file.path.name, "local_files_only": True, "output_loading_info": True}
    try:
        with redirect_stderr(StringIO()):  # bars that transformers cannot switch off
            module, info = AutoModelForCausalLM.from_pretrained(
                file.path.parent, dtype=dtype, **where, **how
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, NotImplementedError) as error:
        raise _why_not(file, error) from None
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(module).pop(name, None)
    for name in _NOT_KEPT:
        vars(module.config).pop(name, None)
    module.config.architectures = [type(module).__name__]
    if file.is_quantised:
        module.config.made_from = file.about
    _refuse_left_out(file, module)
    return module, info


def _why_not(file: GgufFile, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "not supported" in reason or "Unknown gguf model_type" in reason or "mapping" in reason:
        no = f"transformers has no mapping for the GGUF architecture {file.architecture!r}"
        return ModelError(
            f"{file.path}: {no}; give the Hugging Face folder of the model that it was made from"
        )
    return ModelError(f"{file.path} ({file.architecture}) cannot be loaded ({reason})")


def _refuse_left_out(file: GgufFile, module: Any) -> None:
    """Raise ModelError if the file holds more weights than the model has: another one's, in part.

    Llama 3.1's rope_freqs, for example, are not read, and change what every position means.
    """
    tensors = dict(file.tensors)
    if module.config.get_text_config().tie_word_embeddings:
        tensors.pop("output.weight", None)
    held = sum(prod(tensor.shape) for tensor in tensors.values())
    saved = module.state_dict().keys()
    own = sum(weight.numel() for weight in module.parameters()) + sum(
        buffer.numel() for name, buffer in module.named_buffers() if name in saved
    )
    if held > own:
        odd = [name for name in tensors if "rope" in name] or [*tensors][:_LEFT_OUT]
        counts = f"{held:,} weights in the file, {own:,} in the model made from it"
        raise ModelError(f"{file.path}: {counts}; transformers leaves some out ({', '.join(odd)})")
