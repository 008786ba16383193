"""Stages that other runs of the checkout are at, and what this run keeps others from.

A stage waits while another run makes what it takes or makes, reads what it would replace, or has its mutex. Nobody
waits with a command of his own that has to wait: so no two runs wait for one another.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlops_cli.pipeline.globs import can_descend
from mlops_cli.pipeline.graph import Graph
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.records.stages import Stage, glob_pattern, has_magic
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reservations import Reservation, Reservations


class Neighbours:
    """What one run and the others have reserved of a checkout, which must be held."""

    def __init__(self, project: Project, graph: Graph, tracked: tuple[str, ...]) -> None:
        self._graph = graph
        self._recorded = sorted({*tracked, *graph.maker})
        self._own = Reservations(project)
        self._others: tuple[Reservation, ...] = ()
        self.look_anew()

    def look_anew(self) -> None:
        """See what the others have reserved: the checkout was in other hands."""
        self._others = self._own.others()

    def ahead_of(self, stage: Stage) -> Reservation | None:
        """Return a stage of another run that makes what `stage` takes or makes, which is in the making now.

        Or one that has a mutex in common with it.
        """
        if not self._others:
            return None
        near = {stage.address, *self._graph.upstream[stage.address]}
        places = (*self._places(stage), *(out.path for out in stage.outs))
        return next(
            (
                other
                for other in self._others
                if other.stage in near
                or any(map(other.makes, places))
                or not set(other.mutex).isdisjoint(stage.conduct.mutex)
            ),
            None,
        )

    def beside(self, decision: Decision) -> Reservation | None:
        """Return a stage of another run that reads what carrying out `decision` would replace."""
        if decision.action is Action.SKIP:
            return None
        outs = [out.path for out in decision.stage.outs]
        return next((other for other in self._others if any(map(other.uses, outs))), None)

    def reserve(self, stage: Stage) -> None:
        """Keep others from what `stage` reads and makes."""
        outs = tuple(out.path for out in stage.outs)
        self._own.take(stage.address, tuple(self._places(stage)), outs, stage.conduct.mutex)

    def release(self, address: str) -> None:
        """Let others have what a stage read and made."""
        self._own.give_back(address)

    def _places(self, stage: Stage) -> Iterator[str]:
        """Yield what `stage` reads: the paths it names, and what is recorded where its globs may match."""
        for path in stage.reads:
            if not has_magic(path):
                yield path
                continue
            matches, parts = glob_pattern(path).fullmatch, path.split("/")
            yield from (p for p in self._recorded if matches(p) or can_descend(parts, p.split("/")))
