"""How long work tells its progress without knowing a terminal.

Core functions take a `Reporter` and default to `SILENT`; the command line passes one that draws or prints.
"""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives progress; calls come per batch, not per file, and from one thread, but for `note`."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Work named `label` begins; `total` units are expected (`None`: unknown); unit is `files` or `bytes`."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""

    def note(self, message: str) -> None:
        """Something the user should know, that stops nothing; the paths in its commands are marked (`words`).

        Any thread may call it.
        """


class Silent:
    """A reporter that says nothing."""

    def start(self, label: str, total: int | None, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...

    def note(self, message: str) -> None: ...


SILENT: Reporter = Silent()
