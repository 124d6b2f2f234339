"""A sparse autoencoder or a transcoder: f = σ(x W_enc + b_enc), and x̂ = f W_dec + b_dec."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.models import Model
from interp.sites import Site

Activation = Literal["relu", "jumprelu", "topk"]


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """The features of what a model holds at a site, in fp32.

    Features are read from `reads`, and their sum approximates what is at `writes`: the same site
    for a sparse autoencoder, another one for a transcoder. `activation` "jumprelu" needs a
    `threshold` per feature, "topk" the number `k` of features that are active at once.
    """

    name: str
    reads: Site
    writes: Site
    w_enc: Float[Tensor, "d_in feature"]
    b_enc: Float[Tensor, " feature"]
    w_dec: Float[Tensor, "feature d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation = "relu"
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None

    def __repr__(self) -> str:
        where = f"{self.reads}" if self.reads == self.writes else f"{self.reads} to {self.writes}"
        return f"Dictionary({self.name!r}: {self.n_features} features of {where})"

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return len(self.b_enc)

    @property
    def checksum(self) -> str:
        """Return a hash of what the dictionary does."""
        digest = blake2b(f"{self.reads} {self.writes} {self.activation} {self.k}".encode())
        for tensor in (self.w_enc, self.b_enc, self.w_dec, self.b_dec, self.threshold):
            if tensor is not None:
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows feature"]:
        """Return the features' activations, at least 0, of activations at `reads`."""
        before = x.float() @ self.w_enc + self.b_enc
        active = before.relu()
        if self.threshold is not None:
            return active * (before > self.threshold)
        if self.k is None:
            return active
        largest = before.topk(self.k, dim=-1).indices
        return torch.zeros_like(active).scatter(-1, largest, active.gather(-1, largest))

    def decode(self, features: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows d_out"]:
        """Return what features add up to at `writes`."""
        return features.float() @ self.w_dec + self.b_dec

    def to(self, device: torch.device | str) -> "Dictionary":
        """Return the dictionary on a device."""
        return replace(
            self,
            w_enc=self.w_enc.to(device),
            b_enc=self.b_enc.to(device),
            w_dec=self.w_dec.to(device),
            b_dec=self.b_dec.to(device),
            threshold=None if self.threshold is None else self.threshold.to(device),
        )

    def refuse_other(self, model: Model) -> None:
        """Raise SiteError, in one line, for a model that cannot be read with this dictionary."""
        for site, width in ((self.reads, len(self.w_enc)), (self.writes, len(self.b_dec))):
            if site.layer >= model.n_layers:
                raise SiteError(
                    f"dictionary {self.name} is of {site}; the last layer of {model.name} is"
                    f" {model.n_layers - 1}"
                )
            if width != model.d_model:
                raise SiteError(
                    f"dictionary {self.name} is of {width} dimensions; {model.name} has"
                    f" {model.d_model}"
                )
            model.refuse(site, is_edited=True)
