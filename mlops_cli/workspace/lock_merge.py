"""Two versions of a lock: one of them stands, never a mixture.

A lock says that certain inputs gave certain outputs, and somebody saw it happen. A merged one would say so of a run
that nobody did, and `mlx run` would believe it. So the lock is chosen whose inputs are what the inputs of both sides
come to; where neither is, the inputs are not as either says, and the next `mlx run` finds that out by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlops_cli.records.locks import Lock, inputs_of
from mlops_cli.workspace.sides import Side, Sides

Fact = tuple[object, ...]


def choose_lock(sides: Sides[Lock]) -> tuple[Side, bool]:
    """Return the side whose lock stands, and whether its inputs are those that both sides come to.

    Neither side may be None; ours stands where nothing speaks for theirs.
    """
    assert sides.ours is not None
    assert sides.theirs is not None
    merged = _merged_inputs(sides)
    fitting = [side for side in Side if dict(_facts(_inputs(sides.of(side)))) == merged]
    if not fitting:
        return Side.OURS, False
    # Of two with the same inputs, one that tells of a run, whose inputs were not edited meanwhile.
    sound = [side for side in fitting if (lock := sides.of(side)) and not (lock.changed_during_run or lock.accepted)]
    return (sound or fitting)[0], True


def _merged_inputs(sides: Sides[Lock]) -> dict[Fact, object] | None:
    """Return what decides the outputs, as both sides come to it; None when they changed one input differently."""
    base, ours, theirs = (dict(_facts(_inputs(side))) for side in sides)
    merged: dict[Fact, object] = {}
    for place in ours.keys() | theirs.keys() | base.keys():
        fact = Sides(*(side.get(place) for side in (base, ours, theirs)))
        side = fact.settled()
        if side is None:
            return None
        if (value := fact.of(side)) is not None:
            merged[place] = value
    return merged


def _inputs(lock: Lock | None) -> dict[str, object]:
    return {} if lock is None else inputs_of(lock)


def _facts(value: object, place: Fact = ()) -> Iterator[tuple[Fact, object]]:
    """Yield each input with its place: a dependency by its path, a parameter by file and key, all else as it is."""
    if isinstance(value, Mapping) and len(place) < 3:
        for key, inner in value.items():
            yield from _facts(inner, (*place, key))
    elif isinstance(value, list) and len(place) == 1 and all(isinstance(item, list) and item for item in value):
        yield from (((*place, item[0]), item[1:]) for item in value)
    else:
        # As a tuple: an input that is None is still there.
        yield place, (value,)
