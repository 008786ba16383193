"""Every flipped bit of a store is found, what is good survives, and a part of the store a day comes round to all."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from random import Random

import pytest

from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.cache import Cache, Durability
from mlops_cli.store.checkup import CHECKED, Scope, check_store
from mlops_cli.store.links import LinkMode
from mlops_cli.store.pack_format import FILE_HEADER, RECORD_SIZE

LARGE = os.urandom(200_000)
SMALL = [f"small {number} ".encode() * (number + 1) for number in range(40)]


def open_cache(root: Path) -> Cache:
    return Cache(root, link=LinkMode.COPY, durability=Durability.NONE)


def store(cache: Cache, *objects: bytes) -> list[Digest]:
    cache.write((hash_bytes(data), lambda data=data: BytesIO(data)) for data in objects)  # type: ignore[misc]
    return [hash_bytes(data) for data in objects]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a cache with one pack of many small objects, and one large object."""
    store(open_cache(tmp_path / "cache"), *SMALL, LARGE)
    return tmp_path / "cache"


def pack_of(root: Path) -> Path:
    (pack,) = (root / "packs").iterdir()
    return pack


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def held(root: Path) -> set[bytes]:
    cache = open_cache(root)
    return {cache.read(digest, limit=None) for digest in cache.list()}


def test_a_store_as_it_was_written_is_well(root: Path) -> None:
    found = check_store(open_cache(root))

    assert (found.damaged, found.files, found.strays, found.leftovers) == ((), (), (), 0)
    assert (found.complete, found.objects) == (True, 41)
    assert found.bytes == sum(map(len, SMALL)) + len(LARGE)


def test_an_empty_store_is_well(tmp_path: Path) -> None:
    found = check_store(open_cache(tmp_path / "nothing"))

    assert (found.complete, found.objects, found.damaged) == (True, 0, ())
    assert not (tmp_path / "nothing").exists()


def test_a_flipped_bit_in_a_loose_object_is_found(root: Path) -> None:
    cache = open_cache(root)
    digest = hash_bytes(LARGE)
    flip(Path(cache.object_path(digest)), 100_000)

    (damaged,) = check_store(cache).damaged

    assert damaged.digest == digest
    assert damaged.why.startswith("its bytes hash to `blake3:")
    assert damaged.moved is not None
    assert (root / damaged.moved).read_bytes() != LARGE
    assert cache.missing([digest]) == {digest}
    assert check_store(open_cache(root)).damaged == ()


def test_a_flipped_bit_in_the_bytes_of_a_record_is_found(root: Path) -> None:
    pack = pack_of(root)
    before = pack.read_bytes()
    at = before.index(b"small 3 ")
    flip(pack, at)

    found = check_store(open_cache(root))

    (damaged,) = found.damaged
    assert damaged.digest == hash_bytes(SMALL[3])
    assert damaged.moved is not None
    assert len((root / damaged.moved).read_bytes()) == len(before)
    assert [file.rebuilt for file in found.files] == [True]
    assert held(root) == {*SMALL, LARGE} - {SMALL[3]}
    assert check_store(open_cache(root)).damaged == ()


@pytest.mark.parametrize("place", ["file", "record", "digest", "footer", "trailer", "padding"])
def test_a_flipped_bit_anywhere_else_in_a_pack_is_found(place: str, root: Path) -> None:
    pack = pack_of(root)
    size = pack.stat().st_size
    first = len(FILE_HEADER)
    offsets = {"file": 1, "record": first + 1, "digest": first + 20, "footer": size - 100, "trailer": size - 20}
    flip(pack, offsets.get(place, size - 1))

    found = check_store(open_cache(root))

    (file,) = found.files
    assert (file.file, file.rebuilt) == (f"packs/{pack.name}", True)
    lost = {SMALL[0]} if place in ("record", "digest") else set()
    assert {damaged.digest for damaged in found.damaged} == set(map(hash_bytes, lost))
    assert held(root) == {*SMALL, LARGE} - lost
    again = check_store(open_cache(root))
    assert (again.damaged, again.files) == ((), ())


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_at_random_is_found(seed: int, root: Path) -> None:
    pack = pack_of(root)
    flip(pack, Random(seed).randrange(pack.stat().st_size))

    found = check_store(open_cache(root))

    assert found.files
    assert len(found.damaged) <= 1
    assert len(held(root)) == 41 - len(found.damaged)


