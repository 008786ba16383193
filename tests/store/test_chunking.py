"""Files are cut where their content says so, and nowhere else."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes, hash_raw
from mlops_cli.store import chunking
from mlops_cli.store.chunking import LONGEST, SHORTEST, WINDOW, cut_file
from tests.store.folders import steady

MIB = 1 << 20


@cache
def noise(size):
    return hashlib.shake_128(b"bytes that look random").digest(size)


@contextmanager
def opened(path, data):
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("cut") / "file"


def lengths_of(path, data):
    with opened(path, data) as descriptor:
        return [chunk.length for chunk in cut_file(descriptor)]


def test_the_cuts_never_change(path):
    """Others would be stored again, all of them: whoever changes these numbers knows what it costs."""
    assert lengths_of(path, noise(8 * MIB)) == [
        604275,
        581704,
        724695,
        829573,
        1247503,
        550281,
        228939,
        613361,
        536273,
        747732,
        592589,
        243625,
        682639,
        205419,
    ]


def test_bytes_without_content_are_cut_at_the_longest(path):
    assert lengths_of(path, bytes(5 * MIB)) == [LONGEST, LONGEST, MIB]


@pytest.mark.parametrize("size", [1, SHORTEST - 1, SHORTEST, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5])
def test_the_chunks_are_the_file(path, size):
    data = noise(4 * WINDOW)[:size]
    with opened(path, data) as descriptor:
        cutting = cut_file(descriptor)
        chunks = list(cutting)

    assert chunks[0].offset == 0
    assert [chunk.offset + chunk.length for chunk in chunks] == [*(chunk.offset for chunk in chunks[1:]), size]
    assert all(hash_raw(data[at : at + length]) == raw for at, length, raw in chunks)
    assert all(SHORTEST <= chunk.length <= LONGEST for chunk in chunks[:-1])
    assert (cutting.digest(), cutting.size) == (hash_bytes(data), size)


def test_a_file_without_bytes_has_no_chunks(path):
    with opened(path, b"") as descriptor:
        cutting = cut_file(descriptor)
        assert list(cutting) == []
    assert cutting.digest() == hash_bytes(b"")


def test_a_digest_that_is_not_known_yet_is_not_told(path):
    with opened(path, noise(8 * MIB)) as descriptor:
        cutting = cut_file(descriptor)
        next(iter(cutting))
        with pytest.raises(ValueError, match="not been cut to its end"):
            cutting.digest()


@settings(steady, max_examples=20)
@given(
    st.binary(max_size=64),
    st.integers(0, 3 * MIB),
    st.lists(st.integers(1000, 2 * MIB), min_size=1, max_size=6),
    st.sampled_from([LONGEST, LONGEST + 1, 2 * LONGEST, 3 * LONGEST + 5]),
)
def test_how_the_bytes_are_read_does_not_matter(path, start, skipped, sizes, window):
    """A pipe gives what was written to it, in pieces of any size."""
    data = start + noise(8 * MIB)[skipped:]
    expected = lengths_of(path, data)
    source, sink = os.pipe()

    def write():
        at = 0
        with open(sink, "wb", buffering=0) as stream:
            while at < len(data):
                at += stream.write(data[at : at + sizes[at % len(sizes)]])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with mock.patch.object(chunking, "WINDOW", window):
            assert [chunk.length for chunk in cut_file(source)] == expected
    finally:
        os.close(source)
        writer.join()


@settings(steady, max_examples=20)
@given(st.integers(0, 24 * MIB), st.integers(0, 100_000), st.binary(max_size=2000))
def test_an_edit_changes_the_chunks_around_it(path, place, removed, inserted):
    """Inserting, deleting and replacing: two chunks, and now and then a few more before the cuts fall as they did."""
    data = noise(24 * MIB)
    edited = data[:place] + inserted + data[place + removed :]
    with opened(path, data) as descriptor:
        before = {chunk.raw for chunk in cut_file(descriptor)}
    with opened(path, edited) as descriptor:
        changed = [chunk for chunk in cut_file(descriptor) if chunk.raw not in before]

    assert len(before) > 35
    assert len(changed) <= 8


def test_whoever_stops_half_way_leaves_no_thread(path):
    running = threading.active_count()
    with opened(path, noise(24 * MIB)) as descriptor:
        chunks = iter(cut_file(descriptor))
        next(chunks)
        chunks.close()
    assert threading.active_count() == running


def test_a_disk_that_fails_is_told(path):
    with (
        opened(path, noise(8 * MIB)) as descriptor,
        mock.patch.object(os, "readv", side_effect=OSError(5, "Input/output error")),
        pytest.raises(OSError, match="Input/output"),
    ):
        list(cut_file(descriptor))
