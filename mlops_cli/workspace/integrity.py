"""`mlx fsck`: whether the cache holds what the records need, every byte as it was stored.

The store is read first, by its own bytes alone, then the run cache's records. Then the workspace's records say which
tracked path each damaged object belongs to (the workspace's, else HEAD's, else those of the newest commit that names
it), and which objects are not here at all. The trash or a remote may have good ones. A record that cannot be read is
told, and stops nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, OutsideError, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.checkup import Checkup, Scope, check_store
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.trash import Trash
from mlops_cli.store.trees import TreeSource, walk
from mlops_cli.workspace.claims import find_false
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.history import recorded
from mlops_cli.workspace.needs import Needs, SoundCache, reach_of
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.run_records import RunRecords, check_run_records
from mlops_cli.workspace.snapshot import Tracked, open_snapshot, workspace_snapshot


@dataclass(frozen=True, slots=True)
class Fault:
    """An object that is damaged or absent, and the tracked paths that need it.

    `files` are where exactly, below these paths, as far as their listings can be read.
    There are no `paths` when no record that can be read names the object; `stage` is whose output the first is;
    `revision` the commit whose records they are, None for the workspace's. `moved` is where damaged bytes are now
    (below the cache), None when they are where they were. `mended`: good bytes are here now; else they may be
    `in_trash`. `source` is where a repair got them from, or would get them from in a dry run: `trash`, `remote`, or
    None for nowhere.
    """

    digest: Digest
    why: str
    paths: tuple[str, ...] = ()
    stage: str = ""
    revision: str | None = None
    moved: str | None = None
    mended: bool = False
    in_trash: bool = False
    files: tuple[str, ...] = ()
    source: str | None = None

    @property
    def path(self) -> str:
        """The first of the paths, empty when there is none."""
        return self.paths[0] if self.paths else ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, how many objects were `repaired`, and how many files were `returned` from the trash for that.

    `remotes` are those that were asked for good bytes; `examined` is the remote that was read instead of the cache, and
    `promised` whether its index names something that is gone.
    `unread` says what is wrong with records of the workspace: what they need was not looked for. `false` are those that
    say another size than what they name has.
    """

    checkup: Checkup
    damaged: tuple[Fault, ...]
    absent: tuple[Fault, ...]
    runs: RunRecords
    remotes: tuple[str, ...] = ()
    returned: int = 0
    repaired: int = 0
    repairing: bool = False
    unread: tuple[MlxError, ...] = ()
    examined: str = ""
    promised: bool = False
    false: tuple[MlxError, ...] = ()

    @property
    def exit_code(self) -> int:
        """5 when something is damaged, else 4 when something is absent, else that of a record that is wrong.

        What was repaired as asked is well.
        """
        well = self.repairing
        broken = any(not (well and fault.mended) for fault in self.damaged)
        if broken or any(not (well and file.rebuilt) for file in self.checkup.files):
            return 5
        if any(not fault.mended for fault in self.absent):
            return 4
        return next((error.exit_code for error in (*self.unread, *self.false)), 0)


