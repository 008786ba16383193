"""The bytes of a pack: many small objects in one file that describes itself.

    file      "MLXP", version u8, 3 zero bytes; records; footer; trailer            all integers little-endian
    record    "MLXR", codec u8, 3 zero bytes, length u32, stored length u32, digest 32 bytes, checksum u64; stored bytes
    footer    sorted by digest: digests 32 bytes, offsets u32, lengths u32, stored lengths u32, each `count` times
    trailer   offset of the footer u64, count u32, checksum u64, "MLXE", version u8, 3 zero bytes

A record's checksum is xxh3-64 of the stored bytes, seeded with that of the 48 bytes before it; the trailer's is that of
the footer, seeded with that of the 12 bytes before it. The footer says nothing that the records do not: a pack whose
end is lost, or was never written, is read from its beginning. A pack is named by the digest of all its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from operator import itemgetter
from typing import NamedTuple

import xxhash

from mlops_cli.errors import OutsideError
from mlops_cli.hashing import RAW_SIZE

FILE_HEADER = b"MLXP\x01\0\0\0"
SEALED_AT = 64 << 20
LARGEST = 8 << 20  # no object above this goes into a pack, so no record can ask for more memory
LARGEST_PACK = 2 * (SEALED_AT + LARGEST)  # bytes: no file above this is one; most of it would be the footer

_RECORD = struct.Struct("<4sB3xII32sQ")
_HEAD = struct.Struct("<4sB3xII32s")  # of a record, without its checksum
RECORD_SIZE = _RECORD.size
_RECORD_MAGIC = b"MLXR"
_TRAILER = struct.Struct("<QIQ4sB3x")
TRAILER_SIZE = _TRAILER.size
_TRAILER_MAGIC = b"MLXE"
_VERSION = 1
ROW_SIZE = RAW_SIZE + 3 * 4

_checksum = xxhash.xxh3_64_intdigest


class Codec(IntEnum):
    """How a record's bytes are stored."""

    PLAIN = 0
    ZSTD = 1


class Row(NamedTuple):
    """Where one object is in a pack: the offset of its record, its length, and its length as it is stored (bytes)."""

    raw: bytes
    offset: int
    length: int
    stored: int


class Record(NamedTuple):
    """One object as a pack holds it: its 32-byte digest, its codec, its length, and what is stored."""

    raw: bytes
    codec: int
    length: int
    data: bytes


class PackError(ValueError):
    """Bytes that are not what a pack has there; the message completes "the pack is damaged: "."""


def encode_record(record: Record) -> bytes:
    """Return what stands before the stored bytes of `record`; ValueError when it is larger than a pack takes."""
    raw, codec, length, data = record
    if max(length, len(data)) > LARGEST:
        raise ValueError(f"an object of {length:,} bytes is too large for a pack")
    head = _HEAD.pack(_RECORD_MAGIC, codec, length, len(data), raw)
    return head + _checksum(data, seed=_checksum(head)).to_bytes(8, "little")


def decode_record(data: bytes | memoryview, offset: int = 0) -> Record:
    """Return the record that begins at `offset`; PackError unless it is whole and as it was written."""
    if len(data) - offset < RECORD_SIZE:
        raise PackError("its record is cut off")
    magic, codec, length, stored, raw, checksum = _RECORD.unpack_from(data, offset)
    if magic != _RECORD_MAGIC or codec not in (Codec.PLAIN, Codec.ZSTD) or max(length, stored) > LARGEST:
        raise PackError("there is no record where one should be")
    end = offset + RECORD_SIZE + stored
    if end > len(data):
        raise PackError("its record is cut off")
    payload = bytes(data[offset + RECORD_SIZE : end])
    if _checksum(payload, seed=_checksum(bytes(data[offset : offset + RECORD_SIZE - 8]))) != checksum:
        raise PackError("its record is not what was written")
    return Record(raw, codec, length, payload)


