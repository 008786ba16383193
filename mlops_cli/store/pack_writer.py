"""Writing packs: objects appended to a file, which becomes a pack when it is sealed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from blake3 import blake3

from mlops_cli.files import write_all
from mlops_cli.hashing import RAW_SIZE, Digest, digest_from_raw, raw_digest
from mlops_cli.store.pack_format import (
    FILE_HEADER,
    LARGEST,
    RECORD_SIZE,
    SEALED_AT,
    Codec,
    PackError,
    Record,
    Row,
    decode_record,
    encode_footer,
    encode_record,
)
from mlops_cli.store.pack_index import READ_FLAGS, read_footer
from mlops_cli.store.scratch import OBJECT_MODE

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_BUFFERED = 1 << 20
_WORTH_TRYING = 256  # bytes; less does not shrink
_GIVE_UP_AFTER = 16
_TRY_AGAIN_EACH = 32


class Compressor:
    """zstd where it pays: by a tenth at least. After a run of objects that did not shrink, only some are tried."""

    def __init__(self) -> None:
        self._compress: _Compress | None = None
        self._in_vain = 0

    def pack(self, raw: bytes, data: bytes) -> Record:
        """Return the record of an object, compressed if that pays."""
        length = len(data)
        if length < _WORTH_TRYING:
            return Record(raw, Codec.PLAIN, length, data)
        self._in_vain += 1
        if self._in_vain > _GIVE_UP_AFTER and self._in_vain % _TRY_AGAIN_EACH:
            return Record(raw, Codec.PLAIN, length, data)
        if self._compress is None:
            from zstandard import ZstdCompressor  # noqa: PLC0415 - most commands write nothing

            self._compress = ZstdCompressor(level=1, write_checksum=False).compress
        packed = self._compress(data)
        if len(packed) > length - length // 10:
            return Record(raw, Codec.PLAIN, length, data)
        self._in_vain = 0
        return Record(raw, Codec.ZSTD, length, packed)


def unpacked(record: Record) -> bytes:
    """Return the object that a record stores; PackError when the stored bytes are not what they say.

    Never takes more memory than the record's length, whatever its bytes claim.
    """
    if record.codec == Codec.PLAIN:
        if len(record.data) != record.length:
            raise PackError("its record is not as long as it says")
        return record.data
    from zstandard import ZstdDecompressor, ZstdError, frame_content_size  # noqa: PLC0415 - many records are plain

    try:
        # The size that a frame claims is allocated before it is unpacked, whatever limit is given.
        if frame_content_size(record.data) != record.length:
            raise PackError("its record is not as long as it says")
        data: bytes = ZstdDecompressor(max_window_size=LARGEST).decompress(record.data, allow_extra_data=False)
    except (ZstdError, ValueError) as error:
        if isinstance(error, PackError):
            raise
        raise PackError(f"its record cannot be unpacked: {error}") from error
    return data


class _Compress(Protocol):
    def __call__(self, data: bytes, /) -> bytes: ...


class PackWriter:
    """One pack being written at `path`, where nothing may be yet; for one thread.

    After an error it is of no use: what is in the file is not what it seems to have.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, _FLAGS, OBJECT_MODE)
        self._hasher = blake3()
        self._rows: dict[bytes, Row] = {}
        self._buffer: list[bytes] = [FILE_HEADER]
        self._buffered = 0
        self.size = len(FILE_HEADER)

    def __contains__(self, raw: bytes) -> bool:
        return raw in self._rows

    def add(self, record: Record) -> None:
        """Append an object that is not in the pack yet; OSError passes through."""
        head = encode_record(record)
        stored = len(record.data)
        self._rows[record.raw] = Row(record.raw, self.size, record.length, stored)
        self._buffer += (head, record.data)
        self.size += RECORD_SIZE + stored
        self._buffered += RECORD_SIZE + stored
        if self._buffered >= _BUFFERED:
            self._flush()

    def rows(self) -> list[Row]:
        """Return where everything that was added is."""
        return list(self._rows.values())

    def read(self, raw: bytes) -> Record:
        """Return an object that was added; KeyError when it was not."""
        row = self._rows[raw]
        self._flush()
        return decode_record(os.pread(self._descriptor, RECORD_SIZE + row.stored, row.offset))

    def seal(self) -> str:
        """Write the footer, close the file and return the pack's name, 64 hexadecimal digits."""
        self._buffer.append(encode_footer(list(self._rows.values()), self.size))
        self._flush()
        self.close()
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        self._hasher.update(data)
        write_all(self._descriptor, data)


