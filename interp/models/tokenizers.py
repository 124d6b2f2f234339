"""The tokenizer of a checkpoint, or one that is given."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoTokenizer

from interp.errors import ModelError
from interp.files.gguf import read_gguf
from interp.models.locating import ADAPTER, GGUF, base_of, locate

_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "spiece*")


def load_tokenizer(source: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Return a checkpoint's tokenizer, None without one; raise ModelError if it does not load.

    A GGUF file has its own.
    """
    adapter = Path(source) / ADAPTER
    if adapter.is_file() and not _tokenizer_files(source):
        source = locate(base_of(source), needs_weights=False)
    where, how = source, {"revision": revision, "trust_remote_code": trust_remote_code}
    if source.endswith(GGUF):
        file = read_gguf(Path(source))
        if not file.tokenizer:
            return None
        where, how = str(file.path.parent), {"gguf_file": file.path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **how)
    except (OSError, ValueError, ImportError, KeyError, NotImplementedError) as error:
        if (Path(source).is_dir() and not _tokenizer_files(source)) or isinstance(
            error, EntryNotFoundError
        ):
            return None
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"the tokenizer of {source} cannot be loaded ({reason})") from None
    return tokenizer if has_words(tokenizer) else None


def given_tokenizer(tokenizer: Any) -> Any:
    """Return a given tokenizer, None for one without words; raise ModelError for anything else."""
    if tokenizer is None:
        return None
    if not callable(tokenizer):
        raise ModelError(
            f"tokenizer={tokenizer!r:.80} given; a tokenizer is needed"
            " (AutoTokenizer.from_pretrained)"
        )
    return tokenizer if not hasattr(tokenizer, "get_vocab") or has_words(tokenizer) else None


def _tokenizer_files(folder: str) -> list[Path]:
    return [path for pattern in _FILES for path in Path(folder).glob(pattern)]


def has_words(tokenizer: Any) -> bool:
    """Tell whether a tokenizer has more than special tokens; transformers makes empty ones."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return bool({*tokenizer.get_vocab()} - special)
