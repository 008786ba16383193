"""Which run records a remote was seen to have: a note of this clone, so that a push asks about each only once.

What the note says may be old: a record that a collection took away since is a run that is done once more, no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LARGEST = 1 << 20  # bytes; a note that has grown beyond is begun anew, and what it said is asked once more


class RunNotes:
    """The note at `path`: pairs of a fingerprint and a mark that tells one record under it from others."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._known: set[bytes] | None = None

    def has(self, key: str, mark: str) -> bool:
        """Say whether the remote was seen to have the record."""
        if self._known is None:
            try:
                with self.path.open("rb") as stream:
                    data = stream.read(_LARGEST)
            except OSError:
                data = b""
            self._known = set(data.split(b"\n"))
        return _line(key, mark) in self._known

    def add(self, seen: Iterable[tuple[str, str]]) -> None:
        """Note that the remote has some records; in a clone that is only to read, nothing is noted."""
        lines = [_line(key, mark) for key, mark in seen]
        if not lines:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_full = self.path.exists() and self.path.stat().st_size > _LARGEST // 2
            with self.path.open("wb" if is_full else "ab") as stream:
                stream.write(b"".join(b"\n" + line for line in lines) + b"\n")  # what was cut short before ends here
        if self._known is not None:
            self._known.update(lines)


def _line(key: str, mark: str) -> bytes:
    return f"{key} {mark}".encode()
