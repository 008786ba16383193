"""Which tracked folders are in this workspace only in part, and on purpose: a note that Git never sees.

The note says of a folder which paths were brought or evicted, not which files: so it is as true after `git checkout`,
whatever the folder holds then. A folder without a note is here as a whole, or not at all. What is not here by the note
is away: it stays in the record.

Nobody must lose data by an old note: that something is away is noted before it goes, that something is here once it
came. Whatever is killed in between, what is here counts, and what is not here stays in the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mlops_cli.errors import MissingObject, MlxError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, write_atomic
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.batch import Batch
from mlops_cli.store.trees import (
    Entry,
    Extent,
    Kind,
    Named,
    Obstructed,
    Unlisted,
    find,
    find_names,
    overlay,
    split_path,
    walk,
)
from mlops_cli.words import NAMED, so_for, word, words
from mlops_cli.workspace.ignore import NAME as IGNORE_NAME
from mlops_cli.workspace.ignore import leaves_out
from mlops_cli.workspace.litter import sweep_folder
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.rewrite import Rewriting
from mlops_cli.workspace.scan import Scanner
from mlops_cli.workspace.snapshot import Tracked

Extents = Mapping[str, Extent]
NO_EXTENTS: Extents = MappingProxyType({})
WHOLE = Extent()
NOTHING = Extent(here=False)

_FORMAT = 1


class Note(NamedTuple):
    """The extents of folders, and those of which all is on its way: a checkout was cut short."""

    extents: Extents
    coming: frozenset[str]


class NotListed(MissingObject):
    """It cannot be known what is away of the folder `owner`: the listing of `place` is not here."""

    def __init__(self, owner: str, place: str, extent: Extent) -> None:
        kept = [_joined(owner, "", path) for path, here in sorted(extent.rules.items()) if here]
        parts = [path for path in kept if path.startswith(f"{place}/")]
        super().__init__(
            f"`{owner}` is here in part, and the listing of `{place}` is not in the cache",
            hint=f"`mlx pull {words(parts[:NAMED])}` brings it with what you have of it{so_for(parts[NAMED:])}"
            if parts
            else f"`mlx fetch {word(place)}` brings it",
        )


class Seen(NamedTuple):
    """What counts as being at a path: `entry`, of which `files` away ones are as recorded; `came` as in `Overlaid`."""

    entry: Entry | None
    away: int = 0
    came: tuple[bytes, ...] = ()


def read_extents(project: Project) -> Extents:
    """Return the extent of each folder that is noted to be here in part; UsageError when the note cannot be read."""
    return _read(project).extents


def find_in_part(project: Project) -> Extents:
    """Return the extents of the folders that are here in part: of others by the note, nothing at all is here."""
    return _here(project, _read(project).extents)


def find_kept_in_part(project: Project) -> Extents:
    """Return the extents of the folders that are here in part because somebody wants no more of them here."""
    note = _read(project)
    return _here(project, {folder: extent for folder, extent in note.extents.items() if folder not in note.coming})


def _here(project: Project, extents: Extents) -> Extents:
    return {folder: extent for folder, extent in extents.items() if os.path.lexists(project.root / folder)}


def note_extents(
    project: Project, changes: Mapping[str, Extent | None], *, coming: Iterable[str] = (), kept: Iterable[str] = ()
) -> None:
    """Note the extents of folders, None being that a folder is here as a whole; durable once this returns.

    All of the folders `coming` is on its way, and of those `kept` no more. The checkout is held by who notes something.
    """
    old = _read(project)
    extents = {**old.extents, **{folder: extent or WHOLE for folder, extent in changes.items()}}
    extents = {folder: extent for folder, extent in extents.items() if not extent.whole}
    new = Note(extents, ((old.coming | frozenset(coming)) - frozenset(kept)) & extents.keys())
    if new == old:
        return
    sweep_folder(_place(project).parent)
    if not extents:
        _place(project).unlink(missing_ok=True)
        return
    folders = {folder: _said(extent) for folder, extent in extents.items()}
    value = {"mlx": _FORMAT, "folders": folders, "coming": sorted(new.coming)}
    write_atomic(_place(project), json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def _read(project: Project) -> Note:
    path = _place(project)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Note({}, frozenset())
    try:
        value = json.loads(data)
        if value["mlx"] != _FORMAT:
            raise ValueError("another format")
        extents = {str(folder): _extent(said) for folder, said in value["folders"].items()}
        return Note(extents, frozenset(map(str, value["coming"])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"`{path}`, which says what is in the workspace only in part, cannot be read: {error}",
            hint="delete it, then `mlx pull` before anything is added: without it, what is not here looks deleted",
        ) from error


def see(
    scanner: Scanner, extents: Extents, tracked: Tracked, part: str, present: Entry | None, batch: Batch | None = None
) -> Seen:
    """Return what counts as being at a tracked path, or at a part of it, of which the workspace has `present`.

    New trees go to the scan, and to `batch`. UsageError where a file is in place of a folder that is away, or the
    reverse; MissingObject where it cannot be known what is away.
    """
    extent = extent_of(extents, tracked)
    if extent is None or (present is None and not part):
        return Seen(present)
    trees = Rewriting(scanner)
    place = os.fsencode(part)
    try:
        recorded = find(scanner, tracked.digest, split_path(part)) if part else _root(tracked)
        entry, came = overlay(trees, trees, recorded, present, extent.below(place))
    except Obstructed as error:
        at = _joined(tracked.path, part, error.path)
        raise UsageError(
            f"`{at}` is recorded as something else, which is not in the workspace: it was evicted, or never brought",
            hint=f"move it away, then `mlx pull {word(at)}` brings what is recorded",
        ) from error
    except Unlisted as error:
        raise NotListed(tracked.path, _joined(tracked.path, part, error.path), extent) from error
    except MissingObject as error:
        raise NotListed(tracked.path, _unread(scanner, tracked, part), extent) from error
    if entry is None:
        return Seen(None)
    trees.keep(entry.digest, batch)
    here = present.files if present else 0
    came = tuple(place + b"/" + path if place and path else place or path for path in came)
    name = (present or recorded or entry).name
    return Seen(entry._replace(name=name), entry.files - here, came)


def extent_of(extents: Extents, tracked: Tracked) -> Extent | None:
    """Return the extent of a tracked folder that is here in part, else None; outputs are here, or made again."""
    if tracked.stage or tracked.kind is not ObjectKind.TREE:
        return None
    return extents.get(tracked.path)


def away_files(scanner: Scanner, extent: Extent, tracked: Tracked) -> Iterator[str]:
    """Yield the files of a tracked folder, as project paths, that are away; MissingObject."""
    for path, entry in walk(scanner, tracked.digest):
        if entry.kind != Kind.FOLDER and not extent.has(path):
            yield f"{tracked.path}/{os.fsdecode(path)}"


def before_bringing(project: Project, scanner: Scanner, chosen: Iterable[tuple[Tracked, str]]) -> None:
    """Note of folders of which nothing is here, before they or parts of them are brought, that all of them is away.

    Those that are to come as a whole are noted as such: whoever goes on with it brings the rest.
    """
    wanted: dict[Tracked, bool] = {}
    for tracked, part in chosen:
        if tracked.kind is ObjectKind.TREE and tracked.files and not tracked.stage:
            wanted[tracked] = not part
    noted = read_extents(project) if wanted else NO_EXTENTS
    new: dict[str, Extent] = {}
    whole = []
    for tracked, all_of_it in wanted.items():
        path = tracked.path
        if has_files(project, path) and (path in noted or has_recorded(project, scanner, tracked)):
            continue
        new[path] = NOTHING
        if all_of_it:
            whole.append(path)
    if new:
        note_extents(project, new, coming=whole, kept=new.keys() - whole)


def after_bringing(project: Project, chosen: Iterable[tuple[Tracked, str]]) -> None:
    """Note what has come: folders as a whole, and parts."""
    extents = read_extents(project)
    parts: dict[str, list[bytes]] = {}
    for tracked, part in chosen:
        if tracked.path in extents:
            parts.setdefault(tracked.path, []).append(os.fsencode(part))
    if parts:
        marked = {folder: extents[folder].marked(came, here=True) for folder, came in parts.items()}
        note_extents(project, marked, kept=marked)


def after_failing(project: Project, scanner: Scanner, chosen: Iterable[tuple[Tracked, str]]) -> None:
    """Note what has come of what was to be brought, when not all of it did."""
    extents = read_extents(project)
    found: dict[str, Extent | None] = {}
    for path, tracked in {tracked.path: tracked for tracked, _ in chosen if tracked.path in extents}.items():
        with suppress(MlxError):  # whatever it is, what went wrong first is told
            came = see(scanner, extents, tracked, "", scanner.look(path)).came
            found[path] = extents[path].marked(came, here=True)
    if found:
        with suppress(MlxError):  # as when the disk is full
            note_extents(project, found)


def before_evicting(
    project: Project,
    chosen: Iterable[tuple[Tracked, str]],
    gone: Mapping[tuple[str, str], Iterable[bytes]],
) -> None:
    """Note that of `chosen` what is a key of `gone` is away; the paths there (of the project) were deleted before."""
    extents = read_extents(project)
    going: dict[str, tuple[list[bytes], list[bytes]]] = {}
    for tracked, part in chosen:
        if (tracked.path, part) in gone and tracked.kind is ObjectKind.TREE and not tracked.stage:
            parts, deleted = going.setdefault(tracked.path, ([], []))
            parts.append(os.fsencode(part))
            deleted += [path[len(os.fsencode(tracked.path)) + 1 :] for path in gone[tracked.path, part]]
    note_extents(
        project,
        {
            folder: extents.get(folder, WHOLE).marked(parts, here=False).marked(deleted, here=True)
            for folder, (parts, deleted) in going.items()
        },
        kept=going,
    )


def before_moving(project: Project, source: tuple[str, str], target: tuple[str, str], *, here: bool) -> None:
    """Note at the target (the tracked path that holds it, the part in that) what is away of the source.

    Nothing may be `here` of it: then, inside of another folder, all of it is away, unless it was deleted from one that
    is here. Of the folder that it moves into nothing may be here but that.
    """
    (old, part), (new, at) = source, target
    extents = read_extents(project)
    extent = extents.get(old, WHOLE).below(os.fsencode(part))
    if at and not here and not (part and (old in extents or has_files(project, old))):
        extent = NOTHING
    is_strange = at and new not in extents and not has_files(project, new)
    around = NOTHING if is_strange else extents.get(new, WHOLE)
    note_extents(project, {new: around.replaced(os.fsencode(at), extent)})


def after_moving(project: Project, owner: str, part: str) -> None:
    """Forget what was noted of a tracked path, or of a part of it, that has moved."""
    extents = read_extents(project)
    if owner in extents:
        note_extents(project, {owner: extents[owner].without(os.fsencode(part)) if part else None})


def _root(tracked: Tracked) -> Entry:
    return Entry(b"", Kind.FOLDER, tracked.size, tracked.files, tracked.digest)


def _joined(owner: str, part: str, path: bytes) -> str:
    return "/".join(filter(None, (owner, part, os.fsdecode(path))))


def _unread(scanner: Scanner, tracked: Tracked, part: str) -> str:
    """Return the folder on the way to a part whose listing is not here."""
    digest, place = tracked.digest, tracked.path
    with suppress(MissingObject):
        for name in split_path(part):
            entry = find(scanner, digest, [name])
            if entry is None or entry.kind != Kind.FOLDER:
                break
            digest, place = entry.digest, f"{place}/{os.fsdecode(name)}"
    return place


def has_files(project: Project, folder: str, *, but: Iterable[str] = ()) -> bool:
    """Say whether something is in a folder of the workspace that a scan would see, `but` at some paths in it."""
    root = os.fsencode(project.root)
    passed = {os.fsencode(f"{folder}/{part}") for part in but}
    waiting = [os.fsencode(folder)]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(root + b"/" + path) as listing:
                for child in listing:
                    place = path + b"/" + child.name
                    if place in passed:
                        continue
                    if child.is_dir(follow_symlinks=False):
                        waiting.append(place)
                    elif _counts(project, folder, os.fsdecode(place)):
                        return True
        except (FileNotFoundError, NotADirectoryError):
            continue
    return False


def has_recorded(project: Project, scanner: Scanner, tracked: Tracked, *, but: Iterable[str] = ()) -> bool:
    """Say whether a file is in the workspace as the record of a folder has it, `but` at some paths in the folder.

    Where a listing is not here, any file in its folder counts as named.
    """
    passed = {os.fsencode(f"{tracked.path}/{part}") for part in but}
    waiting = [(os.fsencode(tracked.path), Named(tracked.digest, (tracked.size, tracked.files)))]
    while waiting:
        path, recorded = waiting.pop()
        for children in _children(project, path):
            try:
                known = find_names(scanner, recorded, children)
            except MissingObject:
                if has_files(project, os.fsdecode(path)):
                    return True
                break
            for name, entry in known.items():
                place = path + b"/" + name
                if place in passed or children[name] is not (entry.kind == Kind.FOLDER):
                    continue
                if children[name]:
                    waiting.append((place, Named(entry.digest, (entry.size, entry.files))))
                elif _counts(project, tracked.path, os.fsdecode(place)):
                    with scanner.only_looking():
                        found = scanner.look(os.fsdecode(place))
                    if found is not None and found.digest == entry.digest:
                        return True
    return False


def _children(project: Project, path: bytes) -> Iterator[dict[bytes, bool]]:
    """Yield what is in a folder by name, with whether it is one: little at first, for the first may tell enough."""
    size = 1
    try:
        with os.scandir(os.fsencode(project.root) + b"/" + path) as listing:
            while children := {child.name: child.is_dir(follow_symlinks=False) for child in islice(listing, size)}:
                yield children
                size *= 8
    except (FileNotFoundError, NotADirectoryError):
        return


def _counts(project: Project, folder: str, path: str) -> bool:
    name = path.rpartition("/")[2]
    is_ours = name == IGNORE_NAME or name.startswith(TEMPORARY_PREFIX)
    return not is_ours and not leaves_out(project.root, path, below=folder)


def _place(project: Project) -> Path:
    # In the Git directory of this worktree alone: with the worktree the note goes.
    return project.git.git_dir / "mlx" / "extents" / f"{project.checkout_key}.json"


def _extent(said: Mapping[str, Iterable[str]]) -> Extent:
    rules = {os.fsencode(path): here for here in (True, False) for path in said["here" if here else "away"]}
    return Extent(rules.pop(b"", True), rules)


def _said(extent: Extent) -> dict[str, list[str]]:
    rules = {b"": extent.here, **extent.rules}
    return {
        word: sorted(os.fsdecode(path) for path, is_here in rules.items() if is_here is here)
        for word, here in (("here", True), ("away", False))
    }
