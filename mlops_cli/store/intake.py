"""Objects on their way into a store from another: verified as they come, and made visible in rounds."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.progress import Reporter
from mlops_cli.store.copying import SMALL, copy_descriptor, copy_stream, fill
from mlops_cli.store.objects import Failures, Opener, damaged_in_flight
from mlops_cli.store.pack_format import LARGEST
from mlops_cli.store.pack_writer import Packer
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.scratch import CREATE_FLAGS, OBJECT_MODE, Scratch

_ROUND_OBJECTS = 1000
_ROUND_BYTES = 256 << 20

Publish = Callable[[Mapping[Digest, str], Sequence[tuple[str, str]]], None]
IsPacked = Callable[[memoryview], bool]


class Intake:
    """Objects on their way into the store at `root`: taken in by one thread or several, published by one, in rounds.

    `is_packed` says of an object's bytes, all or the first MiB, whether they belong into a pack; `publish` makes
    temporary files and packs durable and visible.
    """

    def __init__(self, root: str, is_packed: IsPacked, publish: Publish, reporter: Reporter) -> None:
        self._is_packed = is_packed
        self._make_visible = publish
        self._reporter = reporter
        self._scratch = Scratch(root)
        self._buffers = threading.local()
        self._failures = Failures()
        self._packer = Packer(self._scratch.next_path)
        self._round: dict[Digest, str] = {}
        self._round_bytes = 0

    def run(self, objects: Iterable[tuple[Digest, Opener]], jobs: int) -> int:
        """Take all in; return the bytes. Objects that failed are raised together at the end."""
        total = 0
        try:
            try:
                for digest, taken, size in map_bounded(self._receive, objects, jobs):
                    if isinstance(taken, bytes):
                        self._packer.add(digest, taken)
                    elif taken:
                        self._round[digest] = taken
                    if taken is not None:
                        self._round_bytes += size
                        total += size
                    if len(self._round) >= _ROUND_OBJECTS or self._round_bytes >= _ROUND_BYTES:
                        self._publish()
            finally:
                self._publish()  # even when the source fails half-way: what arrived is whole and need not come again
        finally:
            self._packer.close()
            self._scratch.close()
        self._failures.raise_any()
        return total

    def _publish(self) -> None:
        ready, self._round = self._round, {}
        size, self._round_bytes = self._round_bytes, 0
        self._make_visible(ready, self._packer.seal())
        if size:
            self._reporter.advance(size)

    def _receive(self, item: tuple[Digest, Opener]) -> tuple[Digest, str | bytes | None, int]:
        """Take one object in; return its temporary file, or its bytes when it is for a pack, and its size.

        Of one that failed, nothing.
        """
        digest, opener = item
        try:
            with opener() as stream:
                found, taken, size = self._take(stream, digest)
        except (MissingObject, CorruptObject) as error:
            self._failures.add(digest, error)
            return digest, None, 0
        if found == digest:
            return digest, taken, size
        self._failures.add(digest, damaged_in_flight(digest, found))
        if isinstance(taken, str):
            os.unlink(taken)
        return digest, None, 0

    def _take(self, stream: BinaryIO, digest: Digest) -> tuple[Digest, str | bytes | None, int]:
        """Take a stream's bytes; return the digest of what was taken, where it is (file or bytes) and its size."""
        buffer = self._buffer()
        filled = fill(stream, buffer)
        if filled < len(buffer):
            found = hash_bytes(buffer[:filled])
            if found != digest:
                return found, None, filled
            packed = self._is_packed(buffer[:filled])
            return found, bytes(buffer[:filled]) if packed else self._scratch.write(buffer[:filled]), filled
        packed = self._is_packed(buffer)
        path = self._scratch.next_path()
        target = os.open(path, CREATE_FLAGS, OBJECT_MODE)
        try:
            if isinstance(stream, io.FileIO):
                stream.seek(0)
                found, size = copy_descriptor(stream.fileno(), target)
            else:
                found, size = copy_stream(stream, target, buffer, filled)
        finally:
            os.close(target)
        if packed and found == digest and size <= LARGEST:
            data = Path(path).read_bytes()
            os.unlink(path)
            return found, data, size
        return found, path, size

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "value", None)
        if buffer is None:
            buffer = self._buffers.value = memoryview(bytearray(SMALL))
        return buffer
