"""Evicting: what goes is on the remote, what something else needs stays, and a pull brings everything back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import CorruptObject, LockedError, MlxError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store.guard import alone
from mlops_cli.store.trees import walk
from mlops_cli.workspace.evict import Eviction, evict
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.relink import relink
from mlops_cli.workspace.remotes import add_remote
from tests.crashing import killed_at
from tests.objects import cache_at, large, lose, stored
from tests.workspace.collecting import content
from tests.workspace.projects import Sandbox, listing, make_project

MODES = ("copy", "hardlink", "symlink")


def run(box: Sandbox, *paths: str, **options: Any) -> Eviction:
    project = box.project()
    with exclusive(project, "mlx evict", box.heard, dry_run=options.get("dry_run", False)):
        return evict(project, paths, reporter=box.heard, **options)


def names(*contents: str) -> set[str]:
    return {hash_bytes(text.encode()).removeprefix("blake3:") for text in contents}


def pull(box: Sandbox, *paths: str) -> None:
    fetch(box.project(), paths)
    box.checkout(*paths, whole=True)


def here(box: Sandbox) -> set[str]:
    return stored(box.project().cache.root)


def usage(box: Sandbox) -> int:
    root = box.project().cache.root
    return sum(
        path.stat().st_size for folder in ("objects", "packs") for path in (root / folder).rglob("*") if path.is_file()
    )


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    """Return a project that has pushed small and large files: `data`, `other` and `lone`."""
    box.remote()
    for number in range(20):
        box.write(f"data/{number}", content(f"number {number}", 3000))
    box.write("data/sub/large", large("large"))
    box.write("data/sub/shared", "shared with other")
    (box.root / "data" / "empty").mkdir()
    (box.root / "data" / "link").symlink_to("0")
    box.write("other/shared", "shared with other")
    box.write("lone", large("lone"))
    box.add("data", "other", "lone")
    box.commit()
    push(box.project())
    return box


@pytest.mark.parametrize("mode", MODES)
def test_what_was_evicted_comes_back(box: Sandbox, mode: str) -> None:
    box.configure("cache.link", mode)
    for path in ("data", "lone"):
        subprocess.run(["rm", "-rf", box.root / path], check=True)
    box.checkout(force=True)
    before, had = listing(box.root / "data"), here(box)

    planned = run(box, "data", "lone", dry_run=True)
    assert (listing(box.root / "data"), here(box)) == (before, had)
    done = run(box, "data", "lone")

    assert done == planned
    assert not box.exists("data")
    assert not box.exists("lone")
    assert box.states() == {"data": "not_cached", "lone": "not_cached", "other": "ok"}
    assert names("shared with other") <= here(box)
    assert not names(large("large"), large("lone"), content("number 3", 3000)) & here(box)
    assert [(each.path, each.remote, each.kept, each.edited) for each in done.paths] == [
        ("data", "storage", 1, 0),
        ("lone", "storage", 0, 0),
    ]
    assert [each.files for each in done.paths] == [24, 1]
    assert run(box, "data", "lone").empty
    pull(box)
    assert listing(box.root / "data").keys() == before.keys()
    assert box.clean()
    assert here(box) == had


def test_the_space_is_freed(box: Sandbox) -> None:
    before = usage(box)

    done = run(box, "data", "lone")

    freed = sum(each.size for each in done.paths)
    assert freed > 0
    assert usage(box) <= before - freed * 0.9
    assert not [path for path in (box.project().cache.root / "trash").rglob("*") if path.is_file()]
    assert done.freed == freed + sum(each.removed for each in done.paths)


def test_only_the_cache(box: Sandbox) -> None:
    before = listing(box.root / "data")

    done = run(box, "data", cache_only=True)

    assert listing(box.root / "data") == before
    assert box.clean()
    (each,) = done.paths
    assert (each.files, each.removed, each.kept) == (0, 0, 1)
    assert not names(large("large")) & here(box)
    box.settle()
    box.add("data")  # stores it again, although nothing has changed
    assert names(large("large"), content("number 3", 3000)) <= here(box)


def test_links_are_files_of_the_user(box: Sandbox) -> None:
    """With symlinks, the object is the file: without the workspace's it cannot go."""
    box.configure("cache.link", "symlink")
    (box.root / "lone").unlink()
    box.checkout(force=True)
    assert (box.root / "lone").is_symlink()

    done = run(box, "lone", cache_only=True)

    assert done.empty
    assert done.paths[0].kept == 1
    assert box.read("lone") == large("lone")
    run(box, "lone")
    assert not os.path.lexists(box.root / "lone")


