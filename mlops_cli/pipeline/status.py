"""How a project stands: its data and its stages, in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mlops_cli.errors import MlxError, RecordError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.pipeline.graph import Graph, choose
from mlops_cli.pipeline.inputs import Observer, open_observer, plan_stages, stage_graph
from mlops_cli.pipeline.plan import Action, Decision, Wanted
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.stages import Stage
from mlops_cli.words import naming
from mlops_cli.workspace.compare import DataState, DataStatus, data_status, untracked_outputs
from mlops_cli.workspace.project import Project, file_name
from mlops_cli.workspace.removed import find_left_lines, tell_left_lines
from mlops_cli.workspace.reservations import find_reservations
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.snapshot import Snapshot, workspace_snapshot

if TYPE_CHECKING:
    from mlops_cli.pipeline.provision import Provision


class ProjectStatus(NamedTuple):
    """The state of every tracked path, the decision for every stage, and what keeps some of them from being known.

    Where data `may_be_missing`, it is no difference that none of it is here.
    """

    data: tuple[DataStatus, ...]
    stages: tuple[Decision, ...]
    problems: tuple[MlxError, ...] = ()
    may_be_missing: bool = False

    @property
    def clean(self) -> bool:
        """Whether the workspace is what the records say."""
        if self.problems:
            return False
        fine = {DataState.OK, *((DataState.MISSING, DataState.NOT_CACHED) if self.may_be_missing else ())}
        data = all(status.state in fine for status in self.data)
        return data and all(decision.action is Action.SKIP for decision in self.stages)


def tell_unfinished(project: Project, reporter: Reporter) -> None:
    """Tell of runs that were cut short: what is planned now may not be what is done once they are put right."""
    try:
        names = {path.name for path in project.journal.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)}
    except FileNotFoundError:
        return
    if names and (running := find_reservations(project)):
        reporter.note(f"being run: {naming([each.stage for each in running])}")
        names -= {f"{file_name(each.stage)}.json" for each in running}
    if names:
        reporter.note("a run was cut short: the next command that writes puts its outputs right first")


def project_status(project: Project, reporter: Reporter = SILENT, provision: Provision | None = None) -> ProjectStatus:
    """Return how the workspace differs from its records, as far as these can be read; changes nothing, asks no server.

    Where a `mlx.yaml` cannot be, nothing is said of any stage: it may make what the others take. With a `provision`,
    data may be missing, and what that brings is asked for.
    """
    with project.cache.offline():
        found = _project_status(project, reporter, provision)
    return found._replace(may_be_missing=provision is not None)


def _project_status(project: Project, reporter: Reporter, provision: Provision | None) -> ProjectStatus:
    snapshot = workspace_snapshot(project)
    tell_unfinished(project, reporter)
    told: dict[str, MlxError] = {}
    graph = _graph(snapshot, told)
    if graph is not None and (left := find_left_lines(project.root, snapshot)):
        reporter.note(tell_left_lines(project.root, left))
    reporter.start("checking", None, "files")
    if graph is None or not graph.stages:
        with open_scanner(project, reporter=reporter) as scanner:
            data, problems = data_status(project, snapshot, scanner.look, scanner)
        return ProjectStatus(data, (), tuple({error.message: error for error in (*told.values(), *problems)}.values()))
    with open_observer(
        project, snapshot, graph, reporter=reporter, provision=provision
    ) as observer:  # data that stages read is seen once
        data, problems = data_status(project, snapshot, observer.look, observer.trees)
        told |= {error.message: error for error in problems}
        stages = tuple(_judge(observer, graph.stages[address], told) for address in graph.above(choose(graph, ())))
    untracked = untracked_outputs(project, snapshot, snapshot.stages)
    return ProjectStatus((*data, *untracked), stages, tuple(told.values()))


def _graph(snapshot: Snapshot, told: dict[str, MlxError]) -> Graph | None:
    """Return the graph of all stages; None when there can be none, and `told` gets why."""
    try:
        return stage_graph(snapshot)
    except RecordError as error:
        told[error.message] = error
        return None


def _judge(observer: Observer, stage: Stage, told: dict[str, MlxError]) -> Decision:
    """Return the decision for a stage; `told` gets what keeps it from being made, as it will keep it from running."""
    try:
        return observer.decide(stage)
    except UsageError as error:
        told.setdefault(error.message, error)
        return observer.note(Decision(stage, Action.RUN, (error.message,), Wanted((), {}), None, None))


def plan_project(
    project: Project,
    snapshot: Snapshot,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    run_cache: bool = True,
    provision: Provision | None = None,
    reporter: Reporter = SILENT,
) -> tuple[Decision, ...]:
    """Return the decision for each stage that `targets` name (none: all) and what they need, in run order."""
    tell_unfinished(project, reporter)
    if not snapshot.stages and not targets:
        return ()
    graph = stage_graph(snapshot)
    chosen = choose(graph, targets)
    if provision is not None:
        provision.named = frozenset(chosen if targets else ())
    with open_observer(
        project, snapshot, graph, reporter=reporter, run_cache=run_cache, provision=provision
    ) as observer:
        planned = plan_stages(observer, graph, chosen, force=force)
        for decision in planned if provision is not None else ():
            if decision.action is Action.RUN:
                observer.provide(decision)
    return planned
