"""Cutting a large file where its content says so: an edit changes the chunks around it and leaves all others alone.

The one idea is FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 2020): a chunk ends where a hash of the last 64 bytes has zeros in certain places, which ones
depending on how long the chunk is already. Where it ends depends on its own bytes only, never on how they were read.
Chunks are how remotes keep files of `CHUNKED_FROM` and more; a file is still named by the digest of all its bytes,
which is found in the same pass. So what is said here may change, at the price of chunks that are stored again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mlops_cli.hashing import Digest, Hasher, hash_raw

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pyfastcdc import FastCDC

CHUNKED_FROM = 16 << 20  # bytes: a smaller file is sent again as a whole
# The sizes that the Remote Execution API recommends. 1 MiB on average was no faster, and twice as much for an edit.
SHORTEST = 128 << 10
AVERAGE = 512 << 10  # of what a chunk has beyond `SHORTEST`, roughly: random bytes are cut every 600 KiB
LONGEST = 2 << 20

WINDOW = 8 << 20  # bytes; what is carried from one to the next is LONGEST / 2 on average
_WINDOWS = 3  # one is read and cut, one is hashed, one waits


class Chunk(NamedTuple):
    """A part of a file: where it begins, how many bytes it has, and their 32-byte digest."""

    offset: int
    length: int
    raw: bytes


class Cutting:
    """The chunks of one file, to be iterated over once, and then the digest of the bytes that they were cut from."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._whole = Hasher()
        self._ended = False
        self.size = 0  # bytes in the chunks that came so far

    def __iter__(self) -> Iterator[Chunk]:
        """Yield every chunk in order. OSError passes through.

        This thread reads and cuts while another one hashes: both take about as long.
        """
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - 18 ms that only who cuts needs

        waiting: deque[tuple[list[int], Future[list[bytes]]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for data, lengths in self._windows():
                waiting.append((lengths, pool.submit(self._hash, data, lengths)))
                if len(waiting) == _WINDOWS - 1:
                    yield from self._chunks(*waiting.popleft())
            while waiting:
                yield from self._chunks(*waiting.popleft())
        self._ended = True

    def digest(self) -> Digest:
        """Return the digest of all bytes; ValueError before the last chunk came."""
        if not self._ended:
            raise ValueError("the file has not been cut to its end")
        return self._whole.digest()

    def _windows(self) -> Iterator[tuple[memoryview, list[int]]]:
        """Yield the bytes of some chunks and their lengths; the bytes are good until `_WINDOWS` - 1 more were yielded.

        What comes behind the last chunk whose end is certain opens the next window.
        """
        cutter = _cutter()
        windows = [memoryview(bytearray(WINDOW)) for _ in range(_WINDOWS)]
        rest = windows[0][:0]
        while True:
            window = windows[0]
            windows.append(windows.pop(0))
            begun = len(rest)
            window[:begun] = rest
            filled = begun + _fill(self._descriptor, window[begun:])
            ended = filled < WINDOW
            lengths = _cut(cutter, window[:filled], ended=ended)
            used = sum(lengths)
            yield window[:used], lengths
            if ended:
                return
            rest = window[used:filled]

    def _hash(self, data: memoryview, lengths: list[int]) -> list[bytes]:
        raws = []
        start = 0
        for length in lengths:
            chunk = data[start : start + length]
            raws.append(hash_raw(chunk))
            self._whole.update(chunk)
            start += length
        return raws

    def _chunks(self, lengths: list[int], raws: Future[list[bytes]]) -> Iterator[Chunk]:
        for length, raw in zip(lengths, raws.result(), strict=True):
            chunk = Chunk(self.size, length, raw)
            self.size += length
            yield chunk


def cut_file(descriptor: int) -> Cutting:
    """Return the chunks of an open file, from its position to its end; a file without bytes has none.

    It is read once, in constant memory (three windows of 8 MiB).
    """
    return Cutting(descriptor)


def _cutter() -> FastCDC:
    from pyfastcdc import FastCDC

    # Normalized chunking of level 2, as the paper recommends: most chunks come close to the average.
    return FastCDC(AVERAGE, min_size=SHORTEST, max_size=LONGEST, normalized_chunking=2, seed=0)


def _fill(descriptor: int, window: memoryview) -> int:
    """Read until the window is full or the file ends: only then an end is known to be one."""
    filled = 0
    while filled < len(window) and (count := os.readv(descriptor, [window[filled:]])):
        filled += count
    return filled


def _cut(cutter: FastCDC, data: memoryview, *, ended: bool) -> list[int]:
    """Return the lengths of the chunks in `data`, but for those that more bytes could make longer."""
    lengths = []
    rest = len(data)
    for chunk in cutter.cut_buf(data):
        lengths.append(chunk.length)
        rest -= chunk.length
        if rest < LONGEST and not ended:
            break
    return lengths
