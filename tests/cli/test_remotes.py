"""What a pull would do, told before it is done."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.cli.conftest import Project
from tests.objects import stored


def forget(project: Project, *, cache: bool) -> None:
    """Delete the data from the workspace, and the objects from the cache where `cache` says so."""
    shutil.rmtree(project.root / "data" / "raw")
    (project.root / "data" / "labels.csv").unlink()
    if cache:
        shutil.rmtree(project.cache)


def restored(document: dict[str, Any]) -> dict[str, int]:
    return {item["path"]: item["added"] for item in document["restored"]}


def test_a_dry_pull_lists_what_would_come_back(project: Project) -> None:
    forget(project, cache=False)

    planned = project("pull", "--dry-run")
    document = project("pull", "--dry-run", "--json").json()

    assert planned.stdout.splitlines() == [
        "nothing to fetch: the cache has it all",
        "would bring back data/labels.csv (1 added)",
        "would bring back data/raw (7 added)",
    ]
    assert not (project.root / "data" / "raw").exists()
    assert document["restored"] == project("pull", "--json").json()["restored"]


def test_a_dry_pull_lists_what_would_be_fetched_and_come_back(project: Project) -> None:
    forget(project, cache=True)

    document = project("pull", "--dry-run", "--json").json()

    assert document["objects"] > 0
    assert {"data/labels.csv": 1, "data/raw": 7}.items() <= restored(document).items()
    assert stored(project.cache) == set()
    assert restored(document) == restored(project("pull", "--json").json())


def test_a_dry_pull_says_when_only_the_fetch_would_tell(project: Project) -> None:
    shutil.rmtree(project.cache)
    project.write("data/raw/new.png", "mine\n")

    planned = project("pull", "data/raw", "--dry-run", "--force")

    assert planned.stdout.splitlines()[1:] == ["would bring back data/raw (its listing, to be fetched, tells how much)"]


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_sent_again_is_counted_in_words_that_fit(number: int, project: Project) -> None:
    names = [f"{index}.bin" for index in range(number)]
    packs = project.root.parent / "storage" / "packs"
    before = set(packs.iterdir())
    for index, name in enumerate(names):
        (project.root / name).write_bytes(bytes([index]) * 300_000)
    project.must("add", *names)
    project.must("push", *names)
    for path in set(packs.iterdir()) - before:
        path.unlink()

    told = project.must("push", "--repair", "--dry-run", *names).stdout
    done = project.must("push", "--repair", *names).stdout

    amount = ("1 object of these", "2 objects of these")[number - 1]
    assert f"{amount} {('is', 'are')[number - 1]} gone or damaged\n" in told
    assert f"{amount} {('was', 'were')[number - 1]} gone or damaged\n" in done
