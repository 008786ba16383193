"""`mlx accept`: a lock for inputs that changed without a run, with the outputs as they are.

Somebody says that what changed does not change the result. What they say goes into the lock, with the digest of the
lock that it replaces, and stays there until the stage is run. The run cache learns nothing: no run had these inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from mlops_cli.errors import MissingObject, MlxError, StageFailed, UsageError
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.pipeline import journal
from mlops_cli.pipeline.changes import input_changes, output_changes
from mlops_cli.pipeline.execution import read_metrics
from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.inputs import Observer, open_observer, stage_graph
from mlops_cli.pipeline.outside import AS_RECORDED, Outside
from mlops_cli.pipeline.persisted import record_of
from mlops_cli.pipeline.plan import Action, Decision, draft_lock
from mlops_cli.pipeline.publishing import publish
from mlops_cli.pipeline.selection import choose
from mlops_cli.pipeline.stage_work import check_decision, has_ignore_file
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.locks import Acceptance, Lock, OutputRecord, check_reason
from mlops_cli.records.stages import Output, Stage
from mlops_cli.store.batches import open_batch
from mlops_cli.store.trees import Kind
from mlops_cli.words import quoted, word
from mlops_cli.workspace.checkout import is_part
from mlops_cli.workspace.compare import as_entry, describe_change
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reservations import refuse_in_use
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, lock_path, track, workspace_snapshot


@dataclass(frozen=True, slots=True)
class AcceptedOutput:
    """An output: the digest that the lock recorded (None: it did not), and the one that is there."""

    path: str
    recorded: Digest | None
    present: Digest


@dataclass(frozen=True, slots=True)
class AcceptedStage:
    """A stage, and every way in which its inputs and outputs differ from its lock, in words: none, and it stays."""

    stage: str
    changes: tuple[str, ...]
    outs: tuple[AcceptedOutput, ...]


def accept(
    project: Project,
    targets: Sequence[str],
    reason: str,
    *,
    folder: str = "",
    dry_run: bool = False,
    reporter: Reporter = SILENT,
    outside: Outside = AS_RECORDED,
) -> tuple[AcceptedStage, ...]:
    """Record that the outputs of the stages that `targets`, typed in `folder`, name belong to the inputs there are.

    UsageError when the reason is no line of text, when a stage above is not up to date, or when an input or an output
    is not what a run could have found or made; MissingObject when an output is not here, or not all of it. All is
    refused before a lock is written. The checkout's lock must be held.
    """
    try:
        reason = check_reason(reason)
    except ValueError as error:
        raise UsageError(str(error), hint='say why nothing has to run, such as `--reason "comments only"`') from error
    snapshot = workspace_snapshot(project)
    graph = stage_graph(snapshot)
    chosen = frozenset(choose(graph, targets, folder))
    with ExitStack() as stack:
        outside.prepare(graph.stages[address] for address in graph.above(chosen))
        observer = stack.enter_context(
            open_observer(project, snapshot, graph, reporter=reporter, run_cache=False, outside=outside)
        )
        batch = None if dry_run else stack.enter_context(open_batch(project.cache))
        scanner = stack.enter_context(open_scanner(project, batch=batch))
        work = _Accepting(project, snapshot, graph, observer, scanner, reporter, reason)
        found = list(work.go(chosen))
    for stage, lock, told in found:
        if told.changes and not dry_run:
            publish(project, snapshot, stage, lock.to_bytes(stage.folder))
            journal.finish(project, stage.address)
    return tuple(told for _, _, told in found)


@dataclass(frozen=True, slots=True)
class _Accepting:
    project: Project
    snapshot: Snapshot
    graph: Graph
    observer: Observer
    scanner: Scanner
    reporter: Reporter
    reason: str

    def go(self, chosen: frozenset[str]) -> Iterator[tuple[Stage, Lock, AcceptedStage]]:
        """Yield each chosen stage in run order, with its new lock and what is new in it."""
        for address in self.graph.above(chosen):
            stage = self.graph.stages[address]
            if address in chosen:
                yield self._accept(stage)
            else:
                self._refuse_stale(stage)

    def _refuse_stale(self, stage: Stage) -> None:
        decision = self.observer.decide(stage, judging=True)
        if decision.action is not Action.SKIP:
            name = quoted(stage.address)
            raise UsageError(
                f"stage `{stage.address}`, which comes before, is not up to date: {decision.reasons[0]}",
                hint=f"`mlx run {name}` brings it up to date, or accept it, too: `mlx accept {name} ...`",
            )

    def _accept(self, stage: Stage) -> tuple[Stage, Lock, AcceptedStage]:
        if stage.is_off:
            raise UsageError(
                f"stage `{stage.address}` is off, so nothing has to be accepted: its `when` does not hold",
                hint=f"see `when` in {stage.file}:{stage.line}",
            )
        refuse_in_use(self.project, [out.path for out in stage.outs])
        old = self.snapshot.lock(stage)
        wanted = self.observer.wanted(stage._replace(frozen=False))  # whose inputs nobody asks for
        # What is recorded and not here counts as recorded: only a command would have to have it.
        check_decision(
            self.project, self.snapshot, Decision(stage, Action.RUN, (), wanted._replace(absent=()), None, None)
        )
        changes = input_changes(stage, wanted, old, self.observer.describe)
        outs = self._outputs(stage, old)
        before = {out.path: out for out in old.outs} if old else {}
        if old is not None:
            present = {out.path: out for out in outs}
            kept = replace(old, outs=tuple(out for out in old.outs if out.path in present))
            changes += output_changes(kept, present, partial(describe_change, self.scanner))
        for path in self.observer.unkept(wanted.deps):
            self.reporter.note(f"`{path}` is not what its pointer says: `mlx add {word(path)}` keeps it")
        lock = self._lock(stage, wanted, outs, old)
        self.observer.note(Decision(stage, Action.SKIP, (), wanted, None, outs, lock))
        there = (AcceptedOutput(o.path, before[o.path].digest if o.path in before else None, o.digest) for o in outs)
        return stage, lock, AcceptedStage(stage.address, tuple(changes), tuple(there))

    def _lock(self, stage: Stage, wanted: Wanted, outs: tuple[OutputRecord, ...], old: Lock | None) -> Lock:
        try:
            metrics = {path: read_metrics(self.project, stage, path) for path in stage.metrics}
        except StageFailed as error:
            raise UsageError(error.message, hint=error.marked_hint) from error
        data = self.snapshot.files.read(lock_path(stage))
        said = Acceptance(self.reason, None if data is None else hash_bytes(data))
        history = old or Lock(stage.cmd)
        return replace(
            draft_lock(stage, wanted),
            outs=outs,
            metrics=metrics,
            started_from=history.started_from,
            accepted=(*history.accepted, said),
        )

    def _outputs(self, stage: Stage, old: Lock | None) -> tuple[OutputRecord, ...]:
        recorded = {out.path: out for out in old.outs} if old else {}
        outs = tuple(self._output(stage, out, recorded.get(out.path)) for out in stage.outs)
        if self.scanner.ignoring:
            raise has_ignore_file(UsageError, stage, self.scanner.ignoring[0])
        return outs

    def _output(self, stage: Stage, out: Output, recorded: OutputRecord | None) -> OutputRecord:
        """Return the record of an output as it is; what a batch is there for is stored."""
        entry = self.scanner.look(out.path, copied=out.git)
        if entry is None:
            raise _absent(stage, out.path, recorded)
        if entry.kind == Kind.SYMLINK:
            raise UsageError(
                f"output `{out.path}` of stage `{stage.address}` is a symbolic link, which holds no bytes",
                hint="put the file or folder itself there, or a copy of it",
            )
        found = record_of(out, entry)
        was = as_entry(track(out.path, recorded)) if recorded else None
        if was is not None and was.digest != entry.digest and is_part(self.scanner, entry, was):
            raise MissingObject(
                f"output `{out.path}` of stage `{stage.address}` is not all here: files that its lock records are gone",
                hint=f"`mlx checkout {word(out.path)}` brings them, or `mlx pull {word(out.path)}`",
            )
        return found


def _absent(stage: Stage, path: str, recorded: OutputRecord | None) -> MlxError:
    if recorded is not None:
        return MissingObject(
            f"output `{path}` of stage `{stage.address}` is not here",
            hint=f"`mlx checkout {word(path)}` brings it, or `mlx pull {word(path)}`",
        )
    return UsageError(
        f"stage `{stage.address}` has no output `{path}` that could be accepted",
        hint=f"`mlx run {quoted(stage.address)}` makes it",
    )
