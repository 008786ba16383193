"""`mlx.yaml`: the stages that people declare, read strictly and filled in.

Reading gives `Stage` values with every `${name}` replaced, every matrix spelled out and every path relative to the
project. What a single value means is `filling`'s, editing the text `stage_text`'s; whether files exist, what must run
and in which order is decided above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlops_cli.documents import Fields, Place, check_version, describe, parse_yaml
from mlops_cli.records.conditions import read_when
from mlops_cli.records.conduct_reading import KEYS, read_conduct, read_resources
from mlops_cli.records.environment import UNSAID
from mlops_cli.records.environment_reading import read_environment
from mlops_cli.records.filling import ValueReader
from mlops_cli.records.input_reading import read_deps, read_env, read_params, read_pass_env
from mlops_cli.records.instances import FOREACH, MATRIX, read_instances, refuse_do, shared_output
from mlops_cli.records.names import Parsed, ReadFile, params_of, read_names
from mlops_cli.records.notebooks import with_notebooks
from mlops_cli.records.output_reading import read_metrics_files, read_outputs, read_plots, read_repetition
from mlops_cli.records.paths import project_folder
from mlops_cli.records.splices import expand_command
from mlops_cli.records.stages import Pipeline, Stage

MAX_NAME = 200  # the lock's file name is the stage's name and `.yaml`

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_STAGE_KEYS = (
    "desc",
    MATRIX,
    FOREACH,
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
    "environment",
)


def read_pipeline(
    data: bytes, name: str, *, folder: str, read_file: ReadFile, parsed: Parsed | None = None
) -> Pipeline:
    """Read the `mlx.yaml` called `name` in `folder`; RecordError names the line of whatever cannot be right.

    `read_file` returns the bytes of a file of `vars` by its path in the project, or None when it does not exist;
    `parsed` keeps what was read of them, for other files of the project.
    """
    document = parse_yaml(data, name)
    fields = Fields(document, what=f"`{name}`")
    check_version(fields)
    fields.only(("mlx", "vars", "stages", "metrics", "resources", "environment"))
    parsed = {} if parsed is None else parsed
    names = read_names(fields, data, folder, read_file, parsed)
    reader = ValueReader(document, folder, names, params_of(folder, read_file, parsed))
    declared = fields.mapping("stages") if fields.raw("stages") is not None else None
    stages = tuple(
        stage for key in (declared.values if declared else ()) for stage in _read_group(reader, ("stages", key), key)
    )
    if (general := read_environment(reader, fields)) != UNSAID:
        stages = tuple(stage._replace(environment=stage.environment.over(general)) for stage in stages)
    return Pipeline(stages, read_metrics_files(reader, fields), name, read_resources(reader, fields))


def _read_group(reader: ValueReader, at: Place, name: str) -> Iterator[Stage]:
    """Yield the stage called `name`, or every instance of its matrix or foreach."""
    document = reader.document
    if not _STAGE_NAME.match(name):
        hint = "use letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
        raise document.error(f"`{name}` cannot be the name of a stage", at, hint)
    fields = Fields(document, at, what=f"stage `{name}`")
    refuse_do(fields)
    fields.only(_STAGE_KEYS)
    instances = read_instances(reader, fields, name)
    if instances is None:
        yield _read_stage(reader, fields, name)
        return
    made = [(instance, _read_stage(filled, fields, own)) for instance, filled, own in instances]
    shared = shared_output(fields, made)
    if shared is not None:
        raise shared
    yield from (stage for _, stage in made)


def _read_stage(reader: ValueReader, fields: Fields, name: str) -> Stage:
    document, folder = reader.document, reader.folder
    if len(name) > MAX_NAME:
        raise fields.error(f"stage name `{name[:40]}…` is longer than {MAX_NAME} characters", hint="use shorter names")
    metrics, plots = read_metrics_files(reader, fields), read_plots(reader, fields)
    always, frozen = read_repetition(fields)
    deps, urls = read_deps(reader, fields)
    stage = Stage(
        address=f"{folder}:{name}" if folder else name,
        name=name,
        folder=folder,
        group=name.partition("@")[0],
        cmd=_read_cmd(reader, fields),
        deps=deps,
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
        urls=urls,
        environment=read_environment(reader, fields),
    )
    return with_notebooks(fields, stage)


def _read_wdir(reader: ValueReader, fields: Fields) -> str:
    text = reader.optional_text(fields, "wdir") if fields.has("wdir") else "."
    return reader.path(text, (*fields.at, "wdir"), project_folder)


def _read_cmd(reader: ValueReader, fields: Fields) -> tuple[str, ...]:
    if not fields.has("cmd"):
        fields.text("cmd")  # raises: it is missing
    at = (*fields.at, "cmd")
    raw = fields.raw("cmd")
    value = reader.whole(raw, at)
    if isinstance(value, dict):
        raise fields.error(f"`cmd` must be text, not {describe(value)}", "cmd", "flags follow a program")
    if isinstance(value, list):
        lines = tuple(text for text, _ in reader.listed(fields, "cmd", expand_command))
    else:
        lines = (reader.text(raw, at, expand_command),)
    if not lines or not all(line.strip() for line in lines):
        raise fields.error("`cmd` must not be empty", "cmd", "write the command that makes the outputs")
    return lines
