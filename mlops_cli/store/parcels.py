"""What a push puts on a remote with one request each: packs, objects that lie alone, recipes of large files.

A pack of the cache of which everything is wanted goes as it is. All other records are copied into new packs as they are
stored, so nothing is compressed twice. Of a large file those chunks go that the remote has not from any other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest, digest_from_raw, hash_bytes, raw_digest
from mlops_cli.store.cache import Cache
from mlops_cli.store.chunking import CHUNKED_FROM, Chunk
from mlops_cli.store.objects import Failures, damaged_in_flight
from mlops_cli.store.pack_folder import SUFFIX, size_of
from mlops_cli.store.pack_format import LARGEST, SEALED_AT, PackError, Record, Row
from mlops_cli.store.pack_index import Table, read_footer, rows_table
from mlops_cli.store.pack_writer import Compressor, PackWriter
from mlops_cli.store.packs import SMALL_PACK
from mlops_cli.store.recipe import Recipe, encode_recipe, make_recipe
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.remote_index import CHUNKED, LOOSE, RemoteIndex
from mlops_cli.store.scratch import Scratch

_MOST = 2**32 - 1  # what a segment can say of a length


class Wanted(NamedTuple):
    """What to send: blobs, then trees, each after what it names; and the bytes of each object."""

    blobs: Sequence[Digest]
    trees: Sequence[Digest]
    sizes: Mapping[Digest, int]


class Parcel(NamedTuple):
    """A file that goes up under a key, and what the index is to say then: a table of one pack.

    `size` is how many bytes of objects are done with it; a `temporary` file may go afterwards. An object `to_check` is
    read before it goes.
    """

    key: str
    path: str
    table: Table
    size: int
    temporary: bool = False
    to_check: Digest | None = None


class Parcels:
    """Makes parcels of objects of a cache.

    What the cache lacks, or has damaged, is added to `failures`; chunks that the remote has already, to `believed`. Of
    how many bytes a file need not go for them `spare` is told, which is never part of a parcel's size.
    """

    def __init__(
        self,
        cache: Cache,
        index: RemoteIndex,
        scratch: Scratch,
        failures: Failures,
        believed: list[Digest],
        spare: Callable[[int], None],
    ) -> None:
        self._cache = cache
        self._index = index
        self._scratch = scratch
        self._failures = failures
        self._believed = believed
        self._spare = spare
        self._compressor = Compressor()
        self._recipes = Recipes(cache)

    def of(self, wanted: Wanted) -> Iterator[Parcel]:
        """Yield what goes up: chunks before the recipes that name them."""
        sizes = wanted.sizes
        yield from self._small([digest for digest in (*wanted.blobs, *wanted.trees) if sizes[digest] <= LARGEST])
        chunked = [digest for digest in wanted.blobs if sizes[digest] >= CHUNKED_FROM]
        apart = set(chunked)
        for digest in (*wanted.blobs, *wanted.trees):
            if sizes[digest] > LARGEST and digest not in apart:
                yield from self._alone(digest, sizes[digest])
        yield from self._chunked(chunked)

    # Objects that share packs ----------------------------------------------------------------------------------------

    def _small(self, digests: Sequence[Digest]) -> Iterator[Parcel]:
        whole = self._whole_packs(digests)
        covered = {
            digest
            for found in (self._cache.packs.find_in_turn(digests) if whole else ())
            for digest, place in found.items()
            if place.pack in whole
        }
        for name in whole:
            path = self._cache.packs.path_of(name)
            table = read_footer(path, name)
            yield Parcel(pack_key(name), path, table, sum(place.length for _, place in table.rows()))
        rest = [digest for digest in digests if digest not in covered] if covered else digests
        del covered
        yield from self._packed(self._records(rest))

    def _whole_packs(self, digests: Collection[Digest]) -> list[str]:
        """Return the packs of the cache of which everything is wanted, as it was written, and that are worth it."""
        packs = self._cache.packs
        wanted = Counter(place.pack for found in packs.find_in_turn(digests) for place in found.values())
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

    def _records(self, digests: Sequence[Digest]) -> Iterator[Record]:
        """Yield the record of each object: as the cache's pack has it, else made."""
        packs = self._cache.packs
        places = packs.find_all(digests)
        for digest in digests:
            raw = raw_digest(digest)
            try:
                place = places.get(digest)
                if place is not None and (record := packs.record(place)).raw == raw:
                    yield record
                    continue
            except (FileNotFoundError, PackError):
                pass  # reading it as an object tells what is wrong, or finds it elsewhere
            try:
                data = self._cache.read(digest, limit=LARGEST)
            except (MissingObject, CorruptObject) as error:
                self._failures.add(digest, error)
                continue
            yield self._compressor.pack(raw, data)

    def _packed(self, records: Iterable[Record]) -> Iterator[Parcel]:
        """Yield packs that are full, and the last."""
        writer: PackWriter | None = None
        try:
            for record in records:
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

    # Objects that do not ---------------------------------------------------------------------------------------------

    def _alone(self, digest: Digest, size: int) -> Iterator[Parcel]:
        row = Row(raw_digest(digest), 0, min(size, _MOST), min(size, _MOST))
        try:
            path, temporary = self._cache.lend(digest, self._scratch.next_path)
        except (MissingObject, CorruptObject) as error:
            self._failures.add(digest, error)
            return
        yield Parcel(object_key(digest), path, rows_table([row], LOOSE), size, temporary, None if temporary else digest)

    def _chunked(self, digests: Iterable[Digest]) -> Iterator[Parcel]:
        made: list[Recipe] = []
        whole: list[tuple[Digest, int]] = []
        yield from self._packed(self._chunks(digests, made, whole))
        for recipe in made:
            data = encode_recipe(recipe)
            row = Row(raw_digest(recipe.digest), 0, min(recipe.size, _MOST), len(data))
            path = self._scratch.write(data)
            table = rows_table([row], CHUNKED)
            yield Parcel(recipe_key(recipe.digest), path, table, 0, temporary=True)
            self._recipes.keep(recipe)
        for digest, size in whole:
            yield from self._alone(digest, size)

    def _chunks(
        self, digests: Iterable[Digest], made: list[Recipe], whole: list[tuple[Digest, int]]
    ) -> Iterator[Record]:
        """Yield the records of chunks that the remote lacks.

        The recipe of each file goes to `made` when all of its are yielded; a file with too many chunks for a recipe
        goes to `whole`.
        """
        seen: set[bytes] = set()
        for digest in digests:
            try:
                descriptor = self._cache.open_descriptor(digest)
            except MissingObject as error:
                self._failures.add(digest, error)
                continue
            try:
                recipe, new = self._recipes.get(digest), None
                if recipe is not None and recipe.size == os.fstat(descriptor).st_size:
                    new = yield from self._records_of(recipe, descriptor, seen)
                if recipe is None or new is None:  # what is known is not so; the file itself says which of the two is
                    recipe = make_recipe(descriptor)
                    if recipe is None:
                        whole.append((digest, os.fstat(descriptor).st_size))
                        continue
                    if recipe.digest == digest:
                        new = yield from self._records_of(recipe, descriptor, seen)
                if new is None:
                    self._note_damage(digest)
                else:
                    made.append(recipe)
                    self._spare(recipe.size - new)
            except OSError as error:
                raise self._cache.trouble(error, f"read object `{digest}`") from error
            finally:
                os.close(descriptor)

    def _records_of(self, recipe: Recipe, descriptor: int, seen: set[bytes]) -> Generator[Record, None, int | None]:
        """Yield the records of the chunks of a file that the remote lacks and that are not `seen`, and then are.

        Returns how many bytes they are; None when the file has other bytes where one of them should be.
        """
        new = 0
        for chunk in self._new_chunks(recipe, seen):
            data = os.pread(descriptor, chunk.length, chunk.offset)
            if hash_bytes(data) != digest_from_raw(chunk.raw):
                return None
            new += chunk.length
            seen.add(chunk.raw)
            yield self._compressor.pack(chunk.raw, data)
        return new

    def _new_chunks(self, recipe: Recipe, seen: set[bytes]) -> list[Chunk]:
        """Return the chunks that neither the remote has nor `seen`."""
        chunks = {digest_from_raw(chunk.raw): chunk for chunk in recipe.chunks() if chunk.raw not in seen}
        there = self._index.find(chunks)
        self._believed.extend(there)
        return [chunk for name, chunk in chunks.items() if name not in there]

    def _note_damage(self, digest: Digest) -> None:
        """Let the cache see to an object whose bytes are not those that were stored."""
        try:
            self._cache.check(digest)
        except (MissingObject, CorruptObject) as error:
            self._failures.add(digest, error)
        else:
            self._failures.add(digest, damaged_in_flight(digest, digest))


def _sealed(writer: PackWriter) -> Parcel:
    rows = writer.rows()
    name = writer.seal()
    return Parcel(pack_key(name), writer.path, rows_table(rows, name), sum(row.length for row in rows), temporary=True)


def pack_key(name: str) -> str:
    """Return where a remote has a pack."""
    return f"packs/{name}{SUFFIX}"


def object_key(digest: Digest) -> str:
    """Return where a remote has an object that lies alone."""
    return f"objects/{digest[7:9]}/{digest[9:]}"


def recipe_key(digest: Digest) -> str:
    """Return where a remote has the recipe of an object that is there in chunks."""
    return f"recipes/{digest[7:9]}/{digest[9:]}"
