"""What the tests of the command line share: its tree, and a realistic project that each test may change."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.cli.main import root_command
from tests.conftest import InProcess, Result

PARAMS = """\
split: 0.5
train:
  forest: {trees: 10}
  logistic: {C: 1.0}
"""
PIPELINE = """\
mlx: 1
vars: {models: [forest, logistic]}
stages:
  prepare:
    desc: keep what is needed
    cmd: mkdir -p data/prepared && sort data/labels.csv > data/prepared/labels.csv
    deps: [data/raw, data/labels.csv]
    params: [split]
    outs: [data/prepared]
  train:
    matrix: {model: "${models}"}
    cmd: sh train.sh ${model}
    deps: [train.sh, data/prepared]
    params: ["train.${model}"]
    outs: ["models/${model}.txt"]
    metrics: ["metrics/${model}.json"]
    plots: ["plots/${model}.csv": {x: step, y: loss}]
    env: {LC_ALL: C}
metrics: [baseline.json]
"""
TRAIN = """\
echo "training $1"
grep -A1 "$1" params.yaml > models/$1.txt
size=$(wc -c < models/$1.txt)
echo "{\\"accuracy\\": 0.9, \\"size\\": $size}" > metrics/$1.json
printf 'step,loss\\n1,0.5\\n' > plots/$1.csv
"""


def leaves(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with the words that name it, in the order of help."""
    command = command or root_command()
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from leaves(command.get_command(None, name), (*path, name))


LEAVES = dict(leaves())


@dataclass(frozen=True, slots=True)
class Project:
    """A project in `root`, with a home of its own; calling it runs `mlx` in it."""

    root: Path
    home: Path

    @property
    def cache(self) -> Path:
        """The folder of its own cache."""
        return self.root / ".git" / "mlx" / "cache"

    def __call__(self, *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Result:
        home = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config")}
        return InProcess(self.root)(*args, env={**home, **(env or {})}, cwd=cwd)

    def must(self, *args: str) -> Result:
        """Run `mlx`, which must succeed."""
        result = self(*args)
        assert result.code == 0, result.stderr
        return result

    def git(self, *args: str) -> None:
        subprocess.run(["git", *args], cwd=self.root, check=True, capture_output=True)

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target


def build_project(folder: Path) -> Project:
    """Make a project with data of every kind, a pipeline that ran twice, two commits and a remote that holds it all.

    `HEAD~1` and the tag `v1` are the first result, `HEAD`, `main` and `my-branch` the second; `labels.csv` is new.
    """
    (folder / "home").mkdir(parents=True)
    project = Project(folder / "repo", folder / "home")
    project.root.mkdir()
    project.git("init", "--quiet", "--initial-branch=main", "--template=")
    for number in (5, 6, 7):
        project.write(f"data/raw/{number}/a.png", f"pixels {number}\n")
    project.write("data/raw/a.png", "pixels\n")
    project.write("data/raw/run me.sh", "#!/bin/sh\n").chmod(0o755)
    project.write("data/raw/naïve.txt", "")
    (project.root / "data" / "raw" / "link").symlink_to("a.png")
    project.write("data/labels.csv", "b,1\na,0\n")
    project.write("params.yaml", PARAMS)
    project.write("mlx.yaml", PIPELINE)
    project.write("train.sh", TRAIN)
    project.write("baseline.json", '{"accuracy": 0.5}\n')
    project.must("init")
    project.must("add", "data/raw", "data/labels.csv")
    project.must("remote", "add", "storage", "../storage")
    project.must("remote", "add", "backup", "../backup")
    project.must("run")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=First result")
    project.git("tag", "v1")
    project.write("params.yaml", PARAMS.replace("trees: 10", "trees: 100"))
    project.write("data/raw/a.png", "other pixels\n")
    project.must("add", "data/raw")
    project.must("run")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=More trees")
    project.git("branch", "my-branch")
    project.must("push")
    project.write("labels.csv", "c,2\n")
    return project


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished project: to be copied, never changed."""
    folder = tmp_path_factory.mktemp("built")
    build_project(folder)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Callable[[], Project]:
    """Return a callable that makes a copy of the finished project, its remotes with it."""

    def copy() -> Project:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(built, folder, symlinks=True)
        return Project(folder / "repo", folder / "home")

    return copy


@pytest.fixture
def project(copied: Callable[[], Project]) -> Project:
    """Return a copy of the finished project."""
    return copied()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--pin`, for `pytest tests/cli --pin`."""
    parser.addoption("--pin", action="store_true", help="write the golden transcripts anew")


@pytest.fixture
def pin(request: pytest.FixtureRequest) -> bool:
    """Return whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--pin", default=False)) and not os.environ.get("CI")
