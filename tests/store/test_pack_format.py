"""The bytes of a pack: what was written is read, and damage costs the records it hit, no others."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
import xxhash
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes, raw_digest
from mlops_cli.store.pack_format import (
    FILE_HEADER,
    LARGEST,
    RECORD_SIZE,
    ROW_SIZE,
    TRAILER_SIZE,
    Codec,
    PackError,
    Record,
    Row,
    decode_record,
    encode_footer,
    encode_record,
    find_footer,
    scan_records,
)


def record_of(data, codec=Codec.PLAIN):
    return Record(raw_digest(hash_bytes(data)), codec, len(data), data)


def pack_of(*records):
    """Return a pack's bytes, and where each of its records is."""
    out = io.BytesIO()
    out.write(FILE_HEADER)
    rows = []
    for record in records:
        rows.append(Row(record.raw, out.tell(), record.length, len(record.data)))
        out.write(encode_record(record) + record.data)
    return out.getvalue() + encode_footer(rows, out.tell()), rows


# Records that hold records, headers and what begins like one are the hard ones to search through.
plain = st.binary(max_size=60)
inner = plain.map(lambda data: encode_record(record_of(data)) + data)
contents = st.one_of(plain, inner, inner.map(lambda data: data[:-1]), plain.map(lambda data: b"MLXR" + data))
packs = st.lists(contents, unique=True, max_size=6).map(lambda many: [record_of(data) for data in many])


@given(records=packs)
def test_every_record_comes_back(records):
    data, rows = pack_of(*records)

    assert list(scan_records(memoryview(data))) == list(zip([row.offset for row in rows], records, strict=True))
    start, count = find_footer(memoryview(data), whole=True)
    assert (start, count) == (len(data) - TRAILER_SIZE - ROW_SIZE * len(records), len(records))


@given(records=packs, place=st.data())
def test_one_flipped_bit_costs_at_most_the_record_that_it_is_in(records, place):
    data, rows = pack_of(*records)
    bit = place.draw(st.integers(0, 8 * len(data) - 1))
    at = bit // 8
    wrong = bytearray(data)
    wrong[at] ^= 1 << bit % 8

    found = list(scan_records(memoryview(wrong)))

    hit = [row for row in rows if row.offset <= at < row.offset + RECORD_SIZE + row.stored]
    expected = [(row.offset, record) for row, record in zip(rows, records, strict=True) if row not in hit]
    assert found == expected


@given(records=packs, place=st.data())
def test_a_pack_without_its_end_gives_the_records_before_it(records, place):
    data, rows = pack_of(*records)
    size = place.draw(st.integers(0, len(data) - 1))

    found = list(scan_records(memoryview(data[:size])))

    whole = [
        (row.offset, record)
        for row, record in zip(rows, records, strict=True)
        if row.offset + RECORD_SIZE + row.stored <= size
    ]
    assert found[: len(whole)] == whole
    with pytest.raises(PackError):
        find_footer(memoryview(data[:size]))


@given(records=packs, place=st.data())
def test_damage_in_many_places_gives_good_records_only(records, place):
    data, rows = pack_of(*records)
    wrong = bytearray(data)
    hit = place.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=5, unique=True))
    # Both bytes of the version, with all others as they are, are no damage but a later version: refused whole.
    assume(not {4, len(data) - 4} <= set(hit))
    for at in hit:
        wrong[at] ^= 0xFF

    found = dict(scan_records(memoryview(wrong)))

    for row, record in zip(rows, records, strict=True):
        if not any(row.offset <= at < row.offset + RECORD_SIZE + row.stored for at in hit):
            assert found[row.offset] == record


@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=FILE_HEADER)
@example(data=FILE_HEADER + b"MLXR" * 50)
def test_any_bytes_are_read_without_a_crash(data):
    list(scan_records(memoryview(data)))
    with pytest.raises(PackError):
        find_footer(memoryview(data))
    with pytest.raises(PackError):
        decode_record(data)


@pytest.mark.parametrize("field", ["length", "stored"])
def test_a_record_that_claims_more_than_any_has_is_refused_before_it_is_in_memory(field):
    length, stored = (LARGEST + 1, 0) if field == "length" else (0, LARGEST + 1)
    head = struct.pack("<4sB3xII32s", b"MLXR", 0, length, stored, bytes(32))
    checksum = xxhash.xxh3_64_intdigest(b"", seed=xxhash.xxh3_64_intdigest(head))

    with pytest.raises(PackError, match="no record where one should be"):
        decode_record(head + struct.pack("<Q", checksum))
    with pytest.raises(ValueError, match="too large for a pack"):
        encode_record(Record(bytes(32), Codec.PLAIN, LARGEST + 1, b""))


def test_a_footer_that_claims_more_rows_than_the_file_has_is_refused():
    data = bytearray(pack_of(record_of(b"x"))[0])
    data[-20:-16] = b"\xff" * 4

    with pytest.raises(PackError, match="its end is missing"):
        find_footer(memoryview(data))


def test_a_footer_is_checked_as_a_whole_only_when_asked():
    data, rows = pack_of(record_of(b"x"))
    wrong = bytearray(data)
    wrong[rows[0].offset + RECORD_SIZE + 1] ^= 1  # the first byte of the footer

    find_footer(memoryview(wrong))
    with pytest.raises(PackError, match="footer is not what was written"):
        find_footer(memoryview(wrong), whole=True)


def test_the_bytes_are_those_of_the_specification():
    data, _ = pack_of(record_of(b"hello\n"))

    assert data == bytes.fromhex(
        "4d4c5850 01000000"
        "4d4c5852 00000000 06000000 06000000 8e4c7c1b99dbfd50e7a95185fead5ee1448fa904a2fdd778eaf5f2dbfd629a99"
        "9bd6db952408739e 68656c6c6f0a"
        "8e4c7c1b99dbfd50e7a95185fead5ee1448fa904a2fdd778eaf5f2dbfd629a99 08000000 06000000 06000000"
        "4600000000000000 01000000 bbb231632e9551f0 4d4c5845 01000000"
    )


def test_the_example_of_the_specification_is_a_pack():
    text = (Path(__file__).parents[2] / "docs/reference/formats.md").read_text()
    (block,) = (block for block in text.split("```") if block.startswith("text\n4d 4c 58 50"))
    data = b"".join(bytes.fromhex(line[:48]) for line in block.splitlines()[1:])

    assert data == pack_of(record_of(b"hello\n"))[0]
    assert hash_bytes(data) in text
