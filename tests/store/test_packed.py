"""A store with packs, seen from outside: damage is put away, named, and told apart from absence."""

from __future__ import annotations

import errno
import io
import os
from functools import partial

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.batches import open_batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import DamagedObjects, Durability
from mlops_cli.store.pack_format import RECORD_SIZE, ROW_SIZE, TRAILER_SIZE
from mlops_cli.store.packs import MANY_BARE, MANY_SMALL
from tests.crashing import crashes


def open_cache(root):
    return Cache(root, link=LinkMode.COPY, durability=Durability.BATCH)


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "cache")


def put(cache, *contents):
    with open_batch(cache) as batch:
        return [batch.add_bytes(data) for data in contents]


def damage(cache, digest):
    place = cache.packs.find(digest)
    path = cache.root / "packs" / f"{place.pack}.pack"
    data = bytearray(path.read_bytes())
    data[place.offset + RECORD_SIZE] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_small_objects_are_packed_and_large_ones_are_not(cache):
    small, limit, large = put(cache, b"x", bytes(64 << 10), bytes((64 << 10) + 1))

    assert [cache.packs.find(digest) is not None for digest in (small, limit, large)] == [True, True, False]
    assert sorted(cache.list()) == sorted([small, limit, large])
    assert len(cache.packs.names()) == 1


def test_many_are_found_in_turn(cache, monkeypatch):
    monkeypatch.setattr("mlops_cli.store.pack_reader._AT_ONCE", 3)
    digests = put(cache, *(b"%d" % number for number in range(20)))
    absent = [hash_bytes(b"absent %d" % number) for number in range(20)]
    asked = [*digests[:7], *absent, *digests[7:]]

    parts = list(cache.packs.find_in_turn(asked))

    assert max(map(len, parts)) <= 3
    assert {digest: place for part in parts for digest, place in part.items()} == cache.packs.find_all(digests)
    assert cache.missing(asked) == set(absent)
    assert cache.missing(digests) == set()


def test_what_is_written_whole_is_packed_too(cache):
    contents = [b"x", b"MLXT" + bytes(2 << 20), bytes(2 << 20)]
    digests = [hash_bytes(data) for data in contents]

    cache.write((digest, partial(io.BytesIO, data)) for digest, data in zip(digests, contents, strict=True))

    assert [cache.packs.find(digest) is not None for digest in digests] == [True, True, False]
    assert [cache.read(digest) for digest in digests] == contents


def test_every_damaged_object_of_a_pack_is_told_and_the_rest_is_served(cache):
    one, two, three = put(cache, b"one", b"two", b"three")
    damage(cache, one)
    damage(cache, two)

    for digest in (one, two, one):
        with pytest.raises(DamagedObjects) as caught:
            cache.read(digest)
        assert caught.value.digests == (digest,)
        assert "quarantine" in caught.value.hint

    assert cache.read(three) == b"three"
    assert cache.missing([one, two, three]) == {one, two}
    assert len(names(cache.root / "quarantine")) == 1
    assert put(cache, b"one") == [one]
    assert cache.read(one) == b"one"
    with pytest.raises(MissingObject):
        open_cache(cache.root).read(two)


def test_what_another_process_has_put_away_is_missing(cache):
    one, two = put(cache, b"one", b"two")
    other = open_cache(cache.root)
    assert other.missing([one, two]) == set()
    damage(cache, one)
    with pytest.raises(DamagedObjects):
        cache.read(one)

    assert other.missing([one, two]) == {one}
    assert put(other, b"one") == [one]
    assert other.read(one) == b"one"


def test_an_object_that_a_good_pack_has_too_is_served(cache):
    first, _ = put(cache, b"both", b"other")
    damage(cache, first)
    cache.write([(first, partial(io.BytesIO, b"both"))])

    assert cache.read(first) == b"both"


def test_a_good_copy_that_the_index_hides_is_found(cache):
    first, *_ = put(cache, b"both", b"other")
    for number in range(MANY_BARE):
        put(cache, b"%d" % number)
    damage(cache, first)
    with open_batch(open_cache(cache.root)) as batch:
        batch._packer.add(first, b"both")
    cache.packs.forget()
    with cache.scratch() as scratch, cache.packs.replacing(wait=True):
        cache.packs.reindex(scratch.next_path)

    assert cache.read(first) == b"both"


def test_an_index_that_hides_an_object_is_doubted_before_it_is_missing(cache):
    digests = put(cache, *(b"%d" % number for number in range(40)))
    with cache.scratch() as scratch, cache.packs.replacing(wait=True):
        cache.packs.reindex(scratch.next_path)
    (path,) = (cache.root / "index").iterdir()
    data = bytearray(path.read_bytes())
    start = len(data) - 12 - 48 * 40
    data[start : start + 32 * 40] = bytes(32 * 40)
    path.chmod(0o644)
    path.write_bytes(data)

    assert open_cache(cache.root).missing(digests) == set()
    assert open_cache(cache.root).read(digests[7]) == b"7"
    fresh = open_cache(cache.root)
    assert fresh.open(digests[8]).read() == b"8"
    assert fresh.packs.damaged == {str(path): "it is not what was written"}


