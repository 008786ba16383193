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


def begin_run(project: Project, *args: str) -> subprocess.Popen[bytes]:
    """Start `mlx run` of a stage that waits at the FIFO `gate` until something is written into it."""
    running = start(project.root, "run", *args)
    assert running.stderr is not None
    assert any(line == b"begun\n" for line in running.stderr)
    return running


WAITING = "echo begun; cat data.csv gate > model.txt\n"


def test_commands_go_on_while_a_stage_runs(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("mlx.yaml", PIPELINE + "  other: {cmd: cp more.csv other.txt, deps: [more.csv], outs: [other.txt]}\n")
    project.write("train.sh", WAITING)
    project.write("more.csv", "c,3\n")
    running = begin_run(project, "train")
    now = {"MLX_CORE_LOCK_TIMEOUT": "0.5"}

    assert project("add", "more.csv", env=now).code == 0
    assert project("run", "other", env=now).code == 0
    assert (project.root / "other.txt").read_text() == "c,3\n"
    (project.root / "other.txt").unlink()
    left = project("checkout", env=now)
    assert (left.code, left.stdout.splitlines()) == (0, ["brought back other.txt (1 added)"])
    assert "left as they are, for stages use them that are being run: `data.csv`" in left.stderr
    for args, what in ((["checkout", "data.csv"], "reads `data.csv`"), (["move", "data.csv", "d.csv"], "reads")):
        refused = project(*args, env=now)
        assert refused.code == 6
        assert f"stage `train`, which process {running.pid} runs, {what}" in refused.stderr
    assert "being run: `train`" in project("status", env=now).stderr

    (project.root / "gate").write_text("b,2\n")
    finish([running])
    assert states(project) == {"data.csv": "ok", "more.csv": "ok"}
    assert project.must("status", "--json").json()["clean"] is True
    assert not list((project.root / ".git/mlx/reservations").rglob("*.lock"))


def test_two_runs_of_one_stage_run_it_once(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("mlx.yaml", PIPELINE + "  report: {cmd: cp model.txt r.txt, deps: [model.txt], outs: [r.txt]}\n")
    project.write("train.sh", WAITING)
    first = begin_run(project, "train")
    second = start(project.root, "run")
    assert second.stderr is not None
    assert second.stderr.readline() == f"note: stage `train` waits: process {first.pid} runs\n".encode()

    (project.root / "gate").write_text("b,2\n")
    finish([first])
    out, err = second.communicate(timeout=DEADLINE)
    assert (second.returncode, out.startswith(b"ran 1, restored 0, skipped 1 in ")) == (0, True), err
    assert (project.root / "r.txt").read_text() == "a,1\nb,2\n"
    assert project.must("status", "--json").json()["clean"] is True


def test_what_a_stage_reads_is_not_made_anew_meanwhile(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    pipeline = "mlx: 1\nstages:\n  make: {cmd: cp data.csv made, deps: [data.csv], outs: [made]}\n"
    project.write("mlx.yaml", pipeline + "  train: {cmd: sh train.sh, deps: [made], outs: [model.txt]}\n")
    project.write("train.sh", "echo begun; cat gate made > model.txt\n")
    first = begin_run(project)
    project.write("data.csv", "new\n")
    second = start(project.root, "run", "make")
    assert second.stderr is not None
    assert second.stderr.readline() == f"note: stage `make` waits: process {first.pid} runs `train`\n".encode()
    assert (project.root / "made").read_text() == "a,1\n"

    (project.root / "gate").write_text("b,2\n")
    finish([first, second])
    assert (project.root / "model.txt").read_text() == "b,2\na,1\n"
    assert (project.root / "made").read_text() == "new\n"
    assert [s["action"] for s in project.must("status", "--json").json()["stages"]] == ["skip", "run"]


def test_a_run_that_waits_for_one_that_is_killed_puts_it_right(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("mlx.yaml", PIPELINE)
    project.write("train.sh", WAITING)
    first = begin_run(project)
    second = start(project.root, "run")
    assert second.stderr is not None
    assert b"waits" in second.stderr.readline()

    first.kill()
    first.communicate(timeout=DEADLINE)
    lines = iter(second.stderr.readline, b"")
    assert any(b"stage `train` was cut short" in line for line in lines)
    assert any(line == b"begun\n" for line in lines)
    (project.root / "gate").write_text("b,2\n")
    finish([second])
    assert (project.root / "model.txt").read_text() == "a,1\nb,2\n"
    assert project.must("status", "--json").json()["clean"] is True
