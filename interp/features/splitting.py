"""What a dictionary makes of activations: features, and the error that they leave."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from interp.features.dictionary import Dictionary
from interp.replay import Recording


class Latents(NamedTuple):
    """The features' activations and the error of a reconstruction, in fp32.

    decode(features) + error is what was at the dictionary's site: the error is a node as features
    are (Marks et al., arXiv 2403.19647).
    """

    features: Float[Tensor, "*rows feature"]
    error: Float[Tensor, "*rows d_out"]


def split(
    dictionary: Dictionary,
    read: Float[Tensor, "*rows d_in"],
    written: Float[Tensor, "*rows d_out"],
) -> Latents:
    """Return features and error of activations at the dictionary's two sites."""
    features = dictionary.encode(read)
    return Latents(features, written.float() - dictionary.decode(features))


def latents(recording: Recording, dictionary: Dictionary) -> Latents:
    """Return features [batch pos feature] and error [batch pos d_out] of a clean pass."""
    read, written = recording.clean(dictionary.reads), recording.clean(dictionary.writes)
    return split(dictionary, read, written)
