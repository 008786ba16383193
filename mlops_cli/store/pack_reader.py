"""Looking objects up in packs: where each is, as far as is known, and its bytes.

The packs alone are the truth. A reader knows what was there when it looked; when an object is not among it, or its pack
is gone, it looks again, and it doubts the index before it doubts an object. A pack without a good footer is read from
its beginning, for the records that are whole.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from mlops_cli.hashing import Digest, digest_from_raw, raw_digest, raw_digests
from mlops_cli.store.pack_folder import GONE, SHORTAGES, PackFolder, read_whole, size_of
from mlops_cli.store.pack_format import LARGEST, RECORD_SIZE, PackError, Record, Row, decode_record, scan_records
from mlops_cli.store.pack_index import Place, Table, read_footer, rows_table
from mlops_cli.store.pack_segment import read_segment
from mlops_cli.store.pack_writer import unpacked

_AT_ONCE = 1 << 16  # digests
_ATTEMPTS = 10  # at a reader's finding a pack before it is replaced again
# A folder's time of change is trusted when it is that much older than the look at it: on the coarsest file systems it
# ticks every two seconds.
_SETTLED = 2_000_000_000


class Known(NamedTuple):
    """What was there at one look: packs, and tables that together know all of them, the largest first."""

    packs: frozenset[str]
    stamp: tuple[int, int]
    at: int  # when it was looked, in nanoseconds
    tables: tuple[Table, ...]
    files: tuple[str, ...]  # of each table its segment, or else its pack
    verified: bool


class PackReader(PackFolder):
    """The objects in the packs below `root`; no I/O before the first verb. OSError passes through.

    Several threads may read. `damaged` tells of packs and segments, by path, that could not be used as they are, and
    why; `lost` names objects that were not good enough to be kept when their pack was replaced.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._now: Known | None = None
        self.damaged: dict[str, str] = {}
        self.lost: set[Digest] = set()
        self._unusable: set[str] = set()  # segments, and packs whose footer is
        self._likely: Table | None = None  # knew the object that was found last

    def find(self, digest: Digest) -> Place | None:
        """Return where an object is, as far as is known since the last look; None when it is in no pack."""
        known = self._now or self._look()
        if not known.tables:
            return None
        raw = raw_digest(digest)
        try:
            for table in self._ordered(known):
                place = table.find(raw)
                if place is not None:
                    self._likely = table
                    return place
        except PackError as error:
            self._reject(known, table, error)
            return self.find(digest)
        return None

    def find_all(self, digests: Iterable[Digest]) -> dict[Digest, Place]:
        """Return where those of `digests` are that are in packs, as far as is known since the last look."""
        known = self._now or self._look()
        names = list(digests)
        left = dict(zip(raw_digests(names), names, strict=True))
        found: dict[Digest, Place] = {}
        try:
            for table in known.tables:
                if not left:
                    break
                for raw, place in table.find_all(left).items():
                    found[left.pop(raw)] = place
        except PackError as error:
            self._reject(known, table, error)
            return self.find_all(names)
        return found

    def find_in_turn(self, digests: Collection[Digest]) -> Iterator[dict[Digest, Place]]:
        """Yield what `find_all` returns, some at a time: of a million digests that saves half the memory."""
        if len(digests) <= _AT_ONCE:
            yield self.find_all(digests)
            return
        names = sorted(digests)  # neighbours are in one part of each table
        for start in range(0, len(names), _AT_ONCE):
            yield self.find_all(names[start : start + _AT_ONCE])

    def _ordered(self, known: Known) -> Iterator[Table]:
        """Yield the tables, first the one that knew the object before: what is together is asked for together."""
        likely = self._likely
        if likely is not None and likely in known.tables:
            yield likely
        for table in known.tables:
            if table is not likely:
                yield table

    def look_again(self) -> bool:
        """Learn of packs that came and went; returns whether there were any."""
        now = self._now
        if now is None:
            return True
        if now.stamp == self.stamp() and max(now.stamp) < now.at - _SETTLED:
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

    def _read_from(self, known: Known, raw: bytes) -> tuple[bytes | None, PackError | None]:
        """Return an object as the first of its good records has it, else what is wrong with one."""
        damage = None
        for table in self._ordered(known):
            try:
                place = table.find(raw)
            except PackError as error:
                self._reject(known, table, error)
                continue
            if place is not None:
                self._likely = table
                try:
                    return self._read_at(place, raw), None
                except PackError as error:
                    damage = error
        return None, damage

    def _read_at(self, place: Place, raw: bytes) -> bytes:
        record = self.record(place)
        if record.raw != raw:
            raise PackError("its index leads to another object")
        data = unpacked(record)
        found = blake3(data).digest()
        if found != raw:
            raise PackError(f"its bytes hash to `{digest_from_raw(found)[:19]}`")
        return data

    def rows(self) -> Iterator[tuple[Digest, Place]]:
        """Yield every object once, with one of the places where it is."""
        self.doubt()
        tables = (self._now or self._look()).tables
        try:
            for number, table in enumerate(tables):
                for raw, place in table.rows():
                    if not any(before.find(raw) for before in tables[:number]):
                        yield digest_from_raw(raw), place
        except PackError as error:  # it was well a moment ago
            raise OSError(errno.EIO, str(error)) from error

    def record(self, place: Place) -> Record:
        """Return the record at `place`, as it was written; PackError, FileNotFoundError."""
        size = RECORD_SIZE + place.stored
        if place.stored > LARGEST:
            raise PackError("its index claims what no record is")
        return decode_record(self.read_part(place.pack, place.offset, size))

    def _look(self, before: Known | None = None) -> Known:
        """Learn what is there; tables that are as they were `before` are kept."""
        stamp, at = self.stamp(), time.time_ns()  # before the listing: what comes later shows in the next stamp
        packs = frozenset(self.names())
        if before is not None and packs == before.packs:
            self._now = before._replace(stamp=stamp, at=at)
            return self._now
        bare = set(packs)
        tables: dict[str, Table] = {}
        for name in self._usable_segments():
            table = self._segment(name)
            if table is not None and packs.issuperset(table.packs) and not bare.isdisjoint(table.packs):
                tables[self.segment_path(name)] = table
                bare.difference_update(table.packs)
        for name in sorted(bare):
            if (table := self._footer(name)) is not None:
                tables[self.path_of(name)] = table
        self._now = Known(packs, stamp, at, tuple(tables.values()), tuple(tables), verified=False)
        return self._now

    def _usable_segments(self) -> list[str]:
        """Return the names of the segments, the largest first, without those that were found damaged."""
        names = [name for name in self.segments() if self.segment_path(name) not in self._unusable]
        return sorted(names, key=lambda name: size_of(self.segment_path(name)), reverse=True)

    def _segment(self, name: str) -> Table | None:
        path = self.segment_path(name)
        try:
            return read_segment(self._open(path))
        except (OSError, PackError) as error:
            self._note(path, error)
            return None

    def _reject(self, known: Known, table: Table, error: PackError) -> None:
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
            found = scan_records(memoryview(read_whole(self.path_of(name))))
            return rows_table((Row(r.raw, offset, r.length, len(r.data)) for offset, r in found), name)
        except (OSError, PackError) as error:
            self._note(self.path_of(name), error)
            return None

    def _note(self, path: str, error: OSError | PackError) -> None:
        """Remember what is wrong with a file; OSError when that is not the file's fault."""
        if isinstance(error, OSError):
            if error.errno in GONE:
                return
            if error.errno in SHORTAGES:
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
