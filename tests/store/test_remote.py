"""Remotes: what goes up comes back, in few requests; what is wrong there is named and does not come in."""

from __future__ import annotations

import io
import json
import os
import random
import threading
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, RemoteError
from mlops_cli.hashing import Digest, fingerprint, hash_bytes
from mlops_cli.progress import Silent
from mlops_cli.store import download
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Durability
from mlops_cli.store.pack_format import LARGEST, RECORD_SIZE
from mlops_cli.store.parcels import Wanted, object_key, recipe_key
from mlops_cli.store.recipe import make_recipe
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.remote_index import LIST
from tests.crashing import crashes
from tests.disks import small_disk
from tests.objects import damage
from tests.servers.s3 import S3Server, s3_server
from tests.store.watched import Watched

KEY = "0123456789abcdef0123456789abcdef"
LARGE = os.urandom(1 << 16) * 145  # 9 MiB and a bit: too large for a pack


class Progress:
    def __init__(self):
        self.advanced = 0

    def start(self, label, total, unit):
        raise AssertionError("starting is the caller's")

    def advance(self, amount):
        self.advanced += amount

    def note(self, message): ...


class Site:
    """A machine: a cache of its own, and its view of the remote that all share."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.sizes: dict[Digest, int] = {}

    @property
    def cache(self) -> Cache:
        return Cache(self.folder / "cache", link=LinkMode.COPY, durability=Durability.BATCH)

    def remote(self) -> Remote:
        """Return the remote as a new command sees it."""
        bucket = open_bucket("storage", self.url, self.folder, durability=Durability.BATCH)
        return Remote(bucket, str(self.kept))

    @property
    def kept(self) -> Path:
        """Where this machine keeps what it knows of the remote."""
        return self.folder / "kept" / fingerprint(self.url)

    def put(self, *contents: bytes) -> list[Digest]:
        digests = [hash_bytes(data) for data in contents]
        self.cache.write((digest, partial(io.BytesIO, data)) for digest, data in zip(digests, contents, strict=True))
        self.sizes.update(zip(digests, map(len, contents), strict=True))
        return digests

    def push(self, blobs: Iterable[Digest], trees: Iterable[Digest] = (), **options) -> Transferred:
        remote = self.remote()
        blobs, trees = list(blobs), list(trees)
        lacking = remote.missing([*blobs, *trees])
        wanted = Wanted([d for d in blobs if d in lacking], [d for d in trees if d in lacking], self.sizes)
        return remote.send(self.cache, wanted, **options)

    def fetch(self, digests: Iterable[Digest], **options) -> Transferred:
        return self.remote().bring(self.cache, list(digests), **options)


@pytest.fixture
def store(tmp_path) -> Path:
    """Return the folder of the remote, whose insides some tests look at."""
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path, store) -> Site:
    return Site(tmp_path / "here", str(store))


@pytest.fixture
def there(tmp_path, store) -> Site:
    return Site(tmp_path / "there", str(store))


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def pair(request, monkeypatch, tmp_path, store) -> tuple[Site, Site]:
    """Return two machines, and between them remotes of different kinds."""
    name = f"remote-{uuid.uuid4().hex}"
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        for key, value in server.environ.items():
            monkeypatch.setenv(key, value)
        url = f"{server.make_bucket(name)}/team/data"
    else:
        url = str(store) if request.param == "folder" else f"memory://{name}/deep"
    return Site(tmp_path / "here", url), Site(tmp_path / "there", url)


def many(count: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(source.randrange(20, 400)) for _ in range(count)]


def packs(store: Path) -> list[Path]:
    return sorted((store / "packs").iterdir())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [0, 1, 4])
def test_what_goes_up_comes_back(pair, jobs):
    here, there = pair
    contents = [b"", b"small", b"x" * (1 << 20), LARGE, *many(300)]
    digests = here.put(*contents)

    up = here.push(digests, jobs=jobs)
    down = there.fetch(digests, jobs=jobs)

    assert up == down == Transferred(len(contents), sum(map(len, contents)))
    assert [there.cache.read(digest, limit=None) for digest in digests] == contents
    assert sorted(here.remote().list()) == sorted(digests)


def test_only_what_is_lacking_moves(pair):
    here, there = pair
    one, two, three = here.put(b"one", b"two", b"three")
    here.push([two])
    progress = Progress()

    assert here.push([one, two, three], reporter=progress) == Transferred(2, 8)
    assert progress.advanced == 8
    there.fetch([one])
    progress = Progress()
    assert there.fetch([one, two, three], reporter=progress) == Transferred(2, 8)
    assert progress.advanced == 8
    assert there.fetch([one, two, three]) == Transferred(0, 0)


def test_reading_one_object(pair):
    here, _ = pair
    contents = [b"", b"small", b"y" * 100_000, LARGE]
    digests = here.put(*contents)
    here.push(digests)

    for digest, data in zip(digests, contents, strict=True):
        assert here.remote().read(digest, limit=len(data)) == data
        assert here.remote().read(digest, limit=None) == data
        if data:
            with pytest.raises(CorruptObject, match="no tree and no link"):
                here.remote().read(digest, limit=len(data) - 1)
    with pytest.raises(AbsentObjects):
        here.remote().read(hash_bytes(b"absent"))


def test_a_remote_holds_what_the_cache_had_compressed(here, there, store):
    texts = [f"{number} ".encode() * 500 for number in range(200)]
    here.push(here.put(*texts))

    assert sum(path.stat().st_size for path in packs(store)) < sum(map(len, texts)) // 4
    there.fetch(map(hash_bytes, texts))
    assert [there.cache.read(hash_bytes(text)) for text in texts] == texts


def test_what_lies_alone_here_may_share_a_pack_there(here, there, store):
    digests = here.put(*(os.urandom(100_000) for _ in range(5)))
    here.push(digests)

    assert len(packs(store)) == 1
    assert not (store / "objects").exists()
    there.fetch(digests)
    assert all(Path(there.cache.object_path(digest)).is_file() for digest in digests)


# --- requests -------------------------------------------------------------------------------------------------------


def test_two_thousand_files_are_a_handful_of_requests(pair):
    here, there = pair
    digests = here.put(*many(2000))

    remote = here.remote()
    remote.send(here.cache, Wanted(sorted(remote.missing(digests)), [], here.sizes))
    assert remote.bucket.traffic.requests <= 10

    remote = here.remote()
    assert remote.missing(digests) == set()
    assert remote.bucket.traffic.requests <= 3

    remote = there.remote()
    remote.bring(there.cache, digests)
    assert remote.bucket.traffic.requests <= 6


def test_one_of_many_takes_a_fraction(pair):
    """Of a large index only the parts are read that say where one object is."""
    here, there = pair
    digests = here.put(*many(30_000))
    here.push(digests)

    remote = there.remote()
    remote.bring(there.cache, digests[:1])

    assert remote.bucket.traffic.received < 300_000
    assert remote.bucket.traffic.requests <= 8
    assert there.cache.read(digests[0])


def test_an_index_that_was_brought_is_not_brought_again(here, there):
    digests = here.put(*many(100))
    here.push(digests)
    there.remote().missing(digests)
    remote = there.remote()

    assert remote.missing(digests) == set()
    assert remote.bucket.traffic.received < 100  # the marker


def test_objects_that_are_apart_are_asked_for_apart(here, there):
    digests = here.put(*(os.urandom(60_000) for _ in range(200)))  # 12 MB
    here.push(digests)
    remote = there.remote()

    remote.bring(there.cache, [digests[0], digests[-1]])

    assert remote.bucket.traffic.received < 1 << 20


# --- packs ----------------------------------------------------------------------------------------------------------


def test_a_pack_of_which_all_is_wanted_goes_up_as_it_is(here, store):
    digests = here.put(*(os.urandom(60_000) for _ in range(200)))
    names = set(here.cache.packs.names())
    assert len(names) == 1

    here.push(digests)

    assert {path.stem for path in packs(store)} == names


def test_what_nobody_asked_for_does_not_go_up(here, store):
    *wanted, secret = here.put(*(os.urandom(60_000) for _ in range(200)))
    data = here.cache.read(secret)

    here.push(wanted)

    assert here.remote().missing([secret]) == {secret}
    assert not any(data in path.read_bytes() for path in packs(store))


def test_many_pushes_leave_few_segments(pair):
    here, there = pair
    digests = here.put(*many(80))
    for digest in digests:
        here.push([digest])

    segments = [stored for stored in here.remote().bucket.list("index") if stored.key.endswith(".idx")]
    assert len(segments) <= 33
    assert here.remote().missing(digests) == set()
    there.fetch(digests)
    assert there.cache.missing(digests) == set()


def test_a_reader_sees_through_the_merging_of_segments(here, there):
    digests = here.put(*many(60))
    here.push(digests[:20])
    reader = there.remote()
    assert reader.missing(digests[:20]) == set()  # it has listed the segments
    for digest in digests[20:]:
        here.push([digest])

    fresh = Site(there.folder.parent / "third", there.url).remote()
    reader.bring(there.cache, digests[:20])
    fresh.missing(digests)
    assert there.cache.missing(digests[:20]) == set()


def test_the_list_for_servers_that_cannot_list_names_every_segment(here, store):
    for data in many(3):
        here.push(here.put(data))

    listed = json.loads((store / LIST).read_bytes())["segments"]
    assert {f"{name}.idx": size for name, size in listed.items()} == {
        path.name: path.stat().st_size for path in (store / "index").glob("*.idx")
    }


# --- large files ----------------------------------------------------------------------------------------------------


HUGE = 20 << 20


@pytest.fixture(scope="module")
def huge() -> bytes:
    return random.Random(0).randbytes(HUGE)


def edited(data: bytes) -> bytes:
    return data[: HUGE // 2] + b"!" + data[HUGE // 2 :]


def test_a_large_file_moves_in_chunks_both_ways(pair, huge):
    here, there = pair
    old, new = here.put(huge, edited(huge))
    assert here.push([old]) == Transferred(1, HUGE)
    assert there.fetch([old]) == Transferred(1, HUGE)

    remote = here.remote()
    assert remote.missing([old, new]) == {new}
    assert remote.send(here.cache, Wanted([new], [], here.sizes)) == Transferred(1, HUGE + 1)
    assert remote.bucket.traffic.sent < HUGE // 8
    remote = there.remote()
    assert remote.bring(there.cache, [new]) == Transferred(1, HUGE + 1)
    assert remote.bucket.traffic.received < HUGE // 8

    assert there.cache.read(new, limit=None) == edited(huge)
    assert there.cache.read(old, limit=None) == huge
    assert there.remote().read(new, limit=None) == edited(huge)
    with pytest.raises(CorruptObject, match="no tree and no link"):
        there.remote().read(new, limit=HUGE)
    assert there.remote().check(read=True) == []


def test_what_need_not_go_counts_before_all_has_gone(here, store, huge):
    """With many large files of which little is new, recipes go last: until then it would seem that all is to go."""
    old, new = here.put(huge, edited(huge))
    here.push([old])
    progress = Progress()
    seen = []
    advance = progress.advance
    progress.advance = lambda size: (advance(size), seen.append((progress.advanced, len([*store.glob("recipes/*/*")]))))

    here.push([new], reporter=progress)

    assert seen[-1] == (HUGE + 1, 2)
    assert max(done for done, recipes in seen if recipes == 1) > HUGE - (4 << 20)


def test_who_has_no_older_version_gets_all_chunks(here, there, huge):
    old, new = here.put(huge, edited(huge))
    here.push([old])
    here.push([new])

    there.fetch([new])
    assert there.cache.read(new, limit=None) == edited(huge)
    assert there.cache.missing([old]) == {old}


def test_the_same_bytes_in_two_files_go_up_once(here, there, store, huge):
    digests = here.put(huge, huge + huge, b"x" * HUGE)
    here.push(digests)

    assert sum(path.stat().st_size for path in packs(store)) < HUGE + (4 << 20)
    there.fetch(digests)
    assert there.cache.missing(digests) == set()


def test_a_damaged_older_version_here_costs_its_chunks_and_no_more(here, there, huge):
    old, new = here.put(huge, edited(huge))
    here.push([old, new])
    there.fetch([old])
    damage(there.cache, old)

    there.fetch([new])

    assert there.cache.read(new, limit=None) == edited(huge)


def test_a_large_file_that_is_damaged_here_is_not_pushed(here, huge):
    for kept in (False, True):  # whether its chunks are known from before
        data = huge + b"1" if kept else huge
        (digest,) = here.put(data)
        if kept:
            descriptor = here.cache.open_descriptor(digest)
            recipe = make_recipe(descriptor)
            os.close(descriptor)
            assert recipe is not None
            Recipes(here.cache).keep(recipe)
        damage(here.cache, digest)

        with pytest.raises(DamagedObjects) as caught:
            here.push([digest])

        assert caught.value.digests == (digest,)
        assert here.cache.missing([digest]) == {digest}
        assert here.remote().missing([digest]) == {digest}


@pytest.mark.parametrize("what", ["recipe", "recipe is gone", "chunk", "pack is gone"])
def test_a_large_file_that_is_damaged_there_is_named_and_repaired(here, there, store, huge, what):
    (digest,) = here.put(huge)
    here.push([digest])
    recipe, pack = store / recipe_key(digest), packs(store)[0]
    if what == "recipe":
        flip(recipe, 70)
    elif what == "chunk":
        flip(pack, 5000)
    else:
        (recipe if what == "recipe is gone" else pack).unlink()

    with pytest.raises((DamagedObjects, AbsentObjects)) as caught:
        there.fetch([digest])
    assert caught.value.digests == (digest,)
    assert there.cache.missing([digest]) == {digest}

    remote = here.remote()
    assert [fault.digest for fault in remote.check([digest], read=True)] == [digest]
    remote.forget_faults()
    here.push([digest])
    assert here.remote().check(read=True) == []
    there.fetch([digest])
    assert there.cache.read(digest, limit=None) == huge


# --- what is wrong here ---------------------------------------------------------------------------------------------


def test_what_is_absent_is_named_once_and_the_rest_goes_up(here):
    good = here.put(b"one", b"two")
    absent = [hash_bytes(str(number).encode()) for number in range(5)]
    here.sizes.update(dict.fromkeys(absent, 1))

    with pytest.raises(AbsentObjects) as caught:
        here.push([*absent, *good])

    assert set(caught.value.digests) == set(absent)
    assert caught.value.hint == "`mlx fetch` brings it from a remote"
    assert here.remote().missing([*absent, *good]) == set(absent)


def test_what_is_absent_and_would_go_by_itself_is_named_and_the_rest_goes_up(here):
    (good,) = here.put(b"good")
    absent = hash_bytes(b"large")
    here.sizes[absent] = LARGEST + 1

    with pytest.raises(AbsentObjects) as caught:
        here.push([absent, good])

    assert caught.value.digests == (absent,)
    assert here.remote().missing([absent, good]) == {absent}


def test_an_error_while_files_are_on_their_way_ends_them_first(here):
    class Interrupting(Silent):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    objects = here.put(*(bytes([number]) * (LARGEST + 1) for number in range(3)))

    with pytest.raises(KeyboardInterrupt) as caught:
        here.push(objects, jobs=2, reporter=Interrupting())

    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mlx-store")] == []
    assert caught.tb  # which holds what was running


@pytest.mark.parametrize("size", [4, 100_000, len(LARGE)], ids=["packed", "loose", "large"])
def test_damage_in_the_cache_is_not_pushed_but_quarantined(here, size):
    good, bad = here.put(b"g" * size, b"b" * size)
    damage(here.cache, bad)

    with pytest.raises(CorruptObject) as caught:
        here.push([bad, good])

    assert caught.value.message.startswith(f"object `{bad[:19]}` in the cache is damaged")
    assert "quarantine" in (caught.value.hint or "")
    assert here.cache.missing([bad]) == {bad}
    assert here.remote().missing([good, bad]) == {bad}


def test_no_tree_goes_up_over_what_did_not(here):
    good, bad, tree = here.put(b"good", b"bad", b"as if a tree")
    damage(here.cache, bad)

    with pytest.raises(CorruptObject):
        here.push([good, bad], [tree])
    assert here.remote().missing([good, bad, tree]) == {bad, tree}

    here.put(b"bad")
    here.push([good, bad], [tree])
    assert here.remote().missing([good, bad, tree]) == set()


# --- what is wrong there --------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(here) -> list[Digest]:
    digests = here.put(*many(50), LARGE)
    here.push(digests)
    return digests


def test_damage_there_does_not_come_in(here, there, pushed, store):
    (pack,) = packs(store)
    flip(pack, 8 + RECORD_SIZE + 3)  # of the first object
    flip(store / object_key(pushed[-1]), 5)

    with pytest.raises(DamagedObjects) as caught:
        there.fetch(pushed)

    bad = set(caught.value.digests)
    assert len(bad) == 2
    assert pushed[-1] in bad
    assert there.cache.missing(pushed) == bad
    for digest in bad:
        with pytest.raises(DamagedObjects, match="in remote `storage` is damaged") as caught:
            there.remote().read(digest, limit=None)
        assert caught.value.hint == "`mlx push --repair` from a clone that has it makes it good"


def test_a_pack_that_is_gone_is_told_as_absent(there, pushed, store):
    packs(store)[0].unlink()

    with pytest.raises(AbsentObjects) as caught:
        there.fetch(pushed)

    assert set(caught.value.digests) == set(pushed[:-1])
    assert there.cache.missing(pushed) == set(pushed[:-1])
    with pytest.raises(AbsentObjects):
        there.remote().read(pushed[0])


def test_a_pack_that_is_cut_short(there, pushed, store):
    (pack,) = packs(store)
    pack.chmod(0o644)
    os.truncate(pack, 3000)

    with pytest.raises(DamagedObjects) as caught:
        there.fetch(pushed)

    assert 0 < len(caught.value.digests) < len(pushed)
    assert there.cache.missing(pushed) == set(caught.value.digests)


@pytest.mark.parametrize("at", [0, 5, 40, 90, -1, -20])
def test_a_segment_that_is_damaged_is_named(there, pushed, store, at):
    (segment,) = (store / "index").glob("*.idx")
    flip(segment, at)

    with pytest.raises(CorruptObject) as caught:
        there.fetch(pushed)

    assert caught.value.message.startswith(f"the index of remote `storage` is damaged: `index/{segment.name}`")
    assert caught.value.hint == "`mlx push --repair` from a clone that has the data makes it anew"


def test_an_index_that_leads_elsewhere_is_seen_through(here, there, pushed, store):
    """Somebody who may write there names one object's place for another."""
    (segment,) = (store / "index").glob("*.idx")
    data = bytearray(segment.read_bytes())
    rows = len(data) - 12 - 16 * len(pushed)
    one, two = (rows + 16 * sorted(pushed).index(digest) for digest in pushed[:2])
    data[one : one + 16], data[two : two + 16] = data[two : two + 16], data[one : one + 16]
    lie = bytes(data)
    segment.unlink()
    name = hash_bytes(lie).removeprefix("blake3:")
    (store / f"index/{name}.idx").write_bytes(lie)

    with pytest.raises(DamagedObjects):
        there.fetch(pushed[:2])

    assert there.cache.missing(pushed[:2]) == set(pushed[:2])


