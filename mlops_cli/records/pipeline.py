"""`mlx.yaml`: the stages that people declare, read strictly and filled in.

Reading gives `Stage` values with every `${name}` replaced, every matrix spelled out and every path relative to the
project. What a single value means is `filling`'s, editing the text `stage_text`'s; whether files exist, what must run
and in which order is decided above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from mlops_cli.documents import Document, Fields, Place, check_version, describe, parse_values, parse_yaml
from mlops_cli.errors import RecordError
from mlops_cli.records.conditions import read_when
from mlops_cli.records.conduct_reading import KEYS, read_conduct, read_resources
from mlops_cli.records.filling import ValueReader
from mlops_cli.records.input_reading import read_deps, read_env, read_params, read_pass_env
from mlops_cli.records.output_reading import read_metrics_files, read_outputs, read_plots, read_repetition
from mlops_cli.records.paths import project_folder
from mlops_cli.records.stages import PARAMS_FILE, Pipeline, Stage
from mlops_cli.records.templates import NAME, Instance, TemplateError, combine, expand_deep

MAX_NAME = 200  # the lock's file name is the stage's name and `.yaml`

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_AXIS_NAME = re.compile(rf"{NAME}\Z")
_STAGE_KEYS = (
    "desc",
    "matrix",
    "cmd",
    "wdir",
    "deps",
    "params",
    "outs",
    "metrics",
    "plots",
    "env",
    "when",
    "pass_env",
    *KEYS,
    "always",
    "frozen",
)

ReadFile = Callable[[str], bytes | None]


def read_pipeline(data: bytes, name: str, *, folder: str, read_file: ReadFile) -> Pipeline:
    """Read the `mlx.yaml` called `name` in `folder`; RecordError names the line of whatever cannot be right.

    `read_file` returns the bytes of a file of `vars` by its path in the project, or None when it does not exist.
    """
    document = parse_yaml(data, name)
    fields = Fields(document, what=f"`{name}`")
    check_version(fields)
    fields.only(("mlx", "vars", "stages", "metrics", "resources"))
    reader = ValueReader(document, folder, _read_vars(fields, folder, read_file), _params_of(folder, read_file))
    declared = fields.mapping("stages") if fields.raw("stages") is not None else None
    stages = tuple(
        stage for key in (declared.values if declared else ()) for stage in _read_group(reader, ("stages", key), key)
    )
    return Pipeline(stages, read_metrics_files(reader, fields), name, read_resources(reader, fields))


def _params_of(folder: str, read_file: ReadFile) -> Callable[[], Mapping[str, object]]:
    """Return what reads the parameters of `folder`, once and only when asked for."""

    @cache
    def read() -> Mapping[str, object]:
        path = f"{folder}/{PARAMS_FILE}" if folder else PARAMS_FILE
        data = read_file(path)
        value = None if data is None else parse_values(data, path).value
        return value if isinstance(value, dict) else {}

    return read


def _read_vars(fields: Fields, folder: str, read_file: ReadFile) -> dict[str, object]:
    """Return the names that `vars` defines; a mapping's values may use names defined above them."""
    value = fields.raw("vars", [])
    if not isinstance(value, list | dict):
        raise fields.error(f"`vars` must be a mapping, or a list of files and mappings, not {describe(value)}", "vars")
    names: dict[str, object] = {}
    sources = [(value, ("vars",))] if isinstance(value, dict) else [(v, ("vars", i)) for i, v in enumerate(value)]
    for source, at in sources:
        if isinstance(source, dict):
            _define(fields.document, names, source, at)
        else:
            _define_file(fields, names, at, folder, read_file)
    return names


def _define(document: Document, names: dict[str, object], source: Mapping[str, object], at: Place) -> None:
    for name, value in source.items():
        if name in names:
            raise document.error(f"`{name}` is defined twice in `vars`", (*at, name), "rename one of them")
        try:
            names[name] = expand_deep(value, names)
        except TemplateError as error:
            raise document.error(str(error), (*at, name), error.hint) from error


def _define_file(fields: Fields, names: dict[str, object], at: Place, folder: str, read_file: ReadFile) -> None:
    document = fields.document
    text = fields.check_text(fields.items("vars")[int(at[-1])], "vars", int(at[-1]))
    reader = ValueReader(document, folder, {})
    path = reader.value_file(text, at)
    data = read_file(path)
    if data is None:
        raise document.error(f"`{path}`, named in `vars`, does not exist", at, "create it, or take it out of `vars`")
    values = parse_values(data, path).value
    if not isinstance(values, dict):
        raise RecordError(f"{path}:1: a file of `vars` must hold a mapping, not {describe(values)}")
    for name in values:
        if name in names:
            raise document.error(f"`{name}`, from `{path}`, is defined twice in `vars`", at, "rename one of them")
    names.update(values)


