"""`mlx remote gc` and `mlx remote optimize` from outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def store(project: Project) -> Path:
    """Return the folder of the remote, on which there is a version that no commit names, all of it a month old."""
    project.must("config", "set", "remotes.storage.owner", "single")
    project.must("add", "labels.csv")
    project.must("push", "labels.csv")
    project.write("labels.csv", "d,4\n")
    project.must("add", "labels.csv")
    folder = project.root.parent / "storage"
    make_old(folder)
    return folder


def make_old(folder: Path) -> None:
    then = time.time() - 30 * 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_it_only_says_what_it_would_do_until_it_is_told_to(project: Project, store: Path) -> None:
    before = files(store)

    planned = project.must("remote", "gc")

    assert files(store) == before
    assert planned.stdout.splitlines()[1:] == ["would put into its trash: 1 object (4 B)"]
    assert planned.stdout.startswith("needed on `storage`: ")
    assert planned.stderr == "next: add `--yes` to do it\n"

    assert project.must("remote", "gc", "--yes").stdout.splitlines()[1:] == ["put into its trash: 1 object (4 B)"]
    assert len(files(store / "packs")) == len([path for path in before if path.parent.name == "packs"])
    make_old(store)
    done = project.must("remote", "gc", "--yes").stdout.splitlines()
    assert done[1].startswith("deleted for good: 1 file (")
    assert done[2:] == ["nothing to put into its trash"]
    project.must("pull", "--force")
    assert project.must("remote", "gc").stderr == ""


def test_a_grace_age_that_is_none(project: Project, store: Path) -> None:
    result = project("remote", "gc", "--grace", "soon")

    assert result.code == 2
    assert result.stderr.startswith("error: `--grace soon` is not a duration\n")


def test_a_remote_that_is_not_there(project: Project) -> None:
    for verb in ("gc", "optimize"):
        assert project("remote", verb, "nowhere").code == 2
        assert "nothing was ever pushed to remote `backup`" in project("remote", verb, "backup").stderr


def test_joining(project: Project, store: Path) -> None:
    planned = project.must("remote", "optimize").stdout
    before = files(store)
    done = project.must("remote", "optimize", "--yes").stdout

    assert planned.startswith("would join 2 packs (")
    assert planned.endswith(") and 2 segments of the index of `storage`\n")
    assert done == planned.replace("would join", "joined")
    assert {path for path in before if path.parent.name == "packs"} < set(files(store))
    assert project.must("remote", "optimize", "--yes").stdout == "nothing to join: `storage` has no small packs\n"
    project.must("remote", "gc", "--yes")
    project.must("fsck")
