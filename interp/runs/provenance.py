"""What computes and when: packages' versions, the commit, the machine, the time."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from interp import __version__

_PACKAGES = ("transformers", "transformer-lens", "numpy")


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of all relevant packages, and the commit if run from a clone."""
    known = {
        "interp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in _PACKAGES},
    }
    clone = Path(__file__).parents[2]
    if (clone / ".git").exists() and (git := shutil.which("git")):
        done = subprocess.run(
            [git, "-C", clone, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        known |= {"commit": done.stdout.strip()} if done.returncode == 0 else {}
    return known | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def machine() -> str:
    """Return the system, the number of threads, and the GPUs."""
    system = f"{platform.system()} {platform.machine()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([system, f"{torch.get_num_threads()} threads", *gpus])