class Packer:
    """Small objects on their way into a store: in as many packs as they fill, each a file that `new_path` names.

    For one thread. What is added is not in the store before its packs are published. OSError passes through.
    """

    def __init__(self, new_path: Callable[[], str]) -> None:
        self._new_path = new_path
        self._compressor = Compressor()
        self._writer: PackWriter | None = None
        self._sealed: list[tuple[str, str]] = []
        self._known: set[Digest] = set()
        self._inherited: set[Digest] = set()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._known or digest in self._inherited

    def add(self, digest: Digest, data: bytes) -> None:
        """Add an object whose bytes are `data`; one that was added already is not added again."""
        if digest in self:
            return
        if self._writer is None:
            self._writer = PackWriter(self._new_path())
        try:
            self._writer.add(self._compressor.pack(raw_digest(digest), data))
        except BaseException:
            self._give_up(self._writer)
            raise
        self._known.add(digest)
        if self._writer.size >= SEALED_AT:
            self._end_pack()

    def read(self, digest: Digest) -> bytes:
        """Return the bytes of an object that was added, as they are in its pack; KeyError when it was not."""
        raw = raw_digest(digest)
        if self._writer is not None and raw in self._writer:
            return unpacked(self._writer.read(raw))
        for path, name in self._sealed:
            place = read_footer(path, name).find(raw)
            if place is not None:
                return unpacked(decode_record(_read_part(path, place.offset, RECORD_SIZE + place.stored)))
        raise KeyError(digest)

    def seal(self) -> list[tuple[str, str]]:
        """End the last pack; returns the file and the name of each. What was added is forgotten here."""
        if self._writer is not None:
            self._end_pack()
        sealed, self._sealed, self._known = self._sealed, [], set()
        return sealed

    def divide(self) -> None:
        """Go on in a copy of this process, with packs of its own; what was added before is still known."""
        self._inherited = self._known
        self._known, self._writer, self._sealed = set(), None, []

    def divided(self) -> tuple[list[tuple[str, str]], bytes]:
        """End the last pack; returns what `absorb` takes: file and name of each, their objects' raw digests."""
        raws = b"".join(map(raw_digest, self._known))
        return self.seal(), raws

    def absorb(self, sealed: list[tuple[str, str]], raws: bytes) -> None:
        """Take over what a copy of this process has packed; its packs come before the one that is being written."""
        self._sealed += sealed
        self._known.update(digest_from_raw(raws[at : at + RAW_SIZE]) for at in range(0, len(raws), RAW_SIZE))

    def close(self) -> None:
        """Close the file of a pack that was not sealed, which its owner removes."""
        if self._writer is not None:
            self._writer.close()

    def _end_pack(self) -> None:
        writer = self._writer
        assert writer is not None
        try:
            self._sealed.append((writer.path, writer.seal()))
        except BaseException:
            self._give_up(writer)
            raise
        self._writer = None

    def _give_up(self, writer: PackWriter) -> None:
        """Forget a pack that could not be written, and all that was in it: its file may have any part of it."""
        self._writer = None
        writer.close()
        self._known = {digest for digest in self._known if raw_digest(digest) not in writer}


def _read_part(path: str, offset: int, size: int) -> bytes:
    descriptor = os.open(path, READ_FLAGS)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
