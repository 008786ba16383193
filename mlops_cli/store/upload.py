"""Sending objects of the cache to a remote.

The index is told last, and of trees only when all that was to come before them is there: a tree that a remote names is
a promise about everything beneath it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import Failures
from mlops_cli.store.pack_format import Row
from mlops_cli.store.pack_index import Table, rows_table
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import Parcel, Parcels, Wanted
from mlops_cli.store.remote_index import RemoteIndex

# What was sent and the index is not told of is sent again after an interruption that leaves no time to tell it.
_TELL_EVERY = 512 << 20  # bytes
_TELL_SECONDS = 10.0
_MOST_ON_THE_WAY = 128 << 20  # bytes of files that have not arrived: of a slow line, all that an interruption costs


class Upload:
    """One push from `cache` to the remote in `bucket`."""

    def __init__(self, cache: Cache, bucket: Bucket, index: RemoteIndex, reporter: Reporter) -> None:
        self._cache = cache
        self._bucket = bucket
        self._index = index
        self._reporter = reporter
        self._failures = Failures()
        self._total = 0
        self._waiting: list[Table] = []  # what the index is to say next
        self._held: list[Table] = []  # and at the very end: trees
        self._trees: frozenset[bytes] = frozenset()
        self.keys: list[str] = []  # what was written
        self._arrived: deque[Parcel] = deque()  # as they come, in whatever order
        self._leaving: dict[str, tuple[Parcel, int]] = {}  # by path, with the bytes of the file
        self._shown: dict[str, int] = {}  # of those, by path: what the reporter heard of already
        self.believed: list[Digest] = []  # chunks that were not sent, because the remote has them

    def run(self, wanted: Wanted, jobs: int) -> int:
        """Send everything; return the bytes of the objects.

        AbsentObjects or DamagedObjects when the cache lacks some, after the other blobs are sent; RemoteError.
        """
        self._trees = frozenset(map(raw_digest, wanted.trees))
        unsaid, told = 0, time.monotonic()
        with self._cache.scratch() as scratch:
            parcels = Parcels(self._cache, self._index, scratch, self._failures, self.believed, self._spare).of(wanted)
            try:
                for _ in map_bounded(  # not by a name: an error below is to end it, before the scratch goes
                    self._send,
                    parcels,
                    jobs or self._bucket.parallel,
                    weigh=_file_size,
                    most=_MOST_ON_THE_WAY,
                    meanwhile=self._show,
                ):
                    unsaid += self._take_arrived()
                    if unsaid >= _TELL_EVERY or (self._waiting and time.monotonic() - told >= _TELL_SECONDS):
                        self._tell_blobs()
                        unsaid, told = 0, time.monotonic()
            except BaseException:
                self._take_arrived()
                with suppress(MlxError):  # the first error says more
                    self._tell_blobs()  # what is there need not be sent again
                raise
        if self._failures.any:
            self._tell_blobs()
        elif tables := [*self._waiting, *self._held]:
            self._index.add(tables)
        self._failures.raise_any()
        return self._total

    def _take_arrived(self) -> int:
        """Note what has arrived since this was asked last; return its bytes."""
        size = 0
        while self._arrived:
            parcel = self._arrived.popleft()
            self.keys.append(parcel.key)
            self._reporter.advance(parcel.size - self._shown.pop(parcel.path, 0))
            self._waiting.append(parcel.table)
            size += parcel.size
        self._total += size
        return size

    def _spare(self, size: int) -> None:
        """Count bytes that need not go, because the remote has them."""
        self._reporter.advance(size)
        self._total += size

    def _show(self) -> None:
        """Tell the reporter of what went of the files that have not arrived."""
        for path, gone in list(self._bucket.traffic.under_way.items()):
            if (found := self._leaving.get(path)) is not None:
                parcel, length = found
                shown = self._shown.get(path, 0)
                now = max(shown, parcel.size * min(gone, length) // max(length, 1))
                self._shown[path] = now
                self._reporter.advance(now - shown)

    def _tell_blobs(self) -> None:
        """Let the index say what was sent since it was told last, but for trees."""
        split = [self._split(table) for table in self._waiting]
        if tables := [blobs for blobs, _ in split if blobs is not None]:
            self._index.add(tables)
        self._held += [trees for _, trees in split if trees is not None]
        self._waiting = []

    def _split(self, table: Table) -> tuple[Table | None, Table | None]:
        """Return what a table of one pack says of blobs and of trees; None for nothing."""
        trees = table.find_all(self._trees)
        if not trees:
            return table, None
        (pack,) = table.packs
        held = rows_table((Row(raw, *place[1:]) for raw, place in trees.items()), pack)
        if len(trees) == table.count:
            return None, held
        return rows_table((Row(raw, *place[1:]) for raw, place in table.rows() if raw not in trees), pack), held

    def _send(self, parcel: Parcel) -> None:
        """Put a parcel where it belongs, or note a failure when its object is not good."""
        if parcel.to_check is not None:
            try:
                self._cache.check(parcel.to_check)
            except (MissingObject, CorruptObject) as error:
                self._failures.add(parcel.to_check, error)
                return
        self._leaving[parcel.path] = parcel, _file_size(parcel)
        if parcel.temporary:
            self._bucket.move_file(parcel.key, parcel.path)
        else:
            self._bucket.put_file(parcel.key, parcel.path)
        self._arrived.append(parcel)
        del self._leaving[parcel.path]


def _file_size(parcel: Parcel) -> int:
    """Return the bytes of the file that goes; none when it is gone, which sending it tells."""
    try:
        return os.path.getsize(parcel.path)
    except FileNotFoundError:
        return 0
