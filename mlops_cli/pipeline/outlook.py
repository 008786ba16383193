"""The workspace as a stage will find it: what is there now, what stages before it restore, what records promise.

The outputs of a stage that is skipped or restored are known before anything happens; those of a stage that must run are
not. What is recorded and not in the workspace counts as if it were there, so that a plan is the same in a clone without
data.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from mlops_cli.errors import MissingObject
from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.wanted import Normalized
from mlops_cli.records.locks import Input, OutputRecord
from mlops_cli.records.pointers import Pointer
from mlops_cli.records.stages import Stage
from mlops_cli.store.trees import Entry, Kind, find, split_path, walk, write_tree
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.extents import find_in_part, see
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.rewrite import Rewriting
from mlops_cli.workspace.scan import Scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track


class Found:
    """The dependencies of a stage as they are gathered (dicts for their order); see `Wanted`."""

    def __init__(self) -> None:
        self.deps: dict[str, Input] = {}
        self.absent: dict[str, None] = {}
        self.lost: list[str] = []
        self.unread: dict[str, None] = {}
        self.without: dict[str, None] = {}
        self.normalized: dict[str, Normalized] = {}


class Outlook:
    """Answers what is at a path, and what will be once the stages before are done; each path is looked at once.

    `data` looks at tracked data; `code` looks at everything else, and leaves Python's bytecode out of folders.
    """

    def __init__(self, project: Project, snapshot: Snapshot, graph: Graph, *, data: Scanner, code: Scanner) -> None:
        self.pointers = frozenset(snapshot.pointer_paths)
        self.recorded = sorted({*self.pointers, *graph.maker})
        self._project = project
        self._root = project.root
        self._snapshot = snapshot
        self._maker = graph.maker
        self._data = data
        self._code = code
        self._decisions: dict[str, Decision] = {}
        self._settled: set[str] = set()
        self._seen: dict[str, Entry | None] = {}
        self._extents = find_in_part(project)

    @property
    def trees(self) -> Scanner:
        """The trees of the tracked data that was looked at."""
        return self._data

    def look(self, path: str) -> Entry | None:
        """Return what is at `path` in the workspace; it is looked at once."""
        if path not in self._seen:
            scanner = self.scanner(path)
            # Code may be linked from elsewhere: then what counts is what the link leads to.
            self._seen[path] = scanner.look(path, follow=scanner is self._code)
        return self._seen[path]

    def look_anew(self) -> None:
        """Take whatever was seen for old."""
        self._seen.clear()

    def renew(self) -> None:
        """Look again at everything, and at what folders are here in part."""
        self._seen.clear()
        self._extents = find_in_part(self._project)

    def flush(self) -> None:
        """Write what was seen to the state index."""
        self._data.save()
        self._code.save()

    def decision(self, address: str) -> Decision | None:
        """Return what is to be done with a stage, if that has been decided."""
        return self._decisions.get(address)

    def note(self, decision: Decision) -> Decision:
        """Remember a decision, which the stages after it are judged on, and return it."""
        self._decisions[decision.stage.address] = decision
        return decision

    def settle(self, decision: Decision) -> None:
        """Replace a stage's decision by what became of it; its outputs are looked at again when next asked for."""
        self._decisions[decision.stage.address] = decision
        self._settled.add(decision.stage.address)
        self.forget(decision.stage)

    def forget(self, stage: Stage) -> None:
        """Look at the outputs of a stage again when next asked for."""
        for out in stage.outs:
            self._forget(out.path)

    def entry(self, path: str, found: Found) -> Entry | None:
        """Return what is at `path`, or will be once restored outputs and recorded data are in place."""
        for above in reversed(and_above(path)):
            tracked = self._promised(above)
            if tracked is not None and (self.is_pending(above) or self.look(path) is None):
                if not self.is_pending(above):
                    found.absent[path] = None
                return self.inside(tracked, path, found)
        entry = self.see(path, found)
        if entry is not None and entry.kind != Kind.FOLDER:
            return entry
        overlay = {split_path(place[len(path) + 1 :]): below for place, below in self._overlay(path, found)}
        if not overlay:
            return entry
        trees = Rewriting(self.scanner(path))
        root = entry.digest if entry is not None else write_tree(trees, ()).digest
        return trees.rewrite(root, overlay, None)

    def see(self, path: str, found: Found | None = None) -> Entry | None:
        """Return what counts as being at `path`: of a folder that is here in part, what is away as it is recorded.

        When some of it is away, `found` gets the path; when nobody can tell, the folder.
        """
        present = self.look(path)
        for owner in and_above(path) if self._extents else ():
            pointer = self._snapshot.pointer(owner) if owner in self._extents and owner in self.pointers else None
            if pointer is None:
                continue
            try:
                seen = see(self._data, self._extents, track(owner, pointer), path[len(owner) + 1 :], present)
            except MissingObject:
                if found is None:
                    return present
                found.unread[owner] = None
                return None
            if seen.away and found is not None:
                found.absent[path] = None
            return seen.entry
        return present

    def away(self, place: str, found: Found) -> list[str]:
        """Return the files of a tracked folder that is here in part that are away; none when nobody can tell."""
        extent = self._extents.get(place)
        pointer = self._snapshot.pointer(place) if extent and place in self.pointers else None
        if extent is None or pointer is None:
            return []
        files = self.files(track(place, pointer), found)
        return [path for path in files if not extent.has(os.fsencode(path[len(place) + 1 :]))]

    def inside(self, tracked: Tracked, path: str, found: Found) -> Entry | None:
        """Return what a record says is at `path`, in or below what is tracked; None too when nobody can tell."""
        if path == tracked.path:
            return as_entry(tracked)
        try:
            return find(self._data, tracked.digest, split_path(path[len(tracked.path) + 1 :]))
        except MissingObject:
            found.unread[tracked.path] = None
            return None

    def files(self, tracked: Tracked, found: Found) -> list[str]:
        """Return the files that a record says are in a tracked folder; none when nobody can tell."""
        try:
            entries = list(walk(self._data, tracked.digest, os.fsencode(tracked.path)))
        except MissingObject:
            found.unread[tracked.path] = None
            return []
        return [os.fsdecode(path) for path, entry in entries if entry.kind != Kind.FOLDER]

    def replaced(self, path: str) -> Tracked | None:
        """Return what the records say is at `path`, when it counts instead of what the workspace has there."""
        if self.is_pending(path) or not os.path.lexists(self._root / path):
            return self._promised(path)
        return None

    def whereabouts(self, paths: Iterable[str]) -> list[tuple[Tracked, str]] | None:
        """Return the tracked paths, and what of them, that are meant by `paths` that are not, or not all, here.

        What a stage made comes as a whole: its lock names no part. None when nothing records one of them.
        """
        chosen: dict[tuple[str, str], tuple[Tracked, str]] = {}
        for path in paths:
            owner = next((above for above in and_above(path) if above in self.pointers or above in self._maker), None)
            tracked = None if owner is None else self._promised(owner)
            if owner is None or tracked is None:
                return None
            parts = [path[len(owner) + 1 :]]
            if owner not in self.pointers:
                tracked, parts = tracked._replace(stage=self._maker[owner]), [""]
            elif os.path.lexists(self._root / path):
                parts = [file[len(owner) + 1 :] for file in self.away(owner, Found()) if is_in(file, path)]
            chosen.update({(owner, part): (tracked, part) for part in parts})
        return [pair for (owner, part), pair in chosen.items() if not part or (owner, "") not in chosen]

    def is_pending(self, path: str) -> bool:
        """Say whether `path` is an output that a stage before will restore, and has not yet."""
        address = self._maker.get(path, "")
        decision = self._decisions.get(address)
        return decision is not None and decision.action is Action.RESTORE and address not in self._settled

    def _overlay(self, folder: str, found: Found) -> Iterator[tuple[str, Entry]]:
        """Yield the recorded paths below `folder` that are not, or not all, in the workspace as they will be."""
        for path in self.recorded[bisect_left(self.recorded, folder + "/") :]:
            if not path.startswith(folder + "/"):
                return
            tracked = self.replaced(path)
            if tracked is not None:
                if not self.is_pending(path):
                    found.absent[path] = None
                yield path, as_entry(tracked)
            elif path in self._extents and (entry := self.see(path, found)) is not None:
                yield path, entry

    def scanner(self, path: str) -> Scanner:
        """Return who looks at `path`, and has the trees of what was there."""
        is_data = any(above in self.pointers or above in self._maker for above in and_above(path))
        return self._data if is_data else self._code

    def _forget(self, path: str) -> None:
        for seen in [p for p in self._seen if is_in(p, path) or is_in(path, p)]:
            del self._seen[seen]

    def _promised(self, path: str) -> Tracked | None:
        """Return what the records say is at `path`: a pointer, or a stage that will not run again."""
        record: Pointer | OutputRecord | None = self._snapshot.pointer(path) if path in self.pointers else None
        decision = self._decisions.get(self._maker.get(path, ""))
        for out in (decision.outs or ()) if decision else ():
            record = out if out.path == path else record
        return track(path, record) if record else None


def is_in(path: str, folder: str) -> bool:
    """Say whether `path` is `folder` or lies below it."""
    return path == folder or path.startswith(folder + "/")


def and_above(path: str) -> list[str]:
    """Return the folders above `path`, outermost first, and `path`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
