"""Where each object is: sorted tables of digests, looked up in place.

A pack's footer is such a table. A segment is one for many packs, kept in `index/` so that ten thousand packs need not
be opened to find one object; it says nothing that the packs do not, and can be thrown away:

    "MLXI", version u8, bits u8, 2 zero bytes, packs u32, count u32                 all integers little-endian
    names of the packs, 32 bytes each; 2**bits + 1 starts u32: where the digests with each first `bits` bits begin
    sorted by digest: digests 32 bytes; pack numbers, offsets, lengths, stored lengths u32; each column `count` times
    checksum u64 (xxh3-64 of all before it), "MLXJ"

A segment is mapped into memory, so nothing of it is read but what a look-up touches. Neither kind of table is checked
as a whole before there is a reason to doubt it: a look-up that fails.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import isqrt
from typing import NamedTuple

import xxhash

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

_HEADER = struct.Struct("<4sBBxxII")
_MAGIC, _END = b"MLXI", b"MLXJ"
_VERSION = 1
_U32 = struct.Struct("<I")
_PAIR = struct.Struct("<II")
_MOST_BITS = 24
_MANY = 65536  # from here on numpy sorts faster than it is imported
_PATIENCE = 1024  # look-ups in a table after which a dictionary of its rows is made, unless they are many
_FEW = 512  # rows that are searched through as bytes
_ODD = "it points at what cannot be there"
# Not waiting for the other end of what is no file but a pipe.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Place(NamedTuple):
    """Where an object is: the pack's name, its record's offset there, its length and its length as stored (bytes)."""

    pack: str
    offset: int
    length: int
    stored: int


class Table:
    """A table in `data`; the offsets of its columns are given, `numbers` 0 when all is in one pack.

    `count` is the number of its objects, `packs` names the packs it knows, `starts` is 0 but for segments.
    """

    def __init__(
        self,
        data: mmap.mmap | bytes,
        packs: tuple[str, ...],
        count: int,
        *,
        digests: int,
        numbers: int,
        columns: int,
        starts: int = 0,
        bits: int = 0,
    ) -> None:
        self.data = data
        self.packs = packs
        self.count = count
        self._digests = digests
        self._numbers = numbers
        self._columns = columns
        self.starts = starts
        self._shift = 32 - bits
        self._spread = isqrt(count) + 8  # two standard deviations of how many digests are below one, and more
        self._patience = _PATIENCE if count <= _MANY else -1
        self._numbered: dict[bytes, int] = {}  # the row of each digest, once that pays

    def find(self, raw: bytes) -> Place | None:
        """Return where the object with the 32-byte digest `raw` is, or None; PackError when the table is damaged."""
        if self._patience:
            self._patience -= 1
            row = self._row(raw)
        else:
            row = (self._numbered or self._number()).get(raw, -1)
        return None if row < 0 else self._place(row)

    def _number(self) -> dict[bytes, int]:
        begin = self._digests
        rows = self.data[begin : begin + RAW_SIZE * self.count]
        self._numbered = {rows[RAW_SIZE * row : RAW_SIZE * (row + 1)]: row for row in range(self.count)}
        return self._numbered

    def _row(self, raw: bytes) -> int:
        """Return the row of a digest, or -1: of the few rows among which it must be, as bytes, a search finds it."""
        data, count = self.data, self.count
        if self.starts:
            at = self.starts + 4 * (int.from_bytes(raw[:4], "big") >> self._shift)
            low, high = _PAIR.unpack_from(data, at)
            if high > count:
                raise PackError(_ODD)
        else:
            low, high = self._near(raw)
        if high - low > _FEW:
            return self._bisect(raw, low, high)
        rows = data[self._digests + RAW_SIZE * low : self._digests + RAW_SIZE * high]
        at = rows.find(raw)
        while at % RAW_SIZE and at > 0:
            at = rows.find(raw, at + 1)
        return low + at // RAW_SIZE if at >= 0 else -1

    def _near(self, raw: bytes) -> tuple[int, int]:
        """Guess between which rows a digest is: digests are spread evenly. All rows when the guess is wrong."""
        data, count, base = self.data, self.count, self._digests
        middle = int.from_bytes(raw[:4], "big") * count >> 32
        low, high = max(0, middle - self._spread), min(count, middle + self._spread)
        at, end = base + RAW_SIZE * low, base + RAW_SIZE * high
        if (low and data[at : at + RAW_SIZE] > raw) or (high < count and data[end - RAW_SIZE : end] < raw):
            return 0, count
        return low, high

    def _bisect(self, raw: bytes, low: int, high: int) -> int:
        data, base = self.data, self._digests
        while low < high:
            middle = (low + high) >> 1
            at = base + RAW_SIZE * middle
            probe = data[at : at + RAW_SIZE]
            if probe < raw:
                low = middle + 1
            elif probe > raw:
                high = middle
            else:
                return middle
        return -1

    def verify(self) -> None:
        """Refuse a table that is not as it was written: PackError. Reads all of it."""
        view = memoryview(self.data)
        if not self.starts:
            check_footer(view[self._digests :])
        elif xxhash.xxh3_64_intdigest(view[:-12]) != int.from_bytes(view[-12:-4], "little"):
            raise PackError("it is not what was written")

    def digests(self) -> Iterator[Digest]:
        """Yield every object, in order."""
        for at in range(self._digests, self._digests + RAW_SIZE * self.count, RAW_SIZE):
            yield digest_from_raw(self.data[at : at + RAW_SIZE])

    def rows(self) -> Iterator[tuple[bytes, Place]]:
        """Yield every object's raw digest and where it is, in order of the digests."""
        for number in range(self.count):
            at = self._digests + RAW_SIZE * number
            yield bytes(self.data[at : at + RAW_SIZE]), self._place(number)

    def _place(self, row: int) -> Place:
        data, column, size = self.data, self._columns + 4 * row, 4 * self.count
        number = _U32.unpack_from(data, self._numbers + 4 * row)[0] if self._numbers else 0
        if number >= len(self.packs):
            raise PackError(_ODD)
        (offset,) = _U32.unpack_from(data, column)
        (length,) = _U32.unpack_from(data, column + size)
        (stored,) = _U32.unpack_from(data, column + 2 * size)
        return Place(self.packs[number], offset, length, stored)

    def columns(self) -> tuple[memoryview, memoryview, memoryview]:
        """Return three columns as bytes: digests, pack numbers, and offsets with lengths and stored lengths."""
        view = memoryview(self.data)
        numbers = view[self._numbers : self._numbers + 4 * self.count] if self._numbers else bytes(4 * self.count)
        return (
            view[self._digests : self._digests + RAW_SIZE * self.count],
            memoryview(numbers),
            view[self._columns : self._columns + 12 * self.count],
        )


