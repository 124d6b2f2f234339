"""An ordinary run talks to nobody: no socket is opened to another machine."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import socket, sys

said = []
resolve, connect = socket.getaddrinfo, socket.socket.connect

def getaddrinfo(host, *args, **kwargs):
    said.append(f"name {host}")
    return resolve(host, *args, **kwargs)

def to(self, address):
    here = ("127.", "::1", "localhost")
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(here):
        said.append(f"address {address}")
    return connect(self, address)

socket.getaddrinfo, socket.socket.connect = getaddrinfo, to
from interp.cli import app
try:
    what = "--model zoo/hops-4l --task two-hop --n 4 --analysis layer_skip --out"
    app(["run", *what.split(), sys.argv[1]])
except SystemExit as left:
    assert left.code in (0, None), left.code
import interp
interp.load_model("zoo/names-6l").bridge
assert "transformer_lens" in sys.modules
print("said", said)
"""


def test_no_socket_is_opened(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "said []", done.stderr
