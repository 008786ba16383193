"""Carry a plan out: run, restore or skip each stage, as many at once as fit.

One thread decides, takes outputs away and publishes, stage by stage (`stage_work`); commands run beside it. A failure
lets nothing begin any more, unless the run is to go on with what does not need it; what runs goes on to its end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple, Protocol

from mlops_cli.errors import MlxError, StageFailed
from mlops_cli.pipeline.execution import Surroundings
from mlops_cli.pipeline.graph import Graph, choose
from mlops_cli.pipeline.inputs import Observer, open_observer, stage_graph
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.schedule import Schedule
from mlops_cli.pipeline.stage_work import Attempt, StageWork
from mlops_cli.records.conduct import CPUS, MEMORY
from mlops_cli.records.conduct_reading import merged
from mlops_cli.words import naming, word
from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Snapshot, workspace_snapshot

_MOST_JOBS = 1000


class Listener(Protocol):
    """Is told how a run goes, as it goes."""

    def begin(self, decision: Decision) -> None:
        """A stage has been decided and its action begins."""

    def write(self, stage: str, data: bytes) -> None:
        """The command of the stage at an address wrote `data`; called from another thread."""

    def done(self, result: StageResult) -> None:
        """A stage is done."""

    def note(self, message: str) -> None:
        """Something the user should know, that stops nothing."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What was done with a stage, why, and how long it took (seconds of wall time)."""

    decision: Decision
    seconds: float


class Manner(NamedTuple):
    """How a run goes: `jobs` stages at once at most (0: one a CPU), of each resource what `resources` say besides.

    With `keep_going`, a failure stops only what needs it; with `force`, the named stages run whatever they are; without
    `run_cache`, nothing of earlier runs is restored.
    """

    jobs: int = 1
    keep_going: bool = False
    force: bool = False
    run_cache: bool = True
    resources: Mapping[str, float] = {}


PLAINLY = Manner()


def run_project(
    project: Project,
    targets: Sequence[str],
    surroundings: Surroundings,
    listener: Listener,
    how: Manner = PLAINLY,
) -> tuple[StageResult, ...]:
    """Bring the stages that `targets` name (none: all) and what they need up to date; results in run order.

    StageFailed when a command fails or does not write its outputs; MissingObject when an input is not here; UsageError
    when a stage takes more than there is. The checkout's lock must be held.
    """
    snapshot = workspace_snapshot(project)
    if not snapshot.stages and not targets:
        return ()
    graph = stage_graph(snapshot)
    chosen = choose(graph, targets)
    with open_observer(project, snapshot, graph, run_cache=how.run_cache) as observer:
        order = graph.above(chosen)
        schedule = Schedule(
            [graph.stages[address] for address in order],
            graph.upstream,
            jobs=how.jobs or len(os.sched_getaffinity(0)),
            capacity=_capacity(snapshot, how.resources),
        )
        work = StageWork(project, snapshot, observer, surroundings, listener)
        run = _Run(project, graph, observer, schedule, work, listener, how, frozenset(chosen))
        results = run.go(order)
        _tell_unkept(project, observer, listener, results)
        return results


def _capacity(snapshot: Snapshot, told: Mapping[str, float]) -> dict[str, float]:
    """Return what there is of each resource: of this machine, as the pipelines say, and as was `told`."""
    declared: dict[str, float] = {}
    for pipeline in snapshot.pipelines:
        declared = merged(declared, pipeline.resources)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {CPUS: float(len(os.sched_getaffinity(0))), MEMORY: float(memory), **declared, **told}


class _Begun(NamedTuple):
    attempt: Attempt
    started: float


