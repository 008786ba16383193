"""Progress on standard error: a bar on a terminal after a second, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Protocol

from mlops_cli.cli.streams import write_error
from mlops_cli.cli.text import size_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DRAW_AFTER_SECONDS = 1.0
_TELL_EVERY_SECONDS = 10.0


class Room(Protocol):
    """What else writes to the terminal while work goes on."""

    def note(self, message: str) -> None:
        """Tell something that stops nothing."""

    def make_room(self, *, wanted: bool) -> None:
        """Draw nothing at the foot of the terminal while room is wanted there."""


class TerminalReporter:
    """Tells how work goes, unless `silent`; what the user should know goes to `tell_note`."""

    def __init__(self, tell_note: Callable[[str], None], *, silent: bool, color: bool) -> None:
        self.tell_note = tell_note
        self.silent = silent
        self.color = color
        self._label = self._unit = ""
        self._total: int | None = None
        self._done = 0
        self._begun = self._told = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._lock = RLock()
        self._room: Room | None = None

    def share_with(self, room: Room) -> None:
        """Tell notes through what else writes to the terminal, and have it make room for the bar."""
        self._room = room
        self.tell_note = room.note

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a piece of work."""
        self.close()
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._begun = self._told = time.monotonic()

    def advance(self, amount: int) -> None:
        """Add `amount` units."""
        self._done += amount
        if self.silent or not self._label:
            return
        now = time.monotonic()
        if sys.stderr.isatty():
            with self._lock:
                self._draw(now)
        elif now - self._told >= _TELL_EVERY_SECONDS:
            self._told = now
            write_error(f"{self._label}: {self._so_far(now)}\n")

    def note(self, message: str) -> None:
        """Tell something that stops nothing."""
        with self._lock:
            self.close()  # the next step draws the bar again, below the note
            self.tell_note(message)

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
                if self._room is not None:
                    self._room.make_room(wanted=False)

    def _so_far(self, now: float) -> str:
        """Return how much is done, and how long the rest takes if it goes on as it did."""
        spell = size_text if self._unit == "bytes" else "{:,}".format
        of = f" of {spell(self._total)}" if self._total else ""
        said = f"{spell(self._done)}{of}" if self._unit == "bytes" else f"{spell(self._done)}{of} {self._unit}"
        if not self._total or not 0 < self._done < self._total:
            return said
        left = (now - self._begun) / self._done * (self._total - self._done)
        return f"{said}, about {f'{left:.0f} s' if left < 100 else f'{left / 60:.0f} min'} left"

    def _draw(self, now: float) -> None:
        if self._progress is None:
            if now - self._begun < _DRAW_AFTER_SECONDS:
                return
            if self._room is not None:
                self._room.make_room(wanted=True)
            self._progress = _make_bar(self.color, self._unit)
            self._task = self._progress.add_task(self._label, total=self._total)
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, completed=self._done)


def _make_bar(color: bool, unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counted = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn())
    console = Console(stderr=True, no_color=not color)
    return Progress(*columns, console=console, transient=True)
