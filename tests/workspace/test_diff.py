"""Data that differs between two revisions, or between one and the workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.workspace.compare import describe_change
from mlops_cli.workspace.differences import FileChange, diff_data, diff_workspace
from mlops_cli.workspace.snapshot import open_snapshot, split_revisions
from tests.workspace.projects import Sandbox, clone


@pytest.fixture
def history(box: Sandbox) -> Sandbox:
    """Return a project with two commits of data, and changes in the workspace since."""
    for name in ("a", "b", "sub/c", "sub/d"):
        box.write(f"data/{name}", name)
    box.write("lone", "1")
    box.write("goes", "x")
    box.add("data", "lone", "goes")
    box.commit()
    box.write("data/b", "BB")
    box.write("data/new", "new")
    (box.root / "data/sub/c").unlink()
    box.write("lone", "22")
    box.write("comes", "x")
    box.add("data", "lone", "comes")
    (box.root / "goes.mlx").unlink()
    box.commit()
    box.write("data/sub/d", "DDD")
    return box


def between(box: Sandbox, old: str, new: str | None = None, *targets: str) -> list[tuple[str, str]]:
    with open_snapshot(box.project(), old) as before:
        if new is None:
            found = diff_workspace(box.project(), before, targets)
        else:
            with open_snapshot(box.project(), new) as after:
                found = diff_data(box.project().cache, before, after, targets)
    return [(change.path, change.change) for change in found]


FIRST_TO_SECOND = [
    ("comes", "added"),
    ("data/b", "modified"),
    ("data/new", "added"),
    ("data/sub/c", "deleted"),
    ("goes", "deleted"),
    ("lone", "modified"),
]


def test_two_revisions(history: Sandbox):
    assert between(history, "HEAD~1", "HEAD") == FIRST_TO_SECOND
    swapped = {"added": "deleted", "deleted": "added", "modified": "modified"}
    assert between(history, "HEAD", "HEAD~1") == [(path, swapped[word]) for path, word in FIRST_TO_SECOND]
    assert between(history, "HEAD", "HEAD") == []


def test_sizes_and_digests(history: Sandbox):
    with open_snapshot(history.project(), "HEAD~1") as old, open_snapshot(history.project(), "HEAD") as new:
        (change,) = diff_data(history.project().cache, old, new, ["data/b"])
        (added,) = diff_data(history.project().cache, old, new, ["comes"])
    assert (change.path, change.old_size, change.new_size) == ("data/b", 1, 2)
    assert change.old_digest != change.new_digest
    assert isinstance(added, FileChange)
    assert (added.old_size, added.old_digest, added.new_size) == (None, None, 1)


def test_workspace(history: Sandbox):
    assert between(history, "HEAD") == [("data/sub/d", "modified")]
    # `goes` is tracked no more, but its bytes are still there, as they were.
    expected = [change for change in (*FIRST_TO_SECOND, ("data/sub/d", "modified")) if change[0] != "goes"]
    assert between(history, "HEAD~1") == sorted(expected)
    shutil.rmtree(history.root / "data")
    assert between(history, "HEAD", None, "data/sub") == [("data/sub/d", "deleted")]
    history.write("data", "a file now")
    assert ("data", "added") in between(history, "HEAD")


def test_targets(history: Sandbox):
    assert between(history, "HEAD~1", "HEAD", "data/sub") == [("data/sub/c", "deleted")]
    assert between(history, "HEAD~1", "HEAD", "data/sub", "data/b") == [
        ("data/b", "modified"),
        ("data/sub/c", "deleted"),
    ]
    assert between(history, "HEAD~1", "HEAD", "data/sub/c", "lone", "data/sub") == [
        ("data/sub/c", "deleted"),
        ("lone", "modified"),
    ]
    assert between(history, "HEAD~1", "HEAD", "data/a") == []
    assert between(history, "HEAD~1", "HEAD", "goes") == [("goes", "deleted")]
    with pytest.raises(UsageError, match="nothing tracks `nothing`"):
        between(history, "HEAD~1", "HEAD", "nothing")


def test_executable_mark(box: Sandbox):
    box.write("tool", "x")
    box.add("tool")
    box.commit()
    (box.root / "tool").chmod(0o755)
    assert between(box, "HEAD") == [("tool", "modified")]
    box.add("tool")
    box.commit()
    assert between(box, "HEAD~1", "HEAD") == [("tool", "modified")]
    assert between(box, "HEAD") == []


def test_what_became_of_the_executable_mark(box: Sandbox):
    for name in ("gains", "keeps", "loses"):
        box.write(f"data/{name}", name, mode=0o644 if name == "gains" else 0o755)
    box.write("lone", "x")
    box.add("data", "lone")
    box.commit()
    box.write("data/gains", "gains", mode=0o755)
    box.write("data/keeps", "other content")
    box.write("data/loses", "other content", mode=0o644)
    (box.root / "lone").unlink()
    with open_snapshot(box.project(), "HEAD") as before:
        found = {change.path: change.executable for change in diff_workspace(box.project(), before)}
    assert found == {"data/gains": True, "data/keeps": None, "data/loses": False, "lone": None}


def test_empty_tracked_folder_comes_and_goes(box: Sandbox):
    box.write("other", "x")
    box.add("other")
    box.commit()
    (box.root / "empty").mkdir()
    box.add("empty")
    assert between(box, "HEAD") == [("empty", "added")]
    box.commit()
    assert between(box, "HEAD~1", "HEAD") == [("empty", "added")]
    assert between(box, "HEAD", "HEAD~1") == [("empty", "deleted")]
    box.write("empty/file", "x")
    assert between(box, "HEAD") == [("empty/file", "added")]
    shutil.rmtree(box.root / "empty")
    box.write("empty", "a file now")
    assert between(box, "HEAD") == [("empty", "modified")]


@pytest.mark.parametrize("revision", ["HEAD", "HEAD~1", "@"])
def test_repository_without_a_commit(box: Sandbox, revision: str):
    with pytest.raises(UsageError) as caught:
        between(box, revision)
    assert caught.value.message == "there is no commit yet"
    assert caught.value.hint == '`git commit -m "…"` makes the first one'


def test_file_to_folder(box: Sandbox):
    box.write("x", "file")
    box.add("x")
    box.commit()
    (box.root / "x").unlink()
    box.write("x/inner", "folder")
    box.add("x")
    box.commit()
    assert between(box, "HEAD~1", "HEAD") == [("x", "deleted"), ("x/inner", "added")]
    assert between(box, "HEAD", "HEAD~1") == [("x", "added"), ("x/inner", "deleted")]


def test_listing_that_is_not_here(history: Sandbox, tmp_path: Path):
    other = clone(history, tmp_path / "clone")
    with pytest.raises(MissingObject) as caught:
        between(other, "HEAD~1", "HEAD")
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert between(other, "HEAD~1", "HEAD", "lone") == [("lone", "modified")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (("HEAD", None), ())),
        (["HEAD~1"], (("HEAD~1", None), ())),
        (["HEAD~1", "HEAD"], (("HEAD~1", "HEAD"), ())),
        (["data"], (("HEAD", None), ("data",))),
        (["HEAD~1", "data"], (("HEAD~1", None), ("data",))),
        (["HEAD~1", "HEAD", "data", "lone"], (("HEAD~1", "HEAD"), ("data", "lone"))),
        (["lone.mlx"], (("HEAD", None), ("lone.mlx",))),
        (["data/sub/c"], (("HEAD", None), ("data/sub/c",))),  # deleted in the workspace
        (["HEAD~1", "data/gone/long ago"], (("HEAD~1", None), ("data/gone/long ago",))),
        (["main", "x"], (("main", "x"), ())),
    ],
)
def test_which_arguments_are_revisions(history: Sandbox, arguments: list[str], expected: object):
    assert split_revisions(history.project(), history.root, arguments) == expected


def test_paths_are_recognised_from_a_folder_inside(history: Sandbox):
    inside = history.root / "data"
    assert split_revisions(history.project(), inside, ["sub/c"]) == (("HEAD", None), ("sub/c",))
    shutil.rmtree(inside)
    assert split_revisions(history.project(), history.root, ["data"]) == (("HEAD", None), ("data",))


def test_words(history: Sandbox):
    from mlops_cli.workspace.snapshot import Tracked

    with open_snapshot(history.project(), "HEAD~1") as old, open_snapshot(history.project(), "HEAD") as new:
        before, after = ({entry.path: entry for entry in side.tracked()} for side in (old, new))

    def words(one: Tracked, other: Tracked) -> str:
        return describe_change(history.project().cache, one, other)

    assert words(before["data"], after["data"]) == "1 file modified, 1 added, 1 deleted"
    assert words(before["lone"], after["lone"]) == "1 → 2 bytes"
    assert words(before["lone"], before["goes"]).startswith("same size, blake3:")
    assert words(before["lone"], after["data"]) == "a file became a folder"
    assert words(before["data"], after["lone"]) == "a folder became a file"
    shutil.rmtree(history.project().cache.root)
    assert words(before["data"], after["data"]) == "12 → 11 bytes"


def test_a_listing_that_is_not_here_is_named_with_what_brings_it(history: Sandbox):
    history.git("tag", "second")
    shutil.rmtree(history.project().cache.root / "packs")

    for new, revisions in ((None, "--rev HEAD~1"), ("second", "--rev HEAD~1 --rev second")):
        with pytest.raises(MissingObject) as caught:
            between(history, "HEAD~1", new)
        assert caught.value.message == "the listing of `data` is not in the cache"
        assert caught.value.hint == f"`mlx fetch {revisions} data` brings it"
