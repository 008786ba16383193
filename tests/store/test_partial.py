"""A fetch of a large file that was interrupted goes on where it stopped, and believes nothing that it finds."""

from __future__ import annotations

import os
import random
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlops_cli.errors import CorruptObject, OutsideError, RemoteError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store import assembly
from mlops_cli.store.assembly import assemble
from mlops_cli.store.checkup import check_store
from mlops_cli.store.partial import KEPT_FOR, open_partial, remove_leftovers
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.space import measure_parts
from tests.crashing import crashes
from tests.faults import FULL, refusing
from tests.objects import cache_at
from tests.servers.proxy import proxy
from tests.servers.s3 import s3_server
from tests.store.test_assembly import KIB, Remote, chunks_from, recipe_of
from tests.store.test_remote import Site

CHUNKS = chunks_from(1, 60)
RECIPE = recipe_of(CHUNKS)
BYTES = b"".join(CHUNKS)
HALF = BYTES[: len(BYTES) // 2]


class Dying(Remote):
    """A remote whose line is dead after so many chunks, or somebody presses a key."""

    def __init__(self, chunks, after, error=RemoteError):
        super().__init__(chunks)
        self._left = after
        self._error = error

    def __call__(self, raws):
        for pair in super().__call__(raws):
            if not self._left:
                raise self._error("the line is dead")
            self._left -= 1
            yield pair


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(assembly, "_STRETCH", 16 * KIB)
    monkeypatch.setattr(assembly, "AT_ONCE", 32 * KIB)


@pytest.fixture
def cache(tmp_path):
    return cache_at(tmp_path / "cache")


def path_in(cache, recipe=RECIPE):
    return cache.root / "partial" / recipe.digest[7:]


def make(cache, fetch, recipe=RECIPE, places=None):
    """Make the file as a fetch does; return what was fetched."""
    partial = open_partial(cache, recipe.digest)
    with cache.scratch() as scratch:
        try:
            places = [None] * len(recipe) if places is None else places
            made = assemble(recipe, places, fetch, cache, scratch.next_path, partial=partial)
            assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o444
            cache.publish({recipe.digest: made.path})
        finally:
            if partial is not None:
                partial.close()
    assert cache.read(recipe.digest, limit=None) == BYTES
    return made.fetched


def leave(cache, data=HALF):
    """Leave a partial file with these bytes."""
    path_in(cache).parent.mkdir(parents=True, exist_ok=True)
    path_in(cache).write_bytes(data)
    path_in(cache).chmod(0o644)


@pytest.mark.parametrize("error", [RemoteError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [1, 7, 30, 59])
def test_what_came_before_an_error_does_not_come_again(cache, after, error):
    with pytest.raises(error):
        make(cache, Dying(CHUNKS, after, error))
    assert cache.missing([RECIPE.digest])
    remote = Remote(CHUNKS)
    make(cache, remote)

    assert remote.fetched == 60 - after
    assert list(path_in(cache).parent.iterdir()) == []


def test_an_error_before_anything_came_leaves_nothing(cache):
    with pytest.raises(RemoteError):
        make(cache, Dying(CHUNKS, 0))
    assert list(path_in(cache).parent.iterdir()) == []


def test_a_full_disk_gets_back_what_came(cache):
    make(cache, Remote(CHUNKS))
    cache.delete([RECIPE.digest])
    with refusing(FULL, 9), pytest.raises(OutsideError, match="the disk is full"):
        make(cache, Remote(CHUNKS))
    assert not path_in(cache).exists()


def test_chunks_that_are_there_more_than_once(cache):
    chunks = [*CHUNKS[:5], bytes(8 * KIB)] * 8
    recipe = recipe_of(chunks)
    half = len(b"".join(chunks)) // 2
    for data in (b"".join(chunks)[:half], bytes(half) + b"".join(chunks)[half:], b"".join(chunks)):
        remote = Remote(chunks)
        partial = open_partial(cache, recipe.digest)
        with open(partial.path, "wb") as stream:
            stream.write(data)
        assemble(recipe, [None] * len(recipe), remote, cache, lambda: "", partial=partial)
        partial.close()
        with open(partial.path, "rb") as stream:
            assert stream.read() == b"".join(chunks)
        assert remote.fetched <= (6 if data[:100] == bytes(100) else 0)
        os.chmod(partial.path, 0o644)


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 1000, bytes(len(BYTES)), b"x" + BYTES, BYTES + b"x", BYTES[:100] + b"x" + BYTES[101:]],
    ids=["nothing", "short", "zeros", "shifted", "longer", "a byte"],
)
def test_wrong_bytes_are_fetched(cache, data):
    leave(cache, data)
    fetched = make(cache, Remote(CHUNKS))
    same = sum(map(len, CHUNKS[1:])) if data[:100] == BYTES[:100] else 0
    assert fetched <= len(BYTES) - same


