"""`mlx move`: give tracked data another path, without reading it.

What a record names moves to another record; what is in the workspace is renamed along with it, whatever its state, and
the state index learns its new path. The new record is written first and the old one goes last, with the rename between
them: a command that is killed leaves the data tracked, and the same command again completes it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.files import folders_above, translate_os_error, write_atomic
from mlops_cli.records.pointers import SUFFIX, ObjectKind
from mlops_cli.records.stages import Stage
from mlops_cli.store.batch import Batch
from mlops_cli.store.batches import open_batch
from mlops_cli.store.trees import Entry, Kind, find, split_path
from mlops_cli.words import word
from mlops_cli.workspace.add import place_of, pointer_to, refuse_reserved, refuse_unfit
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.extents import after_moving, before_moving
from mlops_cli.workspace.gitignore import hide_from_git, show_to_git
from mlops_cli.workspace.ignore import leaves_out
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.renaming import rename
from mlops_cli.workspace.reservations import refuse_in_use
from mlops_cli.workspace.rewrite import Rewriting
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, track, workspace_snapshot


@dataclass(frozen=True, slots=True)
class Moved:
    """What moving came to: the pointers that were written and removed, the `.gitignore` files that changed.

    `data` says whether something in the workspace was renamed; `stages` read the old path, and still say so.
    """

    old: str
    new: str
    size: int
    files: int
    data: bool
    written: tuple[str, ...]
    removed: tuple[str, ...]
    gitignores: tuple[str, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A path, the tracked path that holds it (itself, when none does), and the entry that records have there."""

    path: str
    owner: str
    part: str
    entry: Entry | None

    @property
    def pointer(self) -> str:
        return self.owner + SUFFIX


def move(project: Project, old: str, new: str, *, dry_run: bool = False) -> Moved:
    """Make what is tracked at `old` be tracked at `new`, or below it when `new` is a folder (project paths).

    UsageError, with nothing changed, when `old` is not tracked or made by a stage, or when something is at `new`;
    MissingObject when the listing of a tracked folder that changes is not in the cache.
    """
    snapshot = workspace_snapshot(project)
    if old.endswith(SUFFIX) and old.removesuffix(SUFFIX) in snapshot.pointer_paths:
        old, new = old.removesuffix(SUFFIX), new.removesuffix(SUFFIX)  # by the names of their pointers
    if _holds_paths(project, snapshot, new) and not _is_half_done(project, snapshot, old, new):
        new = f"{new}/{old.rpartition('/')[2]}" if new else old.rpartition("/")[2]
    refuse_in_use(project, [old, new])
    source, target = _place(project, snapshot, old), _place(project, snapshot, new)
    stages = snapshot.stages_outside([source.owner, target.owner])
    _refuse_output(stages, old)
    here = os.path.lexists(project.root / old)
    entry = _decide(project, snapshot, source, target, here=here)
    if target.owner not in _held(source, target):
        refuse_unfit(project, snapshot, [(target.owner, target.part)])
    _refuse_place(project, source, target, entry, here=here)
    records = list(_records(project, snapshot, source, target, entry, dry_run=dry_run))
    gone = (source.pointer,) if not source.part and source.entry is not None else ()
    gitignores: tuple[str, ...] = ()
    if not dry_run:
        gitignores = _carry_out(project, source, target, records, gone, here=here)
    reading = tuple(stage.address for stage in stages if any(_overlap(dep.path, old) for dep in stage.deps))
    written = tuple(name for name, _ in records)
    return Moved(old, new, entry.size, entry.files, here, written, gone, gitignores, reading)


def _place(project: Project, snapshot: Snapshot, path: str) -> _Place:
    owner, part = place_of(snapshot, path)
    pointer = snapshot.pointer(owner) if owner in snapshot.pointer_paths else None
    if pointer is None:
        return _Place(path, owner, part, None)
    entry = as_entry(track(owner, pointer))
    try:
        return _Place(path, owner, part, find(project.cache, entry.digest, split_path(part)) if part else entry)
    except MissingObject as error:
        raise _no_listing(owner) from error


