"""Digests: how bytes get their name.

BLAKE3-256 names everything that is stored or shared, because whoever contributes a file must not be able to prepare two
files with one name; `b3sum FILE` prints the same 64 characters. xxh3 serves `fingerprint` only, whose hits are compared
field by field before they are believed. A digest is always spelled `blake3:<64 hex>`, in code, in records and in
messages. Which files to hash, and when hashing can be skipped, is decided elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NewType

import xxhash
from blake3 import blake3

Digest = NewType("Digest", str)

PREFIX = "blake3:"
RAW_SIZE = 32
BUFFER_SIZE = 1 << 20
MANY_THREADS_FROM = 16 << 20
_HEX = frozenset("0123456789abcdef")


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest; ValueError, with a sentence for the user, when it is not one."""
    algorithm, colon, digits = text.partition(":")
    if not colon:
        raise ValueError(f"`{text}` is not a digest: it must begin with `{PREFIX}`")
    if algorithm != "blake3":
        raise ValueError(f"`{algorithm}` is not a digest algorithm mlx knows: it must be `blake3`")
    if len(digits) != 2 * RAW_SIZE:
        noun = "digit" if len(digits) == 1 else "digits"
        raise ValueError(f"`{text}` has {len(digits)} hexadecimal {noun} after `{PREFIX}`: there must be 64")
    wrong = [character for character in digits if character not in _HEX]
    if wrong:
        raise ValueError(f"`{text}` holds `{wrong[0]}`: a digest has only the digits 0-9 and a-f")
    return Digest(text)


def digest_from_raw(raw: bytes) -> Digest:
    """Spell 32 raw bytes as a digest; ValueError for another length."""
    if len(raw) != RAW_SIZE:
        raise ValueError(f"a digest has {RAW_SIZE} bytes, not {len(raw)}")
    return Digest(PREFIX + raw.hex())


def raw_digest(digest: Digest) -> bytes:
    """Return the 32 bytes that `digest` spells."""
    return bytes.fromhex(digest[len(PREFIX) :])


def raw_digests(digests: Iterable[Digest]) -> list[bytes]:
    """Return the 32 bytes that each digest spells, in one go: for many that is several times as fast."""
    joined = bytes.fromhex("".join(digests).replace(PREFIX, ""))
    return [joined[at : at + RAW_SIZE] for at in range(0, len(joined), RAW_SIZE)]


def hash_bytes(data: bytes | memoryview) -> Digest:
    """Return the digest of `data`."""
    return Digest(PREFIX + blake3(data).hexdigest())


def hash_raw(data: bytes | memoryview) -> bytes:
    """Return the 32 bytes that the digest of `data` spells."""
    return blake3(data).digest()


def hash_file(path: str | Path) -> Digest:
    """Return the digest of a file's bytes, reading it once in constant memory; OSError passes through."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return hash_descriptor(descriptor)
    finally:
        os.close(descriptor)


_alone: list[bool] = []


def hash_alone() -> None:
    """Use one thread from now on: a copy of this process has the library's pool of threads, but not its threads."""
    _alone.append(True)  # what the process is, not a state: it never changes back


def hash_descriptor(descriptor: int) -> Digest:
    """Return the digest of an open file's bytes from its position to its end; OSError passes through."""
    size = os.fstat(descriptor).st_size
    hasher = blake3(max_threads=blake3.AUTO if size >= MANY_THREADS_FROM and not _alone else 1)
    # A small file gets a small buffer: allocating 1 MiB would cost more than hashing 4 KiB.
    buffer = memoryview(bytearray(min(max(size + 1, 4096), BUFFER_SIZE)))
    while count := os.readv(descriptor, [buffer]):
        hasher.update(buffer[:count])
    return Digest(PREFIX + hasher.hexdigest())


class Hasher:
    """A digest in the making: however the bytes are split over `update`, the digest is the same."""

    __slots__ = ("_state", "update")

    def __init__(self, *, threads: bool = False) -> None:
        """Start empty; `threads` lets large updates use every core."""
        self._state = blake3(max_threads=blake3.AUTO if threads and not _alone else 1)
        self.update = self._state.update

    def digest(self) -> Digest:
        """Return the digest of everything so far; more may follow."""
        return Digest(PREFIX + self._state.hexdigest())


def fingerprint(value: object) -> str:
    """Return 32 hex digits that are equal for equal JSON values, whatever the order of keys.

    The value must be JSON: numbers finite, keys text; TypeError or ValueError otherwise. Not collision resistant
    against people: compare the values themselves before believing a hit.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
