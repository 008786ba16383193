"""Bringing objects from a remote into the cache: as few ranges of its packs as pay, verified before they are visible.

Records come as they are stored and go into packs of the cache as they are; each is unpacked once on the way, to see
that its bytes are those that its digest names. What has come is published in rounds, so that an interrupted fetch goes
on where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from threading import Lock
from typing import NamedTuple, Protocol

from blake3 import blake3

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import Digest, digest_from_raw, hash_file, raw_digest
from mlops_cli.progress import Reporter
from mlops_cli.store.assembly import assemble
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Failures, cut
from mlops_cli.store.pack_format import LARGEST, LARGEST_PACK, RECORD_SIZE, PackError, Record, decode_record
from mlops_cli.store.pack_index import Place
from mlops_cli.store.pack_writer import unpacked
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.partial import Partial, open_partial, remove_leftovers
from mlops_cli.store.recipe import LONGEST_CHUNK, RECIPE_LIMIT, decode_recipe
from mlops_cli.store.recipes import ChunkIndex, Recipes
from mlops_cli.store.remote_index import CHUNKED, LOOSE
from mlops_cli.store.repacker import Repacker
from mlops_cli.store.scratch import Scratch

REPAIR = "`mlx push --repair` from a clone that has it makes it good"
_GAP = 1 << 20  # bytes nobody wants that are read rather than asked around
_RANGE = 16 << 20  # bytes of one request, unless one record is more
_AHEAD = 32 << 20  # bytes of chunks that are read while others are written
_ROUND = 256 << 20  # bytes that are published at once
_ROUND_SECONDS = 10.0  # what came is published after so long, too: of a slow line, what a `kill -9` costs


class Span(NamedTuple):
    """A range of a pack (bytes, `start` to before `end`), and the objects in it that are wanted."""

    pack: str
    start: int
    end: int
    objects: list[tuple[Digest, Place]]


class _Came(NamedTuple):
    """What one request brought: records for packs, loose objects under temporary names; or what was not there."""

    records: list[tuple[Digest, Record]]
    files: list[tuple[Digest, str, int]]
    gone: list[Digest]


class Finder(Protocol):
    """Says where objects of a remote are."""

    def find(self, digests: Collection[Digest]) -> dict[Digest, Place]: ...

    def reject(self, pack: str) -> None: ...

    def doubt(self, digest: Digest) -> bool: ...


class Download:
    """One fetch from the remote in `bucket` into `cache`."""

    def __init__(self, cache: Cache, bucket: Bucket, index: Finder, reporter: Reporter) -> None:
        self._cache = cache
        self._bucket = bucket
        self._index = index
        self._reporter = reporter
        self._failures = Failures()
        self._recipes = Recipes(cache)
        self._chunks: ChunkIndex | None = None
        self._named: set[Digest] = set()  # what was in packs that are gone
        self._doubting = Lock()
        self.objects = 0
        self.bytes = 0

    def run(self, digests: Collection[Digest], jobs: int) -> None:
        """Bring `digests`; what came stays when the rest fails.

        AbsentObjects or DamagedObjects, told once at the end, when the remote lacks some or has other bytes.
        """
        if self._cache.resumes:
            remove_leftovers(self._cache)
        with self._cache.scratch() as scratch:
            incoming = _Incoming(self._cache, scratch)
            try:
                left: Collection[Digest] = digests
                while left:
                    left = self._round(left, incoming, jobs or self._bucket.parallel, scratch.next_path)
            finally:
                incoming.close()
        self._failures.raise_any()

    def _round(
        self, digests: Collection[Digest], incoming: _Incoming, jobs: int, new_path: Callable[[], str]
    ) -> list[Digest]:
        """Bring what the index names; return what was not where it said, and may be elsewhere."""
        places = self._index.find(digests)
        for digest in digests:
            if digest not in places:
                self._failures.add(digest, self._absent(digest, named=digest in self._named))
        gone: list[Digest] = []
        spans = spans_of((digest, place) for digest, place in places.items() if place.pack not in (LOOSE, CHUNKED))
        alone = [digest for digest, place in places.items() if place.pack == LOOSE]
        chunked = [digest for digest, place in places.items() if place.pack == CHUNKED]
        tasks = chain((partial(self._read, span) for span in spans), (partial(self._get, d, new_path) for d in alone))
        try:
            for came in map_bounded(lambda task: task(), tasks, jobs):
                gone += came.gone
                size = incoming.take(came)
                self.objects += len(came.records) + len(came.files)
                self.bytes += size
                self._reporter.advance(size)
            for digest in chunked:  # each with as many requests at once as pay
                self._put_together(digest, incoming, jobs, new_path)
        finally:
            incoming.publish()  # even when the remote fails half-way: what came is whole and need not come again
        self._named.update(gone)
        return gone

    def _absent(self, digest: Digest, *, named: bool = True) -> AbsentObjects:
        """Return what to raise for an object that is not there, though the index may have `named` it."""
        return AbsentObjects([digest], self._bucket.label, hint=REPAIR if named else None)

    def _read(self, span: Span) -> _Came:
        found = self._loaded(span)
        if found is None:
            return _Came([], [], [digest for digest, _ in span.objects])
        records, elsewhere = [], []
        for digest, record in found:
            if not isinstance(record, DamagedObjects):
                records.append((digest, record))
            elif self._is_elsewhere(digest):
                elsewhere.append(digest)
            else:
                self._failures.add(digest, record)
        return _Came(records, [], elsewhere)

    def _is_elsewhere(self, digest: Digest) -> bool:
        """Say whether an object, damaged where it was looked for, may be in another pack, and look there next."""
        with self._doubting:
            return self._index.doubt(digest)

    def _loaded(self, span: Span) -> list[tuple[Digest, Record | DamagedObjects]] | None:
        """Return what is in a span; None when its pack is gone, which the index then leads to no more."""
        try:
            data = self._bucket.get(pack_key(span.pack), span.start, span.end)
        except AbsentKey:
            self._index.reject(span.pack)
            return None
        return list(records_in(data, span, self._bucket.label))

    def _get(self, digest: Digest, new_path: Callable[[], str]) -> _Came:
        path = new_path()
        try:
            size = self._bucket.get_file(object_key(digest), path)
        except AbsentKey:
            self._failures.add(digest, self._absent(digest))
            return _Came([], [], [])
        found = hash_file(path)
        if found != digest:
            os.unlink(path)
            self._failures.add(digest, damaged_object(digest, found, self._bucket.label, object_key(digest)))
            return _Came([], [], [])
        return _Came([], [(digest, path, size)], [])

    # Files in chunks -------------------------------------------------------------------------------------------------

    def _put_together(self, digest: Digest, incoming: _Incoming, jobs: int, new_path: Callable[[], str]) -> None:
        """Make a file from its chunks, of which as many as can be come from files that are here."""
        key = recipe_key(digest)
        unfinished: Partial | None = None
        try:
            recipe = decode_recipe(self._bucket.get(key, 0, RECIPE_LIMIT + 1), digest)
            unfinished = open_partial(self._cache, digest) if self._cache.resumes else None
            made = assemble(
                recipe,
                self._chunk_index().places(recipe),
                partial(self._fetch_chunks, jobs=jobs),
                self._cache,
                new_path,
                partial=unfinished,
                reporter=self._reporter,
            )
            if unfinished is not None:
                incoming.hold(unfinished)
                unfinished = None
        except AbsentKey:
            self._failures.add(digest, self._absent(digest))
        except AbsentObjects:
            where = f"{self._bucket.label}: a part of it is gone"
            self._failures.add(digest, AbsentObjects([digest], where, hint=REPAIR))
        except CorruptObject as error:
            message = f"object `{cut(digest)}` in {self._bucket.label} is damaged (`{key}`): {error.message}"
            self._failures.add(digest, DamagedObjects([digest], message, hint=REPAIR))
        else:
            self.objects += 1
            self.bytes += incoming.take(_Came([], [(digest, made.path, recipe.size)], []))
            self._recipes.keep(recipe)
        finally:
            if unfinished is not None:
                unfinished.close()

    def _chunk_index(self) -> ChunkIndex:
        if self._chunks is None:
            self._chunks = self._recipes.index()
        return self._chunks

    def _fetch_chunks(self, raws: list[bytes], *, jobs: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield those of the chunks that are there; whoever asked notices which are not."""
        left = [digest_from_raw(raw) for raw in raws]
        while left:
            places, left = self._index.find(left), []
            for digest, place in places.items():
                if place.pack == LOOSE:  # a small file of a remote of layout 1
                    with suppress(AbsentKey):
                        yield raw_digest(digest), self._bucket.get(object_key(digest), 0, LONGEST_CHUNK + 1)
            spans = spans_of((digest, place) for digest, place in places.items() if place.pack not in (LOOSE, CHUNKED))
            for span, found in map_bounded(  # not by a name: an error below is to end it
                lambda span: (span, self._loaded(span)),
                spans,
                jobs,
                weigh=lambda span: span.end - span.start,
                most=_AHEAD,
            ):
                if found is None:
                    left += [digest for digest, _ in span.objects]
                for digest, record in found or ():
                    if isinstance(record, DamagedObjects):
                        raise record
                    yield raw_digest(digest), unpacked(record)


