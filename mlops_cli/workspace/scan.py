"""One walk over the workspace: what is there, and its digest.

A scan reads a file only when the state index does not know it, and builds the tree objects of a folder bottom-up, in
memory. Given a batch of the cache, it stores what it reads in the same pass, which is what `mlx add` is. Paths are
bytes inside (names need not be text) and project-relative posix text outside.
"""

from __future__ import annotations

import errno
import os
import stat as st
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import Digest, digest_from_raw, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.batch import Added, Batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.sources import Stat
from mlops_cli.store.trees import MOST_WITHOUT_FILES, Entry, Kind, encode_tree, tree_objects
from mlops_cli.store.witness import Witness
from mlops_cli.workers import END, carried_out, crew_size
from mlops_cli.workspace.ignore import NAME as IGNORE_NAME
from mlops_cli.workspace.ignore import rules_above
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reading import (
    TEMPORARY,
    Fact,
    FileReader,
    Filled,
    Filler,
    Finding,
    Folder,
    Looker,
    Made,
    fingerprint,
    fingerprint_below,
)
from mlops_cli.workspace.state import Clock, Known, Row, State

_REPORT_EVERY = 512
_IGNORE_NAME = os.fsencode(IGNORE_NAME)
_STAT = struct.Struct("<qqqQQ")
_MOST_LISTED = 65536  # files of which the names are held in memory before they are looked at
# Files from which on several processes are faster than one: two or three microseconds each to be looked at, fifty to
# be read and stored.
LOOKED_AT_BY_MANY = 8192
READ_BY_MANY = 512


