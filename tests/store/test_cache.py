"""The cache: what is added is what was hashed, appears all at once, and comes back out the same."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.hashing import hash_bytes
from mlops_cli.store import batch as batch_module
from mlops_cli.store import cache as cache_module
from mlops_cli.store import sources
from mlops_cli.store.batches import open_batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode, object_at
from mlops_cli.store.objects import Durability, cut
from mlops_cli.store.pack_format import RECORD_SIZE
from tests.crashing import crashes, killed_at
from tests.disks import small_disk

LARGE = os.urandom(1 << 16) * 80 + b"end"  # 5 MiB: read and hashed by two threads


def open_cache(root, link=LinkMode.COPY, durability=Durability.BATCH):
    return Cache(root, link=link, durability=durability)


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "cache")


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def add(cache, *paths):
    with open_batch(cache) as batch:
        return [batch.add_file(str(path), path.stat().st_size) for path in paths]


def write(path, data):
    path.write_bytes(data)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def visible(cache):
    return sorted(cache.list())


def loose(data):
    """Return bytes that begin with `data` and are too many for a pack."""
    return data + bytes(70_000)


both_kinds = pytest.mark.parametrize("kind", [bytes, loose], ids=["packed", "loose"])


def stored(cache, digest):
    """Return the file that an object is in: its own, or a pack."""
    place = cache.packs.find(digest)
    return Path(cache.packs.path_of(place.pack) if place else cache.object_path(digest))


def flip(cache, digest):
    """Change one bit of an object as decay would: the mode of its file stays. Returns its bytes now, as stored."""
    path, place = stored(cache, digest), cache.packs.find(digest)
    data = bytearray(path.read_bytes())
    start, size = (place.offset + RECORD_SIZE, place.stored) if place else (0, len(data))
    data[start + size // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    return bytes(data[start : start + size])


# --- adding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("data", [b"", b"x", b"x" * 70_000, LARGE], ids=["empty", "one", "70 kB", "5 MiB"])
def test_an_added_file_becomes_a_read_only_object(tmp_path, work, link, data):
    cache = open_cache(tmp_path / "cache", link)

    (digest,) = add(cache, write(work / "file", data))

    assert digest == hash_bytes(data)
    assert cache.read(digest) == data
    assert stat.S_IMODE(stored(cache, digest).stat().st_mode) == 0o444
    assert (cache.packs.find(digest) is None) == (len(data) > 64 << 10)
    assert (work / "file").read_bytes() == data
    assert names(cache.root / "tmp") == []


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("number", [1, 40])
@both_kinds
def test_every_durability_stores_the_same(tmp_path, work, durability, number, kind):
    cache = open_cache(tmp_path / "cache", durability=durability)
    files = [write(work / str(index), kind(str(index).encode())) for index in range(number)]

    digests = add(cache, *files)

    assert visible(cache) == sorted(digests)


def test_nothing_is_touched_before_the_first_verb(tmp_path):
    cache = open_cache(tmp_path / "cache")

    assert cache.missing([hash_bytes(b"x")]) == {hash_bytes(b"x")}
    with open_batch(cache):
        pass
    assert not (tmp_path / "cache").exists()


@both_kinds
def test_objects_of_a_batch_are_seen_by_the_batch_only(cache, work, kind):
    with open_batch(cache) as batch:
        from_file = batch.add_file(str(write(work / "file", kind(b"from a file"))), len(kind(b"from a file")))
        from_memory = batch.add_bytes(kind(b"from memory"))

        assert batch.read(from_file) == kind(b"from a file")
        assert batch.read(from_memory) == kind(b"from memory")
        assert batch.has(from_file)
        assert not batch.has(hash_bytes(b"x"))
        assert cache.missing([from_file, from_memory]) == {from_file, from_memory}

    assert cache.missing([from_file, from_memory]) == set()


@both_kinds
def test_a_batch_reads_what_the_cache_has(cache, kind):
    with open_batch(cache) as batch:
        digest = batch.add_bytes(kind(b"before"))

    with open_batch(cache) as batch:
        assert batch.read(digest) == kind(b"before")
        assert batch.has(digest)
        with pytest.raises(MissingObject):
            batch.read(hash_bytes(b"x"))


@pytest.mark.parametrize("link", LinkMode)
def test_a_batch_that_fails_leaves_nothing(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    files = [write(work / "small", b"small"), write(work / "large", LARGE)]

    def fail():
        with open_batch(cache) as batch:
            for path in files:
                batch.add_file(str(path), path.stat().st_size)
            batch.add_bytes(b"bytes")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert visible(cache) == []
    assert names(cache.root / "tmp") == []
    assert [path.read_bytes() for path in files] == [b"small", LARGE]
    assert all(os.access(path, os.W_OK) and not path.is_symlink() for path in files)


def test_objects_appear_in_the_order_of_adding_after_all_are_durable(cache, monkeypatch):
    events = []
    real_rename, real_sync = os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), real_sync(descriptor))[1])

    def rename(source, target, **options):
        events.append(Path(target).parent.name + Path(target).name)
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    with open_batch(cache) as batch:
        digests = [batch.add_bytes(loose(b"%d" % number)).removeprefix("blake3:") for number in range(5)]
        batch.add_bytes(b"packed")

    *_, last = (number for number, event in enumerate(events) if event in digests)
    assert events[:6] == ["sync"] * 6
    assert events[6:11] == digests
    assert events[11] == "sync"
    (pack,) = (number for number, event in enumerate(events) if event.startswith("packs"))
    assert last < pack < len(events) - 1
    assert {event for event in events[11:] if not event.startswith("packs")} == {"sync"}


def test_a_tree_appears_after_all_that_it_may_name(cache, monkeypatch):
    """Trees are in packs whatever their size, since packs appear last."""
    events = []
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda source, target, **to: (events.append(target), real(source, target, **to)))
    with open_batch(cache) as batch:
        batch.add_bytes(b"small")
        tree = batch.add_bytes(b"MLXT" + bytes(500_000))
        batch.add_bytes(loose(b"large"))

    assert cache.packs.find(tree)
    assert [Path(path).parent.parent.name for path in events] == ["objects", "cache"]


@both_kinds
def test_an_object_that_is_there_is_not_written_again(cache, work, kind):
    (digest,) = add(cache, write(work / "a", kind(b"same")))
    before = stored(cache, digest).stat()

    add(cache, write(work / "b", kind(b"same")), write(work / "c", kind(b"same")))

    after = stored(cache, digest).stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert len(cache.packs.names()) == (kind is bytes)


@pytest.mark.parametrize("damage", ["truncated", "edited in place"])
@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK])
def test_adding_replaces_an_object_that_is_visibly_damaged(tmp_path, work, link, damage):
    cache = open_cache(tmp_path / "cache", link)
    (digest,) = add(open_cache(tmp_path / "cache"), write(work / "a", loose(b"precious")))
    stored(cache, digest).chmod(0o644)
    stored(cache, digest).write_bytes(b"prec" if damage == "truncated" else loose(b"PRECIOUS"))

    add(cache, write(work / "b", loose(b"precious")))

    assert cache.read(digest) == loose(b"precious")
    assert len(names(cache.root / "quarantine")) == 1


def test_a_file_that_is_changed_while_it_is_read_is_read_again(cache, work, monkeypatch):
    path = write(work / "file", b"first")
    real = os.read
    reads = []

    def read(descriptor, size):
        data = real(descriptor, size)
        if not reads:
            path.write_bytes(b"later")
            os.utime(path, ns=(1, 1))
        reads.append(data)
        return data

    monkeypatch.setattr(sources.os, "read", read)

    (digest,) = add(cache, path)

    monkeypatch.undo()
    assert digest == hash_bytes(b"later")
    assert cache.read(digest) == b"later"


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK])
@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_a_file_that_keeps_changing_is_an_error(tmp_path, work, monkeypatch, link, data):
    cache = open_cache(tmp_path / "cache", link)
    path = write(work / "file", data)
    real = os.fstat
    ticks = iter(range(1, 100))

    def fstat(descriptor):
        os.utime(path, ns=(next(ticks), next(ticks)))
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)

    with pytest.raises(UsageError, match="changed while it was added") as caught:
        add(cache, path)

    monkeypatch.undo()
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert visible(cache) == []
    assert names(cache.root / "tmp") == []


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK])
@pytest.mark.parametrize("size", [3, 5, 1 << 21])
def test_a_file_of_another_size_than_was_said_is_an_error(tmp_path, work, link, size):
    cache = open_cache(tmp_path / "cache", link)
    write(work / "file", b"four")

    with pytest.raises(UsageError, match="changed"), open_batch(cache) as batch:
        batch.add_file(str(work / "file"), size)

    assert visible(cache) == []


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK])
@both_kinds
def test_a_file_that_changes_after_it_was_hashed_does_not_become_the_object(tmp_path, work, link, kind):
    cache = open_cache(tmp_path / "cache", link)
    path = write(work / "file", kind(b"hashed"))

    try:
        with open_batch(cache) as batch:
            digest = batch.add_file(str(path), path.stat().st_size)
            path.write_bytes(kind(b"edited"))
            os.utime(path, ns=(1, 1))
    except UsageError:
        assert (link, kind) == (LinkMode.HARDLINK, loose)
        assert visible(cache) == []
    else:
        assert cache.read(digest) == kind(b"hashed")
    assert path.read_bytes() == kind(b"edited")
    assert os.access(path, os.W_OK)


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.SYMLINK])
@pytest.mark.parametrize("kind", ["folder", "pipe", "symlink", "dangling"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, work, link, kind):
    path = work / "odd"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(write(work / "other", b"x") if kind == "symlink" else "nowhere")

    reason = "regular file" if kind in ("folder", "pipe") else "symbolic link"
    with pytest.raises(UsageError, match=reason), open_batch(open_cache(tmp_path / "cache", link)) as batch:
        batch.add_file(str(path), 1)


def test_a_file_that_is_gone_is_told(cache, work):
    with pytest.raises(OutsideError, match="no such file"), open_batch(cache) as batch:
        batch.add_file(str(work / "gone"), 1)


def test_a_sparse_file_stays_sparse(cache, work):
    path = work / "sparse"
    with path.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(32 << 20)
        stream.write(b"something in the middle")

    (digest,) = add(cache, path)
    cache.place(digest, str(work / "back"), executable=False)

    for copy in (stored(cache, digest), work / "back"):
        assert copy.stat().st_size == 64 << 20
        assert copy.stat().st_blocks * 512 < 8 << 20
    cache.check(digest)


# --- link modes -----------------------------------------------------------------------------------------------------


def test_a_hard_link_shares_the_file(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.HARDLINK)
    path = write(work / "file", LARGE)

    (digest,) = add(cache, path)

    assert path.samefile(cache.object_path(digest))
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_symlink_takes_the_place_of_the_file(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.SYMLINK)
    path = write(work / "file", loose(b"content"))

    (digest,) = add(cache, path)

    assert str(path.readlink()) == cache.object_path(digest)
    assert object_at(bytes(path.readlink())) == digest
    assert path.read_bytes() == loose(b"content")
    assert names(work) == ["file"]


@pytest.mark.parametrize("link", [LinkMode.HARDLINK, LinkMode.SYMLINK])
def test_small_files_are_not_linked_but_packed(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    small, large = write(work / "small", b"x" * (16 << 10)), write(work / "large", b"x" * ((16 << 10) + 1))

    digests = add(cache, small, large)

    assert [cache.packs.find(digest) is not None for digest in digests] == [True, False]
    assert os.access(small, os.W_OK)
    assert not small.is_symlink()
    assert small.stat().st_nlink == 1
    assert large.samefile(cache.object_path(digests[1]))


def test_a_symlink_into_the_cache_can_be_added_again(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.SYMLINK)
    path = write(work / "file", loose(b"content"))
    (digest,) = add(cache, path)

    assert add(cache, path) == [digest]
    stored(cache, digest).unlink()
    with pytest.raises(UsageError), open_batch(cache) as batch:
        batch.add_file(str(path), 70_007)


@pytest.mark.parametrize(
    "path", ["elsewhere", "objects/ab/cd", "objects/ab", "objects", "objects/../objects/ab/cd", ""]
)
def test_other_places_are_no_objects(cache, path):
    assert object_at(f"{cache.root}/{path}".encode()) is None
    assert object_at(path.encode()) is None


@pytest.mark.parametrize("link", [LinkMode.HARDLINK, LinkMode.SYMLINK])
def test_executables_and_files_with_other_names_are_copied(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    program = write(work / "program", loose(b"#!/bin/sh"))
    program.chmod(0o755)
    shared = write(work / "shared", loose(b"two names"))
    (work / "other").hardlink_to(shared)

    digests = add(cache, program, shared)

    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert not program.is_symlink()
    assert stat.S_IMODE((work / "other").stat().st_mode) == 0o644
    assert [stored(cache, digest).stat().st_nlink for digest in digests] == [1, 1]


@pytest.mark.parametrize("link", [LinkMode.HARDLINK, LinkMode.SYMLINK, LinkMode.REFLINK])
def test_a_cache_on_another_file_system_is_copied_to(tmp_path, link):
    with small_disk(tmp_path) as disk:
        cache = open_cache(tmp_path / "cache", link)
        path = write(disk / "file", b"x" * 100_000)

        (digest,) = add(cache, path)

        assert cache.read(digest) == b"x" * 100_000
        assert path.read_bytes() == b"x" * 100_000
        assert path.is_symlink() == (link is LinkMode.SYMLINK)
        if link is not LinkMode.SYMLINK:
            cache.place(digest, str(disk / "back"), executable=False)
            assert (disk / "back").read_bytes() == b"x" * 100_000
            assert os.access(disk / "back", os.W_OK)


def test_two_equal_files_in_one_batch_become_two_symlinks(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.SYMLINK)

    one, two = add(cache, write(work / "one", loose(b"same")), write(work / "two", loose(b"same")))

    assert one == two
    assert (work / "one").is_symlink()
    assert (work / "two").is_symlink()


def test_clones_are_used_where_the_file_system_makes_them(tmp_path, work, monkeypatch):
    cloned = []

    def pretend(source, target, *, mode=0o666, dir_fd=None):
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=dir_fd)
        os.write(descriptor, Path(source).read_bytes())
        os.close(descriptor)
        cloned.append(source)

    monkeypatch.setattr(cache_module, "reflink", pretend)
    monkeypatch.setattr(batch_module, "reflink", pretend)
    cache = open_cache(tmp_path / "cache", LinkMode.REFLINK)
    files = [write(work / "tiny", b"tiny"), write(work / "big", b"x" * 100_000)]

    digests = add(cache, *files)
    for digest in digests:
        assert cache.place(digest, str(work / digest), executable=True) == (work / digest).stat()

    assert cloned == [str(work / "big"), cache.object_path(digests[1])]
    assert [cache.read(digest) for digest in digests] == [b"tiny", b"x" * 100_000]
    assert stat.S_IMODE((work / digests[1]).stat().st_mode) == 0o755


def test_a_file_system_without_clones_is_asked_once(tmp_path, work, monkeypatch):
    asked = []

    def refuse(*_, **__):
        asked.append(1)
        raise OSError(errno.EOPNOTSUPP, "no clones here")

    monkeypatch.setattr(batch_module, "reflink", refuse)
    cache = open_cache(tmp_path / "cache", LinkMode.REFLINK)

    add(cache, *[write(work / str(number), b"x" * 100_000 + str(number).encode()) for number in range(3)])

    assert len(asked) == 1


# --- placing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("data", [b"", b"content", b"x" * 70_000, LARGE], ids=["empty", "small", "70 kB", "5 MiB"])
@pytest.mark.parametrize("executable", [False, True])
def test_what_was_added_comes_back(tmp_path, work, link, data, executable):
    cache = open_cache(tmp_path / "cache", link)
    (digest,) = add(open_cache(tmp_path / "cache"), write(work / "file", data))

    cache.place(digest, str(work / "back"), executable=executable)

    back = work / "back"
    assert back.read_bytes() == data
    assert os.access(back, os.X_OK) == executable
    assert names(work) == ["back", "file"]
    linked = link in (LinkMode.HARDLINK, LinkMode.SYMLINK) and not executable and len(data) > 16 << 10
    assert back.samefile(stored(cache, digest)) == linked
    if not linked:
        assert stat.S_IMODE(back.stat().st_mode) == (0o755 if executable else 0o644)


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("size", [7, 70_000, len(LARGE)])
@pytest.mark.parametrize("executable", [False, True])
def test_what_is_returned_is_the_stat_of_what_was_placed(tmp_path, work, link, size, executable):
    cache = open_cache(tmp_path / "cache", link)
    (digest,) = add(open_cache(tmp_path / "cache"), write(work / "file", LARGE[:size]))

    started = time.time_ns()
    placed = cache.place(digest, str(work / "back"), executable=executable, size=size)

    assert placed == (work / "back").stat()
    if not (work / "back").samefile(stored(cache, digest)):
        # The kernel's own stamp would be of its last tick, and so before the start.
        assert started <= placed.st_mtime_ns <= time.time_ns()


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("how", ["written", "replaced", "deleted"])
@both_kinds
def test_no_stat_of_what_somebody_else_was_at(tmp_path, work, monkeypatch, link, how, kind):
    """Many times: the writing may fall into the same tick of the file system's clock as ours."""
    cache = open_cache(tmp_path / "cache", link, Durability.NONE)
    target = work / "target"
    real = os.rename
    attempts = []

    def rename(source, goal, **options):
        real(source, goal, **options)
        if goal != str(target):
            return
        if how == "written":
            target.chmod(0o644)
            target.write_bytes(kind(b"%04d" % len(attempts)))
        elif how == "replaced":
            real(write(work / "other", kind(b"%04d" % len(attempts))), target)
        else:
            target.unlink()
        attempts.append(1)

    monkeypatch.setattr(os, "rename", rename)
    for number in range(40):
        with open_batch(cache) as batch:
            digest = batch.add_bytes(kind(b"%04d" % (1000 + number)))
        old = stored(cache, digest).stat().st_mtime_ns - 10**9
        os.utime(stored(cache, digest), ns=(old, old))
        placed = cache.place(digest, str(target), executable=False, replace=True)

        assert placed is None, f"attempt {number}"
    assert len(attempts) == 40