def rows_table(rows: Iterable[Row], pack: str) -> Table:
    """Return the table that the footer of `pack` would be, made from its records."""
    first: dict[bytes, Row] = {}
    for row in rows:
        first.setdefault(row.raw, row)
    return _alone(encode_footer(list(first.values()), 0), pack)


def footer_table(data: mmap.mmap | bytes, pack: str, *, whole: bool = False) -> Table:
    """Return the table in the footer of a pack; PackError when it has none, and with `whole` when it is damaged."""
    start, count = find_footer(memoryview(data), whole=whole)
    return Table(data, (pack,), count, digests=start, numbers=0, columns=start + RAW_SIZE * count)


def read_footer(path: str, pack: str) -> Table:
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
    return _alone(footer, pack)


def _alone(footer: bytes, pack: str) -> Table:
    """Return the table that a footer with its trailer is, without the records before it."""
    count = (len(footer) - TRAILER_SIZE) // ROW_SIZE
    return Table(footer, (pack,), count, digests=0, numbers=0, columns=RAW_SIZE * count)


def segment_table(data: mmap.mmap | bytes, *, whole: bool = False) -> Table:
    """Return the table of a segment; PackError unless it begins and ends as one, with `whole` unless it is intact."""
    size = len(data)
    if size < _HEADER.size + 12:
        raise PackError("it is too short")
    magic, version, bits, packs, count = _HEADER.unpack_from(data)
    starts = _HEADER.size + RAW_SIZE * packs
    digests = starts + 4 * (2**bits + 1) if bits <= _MOST_BITS else size
    numbers = digests + RAW_SIZE * count
    if magic != _MAGIC or version != _VERSION or numbers + 16 * count + 12 != size or data[size - 4 :] != _END:
        raise PackError("it is no index of packs")
    names = tuple(data[at : at + RAW_SIZE].hex() for at in range(_HEADER.size, starts, RAW_SIZE))
    table = Table(
        data, names, count, digests=digests, numbers=numbers, columns=numbers + 4 * count, starts=starts, bits=bits
    )
    if whole:
        table.verify()
    return table


