"""The files of packs: what there is by name, whole or in part, and few of them open at once.

    packs/<name>.pack       a pack, named by the digest of its bytes; never changed, only replaced by others
    index/<name>.idx        a segment of the index, for many packs, named by the digest of its bytes

What is in them is `pack_format` and `pack_index`.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress

from mlops_cli.store.pack_format import LARGEST_PACK, PackError
from mlops_cli.store.pack_index import READ_FLAGS

SUFFIX = ".pack"
SEGMENT_SUFFIX = ".idx"
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
GONE = frozenset({errno.ENOENT, errno.ESTALE})
_OPEN_FILES = 32
_NAME = re.compile("[0-9a-f]{64}")


class PackFolder:
    """The packs below `root` as files; no I/O before the first verb. OSError passes through.

    Several threads may read.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self.folder = f"{root}/packs"
        self.index = f"{root}/index"
        self._files: dict[str, OpenFile] = {}  # the one used last is last

    def path_of(self, pack: str) -> str:
        """Return where a pack is."""
        return f"{self.folder}/{pack}{SUFFIX}"

    def segment_path(self, name: str) -> str:
        """Return where a segment is."""
        return f"{self.index}/{name}{SEGMENT_SUFFIX}"

    def names(self) -> list[str]:
        """Return the names of the packs that are there now, sorted."""
        return _names(self.folder, SUFFIX)

    def segments(self) -> list[str]:
        """Return the names of the segments that are there now, sorted."""
        return _names(self.index, SEGMENT_SUFFIX)

    def stamp(self) -> tuple[int, int]:
        """Return when packs and when segments last came or went."""
        return _changed(self.folder), _changed(self.index)

    def read_part(self, pack: str, offset: int, size: int) -> bytes:
        """Return at most `size` bytes of a pack; FileNotFoundError when it is gone."""
        file = self._files.pop(pack, None) or self._open(self.path_of(pack))
        self._files[pack] = file  # closed when it is out of here, and no thread reads from it
        if len(self._files) > _OPEN_FILES:
            self._forget_file()
        try:
            return os.pread(file.descriptor, size, offset)
        except OSError as error:
            if error.errno in GONE:
                self._files.pop(pack, None)
                raise FileNotFoundError(error.errno, error.strerror) from error
            raise

    def _open(self, path: str) -> OpenFile:
        """Open a file for reading; when too many are open, packs that are give way."""
        while True:
            try:
                return OpenFile(path)
            except OSError as error:
                if error.errno not in SHORTAGES or not self._files:
                    raise
                self._forget_file()

    def _forget_file(self) -> None:
        with suppress(StopIteration, RuntimeError):  # another thread is at it too
            self._files.pop(next(iter(self._files)), None)


class OpenFile:
    """A file that is closed when nobody holds this any more."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, READ_FLAGS)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def read_whole(path: str) -> bytes:
    """Return the bytes of a pack, read and not mapped: a disk that fails is an error then, and no signal."""
    descriptor = os.open(path, READ_FLAGS)
    with os.fdopen(descriptor, "rb") as stream:
        if os.fstat(descriptor).st_size > LARGEST_PACK:
            raise PackError("it is larger than a pack can be")
        return stream.read()


def _names(folder: str, suffix: str) -> list[str]:
    """Return the names in a folder that are 64 digits and `suffix`, without it, sorted; none when it is not there."""
    try:
        listed = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(
        name.removesuffix(suffix) for name in listed if name.endswith(suffix) and _NAME.fullmatch(name[: -len(suffix)])
    )


def _changed(folder: str) -> int:
    """Return when names in a folder last came or went, 0 when it is not there."""
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0


def size_of(path: str) -> int:
    """Return the size of a file (bytes); 0 when it is gone."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
