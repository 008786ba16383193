"""What stays at the foot of a terminal while stages run: which, for how long, the last line of each.

Everything else that is told is written above it. It is drawn while the run waits for its commands, twice a second, and
after what is written above: a thread would keep `workers` from using all processors. It is plain text and two escapes;
a terminal that does not know these has none of it. What commands write is tamed before it goes above (`tamed`), for
it could move the cursor anywhere.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import NamedTuple

from mlops_cli.cli.streams import error_size, write_error
from mlops_cli.cli.text import clipped, columns_of, duration_text, printable

_DRAW_EVERY_SECONDS = 0.05
_DRAW_AFTER_SECONDS = 1.0
_CALM_SECONDS = 1.0
_KEPT = 4096  # bytes of a command's output in which its last line is looked for
_LONGEST_NAME = 30
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")
_COLOR = re.compile(rb"\x1b\[[\d;:]*m\Z")
_UNTAMED = re.compile(rb"[^\t -~]")


def can_be_live() -> bool:
    """Say whether standard error is a terminal that can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")


class Running(NamedTuple):
    """A stage that runs, since when (monotonic), and the end of what it wrote."""

    since: float
    tail: bytes = b""


def frame(
    running: Mapping[str, Running], done: int, total: int, took: float, now: float, size: tuple[int, int]
) -> list[str]:
    """Return the lines for a terminal of `size` (columns, lines), none of which reaches its last column."""
    columns, most = size[0] - 1, max(1, min(8, size[1] // 2 - 1))
    shown = list(running.items())[:most]
    times = [_elapsed(now - each.since) for _, each in shown]
    width = min(_LONGEST_NAME, max((columns_of(name) for name, _ in shown), default=0))
    ticks = max(map(len, times), default=0)
    lines = []
    for (name, each), spent in zip(shown, times, strict=True):
        head = clipped(printable(name), width)
        lines.append(f"{head}{' ' * (width - columns_of(head))}  {spent:>{ticks}}  {last_line(each.tail)}")
    more = f" ({len(running) - most} more than shown)" if len(running) > most else ""
    lines.append(f"{done} of {total} done, {len(running)} running{more}, {_elapsed(took)}")
    return [clipped(line.rstrip(), columns) for line in lines]


def _elapsed(seconds: float) -> str:
    return f"{int(seconds)} s" if seconds < 60 else duration_text(int(seconds))


def last_line(tail: bytes) -> str:
    """Return the last line of some output that says anything, as a terminal can only show it."""
    for line in reversed(re.split(rb"[\r\n]", _ESCAPES.sub(b"", tail))):
        if text := _UNTAMED.sub(_spelled, line).decode("utf-8", "replace").strip():
            return printable(text)
    return ""


def tamed(line: bytes) -> bytes:
    """Return a line of output as what a terminal shows of it in the end: colours stay, nothing moves the cursor."""
    if not _UNTAMED.search(line):
        return line
    line = line.rstrip(b"\r").rpartition(b"\r")[2]  # a bar that was drawn over and over
    plain = _ESCAPES.sub(lambda found: found[0] if _COLOR.match(found[0]) else b"", line)
    parts = re.split(rb"(\x1b\[[\d;:]*m)", plain)
    text = b"".join(part if number % 2 else _visible(part) for number, part in enumerate(parts))
    return text + b"\x1b[0m" if len(parts) > 1 else text


def _moves_cursor(data: bytes) -> bool:
    """Say whether there are escapes in `data` that are more than colours."""
    return b"\x1b" in data and any(not _COLOR.match(found[0]) for found in _ESCAPES.finditer(data))


def _visible(part: bytes) -> bytes:
    text = part.replace(b"\t", b"        ").decode("utf-8", "surrogateescape")
    return printable(text).encode("utf-8", "backslashreplace")


def _spelled(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0] >= b"\x80" else b" "


@dataclass(slots=True)
class LiveView:
    """Draws what runs below what is told; `raw` when one command at a time writes to the terminal as it likes.

    Then the lines are drawn only while the command is calm, and left the cursor at the start of a line. `begun` is when
    the run began (monotonic).
    """

    raw: bool
    begun: float
    total: int = 0
    done: int = 0
    running: dict[str, Running] = field(default_factory=dict)
    _wrote: float = 0.0
    _at_start: bool = True
    _drawn: tuple[int, ...] = ()  # the columns that each line took
    _drew: float = 0.0
    _hidden: bool = False
    _lock: RLock = field(default_factory=RLock)

    def begin(self, stage: str) -> None:
        """Show a stage as running."""
        with self._lock:
            self.running[stage] = Running(time.monotonic())

    def end(self, stage: str, *, done: bool) -> None:
        """Show a stage no more; say whether it is done."""
        with self._lock:
            self.running.pop(stage, None)
            self.done += done

    def hear(self, stage: str, data: bytes) -> None:
        """Take note of what a command wrote."""
        with self._lock:
            if (each := self.running.get(stage)) is not None:
                self.running[stage] = each._replace(tail=(each.tail + data)[-_KEPT:])

    @contextmanager
    def above(self, data: bytes | None = None) -> Iterator[None]:
        """Take the lines away while something else is written; `data` is what, when a command writes it raw."""
        with self._lock:
            self._erase()
            try:
                yield
            finally:
                now = self._wrote = time.monotonic()
                if now - self._drew >= _DRAW_EVERY_SECONDS:
                    self._draw(now)
                self._at_start = data is None or (data.endswith(b"\n") and not _moves_cursor(data))

    def close(self) -> None:
        """Take the lines away for good."""
        with self._lock:
            self._erase()
            self.running.clear()

    def hide(self, *, wanted: bool) -> None:
        """Draw nothing for as long as it is wanted."""
        with self._lock:
            self._hidden = wanted
            self._erase()

    def tick(self) -> None:
        """Draw what is so now."""
        with self._lock:
            self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        calm = not self.raw or (self._at_start and now - self._wrote >= _CALM_SECONDS)
        if self._hidden or not self.running or not calm or now - self.begun < _DRAW_AFTER_SECONDS:
            self._erase()
            return
        size = error_size()
        lines = frame(self.running, self.done, self.total, now - self.begun, now, size)
        write_error(self._erasing(size[0]) + "\n".join(lines))
        self._drawn, self._drew = tuple(map(columns_of, lines)), now

    def _erase(self) -> None:
        if self._drawn:
            write_error(self._erasing(error_size()[0]))
            self._drawn = ()

    def _erasing(self, columns: int) -> str:
        """Return what takes the lines away; where the terminal has become narrower, each of them is several now."""
        rows = sum(max(1, -(-width // columns)) for width in self._drawn)
        return f"\r\x1b[{rows - 1}A\x1b[J" if rows > 1 else "\r\x1b[J" if rows else ""
