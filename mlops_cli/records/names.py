"""The names that `${}` may use throughout an `mlx.yaml`: what `vars` defines, and the parameters of `params.yaml`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from mlops_cli.documents import MAX_DEPTH, MAX_NODES, Document, Fields, Place, describe, parse_values
from mlops_cli.errors import RecordError
from mlops_cli.records.filling import ValueReader
from mlops_cli.records.stages import PARAMS_FILE
from mlops_cli.records.templates import PARAMS, TemplateError, expand_deep

ReadFile = Callable[[str], bytes | None]
Parsed = dict[str, Document | None]
"""Files of values that were read before, by their path in the project; None for one that is not there."""

_NAMES_PARAMS = re.compile(rb"\$\{\s*params\b")


def read_names(fields: Fields, data: bytes, folder: str, read_file: ReadFile, parsed: Parsed) -> dict[str, object]:
    """Return the names for the `mlx.yaml` in `data`; `params` is among them when it is used, and not a name of `vars`.

    A mapping's values may use names defined above them. What is read of files is kept in `parsed`.
    """
    value = fields.raw("vars", [])
    if not isinstance(value, list | dict):
        raise fields.error(f"`vars` must be a mapping, or a list of files and mappings, not {describe(value)}", "vars")
    names: dict[str, object] = {}
    left = MAX_NODES
    sources = [(value, ("vars",))] if isinstance(value, dict) else [(v, ("vars", i)) for i, v in enumerate(value)]
    for source, at in sources:
        if isinstance(source, dict):
            left = _define(fields.document, names, source, at, left)
        else:
            _define_file(fields, names, at, folder, read_file, parsed)
    if PARAMS not in names and _NAMES_PARAMS.search(data):
        path = f"{folder}/{PARAMS_FILE}" if folder else PARAMS_FILE
        values = _read_values(path, read_file, parsed)
        names |= {} if values is None else {PARAMS: values}
    return names


def params_of(folder: str, read_file: ReadFile, parsed: Parsed) -> Callable[[], Mapping[str, object]]:
    """Return what reads the parameters of `folder`, only when asked for; none when there is no file."""
    path = f"{folder}/{PARAMS_FILE}" if folder else PARAMS_FILE
    return lambda: _read_values(path, read_file, parsed) or {}


def _define(document: Document, names: dict[str, object], source: Mapping[str, object], at: Place, left: int) -> int:
    """Add the names of a mapping, with at most `left` values between them; returns how many are left then."""
    for name, value in source.items():
        if name in names:
            raise document.error(f"`{name}` is defined twice in `vars`", (*at, name), "rename one of them")
        try:
            names[name] = expand_deep(value, names)
        except TemplateError as error:
            raise document.error(str(error), (*at, name), error.hint) from error
        left -= _weigh(names[name], left)
        if left < 0:
            raise document.error(f"`vars` comes to more than {MAX_NODES:,} values, or {MAX_DEPTH} levels", (*at, name))
    return left


def _weigh(value: object, most: int) -> int:
    """Return how many values there are in `value`, counting what references repeat; too many when it is too deep."""
    waiting, count = [(value, 1)], 0
    while waiting and count <= most:
        item, depth = waiting.pop()
        count += 1
        if isinstance(item, dict | list):
            if depth > MAX_DEPTH or len(item) > most:
                return most + 1
            waiting.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
    return count


def _define_file(
    fields: Fields, names: dict[str, object], at: Place, folder: str, read_file: ReadFile, parsed: Parsed
) -> None:
    document = fields.document
    text = fields.check_text(fields.items("vars")[int(at[-1])], "vars", int(at[-1]))
    path = ValueReader(document, folder, {}).value_file(text, at)
    values = _read_values(path, read_file, parsed)
    if values is None:
        raise document.error(f"`{path}`, named in `vars`, does not exist", at, "create it, or take it out of `vars`")
    for name in values:
        if name in names:
            raise document.error(f"`{name}`, from `{path}`, is defined twice in `vars`", at, "rename one of them")
    names.update(values)


def _read_values(path: str, read_file: ReadFile, parsed: Parsed) -> Mapping[str, object] | None:
    """Return the mapping in a file, read once; None when there is none. RecordError when it holds anything else."""
    if path not in parsed:
        data = read_file(path)
        parsed[path] = None if data is None else parse_values(data, path)
    document = parsed[path]
    if document is None:
        return None
    if document.value is None and path.endswith(PARAMS_FILE):
        return {}
    if not isinstance(document.value, dict):
        raise RecordError(f"{path}:1: a file of `vars` must hold a mapping, not {describe(document.value)}")
    return document.value
