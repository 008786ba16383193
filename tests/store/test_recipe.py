"""A recipe says which chunks make a file, has one encoding, and is refused when anything in it is wrong."""

from __future__ import annotations

import os
import struct
from array import array
from unittest import mock

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import hash_bytes, hash_raw, raw_digest
from mlops_cli.store import recipe as module
from mlops_cli.store.recipe import (
    LONGEST_CHUNK,
    MOST_CHUNKS,
    RECIPE_LIMIT,
    Recipe,
    RecipeError,
    decode_recipe,
    encode_recipe,
    make_recipe,
)
from tests.store.folders import steady

FILE = hash_bytes(b"the file")


def recipe_of(*lengths, digest=FILE):
    raws = b"".join(hash_raw(b"%d" % number) for number in range(len(lengths)))
    return Recipe(digest, sum(lengths), array("I", lengths), raws)


recipes = st.lists(st.integers(1, LONGEST_CHUNK), max_size=20).map(lambda lengths: recipe_of(*lengths))


def sealed(data):
    return data + xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")


@steady
@given(recipes)
def test_what_is_encoded_is_decoded(recipe):
    assert decode_recipe(encode_recipe(recipe), FILE) == recipe


def test_the_bytes_are_as_the_specification_says():
    raws = hash_raw(b"0") + hash_raw(b"1")
    fields = b"MLXC\x01\0\0\0" + struct.pack("<IQ", 2, 300) + raw_digest(FILE) + struct.pack("<2I", 100, 200) + raws

    assert encode_recipe(recipe_of(100, 200)) == sealed(fields)


@steady
@given(recipes, st.data())
def test_no_bit_can_flip(recipe, data):
    good = bytearray(encode_recipe(recipe))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8

    with pytest.raises(RecipeError):
        decode_recipe(bytes(good), FILE)


@steady
@given(recipes, st.data())
def test_nothing_can_be_cut_off_or_put_on(recipe, data):
    good = encode_recipe(recipe)
    end = data.draw(st.integers(0, len(good) - 1))

    for bad in (good[:end], good + b"\0", sealed(good)):
        with pytest.raises(RecipeError):
            decode_recipe(bad, FILE)


@steady
@given(st.binary(max_size=300))
def test_other_bytes_are_no_recipe(data):
    for bad in (data, sealed(b"MLXC\x01\0\0\0" + data)):
        with pytest.raises(CorruptObject, match="cannot be used"):
            decode_recipe(bad, FILE)


def forged(lengths, *, size=None, count=None, head=b"MLXC\x01\0\0\0", digest=FILE):
    total = sum(lengths) if size is None else size
    header = head + struct.pack("<IQ", len(lengths) if count is None else count, total) + raw_digest(digest)
    return sealed(header + struct.pack(f"<{len(lengths)}I", *lengths) + bytes(32 * len(lengths)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (forged([5, 6], size=12), "do not make as many bytes"),
        (forged([5, 6], size=2**64 - 1), "do not make as many bytes"),
        (forged([5, 0]), "a chunk has no bytes"),
        (forged([LONGEST_CHUNK + 1]), "a chunk has no bytes, or more than 8,388,608"),
        (forged([2**32 - 1]), "or more than"),
        (forged([5], count=2), "length does not fit its count"),
        (forged([5], count=MOST_CHUNKS), "length does not fit its count"),
        (forged([5], count=2**32 - 1), "more than 4,194,304 chunks"),
        (forged([5], head=b"MLXT\x01\0\0\0"), "does not begin as one"),
        (forged([5], head=b"MLXC\x01\0\1\0"), "header is not canonical"),
        (forged([5], digest=hash_bytes(b"another")), "it is that of `blake3:"),
    ],
)
def test_a_forged_recipe_is_refused(data, why):
    with pytest.raises(RecipeError, match=why) as caught:
        decode_recipe(data, FILE)
    assert FILE in caught.value.message


def test_a_later_version_says_so():
    with pytest.raises(RecipeError, match="version 2, which this mlx does not understand") as caught:
        decode_recipe(forged([5], head=b"MLXC\x02\0\0\0"), FILE)
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(FILE, 5, array("I", [6]), bytes(32)),
        Recipe(FILE, 0, array("I", [0]), bytes(32)),
        Recipe(FILE, 6, array("I", [6]), bytes(31)),
        Recipe(FILE, LONGEST_CHUNK + 1, array("I", [LONGEST_CHUNK + 1]), bytes(32)),
        Recipe(FILE, MOST_CHUNKS + 1, array("I", [1]) * (MOST_CHUNKS + 1), b""),
    ],
)
def test_what_would_be_refused_is_not_written(recipe):
    with pytest.raises(ValueError, match=r"chunk"):
        encode_recipe(recipe)


def test_a_file_of_a_terabyte_has_a_recipe():
    chunks = 10**12 // (600 << 10)
    assert chunks < MOST_CHUNKS / 2
    assert RECIPE_LIMIT < 150 << 20


def test_the_recipe_of_a_file(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        recipe = make_recipe(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        with mock.patch.object(module, "MOST_CHUNKS", len(recipe) - 1):
            assert make_recipe(descriptor) is None
    finally:
        os.close(descriptor)

    assert recipe.digest == hash_bytes(data)
    assert b"".join(data[at : at + length] for at, length, _ in recipe.chunks()) == data
    assert [raw for _, _, raw in recipe.chunks()] == [recipe.raw(number) for number in range(len(recipe))]
