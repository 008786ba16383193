"""Do a past run again, and say digest by digest whether the result is the same.

The revision is checked out in a scratch worktree that shares the clone's cache. Before anything runs, every chosen
stage must have a lock of this revision, and some store its inputs. Each stage runs for real on the inputs its lock
recorded: code and parameters from the commit, data from the cache or a remote. Where a stage's output differs
from the record, the recorded one is put in its place (if some store has it), so that the stages after it are judged on
what they were given then. The user's workspace, locks and run cache are not touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlops_cli.documents import flatten
from mlops_cli.errors import Inconclusive, MissingObject, RecordError, RemoteError, StageFailed, UsageError
from mlops_cli.files import write_atomic
from mlops_cli.pipeline.changes import input_changes
from mlops_cli.pipeline.execution import Surroundings, clear_outputs, read_metrics, run_commands
from mlops_cli.pipeline.graph import Graph, build_graph
from mlops_cli.pipeline.inputs import Observer, open_observer
from mlops_cli.pipeline.interpreter import Python
from mlops_cli.pipeline.outside import Outside
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.processes import Group, is_running, stop_group
from mlops_cli.pipeline.selection import choose
from mlops_cli.pipeline.verdicts import (
    STRICT,
    MetricVerdict,
    OutputVerdict,
    Reproduction,
    StageVerdict,
    Standard,
    compare_metrics,
    refuse_unmatched,
)
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.config import with_cache
from mlops_cli.records.environment import Difference
from mlops_cli.records.locks import Lock, OutputRecord
from mlops_cli.records.stages import Stage
from mlops_cli.store.remote import Remote
from mlops_cli.store.trees import Entry
from mlops_cli.workspace import git
from mlops_cli.workspace.bringing import fetch_objects, find_absent
from mlops_cli.workspace.checkout import restore
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.litter import is_alive
from mlops_cli.workspace.owning import own_files
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.scan import is_stored, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track, workspace_snapshot
from mlops_cli.workspace.state import State


def reproduce(
    project: Project,
    revision: str,
    targets: Sequence[str],
    surroundings: Surroundings,
    *,
    output: Callable[[bytes], None],
    begin: Callable[[str], None],
    remote: str | None = None,
    standard: Standard = STRICT,
    folder: str = "",
    reporter: Reporter = SILENT,
) -> Reproduction:
    """Run the stages of `revision` at `targets`, typed in `folder` (none: all), again, and compare by a `standard`.

    Inconclusive when the commit's locks do not belong to its code; MissingObject when an input is in no store;
    StageFailed when a command fails.
    """
    with _scratch(project, revision) as (scratch, commit):
        snapshot = workspace_snapshot(scratch)
        graph = build_graph(snapshot.stages, snapshot.pointer_paths)
        if not graph.stages:
            raise Inconclusive(f"revision `{revision}` has no stages", hint="choose a revision that has stages")
        rerun = _Rerun(project, scratch, snapshot, graph, surroundings, output, remote, standard, reporter)
        verdicts: list[StageVerdict] = []
        chosen = choose(graph, targets, folder)
        asked = [stage for address, stage in graph.stages.items() if address in chosen and not stage.is_off]
        if not asked:
            raise Inconclusive(
                f"all that was asked for is off in revision `{revision}`",
                hint="a stage whose `when` is false there has not run: name others, or choose another revision",
            )
        stages = _comparable(asked, reporter, named=bool(targets))
        rerun.refuse_in_vain(stages)
        differing = rerun.tell_environment(stages)
        for stage in stages:
            begin(stage.address)
            try:
                verdicts.append(rerun.judge(stage))
            except (MissingObject, RemoteError, Inconclusive) as error:
                if all(verdict.same for verdict in verdicts):
                    raise
                # The answer is known already: it differs.
                reporter.note(f"stage `{stage.address}` and those after it were not judged: {error.message}")
                break
        return Reproduction(revision, commit, tuple(verdicts), differing)


@contextmanager
def _scratch(project: Project, revision: str) -> Iterator[tuple[Project, str]]:
    """Yield the project in a scratch worktree of `revision`, and the commit's full name."""
    with git.open_commit(project.git.top, revision, project.prefix) as commit:
        name = commit.id
    parent = project.local / "worktrees"
    _remove_abandoned(project, parent)
    folder = parent / f"{os.getpid()}-{os.urandom(4).hex()}"
    with git.scratch_worktree(project.git.top, name, folder) as top:
        checkout = git.find_checkout(top)
        assert checkout is not None
        root = top / project.prefix if project.prefix else top
        if not (root / ".mlx").is_dir():
            raise UsageError(f"revision `{revision}` is from before `mlx init`", hint="choose a later one")
        try:
            config = with_cache(project.config, project.cache.url or str(project.cache.root))
            yield Project(root, checkout, project.layers, config), name
        finally:
            _forget(project, folder)