def scan_records(data: memoryview) -> Iterator[tuple[int, Record]]:
    """Yield every good record of a pack with its offset, in order, passing over what is damaged.

    A footer that is whole says where they are; without one the records alone are read, and where one is damaged, the
    next is searched for.
    """
    try:
        start, count = find_footer(data, whole=True)
    except PackError:
        yield from _search(data)
        return
    for offset in sorted(struct.unpack_from(f"<{count}I", data, start + RAW_SIZE * count)):
        try:
            record = decode_record(data, offset)
        except PackError:
            continue
        yield offset, record


def _search(data: memoryview) -> Iterator[tuple[int, Record]]:
    offset, end = len(FILE_HEADER), len(data)
    while offset + RECORD_SIZE <= end:
        try:
            record = decode_record(data, offset)
        except PackError:
            found = _find(data, _RECORD_MAGIC, offset + 1)
            if found < 0:
                return
            offset = found
            continue
        yield offset, record
        offset += RECORD_SIZE + len(record.data)


def _find(data: memoryview, what: bytes, start: int) -> int:
    """Return where `what` is in `data` from `start` on, or -1, a piece at a time."""
    step = 1 << 20
    while start < len(data):
        found = bytes(data[start : start + step + len(what) - 1]).find(what)
        if found >= 0:
            return start + found
        start += step
    return -1


def encode_footer(rows: Sequence[Row], offset: int) -> bytes:
    """Return footer and trailer of a pack whose records end at `offset`."""
    ordered = sorted(rows, key=itemgetter(0))
    count = len(ordered)
    raws, *numbers = zip(*ordered, strict=True) if ordered else ((), (), (), ())
    many = f"<{count}I"
    footer = b"".join((b"".join(raws), *(struct.pack(many, *column) for column in numbers)))
    head = struct.pack("<QI", offset, count)
    checksum = _checksum(footer, seed=_checksum(head))
    return footer + head + struct.pack("<Q4sB3x", checksum, _TRAILER_MAGIC, _VERSION)


def find_footer(data: memoryview, *, whole: bool = False) -> tuple[int, int]:
    """Return where the columns of a pack's footer begin, and the number of its records.

    PackError unless `data` begins and ends as a pack; with `whole` also unless the footer is as it was written, which
    reads all of it.
    """
    size = len(data)
    offset, count = check_ends(bytes(data[: len(FILE_HEADER)]), bytes(data[-TRAILER_SIZE:]), size)
    if whole:
        check_footer(data[offset:])
    return offset, count


def check_ends(begin: bytes, trailer: bytes, size: int) -> tuple[int, int]:
    """Return where the footer of a pack of `size` bytes begins, and the number of its records.

    PackError unless its first and last bytes are those of a pack of that size; OutsideError when both say that it is of
    a later version than this code knows: that is no damage, and nothing may be done about it.
    """
    if begin[:4] == FILE_HEADER[:4] and trailer[-8:-4] == _TRAILER_MAGIC and begin[4] == trailer[-4] > _VERSION:
        raise OutsideError(
            f"there is a pack of version {begin[4]} in the store, and this mlx understands {_VERSION}",
            hint="upgrade mlx: `pip install --upgrade mlops-cli`",
        )
    if begin != FILE_HEADER:
        raise PackError("it does not begin as a pack" if size else "it is empty")
    if size < len(FILE_HEADER) + TRAILER_SIZE:
        raise PackError("its end is missing")
    offset, count, _, magic, version = _TRAILER.unpack(trailer)
    if magic != _TRAILER_MAGIC or version != _VERSION or offset + count * ROW_SIZE + TRAILER_SIZE != size:
        raise PackError("its end is missing")
    return offset, count


def check_footer(data: bytes | memoryview) -> None:
    """Refuse a footer, with its trailer, that is not as it was written: PackError."""
    trailer = bytes(data[-TRAILER_SIZE:])
    checksum = int.from_bytes(trailer[12:20], "little")
    if _checksum(data[:-TRAILER_SIZE], seed=_checksum(trailer[:12])) != checksum:
        raise PackError("its footer is not what was written")
