"""`mlx import` and `mlx update`: data of other places, tracked here, with a record of where it is from.

The bytes are durable in the cache first. Then it is made sure that nothing in the workspace would be lost, then comes
the pointer, and last the files, which appear as a checkout makes them. A command that was killed is completed by the
same command again: the pointer says that what is lacking is that import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mlops_cli.errors import MlxError, UsageError
from mlops_cli.files import write_atomic
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import SUFFIX, Pointer
from mlops_cli.records.sources import RepoSource, Source
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.words import word
from mlops_cli.workspace.add import place_of, pointer_to, refuse_unfit
from mlops_cli.workspace.checkout import bring
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.gitignore import hide_from_git
from mlops_cli.workspace.origins import Opened, Origin, RepoOrigin, UrlOrigin, origin_of, refuse_secret
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reservations import refuse_in_use
from mlops_cli.workspace.scan import is_stored, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, select, track, workspace_snapshot


class Manner(NamedTuple):
    """How to import: `force` replaces what is in the way, without `download` only the pointer comes."""

    force: bool = False
    download: bool = True
    dry_run: bool = False
    jobs: int = 0
    reporter: Reporter = SILENT


PLAINLY = Manner()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to: `size` (bytes) and `files` are None where a dry run cannot know them.

    `old` and `new` are the versions of the source that the record named before and names now (None: there is none).
    """

    path: str
    pointer: str
    place: str
    source: Mapping[str, object] | None
    old: str | None
    new: str | None
    size: int | None
    files: int | None
    changed: bool
    gitignores: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of one import in an update."""

    UNCHANGED = "unchanged"  # its source is what it was
    SAME = "same"  # another version, of the same bytes
    UPDATED = "updated"
    PINNED = "pinned"  # recorded; the bytes did not come
    LEFT = "left"  # on this machine, and nobody asked for it
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update came to for one path; `old` and `new` are versions of its source."""

    path: str
    place: str
    outcome: Outcome
    old: str | None
    new: str | None
    error: MlxError | None = None


def import_data(project: Project, origin: Origin, path: str, how: Manner = PLAINLY) -> Imported:
    """Track what `origin` has at `path` (a project path); the checkout is held.

    UsageError when something else is at `path` or tracks it, unless forced, and for what cannot be tracked there.
    """
    refuse_secret(origin)
    _refuse_pinning(origin, how)
    snapshot = workspace_snapshot(project)
    old = _refuse_place(project, snapshot, origin, path, force=how.force)
    with origin.open(project.local) as opened:
        if not how.dry_run:
            return _take_over(project, origin, opened, path, old, how)
        before = old.source.version if old and old.source else None
        changed = opened.version is None or opened.version != before
        facts = (before, opened.version, opened.size, opened.files)
        return Imported(path, path + SUFFIX, origin.place, None, *facts, changed)


def _refuse_pinning(origin: Origin, how: Manner) -> None:
    if not how.download and isinstance(origin, UrlOrigin):
        raise _unpinnable(origin)


def _unpinnable(origin: Origin) -> UsageError:
    hint = "leave `--no-download` out; what an mlx project tracks can be pinned without"
    return UsageError(f"`{origin.place}` cannot be pinned: its digest is known when its bytes have come", hint=hint)


def _refuse_place(project: Project, snapshot: Snapshot, origin: Origin, path: str, *, force: bool) -> Pointer | None:
    """Return the pointer that is at `path`; UsageError when the import cannot be there."""
    owner, part = place_of(snapshot, path)
    if part:
        raise UsageError(f"`{path}` lies in `{owner}`, which is tracked as a whole", hint="name a path outside of it")
    old = snapshot.pointer(path) if path in snapshot.pointer_paths else None
    refuse_unfit(project, snapshot, [(path, "")])
    if old is not None and not origin.is_source(old.source) and not force:
        what = f"imported from `{old.source.place}`" if old.source else "tracked already"
        raise UsageError(f"`{path}` is {what}", hint="name another path, or `--force` replaces its record")
    if old is not None and not force:
        _refuse_changed(path, old)
    if old is None and os.path.lexists(project.root / path) and not force:
        raise UsageError(f"`{path}` exists already", hint="name another path, move it away, or `--force` replaces it")
    return old


def _refuse_changed(path: str, pointer: Pointer) -> None:
    """Raise UsageError when what is recorded is not what came from the source: somebody has changed and added it."""
    if pointer.source is not None and pointer.digest != pointer.source.fetched:
        hint = "`--force` replaces its record; what it has now stays in the cache and in Git's history"
        raise UsageError(f"`{path}` was changed here after it was imported", hint=hint)


