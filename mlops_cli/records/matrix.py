"""The instances of a stage: every combination of a `matrix`, every item of a `foreach`. Pure functions over values.

`exclude` and `include` mean what they mean to GitHub Actions: first each combination goes that one item of `exclude`
matches in part; then each item of `include` adds its values to the combinations it matches, without changing what an
axis says, or is a combination of its own when it matches none.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.documents import Place, describe, nearest
from mlops_cli.records.templates import NAME, TemplateError, render

MAX_INSTANCES = 10_000
MAX_MATCHES = 1_000_000  # of items of `include` and `exclude` with combinations
MAX_COMPARISONS = 5_000_000  # of those items with values of axes
INCLUDE, EXCLUDE = "include", "exclude"

_NOT_IN_SUFFIX = re.compile(r"[^A-Za-z0-9_.+-]")
_KEY = re.compile(rf"{NAME}\Z")

Axes = Mapping[str, Sequence[object]]
Positions = tuple[int, ...]


class Instance(NamedTuple):
    """One combination of a matrix, or item of a foreach: `suffix` follows the `@` in the stage's name."""

    suffix: str
    values: Mapping[str, object]


def combine(axes: Axes, exclude: Sequence[object] = (), include: Sequence[object] = ()) -> tuple[Instance, ...]:
    """Return every combination of the axes' values, the last axis varying fastest, each with a suffix of its own.

    Those that `include` makes come last. TemplateError for an axis without values, more than `MAX_INSTANCES`, an empty
    value, two equal suffixes, and items of `exclude` and `include` that are no mappings or mean nothing here.
    """
    _check(axes, exclude, include)
    labelled = [[(_label(axis, i, value), value) for i, value in enumerate(axes[axis])] for axis in axes]
    chosen: dict[Positions, Instance] = {}
    removed = _excluded(axes, exclude)
    for at, choice in zip(_all_positions(axes), itertools.product(*labelled), strict=True):
        if axes and at not in removed:
            values = dict(zip(axes, (value for _, value in choice), strict=True))
            chosen[at] = Instance("-".join(label for label, _ in choice), values)
    added = _included(axes, chosen, include) if include else []
    return _distinct([*chosen.values(), *added])


def each_of(values: Sequence[object] | Mapping[str, object]) -> tuple[Instance, ...]:
    """Return an instance for each item, which is its `item`, with its `key`.

    Named by the key of a mapping; in a list by the item, or when one of them is a list or mapping by position.
    TemplateError as of `combine`.
    """
    if not values:
        raise TemplateError("`foreach` is empty", "give it at least one item")
    if len(values) > MAX_INSTANCES:
        raise TemplateError(f"`foreach` makes {len(values):,} stages, more than {MAX_INSTANCES:,}", "use fewer items")
    if isinstance(values, Mapping):
        named = [(_spell_label(key, "`foreach`"), key, item) for key, item in values.items()]
    else:
        by_position = any(isinstance(item, list | dict) for item in values)
        labels = [str(i) if by_position else _spell_label(item, "`foreach`") for i, item in enumerate(values)]
        named = list(zip(labels, labels, values, strict=True))
    return _distinct([Instance(label, {"key": key, "item": item}) for label, key, item in named])


def _check(axes: Axes, exclude: Sequence[object], include: Sequence[object]) -> None:
    if not axes and not include:
        raise TemplateError("`matrix` has no axes", "add one: `model: [a, b]`")
    for axis, values in axes.items():
        if not values:
            raise TemplateError(f"axis `{axis}` has no values", "give it at least one")
    count = math.prod(len(values) for values in axes.values())
    if max(count, len(include)) > MAX_INSTANCES:
        many = max(count, len(include))
        raise TemplateError(f"`matrix` makes {many:,} stages, more than {MAX_INSTANCES:,}", "use fewer values")
    if (len(exclude) + len(include)) * sum(map(len, axes.values())) > MAX_COMPARISONS:
        raise _too_much_work()
    for key, items in ((EXCLUDE, exclude), (INCLUDE, include)):
        for index, item in enumerate(items):
            _check_item(axes, key, index, item)


def _check_item(axes: Axes, key: str, index: int, item: object) -> None:
    what, at = f"`{key}[{index}]`", (key, index)
    if not isinstance(item, dict):
        hint = f"such as `{key}: [{{model: forest, seed: 1}}]`; an axis cannot be called `{key}`"
        raise TemplateError(f"{what} must be a mapping from axes to values, not {describe(item)}", hint, at)
    if not item:
        raise TemplateError(f"{what} is empty", "name the values, or take it out", at)
    for name in item:
        if not _KEY.match(name):
            hint = "use letters, digits, `_` and `-`"
            raise TemplateError(f"`{name}` in {what} cannot be a name", hint, (*at, name))
        if key == EXCLUDE and name not in axes:
            near = nearest(name, axes)
            hint = f"did you mean `{near}`?" if near else "the axes are " + ", ".join(f"`{axis}`" for axis in axes)
            hint = hint if axes else "`include` comes after `exclude`: leave out what is not to be there"
            raise TemplateError(f"{what} names `{name}`, which is no axis", hint, (*at, name))


def _all_positions(axes: Axes) -> Iterator[Positions]:
    return itertools.product(*(range(len(values)) for values in axes.values()))