@pytest.mark.parametrize("link", LinkMode)
def test_a_target_may_be_named_relative_to_an_open_folder(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    with open_batch(cache) as batch:
        digest = batch.add_bytes(b"x" * 70_000)
    folder = os.open(work, os.O_RDONLY)
    try:
        cache.place(digest, "name", executable=False, dir_fd=folder)
    finally:
        os.close(folder)

    assert (work / "name").read_bytes() == b"x" * 70_000
    assert names(work) == ["name"]


@pytest.mark.parametrize("link", LinkMode)
@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "dangling"])
@pytest.mark.parametrize("new", [b"new", loose(b"new")], ids=["packed", "loose"])
def test_what_is_in_the_way_stays(tmp_path, work, link, kind, new):
    cache = open_cache(tmp_path / "cache", link)
    with open_batch(cache) as batch:
        digest = batch.add_bytes(new)
    target = work / "target"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_bytes(b"precious")
    else:
        target.symlink_to(write(tmp_path / "precious", b"precious") if kind == "symlink" else "nowhere")

    with pytest.raises(UsageError, match="in the way"):
        cache.place(digest, str(target), executable=False)

    assert names(work) == ["target"]
    if kind in ("file", "symlink"):
        assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("link", LinkMode)
@both_kinds
def test_what_is_in_the_way_can_be_replaced(tmp_path, work, link, kind):
    cache = open_cache(tmp_path / "cache", link)
    with open_batch(cache) as batch:
        digest = batch.add_bytes(kind(b"new"))
    write(tmp_path / "precious", b"precious")
    (work / "target").symlink_to(tmp_path / "precious")

    for _ in range(2):  # the second time it is there already, perhaps as the very same file
        cache.place(digest, str(work / "target"), executable=False, replace=True)

    assert (work / "target").read_bytes() == kind(b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert names(work) == ["target"]


@both_kinds
def test_a_folder_is_never_replaced(cache, work, kind):
    with open_batch(cache) as batch:
        digest = batch.add_bytes(kind(b"new"))
    (work / "target").mkdir()

    with pytest.raises(OutsideError, match="cannot write"):
        cache.place(digest, str(work / "target"), executable=False, replace=True)

    assert names(work) == ["target"]


@pytest.mark.parametrize("link", LinkMode)
def test_an_absent_object_is_not_placed(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    absent = hash_bytes(b"absent")

    with pytest.raises(MissingObject) as caught:
        cache.place(absent, str(work / "target"), executable=False)

    assert caught.value.message == f"object `{cut(absent)}` is not in the cache"
    assert caught.value.hint == "`mlx fetch` brings it from a remote"
    assert names(work) == []


@both_kinds
def test_a_folder_that_is_not_there_is_told(cache, work, kind):
    with open_batch(cache) as batch:
        digest = batch.add_bytes(kind(b"x"))

    with pytest.raises(OutsideError, match="no such file or folder"):
        cache.place(digest, str(work / "absent" / "target"), executable=False)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"some content", loose(b"some content"), LARGE], ids=["packed", "loose", "large"])
