"""The stages that a command is about, with the graph they stand in, and those that it leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.pipeline.graph import Graph, build_graph
from mlops_cli.pipeline.inputs import Observer, stage_graph
from mlops_cli.pipeline.needed import read_needed
from mlops_cli.pipeline.selection import PLAINLY, Reach, Selected, choose, refuse_contradictions, select_stages
from mlops_cli.progress import SILENT
from mlops_cli.words import NAMED, naming, quoted, so_for
from mlops_cli.workspace.snapshot import Snapshot


class Survey(NamedTuple):
    """A graph, what was selected of it, and what pipelines say there is of each resource.

    The graph has all that is selected and whatever that needs; it need not have the other stages of the project.
    """

    graph: Graph
    selected: Selected
    resources: Mapping[str, float]


def survey_stages(
    snapshot: Snapshot,
    targets: Sequence[str] = (),
    reach: Reach = PLAINLY,
    note: Callable[[str], None] = SILENT.note,
) -> Survey:
    """Return what `targets` (none: all stages) and `reach` mean; UsageError, RecordError.

    Files that are not needed are not read; one that is wrong is noted when it is in the way.
    """
    refuse_contradictions(targets, reach)
    try:
        needed = read_needed(snapshot, targets, reach, note)
    except RecordError:
        raise
    except UsageError:
        with suppress(RecordError):  # with all that can be known, the hint is better
            select_stages(stage_graph(snapshot), targets, reach)
        raise
    graph = build_graph(needed.stages, snapshot.pointer_paths)
    return Survey(graph, select_stages(graph, targets, reach), needed.resources)


def names_stages(snapshot: Snapshot, target: str, reach: Reach) -> bool:
    """Say whether a target names stages; RecordError where a file that may declare them cannot be read."""
    try:
        needed = read_needed(snapshot, [target], reach, SILENT.note)
        return bool(choose(build_graph(needed.stages, snapshot.pointer_paths), [target], reach.folder))
    except RecordError:
        raise
    except UsageError:
        return False


def leave_stages(observer: Observer, survey: Survey, note: Callable[[str], None]) -> None:
    """Let the observer take what is left above the selected stages as it is; tell what of it is not up to date."""
    graph, selected = survey.graph, survey.selected
    due = [address for address in selected.left if not observer.leave(graph.stages[address])]
    if not due:
        return
    are, they, them = ("is", "it", "it") if len(due) == 1 else ("are", "they", "them")
    note(
        f"{naming(due)} {are} not up to date, and left so: what {they} made before is used "
        f"(`mlx run {' '.join(map(quoted, due[:NAMED]))}` brings {them} up to date{so_for(due[NAMED:])})"
    )
