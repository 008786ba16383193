"""How many requests at once a server bears, learnt from what it refuses.

The one idea is that of TCP: a server that says it is busy, or does not answer, gets half as many at once, and one more
once many have gone well. Nothing limits a server that never complained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

_UNLIMITED = 1 << 10  # more than any number of jobs
_PATIENCE = 16  # rounds that go well before one more request is tried: a refusal costs more than a place that is free


class Pace:
    """A gate that requests of several threads go through; `width` is how many may be under way."""

    def __init__(self) -> None:
        self.width = _UNLIMITED
        self._round = 0  # how often the width was halved
        self._under_way = 0
        self._well = 0  # requests that went well since the width changed
        self._gate = Condition()

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Wait until one more request may be made, and count it while the block lasts; what it yields `slow` takes."""
        with self._gate:
            self._gate.wait_for(lambda: self._under_way < self.width)
            self._under_way += 1
            turn = self._round
        try:
            yield turn
        finally:
            with self._gate:
                self._under_way -= 1
                self._gate.notify()

    def slow(self, turn: int) -> None:
        """Note that the server had too much to do with a request: half of what was under way is enough.

        Of many that were refused together, the first says it for all.
        """
        with self._gate:
            if turn != self._round:
                return
            self._round += 1
            self._well = 0
            self.width = max(min(self.width, self._under_way + 1) // 2, 1)

    def quicken(self) -> None:
        """Note that a request went well: after `_PATIENCE` times as many as may be under way, one more may."""
        if self.width >= _UNLIMITED:
            return
        with self._gate:
            self._well += 1
            if self._well >= self.width * _PATIENCE:
                self._well = 0
                self.width += 1
                self._gate.notify()
