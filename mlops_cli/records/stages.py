"""What a stage is, once `mlx.yaml` has been read: values only.

Paths are relative to the project, posix, without `.` and `..`, whatever the file that declared them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mlops_cli.records.conduct import PLAIN, Conduct
from mlops_cli.records.environment import UNSAID, Environment
from mlops_cli.records.normalizers import Normalizer

PARAMS_FILE = "params.yaml"

_PIECE = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_VISIBLE = r"(?!\.)[^/]+"
_FOLDERS = f"(?:{_VISIBLE}/)*"
_MAGIC = re.compile(r"[*?\[]")


class ParamsFile(NamedTuple):
    """A file of parameters, and the keys (dotted) that the stage uses; no keys means the whole file."""

    path: str
    keys: tuple[str, ...] = ()


class Dependency(NamedTuple):
    """A path or glob that the stage reads; one that is `optional` need not be there.

    With `normalize`, what differs only in what that passes over counts as the same.
    """

    path: str
    optional: bool = False
    normalize: Normalizer | None = None


class Output(NamedTuple):
    """A path that the stage writes; with `git` Git keeps the file itself (metrics and plots).

    With `persist`, the command finds what was there before, and goes on from it.
    """

    path: str
    push: bool = True
    desc: str = ""
    git: bool = False
    persist: bool = False


class Plot(NamedTuple):
    """A file of points, and which of its columns to draw; empty texts leave the choice to the reader."""

    path: str
    x: str = ""
    y: str = ""
    title: str = ""


class When(NamedTuple):
    """The condition of a stage, whether it holds, and the values it was decided from, by name."""

    text: str
    holds: bool
    values: tuple[tuple[str, object], ...] = ()


class Stage(NamedTuple):
    """A command with its inputs and outputs, one instance of a matrix if there is one.

    `address` is unique in the project: the name, after `folder:` when the file is not the root's. `group` is the name
    before `@`. `outs` ends with the metrics and plots. `line` is where `file` declares it. `pass_env` are the variables
    (`*` stands for any characters) that its command inherits beside a few; None: all.
    One that is `always` is run every time, one that is `frozen` never. `urls` are the dependencies outside the project.
    """

    address: str
    name: str
    folder: str
    group: str
    cmd: tuple[str, ...]
    deps: tuple[Dependency, ...]
    params: tuple[ParamsFile, ...]
    outs: tuple[Output, ...]
    metrics: tuple[str, ...]
    plots: tuple[Plot, ...]
    env: tuple[tuple[str, str], ...]
    wdir: str
    desc: str
    line: int
    file: str
    conduct: Conduct = PLAIN
    when: When | None = None
    pass_env: tuple[str, ...] | None = None
    always: bool = False
    frozen: bool = False
    urls: tuple[str, ...] = ()
    environment: Environment = UNSAID

    @property
    def is_off(self) -> bool:
        """Whether the stage is not to be run or restored, for its condition does not hold."""
        return self.when is not None and not self.when.holds

    @property
    def repeatable(self) -> bool:
        """Whether equal inputs mean equal outputs, so that those of an earlier run can stand for a new one.

        Not so when it goes on from what is there, looks at what nothing declares, or is run for what it does elsewhere.
        """
        return bool(self.outs) and not self.always and not any(out.persist for out in self.outs)

    @property
    def reads(self) -> tuple[str, ...]:
        """Every path or glob that the stage takes something from: dependencies, parameters, files of environments."""
        paths = (*(dep.path for dep in self.deps), *(file.path for file in self.params))
        return (*paths, *self.environment.files) if self.environment.files else paths


class Pipeline(NamedTuple):
    """One `mlx.yaml`: its stages in the order of the file, the metrics files that no stage makes, its `resources`."""

    stages: tuple[Stage, ...]
    metrics: tuple[str, ...]
    file: str
    resources: Mapping[str, float] = MappingProxyType({})


class NewStage(NamedTuple):
    """A stage to be written into a file: paths relative to that file, `${name}` still in place.

    `optional` are dependencies beside `deps`.
    """

    name: str
    cmd: tuple[str, ...]
    deps: tuple[str, ...] = ()
    params: tuple[ParamsFile, ...] = ()
    outs: tuple[Output, ...] = ()
    metrics: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    wdir: str = ""
    desc: str = ""
    optional: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    when: str = ""


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return the pattern whose `fullmatch` tells the paths that `glob` matches, as the `glob` module does.

    `*`, `?` and `[...]` stay within a name, `**` alone stands for any folders, and none of them matches a leading dot.
    """
    names: list[str] = []
    for name in glob.split("/"):
        if name != "**" or names[-1:] != [_FOLDERS]:
            names.append(_pattern_of_name(name))
    if names == [_FOLDERS]:
        return re.compile(f"(?:{_VISIBLE}(?:/{_VISIBLE})*)?")
    # `a/**` is `a` itself too, so its slash belongs to what may be absent.
    end = f"(?:/{_VISIBLE})*" if names[-1] == _FOLDERS else ""
    body = names[:-1] if end else names
    written = "".join(name if name == _FOLDERS else f"{name}/" for name in body)
    return re.compile(written.removesuffix("/") + end)


def _pattern_of_name(name: str) -> str:
    if name == "**":
        return _FOLDERS
    if not has_magic(name):
        return re.escape(name)
    return ("" if name.startswith(".") else r"(?!\.)") + _PIECE.sub(_translate, name)


def _translate(match: re.Match[str]) -> str:
    piece = match.group()
    if piece == "?":
        return "[^/]"
    if piece.startswith("*"):
        return "[^/]*"
    # fnmatch knows every odd case of a bracket; its answer is wrapped in `(?s:` and `)` with an end of text.
    return "(?!/)" + fnmatch.translate(piece)[4:-3] if len(piece) > 1 else re.escape(piece)


def has_magic(path: str) -> bool:
    """Whether a dependency is a pattern (`*`, `?`, `[`), to be expanded into the files it matches."""
    return _MAGIC.search(path) is not None