@pytest.mark.parametrize("use", ["read", "check", "place", "place executable"])
def test_a_flipped_bit_is_found_named_and_quarantined(cache, work, data, use):
    digest, other = add(cache, write(work / "file", data), write(work / "other", b"another"))
    packed = cache.packs.find(digest) is not None
    wrong = flip(cache, digest)
    file = stored(cache, digest).read_bytes()

    uses = {
        "read": cache.read,
        "check": cache.check,
        "place": partial(cache.place, target=str(work / "target"), executable=False),
        "place executable": partial(cache.place, target=str(work / "target"), executable=True),
    }
    with pytest.raises(CorruptObject) as caught:
        uses[use](digest)

    (moved,) = (cache.root / "quarantine").iterdir()
    why = "its record is not what was written" if packed else f"its bytes hash to `{hash_bytes(wrong)[:19]}`"
    assert caught.value.message == f"object `{digest[:19]}` in the cache is damaged: {why}"
    assert caught.value.hint == "it is in `quarantine/` of the cache now; `mlx pull` brings a good one from a remote"
    assert moved.read_bytes() == file
    assert cache.missing([digest, other]) == {digest}
    assert cache.read(other) == b"another"
    assert names(work) == ["file", "other"]
    assert add(cache, work / "file") == [digest]
    assert cache.read(digest) == data


