"""Which experts a mixture-of-experts layer mixes, and how: read and written at the experts.

A router's weights [batch pos expert] are 0 for experts that were not chosen. Whatever a router does
to its scores (softmax, top-k, scaling), its experts receive the tokens, the chosen experts and
their weights, in this order.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def find_experts(mlp: nn.Module | None) -> nn.Module | None:
    """Return the module in an MLP that holds all experts and is told which to mix, or None."""
    return None if mlp is None else next(filter(holds_experts, mlp.modules()), None)


def holds_experts(module: nn.Module) -> bool:
    """Tell whether a module holds all experts, as one tensor each, and is told which to mix."""
    parameters = [*module.parameters(recurse=False)]
    n_experts = getattr(module, "num_experts", None)
    return (
        isinstance(n_experts, int)
        and any(parameter.ndim == 3 and len(parameter) == n_experts for parameter in parameters)
        and len(inspect.signature(module.forward).parameters) == 3
    )


def hook_experts(
    experts: nn.Module, edit: Callable[[Tensor], Tensor], *, rows: Callable[[], int]
) -> RemovableHandle:
    """Pass the router's weights [rows pos expert] through `edit` whenever these experts run."""
    names = tuple(inspect.signature(experts.forward).parameters)
    n_experts = int(experts.num_experts)  # type: ignore[arg-type]

    def before(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = dict(zip(names, args, strict=False)) | kwargs
        tokens, chosen, weights = (given[name] for name in names)
        flat = weights.new_zeros(len(chosen), n_experts + 1).scatter(
            1, chosen, weights
        )  # the last one: no expert
        dense = flat[:, :n_experts].unflatten(0, (rows(), -1))
        edited = edit(dense)
        if edited is dense:
            return None
        everyone = torch.arange(n_experts, device=chosen.device).expand(len(chosen), -1)
        return (tokens, everyone, edited.flatten(0, 1)), {}

    handle: RemovableHandle = experts.register_forward_pre_hook(before, with_kwargs=True)
    return handle
