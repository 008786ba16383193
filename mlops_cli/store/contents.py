"""What lies in a cache, file by file, and since when.

The age of a file is that of its last change, be it of bytes, name or links (the later of mtime and ctime): an object
that was somebody's file of last year a minute ago is a minute old.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.files import list_folder
from mlops_cli.hashing import RAW_SIZE
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.pack_format import RECORD_SIZE, PackError, scan_records
from mlops_cli.store.pack_index import read_footer
from mlops_cli.store.packed import PackedStore


class Loose(NamedTuple):
    """An object in a file of its own: its 32-byte digest, its bytes, and when the file last changed (s)."""

    raw: bytes
    size: int
    time: float


class Packed(NamedTuple):
    """A pack: its name, bytes, when it last changed (s), and each object's 32-byte digest with what its record takes.

    `objects` is None when the pack's table cannot be read: then nobody knows what is in it.
    """

    name: str
    size: int
    time: float
    objects: Collection[tuple[bytes, int]] | None


class Run(NamedTuple):
    """A run record: its fingerprint, its bytes, and when it last changed (s)."""

    key: str
    size: int
    time: float


class Contents(NamedTuple):
    """All that a cache holds.

    But for `trash/`, `quarantine/`, `tmp/`, `partial/`, and `recipes/`, which can be found out again.
    """

    loose: tuple[Loose, ...] = ()
    packs: tuple[Packed, ...] = ()
    runs: tuple[Run, ...] = ()


def read_contents(store: PackedStore, reporter: Reporter = SILENT) -> Contents:
    """Return what `store` holds now; OSError passes through."""
    return Contents(tuple(_loose(store, reporter)), tuple(_packs(store, reporter)), tuple(_runs(store)))


def changed_at(info: os.stat_result) -> float:
    """Return when a file last changed in any way, in seconds since the epoch."""
    return max(info.st_mtime, info.st_ctime)


def _loose(store: PackedStore, reporter: Reporter) -> Iterator[Loose]:
    for shard in list_folder(f"{store.root}/objects"):
        if len(shard.name) != 2:
            continue
        found = list_folder(shard.path)
        reporter.advance(len(found))
        for entry in found:
            with suppress(ValueError, FileNotFoundError):
                raw = bytes.fromhex(shard.name + entry.name)
                if len(raw) == RAW_SIZE:
                    info = entry.stat(follow_symlinks=False)
                    yield Loose(raw, info.st_size, changed_at(info))


def _packs(store: PackedStore, reporter: Reporter) -> Iterator[Packed]:
    for name in store.packs.names():
        reporter.advance(1)
        path = store.packs.path_of(name)
        with suppress(FileNotFoundError):
            info = os.stat(path)
            yield Packed(name, info.st_size, changed_at(info), read_pack(path, name))


def read_pack(path: str, name: str) -> Collection[tuple[bytes, int]] | None:
    """Return the 32-byte digest of each object in a pack, with what its record takes; None if it cannot be read."""
    try:
        table = read_footer(path, name)
        table.verify()
    except PackError:
        return None
    return _Rows(table.raws(0, table.count), table.columns(0, table.count)[2])


def scan_pack(path: str) -> Iterator[bytes]:
    """Yield the 32-byte digest of each good record of a pack, whatever its table says; none of one that is gone."""
    with suppress(FileNotFoundError):
        for _, record in scan_records(memoryview(Path(path).read_bytes())):
            yield record.raw


class _Rows(Collection[tuple[bytes, int]]):
    """The objects of a pack, in the columns that they were read in: there may be millions."""

    __slots__ = ("_digests", "_stored")

    def __init__(self, digests: bytes, stored: bytes) -> None:
        self._digests = digests
        self._stored = stored

    def __len__(self) -> int:
        return len(self._digests) // RAW_SIZE

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        digests = self._digests
        starts = range(0, len(digests), RAW_SIZE)
        for at, (size,) in zip(starts, struct.iter_unpack("<I", self._stored), strict=True):
            yield digests[at : at + RAW_SIZE], size + RECORD_SIZE

    def __contains__(self, item: object) -> bool:
        return any(item == mine for mine in self)


def _runs(store: PackedStore) -> Iterator[Run]:
    for entry in list_folder(f"{store.root}/runs"):
        key = entry.name.removesuffix(".yaml")
        if entry.name.endswith(".yaml") and key.isalnum() and key.isascii():
            with suppress(FileNotFoundError):
                info = entry.stat(follow_symlinks=False)
                yield Run(key, info.st_size, changed_at(info))
