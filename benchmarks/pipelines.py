"""Pipelines to measure with, written for `mlx` and DVC alike: the two read the same stages from files of their own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Stage(NamedTuple):
    """A stage as both tools declare it; paths are seen from its file's folder."""

    name: str
    cmd: str
    deps: Sequence[str]
    outs: Sequence[str]


def write_chain(project: Path, stages: int) -> None:
    """Declare stages that each copy a small file, and wait for the stage before."""
    _write_inputs(project, stages)
    _declare(project, (_copy(index, [f"out/{index - 1}.txt"] if index else []) for index in range(stages)))


def write_independent(project: Path, stages: int) -> None:
    """Declare stages that each copy a small file, and need nothing of one another."""
    _write_inputs(project, stages)
    _declare(project, (_copy(index, []) for index in range(stages)))


def write_busy(project: Path, stages: int, rounds: int, python: str) -> None:
    """Declare independent stages that each keep one processor busy: a sum of so many squares."""
    project.joinpath("busy.py").write_text(
        "import sys\n"
        "total = sum(number * number for number in range(int(sys.argv[2])))\n"
        'open(sys.argv[1], "w").write(f"{total}\\n")\n',
        encoding="utf-8",
    )
    program = f"{shlex.quote(python)} busy.py"
    _declare(
        project,
        (Stage(f"s{n}", f"{program} {n}.txt {rounds + n}", ["busy.py"], [f"{n}.txt"]) for n in range(stages)),
    )


def write_monorepo(project: Path, pipelines: int) -> str:
    """Make so many folders of a pipeline of three stages each; returns the folder of the one in the middle."""
    for number in range(pipelines):
        folder = project / _service(number)
        folder.mkdir(parents=True)
        (folder / "raw.txt").write_text(f"{number}\n", encoding="utf-8")
        names = ("raw", "prepared", "trained", "report")
        stages = (Stage(new, f"cp {old}.txt {new}.txt", [f"{old}.txt"], [f"{new}.txt"]) for old, new in pairwise(names))
        _declare(folder, stages)
    return _service(pipelines // 2)


def _service(number: int) -> str:
    return f"services/s{number:03}"


def _write_inputs(project: Path, count: int) -> None:
    (project / "in").mkdir()
    (project / "out").mkdir()
    for index in range(count):
        (project / "in" / f"{index}.txt").write_text(f"{index}\n", encoding="utf-8")


def _copy(index: int, more: Sequence[str]) -> Stage:
    source, target = f"in/{index}.txt", f"out/{index}.txt"
    return Stage(f"s{index:03}", f"cp {source} {target}", [source, *more], [target])


def _declare(folder: Path, stages: Iterator[Stage]) -> None:
    lines = ["stages:"]
    for name, cmd, deps, outs in stages:
        lines += [f"  {name}:", f"    cmd: {cmd}", f"    deps: [{', '.join(deps)}]", f"    outs: [{', '.join(outs)}]"]
    text = "\n".join(lines) + "\n"
    (folder / "mlx.yaml").write_text(f"mlx: 1\n{text}", encoding="utf-8")
    (folder / "dvc.yaml").write_text(text, encoding="utf-8")
