"""How files of the workspace share bytes with the cache: `mlx unprotect` and `mlx checkout --relink`.

A file that is the cache's own, by a hard link or a symlink, must not be written to. Both commands replace such files,
or make them, one atomic rename each, and never touch bytes that no store holds.
"""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import CLONE_FROM, Cache
from mlops_cli.store.links import LinkMode, object_at
from mlops_cli.store.sources import is_open_for_writing
from mlops_cli.store.trees import Entry, Kind, diff, walk
from mlops_cli.words import word
from mlops_cli.workspace import git
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.folders import Folders
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import damaged_at, find_part, resolve_part
from mlops_cli.workspace.reservations import leave_in_use
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Tracked, select, workspace_snapshot

_WRITABLE = 0o222
_REPORT_EVERY = 64
_Item = TypeVar("_Item")
_ROOT_KNOWS = "root-knows"  # a file in the clone's folder: the warning was given


@dataclass(frozen=True, slots=True)
class Relinked:
    """A tracked path, or a part of one, and how many of its files were (or would be) replaced."""

    path: str
    files: int


def unprotect(
    project: Project, targets: Sequence[str] = (), *, dry_run: bool = False, reporter: Reporter = SILENT
) -> tuple[Relinked, ...]:
    """Make every file at `targets` one of the workspace's own, and writable; returns the paths where some were not.

    UsageError for what is not tracked. After all the others: MissingObject for a link to an object that is gone,
    CorruptObject for one whose bytes were changed through a link; such files stay as they are.
    """
    found: list[Relinked] = []
    failures = _Failures()
    with open_scanner(project) as scanner:
        relinking = _Relinking(project, scanner, project.cache.copying())
        for tracked, part in leave_in_use(project, _chosen(project, targets), targets, reporter):
            path = f"{tracked.path}/{part}" if part else tracked.path
            reporter.start("unprotecting", None, "files")
            count = 0
            for name, info in _telling(relinking.protected(os.fsencode(path)), reporter):
                with failures.gathered():
                    if not dry_run:
                        relinking.free(name, info)
                    count += 1
            if count:
                found.append(Relinked(path, count))
    failures.raise_any()
    return tuple(found)


def relink(
    project: Project, targets: Sequence[str] = (), *, dry_run: bool = False, reporter: Reporter = SILENT
) -> tuple[Relinked, ...]:
    """Make the files at `targets` that are as recorded be linked, cloned or copied as `cache.link` says.

    Files that differ from their record, that somebody is writing to, or whose object is not in the cache, stay as they
    are. After all the others: MissingObject when a listing is not in the cache; CorruptObject for a damaged object: its
    file stays too.
    """
    found: list[Relinked] = []
    failures = _Failures()
    with open_scanner(project, reporter=reporter) as scanner:
        for tracked, part in leave_in_use(project, _chosen(project, targets), targets, reporter):
            path = f"{tracked.path}/{part}" if part else tracked.path
            cache = project.cache
            if cache.shares and not git.ignored_files(project.root, [tracked.path]):
                cache = cache.copying()  # Git would commit a link into this machine's cache
            relinking = _Relinking(project, scanner, cache)
            reporter.start("checking", None, "files")
            wrong: list[tuple[bytes, Entry, os.stat_result]] = []
            with failures.gathered():
                wrong = relinking.unlike(tracked, part)
            scanner.save()  # what it has not told yet belongs to the checking
            reporter.start("relinking", len(wrong), "files")
            count = 0
            for item in _telling(wrong, reporter):
                with failures.gathered():
                    count += dry_run or relinking.place(*item)
            if count:
                found.append(Relinked(path, count))
    failures.raise_any()
    return tuple(found)


def _telling(items: Iterable[_Item], reporter: Reporter) -> Iterator[_Item]:
    for number, item in enumerate(items, start=1):
        yield item
        if number % _REPORT_EVERY == 0:
            reporter.advance(_REPORT_EVERY)


class _Failures:
    """What could not be done with some files, told once, when all is done with the others."""

    def __init__(self) -> None:
        self._errors: list[CorruptObject | MissingObject] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep an error of the block for later."""
        try:
            yield
        except (CorruptObject, MissingObject) as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Raise the first of the worst errors, with the number of the others."""
        if not self._errors:
            return
        worst = next((error for error in self._errors if isinstance(error, CorruptObject)), self._errors[0])
        others = len(self._errors) - 1
        more = f" (and {others:,} more file{'' if others == 1 else 's'} that could not be done)" if others else ""
        raise type(worst)(worst.message + more, hint=worst.marked_hint) from worst


