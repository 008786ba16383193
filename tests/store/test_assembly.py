"""A file is made from what is here and what is fetched, verified from its own bytes, or it is not made at all."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
from array import array
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import CorruptObject, OutsideError, RemoteError
from mlops_cli.hashing import hash_bytes, hash_raw
from mlops_cli.store import assembly
from mlops_cli.store.assembly import assemble
from mlops_cli.store.batches import open_batch
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.recipes import ChunkIndex
from tests.crashing import crashes
from tests.disks import small_disk
from tests.faults import FULL, refusing
from tests.objects import cache_at
from tests.store.folders import steady

KIB = 1 << 10


def chunks_from(seed, count, *, size=8 * KIB):
    source = random.Random(seed)
    return [source.randbytes(source.randrange(1, size)) for _ in range(count)]


def recipe_of(chunks):
    data = b"".join(chunks)
    return Recipe(hash_bytes(data), len(data), array("I", map(len, chunks)), b"".join(map(hash_raw, chunks)))


class Remote:
    """Chunks that can be fetched; what was asked for, request by request."""

    def __init__(self, *files):
        self.chunks = {hash_raw(chunk): chunk for chunks in files for chunk in chunks}
        self.asked = []

    def __call__(self, raws):
        assert len(set(raws)) == len(raws)
        self.asked.append(list(raws))
        for raw in reversed(raws):
            yield raw, self.chunks[raw]

    @property
    def fetched(self):
        return sum(map(len, self.asked))


class Bench:
    """A cache with some files in it, and what is known of their chunks."""

    def __init__(self, root, *files):
        self.cache = cache_at(root)
        self.recipes = [recipe_of(chunks) for chunks in files]
        with open_batch(self.cache) as batch:
            for recipe, chunks in zip(self.recipes, files, strict=True):
                assert batch.add_bytes(b"".join(chunks)) == recipe.digest
        assert all(os.path.exists(self.cache.object_path(recipe.digest)) for recipe in self.recipes)
        self.index = ChunkIndex(self.recipes)

    def path(self, number=0):
        return self.cache.object_path(self.recipes[number].digest)

    def spoil(self, edit, number=0):
        """Change an object behind the cache's back."""
        with open(self.path(number), "rb") as stream:
            data = bytearray(stream.read())
        os.chmod(self.path(number), 0o644)
        with open(self.path(number), "wb") as stream:
            stream.write(edit(data))

    def make(self, chunks, fetch, *, places=None):
        """Return what was made of these chunks: its result and its bytes."""
        recipe = recipe_of(chunks)
        with self.cache.scratch() as scratch:
            places = self.index.places(recipe) if places is None else places
            made = assemble(recipe, places, fetch, self.cache, scratch.next_path)
            with open(made.path, "rb") as stream:
                data = stream.read()
            mode = stat.S_IMODE(os.stat(made.path).st_mode)
            self.cache.publish({recipe.digest: made.path})
        assert data == b"".join(chunks)
        assert mode == 0o444
        self.cache.check(recipe.digest)
        return made

    def assert_nothing_left(self, chunks):
        assert os.listdir(self.cache.root / "tmp") == []
        assert self.cache.missing([recipe_of(chunks).digest])


OLD = chunks_from(1, 60)
NEW = [*OLD[:20], *chunks_from(2, 3), *OLD[23:]]


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """As many seams as a large file has."""
    monkeypatch.setattr(assembly, "_STRETCH", 16 * KIB)
    monkeypatch.setattr(assembly, "AT_ONCE", 32 * KIB)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "cache", OLD)


def test_only_what_is_not_here_is_fetched(bench):
    remote = Remote(NEW)
    made = bench.make(NEW, remote)

    assert remote.asked == [[hash_raw(chunk) for chunk in NEW[20:23]]]
    assert made.fetched == sum(map(len, NEW[20:23]))
    assert made.suspects == ()


def test_a_file_of_which_nothing_is_here_comes_in_batches(tmp_path):
    remote = Remote(NEW)
    made = Bench(tmp_path / "cache").make(NEW, remote)

    assert made.fetched == len(b"".join(NEW))
    assert all(sum(len(remote.chunks[raw]) for raw in raws) <= 32 * KIB for raws in remote.asked)
    assert len(remote.asked) < 12