def _is_folder(project: Project, path: str) -> bool:
    place = project.root / path
    return place.is_dir() and not place.is_symlink()


def _holds_paths(project: Project, snapshot: Snapshot, path: str) -> bool:
    """Say whether `path` is a folder: in the workspace, or by its pointer when nothing is there."""
    if os.path.lexists(project.root / path) or path not in snapshot.pointer_paths:
        return _is_folder(project, path)
    pointer = snapshot.pointer(path)
    return pointer is not None and pointer.kind is ObjectKind.TREE


def _is_half_done(project: Project, snapshot: Snapshot, old: str, new: str) -> bool:
    """Say whether `new` is the folder that a move of `old` to it has left, and not one to move into."""
    now = snapshot.pointer(new) if new in snapshot.pointer_paths else None
    was = _place(project, snapshot, old).entry if now is not None else None
    return was is not None and now is not None and was.digest == now.digest


def _decide(project: Project, snapshot: Snapshot, source: _Place, target: _Place, *, here: bool) -> Entry:
    """Return the entry that is to be at the target; UsageError when it may not, or when there is none."""
    old, new = source.path, target.path
    if old == new or new.startswith(old + "/"):
        raise UsageError(f"`{old}` cannot move to `{new}`", hint="name a path that is not itself, nor inside it")
    there = os.path.lexists(project.root / new)
    if source.entry is None:
        if target.entry is not None and here and not there:
            return target.entry  # the record was changed when the command was killed: the rename is left
        below = [path for path in snapshot.pointer_paths if path.startswith(old + "/")]
        hint = f"move what it holds, as in `mlx move {word(below[0])} …`" if below else "`mlx ls` lists what is tracked"
        raise UsageError(f"nothing tracks `{old}`", hint=hint)
    if target.entry is not None:
        if (target.entry.kind, target.entry.digest) == (source.entry.kind, source.entry.digest) and not (
            here and there
        ):
            return source.entry
        raise UsageError(f"`{new}` is tracked already", hint=f"`mlx remove {word(new)}` first, or choose another name")
    if there and (here or not _is_same(project, new, source.entry)):
        raise UsageError(f"`{new}` exists already", hint="move it away, or choose another name")
    return source.entry


def _is_same(project: Project, path: str, entry: Entry) -> bool:
    """Say whether the workspace has exactly `entry` at `path`: somebody has renamed it already."""
    with open_scanner(project) as scanner:
        found = scanner.look(path)
    return found is not None and (found.kind, found.digest) == (entry.kind, entry.digest)


def _held(source: _Place, target: _Place) -> set[str]:
    """Return the owners that are tracked already, so that nothing is to be asked about their paths."""
    return {place.owner for place in (source, target) if place.part or place.entry is not None}


def _refuse_output(stages: Sequence[Stage], path: str) -> None:
    for stage in stages:
        for out in stage.outs:
            if _overlap(out.path, path):
                raise UsageError(
                    f"`{path}` is made by stage `{stage.address}` (its output `{out.path}`)",
                    hint=f"change the path in `{stage.file}`, then `mlx run {shlex.quote(stage.address)}`",
                )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _refuse_place(project: Project, source: _Place, target: _Place, entry: Entry, *, here: bool) -> None:
    """Refuse what the workspace does not allow; nothing has been changed."""
    root, new = project.root, target.path
    for path in {*folders_above(source.path), *folders_above(new)}:
        if os.path.lexists(root / path) and not _is_folder(project, path):
            raise UsageError(f"`{path}` is not a folder", hint="mlx does not move through links or files")
    if target.part:
        refuse_reserved(new)
        folders = new.split("/") if entry.kind == Kind.FOLDER else new.split("/")[:-1]
        if ".mlx" in folders:
            raise UsageError(f"`{new}` would make its folder an mlx project", hint="choose another name")
        if here and not _is_folder(project, target.owner):
            raise UsageError(
                f"`{target.owner}` is not in the workspace",
                hint=f"`mlx pull {word(target.owner)}` brings it; then move",
            )
        if leaves_out(root, new, below=target.owner):
            raise UsageError(f"`{new}` is left out by a `.mlxignore`", hint="mend the pattern there, then move")
    elif entry.kind == Kind.SYMLINK:
        raise UsageError(f"`{source.path}` is a link, which only a tracked folder can hold", hint="copy its target")
    if here:
        above = next(path for path in (*reversed(folders_above(new)), "") if os.path.lexists(root / path))
        if os.lstat(root / source.path).st_dev != os.stat(root / above).st_dev:
            raise UsageError(
                f"`{source.path}` and `{new}` are on two file systems", hint="copy it, then `mlx add` the copy"
            )