def test_a_kept_segment_that_was_damaged_here_comes_again(here, there, pushed):
    there.remote().missing(pushed)
    (kept,) = there.kept.glob("*.idx")
    kept.chmod(0o644)
    kept.write_bytes(b"")

    assert there.remote().missing(pushed) == set()


# --- not taking the index's word ------------------------------------------------------------------------------------


def test_all_is_well(pair):
    here, _ = pair
    digests = here.put(*many(50), LARGE)
    here.push(digests)
    progress = Progress()

    assert here.remote().check(digests, read=False) == []
    totals = []
    progress.start = lambda label, total, unit: totals.append(total)
    assert here.remote().check(read=True, reporter=progress) == []
    assert [progress.advanced] == totals == [sum(here.sizes.values())]


def test_what_is_gone_is_found_by_looking_and_what_is_damaged_by_reading(here, there, pushed, store):
    other = here.put(*many(10, seed=7))
    here.push(other)
    (gone,) = (path for path in packs(store) if path.stat().st_size < 5000)
    gone.unlink()
    (pack,) = packs(store)
    flip(pack, 8 + RECORD_SIZE + 3)

    looked = here.remote().check([*pushed, *other], read=False)
    assert {fault.digest for fault in looked} == set(other)
    assert all(isinstance(fault.error, AbsentObjects) and "is gone" in fault.error.message for fault in looked)
    read = here.remote().check(read=True)
    damaged = [fault for fault in read if isinstance(fault.error, DamagedObjects)]
    assert len(damaged) == 1
    assert {fault.digest for fault in read} == {*other, damaged[0].digest}

    remote = here.remote()
    remote.check(read=True)
    bad = remote.missing([*pushed, *other])
    assert bad == {*other, damaged[0].digest}
    remote.forget_faults()
    assert here.remote().missing([*pushed, *other]) == bad
    here.push(bad)
    assert here.remote().check(read=True) == []
    there.fetch([*pushed, *other])