def test_a_file_of_which_all_is_here_asks_for_nothing(bench):
    remote = Remote()
    bench.make(OLD[10:30], remote)
    assert remote.asked == []


def test_a_file_without_bytes(bench):
    bench.make([], Remote())


def test_a_chunk_that_comes_again_is_fetched_once(tmp_path):
    chunks = [*chunks_from(3, 5), bytes(8 * KIB)] * 10
    remote = Remote(chunks)
    made = Bench(tmp_path / "cache").make(chunks, remote)

    assert remote.fetched == 6
    assert made.fetched == len(b"".join(chunks[:6]))


files = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@steady
@given(st.lists(files, max_size=3), files, st.integers(1, 60 * KIB), st.integers(1, 60 * KIB))
def test_whatever_is_here_the_file_is_made(tmp_path_factory, known, wanted, stretch, at_once):
    pieces = chunks_from(4, 31)
    sources = [[pieces[number] for number in [*numbers, 0, 1] * 8] for numbers in known]  # too large for a pack
    bench = Bench(tmp_path_factory.mktemp("made") / "cache", *sources)
    chunks = [pieces[number] for number in wanted]
    remote = Remote(chunks)
    with mock.patch.object(assembly, "_STRETCH", stretch), mock.patch.object(assembly, "AT_ONCE", at_once):
        bench.make(chunks, remote)

    here = {hash_raw(chunk) for source in sources for chunk in source}
    asked = [raw for raws in remote.asked for raw in raws]
    assert len(asked) == len(set(asked))
    assert here.isdisjoint(asked)


# Sources that are not what they were ---------------------------------------------------------------------------------


