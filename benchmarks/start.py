"""Seconds until a fresh process has imported the package or answered, without torch.

The last row does, and loads a shipped model.
"""

import os
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
    """Return medians; a first time, in which Python compiles what it imports, is not counted."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"}
    for i in range(1 + repeats):
        for name, (command, _goal) in _COMMANDS.items():
            began = time.perf_counter()
            whole = [sys.executable, *command]
            subprocess.run(whole, check=True, capture_output=True, env=environment)
            times[name] += [time.perf_counter() - began] * bool(i)
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
