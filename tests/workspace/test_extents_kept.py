"""What a folder that is here in part must not lose from its record, by whatever way it came to be so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_cli.pipeline.turn import exclusive
from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.extents import read_extents
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.move import move
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remove import remove
from mlops_cli.workspace.streamed_add import add_to_remote
from tests.workspace.projects import Sandbox, clone


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    """Return a project that has pushed two folders, of four files and of one."""
    box.remote("storage", str(box.root.parent / "remote"))
    for name in ("data/42/a", "data/42/b", "data/43/a", "data/top", "other/x"):
        box.write(name, name)
    box.add("data", "other")
    box.commit()
    push(box.project())
    return box


@pytest.fixture
def fresh(box: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a clone with nothing but what Git has."""
    return clone(box, tmp_path / "fresh")


def bring(box: Sandbox, *paths: str) -> None:
    fetch(box.project(), paths)
    box.checkout(*paths)


def rename(box: Sandbox, old: str, new: str) -> None:
    project = box.project()
    with exclusive(project, "mlx move", box.heard):
        move(project, old, new)


def files(box: Sandbox, path: str = "data") -> int | None:
    """Return how many files are recorded."""
    pointer = box.snapshot().pointer(path)
    assert pointer is not None
    return pointer.files


def test_an_empty_folder_is_no_sign_that_anything_was_here(fresh: Sandbox) -> None:
    (fresh.root / "data/42").mkdir(parents=True)

    bring(fresh, "data/42")

    assert not fresh.add("data").added[0].changed


def test_nor_is_a_file_that_nobody_recorded(fresh: Sandbox) -> None:
    fresh.write("data/new")
    fresh.write("data/42/b", "not as recorded")

    bring(fresh, "data/42/a")

    fresh.add("data")
    assert files(fresh) == 5


def test_new_files_one_after_the_other_where_nothing_is(fresh: Sandbox) -> None:
    fetch(fresh.project())
    fresh.write("data/new")
    fresh.write("data/42/new")

    fresh.add("data/new")
    fresh.add("data")

    assert files(fresh) == 6


def test_one_file_that_is_recorded_is_a_sign(fresh: Sandbox) -> None:
    fetch(fresh.project())
    fresh.checkout("data")
    for name in ("42/b", "43/a", "top"):
        (fresh.root / "data" / name).unlink()
    fresh.write("data/new")

    fresh.add("data/new")
    fresh.checkout("data/43")
    fresh.add("data")

    assert read_extents(fresh.project()) == {}
    assert files(fresh) == 3


def test_a_part_that_is_not_here_moves_into_a_folder_that_is(fresh: Sandbox) -> None:
    bring(fresh, "other")
    fetch(fresh.project(), ["data"])

    rename(fresh, "data/42", "other/42")

    fresh.add("other")
    assert files(fresh, "other") == 3


def test_what_was_deleted_before_it_moved_is_deleted(box: Sandbox) -> None:
    (box.root / "data/top").unlink()

    rename(box, "data/top", "other/top")

    box.add("other")
    assert files(box, "other") == 1


def test_into_a_folder_of_which_nothing_is_here(fresh: Sandbox) -> None:
    fetch(fresh.project())
    fresh.checkout("other")
    (fresh.root / "data").mkdir()

    rename(fresh, "other/x", "data/x")

    fresh.add("data")
    assert files(fresh) == 5


def test_a_move_where_nothing_is_here_says_nothing_of_the_rest(fresh: Sandbox) -> None:
    fetch(fresh.project())

    rename(fresh, "data/42/a", "data/a")

    fresh.write("data/43/a", "by hand")
    bring(fresh, "data/42")
    fresh.add("data")
    assert files(fresh) == 4


def test_what_was_evicted_stays_away_on_another_branch_that_has_not_got_it(box: Sandbox) -> None:
    box.git("checkout", "-q", "-b", "without")
    (box.root / "data/top").unlink()
    box.add("data")
    box.commit()
    push(box.project())
    box.git("checkout", "-q", "main")
    box.checkout()
    project = box.project()
    with exclusive(project, "mlx evict", box.heard):
        evict(project, ["data/top"], reporter=box.heard)

    box.git("checkout", "-q", "without")
    box.add("data")
    box.git("checkout", "-q", "main")

    assert not box.add("data").added[0].changed
    assert files(box) == 4


def test_what_goes_straight_to_a_remote_is_here(fresh: Sandbox) -> None:
    bring(fresh, "data/42/a")
    remove(fresh.project(), ["data"])
    fresh.write("data/new")

    add_to_remote(fresh.project(), ["data"])

    assert read_extents(fresh.project()) == {}
    (fresh.root / "data/new").unlink()
    fresh.add("data")
    assert files(fresh) == 1
