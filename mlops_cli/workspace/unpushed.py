"""What tracked paths lack on their remotes, as the index of each tells: path by path, or file by file.

And what a push would do about it, so that nobody is sent to one that refuses.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlops_cli.errors import MlxError, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.remote import Remote
from mlops_cli.store.trees import Entry, Kind, read_tree
from mlops_cli.words import NAMED, so_for, word, words
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.differences import FileChange
from mlops_cli.workspace.pinned import is_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import Sendable
from mlops_cli.workspace.reach import Reach, find_part, reach
from mlops_cli.workspace.shortfalls import unpushable, unreadable
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.transfers import Lacking
from mlops_cli.workspace.versions import THE_WORKSPACE, select_versions


@dataclass(frozen=True, slots=True)
class Unpushed:
    """What one remote lacks of what belongs to it: files by path, and how many listings of folders.

    A folder whose listing is neither there nor here stands for all that was in it.
    """

    name: str
    url: str
    files: tuple[FileChange, ...]
    listings: int

    @property
    def empty(self) -> bool:
        """Whether it has it all."""
        return not (self.files or self.listings)


@dataclass(frozen=True, slots=True)
class Lacks:
    """What one remote lacks (`missing`) of what its `share` of the tracked paths needs."""

    store: Remote
    share: Sequence[tuple[Tracked, str]]
    needed: Reach
    missing: frozenset[Digest]

    @property
    def paths(self) -> tuple[Lacking, ...]:
        """The tracked paths of which it lacks something, sorted; an object counts once."""
        found: dict[str, list[int]] = {}
        for digest in self.missing:
            found.setdefault(self.needed.owners[digest], []).append(self.needed.sizes.get(digest, 0))
        return tuple(Lacking(path, len(sizes), sum(sizes)) for path, sizes in sorted(found.items()))


def find_unpushed(project: Project, targets: Sequence[str] = (), *, reporter: Reporter = SILENT) -> tuple[Lacks, ...]:
    """Return what each remote lacks of what the workspace's records name for it.

    UsageError for a target that nothing tracks, or when there is no remote; RemoteError.
    """
    chosen = [pair for pair in select_versions(project, targets, THE_WORKSPACE) if pair[0].push]
    division = Destinations(project).divide(chosen, None, targets, sending=True)
    return tuple(_find_lacks(project, name, share, reporter) for name, share in division.shares.items())


def _find_lacks(project: Project, name: str, share: Sequence[tuple[Tracked, str]], reporter: Reporter) -> Lacks:
    _, store = open_project_remote(project, name, reporter)
    store.refuse_lost()
    needed = reach(Sendable(project.cache), share)
    return Lacks(store, share, needed, frozenset(store.missing({*needed.sizes, *needed.unread})))


def list_files(project: Project, lacks: Lacks) -> Unpushed:
    """Return what a remote lacks file by file; every path of a file is listed."""
    needed, missing = lacks.needed, lacks.missing
    files = [file for entry, part in lacks.share for file in _files(project.cache, entry, part, missing, needed.unread)]
    listings = missing.difference(needed.steps[0]) if needed.steps else missing
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return Unpushed(lacks.store.name, lacks.store.url, ordered, len(listings))


class Offer(NamedTuple):
    """What a push would do with what remotes lack: the paths that it would send, and why it `refused` others."""

    paths: tuple[str, ...]
    refused: tuple[MlxError, ...]

    def next_steps(self, targets: Sequence[str] = ()) -> Iterator[str]:
        """Yield what to do, when `targets` were asked about; the paths in the commands are marked."""
        yield from (error.marked_hint for error in self.refused if error.marked_hint)
        if self.paths and self.refused:  # which would hold back everything
            yield f"`mlx push {words(self.paths[:NAMED])}` uploads what it does not refuse{so_for(self.paths[NAMED:])}"
        elif self.paths:
            yield f"`{' '.join(['mlx push', *map(word, targets)])}` uploads it"


def find_offer(project: Project, found: Iterable[Lacks]) -> Offer:
    """Return what `mlx push` would do with what was found to be lacking, without asking anybody.

    Imports that never came are no matter of a push; nor is a remote that can only be read.
    """
    destinations = Destinations(project)
    paths: list[str] = []
    refused: list[MlxError] = []
    for lacks in found:
        if not lacks.missing or not lacks.store.bucket.writes:
            continue
        needed, missing = lacks.needed, lacks.missing
        absent = Sendable(project.cache).missing(missing & needed.sizes.keys()) | (missing & needed.unread)
        here = {needed.owners[digest] for digest in missing} - {needed.owners[digest] for digest in absent}
        if absent and (error := _not_here(lacks, absent)) is not None:
            refused.append(error)
        for entry, part in lacks.share:
            if entry.path not in here:
                continue
            try:
                destinations.refuse_split(project.cache, lacks.store.name, [(entry, part)], missing)
            except UsageError as error:
                refused.append(error)
            else:
                paths.append(f"{entry.path}/{part}" if part else entry.path)
    return Offer(tuple(dict.fromkeys(paths)), tuple(refused))


def _not_here(lacks: Lacks, absent: set[Digest]) -> MlxError | None:
    """Return how a push refuses what is neither here nor on the remote; None where that is imports alone."""
    imports = {entry.path for entry, _ in lacks.share if is_pinned(entry)}
    lost = {digest for digest in absent if lacks.needed.owners[digest] not in imports}
    if trees := lost & lacks.needed.unread:
        return unreadable(lacks.needed, lacks.store.label, trees, imports)
    stages = {entry.path: entry.stage for entry, _ in lacks.share}
    return unpushable(lacks.needed, lacks.store.label, lost, stages, imports) if lost else None


def _files(
    cache: Cache, tracked: Tracked, part: str, missing: Collection[Digest], unread: Collection[Digest]
) -> Iterator[FileChange]:
    if tracked.digest in unread:
        if tracked.digest in missing:
            yield _added(tracked.path, as_entry(tracked))
        return
    entry = find_part(cache, tracked, part) if part else as_entry(tracked)
    waiting = [(f"{tracked.path}/{part}" if part else tracked.path, entry)]
    while waiting:
        path, entry = waiting.pop()
        if entry.digest not in missing:
            continue  # nor is anything below it, then
        if entry.kind != Kind.FOLDER or entry.digest in unread:
            yield _added(path, entry)
            continue
        waiting += [(f"{path}/{os.fsdecode(below.name)}", below) for below in read_tree(cache, entry.digest)]


def _added(path: str, entry: Entry) -> FileChange:
    return FileChange(path, "added", None, entry.size, None, entry.digest)
