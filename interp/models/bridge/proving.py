"""TransformerLens's bridge over a model's weights, proven to compute the model's own logits."""

from typing import Any

import torch
from transformers import PreTrainedModel

from interp.errors import ModelError, SiteError
from interp.models.bridge.building import build_bridge, eager_twin
from interp.models.bridge.inner import few_tokens
from interp.models.rounding import is_near
from interp.models.streaming import stream_of


def refuse_bridge(stock: PreTrainedModel, why_own: str) -> None:
    """Raise SiteError where no bridge can be built.

    That is for a model that is not on one device, and for a family of which TransformerLens named
    no modules, `why_own` being why.
    """
    if why_own:
        raise SiteError(
            f"{type(stock).__name__} has no places inside attention and MLP here: {why_own}"
        )
    if stream_of(stock) is not None:
        raise SiteError(
            f"the blocks of this {type(stock).__name__} lie on disk;"
            " TransformerLens's view, and inner sites, need them in memory"
        )
    if hasattr(stock, "hf_device_map") and len({*stock.hf_device_map.values()}) > 1:
        raise SiteError(
            f"{type(stock).__name__} is spread over devices;"
            " TransformerLens's view, and inner sites, need it on one"
        )


def proven_bridge(stock: PreTrainedModel, *, tokenizer: Any, depth: int) -> Any:
    """Return a bridge over the same weights; raise SiteError where it computes something else."""
    try:
        bridge = build_bridge(stock, tokenizer=tokenizer)
        _prove(bridge, stock, depth=depth)
    except Exception as error:  # a version of it that is not ours may raise anything
        raise SiteError(
            f"{type(stock).__name__} cannot be seen through TransformerLens: {error}"
        ) from None
    return bridge


def refuse_other_logits(bridge: Any, stock: PreTrainedModel, *, depth: int) -> None:
    """Raise ModelError for a bridge that computes other logits than the model inside it."""
    try:
        _prove(bridge, stock, depth=depth)
    except ValueError:
        raise ModelError(
            f"the bridge given computes other logits than the {type(stock).__name__} inside it"
            " (compatibility mode folds its weights); give one without"
        ) from None


@torch.no_grad()
def _prove(bridge: Any, stock: PreTrainedModel, *, depth: int) -> None:
    """Compare logits under the same attention kernel: another one rounds differently."""
    tokens = few_tokens(bridge)
    logits = eager_twin(stock)(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
    ).logits
    if not is_near(bridge(tokens), logits, depth=depth):
        raise ValueError("its logits differ")
