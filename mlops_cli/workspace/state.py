"""The state index: what each file hashed to when it last looked like this.

A row says "a file of this size, times and inode had this digest", so that an unchanged file is never read again. One
more row says, of a folder whose every file has such a row, what its files looked like in all and which tree it was: an
unchanged folder costs one look-up, not one a file. The index is a cache in SQLite, one per clone, read one folder per
query, its files' rows packed into a few values; damaged or of another version, it is thrown away. SQLite does not
notice a bit that a disk has flipped, so each value has a checksum: one that is wrong says nothing.
Rows are keyed by worktree and path inside it, so a moved clone keeps its index. A row is only kept when the file was
older than the look at it by more than the clock's grain (Git's racy rule): a later edit then must show in `ctime`,
which no program can set back.
"""

from __future__ import annotations

import marshal
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import xxhash

from mlops_cli.store.sources import Stat

VERSION = 3
PARTS = 16  # of a folder's rows, by a hash of the name: one changed file writes a sixteenth of them anew
GRAIN_NS = 20_000_000  # kernels stamp files with a clock that ticks every 1 to 10 ms
PLAIN = 2  # the version of `marshal` that spells equal values equally
# A schema that is not text any more is told as one that cannot be decoded.
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
COARSE_GRAIN_NS = 2_000_000_000  # FAT, some network file systems, and clocks that cannot be compared

_TABLES = """
CREATE TABLE IF NOT EXISTS folder(
    id INTEGER PRIMARY KEY, checkout TEXT NOT NULL, path BLOB NOT NULL,
    seen BLOB, below BLOB, tree BLOB, size INTEGER, files INTEGER, held BLOB, checksum BLOB, UNIQUE(checkout, path)
);
CREATE TABLE IF NOT EXISTS files(
    folder INTEGER NOT NULL, part INTEGER NOT NULL, rows BLOB NOT NULL, UNIQUE(folder, part)
);
"""


class Row(NamedTuple):
    """What a file looked like (sizes in bytes, times in ns since the epoch) and its raw 32-byte digest."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: bytes

    def matches(self, stat: os.stat_result | Stat) -> bool:
        """Say whether a file with this `stat` is the one the row is about, unchanged."""
        return (
            self.size == stat.st_size
            and self.mtime_ns == stat.st_mtime_ns
            and self.ctime_ns == stat.st_ctime_ns
            and self.inode == stat.st_ino
        )


class Known(NamedTuple):
    """A folder as a whole: fingerprints of its files' looks (`seen`) and of its sub-folders' trees (`below`).

    With them come the raw digest of its tree, and the bytes and number of the files in and below it; `held` is the
    cache's stamp under which the tree and all files in it were there.
    """

    seen: bytes
    below: bytes
    tree: bytes
    size: int
    files: int
    held: bytes = b""


class Clock:
    """The file system's own time, read before a look at the workspace, against which rows are judged old enough."""

    def __init__(self, now_ns: int, device: int) -> None:
        self._now_ns = now_ns
        self._device = device

    @classmethod
    def read(cls, folder: Path) -> Clock:
        """Touch a file in `folder` and take its time; a folder that cannot be written gives one that trusts nothing."""
        path = folder / "clock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.utime(descriptor)
                stat = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            return cls(0, 0)
        return cls(stat.st_mtime_ns, stat.st_dev)

    def is_settled(self, stat: os.stat_result | Stat) -> bool:
        """Say whether any edit after this moment must give the file another `ctime` than `stat` has."""
        same = stat.st_dev == self._device and stat.st_ctime_ns % 1_000_000_000 != 0
        return stat.st_ctime_ns < self._now_ns - (GRAIN_NS if same else COARSE_GRAIN_NS)