class _Incoming:
    """What has come, on its way into the cache."""

    def __init__(self, cache: Cache, scratch: Scratch) -> None:
        self._cache = cache
        self._scratch = scratch
        self._repacker = Repacker(scratch.next_path, durable=False)
        self._files: dict[Digest, str] = {}
        self._held: list[Partial] = []
        self._size = 0
        self._published = time.monotonic()

    def take(self, came: _Came) -> int:
        """Keep what one request brought; return its bytes."""
        size = 0
        try:
            for digest, record in came.records:
                size += record.length
                if record.length <= self._cache.pack_below:
                    self._repacker.add(record)
                    continue
                data = unpacked(record)
                if self._cache.is_packed(data):
                    self._repacker.add(record)
                else:
                    self._files[digest] = self._scratch.write(data)
            for digest, path, length in came.files:
                self._files[digest] = path
                size += length
        except OSError as error:
            raise self._cache.trouble(error, "copy objects to the cache") from error
        self._size += size
        if self._size >= _ROUND or time.monotonic() - self._published >= _ROUND_SECONDS:
            self.publish()
        return size

    def hold(self, unfinished: Partial) -> None:
        """Let nobody else have a file that is taken from where it was put together, until it is published."""
        self._held.append(unfinished)

    def publish(self) -> None:
        """Make all that was kept durable, then visible."""
        files, self._files, self._size = self._files, {}, 0
        try:
            self._cache.publish(files, self._repacker.seal())
        except OSError as error:
            raise self._cache.trouble(error, "copy objects to the cache") from error
        self._published = time.monotonic()
        self._give_back()

    def close(self) -> None:
        """Give back what was not published."""
        self._repacker.close()
        self._give_back()

    def _give_back(self) -> None:
        for unfinished in self._held:
            unfinished.close()
        self._held.clear()


