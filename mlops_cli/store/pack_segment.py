"""Segments of the index: one table for many packs, so that ten thousand packs need not be opened to find one object.

    "MLXI", version u8, bits u8, 2 zero bytes, packs u32, count u32                 all integers little-endian
    names of the packs, 32 bytes each; 2**bits + 1 starts u32: where the digests with each first `bits` bits begin
    sorted by digest: `count` digests of 32 bytes; `count` rows: pack number, offset, length, stored length, u32 each
    checksum u64 (xxh3-64 of all before it), "MLXJ"

A segment says nothing that the packs do not, and can be thrown away. It is read a part at a time and never mapped into
memory: a disk that fails, or somebody who cuts the file short, is then an error like any other, and no signal. Segments
are merged a range of digests after the other, so that ten million objects take no more memory than a million.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from mlops_cli.hashing import RAW_SIZE
from mlops_cli.store.pack_folder import OpenFile
from mlops_cli.store.pack_format import PackError
from mlops_cli.store.pack_index import Footer, Place, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADER = struct.Struct("<4sBBxxII")
_MAGIC, _END = b"MLXI", b"MLXJ"
_VERSION = 2
_TAIL = 12
_PAIR = struct.Struct("<II")
_NUMBERS = struct.Struct("<4I")
_MOST_BITS = 24
_MANY = 65536  # from here on numpy sorts faster than it is imported
_AT_ONCE = 1 << 19  # rows that are merged at once
_IN_MEMORY = 1 << 20  # bytes; what is smaller is read at once
_PIECE = 1 << 20
_BLOCK = 4096  # rows that are looked at at once
_ODD = "it points at what cannot be there"

Read = Callable[[int, int], bytes]  # from an offset on so many bytes, all of them or PackError


class Segment(Table):
    """A segment of `size` bytes; PackError unless it begins and ends as one."""

    def __init__(self, read: Read, size: int) -> None:
        if size < _HEADER.size + _TAIL:
            raise PackError("it is too short" if size else "it is empty")
        magic, version, bits, packs, count = _HEADER.unpack(read(0, _HEADER.size))
        starts = _HEADER.size + RAW_SIZE * packs
        self._digests = starts + 4 * (2**bits + 1) if bits <= _MOST_BITS else size
        self._rows = self._digests + RAW_SIZE * count
        end = self._rows + _NUMBERS.size * count
        if magic != _MAGIC or version != _VERSION or end + _TAIL != size or read(size - 4, 4) != _END:
            raise PackError("it is no index of packs")
        names = read(_HEADER.size, RAW_SIZE * packs)
        super().__init__(tuple(names[at : at + RAW_SIZE].hex() for at in range(0, len(names), RAW_SIZE)), count)
        self._starts = read(starts, self._digests - starts)
        self._shift = 32 - bits
        self._read = read
        self._end = end

    def near(self, raw: bytes) -> tuple[int, int]:
        """Return where the digests with the same first bits are."""
        low, high = _PAIR.unpack_from(self._starts, 4 * (int.from_bytes(raw[:4], "big") >> self._shift))
        if not low <= high <= self.count:
            raise PackError(_ODD)
        return low, high

    def raws(self, low: int, high: int) -> bytes:
        """Return the digests of some rows."""
        return self._read(self._digests + RAW_SIZE * low, RAW_SIZE * (high - low))

    def places(self, low: int, high: int) -> list[Place]:
        """Return where the objects of some rows are."""
        packs = self.packs
        try:
            return [Place(packs[number], *rest) for number, *rest in _NUMBERS.iter_unpack(self.numbers(low, high))]
        except IndexError:
            raise PackError(_ODD) from None

    def numbers(self, low: int, high: int) -> bytes:
        """Return some rows as they are: pack number, offset, length and stored length of each."""
        return self._read(self._rows + _NUMBERS.size * low, _NUMBERS.size * (high - low))

    def verify(self) -> None:
        """Refuse a segment that is not as it was written: PackError."""
        checksum = xxhash.xxh3_64()
        for at in range(0, self._end, _PIECE):
            checksum.update(self._read(at, min(_PIECE, self._end - at)))
        if checksum.intdigest() != int.from_bytes(self._read(self._end, 8), "little"):
            raise PackError("it is not what was written")

    def check_rows(self) -> None:
        """Refuse rows that nobody should have written, as a stranger may have: PackError. Reads all of them."""
        last = b""
        for low in range(0, self.count, _BLOCK):
            high = min(low + _BLOCK, self.count)
            raws = self.raws(low, high)
            ordered = [last, *(raws[at : at + RAW_SIZE] for at in range(0, len(raws), RAW_SIZE))]
            numbers = struct.unpack(f"<{4 * (high - low)}I", self.numbers(low, high))
            if max(numbers[::4]) >= len(self.packs) or ordered != sorted(ordered):
                raise PackError(_ODD)
            last = ordered[-1]


def segment_in(data: bytes) -> Segment:
    """Return the segment whose bytes these are; PackError unless it begins and ends as one."""
    return Segment(lambda at, size: data[at : at + size], len(data))


def read_segment(file: OpenFile) -> Segment:
    """Return the segment in an open file, which is read as it is needed; PackError unless it begins and ends as one.

    A file that cannot be read later on, or not to where its end was, is a damaged segment.
    """
    size = os.fstat(file.descriptor).st_size

    def read(at: int, wanted: int) -> bytes:
        try:
            data = os.pread(file.descriptor, wanted, at)
            while len(data) < wanted and (more := os.pread(file.descriptor, wanted - len(data), at + len(data))):
                data += more
        except OSError as error:
            raise PackError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
        if len(data) < wanted:
            raise PackError("its end is missing")
        return data

    return segment_in(read(0, size)) if size <= _IN_MEMORY else Segment(read, size)


def encode_segment(tables: Sequence[Table]) -> Iterator[bytes]:
    """Yield, in pieces, the bytes of one segment that knows all that `tables` know.

    Of an object in two packs it knows one place. PackError when a table turns out to be damaged.
    """
    checksum = xxhash.xxh3_64()
    for piece in _pieces(tables):
        checksum.update(piece)
        yield piece
    yield struct.pack("<Q4s", checksum.intdigest(), _END)


def _pieces(tables: Sequence[Table]) -> Iterator[bytes]:
    packs = tuple(dict.fromkeys(pack for table in tables for pack in table.packs))
    merged = (_merge_many if sum(table.count for table in tables) > _MANY else _merge_few)(tables, packs)
    bits = _bits_for(merged.objects)
    yield _HEADER.pack(_MAGIC, _VERSION, bits, len(packs), merged.objects)
    yield b"".join(bytes.fromhex(pack) for pack in packs)
    yield merged.starts(bits)
    yield from merged.digests
    yield from merged.rows


def _bits_for(objects: int) -> int:
    return min(max(objects.bit_length() - 4, 0), _MOST_BITS)  # 8 to 16 objects begin with the same


class _Merged(NamedTuple):
    """Columns sorted by digest, in pieces; `starts` gives that column for a number of bits."""

    objects: int
    starts: Callable[[int], bytes]
    digests: Iterator[bytes]
    rows: Iterator[bytes]


def _merge_few(tables: Sequence[Table], packs: tuple[str, ...]) -> _Merged:
    number = {pack: at for at, pack in enumerate(packs)}
    found: dict[bytes, Place] = {}
    for table in tables:
        for raw, place in table.rows():
            found.setdefault(raw, place)
    ordered = sorted(found)

    def starts(bits: int) -> bytes:
        counts = [0] * (2**bits + 1)
        for raw in ordered:
            counts[(int.from_bytes(raw[:4], "big") >> (32 - bits)) + 1] += 1
        return struct.pack(f"<{len(counts)}I", *accumulate(counts))

    rows = (_NUMBERS.pack(number[place.pack], *place[1:]) for place in map(found.__getitem__, ordered))
    return _Merged(len(ordered), starts, iter((b"".join(ordered),)), iter((b"".join(rows),)))


class _Range(NamedTuple):
    """The rows of each table between two digests, and which of all of them are kept, in order."""

    parts: tuple[tuple[Table, int, int], ...]
    order: NDArray[np.uint32]


def _merge_many(tables: Sequence[Table], packs: tuple[str, ...]) -> _Merged:
    """Merge in two goes: the digests are sorted a range at a time, then the columns are put into that order."""
    import numpy as np

    number = {pack: at for at, pack in enumerate(packs)}
    total = sum(table.count for table in tables)
    most = _bits_for(total)
    counts = np.zeros(2**most + 1, np.int64)
    ranges = []
    for parts in _ranges(tables, total):
        words = _digests(parts).view(">u8").astype(np.uint64)  # four numbers each, the first weighs most
        order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
        kept = np.ones(len(order), bool)
        kept[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
        chosen = order[kept].astype(np.uint32)
        prefixes = (words[chosen, 0] >> np.uint64(64 - most)).astype(np.int64) if most else np.zeros(len(chosen), int)
        counts[1:] += np.bincount(prefixes, minlength=2**most)
        ranges.append(_Range(parts, chosen))
    begins = counts.cumsum()

    def rows() -> Iterator[bytes]:
        renumber = {id(table): np.array([number[pack] for pack in table.packs], np.uint32) for table in tables}
        for parts, order in ranges:
            every = np.concatenate([_rows(*part, renumber[id(part[0])]) for part in parts])
            yield every[order].astype("<u4").tobytes()

    return _Merged(
        int(begins[-1]),
        lambda bits: begins[:: 1 << (most - bits)].astype("<u4").tobytes(),
        (_digests(parts)[order].tobytes() for parts, order in ranges),
        rows(),
    )


def _ranges(tables: Sequence[Table], total: int) -> Iterator[tuple[tuple[Table, int, int], ...]]:
    """Yield, for each of as many ranges of digests as there must be, the rows of the tables (from, to) in it."""
    many = -(-total // _AT_ONCE)
    edges = [(2**32 * at // many).to_bytes(4, "big") + bytes(RAW_SIZE - 4) for at in range(1, many)]
    bounds = [(0, *(table.bisect(edge, 0, table.count) for edge in edges), table.count) for table in tables]
    for cuts in zip(*(pairwise(bound) for bound in bounds), strict=True):
        yield tuple((table, low, high) for table, (low, high) in zip(tables, cuts, strict=True))


def _digests(parts: Sequence[tuple[Table, int, int]]) -> NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(b"".join(table.raws(low, high) for table, low, high in parts), np.uint8).reshape(-1, RAW_SIZE)


def _rows(table: Table, low: int, high: int, renumber: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return rows of a table as numbers, with the packs numbered anew."""
    import numpy as np

    rows = np.zeros((high - low, 4), np.uint32)
    if isinstance(table, Segment):
        rows[:] = np.frombuffer(table.numbers(low, high), "<u4").reshape(-1, 4)
    elif isinstance(table, Footer):
        for at, column in enumerate(table.columns(low, high), start=1):
            rows[:, at] = np.frombuffer(column, "<u4")
    if len(rows) and rows[:, 0].max() >= len(renumber):
        raise PackError(_ODD)
    rows[:, 0] = renumber[rows[:, 0]]
    return rows
