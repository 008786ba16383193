"""The packs of a store: whatever happens to them, an object that is whole somewhere is found."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes
from mlops_cli.store import pack_segment, packs
from mlops_cli.store.pack_format import FILE_HEADER, RECORD_SIZE, ROW_SIZE, TRAILER_SIZE, PackError
from mlops_cli.store.pack_writer import Packer
from mlops_cli.store.packs import MANY_BARE, MANY_SMALL, Packs
from mlops_cli.store.scratch import Scratch
from tests.crashing import crashes


@pytest.fixture
def root(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def scratch(root):
    scratch = Scratch(str(root))
    yield scratch
    scratch.close()


def publish(root, scratch, *contents, durable=False):
    """Publish one pack; returns its name."""
    packer = Packer(scratch.next_path)
    for data in contents:
        packer.add(hash_bytes(data), data)
    sealed = packer.seal()
    Packs(str(root)).publish(sealed, durable=durable)
    return sealed[0][1]


def texts(start, stop):
    return [b"object %d" % number for number in range(start, stop)]


def readable(root, contents):
    """Return those of `contents` that a fresh look finds and reads."""
    store = Packs(str(root))
    found = []
    for data in contents:
        digest = hash_bytes(data)
        try:
            if store.read(digest) == data or (store.doubt() and store.read(digest) == data):
                found.append(data)
        except PackError:
            continue
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def poke(path, at, new=None):
    """Flip a bit of a file, or end it there."""
    data = bytearray(path.read_bytes())
    if new is None:
        data[at] ^= 1
    else:
        data[at:] = new
    path.chmod(0o644)
    path.write_bytes(data)


def index(root, scratch):
    store = Packs(str(root))
    with store.replacing(wait=True):
        store.reindex(scratch.next_path)


# --- finding --------------------------------------------------------------------------------------------------------


def test_a_store_without_packs_has_nothing_and_touches_nothing(root):
    store = Packs(str(root))

    assert store.find(hash_bytes(b"x")) is None
    assert store.read(hash_bytes(b"x")) is None
    assert store.names() == list(store.rows()) == []
    assert names(root) == []


def test_what_was_published_is_read(root, scratch):
    name = publish(root, scratch, *texts(0, 50), durable=True)
    store = Packs(str(root))

    assert store.names() == [name]
    assert [store.read(hash_bytes(data)) for data in texts(0, 50)] == texts(0, 50)
    assert sorted(digest for digest, _ in store.rows()) == sorted(map(hash_bytes, texts(0, 50)))
    assert store.is_sound(name)
    assert store.damaged == {}


def test_packs_of_others_are_seen_by_looking_again(root, scratch):
    publish(root, scratch, b"first")
    store = Packs(str(root))
    assert store.read(hash_bytes(b"second")) is None

    publish(root, scratch, b"second")

    assert store.find(hash_bytes(b"second")) is None
    assert store.look_again()
    assert store.find(hash_bytes(b"second"))
    assert not store.look_again()


def test_a_pack_that_comes_in_the_tick_of_the_last_look_is_seen(root, scratch):
    publish(root, scratch, b"first")
    stamp = os.stat(root / "packs").st_mtime_ns
    store = Packs(str(root))
    store.find(hash_bytes(b"first"))

    publish(root, scratch, b"second")
    os.utime(root / "packs", ns=(stamp, stamp))

    assert store.read(hash_bytes(b"second")) == b"second"


def test_a_reader_whose_pack_was_replaced_looks_again(root, scratch):
    old = [publish(root, scratch, *texts(10 * number, 10 * number + 10)) for number in range(3)]
    reader = Packs(str(root))
    assert reader.find(hash_bytes(b"object 5"))

    other = Packs(str(root))
    with other.replacing(wait=True):
        other.rewrite(old, scratch.next_path, durable=False)

    assert len(other.names()) == 1
    assert [reader.read(hash_bytes(data)) for data in texts(0, 30)] == texts(0, 30)


def test_what_is_not_named_like_a_pack_is_passed_over(root, scratch):
    publish(root, scratch, b"x")
    index(root, scratch)
    for odd in ("README.pack", f"{'A' * 64}.pack", f"{'0' * 63}.pack", "0" * 64, f"{'0' * 64}.pack.tmp"):
        (root / "packs" / odd).write_bytes(b"odd")
    (root / "index" / "odd.idx").write_bytes(b"odd")

    store = Packs(str(root))

    assert len(store.names()) == 1
    assert store.read(hash_bytes(b"x")) == b"x"
    with store.replacing(wait=True):
        store.reindex(scratch.next_path)
    assert store.damaged == {}


@pytest.mark.parametrize("kind", ["empty", "short", "folder", "pipe", "dangling", "huge"])
def test_an_odd_file_does_not_keep_others_from_being_read(root, scratch, kind):
    publish(root, scratch, b"x")
    index(root, scratch)
    for path in (root / "packs" / f"{'0' * 64}.pack", root / "index" / f"{'0' * 64}.idx"):
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "dangling":
            path.symlink_to("nowhere")
        else:
            path.write_bytes(b"short" if kind == "short" else b"")
            if kind == "huge":
                os.truncate(path, 1 << 40)

    store = Packs(str(root))

    assert store.read(hash_bytes(b"x")) == b"x"
    assert str(root / "packs" / f"{'0' * 64}.pack") in store.damaged
    publish(root, scratch, b"y")
    assert readable(root, [b"x", b"y"]) == [b"x", b"y"]


def test_few_files_are_held_open(root, scratch):
    for number in range(100):
        publish(root, scratch, b"%d" % number)
    gc.collect()  # files of earlier tests are closed now, and not while this one counts
    before = len(os.listdir("/proc/self/fd"))
    store = Packs(str(root))

    for number in range(100):
        assert store.read(hash_bytes(b"%d" % number)) == b"%d" % number

    assert len(os.listdir("/proc/self/fd")) - before <= 34
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def test_when_no_more_files_can_be_opened_others_are_closed(root, scratch, monkeypatch):
    for number in range(5):
        publish(root, scratch, b"%d" % number)
    index(root, scratch)
    real, left = os.open, [2]
    store = Packs(str(root))
    store.find(hash_bytes(b"0"))

    def limited(path, flags, *rest, **options):
        if str(path).endswith(".pack") and len(store._files) >= left[0]:
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", limited)

    assert [store.read(hash_bytes(b"%d" % number)) for number in range(5)] == [b"%d" % n for n in range(5)]


def test_an_index_is_opened_though_too_many_files_are(root, scratch, monkeypatch):
    for number in range(3):
        publish(root, scratch, b"%d" % number)
    store = Packs(str(root))
    assert store.read(hash_bytes(b"0")) == b"0"
    index(root, scratch)
    real = os.open

    def limited(path, flags, *rest, **options):
        if str(path).endswith(".idx") and store._files:
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", limited)
    store.forget()

    assert [store.read(hash_bytes(b"%d" % number)) for number in range(3)] == [b"0", b"1", b"2"]
    assert store.damaged == {}


# --- gathering ------------------------------------------------------------------------------------------------------


def test_many_small_packs_become_one_and_get_an_index(root, scratch):
    contents = texts(0, MANY_SMALL)
    for number, data in enumerate(contents):
        publish(root, scratch, data, b"in all of them", b"pair %d" % (number // 2))
        Packs(str(root)).tidy(scratch.next_path, durable=True)

    store = Packs(str(root))
    assert len(store.names()) == 1
    assert len(names(root / "index")) == 1
    assert readable(root, contents) == contents
    assert len(list(store.rows())) == MANY_SMALL + 1 + MANY_SMALL // 2


def test_there_are_few_segments_however_many_packs(root, scratch, monkeypatch):
    monkeypatch.setattr(packs, "SMALL_PACK", 0)
    for number in range(120):
        publish(root, scratch, *texts(5 * number, 5 * number + 5))
        Packs(str(root)).tidy(scratch.next_path, durable=False)
        assert len(Packs(str(root))._bare()) < MANY_BARE

    assert len(names(root / "packs")) == 120
    assert len(names(root / "index")) <= 8
    assert readable(root, texts(0, 600)) == texts(0, 600)


def test_the_index_made_anew_is_the_index(root, scratch):
    for number in range(6):
        publish(root, scratch, *texts(5 * number, 5 * number + 7))
    index(root, scratch)
    ((name,), before) = names(root / "index"), dict(Packs(str(root)).rows())
    data = (root / "index" / name).read_bytes()
    (root / "index" / name).unlink()

    assert {digest for digest, _ in Packs(str(root)).rows()} == set(before)
    index(root, scratch)

    assert names(root / "index") == [name]
    assert (root / "index" / name).read_bytes() == data
    index(root, scratch)
    assert names(root / "index") == [name]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=12), min_size=1, max_size=5))
def test_an_index_made_from_footers_or_from_records_is_the_index(parts, tmp_path_factory):
    root = tmp_path_factory.mktemp("property")
    scratch = Scratch(str(root))
    packed = {publish(root, scratch, *contents): contents for contents in parts}
    index(root, scratch)
    (segment,) = (root / "index").iterdir()
    data, rows = segment.read_bytes(), dict(Packs(str(root)).rows())
    assert rows.keys() == {hash_bytes(content) for contents in parts for content in contents}

    segment.unlink()
    from_footers = dict(Packs(str(root)).rows())
    index(root, scratch)
    assert [path.read_bytes() for path in (root / "index").iterdir()] == [data]
    segment.unlink()
    for name, contents in packed.items():
        pack = root / "packs" / f"{name}.pack"
        poke(pack, pack.stat().st_size - TRAILER_SIZE - ROW_SIZE * len(set(contents)), b"")
    from_records = dict(Packs(str(root)).rows())
    scratch.close()

    for found in (from_footers, from_records):
        assert found.keys() == rows.keys()
        assert all(found[digest][1:] == place[1:] or place.pack != found[digest].pack for digest, place in rows.items())


def test_whoever_gathers_keeps_others_from_it(root, scratch):
    for number in range(MANY_SMALL):
        publish(root, scratch, b"%d" % number)
    holder = Packs(str(root))
    with holder.replacing(wait=True) as mine:
        assert mine
        Packs(str(root)).tidy(scratch.next_path, durable=False)
        with Packs(str(root)).replacing(wait=False) as too:
            assert not too

    assert len(names(root / "packs")) == MANY_SMALL


def test_a_file_system_without_locks_gathers_all_the_same(root, scratch, monkeypatch):
    for number in range(MANY_SMALL):
        publish(root, scratch, b"%d" % number)

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(packs.fcntl, "flock", refuse)
    Packs(str(root)).tidy(scratch.next_path, durable=False)

    assert len(names(root / "packs")) == 1


def test_gathering_leaves_a_damaged_pack_alone(root, scratch):
    bad = publish(root, scratch, b"bad" * 30)
    poke(root / "packs" / f"{bad}.pack", len(FILE_HEADER) + RECORD_SIZE)
    contents = texts(0, MANY_SMALL)
    for data in contents:
        publish(root, scratch, data)
    store = Packs(str(root))

    store.tidy(scratch.next_path, durable=False)

    assert f"{bad}.pack" in names(root / "packs")
    assert len(names(root / "packs")) == 2
    assert store.damaged == {store.path_of(bad): "it is not what was written"}
    with pytest.raises(PackError):
        store.read(hash_bytes(b"bad" * 30))
    assert readable(root, contents) == contents


def test_what_is_not_wanted_is_left_out(root, scratch):
    name = publish(root, scratch, *texts(0, 10))
    unwanted = {hash_bytes(data) for data in texts(0, 5)}
    store = Packs(str(root))
    disposed = []

    with store.replacing(wait=True):
        store.rewrite(
            [name, "0" * 64],
            scratch.next_path,
            durable=True,
            keep=lambda digest: digest not in unwanted,
            dispose=lambda path: (disposed.append(path), os.unlink(path)),
        )

    assert disposed == [store.path_of(name)]
    assert readable(root, texts(0, 10)) == texts(5, 10)
    assert store.find(hash_bytes(b"object 1")) is None


def test_a_pack_that_would_come_out_the_same_stays(root, scratch):
    name = publish(root, scratch, *texts(0, 10))
    store = Packs(str(root))
    with store.replacing(wait=True):
        store.rewrite([name], scratch.next_path, durable=False)

    assert store.names() == [name]
    assert readable(root, texts(0, 10)) == texts(0, 10)


def test_a_crash_anywhere_while_gathering_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "MANY_SMALL", 4)
    contents = texts(0, 12)

    def prepare(root):
        root.mkdir()
        scratch = Scratch(str(root))
        for number in range(4):
            publish(root, scratch, *contents[3 * number : 3 * number + 3])
        scratch.close()
        return root

    def gather(root):
        scratch = Scratch(str(root))
        Packs(str(root)).tidy(scratch.next_path, durable=True)
        scratch.close()

    roots = (prepare(tmp_path / str(number)) for number in count())
    now = [next(roots)]
    for _ in crashes(lambda: gather(now[0])):
        root = now[0]
        assert readable(root, contents) == contents
        gather(root)
        assert readable(root, contents) == contents
        again = Scratch(str(root))
        again.next_path()
        again.close()
        assert names(root / "tmp") == []
        now[0] = next(roots)
    assert len(names(now[0] / "packs")) == 1


def test_several_processes_add_and_gather_at_once(root):
    code = (
        "import sys\n"
        "from mlops_cli.hashing import hash_bytes\n"
        "from mlops_cli.store.scratch import Scratch\n"
        "from mlops_cli.store.pack_writer import Packer\n"
        "from mlops_cli.store.packs import Packs\n"
        "root, me = sys.argv[1], int(sys.argv[2])\n"
        "store, scratch = Packs(root), Scratch(root)\n"
        "for turn in range(60):\n"
        "    packer = Packer(scratch.next_path)\n"
        "    for number in range(5):\n"
        "        data = b'%d' % (5 * turn + number + 100 * me)\n"
        "        packer.add(hash_bytes(data), data)\n"
        "    store.publish(packer.seal(), durable=False)\n"
        "    try:\n"
        "        store.tidy(scratch.next_path, durable=False)\n"
        "    except FileNotFoundError:\n"
        "        pass\n"
        "    for seen in range(100 * me, 5 * turn + 100 * me, 7):\n"
        "        assert store.read(hash_bytes(b'%d' % seen)) == b'%d' % seen, seen\n"
        "assert not store.damaged, store.damaged\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, root, str(me)]) for me in range(4)]

    assert [process.wait() for process in running] == [0] * 4

    everything = [b"%d" % number for number in range(600)]
    assert readable(root, everything) == everything
    assert len(names(root / "packs")) < 4 * MANY_SMALL


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["file header", "record header", "payload", "footer", "trailer", "cut", "empty"])
@pytest.mark.parametrize("indexed", [False, True])
def test_damage_in_a_pack_costs_one_object_at_most(root, scratch, part, indexed):
    contents = texts(0, 20)
    name = publish(root, scratch, *contents)
    publish(root, scratch, b"elsewhere")
    if indexed:
        index(root, scratch)
    path = root / "packs" / f"{name}.pack"
    size = path.stat().st_size
    footer = size - TRAILER_SIZE - 20 * ROW_SIZE
    if part in ("cut", "empty"):
        poke(path, footer + 5 if part == "cut" else 0, b"")
    else:
        places = {
            "file header": 3,
            "record header": len(FILE_HEADER) + 20,
            "payload": len(FILE_HEADER) + RECORD_SIZE + 3,
            "footer": footer + 32 * 9 + 1,
            "trailer": size - 20,
        }
        poke(path, places[part])

    good = readable(root, contents)

    expected = {"record header": contents[1:], "payload": contents[1:], "empty": []}
    assert good == expected.get(part, contents)
    assert readable(root, [b"elsewhere"]) == [b"elsewhere"]
    store = Packs(str(root))
    assert not store.is_sound(name)
    assert store.damaged[store.path_of(name)]
    if part in ("record header", "payload"):
        with pytest.raises(PackError):
            store.read(hash_bytes(contents[0]))


def segment_parts(path, packs_count, objects):
    size = path.stat().st_size
    numbers = size - 12 - 16 * objects
    return {
        "header": 5,
        "count": 12,
        "pack name": 20,
        "starts": numbers - 32 * objects - 6,
        "digest": numbers - 32 * objects + 1,
        "digests": numbers - 32 * (objects // 2),
        "pack number": numbers + 1,
        "offset": numbers + 4 * objects + 1,
        "stored": numbers + 12 * objects + 3,
        "checksum": size - 8,
    }


@pytest.mark.parametrize("part", [*segment_parts(Path("/"), 1, 1), "cut", "empty"])
def test_damage_in_an_index_costs_nothing(root, scratch, part):
    contents = texts(0, 40)
    for number in range(2):
        publish(root, scratch, *contents[20 * number : 20 * number + 20])
    index(root, scratch)
    (path,) = (root / "index").iterdir()
    if part in ("cut", "empty"):
        poke(path, 100 if part == "cut" else 0, b"")
    else:
        poke(path, segment_parts(path, 2, 40)[part])

    store = Packs(str(root))

    assert readable(root, contents) == contents
    for data in contents:
        assert store.read(hash_bytes(data)) == data or (store.doubt() and store.read(hash_bytes(data)) == data)
    store.doubt()
    assert list(store.damaged) == ([] if part == "pack name" else [str(path)])  # one of no pack here is of no use
    index(root, scratch)
    assert len(names(root / "index")) == 1
    fresh = Packs(str(root))
    assert not fresh.doubt()
    assert fresh.damaged == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(where=st.data())
def test_any_flipped_bit_in_an_index_costs_nothing(tmp_path, where):
    root = tmp_path / os.urandom(6).hex()
    root.mkdir()
    scratch = Scratch(str(root))
    contents = texts(0, 12)
    publish(root, scratch, *contents[:6])
    publish(root, scratch, *contents[6:])
    index(root, scratch)
    scratch.close()
    (path,) = (root / "index").iterdir()

    poke(path, where.draw(st.integers(0, path.stat().st_size - 1)))

    assert readable(root, contents) == contents


def test_an_index_that_points_nowhere_though_its_checksum_is_right_is_dropped(root, scratch):
    """Nobody but an enemy makes one."""
    name = publish(root, scratch, b"x")
    index(root, scratch)
    (path,) = (root / "index").iterdir()
    data = bytearray(path.read_bytes())
    data[-12 - 16 : -12 - 12] = b"\xff" * 4
    data[-12:-4] = pack_segment.xxhash.xxh3_64_intdigest(bytes(data[:-12])).to_bytes(8, "little")
    path.chmod(0o644)
    path.write_bytes(data)

    store = Packs(str(root))

    assert store.find(hash_bytes(b"x"))
    assert store.read(hash_bytes(b"x")) == b"x"
    assert store.damaged == {str(path): "it points at what cannot be there"}
    assert store.names() == [name]


def test_an_index_is_not_made_from_a_damaged_footer(root, scratch):
    contents = texts(0, 20)
    name = publish(root, scratch, *contents)
    for number in range(MANY_BARE):
        publish(root, scratch, b"other %d" % number)
    path = root / "packs" / f"{name}.pack"
    poke(path, path.stat().st_size - TRAILER_SIZE - 20 * ROW_SIZE + 32 * 7)

    Packs(str(root)).tidy(scratch.next_path, durable=False)

    assert len(names(root / "index")) == 1
    assert readable(root, contents) == contents


def test_of_two_copies_the_good_one_is_read(root, scratch):
    first = publish(root, scratch, b"both" * 30, b"1")
    publish(root, scratch, b"both" * 30, b"2")
    for name in Packs(str(root)).names():
        if name == first:
            poke(root / "packs" / f"{name}.pack", len(FILE_HEADER) + RECORD_SIZE)

    assert readable(root, [b"both" * 30, b"1", b"2"]) == [b"both" * 30, b"1", b"2"]


def test_a_store_that_cannot_be_written_can_be_read(root, scratch, monkeypatch):
    for number in range(MANY_SMALL):
        publish(root, scratch, b"%d" % number)
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "read-only file system")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)

    assert len(readable(root, [b"%d" % number for number in range(MANY_SMALL)])) == MANY_SMALL
    with pytest.raises(OSError, match="read-only"):
        Packs(str(root)).tidy(scratch.next_path, durable=True)
