"""A command that is a notebook: `train.ipynb [-o COPY] [-k KERNEL] [--NAME [VALUE...]]...`.

Such a line is no shell's. The notebook is an input of its stage, by its normal form, and the executed copy an output,
without being declared; the values become variables of the notebook. Who runs it is decided above.
"""

from __future__ import annotations

import keyword
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.documents import Fields, parse_scalar
from mlops_cli.records.normalizers import Normalizer
from mlops_cli.records.paths import project_path
from mlops_cli.records.stages import Dependency, Output, Stage

SUFFIX = ".ipynb"


class NotebookRun(NamedTuple):
    """What one line asks for: paths relative to where it runs; empty texts where nothing is said."""

    notebook: str
    executed: str
    kernel: str
    variables: Mapping[str, object]


def parse_notebook(command: str) -> NotebookRun | None:
    """Return what a command asks for, or None when it is the shell's; ValueError with a sentence."""
    if SUFFIX not in command:
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if not words or not words[0].endswith(SUFFIX):
        return None
    places = {"-o": "", "-k": ""}
    variables: dict[str, object] = {}
    for option, values in _options(words[1:]):
        if option.startswith("--"):
            name, equals, value = option[2:].partition("=")
            assign(variables, name, _read(([value] if equals else []) + values))
        elif len(values) != 1 or places[option]:
            raise ValueError(f"`{option}` takes one {'path' if option == '-o' else 'name'}, once")
        else:
            places[option] = values[0]
    if places["-o"] and not places["-o"].endswith(SUFFIX):
        raise ValueError(f"the executed copy `{places['-o']}` must end in `{SUFFIX}`")
    return NotebookRun(words[0], places["-o"], places["-k"], variables)


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with the words after it."""
    option, values = "", list[str]()
    for word in words:
        if word in ("-o", "-k") or word.startswith("--"):
            if option:
                yield option, values
            option, values = word, []
        elif option:
            values.append(word)
        else:
            raise ValueError(f"`{word}` has no place after a notebook: it is followed by `--NAME VALUE`, `-o` and `-k`")
    if option:
        yield option, values


def _read(words: Sequence[str]) -> object:
    """Return the value that words after `--NAME` stand for: true without one, a list of several."""
    values = [parse_scalar(word) for word in words]
    return values if len(values) > 1 else values[0] if values else True


def assign(variables: dict[str, object], key: str, value: object) -> None:
    """Set the variable that a dotted key names, `-` in it as `_`, later parts as keys of a mapping; ValueError."""
    first, *rest = key.split(".")
    name = first.replace("-", "_")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"`{first}` cannot be a variable of a notebook")
    for part in reversed(rest):
        value = {part: value}
    variables[name] = _merge(variables[name], value) if name in variables else value


def _merge(one: object, other: object) -> object:
    """Return `other` over `one`, mappings key by key."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {**one, **{key: _merge(one[key], value) if key in one else value for key, value in other.items()}}


def with_notebooks(fields: Fields, stage: Stage) -> Stage:
    """Return `stage` with the notebooks that are its commands among its inputs and outputs; RecordError."""
    if not any(SUFFIX in line for line in stage.cmd):
        return stage
    deps, outs = dict.fromkeys(stage.deps), list[Output]()
    declared = {dep.path for dep in stage.deps}
    try:
        runs = [run for line in stage.cmd if (run := parse_notebook(line))]
        for run in runs:
            path = project_path(run.notebook, stage.wdir)
            if path not in declared:
                deps[Dependency(path, normalize=Normalizer.NOTEBOOK)] = None
            if run.executed:
                outs += _copy(stage, path, project_path(run.executed, stage.wdir))
    except ValueError as error:
        raise fields.error(f"`cmd`: {error}", "cmd") from error
    paths = [out.path for out in outs]
    if len(set(paths)) < len(paths):
        raise fields.error(f"two notebooks of {fields.what} are copied to one place", "cmd", "`-o` names another")
    return stage._replace(deps=tuple(deps), outs=(*outs, *stage.outs))


def _copy(stage: Stage, notebook: str, executed: str) -> list[Output]:
    """Return the output that an executed copy is, unless the stage declares it, or a folder around it; ValueError."""
    if executed == notebook:
        raise ValueError(f"the executed copy `{executed}` would replace the notebook itself")
    if stage.folder and not executed.startswith(f"{stage.folder}/"):
        raise ValueError(f"the executed copy `{executed}` is outside of `{stage.folder}`, the folder of `{stage.file}`")
    known = any(executed == out.path or executed.startswith(f"{out.path}/") for out in stage.outs)
    return [] if known else [Output(executed)]
