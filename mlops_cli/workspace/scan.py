"""One walk over the workspace: what is there, and its digest.

A scan reads a file only when the state index does not know it, and builds the tree objects of a folder bottom-up, in
memory. Given a batch of the cache, it stores what it reads in the same pass, which is what `mlx add` is. Paths are
bytes inside (names need not be text) and project-relative posix text outside.
"""

from __future__ import annotations

import errno
import marshal
import os
import shlex
import stat as st
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import xxhash

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, is_git_folder
from mlops_cli.hashing import Digest, digest_from_raw, hash_bytes, hash_file, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.batch import Batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import object_at
from mlops_cli.store.sources import is_open_for_writing
from mlops_cli.store.trees import MOST_WITHOUT_FILES, Entry, Kind, encode_tree, tree_objects
from mlops_cli.workspace.ignore import NAME as IGNORE_NAME
from mlops_cli.workspace.ignore import IgnoreRules, rules_above
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.state import Clock, Known, Row, State

_REPORT_EVERY = 512
_RETRIES = 3
_TEMPORARY = os.fsencode(TEMPORARY_PREFIX)
_IGNORE_NAME = os.fsencode(IGNORE_NAME)
_TYPE = 0o170000
_PLAIN = 2  # the version of `marshal` that spells equal values equally


@dataclass(slots=True)
class _Folder:
    """A folder met on the walk, its entries gathered as its files and then its sub-folders are finished."""

    path: bytes
    parent: int
    rules: IgnoreRules
    entries: list[Entry] = field(default_factory=list)
    hides: bool = False  # something in it, or below, is left out
    seen: bytes = b""  # the fingerprint of its files' looks; empty when it cannot be known as a whole
    known: Known | None = None  # its files are as they were: they have no entries here


