"""What lies on a remote: its files, with what the index says is in each, and what a collection has condemned."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import PREFIX, RAW_SIZE, Digest, digest_from_raw, parse_digest, raw_digest
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.download import REPAIR
from mlops_cli.store.pack_format import FILE_HEADER, LARGEST_PACK, RECORD_SIZE, TRAILER_SIZE, PackError, check_ends
from mlops_cli.store.pack_index import Footer, Place, Table
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import pack_key, recipe_key
from mlops_cli.store.recipe import RECIPE_LIMIT, RecipeError, decode_recipe
from mlops_cli.store.remote_index import CHUNKED, FOLDERS, LOOSE, RemoteIndex
from mlops_cli.store.remote_sweep import file_of

_LOW = 2**32 - 1

Rows = Collection[tuple[bytes, Place]]


class PackRows(Rows):
    """The rows of one file, in columns: 44 bytes each, where a tuple takes ten times as many."""

    def __init__(self, pack: str) -> None:
        self.end = 0  # bytes that the file must have
        self._pack = pack
        self._raws = bytearray()
        self._numbers = array("Q")

    def add(self, raw: bytes, place: Place) -> None:
        """Append a row of this file."""
        self.end = max(self.end, end_of(place))
        self._raws += raw
        self._numbers.append(place.offset)
        self._numbers.append(place.length << 32 | place.stored)

    def __len__(self) -> int:
        return len(self._raws) // RAW_SIZE

    def __iter__(self) -> Iterator[tuple[bytes, Place]]:
        pack, raws, numbers = self._pack, self._raws, self._numbers
        for row in range(len(self)):
            lengths = numbers[2 * row + 1]
            place = Place(pack, numbers[2 * row], lengths >> 32, lengths & _LOW)
            yield bytes(raws[RAW_SIZE * row : RAW_SIZE * (row + 1)]), place

    def __contains__(self, row: object) -> bool:
        return any(found == row for found in self)


class TableRows(Rows):
    """The rows of a table, read as they are needed."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.count

    def __iter__(self) -> Iterator[tuple[bytes, Place]]:
        return self._table.rows()

    def __contains__(self, row: object) -> bool:
        return any(found == row for found in self)


class HeldFile(NamedTuple):
    """A file that the index names: its bytes, when it was written there (s), and the objects in it."""

    key: str
    size: int
    time: float
    rows: Rows


class Condemned(NamedTuple):
    """What one collection has taken out of the index: when (s), which objects, and all files that are in question."""

    name: str
    time: float
    rows: Rows
    files: frozenset[str]


class RemoteContents(NamedTuple):
    """All that lies on a remote, as one look shows it.

    `segments` and `tables` are the index that was read, `files` what it names, as far as that is there; `listed` are
    all files. Of those that the index names, some may be `gone`, or cut `short`.
    """

    segments: tuple[str, ...]
    tables: Sequence[Table]
    files: tuple[HeldFile, ...]
    gone: frozenset[str]
    short: frozenset[str]
    listed: Mapping[str, Stored]
    trash: tuple[Condemned, ...]


def read_remote(bucket: Bucket, index: RemoteIndex, trash: RemoteIndex) -> RemoteContents:
    """Look at all of a remote; brings every segment. RemoteError, CorruptObject for a segment that is none."""
    segments, tables = index.read_all()
    listed = {stored.key: stored for folder in FOLDERS for stored in bucket.list(folder)}
    rows: dict[str, PackRows] = {}
    for table in tables:
        for raw, place in table.rows():
            key = file_of(raw, place)
            found = rows.get(key)
            if found is None:
                found = rows[key] = PackRows(place.pack)
            found.add(raw, place)
    files, gone, short = [], set(), set()
    for key, found in rows.items():
        stored = listed.get(key)
        if stored is None:
            gone.add(key)
        elif stored.size < found.end:
            short.add(key)
        else:
            files.append(HeldFile(key, stored.size, written(stored), found))
    return RemoteContents(
        segments, tables, tuple(files), frozenset(gone), frozenset(short), listed, tuple(read_trash(trash))
    )


