"""Deleting files of a remote while others push, where nothing can be locked.

    index/<id>.sweep    about to be deleted: {"mlx": 1, "keys": [...]}
    index/<id>.swept    was deleted

Objects have fixed names, so a push may write anew the very file that is about to go. Whoever deletes therefore says so
first, beside the index, then lists the index, and spares what it names by now. Whoever pushes writes its segment first,
then lists the index, as it does in any case: one of the two sees the other. A push that sees a sweep that it had not
seen at its beginning looks whether its files are still there (`reliance`). The last `.swept` stays, as a trace for
those that began before it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from mlops_cli.hashing import digest_from_raw
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.pack_index import Place, Table
from mlops_cli.store.parcels import object_key, pack_key, recipe_key
from mlops_cli.store.remote_index import CHUNKED, FOLDER, LOOSE, RemoteIndex
from mlops_cli.store.remote_lease import ID_LENGTH, Lease, is_held

_AT_ONCE = 10_000  # keys that one sweep speaks of
_LARGEST = 4 << 20


def file_of(raw: bytes, place: Place) -> str:
    """Return the key of the file that an index leads to."""
    if place.pack == LOOSE:
        return object_key(digest_from_raw(raw))
    return recipe_key(digest_from_raw(raw)) if place.pack == CHUNKED else pack_key(place.pack)


def named_files(tables: Iterable[Table], keys: Collection[str]) -> set[str]:
    """Return those of `keys` to which some row of `tables` leads."""
    return {key for table in tables for raw, place in table.rows() if (key := file_of(raw, place)) in keys}


def sweep(bucket: Bucket, index: RemoteIndex, keys: Collection[str], lease: Lease) -> set[str]:
    """Delete those of `keys` that the index does not name by now; return what was deleted."""
    deleted: set[str] = set()
    left = sorted(keys)
    for at in range(0, len(left), _AT_ONCE):
        mark = f"{FOLDER}/{lease.id}{at:08x}"
        wanted = set(left[at : at + _AT_ONCE])
        bucket.put(f"{mark}.sweep", json.dumps({"mlx": 1, "keys": sorted(wanted)}).encode() + b"\n")
        _, tables = index.read_all()
        going = wanted - named_files(tables, wanted)
        lease.check()
        bucket.delete(sorted(going))
        _finish(bucket, index, mark)
        deleted |= going
    return deleted


def finish_sweeps(bucket: Bucket, index: RemoteIndex) -> None:
    """End the sweeps of holders that are gone."""
    index.read_all()
    for key in sorted(index.sweeps):
        if key.endswith(".sweep"):
            _finish(bucket, index, key.removesuffix(".sweep"))


def _finish(bucket: Bucket, index: RemoteIndex, mark: str) -> None:
    bucket.put(f"{mark}.swept", b'{"mlx": 1}\n')
    bucket.delete([f"{mark}.sweep", *(key for key in index.sweeps if key.endswith(".swept"))])
    index.forget()


def keys_of_sweep(bucket: Bucket, found: Stored, now: float | None) -> set[str]:
    """Return what a sweep is about to delete; nothing when it is over, or its holder is gone."""
    if not is_held(bucket, found.key.removeprefix(f"{FOLDER}/")[:ID_LENGTH], now):
        return set()
    try:
        return {str(key) for key in json.loads(bucket.get(found.key, 0, _LARGEST))["keys"]}
    except AbsentKey:
        return set()
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()  # nobody who is heeded wrote that
