"""Carrying out changes to the workspace: deletions, then files folder by folder.

A file appears in one step, by a rename. One folder that is new altogether, with nothing below it but files, appears as
a whole: it is filled under a name that nobody looks at. Many files are shared out to worker processes.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, OutsideError, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest, hash_alone
from mlops_cli.progress import Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import rename_new
from mlops_cli.store.rounds import rounds_of
from mlops_cli.store.sources import Stat
from mlops_cli.store.trees import Change, Kind, read_link
from mlops_cli.workers import END, carried_out, crew_size, cut_into_tasks
from mlops_cli.workspace.folders import OPEN_FOLDER, Folders
from mlops_cli.workspace.hazards import in_the_way, is_dead_link, is_in_the_way, spare_edited
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import damaged_at, not_cached
from mlops_cli.workspace.scan import Scanner
from mlops_cli.workspace.state import Clock

WRITTEN_BY_MANY = 128  # files; fewer are written sooner than workers are made
_LEAST_WRITTEN = 32  # files of a task: a few tenths of a millisecond each
_MOST_AT_ONCE = 4096  # files of a folder that appears as a whole


class _Part(NamedTuple):
    """Files of one folder; `new` when the folder is not there and nothing else comes into it."""

    folder: bytes
    changes: Sequence[Change]
    new: bool


class _Writer:
    """Writes the files of some parts; what it writes shares no name with what another process does."""

    def __init__(self, project: Project, cache: Cache, tasks: Sequence[Sequence[_Part]], seen: Clock | None) -> None:
        self._cache = cache
        self._tasks = tasks
        self._seen = seen
        self._folders = Folders(project)

    def begin(self, worker: int) -> None:  # noqa: ARG002
        """Go on in another process."""
        hash_alone()
        self._cache.divide()

    def do(self, task: int) -> object:
        """Write the files of a task: (number, stat) of each whose look is sure, and a damaged one's error, pickled."""
        placed: list[tuple[int, ...]] = []
        failed: CorruptObject | None = None
        number = 0
        for part in self._tasks[task]:
            with self._open(part) as folder:
                for change in part.changes:
                    try:
                        stat = self._write(change, folder, hidden=part.new)
                        if stat is not None:
                            placed.append((number, *Stat.of(stat)))
                    except CorruptObject as error:
                        failed = failed or error
                    number += 1
        return placed, failed and pickle.dumps(failed)

    def end(self) -> None:
        """Close what is open."""
        self._folders.close()

    @contextmanager
    def _open(self, part: _Part) -> Iterator[int]:
        """Yield a handle of the part's folder; a new one gets its name afterwards, with what is in it by then."""
        try:
            if not part.new:
                yield self._folders.open(part.folder)
                return
            parent, _, name = part.folder.rpartition(b"/")
            above = self._folders.open(parent)
            temporary = self._cache.beside(os.fsdecode(name))
            os.mkdir(temporary, dir_fd=above)
            try:
                folder = os.open(temporary, OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=above)
            except BaseException:
                os.rmdir(temporary, dir_fd=above)
                raise
            try:
                yield folder
            except BaseException as error:
                if not isinstance(error, MlxError):  # it may be in the middle of a file
                    shutil.rmtree(temporary, ignore_errors=True, dir_fd=above)
                else:
                    with suppress(OSError, UsageError):  # what went wrong first is told
                        self._name(part.folder, temporary, above)
                raise
            finally:
                os.close(folder)
            self._name(part.folder, temporary, above)
        except OSError as error:
            raise translate_os_error(error, f"write `{os.fsdecode(part.folder)}`") from error

    def _name(self, path: bytes, temporary: str, above: int) -> None:
        try:
            rename_new(temporary, os.fsdecode(path.rpartition(b"/")[2]), dir_fd=above)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True, dir_fd=above)  # nothing but copies of objects
            if isinstance(error, FileExistsError):
                raise in_the_way(os.fsdecode(path), os.fsdecode(path)) from error
            raise

    def _write(self, change: Change, folder: int, *, hidden: bool) -> os.stat_result | None:
        path = os.fsdecode(change.path)
        try:
            return self._write_entry(change, folder, hidden=hidden)
        except CorruptObject as error:
            raise damaged_at(path, error) from error
        except MissingObject as error:
            raise not_cached(path, 1) from error
        except OSError as error:
            raise translate_os_error(error, f"write `{path}`") from error

    def _write_entry(self, change: Change, folder: int, *, hidden: bool) -> os.stat_result | None:
        path, old, entry = change
        assert entry is not None
        name = path.rpartition(b"/")[2]
        if self._seen is not None and not is_in_the_way(change):
            spare_edited(change, folder, self._seen)
        if entry.kind == Kind.FOLDER:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
            return None
        text = os.fsdecode(name)
        if entry.kind == Kind.SYMLINK:
            _write_link(folder, self._cache.beside(text), text, read_link(self._cache, entry))
            return None
        replace = not hidden and ((old is not None and not is_in_the_way(change)) or is_dead_link(name, folder))
        executable = entry.kind == Kind.EXECUTABLE
        try:
            return self._cache.place(
                entry.digest,
                text,
                executable=executable,
                dir_fd=folder,
                size=entry.size,
                replace=replace,
                hidden=hidden,
            )
        except (UsageError, OutsideError) as error:  # it knows the name only
            message = error.message.replace(f"`{text}`", f"`{os.fsdecode(path)}`")
            raise type(error)(message, hint=error.marked_hint) from error


