"""What a command gets from the remotes of a project as it goes: each is opened when it is first needed, once.

Nothing is asked for that was not found to be missing here. A remote's index is read at most once, and a run record
is one request for the one key that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.trees import EMPTY_TREE
from mlops_cli.workspace.bringing import fetch_objects
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.pinned import is_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import children, reach
from mlops_cli.workspace.remotes import is_cache
from mlops_cli.workspace.shortfalls import damaged_on_the_way, refuse_gone, unfetchable
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.transfers import Fetching, Moved, paths_of

Pair = tuple[Tracked, str]

_LARGEST_TOLD = 2**32 - 1  # bytes: an index says no more of an object


@dataclass(slots=True)
class Supply:
    """The remotes of a project; `label` names those of a tracked path."""

    project: Project
    jobs: int = 0
    reporter: Reporter = SILENT
    _destinations: Destinations = field(init=False)
    _stores: dict[str, Remote] = field(default_factory=dict)
    _moved: dict[str, Moved] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Know which path belongs to which remote; nobody is asked."""
        self._destinations = Destinations(self.project)

    def label(self, tracked: Tracked) -> str:
        """Return what messages call the remote of a tracked path."""
        return self._store(self._destinations.of(tracked)).label

    def has(self, tracked: Tracked) -> bool:
        """Say whether the remote of a tracked path has it, as large as the record says; RemoteError."""
        if not (tracked.push or tracked.git):
            return False
        try:
            store = self._store(self._destinations.of(tracked))
        except UsageError:  # there is none for it
            return False
        if not store.holds(tracked.digest):
            refuse_gone(store)
            return False
        return tracked.kind is ObjectKind.TREE or store.measure([tracked.digest]) == min(tracked.size, _LARGEST_TOLD)

    def find_runs(self, key: str, outs: Sequence[str]) -> Iterator[bytes]:
        """Yield the run records under a fingerprint, of the remotes to which such outputs may belong: mostly one.

        RemoteError.
        """
        names: dict[str, None] = {}
        for path in outs:
            for kind in ObjectKind:  # patterns may name folders alone, and what it will be is not known before a run
                with suppress(UsageError):
                    names[self._destinations.of(Tracked(path, kind, EMPTY_TREE, 0, 0))] = None
        for name in names:
            if is_cache(self.project, name):  # whose records are those of the run cache here
                continue
            data = self._store(name).read_run(key)
            if data is not None:
                yield data
            else:
                refuse_gone(self._store(name))

    def bring(self, chosen: Sequence[Pair]) -> None:
        """Bring what `chosen` needs into the cache; imports that no remote has, from their sources.

        MissingObject or CorruptObject for what cannot be had; RemoteError.
        """
        with self.project.guard.held():
            self._bring(chosen)

    def _bring(self, chosen: Sequence[Pair]) -> None:
        imports = [pair for pair in chosen if is_pinned(pair[0])]
        if imports:
            paths = [f"{entry.path}/{part}" if part else entry.path for entry, part in imports]
            for each in fetch(self.project, paths, Fetching(jobs=self.jobs, reporter=self.reporter)).remotes:
                self._note(each)
        others = [pair for pair in chosen if not is_pinned(pair[0])]
        for name, share in self._destinations.divide(others, None, sending=False).shares.items() if others else ():
            store, cache = self._store(name), self.project.cache
            try:
                done = fetch_objects(cache, store, share, jobs=self._jobs, reporter=self.reporter)
            except AbsentObjects as error:
                refuse_gone(store)
                own = is_cache(self.project, name)
                raise unfetchable(reach(cache.window, share), store.label, error, is_cache=own) from error
            except DamagedObjects as error:
                raise damaged_on_the_way(reach(cache.window, share), error) from error
            self._came(name, share, done)

    def bring_listings(self, tracked: Tracked) -> None:
        """Bring what lists the files of a tracked folder, and none of them; MissingObject, RemoteError."""
        name = self._destinations.of(tracked)
        store, window = self._store(name), self.project.cache.window
        level: list[Digest] = [tracked.digest]
        with self.project.guard.held():
            while level:
                done = store.bring(window, level, jobs=self._jobs)
                self._came(name, [(tracked, "")], done)
                below = (children(window.read(digest), digest)[0] for digest in level)
                level = list(dict.fromkeys(digest for inner in below for digest in inner))

    @property
    def moved(self) -> tuple[Moved, ...]:
        """What came from each remote that was asked, and what that took."""
        asked = {name: Moved(name, store.url, ()) for name, store in self._stores.items()}
        found = []
        for name, moved in sorted({**asked, **self._moved}.items()):
            traffic = self._stores[name].bucket.traffic if name in self._stores else None
            if traffic is not None:
                requests, size = moved.requests + traffic.requests, moved.transferred + traffic.sent + traffic.received
                moved = replace(moved, requests=requests, transferred=size)  # noqa: PLW2901 - the sum of both
            found.append(replace(moved, paths=tuple(sorted(set(moved.paths)))))
        return tuple(found)

    @property
    def _jobs(self) -> int:
        return self.jobs or self.project.config.core_jobs

    def _store(self, name: str) -> Remote:
        if name not in self._stores:
            self._stores[name] = open_project_remote(self.project, name, self.reporter)[1]
        return self._stores[name]

    def _came(self, name: str, share: Sequence[Pair], done: Transferred) -> None:
        if done.objects:
            self._note(Moved(name, self._stores[name].url, paths_of(share), done.objects, done.bytes))

    def _note(self, moved: Moved) -> None:
        if moved.name:
            before = self._moved.get(moved.name)
            self._moved[moved.name] = moved if before is None else before.plus(moved)


def lacks(project: Project, chosen: Sequence[Pair]) -> bool:
    """Say whether the cache lacks something that `chosen` needs."""
    try:
        needed = reach(project.cache, chosen)
    except MissingObject:
        return True
    return bool(needed.unread or project.cache.missing(needed.sizes))
