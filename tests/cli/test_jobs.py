"""A job, from the outside: made here, run in a process that has its file and the remote, taken over here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Project

PIPELINE = """\
mlx: 1
stages:
  train: {cmd: 'cp data.csv model; echo "{\\"n\\": 1}" > m.json; echo trained', deps: [data.csv], outs: [model], metrics: [m.json]}
"""


@pytest.fixture
def made(repo: Path, home: Path) -> Project:
    """Return a project that has made a job of its stage, which never ran here."""
    project = Project(repo, home)
    project.must("init")
    project.write("data.csv", "a,1\n")
    project.must("add", "data.csv")
    project.write("mlx.yaml", PIPELINE)
    project.must("remote", "add", "storage", "../storage")
    assert "made job.yaml of stage `train`" in project.must("job", "make", "train").stdout
    return project


def work(folder: Path, job: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a job in another process and an empty folder, which knows no project."""
    folder.mkdir()
    command = [sys.executable, "-m", "mlops_cli", "job", "run", str(job), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_job_runs_elsewhere_and_is_taken_over_here(made: Project, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    (made.root / "job.yaml").rename(job)

    done = work(tmp_path / "worker", job)

    assert (done.returncode, done.stderr) == (0, "trained\n")
    assert done.stdout.startswith("ran stage `train` in ")
    assert list((tmp_path / "worker").iterdir()) == []
    again = work(tmp_path / "again", job)
    assert again.stdout == "stage `train` has run with these inputs: the remote has its result\n"

    taken = made.must("run", "--pull", "train")
    assert "ran 0, restored 1, skipped 0" in taken.stdout
    assert (made.root / "model").read_text() == "a,1\n"
    assert made.must("status", "--json").json()["clean"] is True
    assert made.must("metrics", "show", "--json").json()["metrics"][0]["value"] == 1


def test_bad_jobs_are_told_in_a_sentence(made: Project, tmp_path: Path) -> None:
    missing = work(tmp_path / "a", tmp_path / "no.yaml")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: cannot read `")
    (made.root.parent / "storage").rename(tmp_path / "away")
    gone = work(tmp_path / "b", made.root / "job.yaml")
    assert (gone.returncode, "does not exist" in gone.stderr) == (6, True)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_run_through_an_executor(made: Project) -> None:
    assert made("run", "--executor", "slurm").code == 2
    done = made.must("run", "--executor", "local", "--json").json()
    assert [(stage["stage"], stage["action"]) for stage in done["stages"]] == [("train", "run")]
    assert (made.root / "model").read_text() == "a,1\n"
    assert made.must("status", "--json").json()["clean"] is True
