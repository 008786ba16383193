"""What a remote holds, and where: immutable segments of an index, read once and kept here.

    index/<name>.idx    a segment (`pack_segment`), named by the digest of its bytes; each push adds one
    index/list.json     the names and sizes of the segments, for servers that cannot list

One listing tells which segments there are: whether a million objects are on the remote is then answered without asking
it again. A segment says of an object in which pack it is; in place of a pack's name it may say that the object lies
alone (`LOOSE`) or in chunks (`CHUNKED`). It may lie: what it leads to is verified by whoever reads it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from mlops_cli.errors import CorruptObject, RemoteError
from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, hash_file, raw_digest, raw_digests
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.pack_folder import SEGMENT_SUFFIX, OpenFile
from mlops_cli.store.pack_format import PackError, Row
from mlops_cli.store.pack_index import Place, Table, rows_table
from mlops_cli.store.pack_segment import Segment, encode_segment, read_segment, segment_in

LOOSE = "0" * 64
CHUNKED = "f" * 64
FOLDER = "index"
LIST = f"{FOLDER}/list.json"
_NAME = re.compile(rf"{FOLDER}/([0-9a-f]{{64}}){re.escape(SEGMENT_SUFFIX)}")
_ATTEMPTS = 5  # at reading the index while others replace segments, and at telling what is listed
_WHOLE = 1 << 20  # bytes of a segment that are brought at once, however few objects are looked for
_BLOCK = 64 << 10
_PER_OBJECT = 3 * _BLOCK  # what looking for one object in a segment may take
_LARGEST_LIST = 16 << 20
_ABANDONED = 24 * 3600.0  # s after which nobody brings a segment any more
_OTHER = "its bytes are not those it was named for"
_MANY = 32  # segments that are merged into one by the push that finds them


class RemoteIndex:
    """The index of the remote in `bucket`; `kept` is a folder of this clone for segments that were brought.

    No I/O before the first verb. RemoteError, and CorruptObject for a segment that is none.
    """

    def __init__(self, bucket: Bucket, kept: str) -> None:
        self._bucket = bucket
        self._kept = kept
        self._listed: dict[str, int] | None = None  # names and bytes of the segments there are
        self._whole: dict[str, Segment] = {}
        self._parts: dict[str, Segment] = {}
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
                hits = self._table(name, len(left)).find_all(left)
            except PackError as error:
                raise self._damaged(name, str(error)) from error
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
            for table in (*self._tables(), *self._supplement):
                for raw, place in table.rows():
                    if place.pack not in self._gone and digest_from_raw(raw) not in self._denied:
                        yield raw, place
        except PackError as error:  # it was well a moment ago
            raise OSError(errno.EIO, str(error), self._kept) from error

    def _tables(self) -> list[Segment]:
        for _ in range(_ATTEMPTS):
            try:
                return [self._bring(name, whole=True) for name in self._names()]
            except AbsentKey:
                self.forget()
        raise self._unsteady()

    def supplement(self, table: Table) -> None:
        """Know what no segment says; the next `add` says it."""
        self._supplement.append(table)

    def add(self, tables: Sequence[Table]) -> None:
        """Tell the remote what else it holds. When it has many segments, one takes the place of all."""
        names = self._names()
        tables = [*tables, *self._supplement]
        if len(names) >= _MANY:
            tables = [*tables, *self._tables()]
        else:
            names = ()
        self._replace(names, tables)
        self._supplement = []

    def _replace(self, names: Iterable[str], tables: Sequence[Table]) -> None:
        """Add a segment of `tables`, then remove those called `names`."""
        try:
            data = b"".join(encode_segment(tables))
        except PackError as error:  # it was well a moment ago
            raise OSError(errno.EIO, str(error), self._kept) from error
        name = hash_bytes(data).removeprefix(PREFIX)
        self._bucket.put(_key(name), data)
        self._bucket.delete([_key(old) for old in names if old != name])
        self.forget()
        self._tell()

    def deny(self, digests: Iterable[Digest]) -> None:
        """Believe no more what the index says of some objects; `rewrite` makes it say so no more."""
        self._denied.update(digests)

    def rewrite(self) -> None:
        """Let one segment take the place of all, without what is denied and what is in packs that are not there."""
        by_pack: dict[str, list[Row]] = {}
        for raw, place in self.rows():
            by_pack.setdefault(place.pack, []).append(Row(raw, place.offset, place.length, place.stored))
        self._replace(self._names(), [rows_table(rows, pack) for pack, rows in by_pack.items()])
        self._denied.clear()
        self._gone.clear()

    def mend(self) -> list[str]:
        """Put segments back that are not as they were written there and are kept here; remove the others.

        Returns the keys of those that had to be removed.
        """
        lost = []
        for name in self._names():
            try:
                sound = self._is_sound(name)
                self._bring(name, whole=True)  # what is kept of it, unless nothing is
            except AbsentKey:  # somebody has merged it with others
                continue
            except CorruptObject:
                lost.append(_key(name))
                continue
            if not sound and os.path.exists(self._path(name)):
                self._bucket.put_file(_key(name), self._path(name))
            elif not sound:
                lost.append(_key(name))
        if lost:
            self._bucket.delete(lost)
        self.forget()
        self._tell()
        return lost

    def _is_sound(self, name: str) -> bool:
        """Say whether a segment is there as it was written, whatever is kept of it here; AbsentKey."""
        os.makedirs(self._kept, exist_ok=True)
        path = f"{self._path(name)}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._bucket.get_file(_key(name), path)
            return hash_file(path) == PREFIX + name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def exists(self) -> bool:
        """Say whether there is any segment."""
        return bool(self._names())

    def unsound(self) -> list[str]:
        """Return the keys of segments that are not there as they were written, whatever is kept of them here."""
        found = []
        for name in self._names():
            with suppress(AbsentKey):  # somebody has merged it with others
                if not self._is_sound(name):
                    found.append(_key(name))
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
            self._tidy(self._listed)
        return self._listed

    def _list(self) -> dict[str, int]:
        return dict(_segments(self._bucket.list(FOLDER)))

    def _read_list(self) -> dict[str, int]:
        try:
            data = self._bucket.get(LIST, 0, _LARGEST_LIST)
        except AbsentKey:
            return {}
        try:
            value = json.loads(data)["segments"]
            listed = dict(_segments(Stored(_key(str(name)), int(size), None) for name, size in value.items()))
            if min(listed.values(), default=0) < 0:
                raise ValueError("less than nothing")
            return listed
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise RemoteError(
                f"{self._bucket.label} holds a `{LIST}` that mlx cannot read",
                hint="`mlx push` from a clone that can write there makes it anew",
            ) from error

    def _table(self, name: str, wanted: int) -> Segment:
        """Return a segment, read in parts as they are needed when few objects are looked for in a large one."""
        size = self._names_listed()[name]
        if size <= _WHOLE or wanted * _PER_OBJECT >= size or os.path.exists(self._path(name)):
            return self._bring(name)
        if name not in self._parts:
            try:
                self._parts[name] = Segment(_Blocks(self._bucket, _key(name), size).read, size)
            except PackError as error:
                raise self._damaged(name, str(error)) from error
        return self._parts[name]

    def _bring(self, name: str, *, whole: bool = False) -> Segment:
        """Return a segment from the folder where they are kept, to which it comes first.

        With `whole` it is looked at as a whole: what is told of it to others had better be right.
        """
        if name in self._whole and not whole:
            return self._whole[name]
        if not self._keeps():
            return self._hold(name)
        path = self._path(name)
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
            raise AbsentKey(_key(name))
        raise self._damaged(name, str(damage))

    def _download(self, name: str, path: str) -> None:
        temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._bucket.get_file(_key(name), temporary)
            if hash_file(temporary) != PREFIX + name:
                raise self._damaged(name, _OTHER)
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
        data = self._bucket.get(_key(name))
        if hash_bytes(data) != PREFIX + name:
            raise self._damaged(name, _OTHER)
        try:
            segment = self._whole[name] = segment_in(data)
            segment.verify()
            segment.check_rows()
        except PackError as error:
            raise self._damaged(name, str(error)) from error
        return segment

    def _tidy(self, listed: Collection[str]) -> None:
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

    def _path(self, name: str) -> str:
        return f"{self._kept}/{name}{SEGMENT_SUFFIX}"

    def _damaged(self, name: str, why: str) -> CorruptObject:
        return CorruptObject(
            f"the index of {self._bucket.label} is damaged: `{_key(name)}`: {why}",
            hint="`mlx push --repair` from a clone that has the data makes it anew",
        )

    def _unsteady(self) -> RemoteError:
        return RemoteError(
            f"the index of {self._bucket.label} names segments that are not there",
            hint="run the command again; if it stays so, `mlx push --repair` from a clone that has the data",
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


def _segments(listed: Iterable[Stored]) -> Iterator[tuple[str, int]]:
    for stored in listed:
        if match := _NAME.fullmatch(stored.key):
            yield match[1], stored.size


def _key(name: str) -> str:
    return f"{FOLDER}/{name}{SEGMENT_SUFFIX}"
