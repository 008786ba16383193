"""Commands that are told, typed where the user is: in a folder of the project, or beside it with `-C`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_cli.cli.spelling import Spelling
from mlops_cli.words import word
from tests.cli.conftest import Project
from tests.conftest import Result


def type_in(project: Project, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell in `folder` would, with `mlx` being the one under test."""
    program = project.home / "bin" / "mlx"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlops_cli "$@"\n')
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(project.home)}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def commands(result: Result) -> list[str]:
    """Return the commands of the hint, or of what is next, that were told."""
    told = " ".join(result.stderr.split("\n" + " " * 6))
    return [
        part for line in told.split("\n") if line.startswith(("hint: ", "next: ")) for part in line.split("`")[1::2]
    ]


def forget_data(project: Project) -> None:
    """Take the data out of the workspace and the cache; the remote has it."""
    shutil.rmtree(project.root / "data" / "raw")
    shutil.rmtree(project.cache)


def spoil_record(project: Project) -> None:
    project.write("data/raw.mlx", "mlx: 1\n")


def edit(project: Project) -> None:
    project.write("data/raw/a.png", "edited\n")


def nothing(project: Project) -> None:
    """Leave the project as it is."""


CALLED = [
    (forget_data, ("checkout", "raw"), "mlx pull raw", "brought back"),
    (forget_data, ("add", "raw/a.png"), "mlx pull raw", ""),
    (edit, ("checkout", "raw"), "mlx add raw/a.png", "added"),
    (edit, ("status",), "mlx add raw", "added"),
    (spoil_record, ("checkout",), "git restore raw.mlx", ""),
    (nothing, ("cat", "raw/none"), "mlx ls raw", ""),
]


@pytest.mark.parametrize(("spoil", "args", "command", "said"), CALLED)
def test_in_a_folder_of_the_project_commands_are_typed_there(
    spoil: Callable[[Project], None], args: tuple[str, ...], command: str, said: str, project: Project
) -> None:
    spoil(project)
    folder = project.root / "data"

    told = commands(project(*args, cwd=folder))

    assert command in told
    done = type_in(project, folder, command)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(("spoil", "args", "command", "said"), CALLED)
def test_with_dash_c_commands_go_to_that_folder_from_where_it_was_named(
    spoil: Callable[[Project], None], args: tuple[str, ...], command: str, said: str, project: Project
) -> None:
    spoil(project)
    program, rest = command.split(" ", 1)

    told = commands(project("-C", "repo/data", *args, cwd=project.root.parent))

    command = f"{program} -C repo/data {rest}"
    assert command in told
    done = type_in(project, project.root.parent, command)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_what_was_meant_is_named_as_it_is_typed(project: Project) -> None:
    assert "did you mean `labels.csv`?" in project("ls", "labls.csv", cwd=project.root / "data").stderr
    assert "did you mean `../data/labels.csv`?" in project("ls", "../data/labls.csv", cwd=project.root / "plots").stderr


def test_a_document_has_the_hint_as_it_is_typed(project: Project) -> None:
    forget_data(project)

    there = project("checkout", "raw", "--json", cwd=project.root / "data")
    beside = project("-C", "repo/data", "checkout", "raw", "--json", cwd=project.root.parent)

    assert "`mlx pull raw`" in there.json()["hint"]
    assert "`mlx -C repo/data pull raw`" in beside.json()["hint"]


def test_what_is_to_be_committed_is_named_as_it_is_typed(project: Project) -> None:
    edit(project)

    there = project("add", "raw", cwd=project.root / "data")
    edit_more = project.write("data/raw/b.png", "more\n")
    beside = project("-C", "repo/data", "add", "raw", cwd=project.root.parent)

    assert "next: git add raw.mlx\n" in there.stderr
    assert edit_more.exists()
    assert "next: git -C repo/data add raw.mlx\n" in beside.stderr


def test_notes_name_paths_as_they_are_typed(project: Project) -> None:
    edit(project)

    note = project("run", "--json", cwd=project.root / "data").json()["notes"][0]

    assert "`mlx add raw` keeps it" in note


def test_nothing_that_is_told_shows_a_mark(project: Project) -> None:
    forget_data(project)

    for result in (project("status"), project("doctor"), project("fsck"), project("fsck", "--json"), project("run")):
        assert "\0" not in result.stdout + result.stderr
        assert "\\x00" not in result.stdout + result.stderr
        assert "\\u0000" not in json.dumps(result.stdout + result.stderr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`mlx push` sends it", "`mlx -C 'a b' push` sends it"),
        ("`git restore x`, or `mlx ls`", "`git -C 'a b' restore x`, or `mlx -C 'a b' ls`"),
        ("next: git add x", "next: git -C 'a b' add x"),
        ("`rm x && mlx add x` keeps it", "`cd 'a b' && rm x && mlx add x` keeps it"),
        ("`git init && mlx init` makes one", "`cd 'a b' && git init && mlx init` makes one"),
        ("run it there: `mlx -C sub add …`", "run it there: `cd 'a b' && mlx -C sub add …`"),
        ("take `push: false` out of `mlx.yaml`", "take `push: false` out of `mlx.yaml`"),
    ],
)
def test_commands_go_to_the_folder_that_dash_c_named(text: str, expected: str, tmp_path: Path) -> None:
    assert Spelling(tmp_path, "a b").spell(text) == expected
    assert Spelling(tmp_path).spell(text) == text


def test_outside_of_a_project_paths_stay_as_they_are(tmp_path: Path) -> None:
    assert Spelling(tmp_path).spell(f"`mlx add {word('a b')}`") == "`mlx add 'a b'`"


def test_a_path_that_looks_like_an_option_is_no_option(project: Project) -> None:
    assert Spelling(project.root / "data").spell(f"`mlx add {word('data/-r')}`") == "`mlx add ./-r`"
