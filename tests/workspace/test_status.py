"""The states of tracked paths."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlops_cli.workspace.compare import DataState, DataStatus
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.pushing import push
from tests.objects import lose
from tests.workspace.projects import Sandbox, clone


@pytest.fixture
def tracked(box: Sandbox) -> Sandbox:
    for name in ("a", "b", "sub/c"):
        box.write(f"data/{name}", name)
    box.write("lone", "lone")
    box.add("data", "lone")
    return box


def test_nothing_tracked(box: Sandbox):
    assert box.data() == {}
    assert box.clean()


def test_ok(tracked: Sandbox):
    assert tracked.states() == {"data": "ok", "lone": "ok"}
    assert tracked.clean()


def test_counts(tracked: Sandbox):
    tracked.write("data/a", "changed")
    tracked.write("data/new", "x")
    tracked.write("data/new2", "x")
    (tracked.root / "data/sub/c").unlink()
    (tracked.root / "data/sub").rmdir()
    tracked.write("lone", "changed")
    assert tracked.data()["data"] == DataStatus("data", DataState.MODIFIED, added=2, modified=1, deleted=1)
    assert tracked.data()["lone"] == DataStatus("lone", DataState.MODIFIED, modified=1)
    assert not tracked.clean()


def test_missing_and_not_cached(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data")
    (tracked.root / "lone").unlink()
    assert tracked.data()["data"] == DataStatus("data", DataState.MISSING, deleted=3)
    assert tracked.data()["lone"] == DataStatus("lone", DataState.MISSING, deleted=1)
    shutil.rmtree(tracked.project().cache.root)
    assert tracked.states() == {"data": "not_cached", "lone": "not_cached"}


def test_missing_needs_every_object(tracked: Sandbox, tmp_path: Path):
    """A folder of which only the listing is here cannot be checked out: `missing` would promise too much."""
    tracked.remote(url=str(tmp_path / "remote"))
    push(tracked.project())
    tracked.commit()
    other = clone(tracked, tmp_path / "clone")
    fetch(other.project(), ["data/a"])
    assert other.states()["data"] == "not_cached"
    fetch(other.project(), ["data"])
    assert other.states()["data"] == "missing"


def test_modified_without_the_old_listing(tracked: Sandbox):
    shutil.rmtree(tracked.project().cache.root)
    tracked.write("data/a", "changed")
    assert tracked.data()["data"] == DataStatus("data", DataState.MODIFIED, restorable=False)


def test_modified_without_a_part_of_the_old_listing(tracked: Sandbox):
    from mlops_cli.store.trees import find

    pointer = tracked.snapshot().pointer("data")
    assert pointer is not None
    cache = tracked.project().cache
    sub = find(cache, pointer.digest, [b"sub"])
    assert sub is not None
    lose(cache, sub.digest)
    tracked.write("data/sub/c", "changed")
    assert tracked.data()["data"].state is DataState.MODIFIED


def test_kinds_that_changed(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data")
    tracked.write("data", "a file now")
    (tracked.root / "lone").unlink()
    tracked.write("lone/inner", "a folder now")
    assert tracked.states() == {"data": "modified", "lone": "modified"}
    shutil.rmtree(tracked.root / "lone")
    (tracked.root / "lone").symlink_to("data")
    assert tracked.states() == {"data": "modified", "lone": "modified"}


def test_empty_folders_count(tracked: Sandbox):
    (tracked.root / "data/empty").mkdir()
    assert tracked.data()["data"].added == 1


def test_leftovers_of_killed_commands_do_not_count(tracked: Sandbox):
    tracked.write("data/.mlx-tmp-1-abc", "half a fi")
    assert tracked.clean()


def test_output_without_a_lock_is_untracked(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: echo\n    outs: [out]\n    metrics: [m.json]\n")
    assert box.states() == {}
    box.write("out", "x")
    box.write("m.json", "{}")
    assert box.states() == {"out": "untracked"}


def test_removed_path_is_not_told(tracked: Sandbox):
    from mlops_cli.workspace.remove import remove

    tracked.commit()
    result = remove(tracked.project(), ["data", "lone.mlx"])
    assert result.removed == ("data", "lone")
    assert result.gitignores == (".gitignore",)
    assert tracked.states() == {}
    assert tracked.read("data/a") == "a"
    assert "data/a" in tracked.changed_in_git()


def test_remove_refuses_before_it_touches_anything(tracked: Sandbox):
    from mlops_cli.errors import UsageError
    from mlops_cli.workspace.remove import remove

    with pytest.raises(UsageError) as caught:
        remove(tracked.project(), ["data", "data/a"])
    assert caught.value.message == "`data/a` has no pointer `data/a.mlx`"
    assert remove(tracked.project(), ["data"], dry_run=True).removed == ("data",)
    assert tracked.states() == {"data": "ok", "lone": "ok"}
