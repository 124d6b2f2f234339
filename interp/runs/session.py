"""What holds during a run: its folder is locked, a log is kept, interruptions wait."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from interp.errors import RunError

_log = logging.getLogger(__name__)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Lock a run folder; the lock goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is at work in {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def is_at_work(out: Path) -> bool:
    """Tell whether a process is at work in a run folder."""
    if not (out / ".lock").exists():
        return False
    try:
        with FileLock(out / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """Append all log messages to run.log."""
    handler = _RunLog(out / "run.log", delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("interp")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _RunLog(logging.FileHandler):
    """A log that fails silently: where it cannot be written, results cannot either, and say so."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None: ...

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Stopping:
    """Set by the first interruption, so that shards under way are finished; the second stops."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._before: Any = None

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._flag.is_set():
            raise KeyboardInterrupt
        _log.warning("interrupted: finishing the shards under way; interrupt again to stop at once")
        self._flag.set()

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def is_set(self) -> bool:
        """Tell whether the run is to end."""
        return self._flag.is_set()
