"""Peak memory of a run against the number of prompts: it must not grow."""

import json
import subprocess
import sys
import tempfile

from benchmarks.harness import Row

_PROGRAM = """
import pathlib, sys
from interp.runs import Study, execute
analyses = {"layer_skip": {}, "residual_contribution": {}}
study = Study(("zoo/hops-4l",), ("two-hop",), analyses, n=int(sys.argv[1]))
execute(study, pathlib.Path(sys.argv[2]) / "run", store=pathlib.Path(sys.argv[2]) / "store")
# ru_maxrss would be inherited from a larger parent
status = pathlib.Path("/proc/self/status").read_text().splitlines()
print(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024)
"""


def run() -> dict[str, Row]:
    """Return the peaks in MB for 64, 256 and 1,024 prompts, and the ratio of last to first."""
    peaks = {}
    for n in (64, 256, 1024):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(n), folder],
                capture_output=True,
                check=True,
                text=True,
            )
            peaks[n] = json.loads(done.stdout)
    rows: dict[str, Row] = {f"{n} prompts": {"mb": round(peak)} for n, peak in peaks.items()}
    grown = {"ratio": round(peaks[1024] / peaks[64], 3), "bound": 1.0, "goal": 1.1}
    return rows | {"1,024 prompts / 64 prompts": grown}