@pytest.mark.parametrize("link", [LinkMode.HARDLINK, LinkMode.SYMLINK])
def test_a_linked_object_that_was_edited_is_not_placed(tmp_path, work, link):
    cache = open_cache(tmp_path / "cache", link)
    (digest,) = add(open_cache(tmp_path / "cache"), write(work / "file", loose(b"content")))
    stored(cache, digest).chmod(0o644)
    stored(cache, digest).write_bytes(loose(b"CONTENT"))

    with pytest.raises(CorruptObject):
        cache.place(digest, str(work / "target"), executable=False)

    assert names(work) == ["file"]


def test_a_linked_object_of_another_size_is_not_placed(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.HARDLINK)
    (digest,) = add(open_cache(tmp_path / "cache"), write(work / "file", loose(b"content")))
    stored(cache, digest).chmod(0o644)
    stored(cache, digest).write_bytes(loose(b"content") + b" and more")
    stored(cache, digest).chmod(0o444)

    with pytest.raises(CorruptObject):
        cache.place(digest, str(work / "target"), executable=False, size=70_007)


def test_an_object_that_is_only_writable_is_served(tmp_path, work):
    cache = open_cache(tmp_path / "cache", LinkMode.HARDLINK)
    (digest,) = add(cache, write(work / "file", loose(b"content")))
    stored(cache, digest).chmod(0o644)

    cache.place(digest, str(work / "target"), executable=False, size=70_007)

    assert (work / "target").read_bytes() == loose(b"content")