def test_a_recipe_that_makes_another_file_leaves_nothing(cache):
    lie = Recipe(hash_bytes(b"another"), RECIPE.size, RECIPE.lengths, RECIPE.raws)
    with pytest.raises(CorruptObject, match="make another one"):
        make(cache, Remote(CHUNKS), lie)
    assert not path_in(cache, lie).exists()
    assert cache.missing([lie.digest])


def test_two_at_once_each_make_their_own(cache):
    second = Remote(CHUNKS)

    def fetch(raws):
        if not second.asked:
            assert open_partial(cache_at(cache.root), RECIPE.digest) is None
            make(cache_at(cache.root), second)
            remove_leftovers(cache, time.time() + 60)
            assert path_in(cache).exists()
        return Remote(CHUNKS)(raws)

    make(cache, fetch)
    assert second.fetched == 60
    assert list(path_in(cache).parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder"])
def test_what_is_no_file_of_ours_is_left_alone(cache, tmp_path, kind):
    (tmp_path / "mine").write_bytes(b"mine")
    path_in(cache).parent.mkdir(parents=True)
    if kind == "symlink":
        path_in(cache).symlink_to(tmp_path / "mine")
    elif kind == "hard link":
        path_in(cache).hardlink_to(tmp_path / "mine")
    elif kind == "pipe":
        os.mkfifo(path_in(cache))
    else:
        path_in(cache).mkdir()
    assert make(cache, Remote(CHUNKS)) == len(BYTES)
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_nobody_else_may_write_to_one(cache):
    cache.root.mkdir(parents=True)
    cache.root.chmod(0o2775)
    leave(cache)
    path_in(cache).chmod(0o666)
    partial = open_partial(cache, RECIPE.digest)
    assert stat.S_IMODE(path_in(cache).stat().st_mode) == 0o644
    partial.close()


def test_in_a_shared_cache_others_make_their_own(cache):
    if os.geteuid():
        pytest.skip("only root can make a file somebody else's")
    leave(cache)
    os.chown(path_in(cache), 12345, 12345)
    assert open_partial(cache, RECIPE.digest) is None
    assert make(cache, Remote(CHUNKS)) == len(BYTES)
    assert path_in(cache).read_bytes() == HALF


def test_leftovers_go_when_they_are_old_or_their_object_is_here(cache):
    leave(cache)
    remove_leftovers(cache)
    assert check_store(cache).leftovers == 0
    assert {part.name: part.bytes for part in measure_parts(cache.root)}["partial"] == len(HALF)
    assert list(cache.list()) == []

    old = time.time() - KEPT_FOR - 60
    os.utime(path_in(cache), (old, old))  # its ctime is that of now
    remove_leftovers(cache)
    assert path_in(cache).exists()
    remove_leftovers(cache, time.time() + 60)
    assert not path_in(cache).exists()

    make(cache, Remote(CHUNKS))
    leave(cache)
    assert check_store(cache, dry_run=True).leftovers == len(HALF)
    assert check_store(cache).leftovers == len(HALF)
    assert not path_in(cache).exists()


def test_a_crash_anywhere_is_gone_on_from(cache):
    points = 0
    for points in crashes(lambda: make(cache, Remote(CHUNKS))):  # noqa: B007 - how many there were is asked below
        found = cache_at(cache.root)
        assert set(found.list()) <= {RECIPE.digest}
        if not found.missing([RECIPE.digest]):
            found.check(RECIPE.digest)
            found.delete([RECIPE.digest])
    assert points > 8
    cache.delete([RECIPE.digest])
    make(cache, Remote(CHUNKS))


def test_a_network_that_fails_half_way(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "AT_ONCE", 32 << 20)
    size = 33 << 20
    with s3_server() as server, proxy(server.port) as door:
        for key, value in {**server.environ, "AWS_ENDPOINT_URL": door.url}.items():
            monkeypatch.setenv(key, value)
        url = f"{server.make_bucket('half-way')}/data"
        here, there = Site(tmp_path / "here", url), Site(tmp_path / "there", url)
        (digest,) = here.put(random.Random(9).randbytes(size))
        here.push([digest])

        door.heal()
        remote = there.remote()
        remote.bucket.patience = 0.0
        door.hold_download(24 << 20)
        with ThreadPoolExecutor(1) as pool:
            fetch = pool.submit(remote.bring, there.cache, [digest], jobs=1)
            assert door.held.wait(60)
            first = door.downloaded
            door.heal()  # resets the connection
            with pytest.raises(RemoteError):
                fetch.result()
        assert there.cache.missing([digest])

        door.heal()
        there.fetch([digest], jobs=1)
        assert door.downloaded < size - (13 << 20)
        assert first + door.downloaded < size + (18 << 20)  # the one request that was in flight comes again
        there.cache.check(digest)
