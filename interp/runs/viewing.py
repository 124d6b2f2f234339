"""Starting the viewer, and the addresses of its pages; no torch, and Streamlit only in the process
that it starts.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from interp.errors import RunError

if TYPE_CHECKING:
    from interp.result import Result

LOCAL = ("localhost", "127.0.0.1", "::1")
PORT = 8501
_PAGES = {
    "residual_contribution": "residual", "layer_skip": "skip", "logit_lens": "lens", "void_detection": "voids",
    "circuit_discovery": "circuit", "relevance_patching": "circuit", "activation_patching": "circuit",
    "back_patching": "backpatch", "depth_map": "depthmap", "residual_erasure": "erasure", "integrated_gradients": "erasure",
}  # fmt: skip


def app_path() -> Path:
    """Return the viewer's script: inside the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "_viewer" / "app.py"
    return installed if installed.is_file() else package.parent / "apps" / "viewer" / "app.py"


def address(
    run: str, *, model: str, task: str, analysis: str, label: str = "", **selection: Any
) -> str:
    """Return the part of an address behind the host that shows an analysis of a run, with a
    selection such as layer=3.
    """
    page = _PAGES.get(analysis, "analysis")
    name = f"{analysis}@{label}" if label else analysis
    params: Mapping[str, Any] = {"run": run, "model": model, "task": task}
    params = {
        **params,
        **({"label": label} if label else {}),
        **({"of": name} if page == "analysis" else {}),
        **selection,
    }
    return f"{page}?{urlencode(params)}"


@dataclass
class Viewer:
    """A running viewer; `close` (or the end of a with block) ends it."""

    url: str
    process: subprocess.Popen[bytes]

    def close(self) -> None:
        """End the viewer."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(
    folder: str | Path, *, port: int | None = None, host: str = "localhost", page: str = ""
) -> Viewer:
    """Start the viewer of a run, or of a folder of runs, and return when it answers.

    Raises RunError for a folder that is not there, a port that is taken, and where Streamlit is
    missing.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"no folder {path}; a run, or a folder of runs, is needed")
    root, name = (
        (path.resolve().parent, path.resolve().name)
        if (path / "run.json").is_file()
        else (path.resolve(), "")
    )
    if importlib.util.find_spec("streamlit") is None:
        raise RunError("the viewer needs streamlit: pip install streamlit")
    chosen = _free_port(host, port)
    url = f"http://{'localhost' if host in LOCAL else host}:{chosen}"
    opened = page or (f"overview?{urlencode({'run': name})}" if name else "")
    viewer = Viewer(f"{url}/{opened}", _start(root, chosen, host))
    try:
        _wait(viewer, f"http://{'127.0.0.1' if host in LOCAL else host}:{chosen}/_stcore/health")
    except BaseException:
        viewer.close()
        raise
    return viewer


def _start(root: Path, port: int, host: str) -> subprocess.Popen[bytes]:
    settings = {
        "server.address": "127.0.0.1" if host in LOCAL else host, "server.port": port, "server.headless": "true",
        "browser.gatherUsageStats": "false", "server.fileWatcherType": "none", "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none", "server.enableStaticServing": "false",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(app_path()),
        *(f"--{k}={v}" for k, v in settings.items()),
    ]
    environment = {**os.environ, "INTERP_VIEWER_ROOT": str(root), "PYTHONPATH": _python_path()}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _python_path() -> str:
    """Return where the viewer's process finds this package, installed or not."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)


def _free_port(host: str, port: int | None) -> int:
    """Return the port asked for, or the first free one from 8501 on; raise RunError where there is
    none.
    """
    candidates = [port] if port is not None else range(PORT, PORT + 50)
    for candidate in candidates:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1" if host in LOCAL else host, candidate))
            except OSError as error:
                reason = error.strerror
                continue
            return candidate
    raise RunError(
        f"port {port or f'{PORT} to {PORT + 49}'} cannot be used on {host} ({reason}); name another"
        " with --port"
    )


def _wait(viewer: Viewer, health: str, *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if viewer.process.poll() is not None:
            raise RunError(f"the viewer ended at once, with status {viewer.process.returncode}")
        try:
            with urlopen(health, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.1)
    raise RunError(f"the viewer did not answer within {seconds:.0f} s")


def view(
    what: "Result | str | Path", *, port: int | None = None, open_browser: bool = True
) -> Viewer:
    """Open the viewer in a browser: on a run folder, a folder of runs, or a result that `open_run`
    returned.

    Returns at once; the viewer runs until `close` is called on what is returned, or Python ends.
    Raises RunError for a result that is not from a run folder.
    """
    folder, page = _place_of(what)
    viewer = start(folder, port=port, page=page)
    import atexit

    atexit.register(viewer.close)
    if open_browser:
        webbrowser.open(viewer.url)
    return viewer


def _place_of(what: "Result | str | Path") -> tuple[str | Path, str]:
    """Return the folder to view and the page to open."""
    if isinstance(what, str | Path):
        return what, ""
    origin = what.origin
    if origin is None:
        raise RunError(
            "this result is not from a run folder; `interp run` makes one, `interp.open_run`"
            " reads it"
        )
    return origin.folder, address(
        origin.folder.resolve().name,
        model=origin.model,
        task=origin.task,
        analysis=origin.analysis,
        label=origin.label,
    )