def test_a_footer_that_hides_an_object_is_doubted_before_it_is_missing(cache):
    digests = put(cache, *(b"%d" % number for number in range(40)))
    (name,) = names(cache.root / "packs")
    path = cache.root / "packs" / name
    data = bytearray(path.read_bytes())
    start = len(data) - TRAILER_SIZE - 40 * ROW_SIZE
    data[start : start + 32 * 40] = bytes(32 * 40)
    path.chmod(0o644)
    path.write_bytes(data)

    assert open_cache(cache.root).missing(digests) == set()
    assert open_cache(cache.root).read(digests[7]) == b"7"


def test_deleting_spares_what_shares_the_pack(cache):
    digests = put(cache, *(b"%d" % number for number in range(10)))
    damage(cache, digests[9])

    cache.delete(digests[:5])

    assert sorted(cache.list()) == sorted(digests[5:9])
    assert len(names(cache.root / "quarantine")) == 1  # the damaged one did not vanish unseen


def test_a_quarantine_leaves_an_index_of_what_is_left(cache):
    digests = put(cache, b"one", b"two")
    put(cache, b"three")
    damage(cache, digests[0])
    with pytest.raises(CorruptObject):
        cache.read(digests[0])

    assert len(names(cache.root / "index")) == 1
    assert open_cache(cache.root).read(digests[1]) == b"two"


def test_what_another_process_has_mended_is_not_put_away(cache):
    (digest,) = put(cache, b"content")
    other = open_cache(cache.root)
    other.read(digest)

    cache.quarantine(digest)

    assert other.read(digest) == b"content"
    assert names(cache.root / "quarantine") == []


def test_damage_in_a_read_only_cache_is_told_and_the_rest_is_served(cache, monkeypatch):
    bad, good = put(cache, b"bad", b"good")
    damage(cache, bad)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "read-only file system")

    real = os.open
    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(
        os, "open", lambda path, flags, *rest, **to: refuse() if flags & 3 else real(path, flags, *rest, **to)
    )

    for _ in range(2):
        with pytest.raises(CorruptObject) as caught:
            cache.read(bad)
        assert "could not be moved" in caught.value.hint
        assert "read-only file system" in caught.value.hint
        assert cache.read(good) == b"good"


def test_a_pack_that_may_not_be_read_is_told_of(cache, monkeypatch):
    (digest,) = put(cache, b"content")
    fresh = open_cache(cache.root)
    real = os.open

    def refuse(path, *rest, **options):
        if str(path).endswith(".pack"):
            raise PermissionError(errno.EACCES, "permission denied")
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)

    assert fresh.missing([digest]) == {digest}
    assert list(fresh.packs.damaged.values()) == ["permission denied"]


def test_too_many_open_files_is_told(cache, monkeypatch):
    (digest,) = put(cache, b"content")
    fresh = open_cache(cache.root)

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", refuse)

    for use in (
        lambda: fresh.missing([digest]),
        lambda: fresh.read(digest),
        lambda: fresh.holds(digest, 7),
        lambda: list(fresh.list()),
    ):
        with pytest.raises(OutsideError, match="too many open files"):
            use()


def test_a_crash_anywhere_in_a_quarantine_loses_nothing_good(tmp_path):
    contents = [b"%d" % number for number in range(20)]
    good = [hash_bytes(data) for data in contents[1:]]
    turn = 0

    def prepare():
        cache = open_cache(tmp_path / str(turn))
        bad, *_ = put(cache, *contents)
        damage(cache, bad)
        return bad

    def use(digest):
        try:
            open_cache(tmp_path / str(turn)).read(digest)
        except CorruptObject:
            return
        raise AssertionError

    bad = prepare()
    for _ in crashes(partial(use, bad)):
        cache = open_cache(tmp_path / str(turn))
        assert cache.missing(good) == set()
        assert [cache.read(digest) for digest in good] == contents[1:]
        with pytest.raises((CorruptObject, MissingObject)):
            cache.read(bad)
        assert len(names(cache.root / "quarantine")) == 1
        turn += 1
        bad = prepare()
    assert turn > 10


def test_adding_gathers_packs(cache):
    for number in range(MANY_SMALL + 1):
        put(cache, b"%d" % number)

    assert len(names(cache.root / "packs")) <= 2
    assert len(list(cache.list())) == MANY_SMALL + 1
    assert names(cache.root / "tmp") == []
