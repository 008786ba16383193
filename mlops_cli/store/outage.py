"""Since when a server has failed whatever it was asked, by all threads together.

The one idea: patience is with the server, not with each request. When one request has waited for as long as pays, those
after it need not wait as long again: they are tried once, for the server may be back.
"""

from __future__ import annotations

from math import inf
from threading import Lock

TOLD_AFTER = 3.0  # s
_LONG_AGO = 120.0  # s without a request, after which nothing is known of an outage


class Outage:
    """What all requests to one server have come to, of late; times are of one clock that never goes back (s)."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._answered = 0.0
        self._failed = 0.0
        self._told = False
        self._lock = Lock()

    def end(self, now: float) -> None:
        """Note that the server answered."""
        self._answered = now
        if self._since is not None:
            with self._lock:
                self._since = None

    def begin_anew(self, now: float) -> None:
        """Note that some of what a request asked for had come before it failed; what was told stays told."""
        with self._lock:
            self._answered = now
            if self._since is not None:
                self._since = now

    def go_on(self, begun: float, now: float) -> float:
        """Note that a request that began at `begun` has failed; return since when all have."""
        with self._lock:
            if self._since is None or now - self._failed > _LONG_AGO:
                self._since, self._told = max(begun, self._answered), False
            self._failed = now
            return self._since

    def give_up(self) -> None:
        """Note that a request has been tried for as long as pays: until there is an answer, once is enough."""
        with self._lock:
            if self._since is not None:
                self._since = -inf

    def is_news(self, now: float, *, silent: bool = False) -> bool:
        """Say, once in an outage, that it has lasted long enough for the user to hear of it.

        It has from the beginning when the request that failed had been `silent` for long, whatever came before.
        """
        with self._lock:
            if self._told or self._since is None or not (silent or now - self._since >= TOLD_AFTER):
                return False
            self._told = True
            return True
