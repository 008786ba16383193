"""The packs of a store: small objects found, read, published, and gathered into fewer files.

    packs/<name>.pack       a pack, named by the digest of its bytes; never changed, only replaced by others
    index/<name>.idx        a segment of the index, for many packs, named by the digest of its bytes
    packs.lock              held by whoever replaces packs

The packs alone are the truth. A reader knows what was there when it looked; when an object is not among it, or its pack
is gone, it looks again, and it doubts the index before it doubts an object. Whoever replaces packs publishes the new
ones first, so that an object is never nowhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.files import sync_folder, sync_paths, write_all
from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, raw_digest
from mlops_cli.store.pack_format import (
    LARGEST,
    LARGEST_PACK,
    RECORD_SIZE,
    SEALED_AT,
    PackError,
    Record,
    Row,
    decode_record,
    scan_records,
)
from mlops_cli.store.pack_index import (
    READ_FLAGS,
    Place,
    Table,
    encode_segment,
    mapped,
    read_footer,
    rows_table,
    segment_table,
)
from mlops_cli.store.pack_writer import PackWriter, unpacked

SUFFIX = ".pack"
SEGMENT_SUFFIX = ".idx"
SMALL_PACK = SEALED_AT // 8
MANY_SMALL = 32  # that many small packs are gathered into one
MANY_BARE = 4  # that many packs without a segment get one
_OPEN_FILES = 32
_ATTEMPTS = 10  # at a reader's finding a pack before it is replaced again
# A folder's time of change is trusted when it is that much older than the look at it: on the coarsest file systems it
# ticks every two seconds.
_SETTLED = 2_000_000_000
_NAME = re.compile("[0-9a-f]{64}")
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_GONE = frozenset({errno.ENOENT, errno.ESTALE})


class _Known(NamedTuple):
    """What was there at one look: packs, and tables that together know all of them, the largest first."""

    packs: frozenset[str]
    stamp: tuple[int, int]
    at: int  # when it was looked, in nanoseconds
    tables: tuple[Table, ...]
    files: tuple[str, ...]  # of each table its segment, or else its pack
    verified: bool


class Packs:
    """The packs below `root`; no I/O before the first verb. OSError passes through.

    Several threads may read. `damaged` tells of packs and segments, by path, that could not be used as they are, and
    why.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self.folder = f"{root}/packs"
        self.index = f"{root}/index"
        self._now: _Known | None = None
        self._files: dict[str, _OpenFile] = {}  # the one used last is last
        self.damaged: dict[str, str] = {}
        self.lost: set[Digest] = set()  # objects that were not good enough to be kept when their pack was replaced
        self._unusable: set[str] = set()  # segments, and packs whose footer is

    def find(self, digest: Digest) -> Place | None:
        """Return where an object is, as far as is known since the last look; None when it is in no pack."""
        known = self._now or self._look()
        if not known.tables:
            return None
        raw = raw_digest(digest)
        try:
            for table in known.tables:
                place = table.find(raw)
                if place is not None:
                    return place
        except PackError as error:
            self._reject(known, table, error)
            return self.find(digest)
        return None

    def look_again(self) -> bool:
        """Learn of packs that came and went; returns whether there were any."""
        now = self._now
        if now is None:
            return True
        if now.stamp == self._read_stamp() and max(now.stamp) < now.at - _SETTLED:
            return False
        new = self._look(now)
        return new.packs != now.packs

    def forget(self) -> None:
        """Look anew at the next verb: somebody moved packs by other means than these."""
        self._now = None

    def doubt(self) -> bool:
        """Check what is known of the index as a whole, once; returns whether any of it was damaged, and not used now.

        To be called before an object is said to be missing.
        """
        return not (self._now or self._look()).verified and self._verify()

    def read(self, digest: Digest) -> bytes | None:
        """Return an object's bytes, verified; None when it is in no pack, as far as is known.

        PackError when it is there, but is not what was written.
        """
        damage: PackError | None = None
        for _ in range(_ATTEMPTS):
            try:
                data, damage = self._read_from(self._now or self._look(), raw_digest(digest))
            except FileNotFoundError:
                self._now = None
                continue
            if data is not None:
                return data
            if not (self.look_again() or (damage is not None and self.doubt())):
                break
        if damage is not None:
            raise damage
        return None

    def _read_from(self, known: _Known, raw: bytes) -> tuple[bytes | None, PackError | None]:
        """Return an object as the first of its good records has it, else what is wrong with one."""
        damage = None
        for table in known.tables:
            try:
                place = table.find(raw)
            except PackError as error:
                self._reject(known, table, error)
                continue
            if place is not None:
                try:
                    return self._read_at(place, raw), None
                except PackError as error:
                    damage = error
        return None, damage

    def _read_at(self, place: Place, raw: bytes) -> bytes:
        record = self._record(place)
        if record.raw != raw:
            raise PackError("its index leads to another object")
        data = unpacked(record)
        found = hash_bytes(data)
        if raw_digest(found) != raw:
            raise PackError(f"its bytes hash to `{found[:19]}`")
        return data

    def rows(self) -> Iterator[tuple[Digest, Place]]:
        """Yield every object once, with one of the places where it is."""
        self.doubt()
        tables = (self._now or self._look()).tables
        for number, table in enumerate(tables):
            for raw, place in table.rows():
                if not any(before.find(raw) for before in tables[:number]):
                    yield digest_from_raw(raw), place

    def _record(self, place: Place) -> Record:
        size = RECORD_SIZE + place.stored
        if place.stored > LARGEST:
            raise PackError("its index claims what no record is")
        file = self._files.pop(place.pack, None) or self._open(place.pack)
        self._files[place.pack] = file  # closed when it is out of here, and no thread reads from it
        if len(self._files) > _OPEN_FILES:
            self._forget_file()
        try:
            data = os.pread(file.descriptor, size, place.offset)
        except OSError as error:
            if error.errno in _GONE:
                self._files.pop(place.pack, None)
                raise FileNotFoundError(error.errno, error.strerror) from error
            raise
        return decode_record(data)

    def _open(self, pack: str) -> _OpenFile:
        while True:
            try:
                return _OpenFile(self.path_of(pack))
            except OSError as error:
                if error.errno not in _SHORTAGES or not self._files:
                    raise
                self._forget_file()

    def _forget_file(self) -> None:
        with suppress(StopIteration, RuntimeError):  # another thread is at it too
            self._files.pop(next(iter(self._files)), None)

    def path_of(self, pack: str) -> str:
        """Return where a pack is."""
        return f"{self.folder}/{pack}{SUFFIX}"

    def names(self) -> list[str]:
        """Return the names of the packs that are there now, sorted."""
        return _names(self.folder, SUFFIX)

    def publish(self, sealed: Iterable[tuple[str, str]], *, durable: bool) -> None:
        """Give sealed packs (file, name), whose bytes are durable by now, their names, in that order."""
        new = not os.path.isdir(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        for path, name in sealed:
            os.rename(path, self.path_of(name))
        if durable:
            sync_folder(self.folder)
            if new:
                sync_folder(self._root)
        self._now = None

    def _read_stamp(self) -> tuple[int, int]:
        return _changed(self.folder), _changed(self.index)

    def _look(self, before: _Known | None = None) -> _Known:
        """Learn what is there; tables that are as they were `before` are kept."""
        stamp, at = self._read_stamp(), time.time_ns()  # before the listing: what comes later shows in the next stamp
        packs = frozenset(self.names())
        if before is not None and packs == before.packs:
            self._now = before._replace(stamp=stamp, at=at)
            return self._now
        bare = set(packs)
        tables: dict[str, Table] = {}
        for name in self._segments():
            table = self._segment(name)
            if table is not None and packs.issuperset(table.packs) and not bare.isdisjoint(table.packs):
                tables[self._segment_path(name)] = table
                bare.difference_update(table.packs)
        for name in sorted(bare):
            if (table := self._footer(name)) is not None:
                tables[self.path_of(name)] = table
        self._now = _Known(packs, stamp, at, tuple(tables.values()), tuple(tables), verified=False)
        return self._now

    def _segment_path(self, name: str) -> str:
        return f"{self.index}/{name}{SEGMENT_SUFFIX}"

    def _segments(self) -> list[str]:
        """Return the names of the segments, the largest first, without those that were found damaged."""
        names = [name for name in _names(self.index, SEGMENT_SUFFIX) if self._segment_path(name) not in self._unusable]
        return sorted(names, key=lambda name: _size(self._segment_path(name)), reverse=True)

    def _segment(self, name: str) -> Table | None:
        path = self._segment_path(name)
        try:
            try:
                data = mapped(path)
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                return segment_table(Path(path).read_bytes())
            return segment_table(data)
        except (OSError, PackError) as error:
            self._note(path, error)
            return None

    def _reject(self, known: _Known, table: Table, error: PackError) -> None:
        """Use a table no more."""
        path = known.files[known.tables.index(table)]
        self.damaged.setdefault(path, str(error))
        self._unusable.add(path)
        self._now = None

    def _footer(self, name: str) -> Table | None:
        path = self.path_of(name)
        try:
            if path not in self._unusable:
                return read_footer(path, name)
        except (OSError, PackError) as error:
            self._note(path, error)
        return self._scanned(name)

    def _scanned(self, name: str) -> Table | None:
        """Return a table of the records that a pack without a good footer has."""
        try:
            found = scan_records(memoryview(_whole(self.path_of(name))))
            return rows_table((Row(r.raw, offset, r.length, len(r.data)) for offset, r in found), name)
        except (OSError, PackError) as error:
            self._note(self.path_of(name), error)
            return None

    def _note(self, path: str, error: OSError | PackError) -> None:
        """Remember what is wrong with a file; OSError when that is not the file's fault."""
        if isinstance(error, OSError):
            if error.errno in _GONE:
                return
            if error.errno in _SHORTAGES:
                raise error
        self.damaged.setdefault(path, (isinstance(error, OSError) and error.strerror) or str(error))

    def _verify(self) -> bool:
        """Check every table as a whole; returns whether one was damaged, and what is known is without it now."""
        known = self._now or self._look()
        found = False
        for table in known.tables:
            try:
                table.verify()
            except PackError as error:
                self._reject(known, table, error)
                found = True
        if not found:
            self._now = known._replace(verified=True)
        return found

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
        return [name for name, path in paths if path not in damaged and _size(path) < SMALL_PACK]

    def _bare(self) -> list[str]:
        """Return the packs that no segment knows, without those that cannot be read."""
        return [table.packs[0] for table in (self._now or self._look()).tables if not table.starts]

    def is_sound(self, name: str) -> bool:
        """Say whether a pack is as it was written: reads all of it. What is wrong is in `damaged` afterwards."""
        path = self.path_of(name)
        try:
            if hash_bytes(_whole(path)) != PREFIX + name:
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
        writer = _Rewriter(new_path, durable=durable)
        old = []
        try:
            for name in names:
                try:
                    data = memoryview(_whole(self.path_of(name)))
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
            table for table in known.tables if not table.starts and self.path_of(table.packs[0]) not in self.damaged
        ]
        segments = [(table, path) for table, path in zip(known.tables, known.files, strict=True) if table.starts]
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
            kept.add(self._write_segment(encode_segment([*merged, *bare]), new_path))
        for name in _names(self.index, SEGMENT_SUFFIX):
            path = self._segment_path(name)
            if path not in kept:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._forgive(path)
        self._now = None

    def _forgive(self, path: str) -> None:
        self.damaged.pop(path, None)
        self._unusable.discard(path)

    def _write_segment(self, data: bytes, new_path: Callable[[], str]) -> str:
        temporary = new_path()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
        os.makedirs(self.index, exist_ok=True)
        path = self._segment_path(hash_bytes(data).removeprefix(PREFIX))
        os.rename(temporary, path)
        self._forgive(path)
        return path


class _Rewriter:
    """Records on their way into new packs, each object once."""

    def __init__(self, new_path: Callable[[], str], *, durable: bool) -> None:
        self._new_path = new_path
        self._durable = durable
        self._writer: PackWriter | None = None
        self._written: set[bytes] = set()
        self._sealed: list[tuple[str, str]] = []

    def add(self, record: Record) -> None:
        if record.raw in self._written:
            return
        writer = self._writer
        if writer is None:
            writer = self._writer = PackWriter(self._new_path())
        writer.add(record)
        self._written.add(record.raw)
        if writer.size >= SEALED_AT:
            self._end_pack(writer)

    def seal(self) -> list[tuple[str, str]]:
        if self._writer is not None:
            self._end_pack(self._writer)
        return self._sealed

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _end_pack(self, writer: PackWriter) -> None:
        name = writer.seal()
        if self._durable:
            sync_paths([writer.path], Path(writer.path).parent)
        self._sealed.append((writer.path, name))
        self._writer = None


class _OpenFile:
    """A file that is closed when nobody holds this any more."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, READ_FLAGS)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _whole(path: str) -> bytes:
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


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return SMALL_PACK