def read_trash(trash: RemoteIndex) -> Iterator[Condemned]:
    """Yield what collections have condemned and not deleted yet."""
    trash.forget()
    trash.find(())
    for name, time in sorted(trash.times.items()):
        table = trash.read(name)
        if table is None:
            continue
        rows = TableRows(table)
        packs = {pack_key(pack) for pack in table.packs if pack not in (LOOSE, CHUNKED)}
        yield Condemned(
            name, math.inf if time is None else time, rows, frozenset({*packs, *(file_of(*row) for row in rows)})
        )


def read_names(bucket: Bucket, stored: Stored) -> set[bytes] | None:
    """Return the objects that a pack says it has; none when it is no pack, None when it is gone or damaged."""
    key, size = stored.key, stored.size
    if size > LARGEST_PACK:
        return None  # who made it knows; it is not read to find out
    try:
        begin = bucket.get(key, 0, len(FILE_HEADER))
        if begin != FILE_HEADER:
            return set()
        start, _ = check_ends(begin, bucket.get(key, max(size - TRAILER_SIZE, 0), size), size)
        table = Footer(bucket.get(key, start, size), key)
        table.verify()
    except (AbsentKey, PackError, struct.error):
        return None
    return {raw for raw, _ in table.rows()}


def end_of(place: Place) -> int:
    """Return how many bytes a file must have for an object to be in it as its place says."""
    if place.pack in (LOOSE, CHUNKED):
        return place.stored
    return place.offset + RECORD_SIZE + place.stored


def written(stored: Stored) -> float:
    """Return when a file was written, by the store's clock (s): just now when nobody knows."""
    return math.inf if stored.modified is None else stored.modified


def needed_chunks(bucket: Bucket, contents: RemoteContents, needed: Collection[bytes]) -> set[bytes]:
    """Return the chunks of those of the `needed` objects that are there in chunks, or were and can come back.

    CorruptObject when a recipe that is named is damaged: nobody can tell which chunks it names.
    """
    named = {digest_from_raw(raw) for raw in _chunked_files(contents) if raw in needed}
    listed = (digest_of(key) for key in contents.listed if key.startswith("recipes/"))
    strays = {digest for digest in listed if digest and raw_digest(digest) in needed} - named
    chunks: set[bytes] = set()
    for found in map_bounded(partial(_chunks_of, bucket), sorted(named), bucket.parallel):
        chunks |= found
    for digest in sorted(strays):
        with suppress(CorruptObject):  # in no index, and of no use
            chunks |= _chunks_of(bucket, digest)
    return chunks


def _chunked_files(contents: RemoteContents) -> Iterator[bytes]:
    """Yield the files in chunks whose recipes are there, as the index says or the trash."""
    for held in contents.files:
        yield from (raw for raw, place in held.rows if place.pack == CHUNKED)
    for condemned in contents.trash:
        for raw, place in condemned.rows:
            if place.pack == CHUNKED and is_there(contents, raw, place):
                yield raw


def is_there(contents: RemoteContents, raw: bytes, place: Place) -> bool:
    """Say whether a file is there, and long enough, for an object to be in it as its place says."""
    stored = contents.listed.get(file_of(raw, place))
    return stored is not None and stored.size >= end_of(place)


def digest_of(key: str) -> Digest | None:
    """Return the object that a file which is named after one is for; None for other files."""
    with suppress(ValueError):
        return parse_digest(PREFIX + "".join(key.split("/")[1:]))
    return None


def _chunks_of(bucket: Bucket, digest: Digest) -> set[bytes]:
    key = recipe_key(digest)
    try:
        recipe = decode_recipe(bucket.get(key, 0, RECIPE_LIMIT + 1), digest)
    except (AbsentKey, RecipeError) as error:
        why = error.message if isinstance(error, RecipeError) else "it is gone"
        raise CorruptObject(
            f"nobody can tell which chunks object `{digest}` in {bucket.label} needs (`{key}`): {why}", hint=REPAIR
        ) from error
    return {chunk.raw for chunk in recipe.chunks()}
