"""The packs of a store: published, and gathered into fewer files.

    packs.lock              held by whoever replaces packs

Whoever replaces packs publishes the new ones first, so that an object is never nowhere. How they are found and read is
`pack_reader`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mlops_cli.files import sync_folder, write_all
from mlops_cli.hashing import PREFIX, Digest, Hasher, digest_from_raw, hash_bytes
from mlops_cli.store.pack_folder import read_whole, size_of
from mlops_cli.store.pack_format import SEALED_AT, PackError, scan_records
from mlops_cli.store.pack_reader import PackReader
from mlops_cli.store.pack_segment import Segment, encode_segment
from mlops_cli.store.repacker import Repacker
from mlops_cli.store.scratch import CREATE_FLAGS, OBJECT_MODE
from mlops_cli.store.sharing import grant, make_folder

SMALL_PACK = SEALED_AT // 8
MANY_SMALL = 32  # that many small packs are gathered into one
MANY_BARE = 4  # that many packs without a segment get one


class Packs(PackReader):
    """The packs below `root`, to read and to write; no I/O before the first verb. OSError passes through."""

    def publish(self, sealed: Iterable[tuple[str, str]], *, durable: bool) -> None:
        """Give sealed packs (file, name), whose bytes are durable by now, their names, in that order."""
        new = not os.path.isdir(self.folder)
        make_folder(self.folder, self._root)
        for path, name in sealed:
            grant([path], self._root, OBJECT_MODE)
            os.rename(path, self.path_of(name))
        if durable:
            sync_folder(self.folder)
            if new:
                sync_folder(self._root)
        self._now = None

    def tidy(self, new_path: Callable[[], str], *, durable: bool) -> None:
        """Gather small packs and write segments when there are too many; does nothing while another process does.

        A pack that has any damage is left alone, so that whoever reads it can tell.
        """
        if len(self._small()) < MANY_SMALL and len(self._bare()) < MANY_BARE:
            return
        with self.replacing(wait=False) as mine:
            if not mine:
                return
            small = [name for name in self._small() if self.is_sound(name)]
            if len(small) >= MANY_SMALL:
                self.rewrite(small, new_path, durable=durable)
            self.reindex(new_path)

    def _small(self) -> list[str]:
        damaged = self.damaged
        paths = ((name, self.path_of(name)) for name in self.names())
        return [name for name, path in paths if path not in damaged and 0 < size_of(path) < SMALL_PACK]

    def _bare(self) -> list[str]:
        """Return the packs that no segment knows, without those that cannot be read."""
        return [table.packs[0] for table in (self._now or self._look()).tables if not isinstance(table, Segment)]

    def is_sound(self, name: str) -> bool:
        """Say whether a pack is as it was written: reads all of it. What is wrong is in `damaged` afterwards."""
        path = self.path_of(name)
        try:
            if hash_bytes(read_whole(path)) != PREFIX + name:
                raise PackError("it is not what was written")
        except (OSError, PackError) as error:
            self._note(path, error)
            return False
        return True

    @contextmanager
    def replacing(self, *, wait: bool) -> Iterator[bool]:
        """Hold the right to replace packs; yields whether it was to be had (always, with `wait`)."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(f"{self._root}/packs.lock", flags, 0o666)
        try:
            grant([descriptor], self._root, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                # No locks on this file system: two that gather the same packs write the same new one.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            self._now = None
            yield True
        finally:
            os.close(descriptor)

    def rewrite(
        self,
        names: Sequence[str],
        new_path: Callable[[], str],
        *,
        durable: bool,
        keep: Callable[[Digest], bool] | None = None,
        dispose: Callable[[str], None] = os.unlink,
    ) -> None:
        """Put what is good in packs `names`, and wanted by `keep`, into new packs; then `dispose` of the old files.

        `replacing` must be held. Records are copied as they are stored, never compressed again; what is damaged stays
        in the old files alone (`is_sound` tells). Of a pack that is gone there is nothing to do.
        """
        writer = Repacker(new_path, durable=durable)
        old = []
        try:
            for name in names:
                try:
                    data = memoryview(read_whole(self.path_of(name)))
                except FileNotFoundError:
                    continue
                except PackError:  # nothing in it can be kept
                    data = memoryview(b"")
                old.append(name)
                for _, record in scan_records(data):
                    if keep is None or keep(digest_from_raw(record.raw)):
                        writer.add(record)
            sealed = writer.seal()
        finally:
            writer.close()
        if sealed:
            self.publish(sealed, durable=durable)
        for name in set(old) - {name for _, name in sealed}:
            with suppress(FileNotFoundError):
                dispose(self.path_of(name))
            self._forgive(self.path_of(name))
        self._now = None

    def reindex(self, new_path: Callable[[], str]) -> None:
        """Write one segment for all packs that have none and for the segments that are not twice as large.

        `replacing` must be held. So there are never more segments than the logarithm of the number of objects, and each
        object is written to one about as often. Segments that are of no use any more go. None need be durable: they
        can be made again.
        """
        self.forget()
        self.doubt()  # what is merged gets a good checksum: it had better be right
        known = self._now or self._look()
        bare = [
            table
            for table in known.tables
            if not isinstance(table, Segment) and self.path_of(table.packs[0]) not in self.damaged
        ]
        segments = [
            (table, path) for table, path in zip(known.tables, known.files, strict=True) if isinstance(table, Segment)
        ]
        kept = {path for _, path in segments}
        count = sum(table.count for table in bare)
        merged = []
        for table, path in reversed(segments):  # the smallest first
            if not bare or table.count > 2 * count:
                break
            merged.append(table)
            count += table.count
            kept.remove(path)
        if bare:
            try:
                kept.add(self._write_segment(encode_segment([*merged, *bare]), new_path))
            except PackError as error:  # it was well a moment ago
                raise OSError(errno.EIO, str(error)) from error
        for name in self.segments():
            path = self.segment_path(name)
            if path not in kept:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._forgive(path)
        self._now = None

    def _forgive(self, path: str) -> None:
        self.damaged.pop(path, None)
        self._unusable.discard(path)

    def _write_segment(self, pieces: Iterable[bytes], new_path: Callable[[], str]) -> str:
        temporary = new_path()
        hasher = Hasher()
        descriptor = os.open(temporary, CREATE_FLAGS, OBJECT_MODE)
        try:
            for piece in pieces:
                hasher.update(piece)
                write_all(descriptor, piece)
        finally:
            os.close(descriptor)
        make_folder(self.index, self._root)
        grant([temporary], self._root, OBJECT_MODE)
        path = self.segment_path(hasher.digest().removeprefix(PREFIX))
        os.rename(temporary, path)
        self._forgive(path)
        return path
