"""What this process holds in memory, and how much of what it frees goes back to the system."""

import ctypes
import sys
from pathlib import Path

_MMAP_THRESHOLD = -3  # of mallopt(3)
_LARGE = 1 << 23  # bytes


def return_large_blocks() -> None:
    """Let the C library of Linux return blocks of 8 MB and more as soon as they are freed.

    Otherwise it comes to keep ever larger ones, and a run of SmolLM2-135M peaks a gigabyte higher.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_MMAP_THRESHOLD, _LARGE)


def resident_mb() -> float:
    """Return what the process holds now, in MB; 0 if the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        held = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0.0
    return int(held.split()[1]) * 1024 / 1e6


def free_mb() -> float:
    """Return what the system could give to processes now, in MB; 0 if it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1e3
    except (OSError, StopIteration):
        return 0.0


def peak_mb() -> int:
    """Return the most that the process has held, in MB; 0 if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)
