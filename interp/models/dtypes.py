"""The type that a model is computed in: the checkpoint's, or one that the machine is faster in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import ModelError, unknown

if TYPE_CHECKING:
    from interp.models.model import Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # names of x86 and of ARM
DeviceMap = str | dict[str, int | str]
DISK = "disk"  # the device map of a model whose blocks stay on disk and are read when they run


@dataclass(frozen=True)
class AutoDtype:
    """What "auto" means: the types that checkpoints in float16 and in bfloat16 are computed in.

    Checkpoints of any other type are computed in their own. A run decides this once, for all its
    workers.
    """

    float16: str = "float16"
    bfloat16: str = "bfloat16"

    @classmethod
    def on(cls, kind: str) -> "AutoDtype":
        """Return what is fast on a kind of device ("cpu", "cuda", …).

        GPUs compute in the checkpoint's type. A CPU computes float16 slower than float32, and so
        does bfloat16 where `torch.cpu.get_capabilities()` names no instructions for it.
        """
        if kind != "cpu":
            return cls()
        return cls(float16="float32", bfloat16="bfloat16" if _cpu_has_bfloat16() else "float32")

    def of(self, stored: str) -> str:
        """Return the type that a checkpoint of type `stored` is computed in."""
        computed: str = vars(self).get(stored, stored)
        return computed


def _cpu_has_bfloat16() -> bool:
    tell = getattr(torch.cpu, "get_capabilities", dict)  # a torch before it tells nothing
    has: Mapping[str, Any] = tell()
    return any(has.get(name, False) for name in _BFLOAT16)


def check_dtype(dtype: object) -> str:
    """Return the name of a type (a string or torch's); raise ModelError if none loads as that."""
    name = str(dtype).removeprefix("torch.")
    if name != "auto" and name not in DTYPES:
        raise ModelError(unknown("dtype", name, ["auto", *DTYPES]))
    return name


def kind_of_device(device: str = "auto", device_map: DeviceMap | None = None) -> str:
    """Return the kind of device ("cpu", "cuda", …) that a model asked for so computes on."""
    if isinstance(device_map, dict):
        return "cpu" if {*device_map.values()} <= {"cpu", "disk"} else "cuda"
    is_spread = device_map is not None and device_map != DISK
    place = device_map if is_spread else device
    if place in ("cpu", "meta"):
        return "cpu"
    if is_spread or device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def how_computed(model: "Model") -> str:
    """Say which types a model's weights have, where they are, and the checkpoint's if another."""
    floating = [p.dtype for p in model.module.parameters() if p.is_floating_point()]
    kinds = {*map(name_of, floating or [model.dtype])}
    on = "the CPU" if model.device.type == "cpu" else str(model.device)
    how = f"computed in {', '.join(sorted(kinds))} on {on}"
    if model.checkpoint not in DTYPES or {model.checkpoint} == kinds:
        return how  # what quantised weights were made from is said elsewhere
    return f"{model.checkpoint} checkpoint, {how}"


def name_of(dtype: object) -> str:
    """Return a type's name without torch's prefix."""
    return str(dtype).removeprefix("torch.")
