"""How commands on the workspace word what they found, and what they say to do next."""

from __future__ import annotations

import shutil

import pytest

from tests.cli.conftest import PIPELINE, Project
from tests.objects import stored


def next_steps(project: Project) -> list[str]:
    """Return what `mlx status` says to do next."""
    return [line for line in project("status").stderr.splitlines() if line.startswith("next: ")]


@pytest.fixture
def flat(project: Project) -> Project:
    """Return a project that has one file of the four in `flat`."""
    for number in range(4):
        project.write(f"flat/{number}.csv", f"{number}\n")
    project.must("add", "flat")
    project.must("push")
    shutil.rmtree(project.root / "flat")
    shutil.rmtree(project.root / ".git" / "mlx" / "cache")
    project.must("pull", "flat/3.csv")
    return project


def test_a_part_that_was_pulled_is_told_as_that(flat: Project) -> None:
    result = flat("status", "--check")

    assert result.code == 0
    assert "as recorded\nflat  in part here (1 of 4 files)\n" in result.stdout
    assert next_steps(flat) == ["next: `mlx pull flat` brings the rest"]
    (item,) = (item for item in flat.must("status", "--json").json()["data"] if item["path"] == "flat")
    assert (item["state"], item["deleted"], item["away"], item["files"]) == ("ok", 0, 3, 4)
    flat.must("pull", "flat")
    assert not next_steps(flat)


def test_what_changes_in_a_part_is_told_and_added(flat: Project) -> None:
    flat.write("flat/3.csv", "edited\n")
    flat.write("flat/4.csv", "new\n")

    result = flat("status", "--check")

    assert result.code == 1
    assert result.stdout.startswith(
        "flat  in part here (1 of 4 files)\ndata:\n  modified   flat  (1 modified, 1 added)\n"
    )
    assert next_steps(flat) == [
        "next: `mlx add flat` records it, `mlx pull --force flat` undoes it and brings the rest, `mlx diff` lists it"
    ]
    assert "added flat (5 files" in flat.must("add", "flat").stdout
    assert flat.must("status", "--check").code == 0
    (flat.root / "flat" / "3.csv").unlink()
    assert next_steps(flat)[0].startswith(
        "next: `mlx pull flat` brings back what is gone and the rest, `mlx add flat` "
    )
    assert "added flat (1 file," in flat.must("add", "--exact", "flat").stdout
    assert flat("add", "--exact", "--to-remote", "flat").code == 2


def test_a_stage_is_not_run_on_a_part(flat: Project) -> None:
    flat.must("stage", "add", "sum", "--cmd", "cat flat/* > sum.txt", "-d", "flat", "-o", "sum.txt")

    result = flat("run", "sum")

    assert result.code == 4
    assert "needs `flat`, which is recorded but not all in the workspace" in result.stderr
    assert "hint: `mlx pull flat` brings it all" in result.stderr


def test_without_a_remote_the_cache_brings_back_what_was_deleted(project: Project) -> None:
    for remote in ("storage", "backup"):
        project.must("remote", "remove", remote)
    (project.root / "data" / "raw" / "a.png").unlink()

    assert next_steps(project)[0].startswith("next: `mlx checkout data/raw` brings back what is gone")
    project.must("checkout", "data/raw")
    assert not next_steps(project)


def test_what_was_edited_is_first_of_all_to_be_recorded(project: Project) -> None:
    project.write("data/raw/a.png", "edited\n")

    assert next_steps(project)[0] == (
        "next: `mlx add data/raw` records it, `mlx checkout --force data/raw` undoes it, `mlx diff` lists it"
    )


def test_what_was_edited_beside_something_deleted_is_undone_by_force(project: Project) -> None:
    project.write("data/raw/a.png", "edited\n")
    (project.root / "data" / "raw" / "naïve.txt").unlink()
    (project.root / "data" / "labels.csv").unlink()

    undo, bring, *_ = next_steps(project)

    assert undo == "next: `mlx add data/raw` records it, `mlx pull --force data/raw` undoes it, `mlx diff` lists it"
    assert bring == "next: `mlx checkout data/labels.csv` brings missing data back from the cache"
    project.must("checkout", "data/labels.csv")
    project.must("pull", "--force", "data/raw")
    well = {"state": "ok", "added": 0, "modified": 0, "deleted": 0, "source": "", "storable": True, "restorable": True}
    well |= {"away": 0, "files": 0}
    assert project.must("status", "--json").json()["data"] == [
        {"path": path, **well} for path in ("data/labels.csv", "data/raw")
    ]


def test_a_command_names_no_more_paths_than_fit_and_can_be_typed(project: Project) -> None:
    names = [f"{number}.csv" for number in range(5)]
    for name in names:
        project.write(name, name)
    project.must("add", *names)
    project.write("data/raw/a.png", "edited\n")
    for name in names:
        (project.root / name).unlink()

    (line,) = (step for step in next_steps(project) if "missing" in step)

    assert line == "next: `mlx checkout 0.csv 1.csv 2.csv` brings missing data back from the cache; so for 2 more"