def warn_root(project: Project, reporter: Reporter) -> None:
    """Tell root, once in a clone, that read-only does not keep root from writing to the cache through a hard link."""
    if project.config.cache_link != LinkMode.HARDLINK or os.geteuid() != 0 or (project.local / _ROOT_KNOWS).exists():
        return
    reporter.note("root can write to read-only files, and so change the cache: `mlx unprotect` before editing data")
    with suppress(OSError):
        (project.local / _ROOT_KNOWS).touch()


def _chosen(project: Project, targets: Sequence[str]) -> list[tuple[Tracked, str]]:
    tracked = [entry for entry in workspace_snapshot(project).tracked() if not entry.git]
    return list(select(tracked, targets))


class _Relinking:
    """Replaces files of the workspace by what `cache` makes of their objects."""

    def __init__(self, project: Project, scanner: Scanner, cache: Cache) -> None:
        self._root = os.fsencode(project.root)
        self._scanner = scanner
        self._cache = cache
        self._project = project
        self._tried = False

    # What there is ---------------------------------------------------------------------------------------------------

    def protected(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield the files at or below `path` that are the cache's own, or read-only as if they were."""
        for name, info in _files(self._root, path):
            if st.S_ISLNK(info.st_mode):
                if self._linked(name) is not None:
                    yield name, info
            elif not info.st_mode & _WRITABLE or (info.st_nlink > 1 and self._object_of(info) is not None):
                yield name, info

    def unlike(self, tracked: Tracked, part: str) -> list[tuple[bytes, Entry, os.stat_result]]:
        """Return the files that are as recorded but not as `cache` would make them, with their stats."""
        try:
            return self._unlike(tracked, part)
        except MissingObject as error:
            path = f"{tracked.path}/{part}" if part else tracked.path
            hint = f"`mlx pull {word(tracked.path)}` brings it"
            raise MissingObject(f"the listing of `{path}` is not in the cache", hint=hint) from error

    def _unlike(self, tracked: Tracked, part: str) -> list[tuple[bytes, Entry, os.stat_result]]:
        cache = self._project.cache
        kind, digest, _ = resolve_part(cache, tracked, part)
        path = os.fsencode(f"{tracked.path}/{part}" if part else tracked.path)
        if kind is ObjectKind.TREE:
            wanted = walk(cache, digest, path)
        else:
            wanted = iter([(path, find_part(cache, tracked, part) if part else as_entry(tracked))])
        found: list[tuple[bytes, Entry, os.stat_result]] = []
        for name, entry in wanted:
            if entry.kind in (Kind.FILE, Kind.EXECUTABLE):
                with suppress(FileNotFoundError, NotADirectoryError):
                    info = os.lstat(self._root + b"/" + name)
                    if self._is_unlike(name, entry, info):
                        found.append((name, entry, info))
        differing = self._differing(os.fsdecode(path), kind, digest) if found else frozenset()
        here = {entry.digest for _, entry, _ in found}
        here -= cache.missing(here)
        return [item for item in found if item[0] not in differing and item[1].digest in here]

    def _differing(self, path: str, kind: ObjectKind, digest: Digest) -> frozenset[bytes]:
        """Return the files at `path` that are not what the record names, from a scan."""
        present = self._scanner.look(path)
        place = os.fsencode(path)
        if present is None or (present.kind == Kind.FOLDER) != (kind is ObjectKind.TREE):
            return frozenset([place])
        if kind is ObjectKind.BLOB:
            return frozenset([place] if present.digest != digest else [])
        changes = diff(self._scanner, digest, present.digest)
        return frozenset(place + b"/" + change.path for part in changes for change in part)

    def _is_unlike(self, name: bytes, entry: Entry, info: os.stat_result) -> bool:
        mode = self._cache.link
        loose = entry.kind == Kind.FILE and self._cache.packs.find(entry.digest) is None
        linked = st.S_ISLNK(info.st_mode)
        shared = self._is_shared(entry.digest, info)
        if mode is LinkMode.REFLINK and loose and info.st_size > CLONE_FROM and self._clones(name, entry.digest):
            return True  # whether it is a clone already cannot be seen
        if mode in (LinkMode.COPY, LinkMode.REFLINK) or not loose:
            return shared
        if mode is LinkMode.SYMLINK:
            return not linked or os.readlink(self._root + b"/" + name) != self._object_path(entry.digest)
        return linked or not self._is_object(entry.digest, info)

    def _clones(self, name: bytes, digest: Digest) -> bool:
        """Say whether the file system clones, tried once with the first object that is asked about."""
        if not self._tried and self._cache.clones:
            self._tried = True
            self._cache.try_to_clone(digest, os.fsdecode(self._root + b"/" + name))
        return self._cache.clones

    def _is_shared(self, digest: Digest, info: os.stat_result) -> bool:
        return st.S_ISLNK(info.st_mode) or (info.st_nlink > 1 and self._is_object(digest, info))

    def _is_object(self, digest: Digest, info: os.stat_result) -> bool:
        try:
            own = os.lstat(self._object_path(digest))
        except OSError:
            return False
        return (own.st_ino, own.st_dev) == (info.st_ino, info.st_dev)

    def _object_path(self, digest: Digest) -> bytes:
        return os.fsencode(self._cache.object_path(digest))

    def _linked(self, name: bytes) -> Digest | None:
        return object_at(os.readlink(self._root + b"/" + name))

    def _object_of(self, info: os.stat_result) -> Digest | None:
        return self._objects.get((info.st_dev, info.st_ino))

    @cached_property
    def _objects(self) -> dict[tuple[int, int], Digest]:
        """The loose objects of the cache that have another name somewhere, by device and inode."""
        found: dict[tuple[int, int], Digest] = {}
        for place, info in _files(os.fsencode(self._cache.root), b"objects"):
            if info.st_nlink > 1:
                with suppress(ValueError):
                    digits = os.fsdecode(place).removeprefix("objects/").replace("/", "")
                    found[info.st_dev, info.st_ino] = parse_digest(f"blake3:{digits}")
        return found

    # What is done ----------------------------------------------------------------------------------------------------

    def free(self, name: bytes, info: os.stat_result) -> None:
        """Make a protected file a writable one of its own."""
        executable = bool(info.st_mode & 0o100) and not st.S_ISLNK(info.st_mode)
        digest = (
            self._linked(name) if st.S_ISLNK(info.st_mode) else self._object_of(info) if info.st_nlink > 1 else None
        )
        if digest is None:
            self._make_writable(name, info)
        elif self._is_as(name, info):
            self._replace(name, Entry(b"", Kind.EXECUTABLE if executable else Kind.FILE, 0, 1, digest), None)

    def _make_writable(self, name: bytes, info: os.stat_result) -> None:
        parent, _, base = name.rpartition(b"/")
        try:
            with Folders(self._project) as folders:
                os.chmod(base, st.S_IMODE(info.st_mode) | 0o200, dir_fd=folders.open(parent))
        except OSError as error:
            raise translate_os_error(error, f"make `{os.fsdecode(name)}` writable") from error

    def place(self, name: bytes, entry: Entry, seen: os.stat_result) -> bool:
        """Make a file that is still what was `seen` as the cache would; returns whether it was."""
        if self._cache.link is LinkMode.REFLINK and not self._cache.clones and not self._is_shared(entry.digest, seen):
            return False  # it turned out that cloning ends here, as on another disk: the copy that is there will do
        if not self._is_as(name, seen) or is_open_for_writing(os.fsdecode(self._root + b"/" + name)):
            return False
        if self._cache.shares and not st.S_ISLNK(seen.st_mode):
            try:
                self._cache.check(entry.digest)  # the file may be the only good copy: it must not give way to a bad one
            except CorruptObject as error:
                raise damaged_at(os.fsdecode(name), error) from error
        self._replace(name, entry, entry.size)
        return True

    def _is_as(self, name: bytes, seen: os.stat_result) -> bool:
        """Say whether a file is what it was when it was looked at."""
        try:
            now = os.lstat(self._root + b"/" + name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
            seen.st_ino,
            seen.st_size,
            seen.st_mtime_ns,
            seen.st_ctime_ns,
        )

    def _replace(self, name: bytes, entry: Entry, size: int | None) -> None:
        path = os.fsdecode(name)
        parent, _, base = name.rpartition(b"/")
        try:
            with Folders(self._project) as folders:
                placed = self._cache.place(
                    entry.digest,
                    os.fsdecode(base),
                    executable=entry.kind == Kind.EXECUTABLE,
                    dir_fd=folders.open(parent),
                    size=size,
                    replace=True,
                )
        except CorruptObject as error:
            raise damaged_at(path, error) from error
        except MissingObject as error:
            raise MissingObject(
                f"`{path}` is a link to an object that is not in the cache",
                hint=f"`mlx pull {word(path)}` brings it",
            ) from error
        except OSError as error:
            raise translate_os_error(error, f"write `{path}`") from error
        if placed is not None:
            self._scanner.remember(name, placed, entry.digest)


def _files(root: bytes, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield every file and link at or below `path`, relative to `root`, with its own stat."""
    try:
        info = os.lstat(root + b"/" + path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not st.S_ISDIR(info.st_mode):
        if st.S_ISREG(info.st_mode) or st.S_ISLNK(info.st_mode):
            yield path, info
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root + b"/" + folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = folder + b"/" + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    with suppress(FileNotFoundError):
                        yield name, entry.stat(follow_symlinks=False)