@pytest.mark.parametrize("part", ["data/sub", "data/sub/large", "data/3"])
def test_a_part(box: Sandbox, part: str) -> None:
    before = listing(box.root / "data")

    done = run(box, part)

    assert not box.exists(part)
    assert box.exists("data/4")
    assert names(content("number 4", 3000)) <= here(box)
    assert done.paths[0].path == "data"
    pull(box)
    assert listing(box.root / "data") == before


def test_a_part_that_another_part_needs_stays(box: Sandbox) -> None:
    box.write("data/3 again", content("number 3", 3000))
    box.add("data")
    push(box.project())

    done = run(box, "data/3")

    assert (done.paths[0].objects, done.paths[0].kept, done.paths[0].files) == (0, 1, 1)
    assert names(content("number 3", 3000)) <= here(box)


# What is nowhere else ------------------------------------------------------------------------------------------------


def test_what_was_not_pushed_is_never_dropped(box: Sandbox) -> None:
    box.write("data/new", "new")
    box.write("more", "more")
    box.add("data", "more")
    before, had = listing(box.root), here(box)

    for targets in (["data"], ["lone", "data"], ["more"]):
        with pytest.raises(UsageError) as caught:
            run(box, *targets)
        assert "remote `storage` does not hold" in caught.value.message
        assert "may be the only copy, and nothing was evicted" in caught.value.message
        assert caught.value.hint == f"`mlx push {targets[-1]}` first"
    assert (listing(box.root / "data"), here(box)) == (
        {name.removeprefix(b"data/"): what for name, what in before.items() if name.startswith(b"data/")},
        had,
    )
    assert run(box, "data/sub").paths[0].objects == 1


def test_an_edit_stays(box: Sandbox) -> None:
    box.write("lone", "edited")

    done = run(box, "lone")

    assert box.read("lone") == "edited"
    assert [each.edited for each in done.paths] == [1]


@pytest.mark.parametrize("edit", ["data/3", "data/new", "data/sub/new"])
def test_a_folder_with_edits_is_not_torn(box: Sandbox, edit: str) -> None:
    """What is left would look as if the rest had been deleted, and the next add would record that."""
    box.write(edit, "edited")
    before, had = listing(box.root / "data"), here(box)

    for dry_run in (True, False):
        with pytest.raises(UsageError, match="`data` is not as recorded") as caught:
            run(box, "data", "lone", dry_run=dry_run)
        assert "--cache-only" in (caught.value.hint or "")
    assert (listing(box.root / "data"), here(box)) == (before, had)
    assert box.exists("lone")
    run(box, "data", cache_only=True)
    assert listing(box.root / "data") == before


def test_a_part_that_went_is_no_deletion(box: Sandbox) -> None:
    run(box, "data/sub")

    assert (box.data()["data"].state, box.data()["data"].away) == ("ok", 2)
    assert not box.add("data").added[0].changed


def test_a_file_that_changes_meanwhile_stays(box: Sandbox) -> None:
    def edit(_: Eviction) -> bool:
        box.write("lone", "written while the question was asked")
        return True

    with pytest.raises(UsageError, match="`lone` was changed"):
        run(box, "lone", agree=edit)

    assert box.read("lone").startswith("written while")
    assert names(large("lone")) <= here(box)