def records_in(data: bytes, span: Span, label: str) -> Iterator[tuple[Digest, Record | DamagedObjects]]:
    """Yield each object of a span whose bytes are `data` with its record, or with what is wrong with it."""
    for digest, place in span.objects:
        try:
            record = decode_record(data, place.offset - span.start)
            if record.raw != raw_digest(digest):
                raise PackError("the index leads to another object")
            found = blake3(unpacked(record)).digest()
        except PackError as error:
            yield digest, damaged_record(digest, str(error), label, span.pack)
            continue
        if found != record.raw:
            yield digest, damaged_object(digest, digest_from_raw(found), label, pack_key(span.pack))
        else:
            yield digest, record


def spans_of(objects: Iterable[tuple[Digest, Place]]) -> Iterator[Span]:
    """Yield the ranges to read: near ones together, none much larger than a record or `_RANGE`."""
    ordered = sorted(objects, key=lambda item: (item[1].pack, item[1].offset))
    span: Span | None = None
    for digest, place in ordered:
        end = place.offset + RECORD_SIZE + place.stored
        if place.stored > LARGEST or end > LARGEST_PACK:
            end = place.offset + RECORD_SIZE  # no record is that large: reading its head tells
        near = span is not None and span.pack == place.pack and place.offset - span.end <= _GAP
        if span is not None and near and max(end, span.end) - span.start <= _RANGE:
            span.objects.append((digest, place))
            span = span._replace(end=max(end, span.end))
            continue
        if span is not None:
            yield span
        span = Span(place.pack, place.offset, end, [(digest, place)])
    if span is not None:
        yield span


def damaged_record(digest: Digest, why: str, label: str, pack: str) -> DamagedObjects:
    """Return what to raise for an object whose record on a remote is not what was written."""
    message = f"object `{cut(digest)}` in {label} is damaged: {why} (`{pack_key(pack)}`)"
    return DamagedObjects([digest], message, hint=REPAIR)


def damaged_object(digest: Digest, found: Digest, label: str, key: str) -> DamagedObjects:
    """Return what to raise for an object of a remote whose bytes hash to `found`."""
    message = f"object `{cut(digest)}` in {label} is damaged: its bytes hash to `{cut(found)}` (`{key}`)"
    return DamagedObjects([digest], message, hint=REPAIR)