@both_kinds
def test_damage_twice_keeps_both(cache, work, kind):
    for number in range(2):
        (digest,) = add(cache, write(work / f"file{number}", kind(b"content")))
        flip(cache, digest)
        with pytest.raises(CorruptObject):
            cache.read(digest)

    assert len(names(cache.root / "quarantine")) == 2


@both_kinds
def test_when_damage_cannot_be_moved_the_hint_says_so(cache, work, kind):
    (digest,) = add(cache, write(work / "file", kind(b"content")))
    flip(cache, digest)
    (cache.root / "quarantine").write_bytes(b"in the way")

    with pytest.raises(CorruptObject) as caught:
        cache.read(digest)

    assert "could not be moved" in caught.value.hint
    assert str(stored(cache, digest)) in caught.value.hint


# --- crashes and crowds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK, LinkMode.SYMLINK])
def test_a_crash_anywhere_in_a_batch_leaves_whole_objects_and_a_rerun_completes(tmp_path, link):
    contents = {
        "small": b"small" * 100,
        "twin": b"small" * 100,
        "other": loose(b"other"),
        "large": LARGE[: (1 << 20) + 5],
    }
    tree = b"a tree that names them"

    def batch_of(cache, work):
        with open_batch(cache) as batch:
            for name, data in contents.items():
                path = work / name
                if not path.is_symlink():
                    batch.add_file(str(path), len(data))
            batch.add_bytes(tree)

    root, turn = tmp_path / "0", 0

    def prepare(number):
        nonlocal root
        root = tmp_path / str(number)
        (root / "work").mkdir(parents=True)
        for name, data in contents.items():
            (root / "work" / name).write_bytes(data)

    prepare(turn)
    outcomes = set()
    for _ in crashes(lambda: batch_of(open_cache(root / "cache", link), root / "work")):
        cache = open_cache(root / "cache", link)
        for digest in cache.list():
            cache.check(digest)
        if not cache.missing([hash_bytes(tree)]):  # objects appear in order: what a tree names is there before it
            assert cache.missing([hash_bytes(data) for data in contents.values()]) == set()
        outcomes.add(len(visible(cache)))
        for name, data in contents.items():
            assert (root / "work" / name).read_bytes() == data

        batch_of(open_cache(root / "cache", link, Durability.NONE), root / "work")

        assert cache.missing([hash_bytes(data) for data in (*contents.values(), tree)]) == set()
        with open_batch(cache) as batch:
            batch.add_bytes(b"whoever writes next removes what was left")
        assert names(cache.root / "tmp") == []
        assert set(names(root / "work")) >= set(contents)
        left = set(names(root / "work")) - set(contents)
        assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
        turn += 1
        prepare(turn)
    assert outcomes == {0, 1, 2, 4}


