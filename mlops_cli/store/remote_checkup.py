"""Whether a remote has what its index says: by the names and sizes of its files, or by reading every byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from mlops_cli.hashing import Digest, Hasher, digest_from_raw
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.download import REPAIR, Span, damaged_object, records_in, spans_of
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.pack_format import RECORD_SIZE
from mlops_cli.store.pack_index import Place
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.recipe import RECIPE_LIMIT, Recipe, RecipeError, decode_recipe
from mlops_cli.store.remote_index import CHUNKED, LOOSE, RemoteIndex


class Fault(NamedTuple):
    """An object that the index names and the remote does not have, or has not as it was written."""

    digest: Digest
    error: AbsentObjects | DamagedObjects


def check_recipes(
    bucket: Bucket, index: RemoteIndex, places: dict[Digest, Place]
) -> tuple[list[Fault], dict[Digest, list[Digest]], list[Recipe]]:
    """Put, in `places`, the chunks of files that are there in chunks in the place of these files.

    Returns the files whose recipe is gone or damaged, or names chunks that the index does not; and of which files each
    chunk is, besides itself where it is an object too; and the recipes that can be read.
    """
    faults = []
    recipes = []
    owners: dict[Digest, list[Digest]] = {}
    files = [digest for digest, place in places.items() if place.pack == CHUNKED]
    asked = places.keys() - files
    for digest in files:
        del places[digest]
        try:
            recipe = decode_recipe(bucket.get(recipe_key(digest), 0, RECIPE_LIMIT + 1), digest)
        except AbsentKey as error:
            faults.append(Fault(digest, absent_file(digest, bucket, error.key)))
            continue
        except RecipeError as error:
            message = f"object `{digest}` in {bucket.label} is damaged (`{recipe_key(digest)}`): {error.message}"
            faults.append(Fault(digest, DamagedObjects([digest], message, hint=REPAIR)))
            continue
        chunks = {digest_from_raw(chunk.raw) for chunk in recipe.chunks()}
        found = index.find(chunks)
        if len(found) < len(chunks):
            lost = len(chunks) - len(found)
            where = f"{bucket.label}: {lost:,} of its chunks {'is' if lost == 1 else 'are'} in no pack"
            faults.append(Fault(digest, AbsentObjects([digest], where, hint=REPAIR)))
        else:
            recipes.append(recipe)
        places.update(found)
        for chunk in found:
            owners.setdefault(chunk, [chunk] if chunk in asked else []).append(digest)
    return faults, owners, recipes


def check_files(bucket: Bucket, places: Mapping[Digest, Place]) -> Iterator[Fault]:
    """Yield what cannot be there, going by names and sizes: packs and objects that are gone, or too short for it."""
    keys = {
        digest: object_key(digest) if place.pack == LOOSE else pack_key(place.pack) for digest, place in places.items()
    }
    sizes = sizes_of(bucket, keys.values())
    for digest, place in places.items():
        if fault := fault_of_size(bucket, digest, place, keys[digest], sizes):
            yield fault


def sizes_of(bucket: Bucket, keys: Iterable[str]) -> Mapping[str, int]:
    """Return the bytes of those files of a remote that are there, as a listing says, else asking for each of `keys`."""
    if bucket.lists:
        return {stored.key: stored.size for folder in ("packs", "objects") for stored in bucket.list(folder)}
    asked = list(dict.fromkeys(keys))
    found = zip(asked, map_bounded(bucket.size, asked, bucket.parallel), strict=True)
    return {key: size for key, size in found if size is not None}


def fault_of_size(bucket: Bucket, digest: Digest, place: Place, key: str, sizes: Mapping[str, int]) -> Fault | None:
    """Return what is wrong with an object whose file, `key`, is gone or too short for it; None when neither."""
    least = place.length if place.pack == LOOSE else place.offset + RECORD_SIZE + place.stored
    size = sizes.get(key)
    if size is None:
        return Fault(digest, absent_file(digest, bucket, key))
    if size < least:
        message = f"object `{digest}` in {bucket.label} is damaged: `{key}` is cut short at {size:,} bytes"
        return Fault(digest, DamagedObjects([digest], message, hint=REPAIR))
    return None


def check_bytes(bucket: Bucket, places: Mapping[Digest, Place], jobs: int, reporter: Reporter) -> Iterator[Fault]:
    """Yield what is not there as it was written, reading all of it; the reporter advances by bytes."""
    packed = {digest: place for digest, place in places.items() if place.pack != LOOSE}
    tasks = [partial(check_span, bucket, span) for span in spans_of(packed.items())]
    tasks += [partial(check_loose, bucket, digest, place) for digest, place in places.items() if place.pack == LOOSE]
    for size, faults in map_bounded(lambda task: task(), tasks, jobs or bucket.parallel):
        reporter.advance(size)
        yield from faults


def absent_file(digest: Digest, bucket: Bucket, key: str) -> AbsentObjects:
    """Return what to raise for an object whose file on a remote is gone."""
    return AbsentObjects([digest], f"{bucket.label}: `{key}`, which its index names, is gone", hint=REPAIR)


_PIECE = 16 << 20  # bytes of an object that are read at once


def check_span(bucket: Bucket, span: Span) -> tuple[int, list[Fault]]:
    """Read a range of a pack; return the bytes of its objects, and those that are not as they were written."""
    size = sum(place.length for _, place in span.objects)
    try:
        data = bucket.get(pack_key(span.pack), span.start, span.end)
    except AbsentKey as error:
        return size, [Fault(digest, absent_file(digest, bucket, error.key)) for digest, _ in span.objects]
    found = records_in(data, span, bucket.label)
    return size, [Fault(digest, error) for digest, error in found if isinstance(error, DamagedObjects)]


def check_loose(bucket: Bucket, digest: Digest, place: Place) -> tuple[int, list[Fault]]:
    """Read an object that lies alone; return its bytes, and it when it is not as it was written."""
    key = object_key(digest)
    hasher = Hasher()
    size = 0
    try:
        while data := bucket.get(key, size, size + _PIECE):
            hasher.update(data)
            size += len(data)
            if len(data) < _PIECE:
                break
    except AbsentKey:
        return place.length, [Fault(digest, absent_file(digest, bucket, key))]
    if (found := hasher.digest()) != digest:
        return place.length, [Fault(digest, damaged_object(digest, found, bucket.label, key))]
    return place.length, []
