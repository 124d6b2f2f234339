"""What single heads map to what, as TransformerLens names it: W_OV, W_QK, W_E, W_U, in fp32."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.models.norms import Gain
from interp.models.quantised import refuse_quantised

if TYPE_CHECKING:
    from interp.models.model import Model


@dataclass(frozen=True, eq=False)
class Factored:
    """A map of low rank, kept as its factors: `left` [d_in rank] @ `right` [rank d_out]."""

    left: Float[Tensor, "d_in rank"]
    right: Float[Tensor, "rank d_out"]

    def __repr__(self) -> str:
        (d_in, rank), d_out = self.left.shape, self.right.shape[1]
        return f"Factored([{d_in} {d_out}], rank {rank})"

    def __matmul__(self, other: "Factored") -> "Factored":
        """Return this map followed by another one."""
        return Factored(self.left @ (self.right @ other.left), other.right)

    @property
    def matrix(self) -> Float[Tensor, "d_in d_out"]:
        """Return the whole map; rows are inputs."""
        return self.left @ self.right

    @property
    def T(self) -> "Factored":
        """Return the map from outputs to inputs."""
        return Factored(self.right.T, self.left.T)

    @property
    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(torch.linalg.matrix_norm(self._core()))

    def svd(
        self,
    ) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, " rank"], Float[Tensor, "rank d_out"]]:
        """Return U, S and V such that U diag(S) V is the map; rows of V are what is written."""
        q_left, r_left = torch.linalg.qr(self.left)
        q_right, r_right = torch.linalg.qr(self.right.T)
        u, s, v = torch.linalg.svd(r_left @ r_right.T)
        return q_left @ u, s, v @ q_right.T

    def _core(self) -> Tensor:
        """Return a small matrix with the same singular values."""
        _, r_left = torch.linalg.qr(self.left)
        _, r_right = torch.linalg.qr(self.right.T)
        core: Tensor = r_left @ r_right.T
        return core


def composition(first: Factored, second: Factored) -> float:
    """Return ‖first · second‖ / (‖first‖ ‖second‖), in Frobenius norms.

    How much the second map reads of what the first writes: of an earlier head's W_OV and a later
    one's W_QK (queries), its transpose (keys) or W_OV (values), as in "A Mathematical Framework for
    Transformer Circuits" (2021). Two random maps of rank r have about 1/√(their width).
    """
    return (first @ second).norm / (first.norm * second.norm)


class HeadMaps:
    """The maps of a model's heads, and its embeddings."""

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Return the embedding of tokens."""
        weight: Tensor = cast("Model", self).module.get_input_embeddings().weight
        return weight.detach().float()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Return the unembedding, without the final norm before it."""
        w_u = cast("Model", self).modules.w_u
        refuse_quantised(w_u, "the numbers of its weights")
        weight: Tensor = w_u.get_parameter("weight")
        return weight.detach().float().T

    def W_OV(self, layer: int, head: int, *, folded: bool = False) -> Factored:
        """Return what a head writes of what its attention reads, [d_model d_model] by rows.

        `folded` puts the gain of the norm before attention into it, and its centring.
        """
        attn, kv_head = self._attention(layer, head)
        w_v = attn.W_V[kv_head].detach().float()
        return Factored(
            self._behind_norm(layer, w_v) if folded else w_v, attn.W_O[head].detach().float()
        )

    def W_QK(self, layer: int, head: int, *, folded: bool = False) -> Factored:
        """Return what a head's queries look for in keys, [d_model d_model]: query by key.

        Without the scale 1/√d_head, and without what turns queries and keys by their positions.
        """
        attn, kv_head = self._attention(layer, head)
        w_q, w_k = (w.detach().float() for w in (attn.W_Q[head], attn.W_K[kv_head]))
        if folded:
            w_q, w_k = (self._behind_norm(layer, w) for w in (w_q, w_k))
        return Factored(w_q, w_k.T)

    def tokens_towards(self, direction: Float[Tensor, " d_model"], *, k: int = 5) -> list[str]:
        """Return the `k` tokens that a direction in the last stream makes most probable.

        The final norm is frozen; of a single direction, its size changes no order.
        """
        model = cast("Model", self)
        both = torch.stack([direction, torch.zeros_like(direction)]).to(model.device, model.dtype)
        with torch.no_grad():
            logits = model.unembed(both[:, None])[:, 0].float()
        return model.token_names((logits[0] - logits[1]).topk(k).indices.tolist())

    def _attention(self, layer: int, head: int) -> tuple[Any, int]:
        """Return a layer's attention under TransformerLens's names, and the head's K/V head."""
        model = cast("Model", self)
        for what, given, n in (("layer", layer, model.n_layers), ("head", head, model.n_heads)):
            if not 0 <= given < n:
                raise SiteError(f"{what} {given} asked for; the model's last {what} is {n - 1}")
        refuse_quantised(model.module, "the numbers of its weights")
        attn = model.bridge.blocks[layer].attn
        try:
            n_kv_heads = len(attn.W_V)
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            family = type(model.module).__name__
            raise SiteError(f"{family} has no weights of single heads ({error})") from None
        return attn, head * n_kv_heads // model.n_heads

    def _behind_norm(
        self, layer: int, weight: Float[Tensor, "d_model d_head"]
    ) -> Float[Tensor, "d_model d_head"]:
        """Return weights with the gain of the norm before them, and centred if it centres."""
        model = cast("Model", self)
        like = torch.zeros(model.d_model, dtype=model.dtype, device=model.device)
        with torch.no_grad():
            of_norm = Gain.of(model.bridge.blocks[layer].ln1, like)
        behind = of_norm.gain[:, None] * weight
        return behind - behind.mean(0) if of_norm.is_centring else behind
