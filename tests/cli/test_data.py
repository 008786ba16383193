"""How commands on the workspace word what they found, and what they say to do next."""

from __future__ import annotations

import shutil

import pytest

from tests.cli.conftest import Project


def next_steps(project: Project) -> list[str]:
    """Return what `mlx status` says to do next."""
    return [line for line in project("status").stderr.splitlines() if line.startswith("next: ")]


def test_a_part_that_was_pulled_is_first_of_all_to_be_completed(project: Project) -> None:
    for number in range(4):
        project.write(f"flat/{number}.csv", f"{number}\n")
    project.must("add", "flat")
    project.must("push")
    shutil.rmtree(project.root / "flat")
    shutil.rmtree(project.root / ".git" / "mlx" / "cache")
    project.must("pull", "flat/3.csv")

    result = project("status")

    assert "  modified   flat  (3 deleted)\n" in result.stdout
    assert next_steps(project)[0] == (
        "next: `mlx pull flat` brings back what is gone, `mlx add flat` records that it is, `mlx diff` lists it"
    )
    project.must("pull", "flat")
    assert not [step for step in next_steps(project) if "flat" in step]


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
