"""The files of folders, looked at and read: by this process or, when they are many, by several copies of it.

A look tells whether the files of a folder are as they were. Filling reads those whose digest the state index does not
know, and stores them in the same pass when there is a batch to store them in.
"""

from __future__ import annotations

import marshal
import os
import stat as st
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import xxhash

from mlops_cli.errors import UsageError
from mlops_cli.files import TEMPORARY_PREFIX, is_git_folder
from mlops_cli.hashing import Digest, digest_from_raw, hash_alone, hash_bytes, hash_file, raw_digest
from mlops_cli.store.batch import Batch
from mlops_cli.store.links import object_at
from mlops_cli.store.sources import is_it, is_open_for_writing
from mlops_cli.store.tree_format import SPLIT_ABOVE
from mlops_cli.store.trees import Entry, Kind, encode_files
from mlops_cli.words import quoted, word
from mlops_cli.workers import Piece, cut_into_tasks
from mlops_cli.workspace.dead_links import dead_link
from mlops_cli.workspace.ignore import NAME as IGNORE_NAME
from mlops_cli.workspace.ignore import IgnoreRules
from mlops_cli.workspace.state import PLAIN, Clock, Known, Row, pack_rows

_RETRIES = 3
TEMPORARY = os.fsencode(TEMPORARY_PREFIX)
_TYPE = 0o170000
# Files of a folder that one process looks at, or reads, alone: of a whole one there is less to say than of its files.
_LOOKED_AT_WHOLE = 16384
_READ_WHOLE = 2048

# One of each comes for every file, so these are plain tuples: named ones take 0.3 µs longer to make, a tenth of a whole
# look at a file, and `marshal`, which takes them from process to process, does not write them.
Fact = tuple[bytes, int, int, int, int, int]
"""What a file looks like: name, mode, size, mtime and ctime in ns, inode."""

Knowledge = tuple[int, int, int, int] | bool
"""What the state index is to know of a file: a new row (without the digest), what it knew (True), nothing (False)."""

Finding = tuple[bytes, int, int, bytes, Knowledge]
"""An entry: name, kind, size, raw digest; with it, what the state index is to know."""


