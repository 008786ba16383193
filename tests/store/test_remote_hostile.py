"""Remotes that lie, rot, or change while they are read, and clones that are not as they were left."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest
import xxhash

from mlops_cli.errors import CorruptObject, MlxError, RemoteError
from mlops_cli.hashing import Digest, hash_bytes, raw_digest
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Durability
from mlops_cli.store.pack_format import Row
from mlops_cli.store.pack_index import rows_table
from mlops_cli.store.pack_segment import encode_segment
from mlops_cli.store.parcels import object_key, recipe_key
from mlops_cli.store.recipe import Recipe, encode_recipe, make_recipe
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.remote_index import CHUNKED, LIST
from tests.store.test_remote import Site, flip, many, packs

HUGE = 20 << 20


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path, store) -> Site:
    return Site(tmp_path / "here", str(store))


@pytest.fixture
def there(tmp_path, store) -> Site:
    return Site(tmp_path / "there", str(store))


@pytest.fixture(scope="module")
def huge() -> bytes:
    return random.Random(0).randbytes(HUGE)


def segments(store: Path) -> list[Path]:
    return sorted((store / "index").glob("*.idx"))


def recipe_of(site: Site, digest: Digest) -> Recipe:
    descriptor = site.cache.open_descriptor(digest)
    try:
        recipe = make_recipe(descriptor)
    finally:
        os.close(descriptor)
    assert recipe is not None
    return recipe


def plant(store: Path, data: bytes) -> str:
    """Put a segment of somebody else on the remote, under the name of its bytes."""
    (store / "index").mkdir(parents=True, exist_ok=True)
    name = hash_bytes(data).removeprefix("blake3:")
    (store / f"index/{name}.idx").write_bytes(data)
    (store / "mlx.json").write_text('{"mlx": 2}')
    return name


def segment_of(rows: Iterable[Row], pack: str) -> bytes:
    return b"".join(encode_segment([rows_table(rows, pack)]))


# --- an object in two packs -----------------------------------------------------------------------------------------


def test_an_object_that_is_damaged_in_one_pack_comes_from_the_other(here, there, store, tmp_path):
    (digest,) = here.put(b"in two packs")
    here.push([digest])
    (first,) = packs(store)
    other = Site(tmp_path / "other", str(store))
    other.put(b"in two packs", b"and another")
    hidden = store.parent / "hidden"
    (store / "index").rename(hidden)
    other.push(list(other.sizes))
    for path in hidden.glob("*.idx"):
        path.rename(store / "index" / path.name)
    (second,) = set(packs(store)) - {first}
    for bad, good in ((first, second), (second, first)):
        whole = bad.read_bytes()
        flip(bad, whole.index(b"in two packs"))

        assert there.remote().read(digest) == b"in two packs"
        Site(tmp_path / bad.stem, str(store)).fetch([digest])

        flip(good, good.read_bytes().index(b"in two packs"))
        with pytest.raises(DamagedObjects):
            there.remote().read(digest)
        with pytest.raises(DamagedObjects):
            there.fetch([digest])
        for path, data in ((bad, whole), (good, None)):
            if data is None:
                flip(path, path.read_bytes().index(b"hn two packs"))
            else:
                path.write_bytes(data)


# --- the marker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [b"", b'{"ml', b"[]", b"\0" * 11])
def test_a_marker_that_was_cut_short_is_mended(here, there, store, marker):
    (digest,) = here.put(b"some data")
    here.push([digest])
    (store / "mlx.json").write_bytes(marker)
    with pytest.raises(RemoteError, match="cannot read") as caught:
        there.fetch([digest])
    assert "`mlx push --repair`" in (caught.value.hint or "")

    assert here.remote().mend_index() == []

    there.fetch([digest])
    assert there.cache.read(digest) == b"some data"


@pytest.mark.parametrize("marker", [b"somebody else's", b'{"mlx": 3}'])
def test_a_marker_that_may_be_somebody_elses_stays(here, store, marker):
    store.mkdir()
    (store / "mlx.json").write_bytes(marker)
    if marker.startswith(b"{"):
        (store / "index").mkdir()
        (store / "index" / f"{'0' * 64}.idx").touch()

    with pytest.raises(RemoteError):
        here.remote().mend_index()

    assert (store / "mlx.json").read_bytes() == marker


# --- large files ----------------------------------------------------------------------------------------------------


def test_a_chunk_that_did_not_go_up_with_a_damaged_file_goes_with_the_next(here, there, huge):
    bad, good = here.put(huge, huge + b"more")
    for digest in (bad, good):
        Recipes(here.cache).keep(recipe_of(here, digest))
    path = Path(here.cache.object_path(bad))
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(HUGE // 4)
        stream.write(b"another byte")

    with pytest.raises(DamagedObjects) as caught:
        here.push([bad, good])

    assert caught.value.digests == (bad,)
    assert here.remote().missing([good]) == set()
    there.fetch([good])
    assert there.cache.read(good, limit=None) == huge + b"more"


def test_a_recipe_in_the_cache_that_lies_does_not_keep_a_file_from_going_up(here, there, huge):
    (digest,) = here.put(huge)
    true = recipe_of(here, digest)
    lie = Recipe(digest, true.size, true.lengths, true.raws[32:] + true.raws[:32])
    Recipes(here.cache).keep(lie)

    here.push([digest])

    there.fetch([digest])
    assert there.cache.read(digest, limit=None) == huge


def test_a_chunk_that_lies_alone_on_a_remote_of_layout_1_comes_from_there(here, there, store):
    zeros, large = here.put(bytes(2 << 20), bytes(HUGE))
    path = store / object_key(zeros)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(2 << 20))
    (store / "mlx.json").write_text('{"mlx": 1}')
    here.push([large])

    there.fetch([large])

    assert there.cache.missing([large]) == set()


def test_a_chunk_whose_pack_is_gone_comes_from_another_pack_that_has_it(here, there, store, huge):
    (digest,) = here.put(huge)
    here.push([digest])
    raw = recipe_of(here, digest).raw(3)
    others = [Row(raw_digest(hash_bytes(b"%d" % number)), 8, 1, 1) for number in range(200)]
    plant(store, segment_of([Row(raw, 8, 600_000, 600_000), *others], "a" * 64))  # the largest is looked at first

    there.fetch([digest])

    assert there.cache.read(digest, limit=None) == huge


# --- segments that are kept here ------------------------------------------------------------------------------------


def rot(site: Site) -> None:
    """Change one bit in the rows of each segment that is kept in a clone."""
    for path in site.kept.glob("*.idx"):
        flip(path, path.stat().st_size - 20)


def test_what_rots_in_a_clone_takes_nothing_off_the_remote(here, there, store):
    digests = here.put(*many(20))
    here.push(digests)
    assert there.remote().missing(digests) == set()
    rot(there)

    assert there.remote().mend_index() == []

    assert here.remote().missing(digests) == set()


def test_what_rots_in_a_clone_is_not_merged_into_the_remote(here, there):
    digests = here.put(*many(40))
    for digest in digests:
        here.push([digest])
        if len(segments(Path(here.url))) == 32:
            break
    assert there.remote().missing(digests[:32]) == set()
    rot(there)

    there.push(there.put(b"one more"))

    assert len(segments(Path(here.url))) == 1
    fresh = Site(here.folder / "fresh", here.url)
    fresh.fetch(digests[:32])
    assert fresh.cache.missing(digests[:32]) == set()


def test_a_segment_that_goes_while_damage_is_looked_for_is_no_error(here, there, store, monkeypatch):
    digests = here.put(*many(40))
    for digest in digests[:5]:
        here.push([digest])
    remote = there.remote()
    remote._look()
    remote.index._names()  # it has listed them
    other = here.remote()
    other.check(digests, read=False)
    other.forget_faults()  # and they are one now

    assert remote.mend_index() == []


@pytest.mark.parametrize("many_rows", [False, True])
def test_a_segment_that_points_at_no_pack_is_named(here, there, store, many_rows):
    rows = [Row(raw_digest(hash_bytes(b"%d" % number)), 8, 1, 1) for number in range(70_000 if many_rows else 10)]
    data = bytearray(segment_of(rows, "a" * 64))
    struct.pack_into("<I", data, len(data) - 12 - 16, 77)  # the pack of the last row
    name = plant(store, bytes(data))
    (digest,) = here.put(b"x")

    with pytest.raises(CorruptObject, match=name):
        list(here.remote().list())
    with pytest.raises(CorruptObject, match=name):
        here.remote().check(read=False)
    for number in range(40):
        plant(store, segment_of(rows[:1], f"{number:064x}"))
    with pytest.raises(CorruptObject, match=name):
        here.push([digest])


# --- listings -------------------------------------------------------------------------------------------------------


def test_a_listing_that_is_made_while_values_go_has_all_others(tmp_path):
    bucket = open_bucket("storage", str(tmp_path / "store"), tmp_path, durability=Durability.NONE)
    keys = [f"index/{number:03}" for number in range(100)]
    for key in keys:
        bucket.put(key, b"x")

    listing = bucket.list("index")
    seen = [next(listing).key]
    gone = sorted(set(keys) - set(seen))[::2]
    bucket.delete(gone)
    bucket.put("index/new", b"x")
    seen += [stored.key for stored in listing]

    assert set(keys) - set(gone) <= set(seen)


NESTED = b"[" * 200_000


@pytest.mark.parametrize(
    "data",
    [
        NESTED,
        b'{"segments": ' + NESTED,
        b'{"segments": {"a": Infinity}}',
        b'{"segments": {"%s": Infinity}}' % (b"a" * 64),
        b'{"segments": {"%s": -5}}' % (b"a" * 64),
        b'{"segments": {"%s": 1e300}}' % (b"a" * 64),
        b'{"segments": [1, 2]}',
        b"\xff\xfe",
    ],
)
def test_a_list_that_cannot_be_is_told(here, store, data):
    (store / "index").mkdir(parents=True)
    (store / "mlx.json").write_text('{"mlx": 2}')
    (store / LIST).write_bytes(data)
    remote = here.remote()
    remote.bucket.lists = False

    with pytest.raises(MlxError) as caught:
        remote.missing([hash_bytes(b"x")])
    assert caught.value.hint


@pytest.mark.parametrize("marker", [b"[" * 4000, b'{"mlx": ' + b"[" * 4000, b'{"mlx": true}', b'{"mlx": 2.0}'])
def test_a_marker_that_cannot_be_is_told(here, store, marker):
    store.mkdir()
    (store / "mlx.json").write_bytes(marker)

    with pytest.raises(RemoteError, match="remote `storage`"):
        here.remote().missing([hash_bytes(b"x")])


def test_a_remote_whose_marker_is_gone_is_empty_for_all_and_a_push_mends_it(here, there, store):
    digests = here.put(*many(20))
    here.push(digests)
    (store / "mlx.json").unlink()

    assert here.remote().missing(digests) == set(digests)
    here.push(digests)
    there.fetch(digests)
    assert there.cache.missing(digests) == set()


# --- looking for faults ---------------------------------------------------------------------------------------------


def test_what_is_wrong_on_a_remote_of_layout_1_is_missing_at_once(here, store):
    (digest,) = here.put(b"x" * 100)
    path = store / object_key(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"y" * 100)
    (store / "mlx.json").write_text('{"mlx": 1}')

    remote = here.remote()
    assert [fault.digest for fault in remote.check([digest], read=True)] == [digest]
    assert remote.missing([digest]) == {digest}


def test_a_recipe_that_names_itself_is_damage(here, store):
    (digest,) = here.put(b"x" * 100)
    recipe = Recipe(digest, 100, array("I", [100]), raw_digest(digest))
    path = store / recipe_key(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_recipe(recipe))
    plant(store, segment_of([Row(raw_digest(digest), 0, 100, 100)], CHUNKED))

    with pytest.raises(MlxError):
        here.remote().read(digest)
    with pytest.raises((DamagedObjects, AbsentObjects)):
        Site(here.folder / "fresh", here.url).fetch([digest])
    assert [fault.digest for fault in here.remote().check([digest], read=True)] == [digest]


def test_reading_a_large_object_that_lies_alone_takes_little_memory(here, store, tmp_path):
    size = 300 << 20
    path = store / "objects/aa" / ("a" * 62)
    path.parent.mkdir(parents=True)
    with path.open("wb") as stream:
        stream.truncate(size)
    (store / "mlx.json").write_text('{"mlx": 1}')
    digest = Digest("blake3:" + "a" * 64)
    tracemalloc.start()
    try:
        assert [fault.digest for fault in here.remote().check([digest], read=True)] == [digest]
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


# --- what is kept cannot be written ---------------------------------------------------------------------------------


def test_what_a_killed_command_left_in_the_kept_folder_goes(here, there):
    digests = here.put(*many(20))
    here.push(digests)
    there.remote().missing(digests)
    left = there.kept / ("b" * 64 + ".idx.999999-deadbeef")
    left.write_bytes(b"half")
    os.utime(left, (1, 1))

    there.remote().missing(digests)

    assert not left.exists()


def test_a_clone_that_cannot_keep_segments_reads_them_all_the_same(here, there):
    digests = here.put(*many(20))
    here.push(digests)
    there.folder.mkdir(parents=True)
    (there.folder / "kept").write_bytes(b"a file where the folder should be")

    assert there.remote().missing(digests) == set()
    there.fetch(digests)
    assert there.cache.missing(digests) == set()


def test_lies_about_lengths_and_offsets_are_damage(here, there, store):
    digests = here.put(*many(20))
    here.push(digests)
    (pack,) = packs(store)
    for segment in segments(store):
        segment.unlink()
    top = 2**32 - 1
    wild = [(9, top, top), (top, top, top), (top, 0, 0), (0, 0, 0), (8, 0, top), (5, 100, 8 << 20)]
    rows = [Row(raw_digest(digest), *numbers) for digest, numbers in zip(digests, wild, strict=False)]
    plant(store, segment_of(rows, pack.stem))

    with pytest.raises((DamagedObjects, AbsentObjects)) as caught:
        there.fetch(digests[: len(wild)])
    assert set(caught.value.digests) == set(digests[: len(wild)])
    assert {fault.digest for fault in here.remote().check(read=True)} == set(digests[: len(wild)])


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
@pytest.mark.parametrize("place", ["mlx.json", "index/*.idx", "packs/*", "objects/*/*"])
def test_what_is_no_file_is_named_and_nobody_waits_for_it(here, there, store, kind, place):
    digests = here.put(*many(20), os.urandom(9 << 20))
    here.push(digests)
    (path,) = store.glob(place)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")

    if kind == "folder" and path.suffix == ".idx":
        assert there.remote().missing(digests) == set(digests)
        return
    with pytest.raises(RemoteError) as caught:
        there.fetch(digests)
    assert caught.value.message == f"in remote `storage` something that is no file is in the way: `{path}`"


def test_what_is_gone_from_a_remote_that_cannot_be_listed_is_found(here, store):
    digests = here.put(*many(20), os.urandom(9 << 20))
    here.push(digests)
    (pack,) = packs(store)
    remote = here.remote()
    remote.bucket.lists = False
    assert remote.check(digests, read=False) == []

    pack.unlink()

    assert {fault.digest for fault in remote.check(digests, read=False)} == set(digests[:-1])


def test_an_index_whose_rows_are_wrong_is_dropped_by_a_repair(here, store):
    """Its checksum is right, for whoever made it up could count: told to repair it, we must be able to."""
    digests = here.put(*many(20))
    here.push(digests)
    rows = [Row(raw_digest(hash_bytes(b"%d" % number)), 8, 1, 1) for number in range(10)]
    data = bytearray(segment_of(rows, "a" * 64))
    struct.pack_into("<I", data, len(data) - 12 - 16, 77)
    data[-12:-4] = xxhash.xxh3_64_intdigest(bytes(data[:-12])).to_bytes(8, "little")
    name = plant(store, bytes(data))

    assert here.remote().mend_index() == [f"index/{name}.idx"]
    assert here.remote().check(read=True) == []
    assert here.remote().missing(digests) == set()