class Scanner:
    """Looks at the workspace; keeps what it learnt for the state index until `save`.

    `trees` holds every tree object the scan has built, by digest: the workspace's side of a diff. `ignoring` lists the
    folders looked at that have a `.mlxignore` of their own.
    """

    def __init__(
        self,
        project: Project,
        state: State,
        *,
        batch: Batch | None = None,
        reporter: Reporter = SILENT,
        as_code: bool = False,
    ) -> None:
        self.trees: dict[Digest, bytes] = {}
        self.ignoring: list[str] = []
        self._root = project.root
        self._cache = project.cache
        self._prefix = os.fsencode(f"{project.prefix}/") if project.prefix else b""
        self._state = state
        self._batch = batch
        self._reporter = reporter
        self._as_code = as_code
        self._local = project.local
        self._clock = Clock.read(project.local)
        self._written: list[tuple[bytes, os.stat_result, Digest]] = []
        self._changes: dict[bytes, tuple[dict[bytes, Row], set[bytes]]] = {}
        self._folders: dict[bytes, Known] = {}
        self._unbuilt: dict[Digest, bytes] = {}  # trees that nobody needed to build, and their folders
        self._unreported = 0

    def look(self, path: str, *, follow: bool = False, copied: bool = False) -> Entry | None:
        """Return the entry of the file, symlink or folder at `path`, or None when nothing is there.

        With `follow`, a symlink at `path` itself stands for what it leads to; with `copied`, files stay what they are
        in every link mode, none becoming an object or a link to one. UsageError for what cannot be stored:
        sockets, FIFOs, devices, a Git repository inside a folder.
        """
        place = os.fsencode(self._root / path)
        try:
            stat = os.stat(place, follow_symlinks=follow)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        folder, _, name = os.fsencode(path).rpartition(b"/")
        if st.S_ISDIR(stat.st_mode):
            return self._tree(os.fsencode(path), name, copied=copied)
        row = self._state.row(self._key(folder), name)
        try:
            return self._entry(place, name, stat, row, self._key(folder), copied=copied)
        except FileNotFoundError:  # gone meanwhile, or a link to an object that is gone
            return None

    def remember(self, path: bytes, stat: os.stat_result, digest: Digest) -> None:
        """Note that the file just written at `path` has `digest`; kept if the clock has moved on by `save`."""
        self._written.append((path, stat, digest))

    def save(self) -> None:
        """Write what was learnt to the state index."""
        self._report(0, force=True)
        if self._written:
            clock = Clock.read(self._local)
            for path, stat, digest in self._written:
                if clock.is_settled(stat):
                    folder, _, name = path.rpartition(b"/")
                    row = Row(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, raw_digest(digest))
                    self._changes.setdefault(self._key(folder), ({}, set()))[0][name] = row
            self._written = []
        if self._changes or self._folders:
            changes = ((folder, rows, gone) for folder, (rows, gone) in self._changes.items())
            self._state.save(changes, self._folders)
            self._changes, self._folders = {}, {}

    def read(self, digest: Digest) -> bytes:
        """Return a tree object, from this scan or from the cache (so that trees can be compared across the two)."""
        if digest in self._unbuilt and digest not in self.trees:
            try:
                return self._cache.read(digest)
            except MissingObject:
                self._tree(self._unbuilt[digest], b"", copied=False, whole=False)
        found = self.trees.get(digest)
        return self._cache.read(digest) if found is None else found

    def _key(self, folder: bytes) -> bytes:
        return (self._prefix + folder).rstrip(b"/")

    def _tree(self, path: bytes, name: bytes, *, copied: bool, whole: bool = True) -> Entry:
        """Return the entry of a folder; with `whole`, one that is as it was is not looked into file by file."""
        whole = whole and self._batch is None  # a batch stores each file that the cache has lost
        folders = [_Folder(path, -1, rules_above(self._root, os.fsdecode(path)))]
        number = 0
        while number < len(folders):  # parents first: the list grows while it is walked
            folders.extend(self._list(folders[number], number, copied=copied, whole=whole))
            number += 1
        without_files = 0
        for folder in reversed(folders[1:]):  # children are complete before their parents
            parent = folders[folder.parent]
            if folder.entries or not folder.hides:
                entry = self._encode(folder, folder.path.rpartition(b"/")[2])
                parent.entries.append(entry)
                without_files += not entry.files
            else:  # it holds nothing but what is left out: then it is left out too, and not an empty folder
                parent.hides = True
        if without_files > MOST_WITHOUT_FILES:  # nothing would read it back
            raise UsageError(
                f"`{os.fsdecode(path)}` holds more than {MOST_WITHOUT_FILES:,} folders without files",
                hint="remove them, or name them in a `.mlxignore`",
            )
        return self._encode(folders[0], name)

    def _list(self, folder: _Folder, number: int, *, copied: bool, whole: bool) -> Iterator[_Folder]:
        """Fill in the files of `folder`, unless all of them are as they were; yield its sub-folders."""
        place = os.path.join(os.fsencode(self._root), folder.path)
        with os.scandir(place) as listing:
            children = list(listing)
        if any(child.name == _IGNORE_NAME for child in children):
            folder.rules = folder.rules.enter(self._root, os.fsdecode(folder.path))
            self.ignoring.append(os.fsdecode(folder.path))
        files = []
        for child in children:
            is_folder = child.is_dir(follow_symlinks=False)
            if not (is_folder or folder.rules.specs):
                files.append(child)
            elif self._hides(folder, child.name, is_folder):
                folder.hides = True
            elif is_folder:
                yield _Folder(folder.path + b"/" + child.name, number, folder.rules)
            else:
                files.append(child)
        key = self._key(folder.path)
        looks = _looks(files)
        folder.seen = b"" if folder.rules.specs else _fingerprint(looks)
        known = self._state.known(key) if whole and folder.seen else None
        if known is not None and known.seen == folder.seen:
            folder.known = known
            self._report(len(files))
        else:
            self._fill(folder, looks, key, copied=copied)

    def _fill(
        self, folder: _Folder, looks: Sequence[tuple[os.DirEntry[bytes], os.stat_result]], key: bytes, *, copied: bool
    ) -> None:
        """Add the entries of a folder's files to it."""
        rows = self._state.rows(key)
        seen = set()
        for child, stat in looks:
            name = child.name
            if not folder.rules.specs and self._hides(folder, name, is_folder=False):
                folder.hides = True
                continue
            seen.add(name)
            try:
                folder.entries.append(self._entry(child.path, name, stat, rows.get(name), key, copied=copied))
            except FileNotFoundError:
                seen.discard(name)
        if not seen.issuperset(rows):
            self._changes.setdefault(key, ({}, set()))[1].update(rows.keys() - seen)
        new, gone = self._changes.get(key, ({}, set()))
        if seen != (rows.keys() | new.keys()) - gone:  # some are too young to be known
            folder.seen = b""

    def _hides(self, folder: _Folder, name: bytes, is_folder: bool) -> bool:
        if folder.rules.specs:
            path = os.fsdecode(folder.path + b"/" + name)
            if folder.rules.hides(path, is_folder=is_folder):
                return True
        if name.startswith(_TEMPORARY) or (self._as_code and name in (b"__pycache__", b".git")):
            return True
        if (b"git" in name.lower() or not name.isascii()) and is_git_folder(os.fsdecode(name)):
            raise _git_inside(os.fsdecode(folder.path), os.fsdecode(name))
        return False

    def _encode(self, folder: _Folder, name: bytes) -> Entry:
        known, folder.known = folder.known, None
        below = _fingerprint_below(folder.entries) if known or folder.seen else b""
        if known is not None:
            if known.below == below and not folder.hides:
                digest = digest_from_raw(known.tree)
                self._unbuilt[digest] = folder.path
                return Entry(name, Kind.FOLDER, known.size, known.files, digest)
            self._fill_again(folder)
        elif folder.seen:
            below = _fingerprint_below([entry for entry in folder.entries if entry.kind == Kind.FOLDER])
        objects = encode_tree(folder.entries)
        for digest, data in objects:
            self.trees[digest] = data
            if self._batch is not None:
                self._batch.add_bytes(data)
        size = sum(entry.size for entry in folder.entries)
        files = sum(entry.files for entry in folder.entries)
        digest = objects[-1][0]
        if folder.seen and not folder.hides:
            self._folders[self._key(folder.path)] = Known(folder.seen, below, raw_digest(digest), size, files)
        return Entry(name, Kind.FOLDER, size, files, digest)

    def _fill_again(self, folder: _Folder) -> None:
        """Add the entries of files that were passed over, for a sub-folder is not as it was."""
        with os.scandir(os.path.join(os.fsencode(self._root), folder.path)) as listing:
            files = [child for child in listing if not child.is_dir(follow_symlinks=False)]
        looks = _looks(files)
        folder.seen = _fingerprint(looks)
        self._fill(folder, looks, self._key(folder.path), copied=False)

    def _entry(
        self, place: bytes, name: bytes, stat: os.stat_result, row: Row | None, key: bytes, *, copied: bool
    ) -> Entry:
        mode = stat.st_mode
        if st.S_ISREG(mode):
            kind = Kind.EXECUTABLE if mode & st.S_IXUSR else Kind.FILE
            digest, size = self._digest(place, name, stat, row, key, copied=copied)
            return Entry(name, kind, size, 1, digest)
        if st.S_ISLNK(mode):
            target = os.readlink(place)
            if object_at(target) is not None:
                digest, size = self._digest(place, name, os.stat(place), row, key, copied=copied)
                return Entry(name, Kind.FILE, size, 1, digest)
            if self._as_code and os.path.isfile(place):  # code that is linked from elsewhere is still code
                return self._entry(place, name, os.stat(place), row, key, copied=copied)
            if self._batch is not None:
                self._batch.add_bytes(target)
            return Entry(name, Kind.SYMLINK, len(target), 1, hash_bytes(target))
        path = os.path.relpath(os.fsdecode(place), self._root)
        raise UsageError(
            f"`{path}` is a {_kind_name(mode)}, which holds no bytes to store",
            hint="remove it, or name it in a `.mlxignore`",
        )

    def _digest(
        self, place: bytes, name: bytes, stat: os.stat_result, row: Row | None, key: bytes, *, copied: bool
    ) -> tuple[Digest, int]:
        """Return the digest and size of a regular file, storing its bytes when there is a batch.

        Learnt is only what a later edit must contradict: not of a file as young as the scan, nor of one that somebody
        may be writing through a mapping into memory, which changes no time once a page of it is dirty.
        """
        self._report(1)
        if row is not None and row.matches(stat):
            digest = digest_from_raw(row.digest)
            if self._batch is None or self._batch.has(digest, row.size):
                return digest, row.size
        text = os.fsdecode(place)
        if self._batch is None:
            written = is_open_for_writing(text)  # asked before the bytes are read: who opens it later changes its times
            digest, seen = _hash_settled(text)
        else:
            digest, seen = self._batch.add_file(text, stat.st_size, copied=copied), stat
            written = self._batch.was_written
        rows, gone = self._changes.setdefault(key, ({}, set()))
        if self._clock.is_settled(seen) and not written:
            rows[name] = Row(seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, raw_digest(digest))
        elif row is not None:
            gone.add(name)
        return digest, seen.st_size

    def _report(self, count: int, *, force: bool = False) -> None:
        self._unreported += count
        if self._unreported >= _REPORT_EVERY or force:
            self._reporter.advance(self._unreported)
            self._unreported = 0


