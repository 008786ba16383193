"""Tables of objects: they say what a dict would, in whatever order and way they were merged."""

from __future__ import annotations

import errno
import os
import tracemalloc
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes
from mlops_cli.store import pack_segment
from mlops_cli.store.pack_folder import OpenFile
from mlops_cli.store.pack_format import FILE_HEADER, PackError, Row, encode_footer
from mlops_cli.store.pack_index import Place, footer_table, read_footer, rows_table
from mlops_cli.store.pack_segment import encode_segment, read_segment, segment_in

PACKS = [hash_bytes(b"%d" % number).removeprefix("blake3:") for number in range(4)]
u32 = st.integers(0, 2**32 - 1)
# Few different first bytes, so that digests share them and are hard to tell apart.
alike = st.tuples(
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"abcdefgh"]),
    st.sampled_from([bytes(23), b"\xff" * 23]),
    st.binary(min_size=1, max_size=1),
)
raws = st.one_of(st.binary(min_size=32, max_size=32), alike.map(b"".join))
rows = st.builds(Row, raws, u32, u32, u32)
many_rows = st.lists(st.lists(rows, max_size=30, unique_by=lambda row: row.raw), max_size=4)


def encoded(tables):
    return b"".join(encode_segment(tables))


def checked(data):
    segment = segment_in(data)
    segment.verify()
    return segment


def tables_of(parts):
    return [rows_table(part, pack) for part, pack in zip(parts, PACKS, strict=False)]


def model(parts):
    places = {}
    for part, pack in zip(parts, PACKS, strict=False):
        for row in part:
            places.setdefault(row.raw, []).append(Place(pack, *row[1:]))
    return places


@given(part=st.lists(rows, max_size=60), absent=st.lists(raws, max_size=10))
def test_a_table_finds_what_a_dict_does(part, absent):
    table = rows_table(part, PACKS[0])
    first = model([part])

    for raw in [*first, *absent]:
        assert table.find(raw) == first.get(raw, [None])[0]
    assert list(table.rows()) == [(raw, places[0]) for raw, places in sorted(first.items())]


@pytest.mark.parametrize("sparse", [0, 1, 1000])
@given(part=st.lists(rows, max_size=60), absent=st.lists(raws, max_size=10), share=st.floats(0, 1))
def test_many_are_found_as_one_by_one(sparse, part, absent, share):
    table = rows_table(part, PACKS[0])
    asked = [row.raw for row in part][: int(len(part) * share)] + absent

    with mock.patch("mlops_cli.store.pack_index._SPARSE", sparse):  # either way of looking, whatever the sizes
        found = table.find_all(asked)
        assert checked(encoded([table])).find_all(asked) == found
    assert found == {raw: place for raw in asked if (place := table.find(raw)) is not None}


@given(parts=many_rows, absent=st.lists(raws, max_size=10))
def test_a_segment_finds_what_its_tables_do(parts, absent):
    places = model(parts)
    segment = checked(encoded(tables_of(parts)))

    assert segment.count == len(places)
    for raw in [*places, *absent]:
        assert segment.find(raw) in places.get(raw, [None])
    assert [raw for raw, _ in segment.rows()] == sorted(places)


@given(parts=many_rows, shuffle=st.randoms(use_true_random=False))
def test_merging_in_any_order_and_in_steps_finds_the_same_objects(parts, shuffle):
    places = model(parts)
    tables = tables_of(parts)
    shuffle.shuffle(tables)
    half = len(tables) // 2
    one = encoded(tables)
    steps = encoded([segment_in(encoded(tables[:half])), *tables[half:]])

    for data in (one, steps):
        segment = checked(data)
        assert [raw for raw, _ in segment.rows()] == sorted(places)
        assert all(place in places[raw] for raw, place in segment.rows())


@given(parts=many_rows.filter(bool))
def test_both_ways_to_merge_give_the_same_bytes(parts):
    tables = tables_of(parts)
    before = pack_segment._MANY
    try:
        pack_segment._MANY = 10**9
        few = encoded(tables)
        pack_segment._MANY = -1
        many = encoded(tables)
    finally:
        pack_segment._MANY = before

    assert few == many


def test_thousands_are_found_in_footers_and_segments():
    parts = [[Row(os.urandom(32), number, 2, 3) for number in range(20_000)] for _ in range(2)]
    tables = tables_of(parts)
    segment = segment_in(encoded(tables))

    for raw, places in model(parts).items():
        assert segment.find(raw) == places[0]
        assert places[0] in (tables[0].find(raw), tables[1].find(raw))
    assert not any(table.find(os.urandom(32)) for table in (segment, *tables) for _ in range(1000))


def test_digests_that_somebody_chose_are_found_too():
    """The guess where a digest is goes wrong, and nothing else does."""
    part = [Row(b"\x80" * 28 + number.to_bytes(4, "big"), number, 0, 0) for number in range(5000)]
    table = rows_table(part, PACKS[0])
    segment = segment_in(encoded([table]))

    assert [table.find(row.raw).offset for row in part] == list(range(5000))
    assert [segment.find(row.raw).offset for row in part] == list(range(5000))
    assert table.find(bytes(32)) is table.find(b"\xff" * 32) is None