def flip(data):
    data[len(data) // 2] ^= 1
    return data


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        (flip, 1),
        (lambda data: data[: len(data) // 2], 40),
        (lambda data: b"", 60),
        (lambda data: b"x" + data, 60),
        (lambda data: data + b"x", 0),
        (lambda data: bytes(len(data)), 60),
    ],
    ids=["a bit", "cut short", "emptied", "shifted", "longer", "zeros"],
)
def test_what_is_wrong_in_a_source_is_fetched(bench, edit, most):
    bench.spoil(edit)
    remote = Remote(OLD, NEW)
    made = bench.make(NEW, remote)

    assert 3 <= remote.fetched <= most + 3
    assert made.suspects == ((bench.recipes[0].digest,) if most else ())


def test_a_source_that_is_gone_is_fetched_in_batches(bench):
    os.unlink(bench.path())
    remote = Remote(OLD, NEW)
    made = bench.make(NEW, remote)

    assert remote.fetched == len(NEW)
    assert len(remote.asked) < 20
    assert made.suspects == (bench.recipes[0].digest,)


@pytest.mark.parametrize("code", [5, 116], ids=["EIO", "ESTALE"])
def test_a_source_that_cannot_be_read_is_fetched(bench, code):
    copy = assembly.copy_range

    def fail(source, start, target, offset, size):
        if source != target and start > 50 * KIB:
            raise OSError(code, os.strerror(code))
        copy(source, start, target, offset, size)

    remote = Remote(NEW)
    with mock.patch.object(assembly, "copy_range", fail):
        made = bench.make(NEW, remote)
    assert 3 < remote.fetched < len(NEW)
    assert made.suspects == (bench.recipes[0].digest,)


def test_a_source_that_nobody_may_read_is_fetched(bench):
    remote = Remote(NEW)
    real = bench.cache.open_descriptor

    def refuse(digest):
        if digest == bench.recipes[0].digest:
            raise OutsideError("cannot read it: permission denied")
        return real(digest)

    with mock.patch.object(bench.cache, "open_descriptor", refuse):
        bench.make(NEW, remote)
    assert remote.fetched == len(NEW)


@pytest.mark.parametrize("edit", [flip, lambda data: b""], ids=["a bit", "emptied"])
def test_a_source_that_changes_meanwhile_is_fetched(bench, edit):
    """While the first chunk that is not here is fetched, what was copied and what will be copied change."""
    remote = Remote(OLD, NEW)

    def fetch(raws):
        if not remote.asked:
            bench.spoil(edit)
        return remote(raws)

    made = bench.make(NEW, fetch)
    assert made.suspects == (bench.recipes[0].digest,)


def test_many_sources_are_not_open_at_once(tmp_path):
    sources = [chunks_from(seed, 30) for seed in range(10, 60)]
    bench = Bench(tmp_path / "cache", *sources)
    chunks = [source[number] for number in range(5) for source in sources]
    bench.make(sources[0][:1], Remote())  # the index of packs is open from now on
    opened = []
    real = bench.cache.open_descriptor

    def count(digest):
        opened.append(len(os.listdir("/proc/self/fd")))
        return real(digest)

    with mock.patch.object(bench.cache, "open_descriptor", count):
        bench.make(chunks, Remote())
    assert max(opened) - min(opened) <= assembly._OPEN + 2
    assert len(os.listdir("/proc/self/fd")) <= min(opened)


@pytest.mark.parametrize("code", [18, 22, 38, 95], ids=["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_where_the_system_cannot_copy_the_bytes_go_through_memory(bench, code, monkeypatch):
    with mock.patch.object(os, "copy_file_range", side_effect=OSError(code, os.strerror(code)), create=True) as call:
        bench.make(NEW, Remote(NEW))
        assert call.called
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    bench.make(OLD[5:], Remote())


def test_whole_blocks_are_copied_as_such_where_they_can_be_shared(bench, monkeypatch):
    if not hasattr(os, "copy_file_range"):
        pytest.skip("this system has no such call")
    edited = [*OLD[:7], bytes(len(OLD[7])), *OLD[8:]]
    real, calls = os.copy_file_range, []

    def copy(source, target, size, start, offset):
        calls.append((start, offset, size))
        return real(source, target, min(size, 5000), start, offset)

    monkeypatch.setattr(os, "copy_file_range", copy)
    bench.make(edited, Remote([bytes(len(OLD[7]))]))

    begins = {start for start, _, size in calls if size >= 4096 and not start % 4096}
    assert len(begins) > 10
    assert all(start == offset for start, offset, _ in calls)


# What comes is wrong -------------------------------------------------------------------------------------------------


def wrong_bytes(raws):
    for raw in raws:
        yield raw, b"wrong"


def too_few(raws):
    yield from list(Remote(NEW)(raws))[1:]


def other_chunks(raws):
    for chunk in OLD[:5]:
        yield hash_raw(chunk), chunk


@pytest.mark.parametrize(
    ("fetch", "why"),
    [
        (wrong_bytes, "are not its own"),
        (too_few, "1 of its chunks did not come"),
        (other_chunks, "3 of its chunks did not come"),
        (lambda raws: iter(()), "3 of its chunks did not come"),
    ],
)
def test_chunks_that_come_wrong_or_not_at_all_leave_nothing(bench, fetch, why):
    with pytest.raises(DamagedObjects if fetch is wrong_bytes else AbsentObjects, match=why) as caught:
        bench.make(NEW, fetch)
    assert caught.value.digests == (recipe_of(NEW).digest,)
    bench.assert_nothing_left(NEW)


def test_chunks_that_nobody_asked_for_are_passed_over(bench):
    remote = Remote(NEW)
    bench.make(NEW, lambda raws: [*other_chunks(raws), *remote(raws), *remote(raws)])


def test_a_recipe_of_another_file_leaves_nothing(bench):
    honest = recipe_of(OLD[:30])
    lie = Recipe(hash_bytes(b"another"), honest.size, honest.lengths, honest.raws)
    with bench.cache.scratch() as scratch:
        with pytest.raises(CorruptObject, match="make another one") as caught:
            assemble(lie, bench.index.places(lie), Remote(), bench.cache, scratch.next_path)
        assert os.listdir(os.path.dirname(scratch.next_path())) == []
    assert caught.value.digests == (lie.digest,)


def test_a_recipe_that_calls_two_chunks_the_same_leaves_nothing(bench):
    """One digest with two lengths: no bytes can be both."""
    long, short = OLD[0], OLD[0][:5]
    lengths = array("I", [len(long), len(short)] * 3)
    lie = Recipe(hash_bytes(b"another"), sum(lengths), lengths, hash_raw(long) * 6)
    for places in (bench.index.places(lie), [None] * 6):
        with bench.cache.scratch() as scratch, pytest.raises(CorruptObject):
            assemble(lie, places, Remote(OLD), bench.cache, scratch.next_path)


def test_an_error_of_the_remote_passes_through(bench):
    def fetch(raws):
        raise RemoteError("the line is dead")

    with pytest.raises(RemoteError, match="the line is dead"):
        bench.make(NEW, fetch)
    bench.assert_nothing_left(NEW)


def test_a_full_disk_is_told_and_leaves_nothing(bench):
    recipe = recipe_of(NEW)
    for at in (0, 1, 2, 5, 9):
        with bench.cache.scratch() as scratch:
            folder = os.path.dirname(scratch.next_path())
            with refusing(FULL, at), pytest.raises(OutsideError, match="the disk is full") as caught:
                assemble(recipe, bench.index.places(recipe), Remote(NEW), bench.cache, scratch.next_path)
            assert os.listdir(folder) == []
        assert caught.value.hint == "free some space and run the command again"


def test_a_disk_that_fills_up_is_empty_again(tmp_path):
    chunks = chunks_from(8, 400)
    with small_disk(tmp_path) as disk:
        bench = Bench(disk / "cache")
        with pytest.raises(OutsideError, match="the disk is full"):
            bench.make(chunks, Remote(chunks))
        bench.assert_nothing_left(chunks)
        bench.make(chunks[:50], Remote(chunks))


def test_a_disk_that_forgets_is_told(bench):
    def forget(target, data, offset):
        os.pwrite(target, bytes(len(data)), offset)

    with mock.patch.object(assembly, "write_at", forget), pytest.raises(CorruptObject, match="not what is read back"):
        bench.make(NEW, Remote(NEW))
    bench.assert_nothing_left(NEW)


def test_a_crash_anywhere_leaves_the_cache_as_it_was_or_with_the_file(tmp_path):
    old, new = chunks_from(5, 12, size=20 * KIB), chunks_from(6, 2)
    new = [*old[:6], *new, *old[6:]]
    bench = Bench(tmp_path / "cache", old)
    recipe = recipe_of(new)

    def work():
        bench.make(new, Remote(new))

    points = 0
    for points in crashes(work):  # noqa: B007 - how many there were is asked below
        cache = cache_at(bench.cache.root)
        assert set(cache.list()) <= {recipe.digest, recipe_of(old).digest}
        if not cache.missing([recipe.digest]):
            cache.check(recipe.digest)
            cache.delete([recipe.digest])
    assert points > 8
    bench.make(new, Remote(new))
    assert os.listdir(bench.cache.root / "tmp") == []


# Memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import os, resource, sys
from pathlib import Path
from mlops_cli.store.assembly import assemble
from mlops_cli.store.recipe import make_recipe
from mlops_cli.store.recipes import ChunkIndex
from tests.objects import cache_at

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

cache = cache_at(Path(sys.argv[1]))
digest = next(cache.list())
index = ChunkIndex()
import concurrent.futures
before = peak()
source = cache.open_descriptor(digest)
recipe = make_recipe(source)
assert recipe.digest == digest
cut = peak()
where = {raw: (offset, length) for offset, length, raw in recipe.chunks()}

def fetch(raws):
    for raw in raws:
        offset, length = where[raw]
        yield raw, os.pread(source, length, offset)

with cache.scratch() as scratch:
    assemble(recipe, index.places(recipe), fetch, cache, scratch.next_path)
    fetched = peak()
    assemble(recipe, ChunkIndex([recipe]).places(recipe), fetch, cache, scratch.next_path)
print(cut - before, fetched - before, peak() - before)
"""


def test_a_large_file_takes_little_memory(tmp_path):
    """As much as its windows and its batches, whatever its size."""
    cache = cache_at(tmp_path / "cache")
    block = random.Random(7).randbytes(1 << 20)
    with open_batch(cache) as batch:
        (tmp_path / "large").write_bytes(b"".join(block[at:] + block[:at] for at in range(0, 160 * 999, 999)))
        batch.add_file(str(tmp_path / "large"), 160 << 20)
    (tmp_path / "large").unlink()

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(cache.root)], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    shutil.rmtree(cache.root)
    cut, fetched, copied = map(int, done.stdout.split())

    assert cut < 40 << 10  # KiB
    assert max(fetched, copied) < 110 << 10
