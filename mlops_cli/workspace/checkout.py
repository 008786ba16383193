"""`mlx checkout`: make the workspace match what the records name.

First everything is decided: which files to write and delete, whether the cache holds what is wanted, whether some
store holds what would be lost, and whether something that nothing tracks is in the way. Only then is the workspace
touched, file by file, each replaced by an atomic rename, with every folder on the way opened without following links.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import object_at
from mlops_cli.store.trees import Change, Entry, Kind, check_folder, check_links, diff, find, read_link
from mlops_cli.workspace import git
from mlops_cli.workspace.compare import as_entry, same
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import damaged_at
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Tracked, select, workspace_snapshot

_REPORT_EVERY = 256
_NAMED = 3  # paths that a message names
# Gone already, or kept by what is left out in it: no reason to stop.
_NOT_REMOVED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY})


@dataclass(frozen=True, slots=True)
class Restored:
    """What bringing one tracked path up to date takes: numbers of files (links and empty folders count).

    All three are zero when only a listing that is not here could tell.
    """

    path: str
    added: int
    modified: int
    deleted: int


@dataclass(frozen=True, slots=True)
class CheckoutResult:
    """The paths that differed; empty when the workspace already matched."""

    restored: tuple[Restored, ...]


def checkout(
    project: Project,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> CheckoutResult:
    """Make `targets` (project paths; none: everything tracked) match their records.

    UsageError when a file would be overwritten or deleted whose bytes no store holds, unless `force`, or when something
    that mlx leaves alone is in the way; MissingObject when the cache lacks wanted bytes. Nothing is touched in any of
    these cases.
    """
    chosen = _chosen(project, targets)
    with open_scanner(project, reporter=reporter) as scanner:
        reporter.start("checking", None, "files")
        plans = [(entry, _plan(project.cache, scanner, entry, part)) for entry, part in chosen]
        changes = [change for _, plan in plans for change in plan]
        _refuse_absent(project.cache, plans)
        _refuse_harm(project, plans, force=force)
        if not dry_run:
            reporter.start("checking out", len(changes), "files")
            apply_changes(project, scanner, changes, reporter)
    return CheckoutResult(tuple(_summary(entry, plan) for entry, plan in plans if plan))


def foresee(
    project: Project, targets: Sequence[str] = (), *, force: bool = False, reporter: Reporter = SILENT
) -> CheckoutResult:
    """Return what `checkout` would do once the cache has everything, as after a fetch; touches nothing.

    It refuses what `checkout` would refuse, as far as that can be known before the fetch.
    """
    plans: list[tuple[Tracked, list[Change]]] = []
    found: list[Restored] = []
    with open_scanner(project, reporter=reporter) as scanner:
        reporter.start("checking", None, "files")
        for entry, part in _chosen(project, targets):
            try:
                plan = _plan(project.cache, scanner, entry, part)
            except MissingObject:
                found.append(_guess(scanner, entry, part))
                continue
            if plan:
                plans.append((entry, plan))
                found.append(_summary(entry, plan))
        _refuse_harm(project, plans, force=force)
    return CheckoutResult(tuple(found))


def _guess(scanner: Scanner, tracked: Tracked, part: str) -> Restored:
    """Return what the record alone says of bringing a folder back whose listing is not here."""
    if part or scanner.look(tracked.path) is not None:
        return Restored(tracked.path, 0, 0, 0)
    return Restored(tracked.path, max(tracked.files, 1), 0, 0)


def _chosen(project: Project, targets: Sequence[str]) -> list[tuple[Tracked, str]]:
    """Return what `targets` mean; an output that remotes never get, and that is not here, only when it is named."""
    tracked = [entry for entry in workspace_snapshot(project).tracked() if not entry.git]
    return [
        (entry, part)
        for entry, part in select(tracked, targets)
        if entry.push or part or entry.path in targets or is_stored(project.cache, as_entry(entry))
    ]


def restore(project: Project, scanner: Scanner, path: str, wanted: Entry | None, reporter: Reporter = SILENT) -> None:
    """Make `path` be exactly `wanted` (nothing, when None), whatever is there now: the caller has made sure of that.

    What Git does not ignore is never linked: Git would commit a link into this machine's cache.
    """
    cache = project.cache
    changes = _between(cache, scanner, path, scanner.look(path), wanted)
    if wanted is not None and cache.shares and not git.ignored_files(project.root, [path]):
        cache = cache.copying()
    apply_changes(project, scanner, changes, reporter, cache=cache)


def _plan(cache: Cache, scanner: Scanner, tracked: Tracked, part: str) -> list[Change]:
    if not part:
        present = scanner.look(tracked.path)
        if present is not None and same(tracked, present):
            return []
        return _between(cache, scanner, tracked.path, present, as_entry(tracked))
    try:
        wanted = find(scanner, tracked.digest, [os.fsencode(name) for name in part.split("/")])
    except MissingObject as error:
        raise _not_cached(tracked.path, 1) from error
    if wanted is None:
        raise UsageError(f"`{tracked.path}` has no `{part}`", hint=f"`mlx ls {tracked.path}` lists what it has")
    path = f"{tracked.path}/{part}"
    return _between(cache, scanner, path, scanner.look(path), wanted)


def _between(cache: Cache, scanner: Scanner, path: str, present: Entry | None, wanted: Entry | None) -> list[Change]:
    """Return the changes, with project paths, that turn `present` into `wanted`."""
    place = os.fsencode(path)
    old_tree, new_tree = (e.digest if e and e.kind == Kind.FOLDER else None for e in (present, wanted))
    changes: list[Change] = []
    if old_tree != new_tree:
        if new_tree and cache.missing([new_tree]):
            raise _not_cached(path, 1)
        try:
            if wanted is not None and new_tree:
                check_folder(scanner, wanted)
            found = diff(scanner, old_tree, new_tree)
        except MissingObject as error:
            raise _not_cached(path, 1) from error
        except CorruptObject as error:
            raise damaged_at(path, error) from error
        below = (*found.deleted, *found.modified, *found.added)
        changes = [change._replace(path=place + b"/" + change.path) for change in below]
        if wanted is not None and new_tree and not (wanted.files or found.added or found.modified):
            changes.append(Change(place, None, wanted))  # a folder that is to be there, empty
        if present is not None and old_tree and not (new_tree or changes):
            changes.append(Change(place, present, None))  # a folder that was there, empty
    old_file, new_file = (None if e is None or e.kind == Kind.FOLDER else e for e in (present, wanted))
    if (old_file and (old_file.kind, old_file.digest)) != (new_file and (new_file.kind, new_file.digest)):
        lone = Change(place, old_file, new_file)
        changes = [lone, *changes] if new_file is None else [*changes, lone]
    check_links(scanner, (change.new for change in changes))
    return changes


def _not_cached(path: str, count: int) -> MissingObject:
    return MissingObject(
        f"the cache lacks {count:,} object{'' if count == 1 else 's'} of `{path}`",
        hint=f"`mlx pull {path}` brings {'it' if count == 1 else 'them'} from a remote",
    )


def _refuse_absent(cache: Cache, plans: Iterable[tuple[Tracked, list[Change]]]) -> None:
    for tracked, plan in plans:
        wanted = {c.new.digest for c in plan if c.new is not None and c.new.kind != Kind.FOLDER}
        missing = cache.missing(wanted)
        if missing:
            raise _not_cached(tracked.path, len(missing))


def _refuse_harm(project: Project, plans: Sequence[tuple[Tracked, list[Change]]], *, force: bool) -> None:
    """Raise UsageError when carrying `plans` out would lose bytes (unless `force`), or stop half-way."""
    if not force:
        _refuse_loss(project.cache, plans)
    _refuse_obstacles(os.fsencode(project.root), [change for _, plan in plans for change in plan])


def _refuse_loss(cache: Cache, plans: Sequence[tuple[Tracked, list[Change]]]) -> None:
    held = [
        (tracked, change.path, change.old.digest)
        for tracked, plan in plans
        for change in plan
        if change.old and change.old.kind != Kind.FOLDER
    ]
    kept = {digest: _is_kept(cache, digest) for digest in {digest for _, _, digest in held}}
    lost = [(tracked, os.fsdecode(path)) for tracked, path, digest in held if not kept[digest]]
    if lost:
        more = f" and {len(lost) - _NAMED:,} more" if len(lost) > _NAMED else ""
        named = ", ".join(f"`{path}`" for _, path in lost[:_NAMED]) + more
        them = "it" if len(lost) == 1 else "them"
        raise UsageError(
            f"{named} would be overwritten or deleted, and no store holds the bytes",
            hint=f"{_keeping(lost)} {them}; `--force` throws {them} away",
        )


def _keeping(lost: Sequence[tuple[Tracked, str]]) -> str:
    """Return the start of a sentence: the commands that store what would be lost, and that they keep."""
    data = dict.fromkeys(
        path if tracked.kind is ObjectKind.TREE else tracked.path for tracked, path in lost if not tracked.stage
    )
    stages = dict.fromkeys(tracked.stage for tracked, _ in lost if tracked.stage)
    told = [
        f"`mlx {verb} {' '.join(map(shlex.quote, list(names)[:_NAMED]))}{' …' if len(names) > _NAMED else ''}`"
        for verb, names in (("add", data), ("run", stages))
        if names
    ]
    return f"{' and '.join(told)} {'keeps' if len(told) == 1 else 'keep'}"


def _refuse_obstacles(root: bytes, changes: Sequence[Change]) -> None:
    """Raise UsageError when what is to be written would meet something that no change takes away.

    No scan sees what a `.mlxignore` leaves out, but it is there: nothing can be written in its place.
    """
    gone = {change.path for change in changes if change.old and (change.new is None or _is_in_the_way(change))}
    folders: dict[bytes, bool] = {b"": True}
    for change in changes:
        path, old, new = change
        if new is None or not (old is None or _is_in_the_way(change)):
            continue
        place = root + b"/" + path
        if not _is_there(root, path.rpartition(b"/")[0], gone, folders) or not os.path.lexists(place):
            continue
        if new.kind == Kind.FOLDER:
            obstacle = None if path in gone or _is_folder(place) else path
        else:
            obstacle = None if _is_dead_link(place) else _obstacle(root, path, gone)
        if obstacle:
            raise _in_the_way(os.fsdecode(obstacle), os.fsdecode(path))


def _is_there(root: bytes, folder: bytes, gone: Collection[bytes], known: dict[bytes, bool]) -> bool:
    """Say whether `folder` is there, or will have to be made; UsageError when something else is in its place."""
    if folder and folder not in known:
        there = True
        names = folder.split(b"/")
        for depth in range(1, len(names) + 1):
            above = b"/".join(names[:depth])
            if above not in known:
                known[above] = there = there and above not in gone and os.path.lexists(root + b"/" + above)
                if there and not _is_folder(root + b"/" + above):
                    raise _not_a_folder(above)
            there = known[above]
    return not folder or known[folder]


def _obstacle(root: bytes, path: bytes, gone: Collection[bytes]) -> bytes | None:
    """Return the first thing at or below `path` that is not `gone`; None when nothing will be left there."""
    waiting = [path]
    while waiting:
        path = waiting.pop()
        place = root + b"/" + path
        names = sorted(os.listdir(place), reverse=True) if _is_folder(place) else []
        waiting += [path + b"/" + name for name in names]
        if not names and path not in gone:
            return path
    return None


def _is_folder(place: bytes) -> bool:
    return os.path.isdir(place) and not os.path.islink(place)


def _in_the_way(obstacle: str, path: str) -> UsageError:
    of = "" if obstacle == path else f" of `{path}`"
    return UsageError(f"`{obstacle}` is in the way{of}, and nothing tracks it", hint="move it away, or delete it")


def _is_kept(cache: Cache, digest: Digest) -> bool:
    """Say whether the cache holds an object, read to its end: the copy that is to go may be the only good one."""
    try:
        cache.check(digest)
    except (MissingObject, CorruptObject):
        return False
    return True


def _summary(tracked: Tracked, plan: list[Change]) -> Restored:
    added = sum(change.old is None for change in plan)
    deleted = sum(change.new is None for change in plan)
    return Restored(tracked.path, added, len(plan) - added - deleted, deleted)


def apply_changes(
    project: Project,
    scanner: Scanner,
    changes: Sequence[Change],
    reporter: Reporter,
    *,
    cache: Cache | None = None,
) -> None:
    """Carry out `changes` (project paths): deletions first, then files folder by folder, from `cache` when given.

    CorruptObject for the first whose object is damaged, once all the others are in place.
    """
    damaged: CorruptObject | None = None
    deleted = [change for change in changes if change.new is None or _is_in_the_way(change)]
    written = sorted((change for change in changes if change.new is not None), key=lambda c: c.path.rpartition(b"/"))
    cache = cache or project.cache
    with Folders(project) as folders:
        for change in sorted(deleted, key=lambda c: c.path, reverse=True):
            folders.delete(change.path)
        for count, change in enumerate(written, start=1):
            try:
                _write(cache, folders, scanner, change)
            except CorruptObject as error:
                damaged = damaged or error
            if count % _REPORT_EVERY == 0:
                reporter.advance(_REPORT_EVERY)
    if damaged is not None:
        raise damaged


def _is_in_the_way(change: Change) -> bool:
    """Say whether what is at the path must go first: a rename cannot put a file where a folder is, or the reverse."""
    old, new = change.old, change.new
    return old is not None and new is not None and (old.kind == Kind.FOLDER) != (new.kind == Kind.FOLDER)


def _write(cache: Cache, folders: Folders, scanner: Scanner, change: Change) -> None:
    path = os.fsdecode(change.path)
    try:
        _write_entry(cache, folders, scanner, change)
    except CorruptObject as error:
        raise damaged_at(path, error) from error
    except MissingObject as error:
        raise _not_cached(path, 1) from error
    except OSError as error:
        raise translate_os_error(error, f"write `{path}`") from error


def _write_entry(cache: Cache, folders: Folders, scanner: Scanner, change: Change) -> None:
    path, old, entry = change
    assert entry is not None
    parent, _, name = path.rpartition(b"/")
    if entry.kind == Kind.FOLDER:
        folders.open(path)
        return
    descriptor = folders.open(parent)
    text = os.fsdecode(name)
    if entry.kind == Kind.SYMLINK:
        _write_link(descriptor, cache.beside(text), text, read_link(cache, entry))
        return
    replace = (old is not None and not _is_in_the_way(change)) or _is_dead_link(name, descriptor)
    executable = entry.kind == Kind.EXECUTABLE
    try:
        placed = cache.place(
            entry.digest, text, executable=executable, dir_fd=descriptor, size=entry.size, replace=replace
        )
    except (UsageError, OutsideError) as error:  # it knows the name only
        message = error.message.replace(f"`{text}`", f"`{os.fsdecode(path)}`")
        raise type(error)(message, hint=error.hint) from error
    if placed is not None:
        scanner.remember(path, placed, entry.digest)


def _is_dead_link(place: bytes, folder: int | None = None) -> bool:
    """Say whether `place` is a link that `cache.link: symlink` made, to an object that is there no more."""
    try:
        return object_at(os.readlink(place, dir_fd=folder)) is not None and not os.access(place, os.F_OK, dir_fd=folder)
    except OSError:
        return False


def _write_link(folder: int, temporary: str, name: str, target: bytes) -> None:
    os.symlink(target, temporary, dir_fd=folder)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise


class Folders:
    """Opens folders below the project's root one name at a time, never through a link; the last one stays open."""

    def __init__(self, project: Project) -> None:
        self._root = os.fsencode(project.root)
        self._path: bytes | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def open(self, path: bytes) -> int:
        """Return a descriptor of the folder `path`, made when it is not there; valid until the next call."""
        if path != self._path:
            self._close()
            self._descriptor, self._path = self._walk(path, create=True), path
        return self._descriptor

    def delete(self, path: bytes) -> None:
        """Delete a file, link or empty folder, then the folders above it that this leaves empty."""
        remove = _remove
        while path:
            parent, _, name = path.rpartition(b"/")
            try:
                with self._opened(parent) as descriptor:
                    remove(name, descriptor)
            except OSError as error:
                if error.errno in _NOT_REMOVED:
                    return
                raise translate_os_error(error, f"delete `{os.fsdecode(path)}`") from error
            path, remove = parent, _remove_folder

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        descriptor = self._walk(path, create=False)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _walk(self, path: bytes, *, create: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(self._root, flags)
        names = path.split(b"/") if path else []
        for depth, name in enumerate(names, start=1):
            try:
                if create:
                    _make_folder(name, descriptor)
                below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise _not_a_folder(b"/".join(names[:depth])) from error
                raise
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._path = -1, None


def _not_a_folder(path: bytes) -> UsageError:
    return UsageError(
        f"`{os.fsdecode(path)}` is not a folder but a link or a file",
        hint="mlx does not write through links: move it away",
    )


def _make_folder(name: bytes, parent: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return


def _remove(name: bytes, folder: int) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        _remove_folder(name, folder)
    else:
        os.unlink(name, dir_fd=folder)


def _remove_folder(name: bytes, folder: int) -> None:
    os.rmdir(name, dir_fd=folder)