def test_what_to_do_next_is_said_as_it_is_typed_here(project: Project) -> None:
    project.write("data/raw/a.png", "edited\n")

    told = project("status", cwd=project.root / "data")
    added = project("add", "raw", cwd=project.root / "data")

    assert "next: `mlx add raw` records it, `mlx checkout --force raw` undoes it" in told.stderr
    assert added.stderr == "next: git add raw.mlx\n"


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("modified", "  modified   data/labels.csv  (1 modified)"),
        ("missing", "  missing    data/labels.csv"),
        ("not_cached", "  not here   data/labels.csv"),
        ("untracked", "  untracked  made.txt"),
    ],
)
def test_every_state_is_a_word_and_a_gap(state: str, line: str, project: Project) -> None:
    if state == "untracked":
        project.write("made.txt", "made by hand\n")
        project.write(
            "mlx.yaml", f"{PIPELINE.partition('metrics: [base')[0]}  made: {{cmd: touch made.txt, outs: [made.txt]}}\n"
        )
    elif state == "modified":
        project.write("data/labels.csv", "other\n")
    else:
        (project.root / "data" / "labels.csv").unlink()
    if state == "not_cached":
        shutil.rmtree(project.root / ".git" / "mlx" / "cache")

    assert state in [item["state"] for item in project("status", "--json").json()["data"]]
    assert line in project("status").stdout.splitlines()


@pytest.mark.parametrize("again", [False, True])
def test_diff_tells_of_the_executable_mark(again: bool, project: Project) -> None:
    if again:
        project.write("data/raw/a.png", "more pixels than before\n")
    (project.root / "data" / "raw" / "a.png").chmod(0o755)
    (project.root / "data" / "raw" / "run me.sh").chmod(0o644)

    assert project("diff").stdout.splitlines() == [
        f"~ data/raw/a.png  ({'13 B → 24 B, ' if again else ''}now executable)",
        "~ data/raw/run me.sh  (no longer executable)",
    ]
    changes = project("diff", "--json").json()["changes"]
    assert [change["executable"] for change in changes] == [True, False]


TWO = """\
mlx: 1
stages:
  first: {cmd: echo 1 > one.txt; mkdir -p sub; echo 2 > sub/two.txt, outs: [one.txt, sub/two.txt]}
  second: {cmd: echo 3 > three.txt, outs: [three.txt]}
"""


def test_status_tells_what_a_removed_stage_has_left_in_gitignore(project: Project) -> None:
    project.write("mlx.yaml", TWO)
    project.must("run")
    before = project("status")
    project.write("mlx.yaml", "\n".join(line for line in TWO.splitlines() if "first" not in line) + "\n")

    told = project("status")

    names = [name for name in ("mlx.lock/prepare.yaml", "mlx.lock/first.yaml") if (project.root / name).exists()]
    assert "mlx.lock/first.yaml" in names
    assert told.code == 0
    assert told.stderr.count("still hides") == 1
    assert "no stage makes any more" in told.stderr
    assert project("status", "--json").json()["notes"] == [
        line.removeprefix("note: ") for line in told.stderr.splitlines() if line.startswith("note: ")
    ]
    assert "one.txt" not in before.stderr

    for lock in (project.root / "mlx.lock").glob("*.yaml"):
        if lock.name not in ("first.yaml", "second.yaml"):
            lock.unlink()
    alone = project("status").stderr
    assert alone == (
        "note: `.gitignore` still hides `one.txt`, which no stage makes any more (1 more like it): take the line out and "
        "delete `mlx.lock/first.yaml`, or `mlx add one.txt` keeps it as data\n"
    )
    project.must("add", "one.txt")
    (project.root / "sub" / "two.txt").unlink()
    assert project("status").stderr == (
        "note: `sub/.gitignore` still hides `sub/two.txt`, which no stage makes any more: take the line out and delete "
        "`mlx.lock/first.yaml`\n"
    )
    (project.root / "sub" / ".gitignore").unlink()
    assert project("status").stderr == ""


# Straight to a remote ------------------------------------------------------------------------------------------------


def test_add_to_remote_tells_what_was_sent(project: Project) -> None:
    project.write("images/a.png", "pixels of a\n")
    before = stored(project.cache)

    planned = project.must("add", "images", "--to-remote", "--dry-run")
    done = project.must("add", "images", "--to-remote", "--remote", "backup")

    added, sent = planned.stdout.splitlines()
    assert added == "would add images (1 file, 12 B)"
    assert sent.startswith("would send 2 objects (")
    assert sent.endswith(") to `storage`")
    assert done.stdout == planned.stdout.replace("would add", "added").replace("would send", "sent").replace(
        "storage", "backup"
    )
    assert "next: git add images.mlx" in done.stderr
    assert len(stored(project.cache) - before) == 1  # its listing
    assert project.must("push", "images", "--remote", "backup", "--json").json()["objects"] == 0
    again = project.must("add", "images", "--to-remote", "--json").json()
    assert [item["name"] for item in again["remotes"]] == ["storage"]


def test_add_refuses_a_remote_it_would_not_use(project: Project) -> None:
    project.write("images/a.png", "pixels of a\n")

    done = project("add", "images", "--remote", "backup")

    assert done.code == 2
    assert "hint: give `--to-remote` as well, or neither" in done.stderr
