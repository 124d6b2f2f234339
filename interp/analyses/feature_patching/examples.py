"""The tokens around the one on which a feature is most active, as text."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from interp.analyses.feature_patching.nodes import Nodes
from interp.models import Model
from interp.shapes import Tensors
from interp.sweeps.tags import bytes_of, texts_of

_AROUND = 6  # tokens on either side
_BYTES = 160


def token_table(model: Model, tokens: Sequence[Tensor]) -> Tensors:
    """Return the "ids" of all tokens and their "names" [id byte]."""
    ids = sorted({token for rows in tokens for row in rows.tolist() for token in row})
    return {"ids": torch.tensor(ids), "names": bytes_of(model.token_names(ids))}


def active_features(
    nodes: Nodes, chosen: Int[Tensor, " candidate"], *, is_base: bool
) -> Float[Tensor, "batch pos candidate"]:
    """Return the activations of some nodes in one of the runs; of an error its norm."""
    run = nodes.base if is_base else nodes.source
    parts = [torch.cat([each.features, each.error.norm(dim=-1)[..., None]], -1) for each in run]
    return torch.cat(parts, dim=-1)[..., chosen.to(parts[0].device)]


def texts_around(
    tokens: Int[Tensor, "batch pos"], at: Int[Tensor, "batch candidate"], table: Tensors
) -> UInt8[Tensor, "batch candidate byte"]:
    """Return the texts around the tokens `at`, which stand in «», as bytes."""
    names = dict(zip(table["ids"].tolist(), texts_of(table["names"].numpy()), strict=True))
    rows = []
    for row, places in zip(tokens.tolist(), at.tolist(), strict=True):
        said = [names[token].strip("␣") for token in row]
        around = [
            [*said[max(0, i - _AROUND) : i], f"«{said[i]}»", *said[i + 1 : i + 1 + _AROUND]]
            for i in places
        ]
        rows.append(bytes_of([" ".join(each) for each in around], width=_BYTES))
    return torch.stack(rows)