def _read_group(reader: ValueReader, at: Place, name: str) -> Iterator[Stage]:
    """Yield the stage called `name`, or every instance of its matrix."""
    document = reader.document
    if not _STAGE_NAME.match(name):
        hint = "use letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
        raise document.error(f"`{name}` cannot be the name of a stage", at, hint)
    fields = Fields(document, at, what=f"stage `{name}`")
    fields.only(_STAGE_KEYS)
    if not fields.has("matrix"):
        yield _read_stage(reader, fields, name)
        return
    axes = _read_axes(reader, fields)
    try:
        instances = combine(axes)
    except TemplateError as error:
        raise document.error(str(error), (*at, "matrix"), error.hint) from error
    made = []
    for instance in instances:
        filled = replace(reader, names={**reader.names, **instance.values})
        made.append((instance, _read_stage(filled, fields, f"{name}@{instance.suffix}")))
    _refuse_shared(fields, made)
    yield from (stage for _, stage in made)


def _refuse_shared(fields: Fields, made: Sequence[tuple[Instance, Stage]]) -> None:
    """Refuse an output that several instances of one matrix make."""
    makers: dict[str, list[tuple[Instance, Stage]]] = {}
    for instance, stage in made:
        for out in stage.outs:
            makers.setdefault(out.path, []).append((instance, stage))
    for path, ((first, one), *others) in makers.items():
        if others:
            axes = [axis for axis, value in first.values.items() if any(i.values[axis] != value for i, _ in others)]
            raise fields.error(
                f"stages `{one.address}` and `{others[0][1].address}` both make `{path}`",
                hint=f"put {' and '.join(f'`${{{axis}}}`' for axis in axes)} in it",
            )


def _read_axes(reader: ValueReader, fields: Fields) -> dict[str, list[object]]:
    matrix = Fields(fields.document, (*fields.at, "matrix"))
    axes: dict[str, list[object]] = {}
    for axis, raw in matrix.values.items():
        if not _AXIS_NAME.match(axis):
            raise matrix.error(f"`{axis}` cannot be the name of an axis", axis, "use letters, digits, `_` and `-`")
        at = (*matrix.at, axis)
        value = reader.value(raw, at)
        if not isinstance(value, list):
            raise matrix.error(f"axis `{axis}` must be a list (`[a, b]`), not {describe(value)}", axis)
        try:
            axes[axis] = value if value is not raw else [expand_deep(item, reader.names) for item in value]
        except TemplateError as error:
            raise matrix.error(str(error), axis, error.hint) from error
    return axes


def _read_stage(reader: ValueReader, fields: Fields, name: str) -> Stage:
    document, folder = reader.document, reader.folder
    if len(name) > MAX_NAME:
        raise fields.error(f"stage name `{name[:40]}…` is longer than {MAX_NAME} characters", hint="use shorter names")
    metrics, plots = read_metrics_files(reader, fields), read_plots(reader, fields)
    always, frozen = read_repetition(fields)
    return Stage(
        address=f"{folder}:{name}" if folder else name,
        name=name,
        folder=folder,
        group=name.partition("@")[0],
        cmd=_read_cmd(reader, fields),
        deps=read_deps(reader, fields),
        params=read_params(reader, fields),
        outs=read_outputs(reader, fields, [*metrics, *(plot.path for plot in plots)]),
        metrics=metrics,
        plots=plots,
        env=read_env(reader, fields),
        wdir=_read_wdir(reader, fields),
        desc=reader.optional_text(fields, "desc"),
        line=document.line(fields.at),
        file=document.name,
        conduct=read_conduct(reader, fields),
        when=read_when(reader, fields),
        pass_env=read_pass_env(reader, fields),
        always=always,
        frozen=frozen,
    )


def _read_wdir(reader: ValueReader, fields: Fields) -> str:
    text = reader.optional_text(fields, "wdir") if fields.has("wdir") else "."
    return reader.path(text, (*fields.at, "wdir"), project_folder)


def _read_cmd(reader: ValueReader, fields: Fields) -> tuple[str, ...]:
    if not fields.has("cmd"):
        fields.text("cmd")  # raises: it is missing
    at = (*fields.at, "cmd")
    raw = fields.raw("cmd")
    if isinstance(reader.value(raw, at), list):
        lines = tuple(text for text, _ in reader.listed(fields, "cmd"))
    else:
        lines = (reader.text(raw, at),)
    if not lines or not all(line.strip() for line in lines):
        raise fields.error("`cmd` must not be empty", "cmd", "write the command that makes the outputs")
    return lines
