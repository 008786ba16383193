"""Copying between stores moves what is lacking, tells failures once, and keeps what succeeded."""

from __future__ import annotations

import io
import os
import uuid
from functools import partial
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import hash_bytes
from mlops_cli.progress import SILENT
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import DamagedObjects, Durability
from mlops_cli.store.pack_format import RECORD_SIZE
from mlops_cli.store.remote import open_remote
from mlops_cli.store.transfer import Transferred, copy_objects


class Progress:
    def __init__(self):
        self.advanced = 0

    def start(self, label, total, unit):
        raise AssertionError("starting is the caller's")

    def advance(self, amount):
        self.advanced += amount

    def note(self, message): ...


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", link=LinkMode.COPY, durability=Durability.BATCH)


@pytest.fixture(params=["folder", "memory"])
def remote(request, tmp_path):
    url = "store" if request.param == "folder" else f"memory://transfer-{uuid.uuid4().hex}"
    return open_remote("storage", url, tmp_path, durability=Durability.BATCH)


def put(store, *contents):
    digests = [hash_bytes(data) for data in contents]
    store.write((digest, partial(io.BytesIO, data)) for digest, data in zip(digests, contents, strict=True))
    return digests


def damage(store, digest):
    """Change the first byte of an object, wherever it is."""
    place = store.packs.find(digest) if isinstance(store, Cache) else None
    path = Path(store.packs.path_of(place.pack) if place else store.object_path(digest))
    data = bytearray(path.read_bytes())
    data[place.offset + RECORD_SIZE if place else 0] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


@pytest.mark.parametrize("jobs", [0, 1, 4])
def test_there_and_back_again(cache, remote, tmp_path, jobs):
    contents = [b"", b"small", os.urandom(9 << 20), *(str(number).encode() for number in range(50))]
    digests = put(cache, *contents)
    other = Cache(tmp_path / "other", link=LinkMode.COPY, durability=Durability.BATCH)

    up = copy_objects(digests, cache, remote, jobs=jobs, reporter=SILENT)
    down = copy_objects(digests, remote, other, jobs=jobs, reporter=SILENT)

    assert up == down == Transferred(len(contents), sum(map(len, contents)))
    assert [other.read(digest) for digest in digests] == contents


def test_only_what_is_lacking_is_moved(cache, remote):
    digests = put(cache, b"one", b"two", b"three")
    put(remote, b"two")
    progress = Progress()

    moved = copy_objects([*digests, *digests], cache, remote, jobs=0, reporter=progress)

    assert moved == Transferred(2, 8)
    assert progress.advanced == 8


def test_nothing_to_do_reads_nothing(cache, remote):
    digests = put(remote, b"one")

    assert copy_objects(digests, cache, remote, jobs=0, reporter=SILENT) == Transferred(0, 0)
    assert copy_objects([], cache, remote, jobs=0, reporter=SILENT) == Transferred(0, 0)


def test_what_is_absent_is_named_once_and_the_rest_is_copied(cache, remote):
    here = put(cache, b"one", b"two")
    absent = [hash_bytes(str(number).encode()) for number in range(5)]

    with pytest.raises(MissingObject) as caught:
        copy_objects([*absent, *here], cache, remote, jobs=0, reporter=SILENT)

    assert "5 objects" in caught.value.message
    assert sum(digest in caught.value.message for digest in absent) == 3
    assert caught.value.hint == "`mlx fetch` brings it from a remote"
    assert remote.missing([*absent, *here]) == set(absent)


def test_a_single_absent_object_is_told_like_any(cache, remote):
    absent = hash_bytes(b"absent")

    with pytest.raises(MissingObject, match=f"object `{absent}` is not in the cache"):
        copy_objects([absent], cache, remote, jobs=0, reporter=SILENT)


@pytest.mark.parametrize("size", [4, 100_000], ids=["packed", "loose"])
def test_damage_in_the_cache_is_not_pushed_but_quarantined(cache, remote, size):
    good, bad = put(cache, b"g" * size, b"b" * size)
    damage(cache, bad)

    with pytest.raises(CorruptObject) as caught:
        copy_objects([bad, good], cache, remote, jobs=0, reporter=SILENT)

    assert caught.value.message.startswith(f"object `{bad[:19]}` in the cache is damaged")
    assert "quarantine" in caught.value.hint
    assert cache.missing([bad]) == {bad}
    assert remote.missing([good, bad]) == {bad}


@pytest.mark.parametrize("size", [4, 100_000], ids=["packed", "loose"])
def test_damage_of_several_is_told_once(cache, remote, size):
    digests = put(cache, b"1" * size, b"2" * size, b"3" * size)
    for digest in digests[:2]:
        damage(cache, digest)

    with pytest.raises(DamagedObjects) as caught:
        copy_objects(digests, cache, remote, jobs=0, reporter=SILENT)

    assert set(caught.value.digests) == set(digests[:2])
    assert "2 objects from the cache are damaged" in caught.value.message


def test_damage_on_a_remote_does_not_reach_the_cache(cache, tmp_path):
    remote = open_remote("storage", "store", tmp_path, durability=Durability.BATCH)
    (digest,) = put(remote, b"content")
    damage(remote, digest)

    with pytest.raises(CorruptObject) as caught:
        copy_objects([digest], remote, cache, jobs=0, reporter=SILENT)

    assert "in remote `storage` is damaged" in caught.value.message
    assert cache.missing([digest]) == {digest}


def test_damage_on_the_way_does_not_blame_the_source(cache, remote):
    (digest,) = put(remote, b"content")

    class Noisy:
        label, parallel = remote.label, remote.parallel

        def open(self, asked):
            return io.BytesIO(b"CONTENT")

        def check(self, asked):
            remote.check(asked)

    with pytest.raises(CorruptObject, match="are not its own") as caught:
        copy_objects([digest], Noisy(), cache, jobs=0, reporter=SILENT)

    assert digest[:19] in caught.value.message
    assert cache.missing([digest]) == {digest}