def _write_link(folder: int, temporary: str, name: str, target: bytes) -> None:
    os.symlink(target, temporary, dir_fd=folder)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise


def apply_changes(
    project: Project,
    scanner: Scanner,
    changes: Sequence[Change],
    reporter: Reporter,
    *,
    cache: Cache | None = None,
    spare: bool = False,
) -> None:
    """Carry out `changes` (project paths): deletions first, then files folder by folder, from `cache` when given.

    CorruptObject for the first whose object is damaged, once all the others are in place. With `spare`, UsageError at a
    file that is no longer what the scan has seen there.
    """
    seen = scanner.clock if spare else None
    deleted = [change for change in changes if change.new is None or is_in_the_way(change)]
    with Folders(project) as folders:
        for change in sorted(deleted, key=itemgetter(0), reverse=True):
            if seen is None:
                folders.delete(change.path)
            else:
                folders.delete(change.path, partial(spare_edited, change, seen=seen))
    written = sorted((change for change in changes if change.new is not None), key=_by_folder)
    source = cache or project.cache
    damaged: list[CorruptObject] = []
    for share in rounds_of(written, _size, source.most_at_once):
        with source.near({} if source.most_at_once is None else _uses(share)) as near:
            damaged += _write_share(project, scanner, share, near, seen, reporter)
    if damaged:
        raise damaged[0]


def _size(change: Change) -> int:
    return 0 if change.new is None else change.new.size


def _uses(written: Sequence[Change]) -> Mapping[Digest, int]:
    """Return how many files of `written` have each object."""
    return Counter(change.new.digest for change in written if change.new is not None and change.new.kind != Kind.FOLDER)


def _write_share(
    project: Project,
    scanner: Scanner,
    written: Sequence[Change],
    cache: Cache,
    seen: Clock | None,
    reporter: Reporter,
) -> list[CorruptObject]:
    """Write files, sorted by folder, from `cache`; return what is damaged, the first folder's first."""
    tasks = _cut(os.fsencode(project.root), written)
    damaged: list[tuple[int, CorruptObject]] = []
    crew = crew_size() if len(written) >= WRITTEN_BY_MANY else 0
    for number, value in carried_out(_Writer(project, cache, tasks, seen), len(tasks), crew):
        if number == END:
            continue
        placed, failed = value
        files = [change for part in tasks[number] for change in part.changes]
        for at, *stat in placed:
            path, _, new = files[at]
            assert new is not None
            scanner.remember(path, Stat(*stat), new.digest)
        if failed:
            damaged.append((number, pickle.loads(failed)))  # noqa: S301 - this process or its child wrote it
        reporter.advance(len(files))
    return [error for _, error in sorted(damaged, key=itemgetter(0))]


def _by_folder(change: Change) -> tuple[bytes, bytes, bytes]:
    return change.path.rpartition(b"/")


def _cut(root: bytes, written: Sequence[Change]) -> list[list[_Part]]:
    """Cut what is to be written, sorted by folder, into tasks; a folder that appears as a whole stays in one piece."""
    groups = [(folder, list(group)) for folder, group in groupby(written, lambda change: _by_folder(change)[0])]
    above: set[bytes] = set()
    for folder, _ in groups:
        path = folder
        while path and (path := path.rpartition(b"/")[0]) not in above:
            above.add(path)
    new = [
        bool(folder)
        and folder not in above
        and len(changes) <= _MOST_AT_ONCE
        and not os.path.lexists(root + b"/" + folder)
        for folder, changes in groups
    ]
    tasks = cut_into_tasks([len(changes) for _, changes in groups], new, least=_LEAST_WRITTEN)
    return [[_Part(groups[n][0], groups[n][1][start:end], new[n]) for n, start, end, _ in task] for task in tasks]
