"""`mlx add --to-remote`: track files and folders whose bytes go straight to a remote, and not into the cache.

The workspace is hashed first, then what the remote lacks is sent from the files themselves: small ones in packs, large
ones in chunks. When the remote has everything durable, the pointer is renamed into place: that is what makes it
tracked. Only the listings of folders stay here. Whatever ends this before, nothing is tracked, and the same command
sends what was not sent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from mlops_cli.errors import UsageError
from mlops_cli.files import write_atomic
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.backed_cache import BackedCache
from mlops_cli.store.batches import open_batch
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.trees import Entry, Kind, walk
from mlops_cli.words import word
from mlops_cli.workspace.add import AddResult, added_entry, new_pointer, place_of, pointer_to, refuse_unfit
from mlops_cli.workspace.dead_links import refuse_dead_links
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.extents import extent_of, find_in_part, note_extents
from mlops_cli.workspace.gitignore import hide_from_git
from mlops_cli.workspace.litter import beside, remove_seen
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import Reach, reach
from mlops_cli.workspace.remote_projects import announce
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Tracked, track, workspace_snapshot
from mlops_cli.workspace.transfers import Moved


def add_to_remote(
    project: Project,
    targets: Sequence[str],
    *,
    remote: str | None = None,
    jobs: int = 0,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[AddResult, tuple[Moved, ...]]:
    """Send `targets` (project-relative) to the remote each belongs to, or `remote`, and write their pointers.

    UsageError for what `add` refuses, for a part of a tracked folder, for what must not go to that remote, and for a
    file that changes while it is sent; RemoteError. No pointer has been written then.
    """
    snapshot = workspace_snapshot(project)
    places = tuple(dict.fromkeys(place_of(snapshot, target) for target in targets))
    refuse_unfit(project, snapshot, places)
    extents = find_in_part(project)
    for owner, part in places:
        if part:
            raise UsageError(
                f"`{owner}/{part}` is a part of `{owner}`, which is tracked as a whole",
                hint=f"`mlx add --to-remote {word(owner)}` sends what is new in it",
            )
        pointer = snapshot.pointer(owner)  # one that cannot be read stops this here, before anything is sent
        if pointer is not None and extent_of(extents, track(owner, pointer)):
            raise UsageError(
                f"`{owner}` is here in part, and only the whole can be sent straight to a remote",
                hint=f"`mlx add {word(owner)}` and `mlx push {word(owner)}` record and send what is new in it",
            )
        refuse_dead_links(project.root, owner, part)
    reporter.start("adding", None, "files")
    with open_scanner(project, reporter=reporter) as scanner:
        entries = {owner: _look(scanner, owner) for owner, _ in places}
        tracked = {owner: track(owner, pointer_to(owner, entry)) for owner, entry in entries.items()}
        chosen = [(entry, "") for entry in tracked.values()]
        destinations = Destinations(project)
        division = destinations.divide(chosen, remote, list(tracked), sending=True)
        shares = {name: [entry for entry, _ in share] for name, share in division.shares.items()}
        plans = [_Share(project, scanner, destinations, name, share) for name, share in shares.items()]
        moved = tuple(plan.send(jobs, dry_run=dry_run, reporter=reporter) for plan in plans)
        if not dry_run:
            remove_seen(project, {*scanner.litter, *beside(project, entries)})
            _keep_listings(project, scanner, {digest for plan in plans for digest in plan.trees})
    added = tuple(added_entry(snapshot, owner, entry) for owner, entry in entries.items())
    if dry_run:
        return AddResult(added, ()), moved
    hidden = hide_from_git(project.root, entries)
    note_extents(project, dict.fromkeys(entries))  # what is noted of a path that was removed is no longer so
    for result, entry in zip(added, entries.values(), strict=True):
        if result.changed:
            write_atomic(project.root / result.pointer, new_pointer(snapshot, result.path, entry).to_bytes())
    return AddResult(added, hidden), moved


def _look(scanner: Scanner, owner: str) -> Entry:
    found = scanner.look(owner)
    if found is None:
        raise UsageError(f"`{owner}` does not exist", hint="check the spelling; paths are relative to where you are")
    return found


def _keep_listings(project: Project, scanner: Scanner, trees: Collection[Digest]) -> None:
    with open_batch(project.cache.window) as batch:
        for digest in trees:
            batch.add_bytes(scanner.read(digest))


class _Share:
    """What goes to one remote: paths of the workspace, with what they need; nothing is sent before `send`."""

    def __init__(
        self, project: Project, scanner: Scanner, destinations: Destinations, name: str, share: Sequence[Tracked]
    ) -> None:
        _, self._store = open_project_remote(project, name)
        self._project = project
        self._name = name
        self._share = share
        self._scanner = scanner
        chosen = [(entry, "") for entry in share]
        self._needed: Reach = reach(_Seen(scanner), chosen)
        self._missing = self._store.missing(self._needed.sizes)
        destinations.refuse_split(scanner, name, chosen, self._missing)

    @property
    def trees(self) -> list[Digest]:
        """The listings of the paths."""
        return [digest for step in self._needed.steps[1:] for digest in step]

    def send(self, jobs: int, *, dry_run: bool, reporter: Reporter) -> Moved:
        """Make the remote have it all; UsageError for a file that is no longer as it was looked at."""
        needed, store = self._needed, self._store
        store.bucket.traffic.listener = reporter.note
        blobs, *levels = ([digest for digest in step if digest in self._missing] for step in needed.steps)
        size = sum(needed.sizes[digest] for digest in self._missing)
        if self._missing and not dry_run:
            reporter.start("pushing", size, "bytes")
            source = BackedCache(self._project.cache, self._files(), self._scanner.read)
            wanted = Wanted(blobs, [digest for level in levels for digest in level], needed.sizes)
            try:
                announce(self._project, store.bucket, store.url)
                store.send(source, wanted, jobs=jobs or self._project.config.core_jobs, reporter=reporter)
            except DamagedObjects as error:
                raise UsageError(error.message, hint=error.marked_hint) from error
        traffic = store.bucket.traffic
        moved = traffic.sent + traffic.received
        paths = tuple(entry.path for entry in self._share)
        return Moved(self._name, store.url, paths, len(self._missing), size, traffic.requests, moved)

    def _files(self) -> dict[Digest, bytes]:
        """Return a file of the workspace for each object that is to be sent."""
        root = os.fsencode(self._project.root)
        found: dict[Digest, bytes] = {}
        for entry in self._share:
            path = os.fsencode(entry.path)
            if entry.digest not in self._missing:
                continue  # nor is anything below it, then
            if entry.kind is ObjectKind.BLOB:
                found[entry.digest] = root + b"/" + path
                continue
            for place, below in walk(self._scanner, entry.digest, path):
                if below.kind != Kind.FOLDER and below.digest in self._missing:
                    found.setdefault(below.digest, root + b"/" + place)
        return found


class _Seen:
    """The trees that a scan has built: all that is below the paths it looked at is there."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner

    def missing(self, digests: Collection[Digest]) -> set[Digest]:  # noqa: ARG002
        return set()

    def read(self, digest: Digest) -> bytes:
        return self._scanner.read(digest)
