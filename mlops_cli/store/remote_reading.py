"""One object of a remote, read into memory from where an index says that it is, and verified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from mlops_cli.hashing import Digest, digest_from_raw, hash_bytes, raw_digest
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.download import damaged_object, damaged_record
from mlops_cli.store.objects import too_large
from mlops_cli.store.pack_format import LARGEST, RECORD_SIZE, PackError, decode_record
from mlops_cli.store.pack_index import Place
from mlops_cli.store.pack_writer import unpacked
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.recipe import RECIPE_LIMIT, decode_recipe
from mlops_cli.store.remote_index import CHUNKED, LOOSE


class ObjectReader:
    """Reads objects of the remote in `bucket`; of a file in chunks, `find` says where they are, `read` reads each."""

    def __init__(
        self,
        bucket: Bucket,
        find: Callable[[Collection[Digest]], Mapping[Digest, Place]],
        read: Callable[[Digest], bytes],
    ) -> None:
        self._bucket = bucket
        self._find = find
        self._read = read

    def read_at(self, digest: Digest, place: Place, limit: int | None) -> bytes:
        """Return an object's bytes; AbsentKey, DamagedObjects, and CorruptObject for more than `limit` bytes.

        Of an object that lies alone, more than `limit` bytes may also be returned, unverified: they are too many.
        """
        if place.pack == CHUNKED:
            key, data = recipe_key(digest), self._in_chunks(digest, limit)
        elif place.pack == LOOSE:
            key = object_key(digest)
            data = self._bucket.get(key, 0, None if limit is None else limit + 1)
            if limit is not None and len(data) > limit:
                return data
        else:
            key, data = pack_key(place.pack), self._in_pack(digest, place)
        if (found := hash_bytes(data)) != digest:
            raise damaged_object(digest, found, self._bucket.label, key)
        return data

    def _in_chunks(self, digest: Digest, limit: int | None) -> bytes:
        key = recipe_key(digest)
        recipe = decode_recipe(self._bucket.get(key, 0, RECIPE_LIMIT + 1), digest)
        if limit is not None and recipe.size > limit:
            raise too_large(digest, limit)
        chunks = [digest_from_raw(chunk.raw) for chunk in recipe.chunks()]
        if any(found.pack == CHUNKED for found in self._find(chunks).values()):
            raise damaged_object(digest, digest, self._bucket.label, key)
        return b"".join(map(self._read, chunks))

    def _in_pack(self, digest: Digest, place: Place) -> bytes:
        size = RECORD_SIZE + min(place.stored, LARGEST)
        try:
            record = decode_record(self._bucket.get(pack_key(place.pack), place.offset, place.offset + size))
            if record.raw != raw_digest(digest):
                raise PackError("the index leads to another object")
            return unpacked(record)
        except PackError as error:
            raise damaged_record(digest, str(error), self._bucket.label, place.pack) from error