@dataclass(slots=True)
class Folder:
    """A folder met on the walk, its entries gathered as its files and then its sub-folders are finished."""

    path: bytes
    key: bytes  # of its rows in the state index
    parent: int
    rules: IgnoreRules
    files: list[os.DirEntry[bytes]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    hides: bool = False  # something in it, or below, is left out
    seen: bytes = b""  # the fingerprint of its files' looks; empty when it cannot be known as a whole
    inner: bool = False  # it has sub-folders that are not left out
    known: Known | None = None  # its files are as they were: they have no entries here
    made: Made | None = None  # neither have they when its tree is made already


class Made(NamedTuple):
    """The tree of a folder without sub-folders: raw digest, bytes, and the bytes and number of its files."""

    digest: bytes
    data: bytes
    size: int
    files: int


class Filled(NamedTuple):
    """What filling a piece came to.

    Of a whole folder without sub-folders that is the fingerprint of its files' looks (empty when some are too young to
    be known), its rows as the state index packs them (None: as they were), and its tree. Of all others it is what the
    files look like, and their entries.
    """

    hides: bool
    seen: bytes
    rows: list[tuple[int, bytes]] | None
    made: tuple[bytes, bytes, int, int] | None
    facts: list[Fact]
    found: list[Finding]


class Looker:
    """Stats the files of folders, and says what they look like."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._folders = folders
        sizes = [len(folder.files) for folder in folders]
        self.tasks = cut_into_tasks(sizes, [size <= _LOOKED_AT_WHOLE for size in sizes])

    def begin(self, worker: int) -> None:
        """Go on in another process: nothing is shared."""

    def do(self, task: int) -> list[tuple[bytes, int, list[Fact]]]:
        """Return, for each piece, fingerprint and largest file when it is a whole folder, else what its files are."""
        return [self._look(piece) for piece in self.tasks[task]]

    def end(self) -> None:
        """Nothing is left to say."""

    def _look(self, piece: Piece) -> tuple[bytes, int, list[Fact]]:
        children = self._folders[piece.group].files[piece.start : piece.end]
        try:
            found = _looks_of(children)
        except FileNotFoundError:
            found = [fact for child in children for fact in _look_of(child)]
        if not piece.whole:
            return b"", 0, found
        return fingerprint(found), max(map(itemgetter(2), found), default=0), []


def _looks_of(children: Sequence[os.DirEntry[bytes]]) -> list[Fact]:
    """Return what files look like; FileNotFoundError when one is gone."""
    return [
        (child.name, stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        for child in children
        for stat in (child.stat(follow_symlinks=False),)
    ]


def _look_of(child: os.DirEntry[bytes]) -> list[Fact]:
    """Return what a file looks like, nothing when it is gone."""
    try:
        return _looks_of([child])
    except FileNotFoundError:
        return []


def _fact(name: bytes, stat: os.stat_result) -> Fact:
    return name, stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def fingerprint(facts: list[Fact]) -> bytes:
    """Return 16 bytes that tell these names and stats from others; nothing when there is a link or a special file."""
    if {fact[1] & _TYPE for fact in facts} - {st.S_IFREG}:
        return b""
    facts.sort()
    return xxhash.xxh3_128_digest(marshal.dumps(facts, PLAIN))


def fingerprint_below(folders: Sequence[Entry]) -> bytes:
    """Return 16 bytes that tell these sub-folders' trees from others."""
    facts = sorted((folder.name, folder.size, folder.files, folder.digest) for folder in folders)
    return xxhash.xxh3_128_digest(marshal.dumps(facts, PLAIN))


class Filler:
    """Reads the files of folders whose digest is not known, storing them when there is a batch.

    `rows` are what the state index knows of each folder's files.
    """

    def __init__(
        self,
        folders: Sequence[Folder],
        rows: Sequence[Mapping[bytes, Row]],
        reader: FileReader,
        *,
        copied: bool = False,
    ) -> None:
        self._folders = folders
        self._rows = rows
        self._reader = reader
        self._copied = copied
        self._part: Batch | None = None
        sizes = [len(folder.files) for folder in folders]
        self.tasks = cut_into_tasks(sizes, [size <= _READ_WHOLE for size in sizes])

    def begin(self, worker: int) -> None:
        """Go on in another process."""
        hash_alone()
        self._part = self._reader.batch
        if self._part is not None:
            self._part.divide(worker)

    def do(self, task: int) -> list[tuple[object, ...]]:
        """Return the fields of `Filled` for each piece."""
        return [tuple(self._fill(piece)) for piece in self.tasks[task]]

    def end(self) -> object:
        """Return what another process than the batch's owner stored: the fields of `Added`."""
        return None if self._part is None else tuple(self._part.divided())

    def _fill(self, piece: Piece) -> Filled:
        folder, rows = self._folders[piece.group], self._rows[piece.group]
        look_at, copied = self._reader.look_at, self._copied
        children = folder.files[piece.start : piece.end]
        doubtful = not folder.rules.specs and self._reader.may_hide([child.name for child in children])
        facts: list[Fact] = []
        found: list[Finding] = []
        hides = False
        for child in children:
            name = child.name
            try:
                stat = os.stat(child.path, follow_symlinks=False)  # not what a look has found some time ago
                facts.append(_fact(name, stat))
                if doubtful and self._reader.hides(folder.path, name):
                    hides = True
                else:
                    found.append((name, *look_at(child.path, stat, rows.get(name), copied=copied)))
            except FileNotFoundError:  # it is gone
                continue
        if self._reader.batch is not None:
            self._reader.refuse_link(folder.path)
        if folder.inner or not piece.whole or not found or len(found) > SPLIT_ABOVE:
            return Filled(hides, b"", None, None, facts, found)
        digest, data = encode_files([finding[:4] for finding in found])
        made = raw_digest(digest), data, sum(map(itemgetter(2), found)), len(found)
        return Filled(hides, *self._known(folder, rows, facts, found), made, [], [])

    @staticmethod
    def _known(
        folder: Folder, rows: Mapping[bytes, Row], facts: list[Fact], found: list[Finding]
    ) -> tuple[bytes, list[tuple[int, bytes]] | None]:
        """Return what the state index is to know of a whole folder: fingerprint, and rows unless as they were."""
        young = any(known is False for *_, known in found)
        seen = b"" if young or folder.rules.specs else fingerprint(facts)
        if len(rows) == len(found) and all(known is True for *_, known in found):
            return seen, None
        now: dict[bytes, tuple[int, int, int, int, bytes]] = {}
        for name, _, _, raw, known in found:
            if known is True:
                if name in rows:  # a symlink has none
                    now[name] = rows[name]
            elif known is not False:
                now[name] = *known, raw
        return seen, pack_rows(now)


class FileReader:
    """Says what files are: their kinds, sizes and digests."""

    def __init__(self, root: str, clock: Clock, batch: Batch | None, *, as_code: bool) -> None:
        self.batch = batch
        self.top = b""  # the folder that is walked
        self._root = root
        self._clock = clock
        self._as_code = as_code

    def may_hide(self, names: Sequence[bytes]) -> bool:
        """Say whether `hides` has to be asked about any of these names."""
        joined = b"/".join(names)
        return self._as_code or TEMPORARY in joined or b"git" in joined.lower() or not joined.isascii()

    def hides(self, folder: bytes, name: bytes) -> bool:
        """Say whether a name is left out everywhere; UsageError for that of a Git repository inside `folder`."""
        if name.startswith(TEMPORARY) or (self._as_code and name in (b"__pycache__", b".git")):
            return True
        if (b"git" in name.lower() or not name.isascii()) and is_git_folder(os.fsdecode(name)):
            raise _git_inside(os.fsdecode(folder), os.fsdecode(name))
        return False

    def refuse_link(self, folder: bytes) -> None:
        """Raise UsageError when a folder below `top`, of which files were stored, has become a link to another."""
        above = len(self.top.rpartition(b"/")[0])
        while len(folder) > above:
            if os.path.islink(os.path.join(os.fsencode(self._root), folder)):
                raise UsageError(
                    f"`{os.fsdecode(folder)}` became a symbolic link while it was read",
                    hint="run the command again when nothing changes it",
                )
            folder = folder.rpartition(b"/")[0]

    def look_at(
        self, place: bytes, stat: os.stat_result, row: Row | None, *, copied: bool = False
    ) -> tuple[int, int, bytes, Knowledge]:
        """Return kind, size, raw digest and knowledge of a file or symlink; UsageError when it is neither.

        FileNotFoundError when it is gone, or is a link to an object that is; MissingObject for the latter when it is to
        be stored: a record must not lose a file because the cache did.
        """
        mode = stat.st_mode
        if st.S_ISREG(mode):
            kind = Kind.EXECUTABLE if mode & st.S_IXUSR else Kind.FILE
            return int(kind), *self._read(place, stat, row, copied=copied)
        if st.S_ISLNK(mode):
            target = os.readlink(place)
            if object_at(target) is not None:
                return int(Kind.FILE), *self._read(place, self._linked(place), row, copied=copied)
            if self._as_code and os.path.isfile(place):  # code that is linked from elsewhere is still code
                return self.look_at(place, os.stat(place), row, copied=copied)
            if self.batch is not None:
                self.batch.add_bytes(target)
            return int(Kind.SYMLINK), len(target), raw_digest(hash_bytes(target)), row is None
        path = os.path.relpath(os.fsdecode(place), self._root)
        raise UsageError(
            f"`{path}` is a {_kind_name(mode)}, which holds no bytes to store",
            hint="remove it, or name it in a `.mlxignore`",
        )

    def _linked(self, place: bytes) -> os.stat_result:
        """Return the stat of the object that a link leads to."""
        try:
            return os.stat(place)
        except FileNotFoundError:
            if self.batch is None or not os.path.islink(place):
                raise
            path = os.path.relpath(os.fsdecode(place), self._root)
            raise dead_link(path) from None

    def _read(
        self, place: bytes, stat: os.stat_result, row: Row | None, *, copied: bool
    ) -> tuple[int, bytes, Knowledge]:
        """Return size, raw digest and knowledge of a regular file, storing its bytes when there is a batch.

        Learnt is only what a later edit must contradict: not of a file as young as the scan, nor of one that somebody
        may be writing through a mapping into memory, which changes no time once a page of it is dirty.
        """
        batch = self.batch
        if (
            row is not None
            and row.matches(stat)
            and (batch is None or batch.has(digest_from_raw(row.digest), row.size))
        ):
            return row.size, row.digest, True
        text = os.fsdecode(place)
        if batch is None:
            written = is_open_for_writing(text)  # asked before the bytes are read: who opens it later changes its times
            digest, seen = _hash_settled(text)
        else:
            digest, seen = batch.add_file(text, stat.st_size, copied=copied, seen=stat), stat
            # Of a file that is not the one that was looked at, nothing is known.
            written = batch.was_written or (batch.stat is not None and not is_it(batch.stat, stat))
        raw = raw_digest(digest)
        if self._clock.is_settled(seen) and not written:
            return seen.st_size, raw, (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        return seen.st_size, raw, False


def _hash_settled(path: str) -> tuple[Digest, os.stat_result]:
    """Hash a file that may be being written: the stat is of the very bytes that were hashed."""
    for _ in range(_RETRIES):
        before = os.stat(path)
        digest = hash_file(path)
        after = os.stat(path)
        if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        ):
            return digest, after
    raise UsageError(f"`{path}` keeps changing while it is read", hint="run this again when nothing writes to it")


def _git_inside(folder: str, name: str) -> UsageError:
    said = f"`{folder}` holds a Git repository of its own (`{folder}/{name}`)"
    if name.lower() != ".git":
        said = f"`{folder}/{name}` has a name that some file systems take for `.git`"
    leave_out = f"echo {quoted(name)} >> {word(f'{folder}/{IGNORE_NAME}')}"
    return UsageError(said, hint=f"`{leave_out}` leaves it out")


def _kind_name(mode: int) -> str:
    if st.S_ISFIFO(mode):
        return "FIFO"
    if st.S_ISSOCK(mode):
        return "socket"
    return "device"