def test_what_no_git_remote_knows_is_told(box: Sandbox, tmp_path: Path) -> None:
    """A collection of the remote from another clone asks what Git's remotes need."""

    def told() -> bool:
        box.heard.notes.clear()
        run(box, "data")
        pull(box, "data")
        return any("`git push`" in note and "`data`" in note for note in box.heard.notes)

    assert not told()  # nobody else can know
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path / "origin"], check=True)
    box.git("remote", "add", "origin", str(tmp_path / "origin"))
    assert told()
    box.git("push", "--quiet", "origin", "HEAD")
    assert not told()
    box.write("data/0", "edited")
    box.add("data")
    push(box.project())
    assert told()
    box.git("add", ".")
    assert told()
    box.commit()
    assert told()
    box.git("push", "--quiet", "origin", "HEAD")
    assert not told()


def test_a_no_changes_nothing(box: Sandbox) -> None:
    before, had = listing(box.root / "data"), here(box)

    run(box, "data", agree=lambda _: False)

    assert (listing(box.root / "data"), here(box)) == (before, had)


def gone(remote: Path) -> None:
    max((remote / "packs").iterdir(), key=lambda path: path.stat().st_size).unlink()


def cut(remote: Path) -> None:
    path = max((remote / "packs").iterdir(), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])


def rotten(remote: Path) -> None:
    path = max((remote / "packs").iterdir(), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("poison", "verify"), [(gone, False), (cut, False), (rotten, True), (gone, True)])
def test_a_remote_that_lies_is_found_out(box: Sandbox, poison: Any, verify: bool) -> None:
    poison(box.root.parent / "remote")
    before, had = listing(box.root / "data"), here(box)

    with pytest.raises(MlxError) as caught:
        run(box, "data", "lone", "other", verify=verify)

    assert isinstance(caught.value, UsageError if poison is gone else CorruptObject)
    assert "nothing was evicted" in caught.value.message
    assert (caught.value.hint or "").startswith("`mlx push --repair ")
    assert (listing(box.root / "data"), here(box)) == (before, had)


def test_what_a_listing_names_that_is_not_here_is_asked_for_too(box: Sandbox) -> None:
    (entry,) = (entry for entry in box.snapshot().tracked() if entry.path == "data")
    lose(box.project().cache, entry.digest)
    _, store = open_project_remote(box.project(), "storage")
    store.deny([hash_bytes(content("number 3", 3000).encode())])
    store.forget_faults()

    with pytest.raises(UsageError, match="does not hold 1 object of `data`"):
        run(box, "data")

    assert box.exists("data/3")
    push(box.project(), ["other"])
    fetch(box.project(), ["data/sub"])
    push(box.project())
    run(box, "data")
    assert not box.exists("data")
    pull(box)
    assert box.clean()


def test_outputs_that_remotes_never_get_are_refused(box: Sandbox) -> None:
    box.pipeline("stages: {s: {cmd: echo a > o, outs: [{o: {push: false}}]}}\n")
    box.run()

    with pytest.raises(UsageError, match="`o` is kept from remotes"):
        run(box, "o")

    assert box.exists("o")


def test_outputs_go_though_another_stage_reads_them(box: Sandbox) -> None:
    box.pipeline(
        "stages:\n  a: {cmd: echo a > a.txt, outs: [a.txt]}\n  b: {cmd: cat a.txt > b.txt, deps: [a.txt], outs: [b.txt]}\n"
    )
    box.run()
    box.commit()
    push(box.project())

    assert run(box, "a.txt").paths[0].objects == 0  # `b.txt` has the same bytes
    box.pipeline(
        "stages:\n  a: {cmd: echo a > a.txt, outs: [a.txt]}\n  b: {cmd: wc -c a.txt > b.txt, deps: [a.txt], outs: [b.txt]}\n"
    )
    pull(box)
    box.run()
    box.commit()
    push(box.project())
    assert run(box, "a.txt").paths[0].objects == 1
    pull(box)
    assert set(box.actions().values()) == {"skip"}