def test_a_large_object_that_is_cut_short_or_other(here, pushed, store):
    path = store / object_key(pushed[-1])
    flip(path, 100)
    assert here.remote().check(pushed, read=False) == []
    assert [fault.digest for fault in here.remote().check(pushed, read=True)] == [pushed[-1]]
    os.truncate(path, 10)
    assert [fault.digest for fault in here.remote().check(pushed, read=False)] == [pushed[-1]]


def test_a_damaged_segment_that_is_kept_here_is_put_back(here, there, pushed, store):
    assert here.remote().missing(pushed) == set()  # it brings the segment
    (segment,) = (store / "index").glob("*.idx")
    flip(segment, 60)

    assert here.remote().mend_index() == []
    there.fetch(pushed)


def test_a_damaged_segment_is_dropped_and_the_others_stay(here, pushed, store):
    (first,) = (store / "index").glob("*.idx")
    other = here.put(*many(10, seed=7))
    here.push(other)
    flip(first, 60)
    remote = Site(here.folder / "fresh", here.url).remote()

    assert remote.mend_index() == [f"index/{first.name}"]
    assert remote.missing([*pushed, *other]) == set(pushed)
    here.push(pushed)
    assert here.remote().check([*pushed, *other], read=True) == []


# --- the marker, and where it is not ----------------------------------------------------------------------------------