def _take_over(
    project: Project, origin: Origin, opened: Opened, path: str, old: Pointer | None, how: Manner
) -> Imported:
    """Fetch what an opened origin has and make it what is at `path`."""
    entry = _entry_here(project, opened, path, old) if how.download else opened.pinned()
    pinned = entry is not None and not how.download
    if entry is None and not how.download:
        raise _unpinnable(origin)
    if entry is None:
        entry = opened.fetch(project.cache, how.jobs, how.reporter)
    source = opened.source(entry.digest)
    pointer = pointer_to(path, entry, source)
    chosen = [(track(path, pointer), "")]
    if not pinned:  # it refuses what would be lost, before anything is written
        refuse_in_use(project, [path])
        bring(project, chosen, force=how.force, dry_run=True, reporter=how.reporter)
    hidden = hide_from_git(project.root, [path])
    if pointer != old:
        write_atomic(project.root / f"{path}{SUFFIX}", pointer.to_bytes())
    if not pinned:
        bring(project, chosen, force=how.force, reporter=how.reporter)
        _tell_of_hidden(project, path, entry, how.reporter)
    before = old.source.version if old and old.source else None
    facts = (before, opened.version, entry.size, entry.files)
    return Imported(path, path + SUFFIX, origin.place, source.to_value(), *facts, pointer != old, hidden)


def _tell_of_hidden(project: Project, path: str, entry: Entry, reporter: Reporter) -> None:
    """Say so when a `.mlxignore` leaves files out that the import has: they are here, and no scan sees them."""
    if entry.kind != Kind.FOLDER:
        return
    with open_scanner(project) as scanner:
        present = scanner.look(path)
    if present is None or present.digest != entry.digest:
        reporter.note(f"a `.mlxignore` leaves out some of `{path}`: `mlx status` takes that for deleted")


def _entry_here(project: Project, opened: Opened, path: str, old: Pointer | None) -> Entry | None:
    """Return what the record has, when that is what the origin has now and all of it is in the cache."""
    if old is None or old.source is None or opened.version is None or old.digest != old.source.fetched:
        return None
    entry = as_entry(track(path, old))
    same = old.source == opened.source(old.digest)
    return entry if same and is_stored(project.cache, entry) else None


def update(
    project: Project,
    targets: Sequence[str] = (),
    how: Manner = PLAINLY,
    *,
    rev: str | None = None,
    local: bool = False,
) -> tuple[Updated, ...]:
    """Bring the imports at `targets` (none: all) to what their sources have now; the checkout is held.

    Sources of this machine are followed with `local` only: a record may be somebody else's. What goes wrong with one
    import does not keep the others from their update. UsageError for a target that is no import.
    """
    snapshot = workspace_snapshot(project)
    found = []
    for path, pointer in _imports(snapshot, targets):
        assert pointer.source is not None
        if rev is not None and not isinstance(pointer.source, RepoSource):
            raise UsageError(f"`{path}` is from a URL, which has no revisions", hint="name the imports of repositories")
        if not (local or pointer.source.is_remote):
            if path in targets:
                raise _is_local(path, pointer.source)
            found.append(Updated(path, pointer.source.place, Outcome.LEFT, pointer.source.version, None))
            continue
        try:
            found.append(_update_one(project, path, pointer, rev, how))
        except MlxError as error:
            place, version = pointer.source.place, pointer.source.version
            found.append(Updated(path, place, Outcome.FAILED, version, None, error))
    return tuple(found)


def _imports(snapshot: Snapshot, targets: Sequence[str]) -> list[tuple[str, Pointer]]:
    """Return the imports that `targets` mean; UsageError for one that means none."""
    pointers = {path: pointer for path in snapshot.pointer_paths if (pointer := snapshot.pointer(path)) is not None}
    if not targets:
        return [(path, pointer) for path, pointer in sorted(pointers.items()) if pointer.source is not None]
    chosen: dict[str, Pointer] = {}
    for target in targets:
        pairs = select([track(path, pointer) for path, pointer in pointers.items()], [target])
        imported = {entry.path: pointers[entry.path] for entry, _ in pairs if pointers[entry.path].source is not None}
        if not imported:
            hint = "`mlx ls` shows what is; `mlx import` makes one"
            raise UsageError(f"`{target}` is not imported, so nothing can update it", hint=hint)
        if part := next((part for _, part in pairs if part), ""):
            owner = next(iter(imported))
            raise UsageError(
                f"`{part}` is a part of the import `{owner}`", hint=f"`mlx update {word(owner)}` updates it all"
            )
        chosen.update(imported)
    return sorted(chosen.items())


def _update_one(project: Project, path: str, pointer: Pointer, rev: str | None, how: Manner) -> Updated:
    source = pointer.source
    assert source is not None
    origin = origin_of(source, rev)
    old = source.version
    follows = not isinstance(origin, RepoOrigin) or not isinstance(source, RepoSource) or origin.rev == source.rev
    new = origin.version()
    if follows and new is not None and new == old:
        return Updated(path, source.place, Outcome.UNCHANGED, old, new)
    if not how.force:
        _refuse_changed(path, pointer)
    if how.dry_run:
        return Updated(path, source.place, Outcome.UPDATED, old, new)
    _refuse_pinning(origin, how)
    with origin.open(project.local) as opened:
        done = _take_over(project, origin, opened, path, pointer, how)
    same = done.source is not None and done.source["fetched"] == source.fetched
    outcome = Outcome.SAME if same else Outcome.UPDATED if how.download else Outcome.PINNED
    if same and not done.changed:
        outcome = Outcome.UNCHANGED
    return Updated(path, source.place, outcome, old, done.new)


def _is_local(path: str, source: Source) -> UsageError:
    return UsageError(
        f"`{path}` is from this machine: `{source.place}`",
        hint="`--local` follows it: see that the record, which may be somebody else's, names what you mean",
    )