def _excluded(axes: Axes, exclude: Sequence[object]) -> set[Positions]:
    """Return the combinations that an item of `exclude` matches; each item must match one."""
    removed: set[Positions] = set()
    matches = 0
    for index, item in enumerate(exclude):
        assert isinstance(item, dict)
        found = _matching(axes, item)
        matches += math.prod(len(positions) for positions in found)
        _refuse_work(matches)
        lacking = next((axis for axis, positions in zip(axes, found, strict=True) if not positions), None)
        if lacking is not None:
            raise _matches_nothing(f"`{EXCLUDE}[{index}]`", lacking, item[lacking], axes[lacking], (EXCLUDE, index))
        removed.update(itertools.product(*found))
    if axes and len(removed) == math.prod(len(values) for values in axes.values()):
        raise TemplateError("`exclude` leaves no combination", "exclude fewer", (EXCLUDE,))
    return removed


def _included(axes: Axes, chosen: Mapping[Positions, Instance], include: Sequence[object]) -> list[Instance]:
    """Add the values of `include` to the combinations of `chosen`; returns those that are new."""
    added = []
    matches = 0
    for index, item in enumerate(include):
        assert isinstance(item, dict)
        found = _matching(axes, item) if axes else [()]
        matches += math.prod(len(positions) for positions in found)
        _refuse_work(matches)
        met = [chosen[at] for at in itertools.product(*found) if at in chosen]
        for instance in met:
            assert isinstance(instance.values, dict)
            instance.values.update((name, value) for name, value in item.items() if name not in axes)
        if not met:
            added.append(Instance(_own_suffix(axes, index, item), item))
    return added


def _own_suffix(axes: Axes, index: int, item: Mapping[str, object]) -> str:
    """Return the name of a combination that `include` makes: its values but empty ones, those of axes first."""
    names = [*(axis for axis in axes if axis in item), *(name for name in item if name not in axes)]
    position = {name: len(axes.get(name, ())) + index for name in names}
    labels = [_label(name, position[name], item[name]) for name in names if item[name] is not None and item[name] != ""]
    if not labels:
        raise TemplateError(f"`{INCLUDE}[{index}]` has no value to name a stage by", "add one", (INCLUDE, index))
    return "-".join(labels)


def _matching(axes: Axes, item: Mapping[str, object]) -> list[Sequence[int]]:
    """Return for each axis the positions of the values that `item` matches: all, where it says nothing of the axis."""
    return [
        [i for i, value in enumerate(values) if _matches(item[axis], value)] if axis in item else range(len(values))
        for axis, values in axes.items()
    ]


def _matches(wanted: object, value: object) -> bool:
    """Say whether `value` is what is wanted, with its type; of a mapping, whether it has all that is wanted."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(k in value and _matches(w, value[k]) for k, w in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_matches(w, v) for w, v in zip(wanted, value, strict=True))
        )
    return type(wanted) is type(value) and wanted == value


def _matches_nothing(what: str, axis: str, wanted: object, values: Sequence[object], at: Place) -> TemplateError:
    plain = {render(value, "it"): value for value in values if value is not None and not isinstance(value, list | dict)}
    shown = "something" if wanted is None or isinstance(wanted, list | dict) else render(wanted, "it")
    message = f"{what} matches nothing: axis `{axis}` has no value `{shown}`"
    if shown in plain:
        return TemplateError(
            message, f"there it is {describe(plain[shown])}, here {describe(wanted)}: quote both or none", (*at, axis)
        )
    near = nearest(shown, plain)
    listed = ", ".join(f"`{value}`" for value in itertools.islice(plain, 12))
    hint = f"did you mean `{near}`?" if near else f"it has {listed}" if listed else "name all or some of its keys"
    return TemplateError(message, hint, (*at, axis))


def _refuse_work(matches: int) -> None:
    if matches > MAX_MATCHES:
        raise _too_much_work()


def _too_much_work() -> TemplateError:
    return TemplateError("`exclude` and `include` have too many items for this matrix", "say the same with fewer")


def _label(axis: str, index: int, value: object) -> str:
    """Return a value's part of the stage's name; a list or mapping goes by its axis and position."""
    if isinstance(value, list | dict):
        return f"{axis}{index}"
    return _spell_label(value, f"axis `{axis}`")


def _spell_label(value: object, what: str) -> str:
    if value is None or value == "":
        raise TemplateError(f"{what} holds an empty value", "give it a value, or take it out")
    return _NOT_IN_SUFFIX.sub("_", render(value, what))


def _distinct(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Return the instances; TemplateError when there are too many, or two of one name."""
    if len(instances) > MAX_INSTANCES:
        message = f"`matrix` makes {len(instances):,} stages, more than {MAX_INSTANCES:,}"
        raise TemplateError(message, "use fewer values")
    found: dict[str, Instance] = {}
    for instance in instances:
        if found.setdefault(instance.suffix, instance) is not instance:
            raise _clash(found[instance.suffix], instance)
    return tuple(instances)


def _clash(one: Instance, other: Instance) -> TemplateError:
    spelled = [
        ", ".join(f"{axis}={value if len(str(value)) < 80 else '…'}" for axis, value in instance.values.items())
        for instance in (one, other)
    ]
    return TemplateError(
        f"`{spelled[0]}` and `{spelled[1]}` would both be named `@{one.suffix}`",
        "make the values differ in letters, digits, `.`, `_`, `+` or `-`",
    )
