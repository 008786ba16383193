"""What a stage's inputs and outputs are now.

The observer gathers what a stage names from the workspace as the stage will find it (`outlook`), asks the planner, and
remembers each stage's decision, so that the stages after it are judged on what it will have made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RecordError
from mlops_cli.hashing import Digest
from mlops_cli.pipeline.changes import spell
from mlops_cli.pipeline.globs import can_descend, expand, file_pattern
from mlops_cli.pipeline.graph import Graph, build_graph, makers_of
from mlops_cli.pipeline.normal_forms import NormalForms
from mlops_cli.pipeline.outlook import Found, Outlook, and_above, is_in
from mlops_cli.pipeline.outside import AS_RECORDED, Outside
from mlops_cli.pipeline.plan import Action, Decision, Evidence, decide, leave_off
from mlops_cli.pipeline.values import read_params
from mlops_cli.pipeline.wanted import Normalized, Present, Wanted
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.environment import UNSAID
from mlops_cli.records.locks import Input, Lock, OutputRecord, read_lock
from mlops_cli.records.pointers import ObjectKind, SomeObject
from mlops_cli.records.stages import Dependency, ParamsFile, Stage, has_magic
from mlops_cli.store.trees import Entry, Kind, diff
from mlops_cli.workspace.compare import describe_change
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track

if TYPE_CHECKING:
    from mlops_cli.pipeline.provision import Provision


class Observer:
    """Answers, for one run of one command, what each stage wants and what is to be done with it."""

    def __init__(
        self,
        project: Project,
        snapshot: Snapshot,
        graph: Graph,
        outlook: Outlook,
        forms: NormalForms,
        *,
        run_cache: bool = True,
        provision: Provision | None = None,
        outside: Outside = AS_RECORDED,
    ) -> None:
        self._project = project
        self._snapshot = snapshot
        self._graph = graph
        self._outlook = outlook
        self._run_cache = run_cache
        self._forms = forms
        self._provision = provision
        self._outs = sorted(graph.maker)
        self._outside = outside

    def decide(self, stage: Stage, *, force: bool = False, flag: str = "--force", judging: bool = False) -> Decision:
        """Return what is to be done with `stage`; the stages before it must have been decided."""
        if stage.is_off:
            return self.note(leave_off(stage, self._snapshot.lock(stage)))
        evidence = self._evidence(stage)
        wanted, provision = self.wanted(stage), self._provision
        if provision is None:
            return self.note(decide(stage, wanted, evidence, force=force, flag=flag, judging=judging))
        if wanted.unread and self._bring_unread(stage, wanted, provision):
            wanted = self.wanted(stage)
        judge = partial(decide, stage, wanted, force=force, flag=flag, judging=judging)
        return self.note(provision.decide(stage, wanted, evidence, judge, run_cache=self._run_cache))

    def _evidence(self, stage: Stage) -> Evidence:
        return Evidence(
            lock=self._snapshot.lock(stage),
            present={out.path: _present(self.look(out.path)) for out in stage.outs},
            recall=lambda key: self._recall(key, stage.folder) if self._run_cache else None,
            holds=self._holds,
            describe=self.describe,
        )

    def provide(self, decision: Decision) -> bool:
        """Bring the inputs of a stage that are recorded and not here, if this run may; say whether all are here now.

        Outputs that its command goes on from come too, if they can be had.
        """
        wanted = decision.wanted
        if self._provision is not None and (start := self._persisted(decision.stage)):
            with suppress(MissingObject):
                self._provision.bring_inputs(start)
            self._outlook.renew()
        if self._provision is None or wanted.lost or wanted.unread or not wanted.absent:
            return False
        chosen = self._outlook.whereabouts(wanted.absent)
        if not chosen or not self._provision.bring_inputs(chosen):
            return False
        self._outlook.renew()
        return True

    def _persisted(self, stage: Stage) -> list[tuple[Tracked, str]]:
        """Return the recorded outputs that the command of a stage goes on from and that are not here."""
        names = {out.path for out in stage.outs if out.persist and self.look(out.path) is None}
        lock = self._snapshot.lock(stage) if names else None
        return [
            (track(out.path, out)._replace(stage=stage.address), "")
            for out in (lock.outs if lock else ())
            if out.path in names
        ]

    def _bring_unread(self, stage: Stage, wanted: Wanted, provision: Provision) -> bool:
        """Bring what it takes to know the inputs of a stage: listings of folders, and files with parameters."""
        files = {file.path for file in stage.params}
        listings = self._outlook.whereabouts(path for path in wanted.unread if path not in files)
        whole = self._outlook.whereabouts(path for path in wanted.unread if path in files)
        return provision.bring_listings(listings or (), whole or ())

    def note(self, decision: Decision) -> Decision:
        """Remember a decision, which the stages after it are judged on, and return it."""
        return self._outlook.note(decision)

    def leave(self, stage: Stage) -> bool:
        """Let a stage be as it is for those after it, whatever should be done with it; say whether it is up to date.

        That its outputs are not here is no matter: whoever needs them is told.
        """
        if stage.is_off:
            return bool(self.decide(stage))
        try:
            evidence = self._evidence(stage)._replace(may_stay_away=lambda _: True)
            decision = decide(stage, self.wanted(stage), evidence, judging=True)
        except MlxError:  # what keeps it from running does not keep others from taking what is here
            decision = Decision(stage, Action.RUN, (), Wanted((), {}), None, None)
        try:
            lock = self._snapshot.lock(stage)
        except RecordError:
            lock = None
        self.note(decision._replace(action=Action.SKIP, outs=lock.outs if lock else (), source=lock))
        return decision.action is Action.SKIP

    def settle(self, decision: Decision) -> None:
        """Replace a stage's decision by what became of it; its outputs are looked at again when next asked for."""
        self._outlook.settle(decision)

    def look_anew(self) -> None:
        """Look at everything again when next asked for: it may have been edited while a command ran."""
        self._outlook.look_anew()

    def renew(self) -> None:
        """Look at everything again, the records too: other commands may have written them."""
        self._snapshot.forget()
        self._outlook.renew()

    def settle_anew(self, addresses: Iterable[str]) -> None:
        """Take what the locks of stages say now for what became of them: another run was there since."""
        for address in addresses:
            decision, lock = self._outlook.decision(address), self._snapshot.lock(self._graph.stages[address])
            if decision is not None and lock is not None:
                self.settle(decision._replace(outs=lock.outs, source=lock))

    def describe(self, old: SomeObject, new: SomeObject) -> str:
        """Word how one object became another."""
        return describe_change(self.trees, old, new)

    def unkept(self, deps: Iterable[Input]) -> tuple[str, ...]:
        """Return the paths of tracked data in `deps` with bytes that no pointer names; what is only gone is no such."""
        used = {dep.path: dep for dep in deps}
        inside = {path: owner for path in used for owner in and_above(path) if owner in self._outlook.pointers}
        below = [owner for owner in self._outlook.pointers if any(above in used for above in and_above(owner)[:-1])]
        seen = [(path, owner, used[path].digest) for path, owner in inside.items()]
        seen += [(owner, owner, entry.digest) for owner in below if (entry := self._outlook.see(owner))]
        return tuple(sorted(path for path, owner, digest in seen if self._has_new(path, owner, digest)))

    def _has_new(self, path: str, owner: str, digest: Digest) -> bool:
        pointer = self._snapshot.pointer(owner)
        recorded = self._outlook.inside(track(owner, pointer), path, Found()) if pointer else None
        if recorded is None or recorded.digest == digest or recorded.kind != Kind.FOLDER:
            return recorded is None or recorded.digest != digest
        try:
            found = diff(self.trees, recorded.digest, digest)
        except (MissingObject, CorruptObject):  # a file now, or nobody can tell
            return True
        return bool(found.added or found.modified)

    def untracked(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that no pointer and no stage speaks for: code, or data that nobody added."""
        spoken_for = {*self._outlook.pointers, *self._graph.maker}
        return [path for path in paths if not any(above in spoken_for for above in and_above(path))]

    def flush(self) -> None:
        """Write what was seen to the state index."""
        self._outlook.flush()

    def wanted(self, stage: Stage) -> Wanted:
        """Return the inputs of `stage` as they are, or will be when the stages before it are done."""
        waiting = self._waiting(stage)
        found = Found()
        for dep in stage.deps:
            if dep.path not in waiting:
                self._gather(dep, stage, found)
        for path in stage.environment.files or ():
            if path not in waiting:
                self._gather(Dependency(path), stage, found)
        params = {
            file.path: values
            for file in stage.params
            if file.path not in waiting and (values := self._values(stage, file, found)) is not None
        }
        lock = self._snapshot.lock(stage) if stage.urls or stage.environment != UNSAID else None
        urls = self._outside.urls(stage, lock)
        return Wanted(
            deps=tuple(found.deps.values()),
            params=params,
            globs=tuple(sorted(dep.path for dep in stage.deps if has_magic(dep.path))),
            waiting=waiting,
            absent=tuple(found.absent),
            lost=tuple(found.lost),
            unread=tuple(found.unread),
            without=tuple(found.without),
            normalized=found.normalized,
            off={
                path: maker for path in found.lost for maker in self._makers(path) if self._graph.stages[maker].is_off
            },
            urls=urls.inputs,
            unasked=urls.unasked,
            environment=self._outside.environment(stage, lock),
        )

    def changed(self, stage: Stage, wanted: Wanted) -> tuple[str, ...]:
        """Return the dependencies and parameter files that are no longer what `wanted` says, looking again."""
        self._outlook.look_anew()  # the command may have taken hours: whatever was seen is old
        try:
            now = self.wanted(stage)
        except (MlxError, OSError):  # one cannot be read any more, or does not hold still: it changed
            unreadable = tuple(dep.path for dep in wanted.deps if not self._can_look(dep.path))
            return unreadable or tuple(file.path for file in stage.params) or tuple(dep.path for dep in wanted.deps)
        old, new = ({dep.path: (dep.identity, dep.executable) for dep in side.deps} for side in (wanted, now))
        deps = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
        params = (path for path in now.params if spell(now.params[path]) != spell(wanted.params.get(path)))
        return (*deps, *params, *self._outside.changed(stage, wanted.urls))

    def _waiting(self, stage: Stage) -> dict[str, str]:
        return {
            name: maker
            for name in stage.reads
            for maker in self._makers(name)
            if maker != stage.address and (decision := self._outlook.decision(maker)) and decision.outs is None
        }

    def _makers(self, name: str) -> tuple[str, ...]:
        return makers_of(name, self._graph.maker, self._outs)

    def _gather(self, dep: Dependency, stage: Stage, found: Found) -> None:
        """Add what `dep` stands for to `found`."""
        paths = self._expand(dep.path, stage, found) if has_magic(dep.path) else [dep.path]
        for path in paths:
            entry = self._outlook.entry(path, found)
            if entry is not None:
                self._take(path, entry, dep, stage, found)
            elif not any(is_in(path, folder) for folder in found.unread):
                if dep.optional:
                    found.without[path] = None
                else:
                    found.lost.append(path)
        if not paths and not found.unread and not dep.optional:
            found.lost.append(dep.path)

    def _take(self, path: str, entry: Entry, dep: Dependency, stage: Stage, found: Found) -> None:
        """Note what is at `path`, which `dep` stands for; of what is named twice the bytes count, if either says so."""
        new = Input(path, _kind(entry), entry.digest, entry.size, entry.kind == Kind.EXECUTABLE)
        by = dep.normalize
        if by is not None and (path == dep.path or path.endswith(by.suffix)) and entry.kind != Kind.SYMLINK:
            form = self._forms.of(by, path, entry, self._outlook.scanner(path))
            new = new._replace(normal=form.digest or (None if form.fault else self._recorded_form(stage, new)))
            found.normalized[path] = Normalized(by, form.fault)
        known = found.deps.get(path)
        if known is not None and known.normal != new.normal:
            new = new._replace(normal=None)
            found.normalized.pop(path, None)
        found.deps[path] = new

    def _recorded_form(self, stage: Stage, dep: Input) -> Digest | None:
        """Return the normal form that the lock has of these very bytes, which are not here to be read."""
        lock = self._snapshot.lock(stage)
        return next((old.normal for old in (lock.deps if lock else ()) if old[:3] == dep[:3]), None)

    def _expand(self, glob: str, stage: Stage, found: Found) -> Sequence[str]:
        """Return the files that `glob` matches, on disk and among what is recorded and not on disk."""
        own = [out.path for out in stage.outs]
        paths = {path for path in expand(self._project.root, glob) if not any(is_in(path, out) for out in own)}
        matches, parts = file_pattern(glob).fullmatch, glob.split("/")
        for place in self._outlook.recorded:
            inside = can_descend(parts, place.split("/"))
            if not inside and not matches(place):
                continue
            tracked = self._outlook.replaced(place)
            if tracked is None and inside:
                paths.update(filter(matches, self._outlook.away(place, found)))
            if tracked is None or place in own:
                continue
            paths = {path for path in paths if not is_in(path, place)}
            if tracked.kind is ObjectKind.BLOB:
                paths.update([place] if matches(place) else [])
            elif inside:
                paths.update(filter(matches, self._outlook.files(tracked, found)))
        return sorted(paths)

    @property
    def outside(self) -> Outside:
        """What was asked of the world outside the project."""
        return self._outside

    @property
    def trees(self) -> Scanner:
        """The trees of the tracked data that was looked at."""
        return self._outlook.trees

    def look(self, path: str) -> Entry | None:
        """Return what is at `path` in the workspace; it is looked at once."""
        return self._outlook.look(path)

    def _can_look(self, path: str) -> bool:
        try:
            self.look(path)
        except (MlxError, OSError):
            return False
        return True

    def _values(self, stage: Stage, file: ParamsFile, found: Found) -> dict[str, object] | None:
        data = None if self._outlook.is_pending(file.path) else self._snapshot.files.read(file.path)
        if data is None and (entry := self._outlook.entry(file.path, found)) is not None:
            try:
                data = self.trees.read(entry.digest)
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
    project: Project,
    snapshot: Snapshot,
    graph: Graph,
    *,
    reporter: Reporter = SILENT,
    run_cache: bool = True,
    provision: Provision | None = None,
    outside: Outside = AS_RECORDED,
) -> Iterator[Observer]:
    """Yield an observer of the workspace; what it sees goes to the state index when the block ends well."""
    with (
        open_scanner(project, reporter=reporter) as data,
        open_scanner(project, reporter=reporter, as_code=True) as code,
    ):
        outlook = Outlook(project, snapshot, graph, data=data, code=code)
        forms = NormalForms(project)
        options: dict[str, Any] = {"run_cache": run_cache, "provision": provision, "outside": outside}
        yield Observer(project, snapshot, graph, outlook, forms, **options)
        forms.save()


def plan_stages(
    observer: Observer, graph: Graph, order: Iterable[str], anew: Mapping[str, str] = MappingProxyType({})
) -> tuple[Decision, ...]:
    """Return the decision for each of `order` (addresses, in run order); see `decide_stage` for `anew`."""
    return tuple(decide_stage(observer, graph.stages[address], anew) for address in order)


def decide_stage(observer: Observer, stage: Stage, anew: Mapping[str, str]) -> Decision:
    """Return the decision for a stage, which `anew` may map to the flag that forces it."""
    flag = anew.get(stage.address)
    return observer.decide(stage) if flag is None else observer.decide(stage, force=True, flag=flag)


def _present(entry: Entry | None) -> Present | None:
    if entry is None:
        return None
    return Present(_kind(entry), entry.digest, entry.size, entry.kind == Kind.EXECUTABLE)


def _kind(entry: Entry) -> ObjectKind:
    return ObjectKind.TREE if entry.kind == Kind.FOLDER else ObjectKind.BLOB
