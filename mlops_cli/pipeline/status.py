"""How a project stands: its data and its stages, in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class ProjectStatus(NamedTuple):
    """The state of every tracked path, the decision for every stage, and what keeps some of them from being known."""

    data: tuple[DataStatus, ...]
    stages: tuple[Decision, ...]
    problems: tuple[MlxError, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the workspace is what the records say."""
        if self.problems:
            return False
        data = all(status.state is DataState.OK for status in self.data)
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


def project_status(project: Project, reporter: Reporter = SILENT) -> ProjectStatus:
    """Return how the workspace differs from its records, as far as these can be read; changes nothing, asks no server.

    Where a `mlx.yaml` cannot be, nothing is said of any stage: it may make what the others take.
    """
    with project.cache.offline():
        return _project_status(project, reporter)


def _project_status(project: Project, reporter: Reporter) -> ProjectStatus:
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
    with open_observer(project, snapshot, graph, reporter=reporter) as observer:  # data that stages read is seen once
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
    reporter: Reporter = SILENT,
) -> tuple[Decision, ...]:
    """Return the decision for each stage that `targets` name (none: all) and what they need, in run order."""
    tell_unfinished(project, reporter)
    if not snapshot.stages and not targets:
        return ()
    graph = stage_graph(snapshot)
    with open_observer(project, snapshot, graph, reporter=reporter, run_cache=run_cache) as observer:
        return plan_stages(observer, graph, choose(graph, targets), force=force)
