"""Segments of an index that lie in a folder of a remote, read once and kept here.

A segment is named by the digest of its bytes, so one that is kept never has to be asked for again. Of a large one only
the blocks are read that are needed when few objects are looked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import PREFIX, hash_bytes, hash_file
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.pack_folder import SEGMENT_SUFFIX, OpenFile
from mlops_cli.store.pack_format import PackError
from mlops_cli.store.pack_segment import Segment, read_segment, segment_in

_WHOLE = 1 << 20  # bytes of a segment that are brought at once, however few objects are looked for
_BLOCK = 64 << 10
_PER_OBJECT = 3 * _BLOCK  # what looking for one object in a segment may take
_ABANDONED = 24 * 3600.0  # s after which nobody brings a segment any more
_OTHER = "its bytes are not those it was named for"


class KeptSegments:
    """The segments below `folder` of `bucket`; `kept` is a folder of this clone for those that were brought.

    No I/O before the first verb. RemoteError, and CorruptObject for a segment that is none.
    """

    def __init__(self, bucket: Bucket, kept: str, folder: str) -> None:
        self._bucket = bucket
        self._kept = kept
        self._folder = folder
        self._whole: dict[str, Segment] = {}
        self._parts: dict[str, Segment] = {}

    def key(self, name: str) -> str:
        """Return where the remote has a segment."""
        return f"{self._folder}/{name}{SEGMENT_SUFFIX}"

    def path(self, name: str) -> str:
        """Return where a segment is, or would be, kept."""
        return f"{self._kept}/{name}{SEGMENT_SUFFIX}"

    def is_sound(self, name: str) -> bool:
        """Say whether a segment is there as it was written, whatever is kept of it here; AbsentKey."""
        os.makedirs(self._kept, exist_ok=True)
        path = f"{self.path(name)}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._bucket.get_file(self.key(name), path)
            return hash_file(path) == PREFIX + name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def table(self, name: str, size: int, wanted: int) -> Segment:
        """Return a segment, read in parts as they are needed when few objects are looked for in a large one."""
        if size <= _WHOLE or wanted * _PER_OBJECT >= size or os.path.exists(self.path(name)):
            return self.bring(name)
        if name not in self._parts:
            try:
                self._parts[name] = Segment(_Blocks(self._bucket, self.key(name), size).read, size)
            except PackError as error:
                raise self.damaged(name, str(error)) from error
        return self._parts[name]

    def bring(self, name: str, *, whole: bool = False) -> Segment:
        """Return a segment from the folder where they are kept, to which it comes first.

        With `whole` it is looked at as a whole: what is told of it to others had better be right.
        """
        if name in self._whole and not whole:
            return self._whole[name]
        if not self._keeps():
            return self._hold(name)
        path = self.path(name)
        damage: PackError | None = None
        for _ in range(2):
            if not os.path.exists(path):
                self._download(name, path)
            try:
                segment = read_segment(OpenFile(path))
                if whole:
                    segment.verify()
                    segment.check_rows()
            except FileNotFoundError:  # another command has tidied up
                continue
            except PackError as error:
                with suppress(FileNotFoundError):
                    os.unlink(path)  # it was right when it came
                damage = error
            else:
                self._whole[name] = segment
                return segment
        if damage is None:
            raise AbsentKey(self.key(name))
        raise self.damaged(name, str(damage))

    def _download(self, name: str, path: str) -> None:
        temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._bucket.get_file(self.key(name), temporary)
            if hash_file(temporary) != PREFIX + name:
                raise self.damaged(name, _OTHER)
            os.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def _keeps(self) -> bool:
        """Say whether anything can be kept: a clone may be only to read."""
        with suppress(OSError):
            os.makedirs(self._kept, exist_ok=True)
        return os.path.isdir(self._kept) and os.access(self._kept, os.W_OK | os.X_OK)

    def _hold(self, name: str) -> Segment:
        """Return a whole segment that is in memory alone."""
        data = self._bucket.get(self.key(name))
        if hash_bytes(data) != PREFIX + name:
            raise self.damaged(name, _OTHER)
        try:
            segment = self._whole[name] = segment_in(data)
            segment.verify()
            segment.check_rows()
        except PackError as error:
            raise self.damaged(name, str(error)) from error
        return segment

    def tidy(self, listed: Collection[str]) -> None:
        """Remove kept segments that the remote has no more, and what commands that were killed left half."""
        with suppress(OSError):
            for name in os.listdir(self._kept):
                path = f"{self._kept}/{name}"
                with suppress(OSError):
                    if name.endswith(SEGMENT_SUFFIX):
                        gone = name.removesuffix(SEGMENT_SUFFIX) not in listed
                    else:
                        gone = f"{SEGMENT_SUFFIX}." in name and os.stat(path).st_mtime < time.time() - _ABANDONED
                    if gone:
                        os.unlink(path)
        self._whole = {name: table for name, table in self._whole.items() if name in listed}
        self._parts = {name: table for name, table in self._parts.items() if name in listed}

    def damaged(self, name: str, why: str) -> CorruptObject:
        """Return what to raise for a segment that is not what it must be."""
        return CorruptObject(
            f"the index of {self._bucket.label} is damaged: `{self.key(name)}`: {why}",
            hint="`mlx push --repair` from a clone that has the data makes it anew",
        )


class _Blocks:
    """A value read in blocks, as far as they are needed."""

    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        self._bucket = bucket
        self._key = key
        self._size = size
        self._blocks: dict[int, bytes] = {}

    def read(self, at: int, wanted: int) -> bytes:
        """Return `wanted` bytes from `at` on; PackError when the value ends before, AbsentKey when it is gone."""
        first, last = at // _BLOCK, max(at + wanted - 1, at) // _BLOCK
        lacking = [number for number in range(first, last + 1) if number not in self._blocks]
        if lacking:
            start, end = lacking[0] * _BLOCK, min((lacking[-1] + 1) * _BLOCK, self._size)
            data = self._bucket.get(self._key, start, end)
            for number in range(lacking[0], lacking[-1] + 1):
                self._blocks[number] = data[(number - lacking[0]) * _BLOCK : (number + 1 - lacking[0]) * _BLOCK]
        found = b"".join(self._blocks[number] for number in range(first, last + 1))
        found = found[at - first * _BLOCK :][:wanted]
        if len(found) < wanted:
            raise PackError("its end is missing")
        return found