@given(parts=many_rows, place=st.data())
def test_a_flipped_bit_is_found_by_checking_the_whole_and_never_crashes_a_look_up(parts, place):
    data = encoded(tables_of(parts))
    bit = place.draw(st.integers(0, 8 * len(data) - 1))
    wrong = bytearray(data)
    wrong[bit // 8] ^= 1 << bit % 8

    with pytest.raises(PackError):
        checked(bytes(wrong))
    try:
        table = segment_in(bytes(wrong))
    except PackError:
        return
    for raw in model(parts):
        try:
            table.find(raw)
        except PackError as error:
            assert str(error)  # noqa: PT017 - raising is one of the two right answers


@given(data=st.binary(max_size=200))
def test_any_bytes_are_no_segment(data):
    for bad in (data, b"MLXI\x02" + data, b"MLXI\x02\0\0\0" + data + b"MLXJ"):
        with pytest.raises(PackError):
            checked(bad)


@pytest.mark.parametrize(("at", "claim"), [(12, 2**32 - 1), (8, 2**32 - 1), (12, 2**31)])
def test_an_index_that_claims_more_than_it_has_is_refused(at, claim):
    data = bytearray(encoded(tables_of([[Row(bytes(32), 0, 0, 0)]])))
    data[at : at + 4] = claim.to_bytes(4, "little")

    with pytest.raises(PackError, match="no index of packs"):
        segment_in(bytes(data))


def test_an_index_of_too_many_bits_is_refused():
    data = bytearray(encoded(tables_of([[Row(bytes(32), 0, 0, 0)]])))
    data[5] = 32

    with pytest.raises(PackError, match="no index of packs"):
        segment_in(bytes(data))


def test_a_footer_is_read_without_what_is_before_it(tmp_path):
    part = [Row(os.urandom(32), number, 1, 2) for number in range(10)]
    before = FILE_HEADER + bytes(1000)
    data = before + encode_footer(part, len(before))
    (tmp_path / "pack").write_bytes(data)

    table = read_footer(str(tmp_path / "pack"), PACKS[0])

    table.verify()
    assert list(table.rows()) == list(footer_table(data, PACKS[0], whole=True).rows())
    assert sorted(table.digests()) == sorted(f"blake3:{row.raw.hex()}" for row in part)


def test_what_is_no_pack_has_no_footer(tmp_path):
    path = tmp_path / "pack"
    for data, why in ((b"", "empty"), (b"MLXP", "begin"), (FILE_HEADER, "end"), (FILE_HEADER + bytes(40), "end")):
        path.write_bytes(data)
        with pytest.raises(PackError, match=why):
            read_footer(str(path), PACKS[0])
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(PackError, match="larger than a pack can be"):
        read_footer(str(path), PACKS[0])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((PackError, OSError)):
        read_footer(str(path), PACKS[0])


def test_an_empty_file_is_no_segment(tmp_path):
    (tmp_path / "empty").touch()

    with pytest.raises(PackError, match="empty"):
        read_segment(OpenFile(str(tmp_path / "empty")))


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Return a segment that is read as it is needed, its file, and the digests in it."""
    monkeypatch.setattr(pack_segment, "_IN_MEMORY", 0)
    part = [Row(os.urandom(32), number, 1, 2) for number in range(2000)]
    path = tmp_path / "segment"
    path.write_bytes(encoded(tables_of([part])))
    return read_segment(OpenFile(str(path))), path, [row.raw for row in part]


def test_a_segment_that_is_read_as_it_is_needed_finds_the_same(large):
    segment, path, raws = large
    whole = checked(path.read_bytes())

    segment.verify()
    assert [segment.find(raw) for raw in raws] == [whole.find(raw) for raw in raws]
    assert list(segment.rows()) == list(whole.rows())
    assert not any(segment.find(os.urandom(32)) for _ in range(100))


@pytest.mark.parametrize("left", [0, 100, 40_000])
def test_a_segment_that_is_cut_short_while_it_is_open_is_damaged_and_kills_nobody(large, left):
    segment, path, raws = large
    os.truncate(path, left)

    with pytest.raises(PackError, match="its end is missing"):
        [segment.find(raw) for raw in raws]
    with pytest.raises(PackError, match="its end is missing"):
        segment.verify()


def test_a_disk_that_fails_is_damage_of_the_segment(large, monkeypatch):
    segment, _, raws = large

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)

    with pytest.raises(PackError, match="it cannot be read: input/output error"):
        segment.find(raws[0])


def test_merging_range_by_range_gives_the_same_bytes(monkeypatch):
    parts = [[Row(os.urandom(32), number, 2, 3) for number in range(3000)] for _ in range(3)]
    parts[2] += parts[0][:500]
    tables = tables_of(parts)
    few = encoded(tables)
    monkeypatch.setattr(pack_segment, "_MANY", 0)

    for at_once in (10**9, 1000, 170):
        monkeypatch.setattr(pack_segment, "_AT_ONCE", at_once)
        assert encoded(tables) == few
        assert encoded([segment_in(encoded(tables[:2])), tables[2]]) == few


def test_merging_takes_memory_for_a_range_and_not_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_segment, "_AT_ONCE", 1 << 13)
    monkeypatch.setattr(pack_segment, "_IN_MEMORY", 0)
    tables = []
    for number in range(2):
        path = tmp_path / str(number)
        path.write_bytes(encoded(tables_of([[Row(os.urandom(32), at, 2, 3) for at in range(100_000)]])))
        tables.append(read_segment(OpenFile(str(path))))

    tracemalloc.start()
    try:
        size = sum(map(len, encode_segment(tables)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert size > 9_000_000
    assert peak < 5_000_000


def test_the_bytes_are_those_of_the_specification():
    raw = bytes.fromhex("8e4c7c1b99dbfd50e7a95185fead5ee1448fa904a2fdd778eaf5f2dbfd629a99")
    pack = "c97bf0a07db74cb7ae8710344063d6aa529e8ea9e9e9861e05565313dd16c599"

    assert encoded([rows_table([Row(raw, 8, 6, 6)], pack)]) == bytes.fromhex(
        f"4d4c5849 02 00 0000 01000000 01000000 {pack} 00000000 01000000"
        f"{raw.hex()} 00000000 08000000 06000000 06000000 fb7da4bb43197a13 4d4c584a"
    )
