"""What a remote holds, and where: immutable segments of an index, read once and kept here.

    index/<name>.idx    a segment (`pack_segment`), named by the digest of its bytes; each push adds one
    index/list.json     the names and sizes of the segments, for servers that cannot list

One listing tells which segments there are: whether a million objects are on the remote is then answered without asking
it again. A segment says of an object in which pack it is; in place of a pack's name it may say that the object lies
alone (`LOOSE`) or in chunks (`CHUNKED`). It may lie: what it leads to is verified by whoever reads it.

The trash of a remote (`trash/`) is an index of the same form: of what a collection has condemned and not deleted yet.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from struct import Struct

from mlops_cli.errors import CorruptObject, RemoteError
from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, raw_digest, raw_digests
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.pack_folder import SEGMENT_SUFFIX
from mlops_cli.store.pack_format import PackError, Row
from mlops_cli.store.pack_index import Place, Table, rows_table
from mlops_cli.store.pack_segment import Segment, encode_segment
from mlops_cli.store.remote_segments import KeptSegments

LOOSE = "0" * 64
CHUNKED = "f" * 64
FOLDER = "index"
TRASH = "trash"
FOLDERS = ("packs", "objects", "recipes")  # of what an index names
LIST = f"{FOLDER}/list.json"
_NAME = re.compile(rf"\w+/([0-9a-f]{{64}}){re.escape(SEGMENT_SUFFIX)}")
_SWEEP = re.compile(rf"{FOLDER}/[0-9a-f]+\.(sweep|swept)")
_ATTEMPTS = 5  # at reading the index while others replace segments, and at telling what is listed
_LARGEST_LIST = 16 << 20
_ROW = Struct("<32s3I")
_MANY = 32  # segments that are merged into one by the push that finds them


class RemoteIndex:
    """The index of the remote in `bucket`; `kept` is a folder of this clone for segments that were brought.

    `sweeps` are the marks of collections (`remote_sweep`) that the last listing showed beside the segments, `times` the
    segments and when each was written; `merged` says whether what others have said was said anew. No I/O before the
    first verb. RemoteError, and CorruptObject for a segment that is none.
    """

    def __init__(self, bucket: Bucket, kept: str, folder: str = FOLDER) -> None:
        self.sweeps: dict[str, Stored] = {}
        self.times: dict[str, float | None] = {}
        self.merged = False
        self._bucket = bucket
        self._kept = kept
        self._folder = folder
        self.mended: list[str] = []  # the keys of what `mend` put back
        self._segments = KeptSegments(bucket, kept, folder)
        self._listed: dict[str, int] | None = None  # names and bytes of the segments there are
        self._seen: set[str] = set()  # segments that were there at some time, but for those that were removed here
        self._first_sweeps: frozenset[str] | None = None
        self._supplement: list[Table] = []
        self._gone: set[str] = set()  # packs that the index names and that are not there
        self._denied: set[Digest] = set()  # objects of which it says what is not so
        self._wrong: set[tuple[bytes, str]] = set()  # objects that are damaged in a pack, and may be good in another

    def find(self, digests: Collection[Digest]) -> dict[Digest, Place]:
        """Return where each of `digests` is, as far as it is there."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._find(digests)
            except AbsentKey:  # somebody has merged it with others: look anew
                self.forget()
                if attempt == _ATTEMPTS - 1:
                    raise self._unsteady() from None
        raise AssertionError

    def _find(self, digests: Collection[Digest]) -> dict[Digest, Place]:
        found: dict[Digest, Place] = {}
        names = [digest for digest in digests if digest not in self._denied]
        left = dict(zip(raw_digests(names), names, strict=True))
        for name in self._names():
            if not left:
                break
            try:
                hits = self._segments.table(name, self._names_listed()[name], len(left)).find_all(left)
            except PackError as error:
                raise self._segments.damaged(name, str(error)) from error
            for raw, place in hits.items():
                if place.pack not in self._gone and (raw, place.pack) not in self._wrong:
                    found[left.pop(raw)] = place
        for more in self._supplement:
            for raw, place in more.find_all(left).items():
                found[left.pop(raw)] = place
        return found

    def rows(self) -> Iterator[tuple[bytes, Place]]:
        """Yield the raw digest of every object, and a place where it is; brings every segment."""
        try:
            for table in (*self.tables(whole=True), *self._supplement):
                for raw, place in table.rows():
                    if place.pack not in self._gone and digest_from_raw(raw) not in self._denied:
                        yield raw, place
        except PackError as error:  # it was well a moment ago
            raise OSError(errno.EIO, str(error), self._kept) from error

    def read(self, name: str) -> Segment | None:
        """Return one segment, looked at as a whole; None when it is there no more."""
        try:
            return self._segments.bring(name, whole=True)
        except AbsentKey:
            self.forget()
            return None

    def tables(self, *, whole: bool = False) -> list[Segment]:
        """Return all that the segments say, each brought first; with `whole`, looked at as a whole."""
        for _ in range(_ATTEMPTS):
            try:
                return [self._segments.bring(name, whole=whole) for name in self._names()]
            except AbsentKey:
                self.forget()
        raise self._unsteady()

    def supplement(self, table: Table) -> None:
        """Know what no segment says; the next `add` says it."""
        self._supplement.append(table)

    def add(self, tables: Sequence[Table]) -> None:
        """Tell the remote what else it holds. When it has many segments, one takes the place of all."""
        tables = [*tables, *self._supplement]
        names: tuple[str, ...] = ()
        if self._folder == FOLDER and len(self._names()) >= _MANY:
            self.forget()  # what a collection has taken out since the last look must not come back
            tables = [*tables, *self.tables(whole=True)]
            names = self._names()
            self.merged = True
        self._replace(names, tables)
        self._supplement = []

    def read_all(self) -> tuple[tuple[str, ...], list[Segment]]:
        """Return the names of all segments there are now, and what they say."""
        self.forget()
        tables = self.tables(whole=True)
        return self._names(), tables

    def replace(self, names: Sequence[str], tables: Sequence[Table], agree: Callable[[], object]) -> None:
        """Let one segment of `tables` take the place of those called `names`; `agree` is asked before they go."""
        self._replace(names, tables, agree)

    def _replace(
        self, names: Iterable[str], tables: Sequence[Table], agree: Callable[[], object] | None = None
    ) -> None:
        """Add a segment of `tables`, then remove those called `names`."""
        try:
            data = b"".join(encode_segment(tables))
        except PackError as error:  # it was well a moment ago
            raise OSError(errno.EIO, str(error), self._kept) from error
        name = hash_bytes(data).removeprefix(PREFIX)
        self._bucket.put(self._segments.key(name), data)
        if agree is not None:
            agree()
        self.drop(old for old in names if old != name)
        self._tell()

    def drop(self, names: Iterable[str]) -> None:
        """Remove segments, which another says all of, or which nobody is to believe any more."""
        names = list(names)
        self._bucket.delete([self._segments.key(name) for name in names])
        self._seen.difference_update(names)
        self.forget()

    def was_reduced(self) -> bool:
        """Say whether somebody else has removed a segment that was there, as the last listing shows; asks once a time.

        What was found in it may be in another, or not.
        """
        reduced = not self._seen <= self._names_listed().keys()
        self._seen = set(self._names_listed())
        return reduced

    def was_swept(self) -> bool:
        """Say whether a collection deletes files just now, or has since the first listing; asks once a time."""
        self._names_listed()
        before, self._first_sweeps = self._first_sweeps, frozenset(self.sweeps)
        return self.sweeps.keys() != before or any(key.endswith(".sweep") for key in self.sweeps)

    def deny(self, digests: Iterable[Digest]) -> None:
        """Believe no more what the index says of some objects; `rewrite` makes it say so no more."""
        self._denied.update(digests)

    def rewrite(self) -> None:
        """Let one segment take the place of all, without what is denied and what is in packs that are not there."""
        self.forget()
        self.merged = True
        tables = tables_of(self.rows())
        self._replace(self._names(), tables)
        self._denied.clear()
        self._gone.clear()

    def mend(self) -> list[str]:
        """Put segments back that are not as they were written there and are kept here; remove the others.

        Returns the keys of those that had to be removed.
        """
        lost = []
        segments = self._segments
        for name in self._names():
            try:
                sound = segments.is_sound(name)
                segments.bring(name, whole=True)  # what is kept of it, unless nothing is
            except AbsentKey:  # somebody has merged it with others
                continue
            except CorruptObject:
                lost.append(name)
                continue
            if not sound and os.path.exists(segments.path(name)):
                self._bucket.put_file(segments.key(name), segments.path(name))
                self.mended.append(segments.key(name))
            elif not sound:
                lost.append(name)
        if lost:
            self.drop(lost)
        self._tell()
        return [segments.key(name) for name in lost]

    def exists(self) -> bool:
        """Say whether there is any segment."""
        return bool(self._names())

    def unsound(self) -> list[str]:
        """Return the keys of segments that are not there as they were written, whatever is kept of them here."""
        found = []
        for name in self._names():
            with suppress(AbsentKey):  # somebody has merged it with others
                if not self._segments.is_sound(name):
                    found.append(self._segments.key(name))
        return found

    def reject(self, pack: str) -> None:
        """Believe no more what the index says of a pack: it is not there. A new look tells where its objects are."""
        self._gone.add(pack)
        self.forget()

    def doubt(self, digest: Digest) -> bool:
        """Look for an object, which is damaged where the index leads to, elsewhere from now on; returns whether it can.

        When no segment knows another place, the index leads there all the same.
        """
        place = self.find([digest]).get(digest)
        if place is None or place.pack == LOOSE:
            return False
        wrong = (raw_digest(digest), place.pack)
        self._wrong.add(wrong)
        if digest in self.find([digest]):
            return True
        self._wrong.remove(wrong)
        return False

    def forget(self) -> None:
        """Look anew at the next verb."""
        self._listed = None

    def _tell(self) -> None:
        """Keep the list for servers that cannot list; when two tell at once, the last sees what both have added."""
        if self._folder != FOLDER:
            self.forget()
            return
        for _ in range(_ATTEMPTS):
            self.forget()
            listed = dict(sorted((self._names_listed()).items()))
            self._bucket.put(LIST, json.dumps({"mlx": 1, "segments": listed}).encode() + b"\n")
            if self._list() == listed:
                return

    def _names(self) -> tuple[str, ...]:
        """Return the segments, the largest first."""
        listed = self._names_listed()
        return tuple(sorted(listed, key=lambda name: (-listed[name], name)))

    def _names_listed(self) -> dict[str, int]:
        if self._listed is None:
            self._listed = self._list() if self._bucket.lists else self._read_list()
            self._segments.tidy(self._listed)
            self._seen.update(self._listed)
            if self._first_sweeps is None:
                self._first_sweeps = frozenset(self.sweeps)
        return self._listed

    def _list(self) -> dict[str, int]:
        found = list(self._bucket.list(self._folder))
        self.sweeps = {stored.key: stored for stored in found if _SWEEP.fullmatch(stored.key)}
        self.times = {match[1]: stored.modified for stored in found if (match := _NAME.fullmatch(stored.key))}
        return dict(_segments(found))

    def _read_list(self) -> dict[str, int]:
        if self._folder != FOLDER:
            return {}  # such a server cannot tell
        try:
            data = self._bucket.get(LIST, 0, _LARGEST_LIST)
        except AbsentKey:
            return {}
        try:
            value = json.loads(data)["segments"]
            listed = dict(
                _segments(Stored(self._segments.key(str(name)), int(size), None) for name, size in value.items())
            )
            if min(listed.values(), default=0) < 0:
                raise ValueError("less than nothing")
            return listed
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise RemoteError(
                f"{self._bucket.label} holds a `{LIST}` that mlx cannot read",
                hint="`mlx push` from a clone that can write there makes it anew",
            ) from error

    def _unsteady(self) -> RemoteError:
        return RemoteError(
            f"the index of {self._bucket.label} names segments that are not there",
            hint="run the command again; if it stays so, `mlx push --repair` from a clone that has the data",
        )


def tables_of(rows: Iterable[tuple[bytes, Place]]) -> list[Table]:
    """Return tables of objects (raw digests) and where they are, one for each pack."""
    by_pack: dict[str, bytearray] = {}
    for raw, place in rows:
        found = by_pack.get(place.pack)
        if found is None:
            found = by_pack[place.pack] = bytearray()
        found += _ROW.pack(raw, place.offset, place.length, place.stored)
    return [rows_table(map(Row._make, _ROW.iter_unpack(by_pack.pop(pack))), pack) for pack in list(by_pack)]


def _segments(listed: Iterable[Stored]) -> Iterator[tuple[str, int]]:
    for stored in listed:
        if match := _NAME.fullmatch(stored.key):
            yield match[1], stored.size
