"""Reading what makes several stages of one declaration: its `matrix` or its `foreach`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mlops_cli.documents import Fields, describe
from mlops_cli.errors import RecordError
from mlops_cli.records.filling import ValueReader
from mlops_cli.records.matrix import EXCLUDE, INCLUDE, Instance, combine, each_of
from mlops_cli.records.stages import Stage
from mlops_cli.records.templates import NAME, TemplateError

MATRIX, FOREACH = "matrix", "foreach"

_NONE: frozenset[str] = frozenset()
_AXIS_NAME = re.compile(rf"{NAME}\Z")


def read_instances(
    reader: ValueReader, fields: Fields, name: str
) -> Iterator[tuple[Instance, ValueReader, str]] | None:
    """Yield each instance, a reader that knows its values, and its name; None for a stage that stands for itself."""
    key = MATRIX if fields.has(MATRIX) else FOREACH
    if not fields.has(key):
        return None
    if fields.has(MATRIX) and fields.has(FOREACH):
        hint = "make the items of `foreach` an axis of `matrix`"
        raise fields.error(f"{fields.what} has `matrix` and `foreach`", FOREACH, hint)
    try:
        found = combine(*_read_matrix(reader, fields)) if key == MATRIX else each_of(_read_items(reader, fields))
    except TemplateError as error:
        raise fields.document.error(str(error), (*fields.at, key, *error.at), error.hint) from error
    return _named(reader, found, name)


def refuse_do(fields: Fields) -> None:
    """Refuse `do`, as DVC writes a stage with `foreach`."""
    if FOREACH in fields.values and "do" in fields.values:
        hint = "write what is under it beside `foreach`, without `do:`"
        raise fields.error(f"`do` has no place in {fields.what}", "do", hint)


def _named(
    reader: ValueReader, instances: Sequence[Instance], name: str
) -> Iterator[tuple[Instance, ValueReader, str]]:
    every = set().union(*(instance.values for instance in instances))
    for instance in instances:
        own = f"{name}@{instance.suffix}"
        names = {**reader.names, **instance.values}
        partial = _NONE if len(instance.values) == len(every) else frozenset(every.difference(names))
        yield instance, ValueReader(reader.document, reader.folder, names, reader.params, own, partial), own


def _read_matrix(
    reader: ValueReader, fields: Fields
) -> tuple[dict[str, list[object]], Sequence[object], Sequence[object]]:
    """Return the axes, and the items of `exclude` and `include`, every name in them filled in."""
    matrix = Fields(fields.document, (*fields.at, MATRIX))
    axes: dict[str, list[object]] = {}
    for axis in matrix.values:
        if axis not in (INCLUDE, EXCLUDE):
            if not _AXIS_NAME.match(axis):
                raise matrix.error(f"`{axis}` cannot be the name of an axis", axis, "use letters, digits, `_` and `-`")
            axes[axis] = _read_list(reader, matrix, axis, f"axis `{axis}`")
    exclude, include = (
        _read_list(reader, matrix, key, f"`{key}`") if matrix.has(key) else [] for key in (EXCLUDE, INCLUDE)
    )
    return axes, exclude, include


def _read_list(reader: ValueReader, matrix: Fields, key: str, what: str) -> list[object]:
    raw = matrix.values[key]
    at = (*matrix.at, key)
    value = reader.value(raw, at)
    if not isinstance(value, list):
        raise matrix.error(f"{what} must be a list (`[a, b]`), not {describe(value)}", key)
    return value if value is not raw else [reader.deep(item, (*at, index)) for index, item in enumerate(value)]


def _read_items(reader: ValueReader, fields: Fields) -> list[object] | dict[str, object]:
    raw = fields.values[FOREACH]
    at = (*fields.at, FOREACH)
    value = reader.value(raw, at)
    if value is raw and isinstance(value, dict):
        return {key: reader.deep(item, (*at, key)) for key, item in value.items()}
    if value is raw and isinstance(value, list):
        return [reader.deep(item, (*at, index)) for index, item in enumerate(value)]
    if not isinstance(value, dict | list):
        message = f"`foreach` must be a list (`[a, b]`) or a mapping, not {describe(value)}"
        raise fields.error(message, FOREACH, "`foreach: ${name}` takes one from `vars`")
    return value


def shared_output(fields: Fields, made: Sequence[tuple[Instance, Stage]]) -> RecordError | None:
    """Return what to raise for an output that several of the instances make, or None."""
    makers: dict[str, list[tuple[Instance, Stage]]] = {}
    for instance, stage in made:
        for out in stage.outs:
            makers.setdefault(out.path, []).append((instance, stage))
    for path, ((first, one), *others) in makers.items():
        if others:
            message = f"stages `{one.address}` and `{others[0][1].address}` both make `{path}`"
            return fields.error(message, hint=f"put {' and '.join(_differing(first, [i for i, _ in others]))} in it")
    return None


def _differing(first: Instance, others: Sequence[Instance]) -> list[str]:
    """Return the names that tell `first` from the others, as they are written."""
    if {*first.values} == {"key", "item"}:
        return ["`${key}`"]
    differing = [axis for axis, value in first.values.items() if any(o.values.get(axis) != value for o in others)]
    return [f"`${{{axis}}}`" for axis in differing]
