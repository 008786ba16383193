"""The work on one stage: its outputs taken away, its commands run, and what came of them published.

A stage's result is published in this order: output objects durable in the cache, run-cache entry, `.gitignore`, lock.
The rename of the lock is what makes the run count. When a command fails, or is cut short, the outputs there were before
come back and what it wrote is set aside. Only `execute` may be called in another thread than the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import Protocol

from mlops_cli.errors import MissingObject, MlxError, RecordError, StageFailed, UsageError
from mlops_cli.files import folders_above
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline import journal
from mlops_cli.pipeline.execution import Surroundings, clear_outputs, log_path, read_metrics, run_commands
from mlops_cli.pipeline.inputs import Observer
from mlops_cli.pipeline.notebooks import refuse_without_libraries
from mlops_cli.pipeline.outlook import and_above
from mlops_cli.pipeline.outside import refuse_unasked
from mlops_cli.pipeline.persisted import keep_in_place, record_of, start_of, tell_start
from mlops_cli.pipeline.plan import Action, Decision, draft_lock
from mlops_cli.pipeline.processes import Group, kill_group
from mlops_cli.pipeline.publishing import publish
from mlops_cli.pipeline.usage import Spent
from mlops_cli.records.locks import Lock, OutputRecord
from mlops_cli.records.stages import Stage, has_magic
from mlops_cli.store.batches import open_batch
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.words import NAMED, naming, so_for, word, words
from mlops_cli.workspace import git
from mlops_cli.workspace.checkout import restore
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.hazards import Edited
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.snapshot import Snapshot, lock_path, track


class Noting(Protocol):
    """Is told what a stage's command writes, and what the user should know."""

    def write(self, stage: str, data: bytes) -> None:
        """The command of the stage at an address wrote `data`; called from another thread."""

    def spent(self, stage: str, spent: Spent) -> None:
        """The commands of the stage at an address took so much; called from another thread."""

    def note(self, message: str) -> None:
        """Something the user should know, that stops nothing."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A stage whose outputs have been taken away: what the journal says of it, and what they were."""

    decision: Decision
    unfinished: journal.Unfinished
    kept: Mapping[str, Entry | None]
    started_from: tuple[OutputRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StageWork:
    """Carries out decisions of one run, one stage at a time but for `execute`."""

    project: Project
    snapshot: Snapshot
    observer: Observer
    surroundings: Surroundings
    listener: Noting
    _groups: dict[str, Group] = field(default_factory=dict)  # of commands that run, by stage

    def check(self, decision: Decision) -> None:
        """Raise what keeps a decision from being carried out, before anything is touched."""
        if decision.action is Action.RUN:
            refuse_without_libraries(decision.stage)
        provided = decision.action is Action.RUN and self.observer.provide(decision)
        check_decision(self.project, self.snapshot, decision, provided=provided)

    def begin(self, decision: Decision) -> Attempt:
        """Take the outputs of a stage away, whose commands are to run; they come back if this fails."""
        self.observer.flush()
        attempt = Attempt(decision, *self._begin(decision))
        start = start_of(decision.stage, attempt.kept, attempt.unfinished)
        attempt = replace(attempt, started_from=start.found)
        if note := tell_start(decision.stage, attempt.kept, self.snapshot.lock(decision.stage)):
            self.listener.note(note)
        try:
            clear_outputs(self.project, start.cleared, kept=attempt.kept)
            keep_in_place(self.project, start)
        except BaseException as error:
            self.give_up(attempt, error)
            raise
        return attempt

    def execute(self, attempt: Attempt, cancelled: Event) -> None:
        """Run the commands, in any thread. StageFailed; Cancelled when the event was set."""
        stage = attempt.decision.stage

        def started(group: Group) -> None:
            self._groups[stage.address] = group
            journal.update(self.project, replace(attempt.unfinished, group=group))

        try:
            run_commands(
                self.project,
                stage,
                self.surroundings,
                output=partial(self.listener.write, stage.address),
                started=started,
                note=self.listener.note,
                cancelled=cancelled,
                spent=partial(self.listener.spent, stage.address),
            )
        finally:
            self._groups.pop(stage.address, None)

    def kill(self) -> None:
        """End all commands that run, at once and without asking."""
        for group in tuple(self._groups.values()):
            kill_group(group.number)

    def finish(self, attempt: Attempt) -> Decision:
        """Publish what the commands made; returns the decision as it has become. The old outputs come back if not."""
        decision = attempt.decision
        try:
            lock = self._judge_inputs(decision, self._collect(decision))
            lock = replace(lock, started_from=attempt.started_from)
            data = lock.to_bytes(decision.stage.folder)
            attempt = replace(attempt, unfinished=self._announce(attempt.unfinished, data))
            if decision.key is not None and not lock.changed_during_run:
                self.project.cache.write_run(decision.key, data)
            publish(self.project, self.snapshot, decision.stage, data)
        except BaseException as error:
            self.give_up(attempt, error)
            raise
        journal.finish(self.project, decision.stage.address)
        settled = decision._replace(outs=lock.outs, source=lock)
        self.observer.settle(settled)
        return settled

    def give_up(self, attempt: Attempt, error: BaseException) -> None:
        """Bring the old outputs back, and set aside what the commands wrote before they failed with `error`."""
        outcome = self._put_right(attempt.unfinished, error)
        if isinstance(error, StageFailed):
            self._tell_failure(attempt.unfinished, outcome)

    def restore(self, decision: Decision) -> None:
        """Bring the outputs that an earlier run made."""
        assert decision.source is not None
        stage = decision.stage
        unfinished, kept = self._begin(decision)
        wanted = {out.path: as_entry(track(out.path, out)) for out in decision.outs or ()}
        try:
            with open_scanner(self.project) as scanner:
                restore(self.project, scanner, wanted, kept=kept)
            data = self._relock(decision, decision.source).to_bytes(stage.folder)
            unfinished = self._announce(unfinished, data)
            publish(self.project, self.snapshot, stage, data)
        except BaseException as error:
            self._put_right(unfinished, error)
            raise
        journal.finish(self.project, stage.address)
        self.observer.settle(decision)

    def _begin(self, decision: Decision) -> tuple[journal.Unfinished, dict[str, Entry | None]]:
        """Store what is to be taken away, and note it in the journal; returns both."""
        path = lock_path(decision.stage)
        lock = self.snapshot.files.read(path)
        before = None if lock is None else hash_bytes(lock)
        kept = self._keep_present(decision)
        return journal.begin(self.project, journal.Unfinished(decision.stage.address, kept, path, before)), kept

    def _put_right(self, unfinished: journal.Unfinished, error: BaseException) -> journal.Outcome:
        """Bring the old outputs back, but for one that somebody edits: whatever else they edited is not replaced."""
        edited = isinstance(error, Edited)
        if isinstance(error, Edited):
            unfinished = journal.without_edited(self.project, unfinished, error)
        return journal.put_right(self.project, unfinished, self.listener, killed=edited)

    def _relock(self, decision: Decision, source: Lock) -> Lock:
        """Return the lock of a stage whose outputs were restored from `source`."""
        stage = decision.stage
        if stage.frozen:
            return source
        declared = {out.path: out for out in stage.outs}
        outs = tuple(out._replace(git=declared[out.path].git, push=declared[out.path].push) for out in source.outs)
        metrics = {path: read_metrics(self.project, stage, path) for path in stage.metrics}
        lock = replace(draft_lock(stage, decision.wanted), outs=outs, metrics=metrics)
        return replace(lock, started_from=source.started_from, accepted=source.accepted)

    def _announce(self, unfinished: journal.Unfinished, lock: bytes) -> journal.Unfinished:
        """Tell the journal which lock is about to be written: once that is there, the outputs stay."""
        return journal.update(self.project, replace(unfinished, after=hash_bytes(lock)))

    def _tell_failure(self, unfinished: journal.Unfinished, outcome: journal.Outcome) -> None:
        if outcome.aside is not None:
            self.listener.note(f"what `{unfinished.stage}` wrote before it failed is in `{outcome.aside}`")
        if outcome.fate is journal.Fate.BACK and any(unfinished.outs.values()):
            self.listener.note(f"the outputs that `{unfinished.stage}` had before are back")

    def _keep_present(self, decision: Decision) -> dict[str, Entry | None]:
        """Store the outputs there are now, so that nothing is lost when they are taken away; returns what they were."""
        cache = self.project.cache
        with open_scanner(self.project) as looking:
            before = {out.path: looking.look(out.path) for out in decision.stage.outs}
        if looking.ignoring:
            raise has_ignore_file(UsageError, decision.stage, looking.ignoring[0])
        unheld = [path for path, entry in before.items() if entry is not None and cache.missing([entry.digest])]
        with open_batch(cache) as batch, open_scanner(self.project, batch=batch) as scanner:
            kept = {out.path: scanner.look(out.path, copied=out.git or out.persist) for out in decision.stage.outs}
        in_git = {out.path for out in decision.stage.outs if out.git}
        for path in unheld:
            entry = kept[path]
            is_kept = path in in_git and git.is_committed(self.project.root, path)
            if entry is not None and entry.files and not is_kept:
                self._tell_kept(
                    decision.stage,
                    f"`{path}` held bytes that no store had; they are kept as `{entry.digest}` "
                    f"(`mlx cat {entry.digest[:20]} -o PATH` brings them back)",
                )
        return kept

    def _tell_kept(self, stage: Stage, message: str) -> None:
        """Note a digest that no record will name: in the stage's log too, where it stays when the note is not shown."""
        self.listener.note(message)
        log = log_path(self.surroundings, stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"mlx: {message}\n")

    def _collect(self, decision: Decision) -> Lock:
        """Store what the stage made; returns its lock."""
        stage = decision.stage
        with open_batch(self.project.cache) as batch, open_scanner(self.project, batch=batch) as scanner:
            try:
                entries = {out.path: scanner.look(out.path, copied=out.git) for out in stage.outs}
            except UsageError as error:  # a FIFO, say
                raise StageFailed(f"stage `{stage.address}`: {error.message}", hint=error.marked_hint) from error
            if scanner.ignoring:
                raise has_ignore_file(StageFailed, stage, scanner.ignoring[0])
            for path, entry in entries.items():
                if entry is None:
                    raise StageFailed(
                        f"stage `{stage.address}` did not write its output `{path}`",
                        hint=f"make the command write it, or mend `outs` in {stage.file}:{stage.line}",
                    )
                if entry.kind == Kind.SYMLINK:
                    raise StageFailed(
                        f"stage `{stage.address}` made its output `{path}` a symbolic link, which holds no bytes",
                        hint="make the command write the file or folder itself, or a copy of it",
                    )
            metrics = {path: read_metrics(self.project, stage, path) for path in stage.metrics}
        outs = tuple(record_of(out, entry) for out in stage.outs if (entry := entries[out.path]) is not None)
        return replace(draft_lock(stage, decision.wanted), outs=outs, metrics=metrics)

    def _judge_inputs(self, decision: Decision, lock: Lock) -> Lock:
        """Return `lock` with the inputs that were edited while the command ran, told to the listener."""
        stage = decision.stage
        changed = self.observer.changed(stage, decision.wanted)
        if changed:
            self.listener.note(
                f"`{changed[0]}` changed while `{stage.address}` ran: its outputs are kept, but nobody can tell which "
                "version made them, and the next run makes them again"
            )
        return replace(lock, changed_during_run=changed)


def check_decision(project: Project, snapshot: Snapshot, decision: Decision, *, provided: bool = False) -> None:
    """Raise what keeps a decision from being carried out, before anything is touched.

    With `provided`, every input has just been brought.
    """
    if decision.action is Action.RUN and not provided:
        refuse_absent_inputs(project, snapshot, decision)
    refuse_unasked(decision)
    if decision.action is not Action.SKIP:
        _refuse_absent_outputs(decision)
        _refuse_outputs_in_git(project, decision.stage)
        _refuse_links(project, decision.stage)


def _refuse_absent_outputs(decision: Decision) -> None:
    """Refuse to bring back what no store here holds: of a stage that is frozen, whose command would make it anew."""
    if decision.action is Action.RESTORE and decision.missing:
        raise MissingObject(
            f"stage `{decision.stage.address}` is frozen, and {naming(decision.missing)} that its lock records "
            f"{'is' if len(decision.missing) == 1 else 'are'} not here",
            hint=f"`mlx pull {words(decision.missing[:NAMED])}`{so_for(decision.missing[NAMED:])}",
        )


def refuse_absent_inputs(project: Project, snapshot: Snapshot, decision: Decision) -> None:
    """Raise RecordError for an input that nothing knows; MissingObject for one that is recorded and not here."""
    stage, wanted = decision.stage, decision.wanted
    if wanted.lost:
        path = wanted.lost[0]
        raise RecordError(
            f"{stage.file}:{stage.line}: dependency `{path}` of stage `{stage.address}` does not exist",
            hint=f"`when` of stage `{wanted.off[path]}`, which makes it, is false: mend it, or make this `optional`"
            if path in wanted.off
            else "make a file that it matches, or mend `deps`"
            if has_magic(path)
            else f"create it, mend `deps`, or `mlx pull {word(path)}` if a remote has it",
        )
    absent = list(dict.fromkeys((*wanted.unread, *wanted.absent)))
    if len(absent) > NAMED:  # by a glob: what they are in can be typed
        owners = frozenset(snapshot.pointer_paths)
        absent = list(dict.fromkeys(next(filter(owners.__contains__, and_above(path)), path) for path in absent))
    if absent:
        is_partly = any(os.path.lexists(project.root / path) for path in absent)
        raise MissingObject(
            f"stage `{stage.address}` needs {naming(absent)}, which {'is' if len(absent) == 1 else 'are'} recorded but "
            f"not {'all ' * is_partly}in the workspace",
            hint=f"`mlx pull {words(absent[:NAMED])}` brings {'it' if len(absent) == 1 else 'them'}{' all' * is_partly}"
            f"{so_for(absent[NAMED:])}",
        )


def has_ignore_file(kind: type[MlxError], stage: Stage, folder: str) -> MlxError:
    """Return what to raise for an ignore file inside an output, which a run would take away or bring."""
    message = f"`{folder}/.mlxignore` is inside an output of stage `{stage.address}`"
    return kind(
        f"{message}: what it leaves out would be neither kept nor taken away with the output",
        hint="move its patterns to a `.mlxignore` above the output",
    )


def _refuse_links(project: Project, stage: Stage) -> None:
    """Refuse outputs and a lock that a link leads elsewhere, before the command has run for nothing."""
    for path in (*(out.path for out in stage.outs), lock_path(stage)):
        for folder in folders_above(path):
            if (project.root / folder).is_symlink():
                raise UsageError(
                    f"{stage.file}:{stage.line}: `{path}` of stage `{stage.address}` lies behind the symbolic link "
                    f"`{folder}`",
                    hint="mlx does not write through links: name the place itself, or make it a folder",
                )


def _refuse_outputs_in_git(project: Project, stage: Stage) -> None:
    data = [out.path for out in stage.outs if not out.git]
    for name in git.tracked_files(project.root, data) if data else ():
        raise RecordError(
            f"{stage.file}:{stage.line}: Git tracks `{name}`, which stage `{stage.address}` makes",
            hint=f"`git rm -r --cached {word(name)}` takes it out of Git; small results belong in `metrics`",
        )
