"""A run on a Ray cluster of two nodes, one of which is killed in the middle, ends with the numbers
of one process.
"""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from interp.runs import Study, execute
from tests.test_workers import assert_same, tensors

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
STUDY = Study(("zoo/hops-4l",), ("two-hop",), {"layer_skip": {}, "residual_erasure": {}}, n=200)


def test_a_node_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    ray: Any = pytest.importorskip("ray", reason="ray is not installed")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    execute(STUDY, tmp_path / "alone")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    other = cluster.add_node(num_cpus=2)
    out, killed = tmp_path / "run", threading.Event()

    def kill() -> None:
        while len(tensors(out)) < 3:
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)
        killed.set()

    try:
        threading.Thread(target=kill, daemon=True).start()
        run = execute(STUDY, out, workers=2, ray=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed.is_set()
    assert {cell["status"] for cell in run["cells"].values()} == {"ok"}
    assert_same(tmp_path / "alone", out)
