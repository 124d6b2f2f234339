"""Starting the viewer, and the addresses of its pages.

No torch here, and Streamlit only in the process that is started.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from interp.errors import RunError
from interp.runs.questions import declared_in_files

if TYPE_CHECKING:
    from interp.result import Result

LOCAL = ("localhost", "127.0.0.1", "::1")
PORT = 8501
ANY = "analysis"  # the page of analyses that have none of their own


def app_path() -> Path:
    """Return the script of the viewer's server, in the installed package or in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "_viewer" / "server.py"
    return installed if installed.is_file() else package.parent / "apps" / "viewer" / "server.py"


def address(
    run: str, *, model: str, task: str, analysis: str, label: str = "", **selection: Any
) -> str:
    """Return the part of an address after the host that shows an analysis of a run.

    `selection` is what the page selects, such as layer=3.
    """
    page = page_of(analysis)
    params: dict[str, Any] = {"run": run, "model": model, "task": task}
    params |= {"label": label} if label else {}
    params |= {"of": f"{analysis}@{label}" if label else analysis} if page == ANY else {}
    return f"{page}?{urlencode({**params, **selection})}"


def page_of(analysis: str) -> str:
    """Return the page that shows an analysis; one unknown to this version has no page."""
    known = declared_in_files().get(analysis)
    return ANY if known is None else known.page


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

    Raises RunError for a missing folder, for a port that is taken, and without Streamlit.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"no folder {path}; a run, or a folder of runs, is needed")
    root, name = served(path)
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


def served(folder: Path) -> tuple[Path, str]:
    """Return the folder whose runs a viewer can show: a run's parent, and then the run's name."""
    root = folder.resolve()
    return (root.parent, root.name) if (root / "run.json").is_file() else (root, "")


def _start(root: Path, port: int, host: str) -> subprocess.Popen[bytes]:
    settings = {
        "server.address": "127.0.0.1" if host in LOCAL else host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "runner.postScriptGC": "false",  # longer than a page, before the last of it is sent
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(app_path()), *flags]
    environment = {**os.environ, "INTERP_VIEWER_ROOT": str(root), "PYTHONPATH": _python_path()}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere)


def _python_path() -> str:
    """Return where the viewer's process finds this package, installed or not."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))


def _free_port(host: str, port: int | None) -> int:
    """Return the port asked for, or the first free one from 8501 on; raise RunError without one."""
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
        f"port {port or f'{PORT} to {PORT + 49}'} cannot be used on {host} ({reason});"
        " name another with --port"
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
    """Open the viewer on a run folder, a folder of runs, or a result that `open_run` returned.

    Returns at once; the viewer runs until its `close` is called or Python ends. Raises RunError for
    a result that is not from a run folder.
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
            "this result is not from a run folder;"
            " `interp run` makes one, `interp.open_run` reads it"
        )
    return origin.folder, address(
        origin.folder.resolve().name,
        model=origin.model,
        task=origin.task,
        analysis=origin.analysis,
        label=origin.label,
    )
