"""Which earlier run came nearest to what a stage wants now.

Pure: of the locks of earlier runs that made the same outputs, the one whose inputs differ least is named, with every
difference. The lock that a stage has is one of them, and its differences are the reasons that are told anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mlops_cli.pipeline.changes import Describe, input_changes
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.records.locks import Lock
from mlops_cli.records.pointers import SomeObject
from mlops_cli.records.stages import Stage


class Nearest(NamedTuple):
    """How a stage's inputs differ from those of the earlier run that came nearest; not at all: its outputs are gone."""

    changes: tuple[str, ...]


def find_nearest(
    stage: Stage, wanted: Wanted, lock: Lock | None, earlier: Iterable[Lock], describe: Describe
) -> Nearest | None:
    """Return the one of `earlier` (the newest first) that differs least, if it is nearer than the stage's own lock.

    None when it is not, or there is none with the same outputs.
    """
    made = sorted(out.path for out in stage.outs)
    candidates = [other for other in earlier if sorted(out.path for out in other.outs) == made]
    if not candidates:
        return None
    best = min(candidates, key=lambda other: _distance(stage, wanted, other))
    if lock is not None and _distance(stage, wanted, best) >= _distance(stage, wanted, lock):
        return None
    return Nearest(tuple(input_changes(stage, wanted, best, describe)))


def _distance(stage: Stage, wanted: Wanted, lock: Lock) -> int:
    return len(input_changes(stage, wanted, lock, _unsaid))


def _unsaid(old: SomeObject, new: SomeObject) -> str:  # noqa: ARG001 - as `Describe` has it
    return ""
