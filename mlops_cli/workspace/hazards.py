"""What carrying out changes would destroy, or stumble over: found before the workspace is touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import Digest, hash_bytes, hash_descriptor
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import object_at
from mlops_cli.store.trees import Change, Kind
from mlops_cli.words import NAMED, naming, quoted, words
from mlops_cli.workspace.folders import not_a_folder
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.state import Clock
from mlops_cli.workspace.twins import folds_names, refuse_twins


class Edited(UsageError):
    """What is at `path` is no longer what was there when it was looked at: it stays as it is now."""

    def __init__(self, path: str, *, hint: str) -> None:
        super().__init__(f"`{path}` was changed while mlx was about to replace it: it stays as it is now", hint=hint)
        self.path = path


def refuse_harm(project: Project, plans: Sequence[tuple[Tracked, list[Change]]], *, force: bool) -> None:
    """Raise UsageError when carrying `plans` out would lose bytes (unless `force`), or stop half-way."""
    if not force:
        _refuse_loss(project.cache, plans)
    changes = [change for _, plan in plans for change in plan]
    _refuse_obstacles(os.fsencode(project.root), changes)
    refuse_folded(project, changes)


def refuse_folded(project: Project, changes: Iterable[Change]) -> None:
    """Raise UsageError when two of the files to be written have names that this file system takes for the same."""
    if folds_names(project.root):
        refuse_twins(change.path for change in changes if change.new is not None)


class _Lost(NamedTuple):
    """What is at `path`, in no store; `is_addable` unless it is a link in place of all that is tracked."""

    tracked: Tracked
    path: str
    is_addable: bool


def _refuse_loss(cache: Cache, plans: Sequence[tuple[Tracked, list[Change]]]) -> None:
    held = [
        (tracked, os.fsdecode(change.path), change.old)
        for tracked, plan in plans
        for change in plan
        if change.old and change.old.kind != Kind.FOLDER
    ]
    kept = {digest: _is_kept(cache, digest) for digest in {old.digest for _, _, old in held}}
    lost = [
        _Lost(tracked, path, old.kind != Kind.SYMLINK or path != tracked.path)
        for tracked, path, old in held
        if not kept[old.digest]
    ]
    if lost:
        them = "it" if len(lost) == 1 else "them"
        keeping = _keeping([each for each in lost if each.is_addable])
        raise UsageError(
            f"{naming([each.path for each in lost])} would be overwritten or deleted, and no store holds the bytes",
            hint=f"{f'{keeping} {them};' if keeping else f'move {them} away;'} `--force` throws {them} away",
        )


def _keeping(lost: Sequence[_Lost]) -> str:
    """Return the start of a sentence: the commands that store what would be lost, and that they keep."""
    own = [each for each in lost if not each.tracked.stage]
    data = list(dict.fromkeys(each.path if each.tracked.kind is ObjectKind.TREE else each.tracked.path for each in own))
    if len(data) > NAMED:  # a command that can be typed: of many files in a folder, the folder
        data = list(dict.fromkeys(each.tracked.path for each in own))
    stages = list(dict.fromkeys(each.tracked.stage for each in lost if each.tracked.stage))
    commands = (("add", data, words(data[:NAMED])), ("run", stages, " ".join(map(quoted, stages[:NAMED]))))
    told = [
        f"`mlx {verb} {named}`" + (f" (so for {len(names) - NAMED:,} more)" if len(names) > NAMED else "")
        for verb, names, named in commands
        if names
    ]
    return f"{' and '.join(told)} {'keeps' if len(told) == 1 else 'keep'}" if told else ""


def _refuse_obstacles(root: bytes, changes: Sequence[Change]) -> None:
    """Raise UsageError when what is to be written would meet something that no change takes away.

    No scan sees what a `.mlxignore` leaves out, but it is there: nothing can be written in its place.
    """
    gone = {change.path for change in changes if change.old and (change.new is None or is_in_the_way(change))}
    folders: dict[bytes, bool] = {b"": True}
    for change in changes:
        path, old, new = change
        if new is None or not (old is None or is_in_the_way(change)):
            continue
        place = root + b"/" + path
        if not _is_there(root, path.rpartition(b"/")[0], gone, folders) or not os.path.lexists(place):
            continue
        if new.kind == Kind.FOLDER:
            obstacle = None if path in gone or _is_folder(place) else path
        else:
            obstacle = None if is_dead_link(place) else _obstacle(root, path, gone)
        if obstacle:
            raise in_the_way(os.fsdecode(obstacle), os.fsdecode(path))


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
                    raise not_a_folder(above)
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


def in_the_way(obstacle: str, path: str) -> UsageError:
    """Return what to raise for something at `obstacle` that keeps `path` from being written."""
    of = "" if obstacle == path else f" of `{path}`"
    return UsageError(f"`{obstacle}` is in the way{of}, and nothing tracks it", hint="move it away, or delete it")


def _is_kept(cache: Cache, digest: Digest) -> bool:
    """Say whether the cache holds an object, read to its end: the copy that is to go may be the only good one."""
    try:
        cache.check(digest)
    except (MissingObject, CorruptObject):
        return False
    return True


def is_in_the_way(change: Change) -> bool:
    """Say whether what is at the path must go first: a rename cannot put a file where a folder is, or the reverse."""
    old, new = change.old, change.new
    return old is not None and new is not None and (old.kind == Kind.FOLDER) != (new.kind == Kind.FOLDER)


def is_dead_link(place: bytes, folder: int | None = None) -> bool:
    """Say whether `place` is a link that `cache.link: symlink` made, to an object that is there no more."""
    try:
        return object_at(os.readlink(place, dir_fd=folder)) is not None and not os.access(place, os.F_OK, dir_fd=folder)
    except OSError:
        return False


def spare_edited(change: Change, folder: int, seen: Clock) -> None:
    """Raise Edited when what `change` takes away from `folder` is no longer what was there when it was `seen`.

    Only what may have changed since then is read again.
    """
    path, old, _ = change
    if old is None or old.kind == Kind.FOLDER:
        return
    name = path.rpartition(b"/")[2]
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if seen.is_settled(info) or stat.S_ISDIR(info.st_mode) or _digest_of(name, folder, info) == old.digest:
        return
    raise Edited(os.fsdecode(path), hint="run the same command again: it tells what would be lost")


def _digest_of(name: bytes, folder: int, info: os.stat_result) -> Digest | None:
    """Return the digest of a file or link; None for anything else."""
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(name, dir_fd=folder)
        return object_at(target) or hash_bytes(target)
    if not stat.S_ISREG(info.st_mode):
        return None
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        return hash_descriptor(descriptor)
    finally:
        os.close(descriptor)