def mapped(path: str) -> mmap.mmap:
    """Map a file into memory, which keeps it open; PackError when it is empty."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except ValueError as error:
        raise PackError("it is empty") from error
    finally:
        os.close(descriptor)


def encode_segment(tables: Sequence[Table]) -> bytes:
    """Return the bytes of one segment that knows all that `tables` know; of an object in two packs, one place."""
    packs = tuple(dict.fromkeys(pack for table in tables for pack in table.packs))
    merged = (_merge_many if sum(table.count for table in tables) > _MANY else _merge_few)(tables, packs)
    bits = min(max(merged.objects.bit_length() - 4, 0), _MOST_BITS)  # 8 to 16 objects begin with the same
    header = _HEADER.pack(_MAGIC, _VERSION, bits, len(packs), merged.objects)
    names = b"".join(bytes.fromhex(pack) for pack in packs)
    body = b"".join((header, names, merged.starts(bits), merged.digests, merged.columns))
    return body + struct.pack("<Q4s", xxhash.xxh3_64_intdigest(body), _END)


class _Merged(NamedTuple):
    """Columns sorted by digest, as bytes; `starts` gives that column for a number of bits."""

    objects: int
    digests: bytes
    columns: bytes
    starts: Callable[[int], bytes]


def _merge_few(tables: Sequence[Table], packs: tuple[str, ...]) -> _Merged:
    number = {pack: _U32.pack(at) for at, pack in enumerate(packs)}
    found: dict[bytes, tuple[bytes, ...]] = {}
    for table in tables:
        for raw, place in table.rows():
            found.setdefault(raw, (number[place.pack], *map(_U32.pack, place[1:])))
    ordered = sorted(found)
    columns = b"".join(b"".join(found[raw][column] for raw in ordered) for column in range(4))

    def starts(bits: int) -> bytes:
        counts = [0] * (2**bits + 1)
        for raw in ordered:
            counts[(int.from_bytes(raw[:4], "big") >> (32 - bits)) + 1] += 1
        return struct.pack(f"<{len(counts)}I", *accumulate(counts))

    return _Merged(len(ordered), b"".join(ordered), columns, starts)


def _merge_many(tables: Sequence[Table], packs: tuple[str, ...]) -> _Merged:
    import numpy as np

    number = {pack: at for at, pack in enumerate(packs)}
    digests, numbers, columns = [], [], []
    for table in tables:
        raws, own, rest = table.columns()
        digests.append(np.frombuffer(raws, np.uint8).reshape(-1, RAW_SIZE))
        renumber = np.array([number[pack] for pack in table.packs], np.uint32)
        numbers.append(renumber[np.frombuffer(own, "<u4")])
        columns.append(np.frombuffer(rest, "<u4").reshape(3, -1))
    every = np.concatenate(digests)
    words = np.ascontiguousarray(every).view(">u8").astype(np.uint64)  # four numbers each, the first weighs most
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    kept = np.ones(len(order), bool)
    kept[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    order = order[kept]
    prefixes = words[order, 0] >> np.uint64(32)
    rows = np.vstack((np.concatenate(numbers)[None, :], np.concatenate(columns, axis=1)))[:, order]

    def starts(bits: int) -> bytes:
        edges = np.arange(2**bits + 1, dtype=np.uint64) << np.uint64(32 - bits)
        return np.searchsorted(prefixes, edges).astype("<u4").tobytes()

    return _Merged(len(order), every[order].tobytes(), rows.astype("<u4").tobytes(), starts)
