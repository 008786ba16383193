"""`mlx add`: store files and folders, and leave a pointer beside each.

The bytes become durable in the cache first, then `.gitignore` learns the path, then the pointer is renamed into place:
that rename is what makes the data tracked. A path inside a tracked folder changes that folder's tree in this one place.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_cli.errors import MissingObject, RecordError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, folders_above, is_git_folder, write_atomic
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.paths import OWN_FOLDERS, OWN_NAMES
from mlops_cli.records.pointers import SUFFIX, ObjectKind, Pointer
from mlops_cli.records.sources import Source
from mlops_cli.records.stages import Stage
from mlops_cli.store.batch import Batch
from mlops_cli.store.batches import open_batch
from mlops_cli.store.links import object_at
from mlops_cli.store.trees import Entry, Extent, Kind, find, split_path
from mlops_cli.words import word
from mlops_cli.workspace import git
from mlops_cli.workspace.dead_links import refuse_dead_links
from mlops_cli.workspace.extents import (
    NOTHING,
    Extents,
    NotListed,
    extent_of,
    has_recorded,
    note_extents,
    read_extents,
    see,
)
from mlops_cli.workspace.gitignore import hide_from_git
from mlops_cli.workspace.ignore import leaves_out
from mlops_cli.workspace.litter import beside, remove_seen
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.rewrite import Parts, Rewriting
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track, workspace_snapshot


@dataclass(frozen=True, slots=True)
class Added:
    """What adding one path came to; sizes in bytes, `files` counted through sub-folders."""

    path: str
    pointer: str
    size: int
    files: int
    changed: bool


@dataclass(frozen=True, slots=True)
class AddResult:
    """Each pointer that was asked for, and the other files that were written."""

    added: tuple[Added, ...]
    gitignores: tuple[str, ...]


def add(
    project: Project,
    targets: Sequence[str],
    *,
    exact: bool = False,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> AddResult:
    """Store `targets` (project-relative) and write their pointers; `dry_run` hashes, and writes nothing.

    Of a folder that is here in part, what is away stays in the record, unless it is to be `exact`.
    UsageError for a path that is absent, in Git already, made by a stage, or overlaps another tracked path.
    """
    snapshot = workspace_snapshot(project)
    places = tuple(dict.fromkeys(place_of(snapshot, target) for target in targets))
    refuse_unfit(project, snapshot, places)
    for owner, _ in places:
        snapshot.pointer(owner)  # one that cannot be read stops this here, before anything is stored
    reporter.start("adding", None, "files")
    extents = read_extents(project)
    with open_scanner(project, reporter=reporter) as scanner:
        adding = _Adding(project, scanner, snapshot, extents, exact=exact)
        if dry_run:
            for owner, part in places:
                refuse_dead_links(project.root, owner, part)
            entries = adding.entries(None, places)
        else:
            with open_batch(project.cache) as batch:
                scanner.store_in(batch)
                entries = adding.entries(batch, places)
            remove_seen(project, {*scanner.litter, *beside(project, entries)})
    added = tuple(added_entry(snapshot, owner, entry) for owner, entry in entries.items())
    for owner, entry in entries.items():
        if not exact:
            _tell_of_loss(snapshot, owner, entry, reporter)
    if dry_run:
        return AddResult(added, ())
    hidden = hide_from_git(project.root, entries)
    if not exact:
        note_extents(project, adding.noted)  # before a record says so: what came is here, whatever the record has
    for result, entry in zip(added, entries.values(), strict=True):
        if result.changed:
            write_atomic(project.root / result.pointer, new_pointer(snapshot, result.path, entry).to_bytes())
    if exact:
        note_extents(project, adding.noted)  # by now nothing is recorded any more that only the note keeps
    return AddResult(added, hidden)


class _Adding:
    """Looks at what is added; `noted` is what becomes of folders that are here in part."""

    def __init__(
        self, project: Project, scanner: Scanner, snapshot: Snapshot, extents: Extents, *, exact: bool
    ) -> None:
        self.noted: dict[str, Extent | None] = {}
        self._project = project
        self._scanner = scanner
        self._snapshot = snapshot
        self._extents = extents
        self._exact = exact

    def entries(self, batch: Batch | None, places: Sequence[tuple[str, str]]) -> dict[str, Entry]:
        """Return the new entry of every tracked path that `places` (owner, part inside it) touch."""
        parts: dict[str, list[str]] = {}
        for owner, part in places:
            parts.setdefault(owner, []).append(part)
        return {
            owner: self._whole(batch, owner) if "" in wanted else self._changed(batch, owner, wanted)
            for owner, wanted in parts.items()
        }

    def _whole(self, batch: Batch | None, owner: str) -> Entry:
        present = self._scanner.look(owner)
        if present is None:
            raise _absent(owner)
        pointer = self._snapshot.pointer(owner)
        tracked = track(owner, pointer) if pointer else None
        extent = extent_of(self._extents, tracked) if tracked else None
        if extent is None or tracked is None or self._exact or present.kind != Kind.FOLDER:
            self.noted[owner] = None
            return present
        # Though all of it may be here by now, the note stays: another branch may have what was evicted.
        return self._seen(batch, tracked, "", present, extent) or present

    def _seen(
        self, batch: Batch | None, tracked: Tracked, part: str, present: Entry | None, extent: Extent
    ) -> Entry | None:
        """Return what counts as being at a tracked path, or at a part of it; note what came of what was away."""
        seen = see(self._scanner, {tracked.path: extent}, tracked, part, present, batch)
        self.noted[tracked.path] = (self.noted.get(tracked.path) or extent).marked(seen.came, here=True)
        return seen.entry

    def _changed(self, batch: Batch | None, owner: str, parts: Sequence[str]) -> Entry:
        """Return the entry of the tracked folder `owner` with each of `parts` as it is in the workspace."""
        pointer = self._snapshot.pointer(owner)
        assert pointer is not None
        if not (self._project.root / owner).is_dir():
            raise UsageError(
                f"`{owner}` is not in the workspace", hint=f"`mlx pull {word(owner)}` brings it; then add to it"
            )
        tracked = track(owner, pointer)
        extent = extent_of(self._extents, tracked)
        if extent is not None and self._exact:
            extent = extent.marked(map(os.fsencode, parts), here=True)
        trees = Rewriting(self._scanner)
        found = {part: _look(self._project, self._scanner, owner, part) for part in parts}
        if (
            extent is None
            and all(found.values())
            and not has_recorded(self._project, self._scanner, tracked, but=parts)
        ):
            extent = NOTHING  # as in a fresh clone: there is nothing but what is new
        changes: dict[Parts, Entry | None] = {}
        try:
            for part in parts:
                seen = found[part]
                if extent is not None:
                    _refuse_away(owner, part, seen, extent)
                    seen = self._seen(batch, tracked, part, seen, extent)
                at, entry = _change(self._project, self._scanner, trees, pointer.digest, owner, part, found[part])
                if extent is not None and at == split_path(part):
                    entry = seen
                elif extent is not None:  # the folder that is empty now
                    entry = self._seen(batch, tracked, os.fsdecode(b"/".join(at)), entry, extent)
                changes[at] = entry
            return trees.rewrite(pointer.digest, changes, batch)
        except NotListed:
            raise
        except MissingObject as error:
            raise MissingObject(
                f"the listing of `{owner}` is not in the cache, so a part of it cannot be added",
                hint=f"`mlx fetch {word(owner)}` brings it, or add all of `{owner}`",
            ) from error


def _tell_of_loss(snapshot: Snapshot, owner: str, entry: Entry, reporter: Reporter) -> None:
    """Say so when most of a folder is recorded no longer: it may never have been here, as in a fresh clone."""
    pointer = snapshot.pointer(owner)
    if pointer is not None and pointer.files is not None and entry.files * 2 < pointer.files:
        reporter.note(
            f"`{owner}` was recorded with {pointer.files:,} files, now it is with {entry.files:,}: the others are "
            f"recorded no longer, also if they were never here (`git checkout {word(owner + SUFFIX)}` takes that back)"
        )


def _refuse_away(owner: str, part: str, found: Entry | None, extent: Extent) -> None:
    """Refuse a part of which nothing is in the workspace because nobody brought it, or it was evicted."""
    below = extent.below(os.fsencode(part))
    if found is None and not below.here and not any(below.rules.values()):
        path = f"{owner}/{part}"
        raise UsageError(
            f"`{path}` is not in the workspace: it was evicted, or never brought",
            hint=f"`mlx pull {word(path)}` brings it, `mlx add --exact {word(path)}` records it as deleted",
        )


def _look(project: Project, scanner: Scanner, owner: str, part: str) -> Entry | None:
    """Return what is at `part` of the tracked folder `owner`, None when nothing is."""
    path = f"{owner}/{part}"
    refuse_way(project, path.rpartition("/")[0])
    found = scanner.look(path)
    if found is not None and leaves_out(project.root, path, below=owner):
        raise UsageError(f"`{path}` is left out by a `.mlxignore`", hint="mend the pattern there, then add it")
    return found


def _change(
    project: Project, scanner: Scanner, trees: Rewriting, root: Digest, owner: str, part: str, found: Entry | None
) -> tuple[Parts, Entry | None]:
    """Return what adding `part` of the tracked folder `owner` comes to: a path inside it, and what is there now."""
    if found is not None:
        return split_path(part), found
    if find(trees, root, split_path(part)) is None:
        raise _absent(f"{owner}/{part}")
    parent = part.rpartition("/")[0]
    folder = project.root / owner / parent
    if parent and folder.is_dir() and not any(folder.iterdir()):
        return split_path(parent), scanner.look(f"{owner}/{parent}")  # its folder is still there, empty now
    return split_path(part), None


def place_of(snapshot: Snapshot, target: str) -> tuple[str, str]:
    """Return the tracked path that `target` belongs to, and the part inside it; itself when nothing holds it."""
    pointers = set(snapshot.pointer_paths)
    plain = target.removesuffix(SUFFIX)
    if plain != target and plain in pointers and _is_valid(snapshot, plain):
        return plain, ""
    for owner in folders_above(target):
        if owner in pointers and (pointer := snapshot.pointer(owner)) and pointer.kind is ObjectKind.TREE:
            return owner, target[len(owner) + 1 :]
    return target, ""


def refuse_unfit(project: Project, snapshot: Snapshot, places: Sequence[tuple[str, str]]) -> None:
    """Refuse, with UsageError, `places` (owner, part inside it) whose owners cannot be tracked as data."""
    owners = sorted({owner for owner, _ in places})
    stages = snapshot.stages_outside(owners)
    for owner, part in places:
        refuse_reserved(f"{owner}/{part}")
    for owner in owners:
        _refuse_name(owner)
        refuse_way(project, owner)
        _refuse_overlap(snapshot, owner)
        _refuse_output(stages, owner)
    for name in git.tracked_files(project.root, owners):
        if os.path.lexists(project.root / name):
            untrack = f"git rm -r --cached {word(name)}"
            raise UsageError(
                f"Git already tracks `{name}`",
                hint=f"`{untrack}` takes it out of Git and leaves the file; then add it again",
            )
    for name in git.ignored_files(project.root, [owner + SUFFIX for owner in owners]):
        raise UsageError(
            f"Git ignores `{name}`, so the pointer could not be committed",
            hint=f"`git check-ignore -v {word(name)}` names the rule",
        )


def refuse_reserved(path: str) -> None:
    """Refuse a path in which a name is kept for files that are being written: scans pass over those."""
    for name in path.split("/"):
        if name.startswith(TEMPORARY_PREFIX):
            hint = f"give it a name that does not begin with `{TEMPORARY_PREFIX}`"
            raise UsageError(f"`{name}` is a name for files that mlx is writing", hint=hint)


def _refuse_name(owner: str) -> None:
    parts = owner.split("/")
    if parts[-1] in ("", *OWN_NAMES) or any(part in OWN_FOLDERS or is_git_folder(part) for part in parts):
        raise UsageError(f"`{owner or '.'}` cannot be tracked as data", hint="name the files or folders that hold data")
    if owner.endswith(SUFFIX):
        raise UsageError(f"`{owner}` cannot be tracked: only pointers end in `{SUFFIX}`", hint="give it another name")
    try:
        owner.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {owner!a} is not UTF-8, so no pointer can be named after it",
            hint="rename it, or add the folder that holds it",
        ) from None


def refuse_way(project: Project, owner: str) -> None:
    """Refuse a path that is a link, or that a link, another project or another repository stands on the way to."""
    place = project.root / owner
    for folder in (place, *place.parents):
        if folder == project.root:
            break
        name = project.relative(folder)
        if folder.is_symlink() and not (folder == place and object_at(os.fsencode(os.readlink(place))) is not None):
            raise UsageError(
                f"`{name}` is a symbolic link",
                hint=f"add what it points to, `{os.readlink(folder)}`, from inside the project",
            )
        if (folder / ".mlx").is_dir():
            raise UsageError(
                f"`{name}` is an mlx project of its own", hint=f"run it there: `mlx -C {word(name)} add …`"
            )
        if folder != place and os.path.lexists(folder / ".git"):
            raise UsageError(f"`{name}` is a Git repository of its own", hint="a pointer in it would not be committed")


def _refuse_overlap(snapshot: Snapshot, owner: str) -> None:
    for path in snapshot.pointer_paths:
        if owner.startswith(path + "/"):
            raise UsageError(
                f"`{path}` is tracked as a file", hint=f"`mlx add {word(path)}` tracks the folder it is now"
            )
        if path.startswith(owner + "/") and _is_valid(snapshot, path):
            raise UsageError(
                f"`{owner}` holds `{path}`, which is tracked on its own",
                hint=f"`mlx remove {word(path)}` first, or add the other things in `{owner}` by name",
            )


def _refuse_output(stages: Sequence[Stage], owner: str) -> None:
    for stage in stages:
        for out in stage.outs:
            if out.path == owner or out.path.startswith(owner + "/") or owner.startswith(out.path + "/"):
                raise UsageError(
                    f"`{owner}` is made by stage `{stage.address}` (its output `{out.path}`)",
                    hint=f"`mlx run {shlex.quote(stage.address)}` records it",
                )


def _is_valid(snapshot: Snapshot, path: str) -> bool:
    try:
        return snapshot.pointer(path) is not None
    except RecordError:
        return False  # a file of the data that is only named like a pointer


def _absent(path: str) -> UsageError:
    return UsageError(f"`{path}` does not exist", hint="check the spelling; paths are relative to where you are")


def pointer_to(path: str, entry: Entry, source: Source | None = None) -> Pointer:
    """Return the pointer that tracks `entry` at `path`; `source` is where that was imported from, if it was."""
    is_tree = entry.kind == Kind.FOLDER
    return Pointer(
        path=path.rpartition("/")[2],
        kind=ObjectKind.TREE if is_tree else ObjectKind.BLOB,
        digest=entry.digest,
        size=entry.size,
        files=entry.files if is_tree else None,
        executable=entry.kind == Kind.EXECUTABLE,
        source=source,
    )


def new_pointer(snapshot: Snapshot, owner: str, entry: Entry) -> Pointer:
    """Return the pointer to what `owner` is now; what was imported stays an import, whatever it was changed to."""
    old = snapshot.pointer(owner)
    return pointer_to(owner, entry, old.source if old else None)


def added_entry(snapshot: Snapshot, owner: str, entry: Entry) -> Added:
    """Return what tracking `entry` at `owner` comes to."""
    changed = snapshot.pointer(owner) != new_pointer(snapshot, owner, entry)
    return Added(owner, f"{owner}.mlx", entry.size, entry.files, changed)
