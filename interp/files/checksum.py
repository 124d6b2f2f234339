"""The checksum of an array in a file, the same for a torch tensor and a numpy array.

The viewer reads this module without torch.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def array_checksum(name: str, shape: Sequence[int], dtype: str, content: bytes | memoryview) -> str:
    """Return a hash of an array's name, shape, type ("torch.float32") and bytes."""
    digest = blake2b(f"{name}{tuple(shape)}{dtype}".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()


def tensor_checksum(name: str, tensor: "Tensor") -> str:
    """Return a hash of a tensor's name, shape, type and bytes."""
    import torch

    content = (
        tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b""
    )
    return array_checksum(name, tensor.shape, str(tensor.dtype), content)