def test_a_pack_cut_short_keeps_what_is_whole(root: Path) -> None:
    pack = pack_of(root)
    data = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(data[: data.index(SMALL[20]) + 3])

    found = check_store(open_cache(root))

    assert [file.why for file in found.files] == ["its end is missing"]
    assert held(root) == {*SMALL[:20], LARGE}


@pytest.mark.parametrize("at", [0, 60, -3])
def test_a_damaged_segment_is_made_again(at: int, root: Path) -> None:
    cache = open_cache(root)
    with cache.scratch() as scratch, cache.packs.replacing(wait=True):
        cache.packs.reindex(scratch.next_path)
    (segment,) = (root / "index").iterdir()
    whole = segment.read_bytes()
    flip(segment, at)

    found = check_store(open_cache(root))

    assert [(file.file, file.rebuilt) for file in found.files] == [(f"index/{segment.name}", True)]
    assert segment.read_bytes() == whole
    assert found.damaged == ()


def test_a_dry_run_changes_nothing(root: Path) -> None:
    cache = open_cache(root)
    flip(Path(cache.object_path(hash_bytes(LARGE))), 5)
    flip(pack_of(root), RECORD_SIZE + 20)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    found = check_store(cache, dry_run=True)

    assert {damaged.moved for damaged in found.damaged} == {None}
    assert len(found.damaged) == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_what_killed_commands_left_is_removed(root: Path) -> None:
    folder = root / "tmp" / "1.abc"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"half")
    (root / "tmp" / "1.abc.lock").touch()

    assert check_store(open_cache(root)).leftovers == 4
    assert not folder.exists()


def test_a_file_that_is_no_object_is_told_and_stays(root: Path) -> None:
    (root / "objects" / "aa").mkdir(exist_ok=True)
    (root / "objects" / "aa" / "notes.txt").write_text("mine")

    assert check_store(open_cache(root)).strays == ("objects/aa/notes.txt",)
    assert (root / "objects" / "aa" / "notes.txt").exists()


def test_what_a_writer_is_at_is_no_leftover(root: Path) -> None:
    cache = open_cache(root)
    with cache.scratch() as scratch:
        scratch.write(b"on its way")

        assert check_store(cache).leftovers == 0


def test_a_dry_run_tells_what_killed_commands_left(root: Path) -> None:
    folder = root / "tmp" / "1.abc"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"half")
    (root / "tmp" / "1.abc.lock").touch()

    assert check_store(open_cache(root), dry_run=True).leftovers == 4
    assert folder.exists()


def test_a_pipe_among_the_objects_is_told_and_not_waited_for(root: Path) -> None:
    (root / "objects" / "aa").mkdir(exist_ok=True)
    os.mkfifo(root / "objects" / "aa" / ("0" * 62))

    assert check_store(open_cache(root)).strays == (f"objects/aa/{'0' * 62}",)


def test_an_object_that_nobody_may_open_is_told_and_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(open_cache(root).object_path(hash_bytes(LARGE)))
    opened = os.open

    def refuse(name: str, *args: int, **more: int) -> int:
        if name == str(path):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, *args, **more)

    monkeypatch.setattr(os, "open", refuse)

    (damaged,) = check_store(open_cache(root)).damaged

    assert damaged.why == "it cannot be read: permission denied"
    assert damaged.moved is None
    assert path.exists()


def test_a_sample_comes_round_to_everything(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for number in range(8):
        store(open_cache(root), os.urandom(100_000) + bytes([number]))
    units = len(list((root / "objects").iterdir()))
    rounds = 0
    for day in range(units):
        found = check_store(open_cache(root), Scope(percent=1, now=lambda day=day: 1000 + day))  # type: ignore[misc]
        assert found.units == 1
        rounds += found.objects

    assert rounds == 8
    assert (root / CHECKED).is_file()


def test_nothing_is_begun_after_the_time_is_over(root: Path) -> None:
    ticks = iter([0.0, 0.5, 2.0])

    found = check_store(open_cache(root), Scope(seconds=1, clock=lambda: next(ticks)))

    assert (found.units, found.of_units, found.complete) == (1, 2, False)


def test_a_file_that_cannot_be_moved_is_told(root: Path) -> None:
    (root / "quarantine").write_text("in the way")
    cache = open_cache(root)
    flip(Path(cache.object_path(hash_bytes(LARGE))), 5)

    (damaged,) = check_store(cache).damaged

    assert damaged.moved is None
