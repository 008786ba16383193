"""Where each object is: sorted tables of digests, searched in place.

A pack's footer is such a table, and a segment of the index (`pack_segment`) is one for many packs. Neither is checked
as a whole before there is a reason to doubt it: a look-up that fails.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from math import isqrt
from typing import NamedTuple

from mlops_cli.hashing import RAW_SIZE, Digest, digest_from_raw
from mlops_cli.store.pack_format import (
    FILE_HEADER,
    LARGEST_PACK,
    ROW_SIZE,
    TRAILER_SIZE,
    PackError,
    Row,
    check_ends,
    check_footer,
    encode_footer,
    find_footer,
)

_FEW = 512  # rows that are searched through as bytes
_U32 = struct.Struct("<I")
_PATIENCE = 1024  # look-ups in a footer after which a dictionary of its rows is made
_BLOCK = 4096  # rows that are gone through at once
_SPARSE = 16  # looking for one object takes as long as going through that many rows
# Not waiting for the other end of what is no file but a pipe.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Place(NamedTuple):
    """Where an object is: the pack's name, its record's offset there, its length and its length as stored (bytes)."""

    pack: str
    offset: int
    length: int
    stored: int


class Table(ABC):
    """Objects sorted by digest, and where they are; PackError from any verb when the table is damaged.

    `packs` names the packs it knows, `count` is the number of its objects.
    """

    def __init__(self, packs: tuple[str, ...], count: int) -> None:
        self.packs = packs
        self.count = count

    @abstractmethod
    def near(self, raw: bytes) -> tuple[int, int]:
        """Return between which rows a digest must be, if it is there: from the first to before the second."""

    @abstractmethod
    def raws(self, low: int, high: int) -> bytes:
        """Return the digests, 32 bytes each, of the rows from `low` to before `high`."""

    @abstractmethod
    def places(self, low: int, high: int) -> list[Place]:
        """Return where the objects of the rows from `low` to before `high` are."""

    @abstractmethod
    def verify(self) -> None:
        """Refuse a table that is not as it was written: PackError. Reads all of it."""

    def find(self, raw: bytes) -> Place | None:
        """Return where the object with the 32-byte digest `raw` is, or None.

        Of the few rows among which it must be, as bytes, a search finds it.
        """
        low, high = self.near(raw)
        if high - low > _FEW:
            row = self.bisect(raw, low, high)
            return self.places(row, row + 1)[0] if row < high and self.raws(row, row + 1) == raw else None
        raws = self.raws(low, high)
        at = raws.find(raw)
        while at % RAW_SIZE and at > 0:
            at = raws.find(raw, at + 1)
        if at < 0:
            return None
        row = low + at // RAW_SIZE
        return self.places(row, row + 1)[0]

    def find_all(self, raws: Collection[bytes]) -> dict[bytes, Place]:
        """Return where those of the objects with these 32-byte digests are that are here; quick for many."""
        if not raws:
            return {}
        first, end = self.near(min(raws))[0], self.near(max(raws))[1]
        if len(raws) * _SPARSE < end - first:
            return {raw: place for raw in raws if (place := self.find(raw)) is not None}
        wanted = frozenset(raws)
        found: dict[bytes, Place] = {}
        for low in range(first, end, _BLOCK):
            high = min(low + _BLOCK, end)
            joined = self.raws(low, high)
            block = [joined[at : at + RAW_SIZE] for at in range(0, len(joined), RAW_SIZE)]
            if any(map(wanted.__contains__, block)):
                pairs = zip(block, self.places(low, high), strict=True)
                found.update(pair for pair in pairs if pair[0] in wanted)
        return found

    def bisect(self, raw: bytes, low: int, high: int) -> int:
        """Return the first row from `low` on whose digest is not below `raw`, `high` when none before it is."""
        while low < high:
            middle = (low + high) >> 1
            if self.raws(middle, middle + 1) < raw:
                low = middle + 1
            else:
                high = middle
        return low

    def rows(self) -> Iterator[tuple[bytes, Place]]:
        """Yield every object's raw digest and where it is, in order of the digests."""
        for low in range(0, self.count, _BLOCK):
            high = min(low + _BLOCK, self.count)
            raws = self.raws(low, high)
            for number, place in enumerate(self.places(low, high)):
                yield raws[RAW_SIZE * number : RAW_SIZE * (number + 1)], place

    def digests(self) -> Iterator[Digest]:
        """Yield every object, in order."""
        for low in range(0, self.count, _BLOCK):
            raws = self.raws(low, min(low + _BLOCK, self.count))
            for at in range(0, len(raws), RAW_SIZE):
                yield digest_from_raw(raws[at : at + RAW_SIZE])