class Scanner:
    """Looks at the workspace; keeps what it learnt for the state index until `save`.

    `trees` holds every tree object the scan has built, by digest: the workspace's side of a diff. `ignoring` lists the
    folders looked at that have a `.mlxignore` of their own, `litter` what somebody was or is writing there.
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
        self.litter: list[bytes] = []
        self._root = project.root
        self._cache = project.cache
        self._prefix = os.fsencode(f"{project.prefix}/") if project.prefix else b""
        self._state = state
        self._reporter = reporter
        self._local = project.local
        self.clock = Clock.read(project.local)  # what changed after this, the scan may not have seen
        self._reader = FileReader(os.fspath(project.root), self.clock, None, as_code=as_code)
        self._witness: Witness | None = None
        self._held = b""  # folders with this stamp have all that is in them in the cache
        self._written: list[tuple[bytes, bytes, Digest]] = []  # stats are packed: there may be a million
        self._changes: dict[bytes, tuple[dict[bytes, Row], set[bytes]]] = {}
        self._folders: dict[bytes, Known] = {}
        self._whole: dict[bytes, list[tuple[int, bytes]]] = {}  # all rows of folders, packed
        self._unbuilt: dict[Digest, bytes] = {}  # trees that nobody needed to build, and their folders
        self._unreported = 0
        if batch is not None:
            self.store_in(batch)

    def store_in(self, batch: Batch) -> None:
        """From now on, store what is read in `batch`. When that is published before `save`, the index knows it."""
        self._reader.batch = batch
        if self._cache.url is None:  # of what is not here, others may take away without a trace
            self._witness = Witness.of(self._cache)
            self._held = self._witness.stamp

    @contextmanager
    def only_looking(self) -> Iterator[None]:
        """Store nothing of what is read while the block lasts."""
        batch, self._reader.batch = self._reader.batch, None
        try:
            yield
        finally:
            self._reader.batch = batch

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
        key = self._key(folder)
        row = self._state.row(key, name)
        try:
            kind, size, raw, known = self._reader.look_at(place, stat, row, copied=copied)
        except FileNotFoundError:  # gone meanwhile, or a link to an object that is gone
            return None
        self._report(1)
        rows, gone = self._changes.get(key) or ({}, set())
        if known is not True:
            if known:
                rows[name] = Row(*known, raw)
            elif row is not None:
                gone.add(name)
            self._changes[key] = rows, gone
        return Entry(name, kind, size, 1, digest_from_raw(raw))

    def remember(self, path: bytes, stat: os.stat_result | Stat, digest: Digest) -> None:
        """Note that the file just written at `path` has `digest`; kept if the clock has moved on by `save`."""
        self._written.append((path, _STAT.pack(*Stat.of(stat)), digest))

    def save(self) -> None:
        """Write what was learnt to the state index."""
        self._report(0, force=True)
        if self._written:
            clock = Clock.read(self._local)
            while self._written:
                path, facts, digest = self._written.pop()
                stat = Stat(*_STAT.unpack(facts))
                if clock.is_settled(stat):
                    folder, _, name = path.rpartition(b"/")
                    row = Row(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, raw_digest(digest))
                    self._changes.setdefault(self._key(folder), ({}, set()))[0][name] = row
        before, after = (b"", b"") if self._witness is None else self._now_held(self._witness)
        if self._changes or self._folders or self._whole or before != after:
            changes = ((folder, rows, gone) for folder, (rows, gone) in self._changes.items())
            self._state.save(changes, self._folders, self._whole, held=after, held_before=before)
            self._changes, self._folders, self._whole = {}, {}, {}

    def _now_held(self, before: Witness) -> tuple[bytes, bytes]:
        """Return by which stamps folders were and are known to be held by the cache."""
        now = Witness.of(self._cache)
        return before.stamp, (now.stamp if before.stamp and now.still_has(before) else b"")

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
        self._reader.top = path
        folders = [Folder(path, self._key(path), -1, rules_above(self._root, os.fsdecode(path)))]
        listed: list[Folder] = []
        number = files = 0
        while number < len(folders):  # parents first: the list grows while it is walked
            folder = folders[number]
            folders.extend(self._list(folder, number))
            listed.append(folder)
            files += len(folder.files)
            if files >= _MOST_LISTED:
                self._look_into(listed, copied=copied, whole=whole)
                listed, files = [], 0
            number += 1
        self._look_into(listed, copied=copied, whole=whole)
        without_files = 0
        for folder in reversed(folders[1:]):  # children are complete before their parents
            parent = folders[folder.parent]
            if folder.hides and folder.known is not None:
                self._fill_again(folder)
            if folder.entries or folder.made or not folder.hides:
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

    def _list(self, folder: Folder, number: int) -> Iterator[Folder]:
        """Note which files are in `folder`, without those that rules leave out; yield its sub-folders."""
        with os.scandir(os.path.join(os.fsencode(self._root), folder.path)) as listing:
            children = list(listing)
        for name in [child.name for child in children if child.name[:4] == b".mlx"]:
            if name == _IGNORE_NAME:
                folder.rules = folder.rules.enter(self._root, os.fsdecode(folder.path))
                self.ignoring.append(os.fsdecode(folder.path))
            elif name.startswith(TEMPORARY):
                self.litter.append(folder.path + b"/" + name)
        if not folder.rules.specs:
            below = [child for child in children if child.is_dir(follow_symlinks=False)]
            folder.files = (
                [child for child in children if not child.is_dir(follow_symlinks=False)] if below else children
            )
            children = below
        for child in children:
            is_folder = child.is_dir(follow_symlinks=False)
            if self._hides(folder, child.name, is_folder):
                folder.hides = True
            elif is_folder:
                folder.inner = True
                path = folder.path + b"/" + child.name
                yield Folder(path, self._key(path), number, folder.rules)
            else:
                folder.files.append(child)

    def _hides(self, folder: Folder, name: bytes, is_folder: bool) -> bool:
        if folder.rules.specs and folder.rules.hides(os.fsdecode(folder.path + b"/" + name), is_folder=is_folder):
            return True
        return self._reader.hides(folder.path, name)

    def _look_into(self, folders: Sequence[Folder], *, copied: bool, whole: bool) -> None:
        """Gather the entries of the files of `folders`; with `whole`, of those alone that are not as they were."""
        if whole and (self._reader.batch is None or self._held):
            folders = self._pass_over(folders)
        self._fill(folders, copied=copied)

    def _pass_over(self, folders: Sequence[Folder]) -> list[Folder]:
        """Set `known` of each folder whose files are all as they were; return the others."""
        changed, asked = [], []
        for folder in folders:
            known = None if folder.rules.specs else self._state.known(folder.key)
            if known is None or (self._reader.batch is not None and known.held != self._held):
                changed.append(folder)
            else:
                asked.append((folder, known))
        looker = Looker([folder for folder, _ in asked])
        crew = crew_size() if sum(len(folder.files) for folder, _ in asked) >= LOOKED_AT_BY_MANY else 0
        facts: dict[int, list[Fact]] = {}
        seen: dict[int, tuple[bytes, int]] = {}
        for task, value in carried_out(looker, len(looker.tasks), crew):
            if task == END:
                continue
            for piece, (look, largest, part) in zip(looker.tasks[task], value, strict=True):
                self._report(piece.end - piece.start)
                if not piece.whole:
                    facts.setdefault(piece.group, []).extend(part)
                seen[piece.group] = look, largest
        for number, (folder, known) in enumerate(asked):
            look, largest = seen[number]
            if number in facts:
                look = fingerprint(facts[number])
                largest = max((fact[2] for fact in facts[number]), default=0)
            if look != known.seen or (self._reader.batch is not None and largest > self._cache.pack_below):
                changed.append(folder)
            else:
                folder.known, folder.seen, folder.files = known, look, []
        return changed

    def _fill(self, folders: Sequence[Folder], *, copied: bool = False) -> None:
        """Add the entries of the files of `folders` to them."""
        rows = [self._state.rows(folder.key) for folder in folders]
        filler = Filler(folders, rows, self._reader, copied=copied)
        files, known = sum(len(folder.files) for folder in folders), sum(map(len, rows))
        crew = crew_size() if files - known >= READ_BY_MANY or files >= LOOKED_AT_BY_MANY else 0
        batch = self._reader.batch
        if crew and batch is not None:
            batch.prepare()
        facts: list[list[Fact]] = [[] for _ in folders]
        young: set[int] = set()
        for task, value in carried_out(filler, len(filler.tasks), crew):
            if task == END:
                if value is not None and batch is not None:
                    batch.absorb(Added(*value))
                continue
            for piece, fields in zip(filler.tasks[task], value, strict=True):
                folder, filled = folders[piece.group], Filled(*fields)
                folder.hides = folder.hides or filled.hides
                if filled.made is not None:
                    folder.made, folder.seen = Made(*filled.made), filled.seen
                    if filled.rows is not None:
                        self._whole[folder.key] = filled.rows
                facts[piece.group] += filled.facts
                if self._take(folder, filled.found, rows[piece.group]):
                    young.add(piece.group)
                self._report(piece.end - piece.start)
        for number, folder in enumerate(folders):
            folder.files = []
            if folder.made is not None:
                continue
            gone = rows[number].keys() - {entry.name for entry in folder.entries if entry.kind != Kind.FOLDER}
            if gone:
                self._changes.setdefault(folder.key, ({}, set()))[1].update(gone)
            folder.seen = b"" if folder.rules.specs or number in young else fingerprint(facts[number])

    def _take(self, folder: Folder, found: Sequence[Finding], rows: Mapping[bytes, Row]) -> bool:
        """Add entries to a folder, and note what is learnt; return whether some are too young to be known."""
        young = False
        entries = folder.entries
        new, gone = self._changes.get(folder.key) or ({}, set())
        for name, kind, size, raw, known in found:
            entries.append(Entry(name, kind, size, 1, digest_from_raw(raw)))
            if known is True:
                continue
            if known:
                new[name] = Row(*known, raw)
            else:
                young = True
                if name in rows:
                    gone.add(name)
        if new or gone:
            self._changes[folder.key] = new, gone
        return young

    def _encode(self, folder: Folder, name: bytes) -> Entry:
        known = folder.known
        below = fingerprint_below(folder.entries) if known or folder.seen else b""
        if known is not None:
            if known.below == below:
                digest = digest_from_raw(known.tree)
                self._unbuilt[digest] = folder.path
                return Entry(name, Kind.FOLDER, known.size, known.files, digest)
            self._fill_again(folder)
        elif folder.seen:
            below = fingerprint_below([entry for entry in folder.entries if entry.kind == Kind.FOLDER])
        if folder.made is not None:
            raw, data, size, files = folder.made
            folder.made = None
            objects: tuple[tuple[Digest, bytes], ...] = ((digest_from_raw(raw), data),)
        else:
            objects = encode_tree(folder.entries)
            size = sum(entry.size for entry in folder.entries)
            files = sum(entry.files for entry in folder.entries)
            folder.entries = []
        for digest, data in objects:
            self.trees[digest] = data
            if self._reader.batch is not None:
                self._reader.batch.add_bytes(data)
        digest = objects[-1][0]
        if folder.seen and not folder.hides:
            self._folders[folder.key] = Known(folder.seen, below, raw_digest(digest), size, files)
        return Entry(name, Kind.FOLDER, size, files, digest)

    def _fill_again(self, folder: Folder) -> None:
        """Add the entries of files that were passed over, for a sub-folder is not as it was."""
        with os.scandir(os.path.join(os.fsencode(self._root), folder.path)) as listing:
            folder.files = [child for child in listing if not child.is_dir(follow_symlinks=False)]
        folder.known = None
        self._fill([folder])

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


def is_stored(cache: Cache, entry: Entry) -> bool:
    """Say whether the cache holds every byte of `entry`, folders with all that is beneath them."""
    if cache.is_offline:
        return True
    if entry.kind != Kind.FOLDER:
        return not cache.missing([entry.digest])
    try:
        return not cache.missing([digest for digest, _ in tree_objects(cache, entry.digest)])
    except MissingObject:
        return False
