"""The instances of a matrix as one line, where so many lines would say the same: pure functions over decisions.

Only text is folded: JSON has every stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mlops_cli.words import quoted

if TYPE_CHECKING:
    from mlops_cli.pipeline.plan import Decision
    from mlops_cli.records.stages import Stage

MANY = 8  # instances of a group that are shown one by one


class Told(NamedTuple):
    """What is told of a stage, or of many of one group; off is what its `when` says no to."""

    name: str
    action: str
    reasons: tuple[str, ...]
    is_off: bool = False


def fold_names(stages: Iterable[Stage], *, most: int = MANY) -> dict[str, str]:
    """Return the name that each stage is shown by, by address: its own, or its group's when that has more than `most`.

    A group is shown with how many of it there are: `train@* (200 stages)`.
    """
    groups = {stage.address: _group(stage) for stage in stages}
    sizes = Counter(groups.values())
    return {
        address: f"{group} ({sizes[group]:,} stages)" if group and sizes[group] > most else address
        for address, group in groups.items()
    }


def fold_edges(names: Mapping[str, str], upstream: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return what each name needs, of the stages that are shown by `names`; what is in one group is not told."""
    found: dict[str, dict[str, None]] = {}
    for address, name in names.items():
        needs = found.setdefault(name, {})
        needs.update(dict.fromkeys(names[above] for above in upstream[address] if names.get(above, name) != name))
    return {name: tuple(needs) for name, needs in found.items()}


def fold_decisions(decisions: Sequence[Decision]) -> list[Told]:
    """Return what is told of decisions: one entry for all of a group with one action, where there are many of it."""
    groups = {decision.stage.address: _group(decision.stage) for decision in decisions}
    sizes = Counter(groups.values())
    together: dict[tuple[str, str, bool], list[Decision]] = {}
    for decision in decisions:
        key = groups[decision.stage.address] or decision.stage.address
        together.setdefault((key, decision.action.value, decision.stage.is_off), []).append(decision)
    told: list[Told] = []
    for (group, action, is_off), alike in together.items():
        if len(alike) <= MANY:
            told += [Told(each.stage.address, action, each.reasons, is_off) for each in alike]
            continue
        of = "" if len(alike) == sizes[group] else f" of {sizes[group]:,}"
        told.append(Told(f"{group} ({len(alike):,}{of} stages)", action, _common_reasons(group, alike), is_off))
    return told


def _common_reasons(group: str, alike: Sequence[Decision]) -> tuple[str, ...]:
    common = [reason for reason in alike[0].reasons if all(reason in each.reasons for each in alike)]
    if any(len(each.reasons) > len(common) for each in alike):
        common.append(f"{'more ' * bool(common)}reasons of each: `mlx why {quoted(group.removesuffix('@*'))}`")
    return tuple(common)


def _group(stage: Stage) -> str:
    """Return how the group of a stage with a matrix is told; empty when it has none."""
    if stage.group == stage.name:
        return ""
    return f"{stage.folder}:{stage.group}@*" if stage.folder else f"{stage.group}@*"