class Footer(Table):
    """The footer of a pack with its trailer, in memory."""

    def __init__(self, data: bytes, pack: str) -> None:
        super().__init__((pack,), (len(data) - TRAILER_SIZE) // ROW_SIZE)
        self._data = data
        self._columns = RAW_SIZE * self.count
        self._spread = isqrt(self.count) + 8  # two standard deviations of how many digests are below one, and more
        self._patience = _PATIENCE
        self._numbered: dict[bytes, int] = {}  # the row of each digest, once that pays

    def find(self, raw: bytes) -> Place | None:
        """Return where an object is, or None."""
        if self._patience:
            self._patience -= 1
            return super().find(raw)
        row = (self._numbered or self._number()).get(raw)
        if row is None:
            return None
        data, at, size = self._data, self._columns + 4 * row, 4 * self.count
        (offset,), (length,), (stored,) = (_U32.unpack_from(data, at + column * size) for column in range(3))
        return Place(self.packs[0], offset, length, stored)

    def _number(self) -> dict[bytes, int]:
        data = self._data
        self._numbered = {data[RAW_SIZE * row : RAW_SIZE * (row + 1)]: row for row in range(self.count)}
        return self._numbered

    def near(self, raw: bytes) -> tuple[int, int]:
        """Guess between which rows a digest is: digests are spread evenly. All rows when the guess is wrong."""
        data, count = self._data, self.count
        middle = int.from_bytes(raw[:4], "big") * count >> 32
        low, high = max(0, middle - self._spread), min(count, middle + self._spread)
        at, end = RAW_SIZE * low, RAW_SIZE * high
        if (low and data[at : at + RAW_SIZE] > raw) or (high < count and data[end - RAW_SIZE : end] < raw):
            return 0, count
        return low, high

    def raws(self, low: int, high: int) -> bytes:
        """Return the digests of some rows."""
        return self._data[RAW_SIZE * low : RAW_SIZE * high]

    def places(self, low: int, high: int) -> list[Place]:
        """Return where the objects of some rows are."""
        (pack,) = self.packs
        many = f"<{high - low}I"
        columns = (struct.unpack(many, column) for column in self.columns(low, high))
        return [Place(pack, *numbers) for numbers in zip(*columns, strict=True)]

    def columns(self, low: int, high: int) -> tuple[bytes, bytes, bytes]:
        """Return offsets, lengths and stored lengths of some rows, as bytes."""
        size = 4 * self.count
        low, high = self._columns + 4 * low, self._columns + 4 * high
        data = self._data
        return data[low:high], data[low + size : high + size], data[low + 2 * size : high + 2 * size]

    def verify(self) -> None:
        """Refuse a footer that is not as it was written: PackError."""
        check_footer(self._data)


def rows_table(rows: Iterable[Row], pack: str) -> Footer:
    """Return the table that the footer of `pack` would be, made from its records."""
    first: dict[bytes, Row] = {}
    for row in rows:
        first.setdefault(row.raw, row)
    return Footer(encode_footer(list(first.values()), 0), pack)


def footer_table(data: bytes, pack: str, *, whole: bool = False) -> Footer:
    """Return the table in the footer of a pack; PackError when it has none, and with `whole` when it is damaged."""
    start, _ = find_footer(memoryview(data), whole=whole)
    return Footer(data[start:], pack)


def read_footer(path: str, pack: str) -> Footer:
    """Return the table in the footer of the pack at `path`, not checked as a whole; PackError when it has none.

    The footer alone is read, and the file is not kept open.
    """
    descriptor = os.open(path, READ_FLAGS)
    try:
        size = os.fstat(descriptor).st_size
        if size > LARGEST_PACK:
            raise PackError("it is larger than a pack can be")
        begin = os.pread(descriptor, len(FILE_HEADER), 0)
        trailer = os.pread(descriptor, TRAILER_SIZE, max(size - TRAILER_SIZE, 0))
        start, _ = check_ends(begin, trailer, size)
        footer = os.pread(descriptor, size - start, start)
    finally:
        os.close(descriptor)
    if len(footer) != size - start:
        raise PackError("its end is missing")
    return Footer(footer, pack)
