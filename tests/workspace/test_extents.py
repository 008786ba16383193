"""A folder that is here in part: what is away on purpose is no deletion, and stays in the record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store.trees import Kind, walk
from mlops_cli.workspace.differences import diff_workspace
from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.extents import read_extents
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.move import move
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remove import remove
from mlops_cli.workspace.snapshot import open_snapshot
from mlops_cli.workspace.streamed_add import add_to_remote
from tests.crashing import crashes, killed_at
from tests.objects import damage, large, lose
from tests.workspace.projects import Sandbox, clone

FILES = ("42/a", "42/b", "43/a", "private/deep/x", "private/y", "top")


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    """Return a project that has pushed `data`, and a lone file."""
    box.remote("storage", str(box.root.parent / "remote"))
    for name in FILES:
        box.write(f"data/{name}", f"{name} as recorded")
    box.write("lone", "alone")
    box.add("data", "lone")
    box.commit()
    push(box.project())
    return box


@pytest.fixture
def other(box: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a clone that has `data/42/a` and nothing else."""
    found = clone(box, tmp_path / "other")
    fetch(found.project())
    found.checkout("data/42/a")
    return found


@pytest.fixture
def bare(box: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a clone that has `data/42/a`, and in its cache nothing but what that needs."""
    found = clone(box, tmp_path / "bare")
    bring(found, "data/42/a")
    return found


def bring(box: Sandbox, *paths: str) -> None:
    fetch(box.project(), paths)
    box.checkout(*paths)


def drop(box: Sandbox, *paths: str) -> None:
    project = box.project()
    with exclusive(project, "mlx evict", box.heard):
        evict(project, paths, reporter=box.heard)


def rename(box: Sandbox, old: str, new: str) -> None:
    project = box.project()
    with exclusive(project, "mlx move", box.heard):
        move(project, old, new)


def recorded(box: Sandbox, path: str = "data") -> dict[str, str]:
    """Return what the record of `path` has, by path; the contents as far as they are in the cache."""
    pointer = box.snapshot().pointer(path)
    assert pointer is not None
    cache = box.project().cache
    found = {}
    for place, entry in walk(cache, pointer.digest):
        if entry.kind != Kind.FOLDER:
            found[place.decode()] = "" if cache.missing([entry.digest]) else cache.read(entry.digest).decode()
    return found


def told(box: Sandbox, path: str = "data") -> tuple[str, int, int, int, int]:
    """Return the state of `path`, and how many files were added, modified, deleted, and are away."""
    status = box.data()[path]
    return status.state.value, status.added, status.modified, status.deleted, status.away


def differing(box: Sandbox, *targets: str) -> dict[str, str]:
    with open_snapshot(box.project(), "HEAD") as head:
        return {change.path: change.change for change in diff_workspace(box.project(), head, targets)}


# What is away --------------------------------------------------------------------------------------------------------


def test_what_was_never_brought_is_away_and_stays_recorded(other: Sandbox) -> None:
    before = other.read("data.mlx")

    assert told(other) == ("ok", 0, 0, 0, 5)
    assert other.data()["data"].files == 6
    assert differing(other, "data") == {}
    assert not other.add("data").added[0].changed
    assert other.read("data.mlx") == before
    assert other.changed_in_git() == []


def test_what_is_new_or_edited_is_recorded_beside_what_is_away(other: Sandbox, box: Sandbox) -> None:
    other.write("data/42/a", "edited")
    other.write("data/42/new", "new")
    other.write("data/private/deep/new", "new too")

    assert told(other) == ("modified", 2, 1, 0, 5)
    assert differing(other, "data") == {
        "data/42/a": "modified",
        "data/42/new": "added",
        "data/private/deep/new": "added",
    }
    assert other.add("data").added[0].files == 8

    assert set(recorded(other)) == {*FILES, "42/new", "private/deep/new"}
    assert recorded(other)["42/a"] == "edited"
    assert told(other) == ("ok", 0, 0, 0, 5)
    other.commit()
    push(other.project())
    box.git("pull", "--quiet", str(other.root))
    bring(box)
    assert box.read("data/private/deep/new") == "new too"
    assert box.read("data/private/deep/x") == "private/deep/x as recorded"
    assert box.clean()


def test_what_somebody_deleted_is_told_and_recorded(other: Sandbox) -> None:
    bring(other, "data/private")
    (other.root / "data/42/a").unlink()
    shutil.rmtree(other.root / "data/private/deep")

    assert told(other) == ("modified", 0, 0, 2, 3)
    assert differing(other, "data") == {"data/42/a": "deleted", "data/private/deep/x": "deleted"}
    other.add("data")

    assert set(recorded(other)) == set(FILES) - {"42/a", "private/deep/x"}
    assert told(other) == ("ok", 0, 0, 0, 3)


@pytest.mark.parametrize("as_part", [True, False])
def test_what_was_added_among_what_is_away_is_here(other: Sandbox, as_part: bool) -> None:
    other.write("data/private/new", "new")
    other.add("data/private/new" if as_part else "data")
    (other.root / "data/private/new").unlink()

    assert told(other) == ("modified", 0, 0, 1, 5)
    other.add("data/private/new" if as_part else "data")
    assert set(recorded(other)) == set(FILES)


def test_what_was_evicted_is_away(box: Sandbox) -> None:
    drop(box, "data/private")

    assert told(box) == ("ok", 0, 0, 0, 2)
    assert differing(box) == {}
    box.write("data/top", "edited")
    box.add("data")
    assert set(recorded(box)) == set(FILES)
    (box.root / "data/42/a").unlink()
    assert told(box) == ("modified", 0, 0, 1, 2)


def test_what_was_deleted_before_something_was_evicted_is_no_eviction(box: Sandbox) -> None:
    (box.root / "data/private/y").unlink()
    drop(box, "data/private")

    assert told(box) == ("modified", 0, 0, 1, 1)
    box.add("data")
    assert set(recorded(box)) == set(FILES) - {"private/y"}


def test_an_eviction_of_the_whole_leaves_a_folder_to_add_to(box: Sandbox) -> None:
    drop(box, "data")
    assert told(box)[0] == "not_cached"

    box.write("data/new", "new")

    assert told(box) == ("modified", 1, 0, 0, 6)
    box.add("data")
    assert set(recorded(box)) == {*FILES, "new"}


def test_evicting_what_is_here_in_part(other: Sandbox) -> None:
    other.write("data/43/own", "own")
    other.add("data")
    other.commit()
    push(other.project())

    drop(other, "data")

    assert not other.exists("data")
    bring(other)
    assert (other.clean(), other.read("data/43/own")) == (True, "own")


# Bringing the rest ---------------------------------------------------------------------------------------------------


def test_by_its_name_the_whole_comes(other: Sandbox) -> None:
    bring(other, "data")

    assert told(other) == ("ok", 0, 0, 0, 0)
    assert read_extents(other.project()) == {}
    (other.root / "data/top").unlink()
    assert told(other) == ("modified", 0, 0, 1, 0)


def test_without_a_name_what_is_away_stays_away(other: Sandbox) -> None:
    fetch(other.project())
    other.write("data/42/a", "edited")
    other.add("data")
    other.git("checkout", "--quiet", "data.mlx")

    other.checkout()

    assert (other.read("data/42/a"), other.read("lone")) == ("42/a as recorded", "alone")
    assert told(other) == ("ok", 0, 0, 0, 5)
    assert other.heard.notes == ["`data` stays here in part: `mlx pull data` brings the rest"]
    other.checkout(whole=True)
    assert (told(other), read_extents(other.project())) == (("ok", 0, 0, 0, 0), {})


def test_parts_one_after_the_other(other: Sandbox) -> None:
    for part, away in (("42/b", 4), ("private", 2), ("43", 1), ("top", 0)):
        bring(other, f"data/{part}")
        assert told(other) == ("ok", 0, 0, 0, away)
    shutil.rmtree(other.root / "data/43")
    assert told(other) == ("modified", 0, 0, 1, 0)


def test_a_part_of_what_is_here_as_a_whole(box: Sandbox) -> None:
    (box.root / "data/top").unlink()
    (box.root / "data/42/a").unlink()

    box.checkout("data/top")

    assert told(box) == ("modified", 0, 0, 1, 0)


def test_a_part_after_all_was_deleted(other: Sandbox) -> None:
    shutil.rmtree(other.root / "data")
    bring(other, "data/top")

    assert told(other) == ("ok", 0, 0, 0, 5)
    assert other.read("data/top") == "top as recorded"


# Other revisions -----------------------------------------------------------------------------------------------------


def test_another_revision(box: Sandbox, other: Sandbox) -> None:
    """What is away is so in every revision; what is here follows with a checkout."""
    box.write("data/private/z", "later")
    box.write("data/42/a", "later")
    shutil.rmtree(box.root / "data/43")
    box.add("data")
    box.commit()
    push(box.project())
    other.git("pull", "--quiet", str(box.root))

    assert told(other)[0] == "modified"  # what there was cannot be known without the listing
    with pytest.raises(MissingObject, match="here in part") as caught:
        other.add("data")
    assert caught.value.hint == "`mlx pull data/42/a` brings it with what you have of it"
    bring(other, "data/42/a")
    assert (told(other), other.read("data/42/a")) == (("ok", 0, 0, 0, 5), "later")

    other.git("checkout", "--quiet", "HEAD~1")
    assert told(other) == ("modified", 0, 1, 0, 5)
    other.checkout()
    assert (told(other), other.read("data/42/a")) == (("ok", 0, 0, 0, 5), "42/a as recorded")


def test_each_worktree_has_its_own(other: Sandbox, tmp_path: Path) -> None:
    other.git("worktree", "add", "--quiet", tmp_path / "tree")
    tree = Sandbox(tmp_path / "tree")
    bring(tree, "data")

    assert (told(tree), told(other)) == (("ok", 0, 0, 0, 0), ("ok", 0, 0, 0, 5))
    (tree.root / "data/top").unlink()
    bring(other, "data/top")
    assert (told(tree), told(other)) == (("modified", 0, 0, 1, 0), ("ok", 0, 0, 0, 4))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_part_that_is_away_is_not_recorded_as_deleted(other: Sandbox) -> None:
    for part in ("data/private", "data/top"):
        with pytest.raises(UsageError, match="was evicted, or never brought") as caught:
            other.add(part)
        assert caught.value.hint == f"`mlx pull {part}` brings it, `mlx add --exact {part}` records it as deleted"

    other.add("data/private", exact=True)
    assert set(recorded(other)) == set(FILES) - {"private/deep/x", "private/y"}
    (other.root / "data/42/a").unlink()
    other.add("data/42/a")
    assert set(recorded(other)) == {"42/b", "43/a", "top"}
    other.write("data/own", "own")
    other.add("data", exact=True)
    assert set(recorded(other)) == {"own"}
    assert read_extents(other.project()) == {}


def test_a_file_in_place_of_a_folder_that_is_away(other: Sandbox) -> None:
    other.write("data/private", "a file")

    with pytest.raises(UsageError, match="`data/private` is recorded as something else") as caught:
        other.add("data")

    assert caught.value.hint == "move it away, then `mlx pull data/private` brings what is recorded"
    assert told(other)[0] == "unstorable"


def test_a_listing_that_is_gone(other: Sandbox) -> None:
    pointer = other.snapshot().pointer("data")
    assert pointer is not None
    lose(other.project().cache, pointer.digest)
    before = other.read("data.mlx")
    other.write("data/new", "new")

    for path in ("data", "data/new"):
        with pytest.raises(MissingObject, match="here in part, and the listing of `data` is not"):
            other.add(path)

    assert told(other) == ("modified", 0, 0, 0, 0)
    assert other.read("data.mlx") == before
    bring(other, "data/42")
    assert other.add("data").added[0].files == 7


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"mlx": 2}', '{"mlx": 1, "folders": {"data": {"here": 1}}, "coming": []}']
)
def test_a_note_that_cannot_be_read_stops_what_would_go_by_it(other: Sandbox, text: str) -> None:
    (note,) = (other.root / ".git" / "mlx" / "extents").iterdir()
    note.write_text(text)

    with pytest.raises(UsageError, match="cannot be read") as caught:
        other.add("data")

    assert caught.value.hint.startswith("delete it, then `mlx pull`")


@pytest.mark.parametrize("path", ["data", "data/private/deep/new", "data/private/deep"])
def test_what_is_new_where_nothing_was_listed(bare: Sandbox, path: str) -> None:
    bare.write("data/42/a", "edited")
    bare.add("data")
    bare.write("data/private/deep/new", "new")

    with pytest.raises(MissingObject) as caught:
        bare.add(path)
    assert caught.value.message == "`data` is here in part, and the listing of `data/private` is not in the cache"
    assert caught.value.hint == "`mlx fetch data/private` brings it"
    fetch(bare.project(), ["data/private"])
    assert bare.add(path).added[0].files == 7
    assert told(bare) == ("ok", 0, 0, 0, 5)


def test_what_was_added_to_a_part_is_pushed(box: Sandbox, bare: Sandbox) -> None:
    bare.write("data/42/a", "edited")
    bare.write("data/new", "new")
    bare.add("data")
    bare.commit()
    push(bare.project())

    box.git("pull", "--quiet", str(bare.root))
    bring(box)

    assert (box.clean(), box.read("data/42/a"), box.read("data/new")) == (True, "edited", "new")
    assert set(recorded(box)) == {*FILES, "new"}


def test_a_folder_that_loses_most_of_its_files_is_told(box: Sandbox, tmp_path: Path) -> None:
    """In a fresh clone nobody knows that nothing was ever here."""
    other = clone(box, tmp_path / "other")
    other.write("data/new", "new")

    other.add("data")

    (note,) = other.heard.notes
    assert note.startswith("`data` was recorded with 6 files, now it is with 1: the others are recorded no longer, ")
    other.git("checkout", "--quiet", "data.mlx")
    fetch(other.project())
    other.add("data/new")
    assert told(other) == ("ok", 0, 0, 0, 6)
    other.add("data", exact=True)
    assert (told(other), len(other.heard.notes)) == (("ok", 0, 0, 0, 0), 1)


def test_straight_to_a_remote_goes_only_the_whole(other: Sandbox) -> None:
    with pytest.raises(UsageError, match="`data` is here in part"):
        add_to_remote(other.project(), ["data"])


def test_the_note_can_be_read(other: Sandbox) -> None:
    bring(other, "data/private")
    drop(other, "data/private/deep")

    (note,) = (other.root / ".git" / "mlx" / "extents").iterdir()

    assert json.loads(note.read_text()) == {
        "mlx": 1,
        "coming": [],
        "folders": {"data": {"here": ["42/a", "private"], "away": ["", "private/deep"]}},
    }


def test_names_that_are_no_text(box: Sandbox) -> None:
    name = os.fsdecode(b"data/\xff")
    box.write(name, "odd")
    box.add("data")
    box.commit()
    push(box.project())

    drop(box, name)

    assert told(box) == ("ok", 0, 0, 0, 1)
    assert not box.add("data").added[0].changed


# Moving, removing ----------------------------------------------------------------------------------------------------


def test_moving_the_whole(other: Sandbox) -> None:
    rename(other, "data", "images")

    assert told(other, "images") == ("ok", 0, 0, 0, 5)
    assert list(read_extents(other.project())) == ["images"]


@pytest.mark.parametrize(
    ("old", "new"), [("data/42", "data/44"), ("data/private", "data/other"), ("data/42/a", "data/a")]
)
def test_moving_a_part_inside(other: Sandbox, old: str, new: str) -> None:
    rename(other, old, new)

    assert told(other) == ("ok", 0, 0, 0, 5)
    assert not other.add("data").added[0].changed
    fetch(other.project())
    other.checkout(whole=True)
    assert other.clean()


def test_moving_a_part_out_and_in(other: Sandbox) -> None:
    rename(other, "data/42", "images")

    assert (told(other), told(other, "images")) == (("ok", 0, 0, 0, 4), ("ok", 0, 0, 0, 1))
    rename(other, "images", "data/42")
    assert told(other) == ("ok", 0, 0, 0, 5)


def test_moving_what_is_not_here_into_what_is(box: Sandbox) -> None:
    box.write("more/x", "x")
    box.add("more")
    box.commit()
    push(box.project())
    drop(box, "more")

    rename(box, "more", "data/more")

    assert told(box) == ("ok", 0, 0, 0, 1)
    assert "more/x" in recorded(box)


def test_what_was_removed_and_restored_is_still_in_part(other: Sandbox) -> None:
    remove(other.project(), ["data"])
    other.git("checkout", "--quiet", "data.mlx", ".gitignore")

    assert told(other) == ("ok", 0, 0, 0, 5)
    remove(other.project(), ["data"])
    assert other.add("data").added[0].files == 1
    assert read_extents(other.project()) == {}


# Stages --------------------------------------------------------------------------------------------------------------


def test_a_stage_does_not_run_on_a_part(box: Sandbox, other: Sandbox) -> None:
    text = "stages:\n  count: {cmd: find data -type f | wc -l > n, deps: [data], outs: [n]}\n"
    box.pipeline(text)
    box.run()
    box.commit()
    push(box.project())
    other.git("pull", "--quiet", str(box.root))
    bring(other, "n")

    assert other.actions() == {"count": "skip"}
    other.write("data/42/a", "edited")
    with pytest.raises(MissingObject) as caught:
        other.run()
    assert caught.value.message == "stage `count` needs `data`, which is recorded but not all in the workspace"
    assert caught.value.hint == "`mlx pull data` brings it all"
    assert other.read("n").strip() == "6"


@pytest.mark.parametrize(
    ("dep", "pull"),
    [("data/**/*", "data"), ("data/private/*", "data/private/y"), (".", "data"), ("data/42", "data/42")],
)
def test_nor_on_what_a_pattern_or_a_folder_above_finds(other: Sandbox, dep: str, pull: str) -> None:
    other.write("in/of", "of")
    rename(other, "data", "in/data")
    dep, pull = (path.replace("data", "in/data").replace(".", "in") for path in (dep, pull))
    other.pipeline(f"stages:\n  s: {{cmd: echo > o, deps: ['{dep}'], outs: [o]}}\n")

    with pytest.raises(MissingObject, match="recorded but not") as caught:
        other.run()

    assert f"`mlx pull {pull}`" in (caught.value.hint or "")
    assert not other.exists("o")


def test_it_runs_on_the_part_that_is_here(other: Sandbox) -> None:
    other.pipeline("stages:\n  s: {cmd: cat data/42/* > o, deps: [data/42/a], outs: [o]}\n")

    assert other.run() == {"s": "run"}
    assert other.read("o") == "42/a as recorded"
    assert other.run() == {"s": "skip"}


# Killed --------------------------------------------------------------------------------------------------------------


def save(box: Sandbox, at: Path) -> Callable[[], None]:
    shutil.copytree(box.root, at, symlinks=True)

    def restore() -> None:
        shutil.rmtree(box.root)
        shutil.copytree(at, box.root, symlinks=True)

    return restore


def add_if_here(box: Sandbox) -> None:
    if box.exists("data"):
        box.add("data")


VERBS: dict[str, Callable[[Sandbox], None]] = {
    "part": lambda box: bring(box, "data/private"),
    "whole": lambda box: bring(box, "data"),
    "evict": lambda box: drop(box, "data/42"),
    "evict all": lambda box: drop(box, "data"),
    "add": add_if_here,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("start", ["nothing", "part", "all"])
def test_killed_at_many_points_nothing_leaves_the_record(box: Sandbox, tmp_path: Path, verb: str, start: str) -> None:
    other = clone(box, tmp_path / "other")
    fetch(other.project())
    if start != "nothing":
        other.checkout("data/42" if start == "part" else "data")
    back = save(other, tmp_path / "saved")
    for _ in crashes(lambda: VERBS[verb](other), every=13):
        add_if_here(other)
        assert set(recorded(other)) == set(FILES)
        VERBS[verb](other)
        add_if_here(other)
        assert set(recorded(other)) == set(FILES)
        back()


def test_what_came_before_a_damaged_object_is_here(box: Sandbox, tmp_path: Path) -> None:
    box.write("more/large", large("large"))
    box.write("more/x", "x")
    box.add("more")
    box.commit()
    push(box.project())
    other = clone(box, tmp_path / "other")
    fetch(other.project())
    damage(other.project().cache, hash_bytes(large("large").encode()))

    with pytest.raises(CorruptObject):
        other.checkout()

    assert told(other) == ("ok", 0, 0, 0, 0)
    assert told(other, "more") == ("ok", 0, 0, 0, 1)
    (other.root / "data/top").unlink()
    (other.root / "more/x").unlink()
    assert (told(other)[3], told(other, "more")[3]) == (1, 1)


def test_a_checkout_of_all_that_was_killed_is_gone_on_with(box: Sandbox, tmp_path: Path) -> None:
    other = clone(box, tmp_path / "other")
    fetch(other.project())
    back = save(other, tmp_path / "saved")
    in_part = 0
    for _ in crashes(other.checkout, every=7):
        in_part += told(other)[4] in range(1, 6)
        other.checkout()
        assert other.clean()
        assert read_extents(other.project()) == {}
        back()
    assert in_part


@pytest.mark.parametrize("new", ["data/44", "images"])
def test_a_move_that_was_killed(other: Sandbox, tmp_path: Path, new: str) -> None:
    back = save(other, tmp_path / "saved")
    for at in range(0, 200, 7):
        if not killed_at(lambda: rename(other, "data/42", new), at):
            break
        with suppress(UsageError):  # all was done but to forget what was noted of the old path
            rename(other, "data/42", new)
        assert told(other)[0] == "ok"
        fetch(other.project())
        other.checkout(whole=True)
        assert other.clean()
        back()
    assert at > 5
