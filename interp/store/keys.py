"""What prompts and sites are called in a store: hashes and plain words, never paths."""

import hashlib
import json
import re
from collections.abc import Sequence

from interp.errors import SiteError
from interp.sites import KINDS, Site

TOKENS = "tokens"
_PER_PAIR = (
    "attn_scores",
    "pattern",
)  # [head query key]: no axis of tokens to put prompts one after the other
_KINDS = ("resid", *(kind for kind in KINDS if kind not in ("resid_pre", "resid_post", *_PER_PAIR)))
_TENSOR = re.compile(rf"({'|'.join(_KINDS)})\.\d{{1,6}}|{TOKENS}")
_SHARD = re.compile(r"[0-9a-f]{24}\.safetensors")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,99}")


def prompt_key(context: Sequence[str], token_ids: Sequence[int]) -> str:
    """Return the key of a prompt's activations; `context` is all else that they depend on."""
    return hashlib.blake2b(
        json.dumps([*context, list(token_ids)]).encode(), digest_size=16
    ).hexdigest()


def stored_name(site: Site) -> str:
    """Return the name of a site's tensor: `resid.I` before layer I, else `KIND.LAYER`.

    After the last layer, I is the number of layers. Raises SiteError for sites without an axis of
    tokens.
    """
    if site.kind in _PER_PAIR:
        raise SiteError(
            f"{site} given;"
            " sites with one value per token can be stored, not those per pair of tokens"
        )
    match site.kind:
        case "resid_pre":
            return f"resid.{site.layer}"
        case "resid_post":
            return f"resid.{site.layer + 1}"
    return f"{site.kind}.{site.layer}"


def stored_site(name: str) -> Site:
    """Return the site of a tensor; a residual is named for the layer before it, if there is one."""
    kind, _, index = name.partition(".")
    if kind == "resid":
        return Site("resid_post", int(index) - 1) if int(index) else Site("resid_pre", 0)
    return Site(next(k for k in KINDS if k == kind), int(index))


def is_tensor_name(name: object) -> bool:
    """Tell whether a shard may have a tensor of this name."""
    return isinstance(name, str) and _TENSOR.fullmatch(name) is not None


def is_word(name: object) -> bool:
    """Tell whether a name is a safe file name: no slash, no leading dot, <= 100 characters."""
    return isinstance(name, str) and _WORD.fullmatch(name) is not None


def is_shard(path: str) -> bool:
    """Tell whether `FOLDER/FILE` is a shard's name; nothing else is read or removed as one."""
    folder, _, name = path.partition("/")
    return is_word(folder) and _SHARD.fullmatch(name) is not None
