"""Running a job elsewhere: a folder, the remote, and nothing of the clone that made it.

Code and data come by digest and are verified. What the stage makes goes to the remote, then the run record under the
job's key: with that, the run counts, and `mlx run --pull` of whoever made the job takes it from there. The same job
again finds the record and runs nothing. Locks of the project are written by nobody here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from mlops_cli.errors import Inconclusive, RecordError, UsageError
from mlops_cli.pipeline.changes import input_changes
from mlops_cli.pipeline.execution import Surroundings
from mlops_cli.pipeline.inputs import Observer, open_observer, stage_graph
from mlops_cli.pipeline.interpreter import Python
from mlops_cli.pipeline.jobs import as_tracked, code_of
from mlops_cli.pipeline.outside import Outside
from mlops_cli.pipeline.plan import Action, Decision, inputs_key
from mlops_cli.pipeline.stage_work import StageWork
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.pipeline.usage import Spent
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.progress import Reporter
from mlops_cli.records.config import with_cache
from mlops_cli.records.jobs import Job
from mlops_cli.records.locks import Lock, OutputRecord, inputs_of, read_lock
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.stages import Stage
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import Durability
from mlops_cli.store.parcels import Wanted as WantedObjects
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.tree_reading import read_totals
from mlops_cli.store.trees import Kind
from mlops_cli.workspace.bringing import fetch_objects
from mlops_cli.workspace.browse import write_copy
from mlops_cli.workspace.checkout import restore
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.git import make_checkout
from mlops_cli.workspace.project import Project, load_project
from mlops_cli.workspace.reach import reach
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.snapshot import Tracked, track, workspace_snapshot

Write = Callable[[bytes], object]

NOTHING = Transferred(0, 0)


@dataclass(frozen=True, slots=True)
class JobResult:
    """What running a job came to: the outputs, and the metrics by file.

    With `reused` it had been run before, and nothing was run now; `nondeterministic` outputs differ from those that
    another run of the same job had put on the remote. `seconds` of wall time; what was fetched and sent.
    """

    stage: str
    key: str
    outs: tuple[OutputRecord, ...]
    metrics: Mapping[str, Mapping[str, object]]
    reused: bool
    nondeterministic: tuple[str, ...]
    seconds: float
    fetched: Transferred = NOTHING
    sent: Transferred = NOTHING


class _Heard:
    """Passes on what a stage's command writes, and what the user should know."""

    def __init__(self, output: Write, reporter: Reporter) -> None:
        self._output = output
        self.note = reporter.note

    def write(self, stage: str, data: bytes) -> None:  # noqa: ARG002  # one stage runs
        self._output(data)

    def spent(self, stage: str, spent: Spent) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is run: an empty or new `folder`, and a `cache` that may outlast it (None: within the folder)."""

    folder: Path
    cache: Path | None
    environ: Mapping[str, str]


def run_job(
    job: Job,
    place: Place,
    *,
    url: str | None = None,
    force: bool = False,
    output: Write,
    reporter: Reporter,
) -> JobResult:
    """Run `job`, or find that it was run before, with the remote at `url` (None: the one it names).

    StageFailed when its command fails; MissingObject or CorruptObject when the remote has not all of it as it was
    written; Inconclusive when the inputs are others here, as where the environment is one of them, or change while it
    runs; RemoteError.
    """
    began = time.monotonic()
    folder = _open_folder(place.folder)
    bucket = open_bucket("job", url or job.remote, folder, durability=Durability.NONE)
    bucket.traffic.listener = reporter.note
    store = Remote(bucket, str(folder / "remote"))
    earlier = _find_earlier(store, job)
    if earlier is not None and not force:
        return _result(job, earlier, began, reused=True)
    cache_folder = place.cache or folder / "cache"
    cache = Cache(cache_folder, link=LinkMode.REFLINK, durability=Durability.NONE)
    fetched = fetch_objects(cache, store, [(code_of(job), "")], reporter=reporter)
    root = folder / "project"
    write_copy(cache, as_entry(code_of(job)), root)
    project = _open_project(root, cache_folder, place.environ)
    fetched = fetched.plus(_place_inputs(project, store, job, reporter))
    lock = _run(
        project, job, Surroundings(place.environ, folder / "logs", listed=False), _Heard(output, reporter), reporter
    )
    _refuse_edited_inputs(job, lock, root)
    sent = _send(project, store, lock, reporter)
    others = {out.path: out.digest for out in earlier.outs} if earlier else {}
    differing = tuple(out.path for out in lock.outs if others.get(out.path, out.digest) != out.digest)
    if not differing:
        store.write_run(job.key, lock.to_bytes(job.folder))
    return replace(_result(job, lock, began, reused=False), nondeterministic=differing, fetched=fetched, sent=sent)


def _open_folder(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"`{folder}` is not empty", hint="name a new folder: the job makes its own project in it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _result(job: Job, lock: Lock, began: float, *, reused: bool) -> JobResult:
    return JobResult(job.stage, job.key, lock.outs, lock.metrics, reused, (), time.monotonic() - began)


def _find_earlier(store: Remote, job: Job) -> Lock | None:
    """Return the record of an earlier run of the job, if the remote has that and all that it made."""
    data = store.read_run(job.key)
    if data is None:
        return None
    try:
        lock = read_lock(data, f"run record {job.key}", job.folder)
    except RecordError:
        return None
    if lock.changed_during_run or lock.accepted or _inputs(lock) != _inputs(job.inputs):
        return None
    if store.missing({out.digest for out in lock.outs}):
        return None
    return lock


def _inputs(lock: Lock) -> dict[str, object]:
    return {key: value for key, value in inputs_of(lock).items() if key != "outs"}


def _open_project(root: Path, cache: Path, environ: Mapping[str, str]) -> Project:
    checkout = make_checkout(root)
    project = load_project(root, checkout, environ)
    return Project(root, checkout, project.layers, with_cache(project.config, str(cache)))


def _send(project: Project, store: Remote, lock: Lock, reporter: Reporter) -> Transferred:
    """Upload what the stage made and the remote lacks, also what Git will keep."""
    needed = reach(project.cache, [(track(out.path, out), "") for out in lock.outs])
    missing = store.missing(needed.sizes)
    blobs, *levels = ([digest for digest in step if digest in missing] for step in needed.steps)
    trees = [digest for level in levels for digest in level]
    reporter.start("sending", sum(needed.sizes[digest] for digest in missing), "bytes")
    return store.send(project.cache, WantedObjects(blobs, trees, needed.sizes), reporter=reporter)


def _place_inputs(project: Project, store: Remote, job: Job, reporter: Reporter) -> Transferred:
    """Bring what the stage depends on, as the job says it was, where the code has something else or nothing."""
    with open_scanner(project, reporter=reporter, as_code=True) as scanner:
        present = {dep.path: scanner.look(dep.path) for dep in job.inputs.deps}
    wanted = []
    for dep in job.inputs.deps:
        entry = present[dep.path]
        if entry is None or (entry.digest, entry.kind == Kind.EXECUTABLE) != (dep.digest, dep.executable):
            wanted.append(as_tracked(dep))
    fetched = fetch_objects(project.cache, store, [(each, "") for each in wanted], reporter=reporter)
    entries = {each.path: as_entry(_counted(project.cache, each)) for each in wanted}
    with open_scanner(project, reporter=reporter) as scanner:
        restore(project, scanner, entries, reporter)
    return fetched


def _counted(cache: Cache, tracked: Tracked) -> Tracked:
    """Return a folder with its size and the number of its files as its listing says."""
    if as_entry(tracked).kind != Kind.FOLDER:
        return tracked
    size, files = read_totals(cache, tracked.digest)
    return tracked._replace(size=size, files=files)


def _run(project: Project, job: Job, surroundings: Surroundings, heard: _Heard, reporter: Reporter) -> Lock:
    """Run the stage in its own project; returns its lock."""
    snapshot = workspace_snapshot(project)
    graph = stage_graph(snapshot)
    stage = graph.stages.get(job.stage)
    if stage is None:
        raise RecordError(f"the code of the job has no stage `{job.stage}`", hint="`mlx job make` makes it anew")
    python = Python(surroundings.environ.get("PATH"), project.root)
    outside = Outside(ask=True, note=reporter.note, python=python)
    with (
        exclusive(project, "mlx job run", reporter),
        open_observer(project, snapshot, graph, reporter=reporter, run_cache=False, outside=outside) as observer,
    ):
        wanted = observer.wanted(stage)
        _refuse_other_inputs(job, stage, wanted, observer)
        work = StageWork(project, snapshot, observer, surroundings, heard)
        decision = Decision(stage, Action.RUN, ("a job",), wanted, job.key, None)
        work.check(decision)
        attempt = work.begin(decision)
        try:
            work.execute(attempt, Event())
        except BaseException as error:
            work.give_up(attempt, error)
            raise
        lock = work.finish(attempt).source
    assert lock is not None
    return lock


def _refuse_edited_inputs(job: Job, lock: Lock, root: Path) -> None:
    """Refuse to share what was made while an input changed: the record would say of others what made it."""
    if lock.changed_during_run:
        raise Inconclusive(
            f"`{lock.changed_during_run[0]}` changed while stage `{job.stage}` ran: nobody can tell which version made "
            "its outputs, and none is shared",
            hint=f"what it made is in `{root}`; a command must leave its inputs as they are",
        )


def _refuse_other_inputs(job: Job, stage: Stage, wanted: Wanted, observer: Observer) -> None:
    """Refuse to run with other inputs than those whose result would be recorded under the job's key."""
    if inputs_key(stage, wanted) == job.key:
        return
    # The job's lock has no outputs yet; that is no difference.
    outs = tuple(OutputRecord(out.path, ObjectKind.BLOB, job.code.digest, 0, git=out.git) for out in stage.outs)
    like = replace(job.inputs, outs=outs, metrics={path: {} for path in stage.metrics})
    changes = input_changes(stage, wanted, like, observer.describe)
    raise Inconclusive(
        f"the inputs of stage `{job.stage}` are not those of the job: {changes[0] if changes else 'its key differs'}",
        hint="make the environment here the same, or the job anew with `mlx job make`",
    )