def test_a_crash_anywhere_while_a_run_is_recorded_leaves_nothing_behind(cache):
    cache.write_run("ab", b"old" * 1000)

    for _ in crashes(lambda: cache.write_run("ab", b"new" * 1000)):
        assert cache.read_run("ab") in (b"old" * 1000, b"new" * 1000)
        cache.write_run("ab", b"old" * 1000)
        assert (names(cache.root), names(cache.root / "runs"), names(cache.root / "tmp")) == (
            ["runs", "tmp"],
            ["ab.yaml"],
            [],
        )


@pytest.mark.parametrize("link", [LinkMode.COPY, LinkMode.HARDLINK, LinkMode.SYMLINK])
@pytest.mark.parametrize("replace", [False, True])
@both_kinds
def test_a_crash_anywhere_while_placing_leaves_the_old_or_the_new(tmp_path, work, link, replace, kind):
    cache = open_cache(tmp_path / "cache", link)
    with open_batch(cache) as batch:
        digest = batch.add_bytes(kind(b"new" * 1000))
    target = work / "target"
    allowed = {kind(b"new" * 1000), b"old" if replace else None}

    def reset():
        target.unlink(missing_ok=True)
        if replace:
            target.write_bytes(b"old")

    reset()
    for _ in crashes(lambda: cache.place(digest, str(target), executable=False, replace=replace)):
        assert (target.read_bytes() if target.exists() else None) in allowed
        assert all(name == "target" or name.startswith(TEMPORARY_PREFIX) for name in names(work))
        reset()


