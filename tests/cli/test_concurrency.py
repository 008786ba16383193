"""Several `mlx` at once, in one project or over one cache: they take turns where they must, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlops_cli.workspace.project import find_project
from tests.cli.conftest import Project
from tests.cli.test_crashes import assert_nothing_is_promised_that_is_not_here
from tests.objects import lose_all

DEADLINE = 60  # seconds; only a test that fails waits so long
PIPELINE = """\
mlx: 1
stages:
  train:
    cmd: sh train.sh
    deps: [data.csv]
    outs: [model.txt]
"""


@pytest.fixture
def project(repo: Path, home: Path) -> Project:
    """Return a new project in which one file is tracked and committed."""
    made = Project(repo, home)
    made.must("init")
    made.write("data.csv", "a,1\n")
    made.must("add", "data.csv")
    made.git("add", ".")
    made.git("commit", "--quiet", "--message=Data")
    return made


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", *args], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for programs, each of which must succeed."""
    for process in processes:
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, err.decode()


def write_folder(root: Path, name: str, *, files: int = 50) -> None:
    """Write a folder that has half of its files in common with every other."""
    (root / name).mkdir()
    for number in range(files):
        own = name if number % 2 else ""
        (root / name / f"{number}.txt").write_text(f"{number}{own}\n")


def states(project: Project) -> dict[str, str]:
    return {item["path"]: item["state"] for item in project.must("status", "--json").json()["data"]}


def test_adds_in_one_project_take_turns(project: Project) -> None:
    names = ["north", "south", "east", "west"]
    for name in names:
        write_folder(project.root, name)

    finish([start(project.root, "add", name) for name in names])

    assert states(project) == dict.fromkeys(["data.csv", *sorted(names)], "ok")
    ignored = (project.root / ".gitignore").read_text().splitlines()
    assert sorted(ignored) == sorted(["/data.csv", *(f"/{name}" for name in names)])
    assert_nothing_is_promised_that_is_not_here(project)


def test_adds_below_one_tracked_folder_lose_no_update(project: Project) -> None:
    write_folder(project.root, "images")
    project.must("add", "images")
    names = ["a.txt", "b.txt", "c.txt"]
    for name in names:
        project.write(f"images/{name}", f"{name}\n")

    finish([start(project.root, "add", f"images/{name}") for name in names])

    assert states(project)["images"] == "ok"
    listed = {entry["path"] for entry in project.must("ls", "images", "--json").json()["entries"]}
    assert {f"images/{name}" for name in names} <= listed


def test_adds_in_two_worktrees_share_the_cache(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other", project.home)
    project.git("worktree", "add", "--quiet", "-b", "side", str(other.root))
    for each in (project, other):
        write_folder(each.root, "images")
        write_folder(each.root, each.root.name)

    finish([start(each.root, "add", "images", each.root.name) for each in (project, other)])

    assert (
        states(project)["images"]
        == states(other)["images"]
        == states(other)["other"]
        == states(project)["repo"]
        == "ok"
    )
    assert (project.root / "images.mlx").read_bytes() == (other.root / "images.mlx").read_bytes()
    for each in (project, other):
        assert_nothing_is_promised_that_is_not_here(each)
    stored = find_project(project.root, os.environ).cache
    assert stored.root == find_project(other.root, os.environ).cache.root
    assert list((stored.root / "tmp").glob("*/*")) == []
    other.must("checkout", "data.csv")
    assert (other.root / "data.csv").read_text() == "a,1\n"


def test_pulls_of_two_clones_into_one_cache(project: Project, tmp_path: Path) -> None:
    write_folder(project.root, "images")
    project.must("config", "set", "cache.dir", str(tmp_path / "shared"))
    project.must("remote", "add", "storage", str(tmp_path / "storage"))
    project.must("add", "data.csv", "images")
    project.must("push")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=Shared")
    clones = [tmp_path / name for name in ("first", "second")]
    for clone in clones:
        project.git("clone", "--quiet", str(project.root), str(clone))
    lose_all(tmp_path / "shared")

    finish([start(clone, "pull") for clone in clones])

    for clone in clones:
        assert len(list((clone / "images").iterdir())) == 50
        assert states(Project(clone, project.home)) == {"data.csv": "ok", "images": "ok"}
        assert_nothing_is_promised_that_is_not_here(Project(clone, project.home))


def test_pushes_to_one_remote_at_once(project: Project, tmp_path: Path) -> None:
    write_folder(project.root, "images")
    project.must("add", "images")
    project.must("remote", "add", "storage", str(tmp_path / "storage"))

    finish([start(project.root, "push") for _ in range(3)])

    assert list((tmp_path / "storage" / "tmp").glob("*/*")) == []
    lose_all(project.cache)
    project.must("fetch")
    assert_nothing_is_promised_that_is_not_here(project)


def test_reading_goes_on_while_a_stage_runs(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("mlx.yaml", PIPELINE)
    project.write("train.sh", "echo begun; cat data.csv gate > model.txt\n")

    running = start(project.root, "run")
    try:
        assert running.stderr is not None
        assert any(line == b"begun\n" for line in running.stderr)
        now = {"MLX_CORE_LOCK_TIMEOUT": "0"}

        status = project("status", "--json", env=now)
        assert status.code == 0
        (stage,) = status.json()["stages"]
        assert (stage["stage"], stage["action"]) == ("train", "run")
        assert states(project)["data.csv"] == "ok"
        for args in (["why"], ["run", "--dry-run"], ["diff"], ["ls"], ["graph"], ["cat", "data.csv"], ["doctor"]):
            assert project(*args, env=now).code == 0, args

        (project.root / "gate").write_text("b,2\n")  # opened by the command: it goes on
        assert running.wait(DEADLINE) == 0
    finally:
        running.terminate()
        running.communicate(timeout=DEADLINE)
    assert (project.root / "model.txt").read_text() == "a,1\nb,2\n"
    assert project.must("status", "--json").json()["clean"] is True


def test_an_add_waits_until_a_stage_has_run(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("mlx.yaml", PIPELINE)
    project.write("train.sh", "echo begun; cat data.csv gate > model.txt\n")
    project.write("more.csv", "c,3\n")

    running = start(project.root, "run")
    assert running.stderr is not None
    assert any(line == b"begun\n" for line in running.stderr)
    waiting = start(project.root, "add", "more.csv")
    assert project("add", "more.csv", env={"MLX_CORE_LOCK_TIMEOUT": "0.2"}).code == 6
    assert not (project.root / "more.csv.mlx").exists()
    (project.root / "gate").write_text("b,2\n")
    finish([running, waiting])

    assert states(project) == {"data.csv": "ok", "more.csv": "ok"}
    assert project.must("status", "--json").json()["clean"] is True
