"""Carry a plan out: run, restore or skip each stage, as many at once as fit.

One thread decides, takes outputs away and publishes, stage by stage (`stage_work`); commands run beside it. A failure
lets nothing begin any more, unless the run is to go on with what does not need it; what runs goes on to its end.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_cli.errors import MlxError, StageFailed, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.pipeline.execution import Surroundings
from mlops_cli.pipeline.executor import no_thread
from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.inputs import Observer, decide_stage, open_observer
from mlops_cli.pipeline.interpreter import Python
from mlops_cli.pipeline.manner import PLAINLY, Listener, Manner, StageResult, Work
from mlops_cli.pipeline.neighbours import Neighbours
from mlops_cli.pipeline.outside import Outside
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.processes import is_ancestor
from mlops_cli.pipeline.schedule import Schedule
from mlops_cli.pipeline.stage_work import StageWork
from mlops_cli.pipeline.survey import leave_stages, survey_stages
from mlops_cli.pipeline.turn import Turn
from mlops_cli.records.conduct import CPUS, MEMORY
from mlops_cli.records.stages import Stage
from mlops_cli.words import NAMED, naming, quoted, so_for, word
from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reservations import Reservation
from mlops_cli.workspace.snapshot import workspace_snapshot

if TYPE_CHECKING:
    from mlops_cli.pipeline.provision import Provision

_MOST_JOBS = 1000
_SPELL_SECONDS = 0.5
_FILES_OF_MLX, _FILES_OF_STAGE = 64, 7  # how many may be open at once


def run_project(
    project: Project,
    targets: Sequence[str],
    surroundings: Surroundings,
    listener: Listener,
    turn: Turn,
    how: Manner = PLAINLY,
    provision: Provision | None = None,
    delegate: Callable[[StageWork], Work] | None = None,
) -> tuple[StageResult, ...]:
    """Bring the stages that `targets` (none: all) and the reach mean up to date; results in run order.

    It has its `turn`, and hands it over while it waits for commands. What is not here, `provision` leaves away or
    brings, and is told; `delegate` has the commands run by somebody else. StageFailed when a command fails or does not
    write its outputs; MissingObject when an input is not here; UsageError when a stage takes more than there is.
    """
    snapshot = workspace_snapshot(project)
    survey = survey_stages(snapshot, targets, how.reach, listener.note)
    graph, selected = survey.graph, survey.selected
    if not selected.order:
        return ()
    if provision is not None:
        provision.named = selected.named if targets else frozenset()
    python = Python(surroundings.environ.get("PATH"), project.root)
    outside = Outside(ask=not how.offline, note=listener.note, python=python)
    with open_observer(
        project, snapshot, graph, run_cache=how.run_cache, provision=provision, outside=outside
    ) as observer:
        outside.prepare(graph.stages[address] for address in (*selected.left, *selected.order))
        leave_stages(observer, survey, listener.note)
        order = selected.order
        listener.expect(len(order))
        schedule = Schedule(
            [graph.stages[address] for address in order],
            graph.upstream,
            jobs=_slots(how.jobs or len(os.sched_getaffinity(0)), len(order), listener),
            capacity=_capacity(survey.resources, how.resources),
        )
        here = StageWork(project, snapshot, observer, surroundings, listener)
        work: Work = here if delegate is None else delegate(here)
        neighbours = Neighbours(project, graph, snapshot.pointer_paths)
        anew = selected.forced(force=how.force)
        run = _Run(turn, graph, observer, schedule, work, neighbours, listener, how, anew)
        try:
            results = run.go(order)
        except RuntimeError as error:  # a second interrupt can leave a lock of the threads half given back
            if _was_interrupted(error):
                raise KeyboardInterrupt from error
            raise
        _tell_unkept(project, observer, listener, results)
        return results


def _slots(jobs: int, stages: int, listener: Listener) -> int:
    """Return how many stages can run at once when `jobs` are asked for: each needs some open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = jobs if limit == resource.RLIM_INFINITY else max(1, (limit - _FILES_OF_MLX) // _FILES_OF_STAGE)
    if most < min(jobs, stages):
        listener.note(
            f"a process may have {limit} files open, which is enough for {most} stages at once (`ulimit -n` raises it)"
        )
    return min(jobs, most)


def _capacity(declared: Mapping[str, float], told: Mapping[str, float]) -> dict[str, float]:
    """Return what there is of each resource: of this machine, as the pipelines say, and as was `told`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {CPUS: float(len(os.sched_getaffinity(0))), MEMORY: float(memory), **declared, **told}


class _Begun(NamedTuple):
    attempt: Any
    started: float


class _Rest(NamedTuple):
    until: float
    error: MlxError  # what the last attempt came to


class _Run:
    """One run: what has begun, what it came to, and what failed."""

    def __init__(
        self,
        turn: Turn,
        graph: Graph,
        observer: Observer,
        schedule: Schedule,
        work: Work,
        neighbours: Neighbours,
        listener: Listener,
        how: Manner,
        anew: Mapping[str, str],
    ) -> None:
        self._turn = turn
        self._graph = graph
        self._observer = observer
        self._schedule = schedule
        self._work = work
        self._neighbours = neighbours
        self._listener = listener
        self._how = how
        self._anew = anew
        self._cancelled = Event()
        self._begun: dict[str, _Begun] = {}  # the stages whose outputs are away
        self._commands: dict[Future[None], str] = {}
        self._resting: dict[str, _Rest] = {}
        self._waiting: set[str] = set()  # for stages of other runs
        self._told_of: set[tuple[str, str, int]] = set()  # which stage waits for which one of whom
        self._tries: dict[str, int] = {}
        self._results: dict[str, StageResult] = {}
        self._failures: dict[str, MlxError] = {}
        self._told: set[str] = set()  # failures the user knows of

    def go(self, order: Sequence[str]) -> tuple[StageResult, ...]:
        """Carry everything out; whatever interrupts it stops the commands, and their old outputs come back."""
        with ThreadPoolExecutor(_MOST_JOBS, thread_name_prefix="stage") as pool:
            try:
                while not self._schedule.ended:
                    rest = self._begin_all(pool)
                    if not self._schedule.ended:
                        self._take_ended(rest)
            except BaseException as error:
                try:
                    self._abandon(pool, error)
                except BaseException:  # interrupted once more: now nobody is asked, and there is nothing to wait for
                    self._work.kill()
                    self._abandon(pool, error)
                    raise
                raise
        self._raise_failures()
        return tuple(self._results[address] for address in order)

    def _begin_all(self, pool: ThreadPoolExecutor) -> float | None:
        """Begin whatever can begin now; what runs no command is done at once.

        Returns for how many seconds the first of those that rest still does (None: none rests).
        """
        now = time.monotonic()
        resting = {address: rest.until - now for address, rest in self._resting.items() if rest.until > now}
        while (stage := self._schedule.next(resting)) is not None:
            started = time.monotonic()
            self._schedule.begin(stage.address)
            try:
                decision = self._decide(stage)
                if decision is None:
                    self._schedule.again(stage.address)
                    resting[stage.address] = _SPELL_SECONDS
                    continue
                self._work.check(decision)
                self._listener.begin(decision)
                if decision.action is Action.RUN:
                    self._begun[stage.address] = _Begun(self._begin(decision), started)
                    self._start(pool, stage.address)
                    continue
                if decision.action is Action.RESTORE:
                    self._work.restore(decision)
            except (MlxError, OSError) as error:
                if stage.address in self._begun:  # no thread for it: nor would the next one get one
                    raise
                told = _told(error, stage.address)
                self._listener.failed(stage.address, told)
                self._fail(stage.address, told)
            else:
                self._succeed(decision, started)
        return min(resting.values(), default=None)

    def _begin(self, decision: Decision) -> Any:
        """Take the outputs of a stage away, which is its own from here until they are back or replaced."""
        self._neighbours.reserve(decision.stage)
        try:
            return self._work.begin(decision)
        except BaseException:
            self._neighbours.release(decision.stage.address)
            raise

    def _decide(self, stage: Stage) -> Decision | None:
        """Return what is to be done with a stage; None while it gives way to one of another run."""
        if self._gives_way(stage, self._neighbours.ahead_of(stage)):
            return None
        self._resting.pop(stage.address, None)
        if stage.address in self._waiting:  # others were there: see what became of its inputs
            self._waiting.remove(stage.address)
            self._observer.settle_anew(self._graph.upstream[stage.address])
        decision = decide_stage(self._observer, stage, self._anew)
        return None if self._gives_way(stage, self._neighbours.beside(decision)) else decision

    def _gives_way(self, stage: Stage, other: Reservation | None) -> bool:
        """Say whether a stage waits for one of another run, which is told once."""
        if other is None:
            return False
        if is_ancestor(other.process):
            raise UsageError(
                f"stage `{stage.address}` waits for stage `{other.stage}`, whose own command has started this run",
                hint=f"take that out of the command of `{other.stage}`: `deps` say what is to be run before",
            )
        self._waiting.add(stage.address)
        told = (stage.address, other.stage, other.process)
        if told not in self._told_of:
            self._told_of.add(told)
            doing = "runs" if other.stage == stage.address else f"runs `{other.stage}`"
            self._listener.note(f"stage `{stage.address}` waits: process {other.process} {doing}")
        return True

    def _start(self, pool: ThreadPoolExecutor, address: str) -> None:
        try:
            command = pool.submit(self._work.execute, self._begun[address].attempt, self._cancelled)
        except RuntimeError as error:
            raise no_thread(address) from error
        self._commands[command] = address

    def _take_ended(self, rest: float | None) -> None:
        """Wait until a command has ended, or a stage has rested; publish what has ended."""
        until = float("inf") if rest is None else time.monotonic() + rest
        done: set[Future[None]] = set()
        # A command may take days. What was stored by now is named, by locks and by the journal: others may come in.
        with self._turn.handed_over(self._listener.note, idle=not self._begun), self._stopping_commands():
            while not done and (left := until - time.monotonic()) > 0:
                # In short spells: one long one would not end for a signal that another thread is given.
                spell = min(left, _SPELL_SECONDS)
                self._listener.wait()
                if self._commands:
                    done = wait(self._commands, timeout=spell, return_when=FIRST_COMPLETED).done
                else:
                    time.sleep(spell)
        self._neighbours.look_anew()
        self._observer.renew()
        for command in sorted(done, key=lambda each: self._begun[self._commands[each]].started):
            self._end(command)

    @contextmanager
    def _stopping_commands(self) -> Iterator[None]:
        """Let the commands end at once when the block is interrupted: the checkout may be in other hands for long."""
        try:
            yield
        except BaseException:
            self._cancelled.set()
            raise

    def _end(self, command: Future[None]) -> None:
        """Publish what a command made that has ended, or bring back what there was before."""
        address = self._commands.pop(command)
        self._listener.ended(address)
        attempt, started = self._begun[address]
        error = command.exception()
        try:
            if error is not None:
                self._work.give_up(attempt, error)
                del self._begun[address]
                raise error
            del self._begun[address]  # from here on, what interrupts it is dealt with there
            decision = self._work.finish(attempt)
            self._neighbours.release(address)
        except (MlxError, OSError) as raised:
            told = _told(raised, address)
            self._begun.pop(address, None)
            self._neighbours.release(address)
            self._listener.failed(address, told)
            if not self._try_again(attempt.decision, told):
                self._fail(address, told)
        else:
            self._succeed(decision, started)

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
        self._resting[stage.address] = _Rest(time.monotonic() + delay, error)
        self._observer.look_anew()  # the outputs came back, and inputs may have been edited meanwhile
        self._schedule.again(stage.address)
        return True

    def _succeed(self, decision: Decision, started: float) -> None:
        address = decision.stage.address
        self._schedule.succeed(address)
        self._results[address] = StageResult(decision, time.monotonic() - started)
        self._listener.done(self._results[address])

    def _fail(self, address: str, error: MlxError) -> None:
        self._observer.look_anew()  # its command may have taken hours: whatever was seen is old
        self._failures[address] = error
        self._schedule.fail(address)
        if not self._how.keep_going:
            self._schedule.stop()
            self._failures |= {resting: rest.error for resting, rest in self._resting.items()}
            self._resting = {}
        if self._schedule.ended:
            return
        running = naming(self._schedule.running)
        goes_on = (
            "what does not need it goes on"
            if self._how.keep_going
            else f"what runs already goes on to its end: {running} (Ctrl-C stops it)"
        )
        self._listener.note(f"{_with_hint(error)}; {goes_on}")
        self._told.add(address)

    def _abandon(self, pool: ThreadPoolExecutor, error: BaseException) -> None:
        """Stop the commands, wait for them, and bring the old outputs back."""
        self._cancelled.set()
        pool.shutdown(cancel_futures=True)
        for address, begun in tuple(self._begun.items()):
            self._listener.ended(address)
            if self._turn.is_held:  # else the next command that has its turn puts it right
                with suppress(Exception):  # those of the others come back all the same
                    self._work.give_up(begun.attempt, error)
                self._neighbours.release(address)

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
        for address, error in self._failures.items():
            if address not in self._told:
                self._listener.note(_with_hint(error))
        failed = [address for address, error in self._failures.items() if isinstance(error, StageFailed)]
        logs = [f"`mlx logs {quoted(address)}`" for address in failed]
        raise StageFailed(
            f"{len(self._failures)} stages failed: {naming(list(self._failures))}",
            hint=f"{', '.join(logs[:NAMED])}: what they wrote{so_for(logs[NAMED:])}" if logs else first.marked_hint,
        ) from first


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _told(error: MlxError | OSError, address: str) -> MlxError:
    """Return what to tell of an error of one stage, which is no reason to stop the others."""
    if isinstance(error, MlxError):
        return error
    return translate_os_error(error, f"use `{os.fsdecode(error.filename)}`" if error.filename else f"run `{address}`")


def _with_hint(error: MlxError) -> str:
    return f"{error.message} ({error.marked_hint})" if error.marked_hint else error.message


def _tell_unkept(project: Project, observer: Observer, listener: Listener, results: Sequence[StageResult]) -> None:
    """Tell of inputs that no store and no commit will hold: nobody else could repeat what was made of them."""
    ran = [result.decision for result in results if result.decision.action is Action.RUN]
    deps = {dep.path: dep for decision in ran for dep in decision.wanted.deps}
    for path in observer.unkept(deps.values()):
        listener.note(f"`{path}` is not what its pointer says: `mlx add {word(path)}` keeps it")
    untracked = observer.untracked(deps)
    for path in git.ignored_files(project.root, untracked) if untracked else ():
        listener.note(f"Git ignores `{path}`, and no store has it: `mlx add {word(path)}` keeps it")
