"""What a stage's inputs and outputs are now.

The observer looks at the workspace once per path, asks the planner, and remembers each stage's decision, so that the
stages after it are judged on what it will have made: the outputs of a stage that is skipped or restored are known
before anything happens; those of a stage that must run are not. What is recorded and not in the workspace counts as if
it were there, so that a plan is the same in a clone without data.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RecordError
from mlops_cli.hashing import Digest
from mlops_cli.pipeline.globs import can_descend, expand, file_pattern
from mlops_cli.pipeline.graph import Graph, build_graph, makers_of
from mlops_cli.pipeline.plan import Action, Decision, Evidence, Present, Wanted, decide, spell
from mlops_cli.pipeline.values import read_params
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.locks import Input, Lock, OutputRecord, read_lock
from mlops_cli.records.pointers import ObjectKind, Pointer, SomeObject
from mlops_cli.records.stages import ParamsFile, Stage, has_magic
from mlops_cli.store.trees import Entry, Kind, TreeSource, diff, find, split_path, walk, write_tree
from mlops_cli.workspace.compare import as_entry, describe_change
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.rewrite import Rewriting
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track


class _Found:
    """The dependencies of a stage as they are gathered (dicts for their order); see `Wanted`."""

    def __init__(self) -> None:
        self.deps: dict[str, Input] = {}
        self.absent: dict[str, None] = {}
        self.lost: list[str] = []
        self.unread: dict[str, None] = {}


class Observer:
    """Answers, for one run of one command, what each stage wants and what is to be done with it.

    `data` looks at tracked data; `code` looks at everything else, and leaves Python's bytecode out of folders.
    """

    def __init__(
        self,
        project: Project,
        snapshot: Snapshot,
        graph: Graph,
        *,
        data: Scanner,
        code: Scanner,
        run_cache: bool = True,
    ) -> None:
        self._project = project
        self._snapshot = snapshot
        self._graph = graph
        self._data = data
        self._code = code
        self._run_cache = run_cache
        self._outs = sorted(graph.maker)
        self._decisions: dict[str, Decision] = {}
        self._settled: set[str] = set()
        self._seen: dict[str, Entry | None] = {}
        self._pointers = set(snapshot.pointer_paths)
        self._recorded = sorted({*self._pointers, *graph.maker})

    def decide(self, stage: Stage, *, force: bool = False) -> Decision:
        """Return what is to be done with `stage`; the stages before it must have been decided."""
        evidence = Evidence(
            lock=self._snapshot.lock(stage),
            present={out.path: _present(self.look(out.path)) for out in stage.outs},
            recall=lambda key: self._recall(key, stage.folder) if self._run_cache else None,
            holds=self._holds,
            describe=self.describe,
        )
        return self.note(decide(stage, self.wanted(stage), evidence, force=force))

    def note(self, decision: Decision) -> Decision:
        """Remember a decision, which the stages after it are judged on, and return it."""
        self._decisions[decision.stage.address] = decision
        return decision

    def settle(self, decision: Decision) -> None:
        """Replace a stage's decision by what became of it; its outputs are looked at again when next asked for."""
        self._decisions[decision.stage.address] = decision
        self._settled.add(decision.stage.address)
        for out in decision.stage.outs:
            self._forget(out.path)

    def describe(self, old: SomeObject, new: SomeObject) -> str:
        """Word how one object became another."""
        return describe_change(self._data, old, new)

    def unkept(self, deps: Iterable[Input]) -> tuple[str, ...]:
        """Return the paths of tracked data in `deps` with bytes that no pointer names; what is only gone is no such."""
        used = {dep.path: dep for dep in deps}
        inside = {path: owner for path in used for owner in _and_above(path) if owner in self._pointers}
        below = [owner for owner in self._pointers if any(above in used for above in _and_above(owner)[:-1])]
        seen = [(path, owner, used[path].digest) for path, owner in inside.items()]
        seen += [(owner, owner, entry.digest) for owner in below if (entry := self.look(owner))]
        return tuple(sorted(path for path, owner, digest in seen if self._has_new(path, owner, digest)))

    def _has_new(self, path: str, owner: str, digest: Digest) -> bool:
        pointer = self._snapshot.pointer(owner)
        recorded = self._inside(track(owner, pointer), path, _Found()) if pointer else None
        if recorded is None or recorded.digest == digest or recorded.kind != Kind.FOLDER:
            return recorded is None or recorded.digest != digest
        try:
            found = diff(self._data, recorded.digest, digest)
        except (MissingObject, CorruptObject):  # a file now, or nobody can tell
            return True
        return bool(found.added or found.modified)

    def untracked(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that no pointer and no stage speaks for: code, or data that nobody added."""
        spoken_for = {*self._pointers, *self._graph.maker}
        return [path for path in paths if not any(above in spoken_for for above in _and_above(path))]

    def flush(self) -> None:
        """Write what was seen to the state index."""
        self._data.save()
        self._code.save()

    def wanted(self, stage: Stage) -> Wanted:
        """Return the inputs of `stage` as they are, or will be when the stages before it are done."""
        waiting = self._waiting(stage)
        found = _Found()
        for dep in stage.deps:
            if dep not in waiting:
                self._gather(dep, stage, found)
        params = {
            file.path: values
            for file in stage.params
            if file.path not in waiting and (values := self._values(stage, file, found)) is not None
        }
        return Wanted(
            deps=tuple(found.deps.values()),
            params=params,
            globs=tuple(sorted(dep for dep in stage.deps if has_magic(dep))),
            waiting=waiting,
            absent=tuple(found.absent),
            lost=tuple(found.lost),
            unread=tuple(found.unread),
        )

    def changed(self, stage: Stage, wanted: Wanted) -> tuple[str, ...]:
        """Return the dependencies and parameter files that are no longer what `wanted` says, looking again."""
        self._seen.clear()  # the command may have taken hours: whatever was seen is old
        try:
            now = self.wanted(stage)
        except (MlxError, OSError):  # one cannot be read any more, or does not hold still: it changed
            unreadable = tuple(dep.path for dep in wanted.deps if not self._can_look(dep.path))
            return unreadable or tuple(file.path for file in stage.params) or tuple(dep.path for dep in wanted.deps)
        old, new = ({dep.path: (dep.digest, dep.executable) for dep in side.deps} for side in (wanted, now))
        deps = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
        return (*deps, *(path for path in now.params if spell(now.params[path]) != spell(wanted.params.get(path))))

    def _waiting(self, stage: Stage) -> dict[str, str]:
        names = (*stage.deps, *(file.path for file in stage.params))
        return {
            name: maker
            for name in names
            for maker in makers_of(name, self._graph.maker, self._outs)
            if maker != stage.address and (decision := self._decisions.get(maker)) and decision.outs is None
        }

    def _gather(self, dep: str, stage: Stage, found: _Found) -> None:
        """Add what `dep` stands for to `found`."""
        paths = self._expand(dep, stage, found) if has_magic(dep) else [dep]
        for path in paths:
            entry = self._entry(path, found)
            if entry is not None:
                found.deps[path] = Input(path, _kind(entry), entry.digest, entry.size, entry.kind == Kind.EXECUTABLE)
            elif not any(_is_in(path, folder) for folder in found.unread):
                found.lost.append(path)
        if not paths and not found.unread:
            found.lost.append(dep)

    def _expand(self, glob: str, stage: Stage, found: _Found) -> Sequence[str]:
        """Return the files that `glob` matches, on disk and among what is recorded and not on disk."""
        own = [out.path for out in stage.outs]
        paths = {path for path in expand(self._project.root, glob) if not any(_is_in(path, out) for out in own)}
        matches, parts = file_pattern(glob).fullmatch, glob.split("/")
        for place in self._recorded:
            inside = can_descend(parts, place.split("/"))
            if not inside and not matches(place):
                continue
            tracked = self._replaced(place)
            if tracked is None or place in own:
                continue
            paths = {path for path in paths if not _is_in(path, place)}
            candidates = [place] if tracked.kind is ObjectKind.BLOB else self._files(tracked, found) if inside else []
            paths.update(path for path in candidates if matches(path))
        return sorted(paths)

    def _files(self, tracked: Tracked, found: _Found) -> list[str]:
        try:
            entries = list(walk(self._data, tracked.digest, os.fsencode(tracked.path)))
        except MissingObject:
            found.unread[tracked.path] = None
            return []
        return [os.fsdecode(path) for path, entry in entries if entry.kind != Kind.FOLDER]

    def _entry(self, path: str, found: _Found) -> Entry | None:
        """Return what is at `path`, or will be once restored outputs and recorded data are in place."""
        for above in reversed(_and_above(path)):
            tracked = self._promised(above)
            if tracked is not None and (self._is_pending(above) or self.look(path) is None):
                if not self._is_pending(above):
                    found.absent[path] = None
                return self._inside(tracked, path, found)
        entry = self.look(path)
        if entry is not None and entry.kind != Kind.FOLDER:
            return entry
        overlay = {split_path(t.path[len(path) + 1 :]): as_entry(t) for t in self._overlay(path, found)}
        if not overlay:
            return entry
        trees = Rewriting(self._scanner(path))
        root = entry.digest if entry is not None else write_tree(trees, ()).digest
        return trees.rewrite(root, overlay, None)

    def _inside(self, tracked: Tracked, path: str, found: _Found) -> Entry | None:
        if path == tracked.path:
            return as_entry(tracked)
        try:
            return find(self._data, tracked.digest, split_path(path[len(tracked.path) + 1 :]))
        except MissingObject:
            found.unread[tracked.path] = None
            return None

    def _overlay(self, folder: str, found: _Found) -> Iterator[Tracked]:
        """Yield the recorded paths below `folder` that are not in the workspace as they will be."""
        for path in self._recorded[bisect_left(self._recorded, folder + "/") :]:
            if not path.startswith(folder + "/"):
                return
            tracked = self._replaced(path)
            if tracked is not None:
                if not self._is_pending(path):
                    found.absent[path] = None
                yield tracked

    def _replaced(self, path: str) -> Tracked | None:
        """Return what the records say is at `path`, when it counts instead of what the workspace has there."""
        if self._is_pending(path) or not os.path.lexists(self._project.root / path):
            return self._promised(path)
        return None

    def _is_pending(self, path: str) -> bool:
        """Say whether `path` is an output that a stage before will restore, and has not yet."""
        address = self._graph.maker.get(path, "")
        decision = self._decisions.get(address)
        return decision is not None and decision.action is Action.RESTORE and address not in self._settled

    def _scanner(self, path: str) -> Scanner:
        is_data = any(above in self._pointers or above in self._graph.maker for above in _and_above(path))
        return self._data if is_data else self._code

    @property
    def trees(self) -> TreeSource:
        """The trees of the tracked data that was looked at."""
        return self._data

    def look(self, path: str) -> Entry | None:
        """Return what is at `path` in the workspace; it is looked at once."""
        if path not in self._seen:
            scanner = self._scanner(path)
            # Code may be linked from elsewhere: then what counts is what the link leads to.
            self._seen[path] = scanner.look(path, follow=scanner is self._code)
        return self._seen[path]

    def _can_look(self, path: str) -> bool:
        try:
            self.look(path)
        except (MlxError, OSError):
            return False
        return True

    def _forget(self, path: str) -> None:
        for seen in [p for p in self._seen if _is_in(p, path) or _is_in(path, p)]:
            del self._seen[seen]

    def _promised(self, path: str) -> Tracked | None:
        """Return what the records say is at `path`: a pointer, or a stage that will not run again."""
        record: Pointer | OutputRecord | None = self._snapshot.pointer(path) if path in self._pointers else None
        decision = self._decisions.get(self._graph.maker.get(path, ""))
        for out in (decision.outs or ()) if decision else ():
            record = out if out.path == path else record
        return track(path, record) if record else None

    def _values(self, stage: Stage, file: ParamsFile, found: _Found) -> dict[str, object] | None:
        data = None if self._is_pending(file.path) else self._snapshot.files.read(file.path)
        if data is None and (entry := self._entry(file.path, found)) is not None:
            try:
                data = self._data.read(entry.digest)
            except MissingObject:
                found.unread[file.path] = None
                return None
        if data is None:
            raise RecordError(
                f"{stage.file}:{stage.line}: stage `{stage.address}` takes parameters from `{file.path}`, "
                "which does not exist",
                hint=f"create `{file.path}`, or take it out of `params`",
            )
        return read_params(data, file, stage)

    def _recall(self, key: str, folder: str) -> Lock | None:
        data = self._project.cache.read_run(key)
        if data is None:
            return None
        try:
            return read_lock(data, f"run cache entry {key}", folder)
        except RecordError:
            return None  # written by another version: as good as no entry

    def _holds(self, out: OutputRecord) -> bool:
        kind = Kind.FOLDER if out.kind is ObjectKind.TREE else Kind.FILE
        return is_stored(self._project.cache, Entry(b"", kind, out.size, out.files or 1, out.digest))


def stage_graph(snapshot: Snapshot) -> Graph:
    """Return the graph of every stage that the snapshot declares."""
    return build_graph(snapshot.stages, snapshot.pointer_paths)


@contextmanager
def open_observer(
    project: Project, snapshot: Snapshot, graph: Graph, *, reporter: Reporter = SILENT, run_cache: bool = True
) -> Iterator[Observer]:
    """Yield an observer of the workspace; what it sees goes to the state index when the block ends well."""
    with (
        open_scanner(project, reporter=reporter) as data,
        open_scanner(project, reporter=reporter, as_code=True) as code,
    ):
        yield Observer(project, snapshot, graph, data=data, code=code, run_cache=run_cache)


def plan_stages(
    observer: Observer, graph: Graph, targets: Iterable[str], *, force: bool = False
) -> tuple[Decision, ...]:
    """Return the decision for each of `targets` (addresses) and everything above them, in run order."""
    chosen = tuple(targets)
    return tuple(
        observer.decide(graph.stages[address], force=force and address in chosen) for address in graph.above(chosen)
    )


def _present(entry: Entry | None) -> Present | None:
    if entry is None:
        return None
    return Present(_kind(entry), entry.digest, entry.size, entry.kind == Kind.EXECUTABLE)


def _kind(entry: Entry) -> ObjectKind:
    return ObjectKind.TREE if entry.kind == Kind.FOLDER else ObjectKind.BLOB


def _is_in(path: str, folder: str) -> bool:
    """Say whether `path` is `folder` or lies below it."""
    return path == folder or path.startswith(folder + "/")


def _and_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
