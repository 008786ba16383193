"""Making a job of a stage: all that it needs goes to a remote, and a small file says what that is.

The code is every file that Git keeps or would keep, as it is now; data is what the stage depends on, by the digests of
its dependencies. A worker that has the file and can reach the remote needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.pipeline.inputs import Observer, open_observer, stage_graph
from mlops_cli.pipeline.outlook import is_in
from mlops_cli.pipeline.outside import AS_RECORDED, Outside, refuse_unasked
from mlops_cli.pipeline.plan import Action, Decision, draft_lock
from mlops_cli.pipeline.selection import choose
from mlops_cli.pipeline.stage_work import refuse_absent_inputs
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.jobs import Code, Job
from mlops_cli.records.locks import Input
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.stages import Stage
from mlops_cli.store.batches import open_batch
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.trees import Entry, Kind, split_path, write_tree
from mlops_cli.words import quoted
from mlops_cli.workspace import git
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push_chosen
from mlops_cli.workspace.rewrite import Rewriting
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Tracked, workspace_snapshot
from mlops_cli.workspace.transfers import Moved, Pushing

CODE = "the code"  # stands for the project's files where a path is told


@dataclass(frozen=True, slots=True)
class MadeJob:
    """A job, and what making it sent to its remote."""

    job: Job
    moved: Moved


def make_job(
    project: Project,
    target: str,
    *,
    folder: str = "",
    remote: str | None = None,
    jobs: int = 0,
    reporter: Reporter = SILENT,
    outside: Outside = AS_RECORDED,
) -> MadeJob:
    """Return the job of running the stage at `target`, with all that it needs on `remote` (None: the default one).

    The target is typed in `folder` of the project. UsageError for several stages, one that waits for others, or data
    that must not go to that remote; what keeps the stage from being run here; what keeps a push from it. The checkout
    must be held.
    """
    snapshot = workspace_snapshot(project)
    graph = stage_graph(snapshot)
    chosen = choose(graph, [target], folder)
    if len(chosen) > 1:
        raise UsageError(f"`{target}` means {len(chosen)} stages", hint="a job is one stage: `mlx stage list`")
    _refuse_unrepeatable(graph.stages[chosen[0]])
    name, store = open_project_remote(project, remote, reporter)
    with open_observer(project, snapshot, graph, reporter=reporter, run_cache=False, outside=outside) as observer:
        *above, decision = (observer.decide(graph.stages[address], judging=True) for address in graph.above(chosen))
        _refuse_stale(above, chosen[0])
        refuse_unasked(decision)
        if decision.key is None:
            refuse_absent_inputs(project, snapshot, decision)
            raise UsageError(
                f"nobody can tell yet what stage `{chosen[0]}` takes", hint=f"`mlx run {quoted(chosen[0])}`"
            )
        code = _keep_code(project, decision, observer, reporter)
        data = _keep_data(project, decision.wanted.deps, observer, reporter)
    bucket = store.bucket
    url = str(bucket.folder) if isinstance(bucket, FolderBucket) else store.url
    stage = decision.stage
    job = Job(stage.address, stage.folder, decision.key, url, code, draft_lock(stage, decision.wanted))
    chosen_data = [(each, "") for each in (code_of(job), *data)]
    return MadeJob(job, push_chosen(project, name, chosen_data, Pushing(jobs=jobs, reporter=reporter)))


def _refuse_unrepeatable(stage: Stage) -> None:
    """Refuse a stage that is not run, or whose result nobody could find under the key of its inputs."""
    if stage.is_off or stage.frozen:
        what = "off: its `when` is false" if stage.is_off else "frozen"
        raise UsageError(
            f"{stage.file}:{stage.line}: stage `{stage.address}` is {what}", hint="it is not run, nor is a job"
        )
    if not stage.repeatable:
        raise UsageError(
            f"{stage.file}:{stage.line}: what stage `{stage.address}` makes is not told by its inputs alone",
            hint="a job is of a stage with outputs, without `always` and `persist`",
        )


def _refuse_stale(above: Iterable[Decision], target: str) -> None:
    """Refuse a stage whose inputs are still to be made: they would be old ones."""
    for decision in above:
        if decision.action is Action.RUN:
            raise UsageError(
                f"stage `{decision.stage.address}` must run before `{target}`: {decision.reasons[0]}",
                hint=f"`mlx run {quoted(decision.stage.address)}`",
            )


def _keep_code(project: Project, decision: Decision, observer: Observer, reporter: Reporter) -> Code:
    """Store every file that is no data, as it is now; what the stage depends on even where Git ignores it."""
    stage = decision.stage
    named = observer.untracked([dep.path for dep in decision.wanted.deps])
    files = {*git.list_files(project.root, ["."]), *observer.untracked([file.path for file in stage.params])}
    with open_batch(project.cache) as batch, open_scanner(project, batch=batch, as_code=True) as scanner:
        reporter.start("keeping the code", None, "files")
        entries = dict(_code_entries(project, scanner, sorted(files), named, stage))
        trees = Rewriting(scanner)
        root = trees.rewrite(write_tree(trees, ()).digest, entries, batch)
    return Code(root.digest, root.size, root.files)


def _code_entries(
    project: Project, scanner: Scanner, files: Sequence[str], named: Sequence[str], stage: Stage
) -> Iterator[tuple[tuple[bytes, ...], Entry]]:
    outs = [out.path for out in stage.outs]
    for path in files:
        if any(is_in(path, place) for place in (*named, *outs)) or not _is_file(project, path):
            continue
        if (entry := scanner.look(path, copied=True)) is not None:
            yield split_path(path), entry
    for path in named:
        if (entry := scanner.look(path, copied=True, follow=True)) is not None:
            yield split_path(path), entry


def _is_file(project: Project, path: str) -> bool:
    """Say whether a path that Git lists is a file or a link, not a submodule and not gone."""
    place = project.root / path
    return place.is_symlink() or place.is_file()


def _keep_data(project: Project, deps: Iterable[Input], observer: Observer, reporter: Reporter) -> list[Tracked]:
    """Return the dependencies that are data; those whose bytes only the workspace has are stored."""
    deps = list(deps)
    code = {*observer.untracked([dep.path for dep in deps])}
    data = [as_tracked(dep) for dep in deps if dep.path not in code]
    loose = [each for each in data if not is_stored(project.cache, as_entry(each))]
    with open_batch(project.cache) as batch, open_scanner(project, batch=batch, reporter=reporter) as scanner:
        for each in loose:
            seen = scanner.look(each.path)
            if seen is not None and seen.digest != each.digest and seen.kind != Kind.FOLDER:
                raise MissingObject(
                    f"`{each.path}` is not what stage inputs were judged on", hint="run the same command again"
                )
    return data


def as_tracked(dep: Input) -> Tracked:
    """Return a dependency as something that a store holds; the number of its files is not known."""
    return Tracked(dep.path, dep.kind, dep.digest, dep.size, 1, dep.executable)


def code_of(job: Job) -> Tracked:
    """Return the code of a job as something that a store holds."""
    return Tracked(CODE, ObjectKind.TREE, job.code.digest, job.code.size, job.code.files)
