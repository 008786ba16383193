"""The work on stages that an executor runs: each is made a job, and its result is taken over from the remote.

Nothing is taken away in the workspace until the result is there; then it is restored as any earlier run's is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import NamedTuple

from mlops_cli.errors import MissingObject
from mlops_cli.pipeline.executor import Cancelled
from mlops_cli.pipeline.executors import Executor, State, open_executor
from mlops_cli.pipeline.jobs import make_job
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.stage_work import Noting, StageWork
from mlops_cli.progress import Silent
from mlops_cli.records.jobs import Job
from mlops_cli.records.locks import read_lock
from mlops_cli.workspace.bringing import fetch_objects
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.snapshot import track

_SPELL_SECONDS = 0.2


class _Notes(Silent):
    """Passes on what the user should know, and draws no bars."""

    def __init__(self, listener: Noting) -> None:
        self.note = listener.note  # type: ignore[method-assign]


class Delegated(NamedTuple):
    """A stage that was made a job."""

    decision: Decision
    job: Job


@dataclass(frozen=True, slots=True)
class DelegatedWork:
    """Carries out decisions as `StageWork` does, with the commands run by an executor instead of here."""

    project: Project
    work: StageWork
    executor: Executor
    _handles: dict[str, str] = field(default_factory=dict)  # of jobs that run, by stage

    def check(self, decision: Decision) -> None:
        """Raise what keeps a decision from being carried out, before anything is touched."""
        self.work.check(decision)

    def begin(self, decision: Decision) -> Delegated:
        """Make a job of a stage, and send what it needs."""
        self.work.observer.flush()
        notes, outside = _Notes(self.work.listener), self.work.observer.outside
        made = make_job(self.project, decision.stage.address, reporter=notes, outside=outside)
        return Delegated(decision, made.job)

    def execute(self, attempt: Delegated, cancelled: Event) -> None:
        """Have the job run and wait for it, in any thread. StageFailed; Cancelled when the event was set."""
        address, told = attempt.decision.stage.address, 0
        handle = self._handles[address] = self.executor.submit(attempt.job)
        write = partial(self.work.listener.write, address)
        try:
            while self.executor.poll(handle) is State.RUNNING:
                told += _pass_on(self.executor.logs(handle, told), write)
                if cancelled.wait(_SPELL_SECONDS):
                    self.executor.cancel(handle)
                    raise Cancelled
            while more := _pass_on(self.executor.logs(handle, told), write):
                told += more
            self.executor.collect(handle)
        finally:
            del self._handles[address]

    def kill(self) -> None:
        """End all jobs that run."""
        for handle in tuple(self._handles.values()):
            self.executor.cancel(handle)

    def finish(self, attempt: Delegated) -> Decision:
        """Take over what the job made."""
        decision, job = attempt
        _, store = open_project_remote(self.project, None, _Notes(self.work.listener))
        data = store.read_run(job.key)
        if data is None:
            raise MissingObject(f"{store.label} has no result of the job of stage `{job.stage}`", hint="run it again")
        lock = read_lock(data, f"run record {job.key}", job.folder)
        chosen = [(track(out.path, out), "") for out in lock.outs]
        fetch_objects(self.project.cache, store, chosen)
        self.project.cache.write_run(job.key, data)
        self.work.restore(decision._replace(action=Action.RESTORE, outs=lock.outs, source=lock))
        settled = decision._replace(outs=lock.outs, source=lock)
        self.work.observer.settle(settled)
        return settled

    def give_up(self, attempt: Delegated, error: BaseException) -> None:
        """Nothing was taken away, so there is nothing to bring back."""

    def restore(self, decision: Decision) -> None:
        """Bring the outputs that an earlier run made."""
        self.work.restore(decision)


def delegate(project: Project, name: str, environ: Mapping[str, str]) -> Callable[[StageWork], DelegatedWork]:
    """Return what has stages run by the executor called `name`; UsageError when there is none."""
    executor = open_executor(name, project.local / "jobs", environ)
    return lambda work: DelegatedWork(project, work, executor)


def _pass_on(data: bytes, write: partial[None]) -> int:
    if data:
        write(data)
    return len(data)
