"""Peak memory of a run against the number of prompts: it must not grow.

Read whenever a shard begins. Pages of files are not counted: of the store's, up to 512 MB stay
mapped, and the system drops them when it needs room.
"""

import json
import subprocess
import sys
import tempfile

from benchmarks.harness import Row

_PROGRAM = """
import pathlib, sys
from interp.runs import Study, execute
status, peaks = pathlib.Path("/proc/self/status"), []
def progress(_now):
    lines = status.read_text().splitlines()
    peaks.append(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))
analyses = {"layer_skip": {}, "residual_contribution": {}}
study = Study(("zoo/hops-4l",), ("two-hop",), analyses, n=int(sys.argv[1]))
folder = pathlib.Path(sys.argv[2])
execute(study, folder / "run", store=folder / "store", progress=progress)
progress(None)
print(max(peaks) / 1024)
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
