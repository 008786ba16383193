"""The stages that a command is about, with the graph they stand in, and those that it leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.inputs import Observer, stage_graph
from mlops_cli.pipeline.selection import PLAINLY, Reach, Selected, select_stages
from mlops_cli.words import NAMED, naming, quoted, so_for
from mlops_cli.workspace.snapshot import Snapshot


class Survey(NamedTuple):
    """A graph, and what was selected of it."""

    graph: Graph
    selected: Selected


def survey_stages(snapshot: Snapshot, targets: Sequence[str] = (), reach: Reach = PLAINLY) -> Survey:
    """Return what `targets` (none: all stages) and `reach` mean; UsageError, RecordError."""
    graph = stage_graph(snapshot)
    return Survey(graph, select_stages(graph, targets, reach))


def leave_stages(observer: Observer, survey: Survey, note: Callable[[str], None]) -> None:
    """Let the observer take what is left above the selected stages as it is; tell what of it is not up to date."""
    graph, selected = survey
    due = [address for address in selected.left if not observer.leave(graph.stages[address])]
    if not due:
        return
    are, they, them = ("is", "it", "it") if len(due) == 1 else ("are", "they", "them")
    note(
        f"{naming(due)} {are} not up to date, and left so: what {they} made before is used "
        f"(`mlx run {' '.join(map(quoted, due[:NAMED]))}` brings {them} up to date{so_for(due[NAMED:])})"
    )