class _Run:
    """One run: what has begun, what it came to, and what failed."""

    def __init__(
        self,
        project: Project,
        graph: Graph,
        observer: Observer,
        schedule: Schedule,
        work: StageWork,
        listener: Listener,
        how: Manner,
        chosen: frozenset[str],
    ) -> None:
        self._project = project
        self._graph = graph
        self._observer = observer
        self._schedule = schedule
        self._work = work
        self._listener = listener
        self._how = how
        self._chosen = chosen
        self._cancelled = Event()
        self._begun: dict[Future[None], _Begun] = {}
        self._resting: dict[str, float] = {}  # when each may be tried again
        self._tries: dict[str, int] = {}
        self._results: dict[str, StageResult] = {}
        self._failures: dict[str, MlxError] = {}

    def go(self, order: Sequence[str]) -> tuple[StageResult, ...]:
        """Carry everything out; whatever interrupts it stops the commands, and their old outputs come back."""
        with ThreadPoolExecutor(_MOST_JOBS, thread_name_prefix="stage") as pool:
            try:
                while not self._schedule.ended:
                    self._begin_all(pool)
                    if not self._schedule.ended:
                        self._take_ended()
            except BaseException as error:
                self._cancelled.set()
                self._abandon(error)
                raise
        self._raise_failures()
        return tuple(self._results[address] for address in order)

    def _begin_all(self, pool: ThreadPoolExecutor) -> None:
        """Begin whatever can begin now; what runs no command is done at once."""
        now = time.monotonic()
        resting = {address for address, until in self._resting.items() if until > now}
        while (stage := self._schedule.next(resting)) is not None:
            started = time.monotonic()
            self._schedule.begin(stage.address)
            try:
                decision = self._observer.decide(stage, force=self._how.force and stage.address in self._chosen)
                self._work.check(decision)
                self._listener.begin(decision)
                if decision.action is Action.RUN:
                    attempt = self._work.begin(decision)
                    self._begun[pool.submit(self._work.execute, attempt, self._cancelled)] = _Begun(attempt, started)
                    continue
                if decision.action is Action.RESTORE:
                    self._work.restore(decision)
            except MlxError as error:
                self._fail(stage.address, error)
            else:
                self._succeed(decision, started)

    def _take_ended(self) -> None:
        """Wait until a command has ended, or a stage has rested; publish what has ended."""
        now = time.monotonic()
        until = min((until for until in self._resting.values() if until > now), default=None)
        rest = None if until is None else until - now
        # A command may take days. What was stored by now is named, by locks and by the journal: `mlx gc` may come in.
        with self._project.guard.released(self._listener.note):
            if not self._begun:
                time.sleep(rest or 0.0)
                return
            done, _ = wait(self._begun, timeout=rest, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda each: self._begun[each].started):
            begun = self._begun[future]
            decision = begun.attempt.decision
            error = future.exception()
            try:
                if error is not None:
                    self._work.give_up(begun.attempt, error)
                    raise error
                decision = self._work.finish(begun.attempt)
            except MlxError as told:
                del self._begun[future]
                if not self._try_again(decision, told):
                    self._fail(decision.stage.address, told)
            else:
                del self._begun[future]
                self._succeed(decision, begun.started)

    def _try_again(self, decision: Decision, error: MlxError) -> bool:
        """Let a stage rest whose attempt failed, if it has attempts left; say whether it has."""
        stage = decision.stage
        tried = self._tries[stage.address] = self._tries.get(stage.address, 0) + 1
        left = stage.conduct.retries - tried + 1
        if left <= 0 or not isinstance(error, StageFailed) or (self._failures and not self._how.keep_going):
            return False
        delay = stage.conduct.delay
        when = f" in {delay:g} s" if delay else ""
        self._listener.note(f"{error.message}; trying again{when} ({left} {'try' if left == 1 else 'tries'} left)")
        self._resting[stage.address] = time.monotonic() + delay
        self._observer.forget(stage)
        self._schedule.again(stage.address)
        return True

    def _succeed(self, decision: Decision, started: float) -> None:
        address = decision.stage.address
        self._schedule.succeed(address)
        self._results[address] = StageResult(decision, time.monotonic() - started)
        self._listener.done(self._results[address])

    def _fail(self, address: str, error: MlxError) -> None:
        self._failures[address] = error
        self._schedule.fail(address)
        if not self._how.keep_going:
            self._schedule.stop()
        running = self._schedule.running
        if running and not self._how.keep_going:
            self._listener.note(
                f"{error.message}; what runs already goes on to its end: {naming(running)} (Ctrl-C stops it)"
            )

    def _abandon(self, error: BaseException) -> None:
        """Wait for the commands, which are being stopped, and bring the old outputs back."""
        wait(self._begun)
        for begun in self._begun.values():
            with suppress(MlxError):
                self._work.give_up(begun.attempt, error)

    def _raise_failures(self) -> None:
        """Raise what went wrong: the one error there was, or one that names all that failed."""
        if not self._failures:
            return
        dropped = self._schedule.dropped if self._how.keep_going else ()
        if dropped:
            self._listener.note(f"not run, for what they need failed: {naming(dropped)}")
        first = next(iter(self._failures.values()))
        if len(self._failures) == 1:
            raise first
        for error in self._failures.values():
            self._listener.note(error.message)
        raise StageFailed(
            f"{len(self._failures)} stages failed: {naming(list(self._failures))}", hint=first.marked_hint
        ) from first


def _tell_unkept(project: Project, observer: Observer, listener: Listener, results: Sequence[StageResult]) -> None:
    """Tell of inputs that no store and no commit will hold: nobody else could repeat what was made of them."""
    ran = [result.decision for result in results if result.decision.action is Action.RUN]
    deps = {dep.path: dep for decision in ran for dep in decision.wanted.deps}
    for path in observer.unkept(deps.values()):
        listener.note(f"`{path}` is not what its pointer says: `mlx add {word(path)}` keeps it")
    untracked = observer.untracked(deps)
    for path in git.ignored_files(project.root, untracked) if untracked else ():
        listener.note(f"Git ignores `{path}`, and no store has it: `mlx add {word(path)}` keeps it")
