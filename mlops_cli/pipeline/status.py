"""How a project stands: its data and its stages, in one answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_cli.errors import MlxError, RecordError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, folders_above
from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.inputs import Observer, open_observer, plan_stages, stage_graph
from mlops_cli.pipeline.outside import AS_RECORDED, Outside
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.selection import PLAINLY, Reach, meant_paths
from mlops_cli.pipeline.survey import Survey, leave_stages, names_stages, survey_stages
from mlops_cli.pipeline.wanted import Wanted
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


def project_status(
    project: Project,
    reporter: Reporter = SILENT,
    targets: Sequence[str] = (),
    folder: str = "",
    provision: Provision | None = None,
    outside: Outside = AS_RECORDED,
) -> ProjectStatus:
    """Return how the workspace differs from its records, as far as these can be read; changes nothing, asks no server.

    With `targets`, typed in `folder` of the project, only of what they name: stages, tracked paths and what lies in
    folders; UsageError for one that names nothing. Where a `mlx.yaml` that matters cannot be read, nothing is said of
    any stage: it may make what the others take. With a `provision`, data may be missing, and what that brings is asked
    for.
    """
    with project.cache.offline():
        found = _project_status(project, reporter, targets, folder, provision, outside)
    return found._replace(may_be_missing=provision is not None)


def _project_status(
    project: Project,
    reporter: Reporter,
    targets: Sequence[str],
    folder: str,
    provision: Provision | None,
    outside: Outside,
) -> ProjectStatus:
    snapshot = workspace_snapshot(project)
    tell_unfinished(project, reporter)
    told: dict[str, MlxError] = {}
    scope = _part(snapshot, targets, folder, told, reporter) if targets else _whole(snapshot, told)
    if not targets and scope.graph is not None and (left := find_left_lines(project.root, snapshot)):
        reporter.note(tell_left_lines(project.root, left))
    reporter.start("checking", None, "files")
    if scope.graph is None or not scope.order:
        with open_scanner(project, reporter=reporter) as scanner:
            data, problems = data_status(project, snapshot, scanner.look, scanner, scope.data)
        return ProjectStatus(data, (), tuple({error.message: error for error in (*told.values(), *problems)}.values()))
    graph, stages = scope.graph, scope.graph.stages
    with open_observer(project, snapshot, graph, reporter=reporter, provision=provision, outside=outside) as observer:
        data, problems = data_status(project, snapshot, observer.look, observer.trees, scope.data)  # each is seen once
        told |= {error.message: error for error in problems}
        judged = [_judge(observer, stages[address], told) for address in scope.order]
    _tell_unasked(judged, reporter)
    shown = tuple(decision for decision in judged if decision.stage.address in scope.shown)
    untracked = untracked_outputs(project, snapshot, (decision.stage for decision in shown))
    return ProjectStatus((*data, *untracked), shown, tuple(told.values()))


def _tell_unasked(judged: Iterable[Decision], reporter: Reporter) -> None:
    """Tell of URLs that may be others by now, for which `mlx run` might run a stage that is up to date here."""
    fresh = (each for each in judged if each.action is not Action.RUN and not each.stage.frozen)
    urls = {url for decision in fresh for url in decision.wanted.unasked}
    if urls:
        what = f"`{next(iter(urls))}` counts as its lock" if len(urls) == 1 else f"{len(urls)} URLs count as the locks"
        reporter.note(f"{what} recorded {'it' if len(urls) == 1 else 'them'}: `mlx run --dry-run` asks for more")


class _Scope(NamedTuple):
    """What is looked at: the tracked paths `data`, the stages of `order`, of which the ones to be `shown`.

    None as `data` is all, and None as `graph` that there can be none.
    """

    data: tuple[str, ...] | None
    graph: Graph | None
    order: tuple[str, ...] = ()
    shown: Collection[str] = ()


def _whole(snapshot: Snapshot, told: dict[str, MlxError]) -> _Scope:
    """Return a scope of everything; `told` gets why there can be no graph."""
    try:
        graph = stage_graph(snapshot)
    except RecordError as error:
        told[error.message] = error
        return _Scope(None, None)
    return _Scope(None, graph, tuple(graph.stages), graph.stages.keys())


def _part(
    snapshot: Snapshot, targets: Sequence[str], folder: str, told: dict[str, MlxError], reporter: Reporter
) -> _Scope:
    """Return a scope of what `targets` name; `told` gets why there can be no graph."""
    tracked = {target: _tracked_at(snapshot, target, folder) for target in targets}
    data = tuple(sorted({path for paths in tracked.values() for path in paths}))
    reach = Reach(folder=folder)
    try:
        words = [target for target in targets if not tracked[target] or names_stages(snapshot, target, reach)]
        if not words:
            return _Scope(data, None)
        survey = survey_stages(snapshot, words, reach, reporter.note)
    except RecordError as error:
        told[error.message] = error
        return _Scope(data, None)
    except UsageError as error:
        raise UsageError(f"{error.message}, and no tracked data of that name", hint=error.marked_hint) from error
    return _Scope(data, survey.graph, survey.selected.order, survey.selected.named)


def _tracked_at(snapshot: Snapshot, target: str, folder: str) -> list[str]:
    """Return the tracked paths that a target names, lies in, or holds."""
    for path in meant_paths(target.removesuffix(".mlx"), folder):
        inside, above = f"{path}/" if path else "", {*folders_above(path), path}
        if found := [owner for owner in snapshot.pointer_paths if owner.startswith(inside) or owner in above]:
            return found
    return []


def _judge(observer: Observer, stage: Stage, told: dict[str, MlxError]) -> Decision:
    """Return the decision for a stage; `told` gets what keeps it from being made, as it will keep it from running."""
    try:
        return observer.decide(stage, judging=True)
    except UsageError as error:
        told.setdefault(error.message, error)
        return observer.note(Decision(stage, Action.RUN, (error.message,), Wanted((), {}), None, None))


def plan_project(
    project: Project,
    snapshot: Snapshot,
    targets: Sequence[str] = (),
    *,
    reach: Reach = PLAINLY,
    force: bool = False,
    run_cache: bool = True,
    provision: Provision | None = None,
    reporter: Reporter = SILENT,
    outside: Outside = AS_RECORDED,
) -> tuple[Decision, ...]:
    """Return the decision for each stage that `targets` (none: all) and `reach` mean, in run order."""
    options: dict[str, Any] = {"force": force, "run_cache": run_cache, "provision": provision, "outside": outside}
    return plan_survey(project, snapshot, targets, reach, **options, reporter=reporter).decisions


class Plan(NamedTuple):
    """What was selected, and the decision for each stage that is to be brought up to date, in run order."""

    survey: Survey
    decisions: tuple[Decision, ...]


def plan_survey(
    project: Project,
    snapshot: Snapshot,
    targets: Sequence[str],
    reach: Reach,
    *,
    force: bool = False,
    run_cache: bool = True,
    provision: Provision | None = None,
    reporter: Reporter = SILENT,
    outside: Outside = AS_RECORDED,
) -> Plan:
    """Return the plan for the stages that `targets` (none: all) and `reach` mean; changes nothing."""
    tell_unfinished(project, reporter)
    survey = survey_stages(snapshot, targets, reach, reporter.note)
    graph, selected = survey.graph, survey.selected
    if not selected.order:
        return Plan(survey, ())
    if provision is not None:
        provision.named = frozenset(selected.named if targets else ())
    with open_observer(
        project, snapshot, graph, reporter=reporter, run_cache=run_cache, provision=provision, outside=outside
    ) as observer:
        outside.prepare(graph.stages[address] for address in (*selected.left, *selected.order))
        leave_stages(observer, survey, reporter.note)
        planned = plan_stages(observer, graph, selected.order, selected.forced(force=force))
        for decision in planned if provision is not None else ():
            if decision.action is Action.RUN:
                observer.provide(decision)
    return Plan(survey, planned)