def test_writing_marks_the_layout(here, store):
    here.push(here.put(b"x"))

    assert json.loads((store / "mlx.json").read_bytes()) == {"mlx": 2}
    assert not here.remote().is_new()


@pytest.mark.parametrize("marker", ['{"mlx": 3}', '{"mlx": "1"}', "{}", "[]", "not json", ""])
def test_a_layout_that_is_newer_or_foreign_is_refused_by_every_verb(here, store, marker):
    store.mkdir()
    (store / "mlx.json").write_text(marker)
    (digest,) = here.put(b"x")
    verbs = [
        lambda remote: remote.missing([digest]),
        lambda remote: remote.read(digest),
        lambda remote: list(remote.list()),
        lambda remote: remote.send(here.cache, Wanted([digest], [], {digest: 1})),
        lambda remote: remote.bring(here.cache, [hash_bytes(b"y")]),
        lambda remote: remote.read_run("ab"),
        lambda remote: remote.write_run("ab", b""),
        lambda remote: list(remote.list_runs()),
    ]

    for verb in verbs:
        with pytest.raises(RemoteError, match="remote `storage`") as caught:
            verb(here.remote())
        assert caught.value.hint
    assert sorted(path.name for path in store.iterdir()) == ["mlx.json"]


def test_a_remote_of_layout_1_is_read_and_gets_an_index(here, there, store):
    contents = [b"", b"one", b"x" * 100_000]
    for data in contents:
        path = store / object_key(hash_bytes(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (store / "mlx.json").write_text('{"mlx": 1}')
    digests = [hash_bytes(data) for data in contents]

    assert here.remote().missing(digests) == set()
    there.fetch(digests)
    assert [there.cache.read(digest) for digest in digests] == contents
    assert not (store / "index").exists()
    (new,) = here.put(b"new")
    here.push([new])
    assert json.loads((store / "mlx.json").read_bytes()) == {"mlx": 2}
    assert sorted(here.remote().list()) == sorted([*digests, new])
    assert here.remote().missing(digests) == set()


def test_a_place_where_nothing_was_pushed_is_an_empty_remote(here, store):
    store.mkdir()
    digest = hash_bytes(b"x")

    assert here.remote().is_new()
    assert here.remote().missing([digest]) == {digest}
    assert list(here.remote().list()) == []
    assert here.remote().read_run(KEY) is None
    with pytest.raises(MissingObject, match="not in remote `storage`"):
        here.remote().read(digest)


def test_a_folder_that_does_not_exist_is_told_by_who_reads_and_made_by_who_writes(here, store):
    digest = hash_bytes(b"x")
    assert here.remote().missing([digest]) == {digest}
    with pytest.raises(RemoteError, match="does not exist") as caught:
        here.remote().read(digest)
    assert str(store) in caught.value.message
    assert caught.value.hint

    here.push(here.put(b"x"))

    assert here.remote().read(digest) == b"x"


def test_a_folder_on_a_disk_that_is_not_mounted_is_not_made(here, tmp_path):
    here.url = str(tmp_path / "mnt" / "store")

    with pytest.raises(RemoteError, match=r"there is no folder `.*/mnt` to make it in") as caught:
        here.push(here.put(b"x"))

    assert (caught.value.hint or "").startswith("mount it")
    assert not (tmp_path / "mnt").exists()


# --- run records ----------------------------------------------------------------------------------------------------


def test_run_records_are_kept_by_fingerprint(here, store):
    assert here.remote().read_run(KEY) is None
    here.remote().write_run(KEY, b"first")
    here.remote().write_run(KEY, b"second\n")

    assert here.remote().read_run(KEY) == b"second\n"
    assert list(here.remote().list_runs()) == [KEY]
    (store / f"runs/{KEY}.yaml").chmod(0o644)
    (store / f"runs/{KEY}.yaml").write_bytes(b"x" * ((1 << 20) + 1))
    assert here.remote().read_run(KEY) is None


@pytest.mark.parametrize("key", ["", "../escape", "a/b", "a.b", "é"])
def test_what_is_no_fingerprint_is_refused(here, key):
    for use in (here.remote().read_run, lambda bad: here.remote().write_run(bad, b"")):
        with pytest.raises(ValueError, match="not a fingerprint"):
            use(key)


# --- crashes --------------------------------------------------------------------------------------------------------


def test_a_crash_anywhere_while_pushing_leaves_a_remote_that_is_true(here, tmp_path):
    digests = here.put(*many(5), LARGE)
    sites = iter(Site(here.folder, str(tmp_path / f"store-{number}")) for number in range(1000))
    site = next(sites)
    site.sizes = here.sizes

    def work() -> None:
        site.push(digests[:-2], digests[-2:-1])
        site.push(digests[-1:])

    states = 0
    for _ in crashes(work):
        promised = set(digests) - site.remote().missing(digests)
        for digest in promised:
            site.remote().read(digest, limit=None)
        work()
        assert site.remote().missing(digests) == set()
        site.remote().write_run(KEY, b"")  # whoever writes next takes away what was left
        assert not list((Path(site.url) / "tmp").iterdir())
        states += 1
        site = next(sites)
        site.sizes = here.sizes
    assert states > 20


def test_a_crash_anywhere_while_fetching_leaves_whole_objects(here, there, tmp_path, pushed):
    folders = iter(tmp_path / f"machine-{number}" for number in range(1000))
    site = Site(next(folders), here.url)

    def work() -> None:
        site.fetch(pushed)

    states = 0
    for _ in crashes(work):
        cache = site.cache
        for digest in set(pushed) - cache.missing(pushed):
            cache.read(digest, limit=None)
        work()
        assert site.cache.missing(pushed) == set()
        states += 1
        site = Site(next(folders), here.url)
    assert states > 20


def test_a_full_disk_is_told_and_leaves_nothing_half(here, tmp_path):
    with small_disk(tmp_path) as disk:
        site = Site(here.folder, str(disk / "store"))
        digests = here.put(*(os.urandom(300 << 10) for _ in range(5)))
        site.sizes = here.sizes

        with pytest.raises(RemoteError, match="the disk is full") as caught:
            site.push(digests)

        assert "remote `storage`" in caught.value.message
        for digest in site.remote().list():
            site.remote().read(digest)
        assert not list((disk / "store" / "tmp").iterdir())


def two_pushers(here: Site, there: Site) -> Iterator[tuple[Site, list[Digest]]]:
    yield here, here.put(*many(40, seed=1))
    yield there, there.put(*many(40, seed=2))


def test_two_that_push_at_once_only_add(here, there):
    pids = []
    every: list[Digest] = []
    for site, digests in two_pushers(here, there):
        every += digests
        if (pid := os.fork()) == 0:
            code = 1
            try:
                for at in range(0, 40, 2):
                    site.push(digests[at : at + 2])
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]

    assert here.remote().missing(every) == set()
    listed = json.loads((Path(here.url) / LIST).read_bytes())["segments"]
    assert {f"{name}.idx" for name in listed} == {path.name for path in (Path(here.url) / "index").glob("*.idx")}


def test_what_had_arrived_when_a_push_was_interrupted_is_not_sent_again(tmp_path: Path) -> None:
    """Though what was taken before it never came, and whatever order they came in."""
    cache, blobs = filled(tmp_path)
    come = threading.Event()

    def before(verb: str, key: str) -> None:
        if verb != "put" or not key.startswith("objects/"):
            return
        if key == first:
            assert come.wait(60)
            raise KeyboardInterrupt

    class Several(Watched):
        parallel = 4

        def put_file(self, key: str, path: str) -> None:
            super().put_file(key, path)
            if key == last:
                come.set()

    first, *_, last = (object_key(digest) for digest in blobs)
    folder = FolderBucket("storage", str(tmp_path / "far"), tmp_path / "far", Durability.NONE)
    wanted = Wanted(blobs, [], dict.fromkeys(blobs, 9 << 20))

    with pytest.raises(KeyboardInterrupt):
        Remote(Several(folder, before), str(tmp_path / "kept")).send(cache, wanted, jobs=4)

    assert Remote(folder, str(tmp_path / "kept")).missing(blobs) == {blobs[0]}


def filled(tmp_path: Path) -> tuple[Cache, list[Digest]]:
    """Return a cache with four objects that lie alone, and their digests."""
    cache = Cache(tmp_path / "cache", link=LinkMode.COPY, durability=Durability.NONE)
    contents = [random.Random(number).randbytes(9 << 20) for number in range(4)]
    cache.write([(hash_bytes(data), partial(io.BytesIO, data)) for data in contents])
    return cache, [hash_bytes(data) for data in contents]


def test_over_a_slow_line_what_came_is_there_before_all_has(here, there, monkeypatch):
    """So that `kill -9` costs seconds."""
    digests = here.put(*(os.urandom(5000) for _ in range(3)))
    for digest in digests:
        here.push([digest])
    monkeypatch.setattr(download, "_ROUND_SECONDS", 0.0)
    seen = []

    def look(verb, key):
        if verb == "get" and key.startswith("packs/"):
            seen.append(len(there.cache.missing(digests)))

    bucket = open_bucket("storage", there.url, there.folder, durability=Durability.BATCH)
    Remote(Watched(bucket, look), str(there.kept)).bring(there.cache, digests, jobs=1)

    assert seen == [3, 2, 1]


def test_a_remote_that_has_lost_everything_is_not_begun_anew_unasked(pair):
    """Where a disk should be mounted, everything would be copied to the folder beneath it."""
    here, there = pair
    digests = here.put(b"one", b"two")
    here.push(digests)
    bucket = here.remote().bucket
    bucket.delete([stored.key for stored in bucket.list("")])
    for _ in range(2):
        with pytest.raises(RemoteError, match="is empty, and this clone knows it with data") as raised:
            here.push(digests)
        assert "`mlx push --repair --remote storage`" in raised.value.hint
    assert not list(bucket.list(""))
    with pytest.raises(RemoteError, match="is empty"):
        here.remote().write_run(KEY, b"run")
    there.push(there.put(b"three"))  # who knows nothing of it begins it

    here.push(digests)
    assert there.fetch(digests).objects == 2


def test_a_remote_that_is_meant_to_be_empty_is_begun_anew_by_repair(pair):
    here, there = pair
    digests = here.put(b"one", b"two")
    here.push(digests)
    bucket = here.remote().bucket
    bucket.delete([stored.key for stored in bucket.list("")])

    here.remote().mend_index()
    here.push(digests)

    assert there.fetch(digests).objects == 2
