"""Writing packs: what pays is compressed, what is packed can be read at once, and a failure publishes nothing torn."""

from __future__ import annotations

import errno
import os
from itertools import count

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes, raw_digest
from mlops_cli.store import pack_writer
from mlops_cli.store.pack_format import LARGEST, Codec, PackError, Record, scan_records
from mlops_cli.store.pack_writer import Compressor, Packer, PackWriter, unpacked

TEXT = b'{"name": "value", "list": [1, 2, 3]}\n' * 40


@pytest.fixture
def packer(tmp_path):
    numbers = count()
    packer = Packer(lambda: f"{tmp_path}/{next(numbers)}")
    yield packer
    packer.close()


def put(packer, *contents):
    digests = [hash_bytes(data) for data in contents]
    for digest, data in zip(digests, contents, strict=True):
        packer.add(digest, data)
    return digests


@given(data=st.one_of(st.binary(max_size=2000), st.binary(max_size=20).map(lambda data: data * 200)))
def test_compressing_changes_nothing(data):
    record = Compressor().pack(bytes(32), data)

    assert unpacked(record) == data
    assert record.length == len(data)
    assert len(record.data) <= len(data)


def test_what_shrinks_by_a_tenth_is_compressed_and_nothing_else():
    compressor = Compressor()

    assert compressor.pack(bytes(32), TEXT).codec is Codec.ZSTD
    assert compressor.pack(bytes(32), os.urandom(1000)).codec is Codec.PLAIN
    assert compressor.pack(bytes(32), TEXT[:100]).codec is Codec.PLAIN
    assert compressor.pack(bytes(32), os.urandom(950) + bytes(50)).codec is Codec.PLAIN


def test_what_does_not_shrink_is_tried_less_and_less_but_never_given_up(monkeypatch):
    tried = []
    compressor = Compressor()
    compressor.pack(bytes(32), TEXT)
    real = compressor._compress
    compressor._compress = lambda data: (tried.append(1), real(data))[1]
    noise = os.urandom(1000)

    for _ in range(1000):
        compressor.pack(bytes(32), noise)
    for _ in range(1000):
        compressor.pack(bytes(32), b"tiny")
    assert 16 <= len(tried) <= 50

    codecs = [compressor.pack(bytes(32), TEXT).codec for _ in range(40)]
    assert codecs[-8:] == [Codec.ZSTD] * 8


def test_many_tiny_objects_do_not_stop_the_trying():
    compressor = Compressor()
    for _ in range(100):
        compressor.pack(bytes(32), b"tiny")

    assert compressor.pack(bytes(32), TEXT).codec is Codec.ZSTD


def bombs():
    packed = zstandard.ZstdCompressor().compress(TEXT)
    zeros = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    claims = bytearray(zstandard.ZstdCompressor().compress(bytes(300 << 20)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    return {
        "expands to more": Record(bytes(32), Codec.ZSTD, 10, zeros),
        "claims more": Record(bytes(32), Codec.ZSTD, LARGEST, bytes(claims)),
        "less": Record(bytes(32), Codec.ZSTD, len(TEXT) + 1, packed),
        "does not say": Record(bytes(32), Codec.ZSTD, len(TEXT), unsized),
        "cut off": Record(bytes(32), Codec.ZSTD, len(TEXT), packed[:-1]),
        "something after it": Record(bytes(32), Codec.ZSTD, len(TEXT), packed + b"x"),
        "no frame": Record(bytes(32), Codec.ZSTD, 3, b"xyz"),
        "nothing": Record(bytes(32), Codec.ZSTD, 0, b""),
        "plain of another length": Record(bytes(32), Codec.PLAIN, 4, b"xyz"),
        "lies about its size": Record(
            bytes(32), Codec.ZSTD, 5, zstandard.ZstdCompressor().compress(b"x" * 5)[:5] + b"\x0d" + zeros[10:]
        ),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_record_never_gives_more_than_it_says(kind):
    with pytest.raises(PackError):
        unpacked(bombs()[kind])


def test_a_packer_reads_what_it_has_and_seals_it(packer, monkeypatch):
    monkeypatch.setattr(pack_writer, "SEALED_AT", 5000)
    contents = [TEXT, b"", *(os.urandom(1000) for _ in range(20))]
    digests = put(packer, *contents, *contents)

    assert [packer.read(digest) for digest in digests] == [*contents, *contents]
    assert digests[0] in packer
    with pytest.raises(KeyError):
        packer.read(hash_bytes(b"absent"))

    sealed = packer.seal()

    assert len(sealed) > 3
    found = []
    for path, name in sealed:
        with open(path, "rb") as stream:
            data = stream.read()
        assert hash_bytes(data) == f"blake3:{name}"
        found += [unpacked(record) for _, record in scan_records(memoryview(data))]
    assert found == contents
    assert digests[0] not in packer
    assert packer.seal() == []


@pytest.mark.parametrize("step", ["adding", "sealing"])
def test_a_full_disk_leaves_no_torn_pack_to_publish(packer, tmp_path, monkeypatch, step):
    monkeypatch.setattr(pack_writer, "SEALED_AT", 5000)
    monkeypatch.setattr(pack_writer, "_BUFFERED", 100)
    before = put(packer, *(os.urandom(1000) for _ in range(6)))  # one pack is sealed, another begun
    real = os.write

    def write(descriptor, data):
        real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="full"):
        packer.seal() if step == "sealing" else put(packer, os.urandom(1000))
    monkeypatch.undo()

    assert [digest in packer for digest in before] == [True] * 5 + [False]
    (_, name), *more = packer.seal()
    assert more == []
    assert hash_bytes((tmp_path / "0").read_bytes()) == f"blake3:{name}"


def test_a_writer_gives_back_what_it_was_given(tmp_path):
    writer = PackWriter(f"{tmp_path}/pack")
    record = Record(raw_digest(hash_bytes(b"x")), Codec.PLAIN, 1, b"x")
    writer.add(record)

    assert writer.read(record.raw) == record
    assert record.raw in writer
    assert hash_bytes(b"") not in writer
    with pytest.raises(FileExistsError):
        PackWriter(f"{tmp_path}/pack")
    writer.close()