def test_a_killed_process_is_cleaned_up_after_and_a_living_one_is_not(cache):
    def fill(batch):
        for number in range(5):
            batch.add_bytes(str(number).encode())

    def leave():
        with open_batch(cache) as batch:
            fill(batch)
            os.kill(os.getpid(), 9)

    with open_batch(cache) as living:
        fill(living)
        kept = set(names(cache.root / "tmp"))
        assert killed_at(leave, 10_000)
        assert set(names(cache.root / "tmp")) > kept

        with open_batch(cache) as batch:
            batch.add_bytes(b"next")

        assert set(names(cache.root / "tmp")) == kept
    assert len(visible(cache)) == 6
    assert names(cache.root / "tmp") == []


def test_several_processes_add_the_same_files_at_once(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from mlops_cli.store.batches import open_batch\n"
        "from mlops_cli.store.cache import Cache\n"
        "from mlops_cli.store.links import LinkMode\n"
        "from mlops_cli.store.objects import Durability\n"
        "cache = Cache(pathlib.Path(sys.argv[1]), link=LinkMode.COPY, durability=Durability.BATCH)\n"
        "for turn in range(5):\n"
        "    with open_batch(cache) as batch:\n"
        "        for number in range(100):\n"
        "            batch.add_bytes(b'%d' % (number + 50 * turn) + bytes(70_000 * (number % 10 == 0)))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "cache"]) for _ in range(4)]

    assert [process.wait() for process in running] == [0] * 4

    cache = open_cache(tmp_path / "cache")
    digests = visible(cache)
    contents = (b"%d" % number + bytes(70_000 * (number % 10 == 0)) for number in range(300))
    assert digests == sorted(map(hash_bytes, contents))
    for digest in digests:
        cache.check(digest)
    assert names(cache.root / "tmp") == []


def test_threads_may_place_from_one_cache(cache, work):
    with open_batch(cache) as batch:
        digests = [batch.add_bytes(str(number).encode()) for number in range(50)]

    def place(turn):
        for number, digest in enumerate(digests):
            cache.place(digest, str(work / f"{turn}-{number}"), executable=False)

    threads = [threading.Thread(target=place, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(names(work)) == 200


def test_an_empty_folder_of_objects_may_vanish_meanwhile(cache):
    with open_batch(cache) as batch:
        first = batch.add_bytes(loose(b"first"))
    cache.delete([first])
    stored(cache, first).parent.rmdir()

    with open_batch(cache) as batch:
        batch.add_bytes(loose(b"first"))

    assert cache.read(first) == loose(b"first")


# --- a system that refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2 << 20, 8 << 20, 4096], ids=["one file", "two threads", "many small"])
def test_a_full_disk_leaves_nothing_visible_and_the_next_add_works(tmp_path, work, size):
    with small_disk(tmp_path) as disk:
        cache = open_cache(disk / "cache")
        free = os.statvfs(disk).f_bavail
        number = (2 << 20) // size or 1
        files = [write(work / str(index), os.urandom(size)) for index in range(number)]

        with pytest.raises(OutsideError) as caught:
            add(cache, *files)

        assert "the disk is full" in caught.value.message
        assert str(cache.root) in caught.value.message
        assert caught.value.hint
        assert visible(cache) == []
        assert names(cache.root / "tmp") == []
        assert os.statvfs(disk).f_bavail > free - 64
        (digest,) = add(cache, write(work / "fits", b"fits"))
        assert cache.read(digest) == b"fits"


@pytest.mark.parametrize("size", [900 << 10, 5 << 20])
def test_a_full_disk_leaves_nothing_where_a_file_was_to_be_placed(tmp_path, size):
    with small_disk(tmp_path) as disk:
        cache = open_cache(tmp_path / "cache")
        with open_batch(cache) as batch:
            digest = batch.add_bytes(os.urandom(size))
        write(disk / "ballast", b"x" * (500 << 10))

        with pytest.raises(OutsideError, match="the disk is full"):
            cache.place(digest, str(disk / "target"), executable=False)

        assert names(disk) == ["ballast"]


@contextmanager
def open_files_limited_to(more):
    """Let this process open only `more` files beyond those it has."""
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_few_files_are_open_at_any_time(cache, work):
    files = [write(work / str(number), str(number).encode()) for number in range(200)]
    large = [write(work / f"large{number}", LARGE + str(number).encode()) for number in range(3)]

    with open_files_limited_to(6):
        digests = add(cache, *files, *large)
        for number, digest in enumerate(digests):
            cache.place(digest, str(work / f"back{number}"), executable=False)

    assert len(visible(cache)) == 203


def test_too_many_open_files_is_told(cache, work):
    write(work / "file", b"x")
    hogs = []

    with open_files_limited_to(4):
        with suppress(OSError):
            while True:
                hogs.append(os.dup(0))
        with pytest.raises(OutsideError, match="too many open files") as caught, open_batch(cache) as batch:
            batch.add_file(str(work / "file"), 1)
        for descriptor in hogs:
            os.close(descriptor)

    assert "ulimit" in caught.value.hint
