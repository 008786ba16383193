"""Sending objects of the cache to a remote: small ones in packs, in the order in which they were asked for.

A pack of the cache of which everything is wanted goes up as it is. All other records are copied into new packs as they
are stored, so nothing is compressed twice. The index is told last, and of trees only when all that was to come before
them is there: a tree that a remote names is a promise about everything beneath it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import Failures
from mlops_cli.store.pack_folder import SUFFIX, size_of
from mlops_cli.store.pack_format import LARGEST, SEALED_AT, PackError, Record, Row
from mlops_cli.store.pack_index import read_footer, rows_table
from mlops_cli.store.pack_writer import Compressor, PackWriter
from mlops_cli.store.packs import SMALL_PACK
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.remote_index import LOOSE, RemoteIndex
from mlops_cli.store.scratch import Scratch

_TELL_EVERY = (
    512 << 20
)  # bytes sent after which the index is told, so that an interrupted push need not send them again
_MOST = 2**32 - 1  # what a segment can say of a length


class Wanted(NamedTuple):
    """What to send: blobs, then trees, each after what it names; and the bytes of each object."""

    blobs: Sequence[Digest]
    trees: Sequence[Digest]
    sizes: Mapping[Digest, int]


class _Sent(NamedTuple):
    """What one request has sent: under which pack the index is to have which rows, and how many bytes those are."""

    pack: str
    rows: list[Row]


class Upload:
    """One push from `cache` to the remote in `bucket`."""

    def __init__(self, cache: Cache, bucket: Bucket, index: RemoteIndex, reporter: Reporter) -> None:
        self._cache = cache
        self._bucket = bucket
        self._index = index
        self._reporter = reporter
        self._failures = Failures()

    def run(self, wanted: Wanted, jobs: int) -> int:
        """Send everything; return the bytes of the objects.

        AbsentObjects or DamagedObjects when the cache lacks some, after the other blobs are sent; RemoteError.
        """
        trees = set(map(raw_digest, wanted.trees))
        total = 0
        waiting: list[_Sent] = []
        held: list[_Sent] = []  # rows of trees, which come last
        with self._cache.scratch() as scratch:
            try:
                unsaid = 0
                for sent in map_bounded(self._send, self._parcels(wanted, scratch), jobs or self._bucket.parallel):
                    size = sum(row.length for row in sent.rows)
                    self._reporter.advance(size)
                    total += size
                    unsaid += size
                    held.append(_Sent(sent.pack, [row for row in sent.rows if row.raw in trees]))
                    waiting.append(_Sent(sent.pack, [row for row in sent.rows if row.raw not in trees]))
                    if unsaid >= _TELL_EVERY:
                        self._tell(waiting)
                        waiting, unsaid = [], 0
            except BaseException:
                with suppress(MlxError):  # the first error says more
                    self._tell(waiting)  # what is there need not be sent again
                raise
        if self._failures.any:
            held = []
        self._tell([*waiting, *held])
        self._failures.raise_any()
        return total

    def _tell(self, sent: Iterable[_Sent]) -> None:
        by_pack: dict[str, list[Row]] = {}
        for pack, rows in sent:
            if rows:
                by_pack.setdefault(pack, []).extend(rows)
        if by_pack:
            self._index.add([rows_table(rows, pack) for pack, rows in by_pack.items()])

    def _parcels(self, wanted: Wanted, scratch: Scratch) -> Iterator[_Parcel]:
        """Yield what goes up with one request each."""
        small = [d for d in (*wanted.blobs, *wanted.trees) if wanted.sizes[d] <= LARGEST]
        whole = self._whole_packs(small)
        covered: set[bytes] = set()
        for name in whole:
            path = self._cache.packs.path_of(name)
            table = read_footer(path, name)
            rows = [Row(raw, place.offset, place.length, place.stored) for raw, place in table.rows()]
            covered.update(row.raw for row in rows)
            yield _Parcel(name, rows, path)
        rest = [digest for digest in small if raw_digest(digest) not in covered]
        yield from _Packing(self._cache, scratch, self._failures).parcels(rest)
        for digest in (*wanted.blobs, *wanted.trees):
            if wanted.sizes[digest] > LARGEST:
                size = min(wanted.sizes[digest], _MOST)
                row = Row(raw_digest(digest), 0, size, size)
                yield _Parcel(LOOSE, [row], self._cache.object_path(digest), digest)

    def _whole_packs(self, digests: Iterable[Digest]) -> list[str]:
        """Return the packs of the cache of which everything is wanted, as it was written, and that are worth it."""
        packs = self._cache.packs
        found = (packs.find(digest) for digest in digests)
        wanted = Counter(place.pack for place in found if place is not None)
        whole = []
        for name, count in wanted.items():
            if size_of(packs.path_of(name)) < SMALL_PACK:
                continue
            try:
                if read_footer(packs.path_of(name), name).count == count and packs.is_sound(name):
                    whole.append(name)
            except (OSError, PackError):
                continue  # object by object, it will turn out what is wrong with it
        return whole

    def _send(self, parcel: _Parcel) -> _Sent:
        if parcel.digest is None:
            self._bucket.put_file(pack_key(parcel.pack), parcel.path)
            if parcel.temporary:
                os.unlink(parcel.path)
            return _Sent(parcel.pack, parcel.rows)
        try:
            self._cache.check(parcel.digest)
        except (MissingObject, CorruptObject) as error:
            self._failures.add(parcel.digest, error)
            return _Sent(parcel.pack, [])
        self._bucket.put_file(object_key(parcel.digest), parcel.path)
        return _Sent(parcel.pack, parcel.rows)


class _Parcel(NamedTuple):
    """What goes up with one request: the file of a pack, or with `digest` that of a loose object."""

    pack: str
    rows: list[Row]
    path: str
    digest: Digest | None = None
    temporary: bool = False


class _Packing:
    """Objects of the cache on their way into packs for the remote."""

    def __init__(self, cache: Cache, scratch: Scratch, failures: Failures) -> None:
        self._cache = cache
        self._scratch = scratch
        self._failures = failures
        self._compressor = Compressor()

    def parcels(self, digests: Iterable[Digest]) -> Iterator[_Parcel]:
        """Yield packs that are full, and the last."""
        writer: PackWriter | None = None
        try:
            for digest in digests:
                record = self._record(digest)
                if record is None:
                    continue
                writer = writer or PackWriter(self._scratch.next_path())
                writer.add(record)
                if writer.size >= SEALED_AT:
                    yield _sealed(writer)
                    writer = None
            if writer is not None:
                yield _sealed(writer)
        finally:
            if writer is not None:
                writer.close()

    def _record(self, digest: Digest) -> Record | None:
        """Return an object's record: as the cache's pack has it, else made; None, and a failure noted, without one."""
        packs = self._cache.packs
        raw = raw_digest(digest)
        try:
            place = packs.find(digest)
            if place is not None and (record := packs.record(place)).raw == raw:
                return record
        except (FileNotFoundError, PackError):
            pass  # reading it as an object tells what is wrong, or finds it elsewhere
        try:
            return self._compressor.pack(raw, self._cache.read(digest, limit=LARGEST))
        except (MissingObject, CorruptObject) as error:
            self._failures.add(digest, error)
            return None


def _sealed(writer: PackWriter) -> _Parcel:
    rows = writer.rows()
    return _Parcel(writer.seal(), rows, writer.path, temporary=True)


def pack_key(name: str) -> str:
    """Return where a remote has a pack."""
    return f"packs/{name}{SUFFIX}"


def object_key(digest: Digest) -> str:
    """Return where a remote has an object that lies alone."""
    return f"objects/{digest[7:9]}/{digest[9:]}"
