"""What is changed in a forward pass, as values: skip, patch, ablate, steer, edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from interp.errors import SiteError, unknown
from interp.figures.words import shape_named
from interp.sites import Site, SiteKind

Positions = Sequence[int] | Tensor | None
_PART_SITE: dict[str, SiteKind] = {"attention": "attn_out", "mlp": "mlp_out", "layer": "resid_post"}


@dataclass(frozen=True, eq=False, repr=False)
class _Shown:
    """Prints what is given in fields, and tensors by their shape."""

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = ", ".join(
            f"{name}={shape_named(value.shape) if isinstance(value, Tensor) else repr(value)}"
            for name, value in given.items()
            if value is not None
        )
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, repr=False)
class Skip(_Shown):
    """Let a layer, or its attention or MLP, write nothing at some positions (by default at all)."""

    layer: int
    part: Literal["layer", "attention", "mlp"] = "layer"
    positions: Positions = None

    def __post_init__(self) -> None:
        if self.part not in _PART_SITE:
            raise SiteError(unknown("part", self.part, _PART_SITE))

    @property
    def site(self) -> Site:
        """Return what a skip writes to."""
        return Site(_PART_SITE[self.part], self.layer)

    def edit(self, activation: Tensor, resid_pre: Tensor | None) -> Tensor:
        """Return the block's input instead of its output, or zero instead of a sublayer's write."""
        nothing = (
            torch.zeros_like(activation) if self.part != "layer" or resid_pre is None else resid_pre
        )
        return put(activation, nothing, positions=self.positions, site=self.site)


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_Shown):
    """Replace an activation by `value`, whose shape must equal or broadcast to the replaced one.

    With `positions` named, axis 1 of `value` runs over them (axis 2 of patterns and scores, whose
    positions are queries). `units` are heads (q, k, v, z, patterns, scores), experts (router) or
    features (elsewhere).
    """

    site: Site
    value: Tensor
    positions: Positions = None
    units: Sequence[int] | None = None

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the activation with `value` in its place."""
        value = self.value.to(activation.device, activation.dtype)
        return put(activation, value, positions=self.positions, units=self.units, site=self.site)


@dataclass(frozen=True, repr=False)
class Ablate(_Shown):
    """Replace an activation by zero, by its mean, or by the next prompt's (resample).

    The mean is over prompts and positions. Positions of patterns are queries: their mean is one for
    each head and key. Padding counts in no mean.
    """

    site: Site
    by: Literal["zero", "mean", "resample"] = "zero"
    positions: Positions = None
    units: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.by not in ("zero", "mean", "resample"):
            raise SiteError(unknown("ablation", self.by, ["zero", "mean", "resample"]))
        if self.by == "mean" and self.site.kind == "attn_scores":
            raise SiteError(
                f"the mean of {self.site} asked for;"
                " hidden keys have the score -inf: take that of the pattern"
            )

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the ablated activation."""
        return self.edit_among(activation, None)

    def edit_among(self, activation: Tensor, mask: Tensor | None) -> Tensor:
        """Return the ablated activation; `mask` [batch pos] is False on padding."""
        if self.by == "resample" and len(activation) < 2:
            raise SiteError(
                "resample ablation takes the next prompt's activation; the batch has 1 prompt"
            )
        match self.by:
            case "zero":
                instead = torch.zeros_like(activation)
            case "mean":
                instead = self._mean(activation, mask).expand_as(activation)
            case "resample":
                instead = activation.roll(-1, dims=0)
        return put(activation, instead, positions=self.positions, units=self.units, site=self.site)

    def _mean(self, activation: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over prompts and positions, without padding, accumulated in fp32."""
        axis = 2 if self.site.kind == "pattern" else 1
        if mask is None:
            return activation.float().mean(dim=(0, axis), keepdim=True).to(activation.dtype)
        shape = [len(mask), *[1] * (activation.ndim - 1)]
        shape[axis] = mask.shape[1]
        there = mask.reshape(shape)
        total = torch.where(there, activation.float(), 0.0).sum(dim=(0, axis), keepdim=True)
        return (total / there.sum()).to(activation.dtype)


