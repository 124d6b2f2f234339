"""Where a model too large to be timed could run, and how fast, by arithmetic from assumptions.

A pass of T tokens takes 2 · T operations for every weight that a token uses, and attention's over
those before it; a call of all blocks reads their weights from memory, or from disk, once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil
from typing import Annotated, Any

import torch

from interp.errors import AnalysisError, unknown
from interp.figures.words import counted
from interp.models.dtypes import DTYPES, AutoDtype
from interp.models.weightless import WeightlessModel
from interp.parameters import AtLeast, coerce, hints_of, parse
from interp.replay.rows import tokens_held
from interp.runs.memory import free_mb
from interp.runs.speed import Pace, Speed
from interp.sweeps.lens import rows_at_once

_OF_FLOAT32 = 15.0  # times as long as bf16 takes on the tensor cores of a GPU
_FILLED = 0.8  # of GPUs' memory, that weights may fill
_LONG = 0.03  # seconds of a product, after which no larger one is timed
_BACKWARD = 2.0  # forward passes that a backward pass takes

Positive = Annotated[float, AtLeast(1e-6)]


@dataclass(frozen=True)
class Assumptions:
    """What plans without weights assume of machines; None is measured here.

    `memory` and `gpu_memory` are in GB, `cpu_speed` and `gpu_speed` (of dense products in 16 bits)
    in TFLOP/s, of which passes reach `cpu_share` and `gpu_share`; `cpu_bandwidth`, `gpu_bandwidth`
    and `disk` are in GB/s. There are so many `gpus`. `block_ms` is what a call of one block takes
    besides.
    """

    memory: Positive | None = None
    cpu_speed: Positive | None = None
    cpu_share: Positive = 0.7
    cpu_bandwidth: Positive | None = None
    gpu_memory: Positive = 80.0
    gpu_speed: Positive = 990.0
    gpu_share: Positive = 0.4
    gpu_bandwidth: Positive = 3350.0
    gpus: Annotated[int, AtLeast(1)] = 8
    disk: Positive = 2.0
    block_ms: Positive = 0.5

    def __post_init__(self) -> None:
        declared: type = type(self)
        for name, hint in hints_of(declared).items():
            object.__setattr__(self, name, coerce(hint, getattr(self, name), name))

    @classmethod
    def of(cls, text: str) -> "Assumptions":
        """Return the defaults with others in their place: KEY=VALUE,…; raise AnalysisError."""
        declared: type = cls
        hints, given = hints_of(declared), dict[str, Any]()
        for pair in filter(None, text.split(",")):
            key, equals, value = (part.strip() for part in pair.partition("="))
            if not equals:
                raise AnalysisError(f"--assume {pair!r} given; KEY=VALUE,… is needed")
            if key not in hints:
                raise AnalysisError(f"--assume: {unknown('assumption', key, hints)}")
            given[key] = parse(hints[key], value, f"--assume {key}")
        return cls(**given)

    def measured(self, dtype: torch.dtype, *, clock: Callable[[], float]) -> "Assumptions":
        """Return them with what is not given as it is on this machine, in tenths of a second."""
        known = self
        if known.memory is None:
            known = replace(known, memory=max(free_mb() / 1e3, 1e-3))
        if known.cpu_speed is None:
            known = replace(known, cpu_speed=_product(dtype, clock) / 1e12)
        if known.cpu_bandwidth is None:
            much = torch.ones(1 << 24)
            known = replace(known, cpu_bandwidth=much.nbytes / _best(much.sum, clock) / 1e9)
        return known

    @property
    def measured_here(self) -> tuple[str, ...]:
        """Return the names of what is not given."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) is None)


