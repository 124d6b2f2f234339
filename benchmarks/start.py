"""Seconds until a fresh process has imported the package, or shown the commands' help; neither loads torch."""

import subprocess
import sys
import time
from statistics import median
from typing import Any

_COMMANDS = {
    "import interp": ["-c", "import interp, sys; assert 'torch' not in sys.modules"],
    "interp --help": ["-m", "interp.cli", "--help"],
}


def run(repeats: int = 7) -> dict[str, Any]:
    """Return medians."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(repeats):
        for name, command in _COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    return {
        name: {
            "seconds": round(median(each), 3),
            "lowest": round(min(each), 3),
            "highest": round(max(each), 3),
        }
        for name, each in times.items()
    }
