"""Reading a file that is in chunks on a remote: put together in the order that its recipe says, and not kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from mlops_cli.hashing import Digest, Hasher, digest_from_raw
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.download import REPAIR, damaged_object, records_in, spans_of
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, cut
from mlops_cli.store.pack_index import Place
from mlops_cli.store.pack_writer import unpacked
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.remote_checkup import Fault, absent_file, check_loose
from mlops_cli.store.remote_index import CHUNKED, LOOSE, RemoteIndex

_TOGETHER = 32 << 20  # bytes of chunks that are held at once


class ChunkedRead(NamedTuple):
    """What reading a file came to: the bytes that came, and what is wrong with it as a whole and with which part."""

    size: int
    whole: Sequence[Fault] = ()
    parts: Sequence[Fault] = ()


def check_chunked(bucket: Bucket, index: RemoteIndex, recipe: Recipe) -> ChunkedRead:
    """Read all chunks of a file, in order; it is well when they are, and have its digest together."""
    digest, hasher = recipe.digest, Hasher()
    size, held = 0, 0
    waiting: list[bytes] = []
    try:
        for chunk in recipe.chunks():
            waiting.append(chunk.raw)
            held += chunk.length
            if held >= _TOGETHER:
                size += _hash_chunks(bucket, index, waiting, hasher)
                waiting, held = [], 0
        size += _hash_chunks(bucket, index, waiting, hasher)
    except (AbsentObjects, DamagedObjects) as error:
        part = Fault(error.digests[0], error)
        return ChunkedRead(size, [fault_of_part(bucket, digest, part)], [part])
    if (found := hasher.digest()) != digest:
        return ChunkedRead(size, [Fault(digest, damaged_object(digest, found, bucket.label, recipe_key(digest)))])
    return ChunkedRead(size)


def fault_of_part(bucket: Bucket, digest: Digest, part: Fault) -> Fault:
    """Return what is wrong with a file of which a chunk is."""
    if isinstance(part.error, AbsentObjects):
        return Fault(digest, AbsentObjects([digest], f"{bucket.label}: a part of it is gone", hint=REPAIR))
    message = f"object `{cut(digest)}` in {bucket.label} is damaged, for a part of it is: {part.error.message}"
    return Fault(digest, DamagedObjects([digest], message, hint=REPAIR))


def _hash_chunks(bucket: Bucket, index: RemoteIndex, raws: Sequence[bytes], hasher: Hasher) -> int:
    """Add chunks, in order, to what is hashed; return their bytes. AbsentObjects or DamagedObjects name the first."""
    names = [digest_from_raw(raw) for raw in raws]
    found: dict[Digest, bytes] = {}
    places = index.find(set(names))
    for digest, place in places.items():
        if place.pack == LOOSE:  # a small file of a remote of layout 1
            found[digest] = _whole(bucket, digest, place)
    packed = [(digest, place) for digest, place in places.items() if place.pack not in (LOOSE, CHUNKED)]
    for span in spans_of(packed):
        try:
            data = bucket.get(pack_key(span.pack), span.start, span.end)
        except AbsentKey as error:
            raise absent_file(span.objects[0][0], bucket, error.key) from None
        for digest, record in records_in(data, span, bucket.label):
            if isinstance(record, DamagedObjects):
                raise record
            found[digest] = unpacked(record)
    size = 0
    for name in names:
        if name not in found:
            raise AbsentObjects([name], bucket.label, hint=REPAIR)
        hasher.update(found[name])
        size += len(found[name])
    return size


def _whole(bucket: Bucket, digest: Digest, place: Place) -> bytes:
    _, faults = check_loose(bucket, digest, place)
    if faults:
        raise faults[0].error
    return bucket.get(object_key(digest), 0, place.length)


def check_whole(
    bucket: Bucket,
    index: RemoteIndex,
    recipes: Collection[Recipe],
    places: dict[Digest, Place],
    jobs: int,
    reporter: Reporter,
) -> Iterator[Fault]:
    """Yield the files whose chunks are well and do not make them; takes the chunks of the good ones from `places`.

    Those of the others stay there, to be read one by one. The reporter advances by the bytes of the good files.
    """

    def read(recipe: Recipe) -> tuple[Recipe, ChunkedRead]:
        return recipe, check_chunked(bucket, index, recipe)

    whole = [recipe for recipe in recipes if all(digest_from_raw(chunk.raw) in places for chunk in recipe.chunks())]
    good: set[Digest] = set()
    for recipe, done in map_bounded(read, whole, jobs or bucket.parallel):
        if not done.whole:
            reporter.advance(recipe.size)
            good.update(digest_from_raw(chunk.raw) for chunk in recipe.chunks())
        elif not done.parts:
            yield from done.whole
    for digest in good:
        del places[digest]