def _product(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Return the FLOP/s of a matrix product, the largest of three that takes no long time."""
    flops = 0.0
    for size in (256, 512, 1024):
        rows, weight = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        seconds = _best(partial(torch.nn.functional.linear, rows, weight), clock)
        flops = 2 * size**3 / seconds
        if seconds > _LONG:
            break
    return flops


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    work()
    seconds = []
    for _ in range(3):
        began = clock()
        work()
        seconds.append(max(clock() - began, 1e-9))
    return min(seconds)


@dataclass(frozen=True)
class Machine:
    """Where a model could run: how fast, with how many workers, and what each can hold.

    `weights_mb` is what weights take there, `capacity_mb` what there is for them and all else;
    `about` says how this was reckoned, and `why_not`, if it is not empty, why it cannot run there.
    `read_mb` is what all blocks are on disk, where they lie there, and `read_rate` how many MB/s
    are read.
    """

    name: str
    speed: Speed
    weights_mb: float
    capacity_mb: float
    about: str
    n_workers: int = 1
    read_mb: float = 0.0
    read_rate: float = 0.0
    why_not: str = ""


def machines_for(
    model: WeightlessModel, dtype: str, n_pos: Sequence[int], assumed: Assumptions
) -> list[Machine]:
    """Return where a model could run prompts of these lengths: CPU, GPU, several, and from disk.

    With `dtype` "auto" GPUs compute in the type that weights are stored in, the CPU in a fast one.
    """
    stored = model.sizes.dtype
    on_gpu = stored if dtype == "auto" else dtype
    on_cpu = AutoDtype.on("cpu").of(stored) if dtype == "auto" else dtype
    known = assumed.measured(DTYPES[on_cpu], clock=time.perf_counter)
    rates = _Rates(model, n_pos, known)
    return [*rates.on_cpu(on_cpu), *rates.on_gpus(on_gpu), *rates.from_disk(on_cpu, stored)]


@dataclass(frozen=True)
class _Rates:
    """A model of so many layers and weights, under assumptions of which none is None."""

    model: WeightlessModel
    n_pos: Sequence[int]
    known: Assumptions

    def speed(self, dtype: str, *, flops: float, bandwidth: float, tokens: int) -> Speed:
        """Return the speed of passes at so many FLOP/s and bytes/s."""
        model, sizes, size = self.model, self.model.sizes, DTYPES[dtype].itemsize
        start = sizes.blocks * size / bandwidth + model.n_layers * self.known.block_ms / 1e3
        width = sum(block.n_heads for block in model.blocks if block.has_kv) * _d_head(model)
        passes = {
            n: Pace(start, (2 * sizes.used + 4 * n * width) / flops) for n in sorted({*self.n_pos})
        }
        n_head = model.d_model * model.d_vocab
        logits = Pace(n_head * size / bandwidth, 2 * n_head / flops)
        return Speed(passes, _BACKWARD, logits, tokens, rows_at_once(model.d_vocab))

    def on_cpu(self, dtype: str) -> list[Machine]:
        """Return this machine's CPU, all weights in its memory."""
        held, free = self._mb(self.model.sizes.in_all, dtype), 1e3 * (self.known.memory or 0.0)
        speed = self.speed(dtype, tokens=self.model.tokens_at_once(), **self._cpu)
        why_not = "" if held < free else "they do not fit"
        about = f"{self._cpu_text}; {_gb(held)} of weights in {dtype}, {_gb(free)} are free"
        return [Machine("CPU", speed, held, free, about, why_not=why_not)]

    def on_gpus(self, dtype: str) -> list[Machine]:
        """Return one GPU, and all of them: workers with as few each as hold the model."""
        known, held = self.known, self._mb(self.model.sizes.in_all, dtype)
        flops = 1e12 * known.gpu_speed * known.gpu_share
        flops /= _OF_FLOAT32 if dtype == "float32" else 1.0
        of_each = max(1, ceil(held / (_FILLED * 1e3 * known.gpu_memory)))
        rate = {"flops": flops, "bandwidth": 1e9 * known.gpu_bandwidth}
        text = (
            f"{flops / 1e12:.4g} TFLOP/s ({known.gpu_share:.0%} of what {dtype} can reach),"
            f" {known.gpu_bandwidth:.4g} GB/s; {_gb(held)} of weights in {dtype}"
        )
        both: list[Machine] = []
        for n, n_workers in ((1, 1), (of_each, known.gpus // of_each)):
            room = 1e3 * n * known.gpu_memory
            width, type_ = self.model.d_model, DTYPES[dtype]
            tokens = tokens_held(1e6 * max(0.0, room - held), d_model=width, dtype=type_)
            speed = self.speed(dtype, tokens=tokens, **rate)
            about, name = f"{known.gpu_memory:.4g} GB, {text}", "1 GPU"
            why_not = "" if of_each <= n else "they do not fit"
            if both:
                about = f"{counted(n_workers, 'worker')} with {n} each"
                name = f"{known.gpus} GPUs"
                why_not = "" if n_workers else f"they fill {of_each}"
            both.append(Machine(name, speed, held, room, about, max(1, n_workers), why_not=why_not))
        return both if known.gpus > 1 else both[:1]

    def from_disk(self, dtype: str, stored: str) -> list[Machine]:
        """Return this machine's CPU, blocks read from disk once for all shards of a group."""
        sizes, free = self.model.sizes, 1e3 * (self.known.memory or 0.0)
        read, block = self._mb(sizes.blocks, stored), sizes.blocks / self.model.n_layers
        held = self._mb(sizes.others + 2 * block, dtype)
        speed = self.speed(dtype, tokens=self.model.tokens_at_once(), **self._cpu)
        rate = 1e3 * self.known.disk
        why_not = "" if held < free else "they do not fit"
        about = (
            f"as the CPU; blocks, {_gb(read)} in all, are read at {self.known.disk:.4g} GB/s while"
            f" others run, once for all shards of a group, {_gb(held)} are held"
        )
        of_disk: dict[str, Any] = {"read_mb": read, "read_rate": rate}
        return [Machine("disk", speed, held, free, about, **of_disk, why_not=why_not)]

    @property
    def _cpu(self) -> dict[str, float]:
        flops = 1e12 * (self.known.cpu_speed or 0.0) * self.known.cpu_share
        return {"flops": flops, "bandwidth": 1e9 * (self.known.cpu_bandwidth or 0.0)}

    @property
    def _cpu_text(self) -> str:
        known, flops = self.known, self._cpu["flops"]
        return (
            f"{flops / 1e12:.3g} TFLOP/s ({known.cpu_share:.0%} of a product's),"
            f" {known.cpu_bandwidth:.3g} GB/s"
        )

    @staticmethod
    def _mb(n: float, dtype: str) -> float:
        return n * DTYPES[dtype].itemsize / 1e6


def _d_head(model: WeightlessModel) -> int:
    config = model.module.config.get_text_config()
    return int(getattr(config, "head_dim", None) or model.d_model // max(1, model.n_heads))


def _gb(mb: float) -> str:
    return f"{mb / 1e3:.3g} GB" if mb >= 1e3 else f"{mb:.3g} MB"
