"""What a store of objects must do whatever is in it: what comes in is verified, appears whole, and can be read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, RemoteError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Durability, ObjectStore, cut

LARGE = os.urandom(1 << 16) * 145  # 9 MiB and a bit: more than any store takes into memory at once
KEY = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Bed:
    """A store under test, and how to reach around it: to read and to overwrite what lies at a path inside it."""

    store: ObjectStore
    peek: Callable[[str], bytes]
    poke: Callable[[str, bytes], None]

    def put(self, *contents: bytes) -> list:
        digests = [hash_bytes(content) for content in contents]
        self.store.write((digest, partial(io.BytesIO, data)) for digest, data in zip(digests, contents, strict=True))
        return digests


LOOSE = 70_000  # more bytes than the cache puts into a pack


def object_path(digest: str) -> str:
    return f"objects/{digest[7:9]}/{digest[9:]}"


def folder_bed(store: ObjectStore, root: Path) -> Bed:
    def poke(path: str, data: bytes) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).unlink(missing_ok=True)
        (root / path).write_bytes(data)

    return Bed(store, lambda path: (root / path).read_bytes(), poke)


@pytest.fixture
def bed(tmp_path):
    root = tmp_path / "store"
    return folder_bed(Cache(root, link=LinkMode.COPY, durability=Durability.BATCH), root)


# --- what is there --------------------------------------------------------------------------------------------------


def test_a_new_store_holds_nothing(bed):
    digest = hash_bytes(b"x")

    assert bed.store.missing([digest]) == {digest}
    assert bed.store.missing([]) == set()
    assert list(bed.store.list()) == []
    assert list(bed.store.list_runs()) == []


def test_what_was_written_can_be_read(bed):
    contents = [b"one", b"two", b"", b"x" * (1 << 20), LARGE]
    digests = bed.put(*contents)

    assert bed.store.missing(digests) == set()
    assert sorted(bed.store.list()) == sorted(digests)
    for digest, content in zip(digests, contents, strict=True):
        assert bed.store.read(digest) == content
        bed.store.check(digest)
        with bed.store.open(digest) as stream:
            assert stream.read() == content


def test_more_than_was_asked_for_is_not_read(bed):
    small, large = bed.put(b"0123456789", LARGE)

    assert bed.store.read(small, limit=10) == b"0123456789"
    assert bed.store.read(large, limit=len(LARGE)) == LARGE
    assert bed.store.read(large, limit=None) == LARGE
    for digest, limit in ((small, 9), (large, 10), (large, len(LARGE) - 1)):
        with pytest.raises(CorruptObject, match=f"no tree and no link: it has more than {limit:,} bytes") as caught:
            bed.store.read(digest, limit=limit)
        assert caught.value.hint
    assert bed.store.missing([small, large]) == set()


def test_an_object_lies_under_its_digest_as_its_plain_bytes(bed):
    (digest,) = bed.put(b"p" * LOOSE)

    assert bed.peek(object_path(digest)) == b"p" * LOOSE


def test_a_stream_gives_as_much_as_is_asked_for(bed):
    (digest,) = bed.put(LARGE)

    with bed.store.open(digest) as stream:
        assert stream.read(10) == LARGE[:10]
        assert stream.read(1 << 20) == LARGE[10 : 10 + (1 << 20)]


def test_only_what_is_absent_is_missing(bed):
    here = bed.put(b"here")
    absent = hash_bytes(b"absent")

    assert bed.store.missing([*here, absent]) == {absent}


def test_many_are_looked_for_at_once(bed):
    here = bed.put(b"a", b"b", b"c")
    wanted = [hash_bytes(str(number).encode()) for number in range(400)]

    assert bed.store.missing([*here, *wanted]) == set(wanted)


def test_absent_objects_are_named_with_the_store_and_a_hint(bed):
    bed.put(b"something")
    absent = hash_bytes(b"absent")

    for read in (bed.store.read, bed.store.open, bed.store.check):
        with pytest.raises(MissingObject) as caught:
            read(absent)
        assert cut(absent) in caught.value.message
        assert bed.store.label in caught.value.message
        assert caught.value.hint


def test_what_is_not_named_like_an_object_is_not_listed(bed):
    digests = bed.put(b"one")
    bed.poke("objects/zz/README", b"not an object")
    bed.poke(f"objects/ab/{'0' * 61}", b"too short a name")

    assert list(bed.store.list()) == digests


# --- what may come in -----------------------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_and_the_others_stay(bed):
    good, bad = hash_bytes(b"good"), hash_bytes(b"expected")

    with pytest.raises(DamagedObjects) as caught:
        bed.store.write([(bad, partial(io.BytesIO, b"something else")), (good, partial(io.BytesIO, b"good"))])

    assert caught.value.digests == (bad,)
    assert cut(bad) in caught.value.message
    assert bed.store.missing([good, bad]) == {bad}


def test_wrong_bytes_of_a_large_object_are_refused(bed):
    bad = hash_bytes(b"expected")

    with pytest.raises(CorruptObject):
        bed.store.write([(bad, partial(io.BytesIO, LARGE))])

    assert bed.store.missing([bad]) == {bad}
    assert list(bed.store.list()) == []


def test_an_object_whose_source_lacks_it_is_left_out_and_named(bed):
    good, gone, lost = hash_bytes(b"good"), hash_bytes(b"gone"), hash_bytes(b"lost")

    def absent(digest):
        raise AbsentObjects([digest], "the source", hint="fetch it")

    objects = [(gone, partial(absent, gone)), (good, partial(io.BytesIO, b"good")), (lost, partial(absent, lost))]
    with pytest.raises(AbsentObjects) as caught:
        bed.store.write(objects)

    assert set(caught.value.digests) == {gone, lost}
    assert "2 objects" in caught.value.message
    assert caught.value.hint == "fetch it"
    assert bed.store.missing([good, gone, lost]) == {gone, lost}


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_nothing_is_visible_before_its_last_byte_was_verified(bed, size):
    data = LARGE[:size]
    digest = hash_bytes(data)
    seen = []

    class Watching(io.BytesIO):
        def look(self):
            seen.append(bed.store.missing([digest]) == {digest})

        def read(self, *args):
            self.look()
            return super().read(*args)

        def readinto(self, buffer):
            self.look()
            return super().readinto(buffer)

    bed.store.write([(digest, lambda: Watching(data))], jobs=1)

    assert seen
    assert all(seen)
    assert bed.store.read(digest) == data


def test_a_source_that_breaks_leaves_whole_objects_only(bed):
    def objects():
        for number in range(5):
            data = str(number).encode()
            yield hash_bytes(data), partial(io.BytesIO, data)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        bed.store.write(objects(), jobs=1)

    for digest in bed.store.list():
        bed.store.check(digest)


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_a_stream_that_breaks_leaves_nothing(bed, size):
    data = LARGE[:size]

    class Breaking(io.BytesIO):
        def read(self, *args):
            return self.give(super().read(*args))

        def readinto(self, buffer):
            return self.give(super().readinto(buffer))

        def give(self, got):
            if self.tell() >= size:
                raise RuntimeError("the stream broke")
            return got

    with pytest.raises((RuntimeError, RemoteError)):
        bed.store.write([(hash_bytes(data), lambda: Breaking(data))])

    assert list(bed.store.list()) == []


def test_how_many_bytes_came_in_is_returned_and_told(bed):
    told = []

    class Counting:
        def start(self, label, total, unit): ...

        def advance(self, amount):
            told.append(amount)

        def note(self, message): ...

    contents = [b"one", b"three", LARGE]
    objects = [(hash_bytes(data), partial(io.BytesIO, data)) for data in contents]

    size = bed.store.write(objects, reporter=Counting())

    assert size == sum(map(len, contents)) == sum(told)


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_several_jobs_give_the_same(bed, jobs):
    contents = [str(number).encode() * 100 for number in range(60)]
    objects = [(hash_bytes(data), partial(io.BytesIO, data)) for data in contents]

    bed.store.write(objects, jobs=jobs)

    assert sorted(bed.store.list()) == sorted(hash_bytes(data) for data in contents)


def test_an_object_may_be_written_twice(bed):
    digests = bed.put(b"twice", b"twice")
    bed.put(b"twice")

    assert list(bed.store.list()) == digests[:1]
    assert bed.store.read(digests[0]) == b"twice"


def test_several_writers_of_the_same_objects_do_not_disturb_one_another(bed):
    contents = [str(number).encode() for number in range(30)]
    failures = []

    def write():
        try:
            bed.put(*contents)
        except Exception as error:  # noqa: BLE001 - asserted on below
            failures.append(error)

    threads = [Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sorted(bed.store.list()) == sorted(map(hash_bytes, contents))


# --- what goes wrong, what goes away --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"some bytes" * LOOSE, LARGE])
def test_a_damaged_object_is_found_by_reading_and_named(bed, content):
    for find in ("read", "check"):
        (digest,) = bed.put(content)
        bed.poke(object_path(digest), content[:-1] + bytes([content[-1] ^ 1]))

        with pytest.raises(CorruptObject) as caught:
            getattr(bed.store, find)(digest)

        assert cut(digest) in caught.value.message
        assert "is damaged" in caught.value.message
        assert caught.value.hint


def test_writing_a_damaged_object_again_repairs_it(bed):
    (digest,) = bed.put(b"s" * LOOSE)
    bed.poke(object_path(digest), b"S" * LOOSE)

    bed.put(b"s" * LOOSE)

    assert bed.store.read(digest) == b"s" * LOOSE


@pytest.mark.parametrize("size", [3, LOOSE])
def test_deleted_objects_are_gone_and_may_be_deleted_again(bed, size):
    one, two = bed.put(b"1" * size, b"2" * size)

    bed.store.delete([one, hash_bytes(b"never there")])
    bed.store.delete([one])

    assert list(bed.store.list()) == [two]
    assert bed.store.read(two) == b"2" * size


# --- run records ----------------------------------------------------------------------------------------------------


def test_run_records_are_kept_by_fingerprint(bed):
    assert bed.store.read_run(KEY) is None

    bed.store.write_run(KEY, b"first")
    bed.store.write_run(KEY, b"second\n")

    assert bed.store.read_run(KEY) == b"second\n"
    assert list(bed.store.list_runs()) == [KEY]
    assert bed.peek(f"runs/{KEY}.yaml") == b"second\n"


@pytest.mark.parametrize("key", ["", "../escape", "a/b", "a.b", "é"])
def test_what_is_no_fingerprint_is_refused(bed, key):
    for use in (bed.store.read_run, lambda bad: bed.store.write_run(bad, b"")):
        with pytest.raises(ValueError, match="not a fingerprint"):
            use(key)


def test_an_absurdly_large_run_record_is_not_taken_for_one(bed):
    bed.put(b"something")
    bed.poke(f"runs/{KEY}.yaml", b"x" * ((1 << 20) + 1))

    assert bed.store.read_run(KEY) is None