def _remove_abandoned(project: Project, parent: Path) -> None:
    """Remove the worktrees of processes that were killed, having stopped what still runs in them."""
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        if folder.suffix or is_alive(folder.name.partition("-")[0]):
            continue
        with suppress(OSError, ValueError):
            number, started = json.loads(_group_file(folder).read_bytes())
            if is_running(Group(number, started)):
                stop_group(number)
        git.remove_worktree(project.git.top, folder)
        _forget(project, folder)


def _forget(project: Project, folder: Path) -> None:
    _group_file(folder).unlink(missing_ok=True)
    state = State.open(project.local / "state.db", folder.name)
    state.forget()
    state.close()


def _group_file(folder: Path) -> Path:
    """Return where the process group of the command that runs in a scratch worktree is noted."""
    return folder.with_name(f"{folder.name}.json")


@dataclass(slots=True)
class _Rerun:
    home: Project
    project: Project
    snapshot: Snapshot
    graph: Graph
    surroundings: Surroundings
    output: Callable[[bytes], None]
    remote: str | None
    standard: Standard
    reporter: Reporter

    def refuse_in_vain(self, stages: Sequence[Stage]) -> None:
        """Raise what would stop one of `stages` on the way, as far as it can be known before the first one runs.

        Inconclusive without a lock that belongs to the revision; MissingObject, RemoteError for an input that no store
        has. What a stage before will make need not be in any.
        """
        locks = [self._lock(stage) for stage in stages]
        named = [(file, name) for lock in locks for file, values in lock.metrics.items() for name in flatten(values)]
        refuse_unmatched(self.standard, named)
        with open_observer(self.project, self.snapshot, self.graph, run_cache=False) as observer:
            for stage in self.graph.stages.values():
                lock = self.snapshot.lock(stage)
                if lock is None:
                    continue
                if stage in stages:
                    self._refuse_stale(stage, lock, observer, before=True)
                    self._refuse_edited(stage, lock, observer)
                # As if it had run and made what it recorded: that is what the stages after it are judged on.
                made = Decision(stage, Action.SKIP, (), Wanted((), {}), None, lock.outs, lock)
                observer.settle(made)
        remade: set[str] = set()
        for stage, lock in zip(stages, locks, strict=True):
            for tracked in (*self._inputs(stage, lock), *_start(lock)):
                if tracked.stage not in remade and not is_stored(self.project.cache, as_entry(tracked)):
                    self._refuse_absent(tracked, stage)
            remade.add(stage.address)

    def tell_environment(self, stages: Sequence[Stage]) -> tuple[Difference, ...]:
        """Note, before anything runs, in what the environment differs from the one that locks recorded; return it."""
        outside = Outside(python=Python(self.surroundings.environ.get("PATH"), self.home.root))
        found = (each for stage in stages for each in outside.differences(self._lock(stage).environment))
        differing = tuple(dict.fromkeys(found))
        for each in differing:
            self.reporter.note(
                f"the environment is not the recorded one: `{each.name}` was {each.old}, "
                f"{'and is not there' if each.new is None else f'now {each.new}'}"
            )
        return differing

    def _lock(self, stage: Stage) -> Lock:
        lock = self.snapshot.lock(stage)
        if lock is None:
            raise Inconclusive(
                f"stage `{stage.address}` has no lock in this revision: there is no result to compare with",
                hint="choose a revision in which it had run, or name other stages",
            )
        return lock

    def judge(self, stage: Stage) -> StageVerdict:
        lock = self._lock(stage)
        for tracked in self._inputs(stage, lock):
            self._place(tracked, stage)
        with open_observer(self.project, self.snapshot, self.graph, run_cache=False) as observer:
            self._refuse_stale(stage, lock, observer)
        for each in lock.accepted:
            self.reporter.note(f"what stage `{stage.address}` recorded was accepted without running: {each.reason}")
        self._execute(stage, lock)
        with open_scanner(self.project, reporter=self.reporter) as scanner:
            made = {out.path: scanner.look(out.path) for out in stage.outs}
        outs = tuple(self._output_verdict(stage, out, lock, made[out.path]) for out in lock.outs if out.path in made)
        metrics = tuple(v for path in stage.metrics for v in self._metric_verdicts(stage, lock, path))
        for out, verdict in zip((o for o in lock.outs if o.path in made), outs, strict=True):
            if not verdict.same:
                self._put_recorded(stage, out)
        return StageVerdict(stage.address, outs, metrics)

    def _inputs(self, stage: Stage, lock: Lock) -> Iterator[Tracked]:
        """Yield every data dependency with the digest that the lock recorded."""
        recorded = {dep.path: dep for dep in lock.deps}
        for tracked in self.snapshot.tracked():
            if not tracked.git and _needs(stage, lock, tracked.path):
                dep = recorded.get(tracked.path)
                yield tracked._replace(digest=dep.digest) if dep else tracked

    def _place(self, tracked: Tracked, stage: Stage) -> None:
        entry = as_entry(tracked)
        with open_scanner(self.project, reporter=self.reporter) as scanner:
            present = scanner.look(tracked.path)
            if present is not None and present.digest == tracked.digest:
                return
            if not is_stored(self.project.cache, entry):
                self._fetch(tracked, stage)
            restore(self.project, scanner, {tracked.path: entry}, self.reporter)

    def _refuse_absent(self, tracked: Tracked, stage: Stage) -> None:
        """Raise MissingObject unless the cache and the remote have all of `tracked` between them."""
        name, store = self._open_remote(tracked, stage)
        if find_absent(self.project.cache, store, [(tracked, "")]):
            raise _nowhere(tracked, stage, name)

    def _fetch(self, tracked: Tracked, stage: Stage) -> None:
        name, store = self._open_remote(tracked, stage)
        try:
            with self.home.guard.held():
                fetch_objects(self.project.cache, store, [(tracked, "")], reporter=self.reporter)
        except MissingObject as error:
            raise _nowhere(tracked, stage, name) from error

    def _open_remote(self, tracked: Tracked, stage: Stage) -> tuple[str, Remote]:
        if not self.project.config.remotes:
            hint = "`mlx remote add storage URL`"
            raise MissingObject(f"{_absence(tracked, stage)}, and there is no remote", hint=hint)
        return open_project_remote(self.home, self.remote or Destinations(self.home).of(tracked), self.reporter)

    def _refuse_stale(self, stage: Stage, lock: Lock, observer: Observer, *, before: bool = False) -> None:
        """Raise Inconclusive when the lock is of other inputs; `before` they are here, unread ones may be right."""
        try:
            wanted = observer.wanted(stage)
            if before and wanted.unread:
                return
            changes = input_changes(stage, wanted, lock, observer.describe)
        except RecordError as error:
            changes = [error.message]
        if changes:
            raise Inconclusive(
                f"the lock of stage `{stage.address}` does not belong to this revision: {changes[0]}",
                hint="the commit was made without running the stage again: choose one made after `mlx run`",
            )

    def _refuse_edited(self, stage: Stage, lock: Lock, observer: Observer) -> None:
        """Raise Inconclusive when a result that Git keeps is not the one that the lock recorded."""
        for out in lock.outs:
            present = observer.look(out.path) if out.git else None
            if out.git and (present is None or present.digest != out.digest):
                raise Inconclusive(
                    f"the revision's `{out.path}` is not what the lock of stage `{stage.address}` recorded",
                    hint="it was edited by hand: choose a commit made after `mlx run`",
                )

    def _execute(self, stage: Stage, lock: Lock) -> None:
        clear_outputs(self.project, [out.path for out in stage.outs])
        for tracked in _start(lock):
            self._place(tracked, stage)
            own_files(self.project, [tracked.path])
        try:
            run_commands(
                self.project,
                stage,
                self.surroundings,
                output=self.output,
                started=self._note_group,
                note=self.reporter.note,
            )
        except StageFailed as error:
            hint = f"{error.marked_hint}; it is the revision's command, in today's environment"
            raise StageFailed(error.message, hint=hint) from error

    def _output_verdict(self, stage: Stage, out: OutputRecord, lock: Lock, made: Entry | None) -> OutputVerdict:
        if made is None:
            raise StageFailed(
                f"stage `{stage.address}` did not write its output `{out.path}` this time",
                hint="see its output above",
            )
        by_values = out.path in stage.metrics and self.standard.judges_values(
            out.path, flatten(lock.metrics.get(out.path, {}))
        )
        return OutputVerdict(out.path, out.digest, made.digest, not (by_values or self.standard.metrics_only))

    def _metric_verdicts(self, stage: Stage, lock: Lock, path: str) -> Iterator[MetricVerdict]:
        made = read_metrics(self.project, stage, path)
        return compare_metrics(path, lock.metrics.get(path, {}), made, self.standard)

    def _put_recorded(self, stage: Stage, out: OutputRecord) -> None:
        """Put the recorded output where a different one was made; without it, the stages after cannot be judged."""
        with suppress(MissingObject, RemoteError):
            self._place(track(out.path, out), stage)

    def _note_group(self, group: Group) -> None:
        write_atomic(_group_file(self.project.git.top), json.dumps([group.number, group.started]).encode())