# Who else needs it ---------------------------------------------------------------------------------------------------


def test_another_worktree_needs_what_it_has(box: Sandbox, tmp_path: Path) -> None:
    box.git("worktree", "add", "--quiet", tmp_path / "second")

    done = run(box, "data", "lone")

    assert [(each.objects, each.kept > 0) for each in done.paths] == [(0, True), (0, True)]
    assert not box.exists("data")
    box.checkout()
    assert box.clean()
    box.git("worktree", "remove", "--force", tmp_path / "second")
    assert run(box, "lone").paths[0].objects == 1


def test_another_project_needs_what_it_names(box: Sandbox, tmp_path: Path) -> None:
    box.configure("cache.dir", str(tmp_path / "cache"))
    box.add("data", "lone", "other")
    other = make_project(tmp_path / "other")
    other.configure("cache.dir", str(tmp_path / "cache"))
    other.write("mine", large("lone"))
    other.add("mine")
    other.commit()
    (other.root / "mine.mlx").unlink()
    other.commit("gone, but in its history")

    done = run(box, "data", "lone")

    assert [each.objects > 0 for each in done.paths] == [True, False]
    assert names(large("lone")) <= stored(tmp_path / "cache")


def test_the_index_and_head_need_what_they_name_at_other_paths(box: Sandbox) -> None:
    box.write("staged", large("lone"))
    box.add("staged")
    box.git("add", "staged.mlx")
    (box.root / "staged.mlx").unlink()
    assert run(box, "lone").paths[0].kept == 1
    box.git("commit", "--quiet", "-m", "with it")
    box.git("rm", "--quiet", "--cached", "staged.mlx")
    assert run(box, "lone").paths[0].kept == 1
    box.git("commit", "--quiet", "-m", "without it")

    assert run(box, "lone").paths[0].objects == 1  # older commits do not count: the remote has it


@pytest.mark.parametrize("mode", ["copy", "symlink"])
def test_killed_at_every_point(box: Sandbox, tmp_path: Path, mode: str) -> None:
    """Whatever the point: what is left is here or on the remote, no link leads nowhere, and the same command completes."""
    box.configure("cache.link", mode)
    relink(box.project())
    saved = tmp_path / "saved"
    shutil.copytree(box.root, saved, symlinks=True)
    at, died = 0, True
    while died:
        shutil.rmtree(box.root)
        shutil.copytree(saved, box.root, symlinks=True)
        died = killed_at(lambda: run(box, "data"), at)
        assert [path.name for path in box.root.rglob("*") if path.is_symlink() and not path.exists()] in ([], ["link"])
        assert box.read("other/shared") == "shared with other"
        run(box, "data")
        assert not box.exists("data")
        pull(box)
        assert box.clean()
        assert box.read("data/sub/shared") == "shared with other"
        at += 7
    assert at > 70


def test_it_waits_for_nobody_who_stores(box: Sandbox) -> None:
    project = box.project()
    holder = box.project()
    box.configure("core.lock_timeout", "0")
    with holder.guard.held(), pytest.raises(LockedError):
        run(box, "lone")
    assert names(large("lone")) <= here(box)
    with alone(project.cache.root, doing="test", timeout=1):
        pass
    assert run(box, "lone").paths[0].objects == 1


def test_each_path_is_asked_for_at_its_own_remote(box: Sandbox) -> None:
    add_remote(box.project(), {}, "private", "../private", paths=["lone"])

    with pytest.raises(UsageError, match="remote `private` does not hold 1 object of `lone`"):
        run(box, "lone")

    push(box.project())
    assert run(box, "lone", "other").paths[0].remote == "private"


def test_listings_stay(box: Sandbox) -> None:
    run(box, "data")

    (entry,) = (entry for entry in box.snapshot().tracked() if entry.path == "data")
    assert len(list(walk(cache_at(box.project().cache.root), entry.digest))) > 20
