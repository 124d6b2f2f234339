"""How far a run is: a bar on a terminal, a line every 30 seconds elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from interp.cli.terminal import err, note
from interp.figures.words import duration

if TYPE_CHECKING:
    from interp.runs.progress import Standing

_SECONDS = 30.0


class Watch:
    """The last that was heard of a run; what is left shrinks as time goes by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._standing: Standing | None = None

    def hear(self, standing: "Standing") -> None:
        """Take note of how far a run is."""
        self._standing, self._heard = standing, self._clock()

    @property
    def doing(self) -> str:
        """Return which analysis of which prompts is under way."""
        return "beginning" if self._standing is None else self._standing.doing

    @property
    def left(self) -> str:
        """Return which share is done, and about how long the rest takes; "" if nothing is known."""
        if self._standing is None or self._standing.seconds_left is None:
            return ""
        seconds = self._standing.seconds_left - (self._clock() - self._heard)
        left = f"about {duration(seconds)} left"
        if seconds < 1:
            left = "nearly there" if seconds > -_SECONDS else "longer than planned"
        return f"{100 * self._standing.share:.0f} % done, {left}"


@contextmanager
def watching() -> "Iterator[Callable[[Standing], None]]":
    """Show on stderr what is told of a run's progress, until the block ends."""
    watch = Watch()
    show = _bar if err.is_terminal and not err.quiet else _lines
    with show(watch):
        yield watch.hear


class _Left(ProgressColumn):
    """What a watch says is left."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def render(self, task: Task) -> Text:
        """Return it, as of now."""
        task.description = self._watch.doing
        return Text(self._watch.left)


@contextmanager
def _bar(watch: Watch) -> Iterator[None]:
    columns = (_Left(watch), BarColumn(bar_width=12), TextColumn("{task.description}"))
    with Progress(*columns, console=err) as bars:
        bars.add_task("", total=None)
        yield


@contextmanager
def _lines(watch: Watch) -> Iterator[None]:
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_SECONDS):
            note("; ".join(filter(None, (watch.doing, watch.left))))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
