"""Digests and fingerprints are values: the same for the same content, whatever the way it came."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_cli.hashing import (
    MANY_THREADS_FROM,
    Hasher,
    digest_from_raw,
    fingerprint,
    hash_bytes,
    hash_descriptor,
    hash_file,
    parse_digest,
    raw_digest,
    raw_digests,
)

steady = settings(deadline=None)  # a busy machine is no reason to fail

# From the BLAKE3 team's published test vectors (input length 0), and `b3sum` of `hello` and a newline.
EMPTY = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


def test_the_digest_is_blake3():
    assert hash_bytes(b"") == EMPTY


@steady
@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000), max_size=5))
def test_a_digest_does_not_depend_on_how_the_bytes_are_split(data, cuts):
    hasher = Hasher()
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})

    start = 0
    for end in ends:
        hasher.update(data[start:end])
        start = end

    assert hasher.digest() == hash_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 1 << 20, (1 << 20) + 1])
def test_a_files_digest_is_that_of_its_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)

    assert hash_file(tmp_path / "file") == hash_bytes(data)
    assert hash_file(str(tmp_path / "file")) == hash_bytes(data)


def test_a_file_that_many_threads_hash_has_the_same_digest(tmp_path):
    data = os.urandom(1 << 16) * (MANY_THREADS_FROM >> 16) + b"and a bit"
    (tmp_path / "file").write_bytes(data)

    assert hash_file(tmp_path / "file") == hash_bytes(data)


def test_a_descriptor_is_hashed_from_its_position(tmp_path):
    (tmp_path / "file").write_bytes(b"abcdef")
    with (tmp_path / "file").open("rb", buffering=0) as stream:
        stream.seek(2)

        assert hash_descriptor(stream.fileno()) == hash_bytes(b"cdef")


def test_hashing_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "absent")


@steady
@given(st.binary(min_size=32, max_size=32))
def test_raw_bytes_and_spelling_are_one_to_one(raw):
    digest = digest_from_raw(raw)

    assert raw_digest(digest) == raw
    assert parse_digest(digest) == digest


def test_raw_bytes_of_another_length_are_refused():
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        digest_from_raw(b"x" * 31)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("af1349", "must begin with `blake3:`"),
        ("", "must begin with `blake3:`"),
        ("md5:" + "0" * 32, "`md5` is not a digest algorithm"),
        ("BLAKE3:" + "0" * 64, "`BLAKE3` is not a digest algorithm"),
        ("blake3:0", "has 1 hexadecimal digit after"),
        ("blake3:" + "0" * 63, "has 63 hexadecimal digits"),
        ("blake3:" + "0" * 65, "has 65 hexadecimal digits"),
        ("blake3:" + "0" * 63 + "A", "holds `A`"),
        ("blake3:" + "0" * 63 + "\n", "digits 0-9 and a-f"),
        ("blake3:" + "٣" * 64, "digits 0-9 and a-f"),
    ],
)
def test_what_is_no_digest_is_refused_with_a_reason(text, says):
    with pytest.raises(ValueError, match=says):
        parse_digest(text)


@steady
@given(json_values)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value):
    def reversed_keys(inner):
        if isinstance(inner, dict):
            return {key: reversed_keys(inner[key]) for key in reversed(inner)}
        return [reversed_keys(item) for item in inner] if isinstance(inner, list) else inner

    assert fingerprint(reversed_keys(value)) == fingerprint(value)
    assert len(fingerprint(value)) == 32


@steady
@given(json_values, json_values)
def test_fingerprints_differ_where_canonical_json_differs(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)

    assert (fingerprint(one) == fingerprint(other)) == same


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, {"a": Path("b")}])
def test_what_is_not_json_has_no_fingerprint(value):
    with pytest.raises((TypeError, ValueError)):
        fingerprint(value)


def test_a_fingerprint_is_stable_over_versions():
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == "cf0431e419ab71977e982702c62bde68"


def test_many_digests_are_spelled_back_at_once():
    digests = [hash_bytes(bytes([number])) for number in range(50)]
    assert raw_digests(digests) == [raw_digest(digest) for digest in digests]
    assert raw_digests([]) == []