def examine(
    project: Project,
    scope: Scope,
    *,
    repair: bool = False,
    remote: str | None = None,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> Examination:
    """Read the cache, as much as `scope` says, put away what is damaged, and with `repair` bring good bytes.

    They come from the trash, else from a remote; `mlx gc` is kept out meanwhile. A dry run moves, writes and brings
    nothing: it only asks where there are good ones. UsageError for a remote that there is none of; RemoteError.
    """
    try:
        readable, unread = workspace_snapshot(project).readable()
        tracked = [entry for entry in readable if not entry.git]
        sources = _Sources(project, remote, tracked, reporter) if repair else None
        with project.guard.held() if sources and not dry_run else nullcontext():
            found = _examine(project, scope, sources, tracked, dry_run=dry_run, reporter=reporter)
            return replace(found, unread=unread)
    except OSError as error:
        place = f"`{error.filename}`, for the cache" if error.filename else "the cache"
        raise translate_os_error(error, f"read {place} `{project.cache.root}`") from error


def _examine(
    project: Project,
    scope: Scope,
    sources: _Sources | None,
    tracked: Sequence[Tracked],
    *,
    dry_run: bool,
    reporter: Reporter,
) -> Examination:
    checkup = check_store(project.cache, scope, dry_run=dry_run, reporter=reporter)
    runs = check_run_records(project.cache, dry_run=dry_run)
    checkup = replace(checkup, files=checkup.files + runs.damaged)
    reporter.start("looking for what the records need", None, "paths")
    sound = SoundCache(project.cache, checkup.damaged, dry_run=dry_run)
    needs = Needs(sound, tracked, reporter)
    tried: set[Digest] = set()
    if sources is not None and dry_run:
        sources.find(sound.missing({*sound.damaged, *needs.absent}))
    elif sources is not None:
        while wanted := sound.missing({*sound.damaged, *needs.absent}) - tried:
            tried |= wanted
            sources.bring(sound, wanted)
            reporter.start("looking for what the records need", None, "paths")
            needs = Needs(sound, tracked, reporter)  # a tree that came may name more
    lost = sorted({*sound.damaged, *needs.absent, *tried})
    found = Examination(checkup, (), (), runs, repairing=sources is not None)
    found = replace(found, false=tuple(find_false(project.cache, sound, tracked)))
    if sources is not None:
        brought = len(tried) - len(sound.missing(tried))
        found = replace(found, remotes=sources.remotes, returned=sources.returned, repaired=brought)
    told = _told(project, sound, needs, lost, found, reporter)
    return told if sources is None else sources.named(told)


class _Sources:
    """Where good bytes may come from: the trash, then the remote that is named `remote`, else those of `tracked`.

    `returned` counts the files that came from the trash; `found` is what has, or had, each object.
    """

    def __init__(self, project: Project, remote: str | None, tracked: Sequence[Tracked], reporter: Reporter) -> None:
        self.remotes: tuple[str, ...] = ()
        self.returned = 0
        self.found: dict[Digest, str] = {}
        self._project = project
        self._trash = Trash(project.cache)
        self._reporter = reporter
        if remote or project.config.remotes or not self._trash.thrown():
            self.remotes = (remote,) if remote else Destinations(project).used(tracked)
        self._stores = [open_project_remote(project, name, reporter)[1] for name in self.remotes]

    def bring(self, sound: SoundCache, wanted: Collection[Digest]) -> None:
        """Bring what there is of `wanted`; what does not come is not here afterwards."""
        files = self._trash.holding({raw_digest(digest) for digest in wanted})
        if files:
            self.returned += self._trash.bring_back(files).files
            sound.verify(wanted)
        left = sound.missing(wanted)
        self.found |= dict.fromkeys(set(wanted) - left, "trash")
        for store in self._stores:
            if not left:
                break
            self._reporter.start("fetching", store.measure(left), "bytes")
            with suppress(AbsentObjects, DamagedObjects):  # what did not come is told
                jobs = self._project.config.core_jobs
                store.bring(self._project.cache, sorted(left), jobs=jobs, reporter=self._reporter)
            came = left - sound.missing(left)
            self.found |= dict.fromkeys(came, "remote")
            left -= came

    def find(self, wanted: Collection[Digest]) -> None:
        """Find out what has each of `wanted`, and bring nothing; what is there is not read."""
        self.found = dict.fromkeys(self._trash.find({raw_digest(digest) for digest in wanted}), "trash")
        for store in self._stores:
            left = set(wanted) - self.found.keys()
            if left:
                self.found |= dict.fromkeys(left - store.missing(left), "remote")

    def named(self, told: Examination) -> Examination:
        """Return `told` with the source of each fault."""
        damaged, absent = (
            tuple(replace(fault, source=self.found.get(fault.digest)) for fault in faults)
            for faults in (told.damaged, told.absent)
        )
        return replace(told, damaged=damaged, absent=absent)


def _told(
    project: Project, sound: SoundCache, needs: Needs, lost: Sequence[Digest], found: Examination, reporter: Reporter
) -> Examination:
    """Return `found` with every fault, named by the tracked path that it belongs to."""
    missing = sound.missing(lost)
    owners = needs.owners(lost)
    in_trash = sound.in_trash(missing)
    unknown = {digest for digest in sound.damaged if digest not in owners}
    older = dict(_find_owners(project, sound, unknown, reporter))

    needing = [*(entry for entries in owners.values() for entry in entries), *(entry for _, entry in older.values())]
    places = find_files(sound, needing, {*lost, *sound.damaged}) if needing else {}

    def fault(digest: Digest, why: str, moved: str | None = None) -> Fault:
        revision, owner = older.get(digest, (None, None))
        entries = owners.get(digest) or ([owner] if owner else [])
        stage = entries[0].stage if entries else ""
        paths = tuple(entry.path for entry in entries)
        files = tuple(places.get(digest, ()))
        return Fault(digest, why, paths, stage, revision, moved, digest not in missing, digest in in_trash, files)

    damaged = [fault(digest, item.why, item.moved) for digest, item in sound.damaged.items()]
    absent = [fault(digest, "it is not in the cache") for digest in lost if digest not in sound.damaged]
    return replace(found, damaged=tuple(sorted(damaged, key=_order)), absent=tuple(sorted(absent, key=_order)))


def find_files(sound: TreeSource, tracked: Iterable[Tracked], wanted: Collection[Digest]) -> dict[Digest, list[str]]:
    """Return at which paths in and below `tracked` each of `wanted` is, as far as listings can be read."""
    found: dict[Digest, list[str]] = {}
    for entry in {(item.path, item.digest): item for item in tracked}.values():
        if entry.digest in wanted:
            found.setdefault(entry.digest, []).append(entry.path)
        if entry.kind is ObjectKind.TREE:
            with suppress(MissingObject, CorruptObject):
                for path, item in walk(sound, entry.digest):
                    if item.digest in wanted:
                        found.setdefault(item.digest, []).append(f"{entry.path}/{os.fsdecode(path)}")
    return found


def _order(fault: Fault) -> tuple[str, str]:
    return fault.path, fault.digest


def _find_owners(
    project: Project, sound: SoundCache, wanted: Collection[Digest], reporter: Reporter
) -> Iterator[tuple[Digest, tuple[str | None, Tracked]]]:
    """Yield each of `wanted` that a committed record names, with the newest commit that does."""
    left = set(wanted)
    known: set[Digest] = set()
    history = _older(project, reporter) if left else iter(())
    for revision, entry in history:
        if entry.digest in known:
            continue
        known.add(entry.digest)
        for digest in left.intersection(reach_of(sound, entry).owners):
            yield digest, (revision, entry)
            left.discard(digest)
        if not left:
            return


def _older(project: Project, reporter: Reporter) -> Iterator[tuple[str, Tracked]]:
    """Yield what `_history` does, as far as Git can read it: what was found damaged must be told in any case."""
    try:
        yield from _history(project)
    except OutsideError as error:
        reporter.note(f"older versions were not looked at: {error.message}")


def _history(project: Project) -> Iterator[tuple[str, Tracked]]:
    """Yield what HEAD tracks, then what every commit recorded, newest first."""
    with suppress(UsageError), open_snapshot(project, "HEAD") as snapshot:  # no commit yet; no record there
        yield from [("HEAD", entry) for entry in snapshot.tracked()]
    yield from recorded(project)