@dataclass(frozen=True, eq=False)
class Among:
    """An ablation of a padded batch; `mask` [batch pos] is False on padding.

    Raises SiteError where a prompt would be given its neighbour's padding.
    """

    ablation: Ablate
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ablation.by != "resample":
            return
        lacking = self.mask & ~self.mask.roll(-1, dims=0)
        index = torch.arange(len(lacking), device=lacking.device)[:, None]
        match self.positions:
            case None:
                chosen = lacking
            case Tensor() as each:
                chosen = lacking[index, each.to(lacking.device)[:, None]]
            case several:
                chosen = lacking[:, list(several)]
        if bool(chosen.any()):
            row = int(chosen.any(1).int().argmax())
            raise SiteError(
                f"resample ablation of {self.ablation.site} takes the next prompt's activation;"
                f" prompt {row} is longer than the next:"
                " give prompts of one length, or positions that both have"
            )

    @property
    def positions(self) -> Positions:
        """Return the positions that are ablated."""
        return self.ablation.positions

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the ablated activation."""
        return self.ablation.edit_among(activation, self.mask)


@dataclass(frozen=True, eq=False, repr=False)
class Steer(_Shown):
    """Add `scale` times a direction [d] to an activation [batch pos d]."""

    site: Site
    direction: Tensor
    scale: float = 1.0
    positions: Positions = None

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the steered activation."""
        steered = activation + self.scale * self.direction.to(activation.device, activation.dtype)
        return put(activation, steered, positions=self.positions, site=self.site)


@dataclass(frozen=True, eq=False, repr=False)
class Edit(_Shown):
    """Replace an activation by what a function of yours makes of it.

    `fn` is given a copy of the whole activation [batch pos ...] (of patterns and scores [batch head
    query key]) and returns one of its shape and type; what it returns is put in at `positions` and
    `units`. Raises SiteError where it returns nothing, another shape or type, or a new NaN.
    """

    site: Site
    fn: Callable[[Tensor], Tensor]
    positions: Positions = None
    units: Sequence[int] | None = None

    def edit(self, activation: Tensor, resid_pre: Tensor | None = None) -> Tensor:
        """Return the activation as the function makes it."""
        new = self.fn(activation.clone())
        if not isinstance(new, Tensor):
            raise SiteError(
                f"the edit of {self.site} returned {type(new).__name__}; a function returns the"
                " new activation, also where it changes what it is given"
            )
        if new.shape != activation.shape or new.dtype != activation.dtype:
            asked = f"{shape_named(new.shape)} of {new.dtype}"
            there = f"{shape_named(activation.shape)} of {activation.dtype}"
            raise SiteError(f"the edit of {self.site} returned {asked}; {there} is there")
        if bool((new.isnan() & ~activation.isnan()).any()):
            raise SiteError(f"the edit of {self.site} returned NaN where there was a number")
        return put(activation, new, positions=self.positions, units=self.units, site=self.site)


Intervention = Skip | Patch | Ablate | Steer | Edit
Plan = Sequence[Intervention]
NO_INTERVENTION: Plan = ()


def put(
    activation: Tensor,
    new: Tensor,
    *,
    positions: Positions,
    units: Sequence[int] | None = None,
    site: Site,
) -> Tensor:
    """Return `activation` [batch pos ...] with `new` at some positions and units.

    `new` has the shape of the whole activation, or of the part that is replaced. A tensor of
    positions [batch] names one position per prompt. Raises SiteError for positions and units that
    do not exist, and for a value of another shape. Of patterns and scores [batch head query key],
    positions are queries and units are heads.
    """
    if site.kind in ("pattern", "attn_scores"):
        by_query = [each.transpose(1, 2) if each.ndim == 4 else each for each in (activation, new)]
        flat = Site("z", site.layer)  # axes as at z: queries, then heads
        return put(by_query[0], by_query[1], positions=positions, units=units, site=flat).transpose(
            1, 2
        )
    mask = _mask(activation, positions, units, site)
    if new.shape != activation.shape:
        new = _spread(activation, new, positions, units, site)
    return torch.where(mask, new, activation)


