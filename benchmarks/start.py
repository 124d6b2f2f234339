"""Seconds until a fresh process has imported the package or answered, without torch.

The last row does, and loads a shipped model.
"""

import subprocess
import sys
import time
from statistics import median

from benchmarks.harness import Row

_PLAN = (
    "run --model zoo/hops-4l --task two-hop --analysis logit_lens --n 4 --out unwritten --dry-run"
)
_COMMANDS: dict[str, tuple[list[str], Row]] = {
    "import interp": (
        ["-c", "import interp, sys; assert 'torch' not in sys.modules"],
        {"goal": 0.3},
    ),
    "interp --help": (["-m", "interp.cli", "--help"], {"goal": 0.5}),
    "interp list analyses": (["-m", "interp.cli", "list", "analyses"], {}),
    "interp run --dry-run": (["-m", "interp.cli", *_PLAN.split()], {}),
}


def run(repeats: int = 7) -> dict[str, Row]:
    """Return medians."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(repeats):
        for name, (command, _goal) in _COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    return {
        name: (
            {
                "seconds": round(median(each), 3),
                "lowest": round(min(each), 3),
                "highest": round(max(each), 3),
            }
            | _COMMANDS[name][1]
        )
        for name, each in times.items()
    }