class State:
    """An open state index, seen from one checkout; paths are bytes relative to the top of the checkout."""

    def __init__(self, database: sqlite3.Connection, checkout: str) -> None:
        self._database = database
        self._checkout = checkout
        self._folders: dict[bytes, tuple[int, Known | None]] | None = None

    @classmethod
    def open(cls, path: Path, checkout: str) -> State:
        """Open the index at `path`, making it anew when it is absent, damaged or of another version."""
        try:
            try:
                return cls(_connect(path), checkout)
            except sqlite3.OperationalError:
                raise  # locked, unreadable, a full disk: not a reason to throw the file away
            except _DAMAGE:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                return cls(_connect(path), checkout)
        except (*_DAMAGE, OSError):  # work without an index, only slower
            return cls(_tables(sqlite3.connect(":memory:")), checkout)

    def close(self) -> None:
        """Close the index."""
        self._database.close()

    def known(self, folder: bytes) -> Known | None:
        """Return what is known of a folder as a whole."""
        return self._all().get(folder, (0, None))[1]

    def rows(self, folder: bytes) -> dict[bytes, Row]:
        """Return the rows of one folder by file name; empty when it was never looked at."""
        number = self._number_of(folder)
        if number is None:
            return {}
        found: dict[bytes, Row] = {}
        try:
            for (data,) in self._database.execute("SELECT rows FROM files WHERE folder = ?", (number,)):
                found.update(_decode(data))
        except _DAMAGE:
            return {}
        return found

    def row(self, folder: bytes, name: bytes) -> Row | None:
        """Return the row of one file."""
        number = self._number_of(folder)
        if number is None:
            return None
        try:
            query = "SELECT rows FROM files WHERE folder = ? AND part = ?"
            found = self._database.execute(query, (number, _part_of(name))).fetchone()
        except _DAMAGE:
            return None
        row = None if found is None else _loaded(found[0]).get(name)
        return None if row is None else Row._make(row)

    def save(
        self,
        changes: Iterable[tuple[bytes, dict[bytes, Row], Iterable[bytes]]],
        folders: Mapping[bytes, Known] = MappingProxyType({}),
        whole: Mapping[bytes, Sequence[tuple[int, bytes]]] = MappingProxyType({}),
        *,
        held: bytes = b"",
        held_before: bytes = b"",
    ) -> None:
        """Record, per folder, new rows and the names whose rows are gone, and what folders are in all; all or nothing.

        `whole` has all rows that folders are to have, as `pack_rows` gives them. The cache holds all of `folders` under
        the stamp `held`, and so what it held under `held_before` (empty: none). A failure to write is not an error: the
        files are hashed again next time.
        """
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")  # what is read below must be what is replaced
                for folder, parts in whole.items():
                    number = self._number(folder)
                    self._database.execute("DELETE FROM files WHERE folder = ?", (number,))
                    self._write(number, parts)
                for folder, rows, gone in changes:
                    self._change(folder, rows, gone)
                if held and held_before and held != held_before:
                    self._database.execute("UPDATE folder SET held = ? WHERE held = ?", (held, held_before))
                for folder, known in folders.items():
                    number = self._number(folder)
                    columns = "seen = ?, below = ?, tree = ?, size = ?, files = ?, held = ?, checksum = ?"
                    values = (*known[:-1], held, _checksum((folder, *known[:-1])), number)
                    self._database.execute(f"UPDATE folder SET {columns} WHERE id = ?", values)  # noqa: S608 - ours
                self._folders = None
        except _DAMAGE:
            self._folders = None

    def _change(self, folder: bytes, rows: Mapping[bytes, Row], gone: Iterable[bytes]) -> None:
        is_new = folder not in self._all()
        number = self._number(folder)
        parts: dict[int, dict[bytes, Row]] = {}

        def part_with(name: bytes) -> dict[bytes, Row]:
            part = _part_of(name)
            if part not in parts:
                parts[part] = {} if is_new else self._part(number, part)
            return parts[part]

        for name in gone:
            part_with(name).pop(name, None)
        for name, row in rows.items():
            part_with(name)[name] = row
        self._write(number, ((part, _encode(rows)) for part, rows in parts.items()))

    def _write(self, number: int, parts: Iterable[tuple[int, bytes]]) -> None:
        self._database.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", ((number, part, data) for part, data in parts)
        )

    def _part(self, number: int, part: int) -> dict[bytes, Row]:
        query = "SELECT rows FROM files WHERE folder = ? AND part = ?"
        found = self._database.execute(query, (number, part)).fetchone()
        return {} if found is None else _decode(found[0])

    def move_folder(self, old: bytes, new: bytes) -> None:
        """Know a folder that was renamed, and all below it, by its new path; failing to is not an error.

        Its files are what they were: renaming a folder changes nothing of them.
        """
        folders = self._all()
        moved = [
            (new + path[len(old) :], number)
            for path, (number, _) in folders.items()
            if path == old or path.startswith(old + b"/")
        ]
        stale = [(folders[path][0],) for path, _ in moved if path in folders]
        try:
            with self._database:
                self._database.executemany("DELETE FROM files WHERE folder = ?", stale)
                self._database.executemany("DELETE FROM folder WHERE id = ?", stale)
                self._database.executemany("UPDATE folder SET path = ? WHERE id = ?", moved)
        except _DAMAGE:
            pass  # they are hashed again next time
        self._folders = None

    def forget(self) -> None:
        """Drop every row of this checkout, as when a scratch worktree is removed; failing to is not an error."""
        rows = "DELETE FROM files WHERE folder IN (SELECT id FROM folder WHERE checkout = ?)"
        with suppress(*_DAMAGE), self._database:
            self._database.execute(rows, (self._checkout,))
            self._database.execute("DELETE FROM folder WHERE checkout = ?", (self._checkout,))
        self._folders = None

    def _all(self) -> dict[bytes, tuple[int, Known | None]]:
        if self._folders is None:
            query = "SELECT path, id, seen, below, tree, size, files, held, checksum FROM folder WHERE checkout = ?"
            try:
                rows = self._database.execute(query, (self._checkout,))
                self._folders = {
                    path: (number, Known._make(known) if checksum == _checksum((path, *known[:-1])) else None)
                    for path, number, *known, checksum in rows
                }
            except _DAMAGE:
                self._folders = {}
        return self._folders

    def _number_of(self, folder: bytes) -> int | None:
        return self._all().get(folder, (None, None))[0]

    def _number(self, folder: bytes) -> int:
        known = self._all()
        if folder not in known:
            self._database.execute(
                "INSERT OR IGNORE INTO folder(checkout, path) VALUES (?, ?)", (self._checkout, folder)
            )
            query = "SELECT id FROM folder WHERE checkout = ? AND path = ?"
            known[folder] = (self._database.execute(query, (self._checkout, folder)).fetchone()[0], None)
        return known[folder][0]


