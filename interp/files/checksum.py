"""The checksum of an array in a file: the same for a torch tensor and a numpy array."""

from collections.abc import Sequence
from hashlib import blake2b


def array_checksum(name: str, shape: Sequence[int], dtype: str, content: bytes | memoryview) -> str:
    """Return a hash of an array's name, shape, type ("torch.float32") and bytes."""
    digest = blake2b(f"{name}{tuple(shape)}{dtype}".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()