def _mask(
    activation: Tensor, positions: Positions, units: Sequence[int] | None, site: Site
) -> Tensor:
    batch, n_pos = activation.shape[:2]
    is_chosen = torch.zeros(batch, n_pos, dtype=torch.bool, device=activation.device)
    if positions is None:
        is_chosen[:] = True
    elif isinstance(positions, Tensor):
        _refuse_outside(positions.tolist(), n_pos, "position", site)
        is_chosen[torch.arange(batch, device=is_chosen.device), positions.to(is_chosen.device)] = (
            True
        )
    else:
        _refuse_outside(positions, n_pos, "position", site)
        is_chosen[:, list(positions)] = True
    mask = is_chosen.reshape(batch, n_pos, *[1] * (activation.ndim - 2)).expand_as(activation)
    if units is None:
        return mask
    _refuse_outside(units, activation.shape[2], "unit", site)
    chosen = torch.zeros(activation.shape[2], dtype=torch.bool, device=activation.device)
    chosen[list(units)] = True
    return mask & chosen.reshape(-1, *[1] * (activation.ndim - 3))


def _refuse_outside(given: Sequence[int], size: int, what: str, site: Site) -> None:
    bad = [i for i in given if not 0 <= i < size]
    if bad:
        raise SiteError(f"{what} {bad[0]} of {site} asked for; the last {what} is {size - 1}")


def _spread(
    activation: Tensor, new: Tensor, positions: Positions, units: Sequence[int] | None, site: Site
) -> Tensor:
    """Return `new`, which covers the replaced part only, in the shape of the whole activation."""
    batch, n_pos, *rest = activation.shape
    order = list(range(n_pos)) if positions is None else positions
    full = activation.clone()
    n_units = rest[0] if units is None else len(units)
    try:
        if isinstance(order, Tensor):
            part = new.expand(batch, 1, n_units, *rest[1:])[:, 0]
            where = torch.arange(batch, device=full.device)
            if units is None:
                full[where, order.to(full.device)] = part
            else:
                full[
                    where[:, None],
                    order.to(full.device)[:, None],
                    torch.tensor(units, device=full.device),
                ] = part
        else:
            part = new.expand(batch, len(order), n_units, *rest[1:])
            for i, pos in enumerate(order):
                full[:, pos, slice(None) if units is None else list(units)] = part[:, i]
    except RuntimeError:
        wanted = (batch, len(positions) if positions is not None else n_pos, n_units, *rest[1:])
        raise SiteError(
            f"a value of shape {tuple(new.shape)} given for {site}; {wanted} is there"
        ) from None
    return full


def among(intervention: Intervention, mask: Tensor | None) -> "Intervention | Among":
    """Return an intervention that leaves padding out."""
    return (
        Among(intervention, mask)
        if isinstance(intervention, Ablate) and mask is not None
        else intervention
    )


def at_layer(plan: Plan, *, n_layers: int) -> dict[Site, list[Intervention]]:
    """Return a plan by site; raise SiteError for layers that do not exist."""
    by_site: dict[Site, list[Intervention]] = {}
    for intervention in plan:
        if not 0 <= intervention.site.layer < n_layers:
            name = type(intervention).__name__
            raise SiteError(
                f"{name}(layer={intervention.site.layer}) writes {intervention.site}; "
                f"the model's last layer is {n_layers - 1}"
            )
        by_site.setdefault(intervention.site, []).append(intervention)
    return by_site