def pack_rows(rows: Mapping[bytes, tuple[int, int, int, int, bytes]]) -> list[tuple[int, bytes]]:
    """Return the rows of a folder as the index keeps them: numbered parts. Plain tuples do as well as `Row`."""
    parts: dict[int, dict[bytes, tuple[int, int, int, int, bytes]]] = {}
    for name, row in rows.items():
        parts.setdefault(_part_of(name), {})[name] = row
    return [(part, _encode(rows)) for part, rows in parts.items()]


def _part_of(name: bytes) -> int:
    return crc32(name) % PARTS


def _encode(rows: Mapping[bytes, tuple[int, int, int, int, bytes]]) -> bytes:
    data = marshal.dumps({name: tuple(row) for name, row in rows.items()}, PLAIN)
    return xxhash.xxh3_64_digest(data) + data


def _decode(data: object) -> dict[bytes, Row]:
    """Return the rows that `_encode` wrote; none when they are not what it wrote."""
    return {name: Row._make(row) for name, row in _loaded(data).items()}


def _loaded(data: object) -> dict[bytes, tuple[int, int, int, int, bytes]]:
    if not isinstance(data, bytes) or xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        return {}
    loaded: dict[bytes, tuple[int, int, int, int, bytes]] = marshal.loads(data[8:])  # noqa: S302 - checked
    return loaded


def _checksum(row: tuple[Any, ...]) -> bytes:
    """Return what tells that the row of a folder, but for its stamp, is what was written."""
    return xxhash.xxh3_64_digest(marshal.dumps(row, PLAIN))


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=5)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.execute("PRAGMA journal_mode=WAL")
            return _tables(database)
        if version != VERSION:
            raise sqlite3.DatabaseError("another version")
        database.execute("PRAGMA synchronous=NORMAL")
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if not tables >= {"folder", "files"}:
            raise sqlite3.DatabaseError("tables are gone")
    except BaseException:
        database.close()
        raise
    return database


def _tables(database: sqlite3.Connection) -> sqlite3.Connection:
    with database:
        database.executescript(f"BEGIN EXCLUSIVE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    return database
