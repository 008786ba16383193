"""`mlx logs` from outside: what a stage wrote, now or while it runs, and what it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Project

STAGES = """\
mlx: 1
stages:
  prepare: {cmd: "printf 'caf\\\\351\\\\n\\\\033[1mbold'; echo > prepared", outs: [prepared]}
  train:
    matrix: {model: [forest, logistic]}
    cmd: echo training ${model}; echo > ${model}
    outs: ["${model}"]
  bad: {cmd: "echo once; exit 3", outs: [bad], retries: 1}
  new: {cmd: echo, outs: [new]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project whose stages have run, the last of which failed twice: not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    project = Project(folder / "repo", folder / "home")
    project.root.mkdir()
    project.git("init", "--quiet", "--initial-branch=main", "--template=")
    project.must("init")
    project.write("mlx.yaml", STAGES)
    project.must("run", "prepare", "train")
    assert project("run", "bad").code == 1
    return folder


@pytest.fixture
def ran(made: Path, tmp_path: Path) -> Project:
    """Return a copy of that project."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy" / "repo", tmp_path / "copy" / "home")


def test_what_a_stage_wrote_comes_as_it_is(ran: Project) -> None:
    done = ran.must("logs", "prepare")
    assert done.stdout_bytes == b"caf\xe9\n\x1b[1mbold"
    assert done.stderr == ""
    assert ran.must("logs", "prepare", "--tail", "1").stdout_bytes == b"\x1b[1mbold"
    assert ran.must("logs", "bad").stdout == "once\nonce\n"


def test_a_group_and_a_whole_run(ran: Project) -> None:
    done = ran.must("logs", "train")
    assert (done.stdout, done.stderr) == (
        "training forest\ntraining logistic\n", "==> train@forest\n==> train@logistic\n"
    )  # fmt: skip
    assert ran.must("logs").stdout == "once\nonce\n"
    (run,) = {each["run"] for each in ran.must("logs", "prepare", "--json").json()["runs"]}
    assert ran.must("logs", "--run", run).stdout_bytes.endswith(b"boldtraining forest\ntraining logistic\n")
    assert run in ran.must("logs", "--list").stdout


def test_what_ran_and_what_it_took(ran: Project) -> None:
    head, _, *rows = ran.must("logs", "--list").stdout.splitlines()
    assert head.split() == ["stage", "when", "took", "CPU", "memory", "ended", "run"]
    assert [row.split()[0] for row in rows] == ["bad", "bad", "train@logistic", "train@forest", "prepare"]
    assert "failed: exit code 3 (attempt 2)" in rows[0]

    told = ran.must("logs", "bad", "--list", "--json").json()["runs"]
    assert [(each["attempt"], each["outcome"], each["exit_status"]) for each in told] == [
        (2, "failed", 3),
        (1, "failed", 3),
    ]
    assert told[0]["message"] == "stage `bad` failed: exit code 3"
    assert Path(told[0]["log"]).read_text() == "once\nonce\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no stage `trian`"),
        (["train@other"], "there is no stage `train@other`"),
        (["bad", "--run", "2"], "2 runs begin with `2`"),
        (["bad", "--run", "../.."], "there is no run `../..`"),
        (["--tail", "-1"], "`--tail`: -1 is not in the range x>=0"),
        (["--follow", "--json"], "`--json` tells what is there now, and `--follow` waits"),
        (["new"], "stage `new` has not run here"),
    ],
)
def test_what_there_is_not(words: list[str], message: str, ran: Project) -> None:
    done = ran("logs", *words)
    assert done.code == 2
    assert message in done.stderr


def test_a_stage_that_is_no_longer_declared_has_its_log(ran: Project) -> None:
    ran.write("mlx.yaml", "mlx: 2\n")
    assert ran.must("logs", "train").stdout == "training forest\ntraining logistic\n"


def test_following_until_the_stage_ends(ran: Project) -> None:
    os.mkfifo(ran.root / "gate")
    ran.write(
        "mlx.yaml", 'mlx: 1\nstages:\n  slow: {cmd: "echo begun; echo > gate; cat gate; echo > slow", outs: [slow]}\n'
    )
    mlx = [sys.executable, "-m", "mlops_cli"]
    with subprocess.Popen([*mlx, "-q", "run"], cwd=ran.root) as running:
        (ran.root / "gate").read_text()
        with subprocess.Popen(
            [*mlx, "logs", "slow", "-f"], cwd=ran.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as following:
            assert following.stdout is not None
            first = following.stdout.readline()
            assert json.loads(ran.must("logs", "slow", "--json").stdout)["runs"][0]["outcome"] == "running"
            (ran.root / "gate").write_text("the end\n")
            rest, said = following.communicate(timeout=60)
    assert running.returncode == following.returncode == 0
    assert (first, rest) == (b"begun\n", b"the end\n")
    assert said.startswith(b"slow: done after ")


def test_two_projects_of_one_repository_do_not_mix(ran: Project) -> None:
    other = Project(ran.root / "sub", ran.home)
    other.root.mkdir()
    other.must("init")
    other.write("mlx.yaml", STAGES.replace("training", "other"))
    assert "has not run here" in other("logs", "train").stderr
    other.must("run", "train")
    assert other.must("logs", "train").stdout == "other forest\nother logistic\n"
    assert ran.must("logs", "train").stdout == "training forest\ntraining logistic\n"