@contextmanager
def open_scanner(
    project: Project, *, batch: Batch | None = None, reporter: Reporter = SILENT, as_code: bool = False
) -> Iterator[Scanner]:
    """Yield a scanner on the clone's state index, which learns what was seen when the block ends well."""
    state = State.open(project.local / "state.db", project.git.name)
    try:
        scanner = Scanner(project, state, batch=batch, reporter=reporter, as_code=as_code)
        yield scanner
        scanner.save()
    finally:
        state.close()


def _looks(files: Iterable[os.DirEntry[bytes]]) -> list[tuple[os.DirEntry[bytes], os.stat_result]]:
    """Stat directory entries; those that are gone by now are left out."""
    found = []
    for child in files:
        with suppress(FileNotFoundError):
            found.append((child, child.stat(follow_symlinks=False)))
    return found


def _fingerprint(looks: Sequence[tuple[os.DirEntry[bytes], os.stat_result]]) -> bytes:
    """Return 16 bytes that tell these names and stats from others; nothing when there is a link or a special file."""
    facts = [(c.name, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for c, s in looks]
    if any(fact[1] & _TYPE != st.S_IFREG for fact in facts):
        return b""
    facts.sort()
    return xxhash.xxh3_128_digest(marshal.dumps(facts, _PLAIN))


def _fingerprint_below(folders: Sequence[Entry]) -> bytes:
    facts = sorted((folder.name, folder.size, folder.files, folder.digest) for folder in folders)
    return xxhash.xxh3_128_digest(marshal.dumps(facts, _PLAIN))


def is_stored(cache: Cache, entry: Entry) -> bool:
    """Say whether the cache holds every byte of `entry`, folders with all that is beneath them."""
    if entry.kind != Kind.FOLDER:
        return not cache.missing([entry.digest])
    try:
        return not cache.missing([digest for digest, _ in tree_objects(cache, entry.digest)])
    except MissingObject:
        return False


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
    leave_out = f"echo {shlex.quote(name)} >> {shlex.quote(f'{folder}/{IGNORE_NAME}')}"
    return UsageError(said, hint=f"`{leave_out}` leaves it out")


def _kind_name(mode: int) -> str:
    if st.S_ISFIFO(mode):
        return "FIFO"
    if st.S_ISSOCK(mode):
        return "socket"
    return "device"
