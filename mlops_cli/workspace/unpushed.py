"""`mlx diff --remote`: the files of tracked paths that are not on their remote, as its index tells."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mlops_cli.hashing import Digest
from mlops_cli.store.cache import Cache
from mlops_cli.store.trees import Entry, Kind, read_tree
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.differences import FileChange
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import find_part, reach
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.sync import open_project_remote
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


def find_unpushed_files(project: Project, targets: Sequence[str] = ()) -> tuple[Unpushed, ...]:
    """Return what the remotes lack of what the workspace's records name; every path of a file is listed.

    UsageError for a target that nothing tracks, or when there is no remote; RemoteError.
    """
    chosen = [pair for pair in select_versions(project, targets, THE_WORKSPACE) if pair[0].push and not pair[0].git]
    division = Destinations(project).divide(chosen, None, targets, sending=True)
    return tuple(_of_remote(project, name, share) for name, share in division.shares.items())


def _of_remote(project: Project, name: str, share: Sequence[tuple[Tracked, str]]) -> Unpushed:
    _, store = open_project_remote(project, name)
    needed = reach(project.cache, share)
    missing = store.missing({*needed.sizes, *needed.unread})
    files = [file for entry, part in share for file in _files(project.cache, entry, part, missing, needed.unread)]
    listings = missing.difference(needed.steps[0]) if needed.steps else missing
    return Unpushed(name, store.url, tuple(sorted(files, key=lambda file: file.path)), len(listings))


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