def _records(
    project: Project, snapshot: Snapshot, source: _Place, target: _Place, entry: Entry, *, dry_run: bool
) -> Iterator[tuple[str, bytes]]:
    """Yield the pointers to write, in that order; the trees that they name are durable then."""
    changes: dict[str, dict[tuple[bytes, ...], Entry | None]] = {}
    if target.entry is None:
        if target.part:
            parts = split_path(target.part)
            changes.setdefault(target.owner, {})[parts] = entry._replace(name=parts[-1])
        else:
            old = None if source.part else snapshot.pointer(source.owner)
            yield target.pointer, pointer_to(target.path, entry, old.source if old else None).to_bytes()
    if source.part and source.entry is not None:
        changes.setdefault(source.owner, {})[split_path(source.part)] = None
    if not changes:
        return
    if dry_run:
        with open_scanner(project) as scanner:
            yield from _rewritten(snapshot, scanner, None, changes)
        return
    with open_batch(project.cache) as batch, open_scanner(project, batch=batch) as scanner:
        found = list(_rewritten(snapshot, scanner, batch, changes))
    yield from found


def _rewritten(
    snapshot: Snapshot, scanner: Scanner, batch: Batch | None, changes: dict[str, dict[tuple[bytes, ...], Entry | None]]
) -> Iterator[tuple[str, bytes]]:
    for owner, parts in changes.items():
        pointer = snapshot.pointer(owner)
        assert pointer is not None
        assert pointer.kind is ObjectKind.TREE
        try:
            result = Rewriting(scanner).rewrite(pointer.digest, parts, batch)
        except MissingObject as error:
            raise _no_listing(owner) from error
        yield owner + SUFFIX, pointer_to(owner, result, pointer.source).to_bytes()


def _no_listing(owner: str) -> MissingObject:
    return MissingObject(
        f"the listing of `{owner}` is not in the cache, so a part of it cannot move",
        hint=f"`mlx fetch {word(owner)}` brings it",
    )


def _carry_out(
    project: Project,
    source: _Place,
    target: _Place,
    records: Sequence[tuple[str, bytes]],
    gone: Sequence[str],
    *,
    here: bool,
) -> tuple[str, ...]:
    root = project.root
    changed = () if target.part else hide_from_git(root, [target.path])
    if here or not target.part:
        (root / target.path).parent.mkdir(parents=True, exist_ok=True)
    before_moving(project, (source.owner, source.part), (target.owner, target.part), here=here)
    # The record of the target comes first: what is in two records is in the way of nothing, what is in none is lost.
    first = [record for record in records if record[0] == target.pointer]
    for name, data in first:
        write_atomic(root / name, data)
    if here:
        try:
            rename(project, source.path, target.path)
        except OSError as error:
            raise translate_os_error(error, f"rename `{source.path}` to `{target.path}`") from error
        if source.part:
            _remove_empty(root, source)
    for name, data in records:
        if (name, data) not in first:
            write_atomic(root / name, data)
    if not source.part:
        changed += show_to_git(root, [source.path])
    for name in gone:
        (root / name).unlink(missing_ok=True)
    after_moving(project, source.owner, source.part)
    return tuple(dict.fromkeys(changed))


def _remove_empty(root: Path, source: _Place) -> None:
    """Remove the folders that moving has left empty: the new record of their owner does not have them."""
    with suppress(OSError):
        for folder in reversed(folders_above(source.path)):
            if folder == source.owner:
                return
            (root / folder).rmdir()