def _comparable(stages: Sequence[Stage], reporter: Reporter, *, named: bool) -> list[Stage]:
    """Return the stages that are run again: not those without outputs, nor, unless `named`, frozen ones.

    Inconclusive when none is left.
    """
    for stage in stages:
        if not stage.outs:
            reporter.note(f"stage `{stage.address}` makes no output to compare, and is not run")
        elif stage.frozen and not named:
            reporter.note(f"stage `{stage.address}` is frozen, and is not run: what it recorded counts")
    chosen = [stage for stage in stages if stage.outs and (named or not stage.frozen)]
    if stages and not chosen:
        raise Inconclusive("no stage of these makes an output that a run can be compared with", hint="name another one")
    return chosen


def _start(lock: Lock) -> list[Tracked]:
    """Return what the command of a persisted stage found, and went on from."""
    return [track(out.path, out) for out in lock.started_from]


def _absence(tracked: Tracked, stage: Stage) -> str:
    return f"input `{tracked.path}` of stage `{stage.address}` ({tracked.digest[:15]}) is not in the cache"


def _nowhere(tracked: Tracked, stage: Stage, remote: str) -> MissingObject:
    hint = "`mlx push` from a clone that has it, with that commit checked out"
    return MissingObject(f"{_absence(tracked, stage)}, nor on remote `{remote}`", hint=hint)


def _needs(stage: Stage, lock: Lock, path: str) -> bool:
    names = (*stage.reads, *(dep.path for dep in lock.deps))
    return any(name == path or name.startswith(path + "/") or path.startswith(name + "/") for name in names)
