"""What could hide a need from a collection: settings of Git, other clones, broken folders, damage that was put away."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, Inconclusive, MlxError, OutsideError, RecordError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.checkup import Scope
from mlops_cli.store.trees import tree_objects
from mlops_cli.workspace.collect import collect, empty_trash, restore_trash
from mlops_cli.workspace.integrity import examine
from tests.workspace.collecting import LARGE, add_new, content, gc, held, in_trash, later
from tests.workspace.projects import Sandbox, make_project

OLD, NEW = content("old"), content("new")
OLD_DIGEST = hash_bytes(OLD.encode())


@pytest.fixture
def old(box: Sandbox) -> Sandbox:
    """Return a project in whose workspace `data` is tracked, and nothing committed but the settings."""
    box.commit("settings")
    add_new(box, "data", OLD)
    return box


# Git ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variable",
    ["GIT_LITERAL_PATHSPECS=1", "GIT_COMMON_DIR=/nowhere", "GIT_OBJECT_DIRECTORY=/nowhere", "GIT_DIR=/nowhere"],
)
def test_no_variable_hides_a_record(variable: str, old: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    add_new(old, "more", NEW)
    old.git("add", "data.mlx")
    project = old.project()
    monkeypatch.setenv(*variable.split("="))

    collect(project, now=later())

    monkeypatch.undo()
    assert held(old, OLD_DIGEST)
    assert held(old, hash_bytes(NEW.encode()))


def test_a_graft_hides_nothing(old: Sandbox) -> None:
    first = old.git("rev-parse", "HEAD")
    old.commit("with")
    old.git("rm", "--quiet", "data.mlx")
    old.commit("without")
    old.commit("last")
    old.git("reflog", "expire", "--expire=now", "--all")
    old.write(".git/info/grafts", f"{old.git('rev-parse', 'HEAD')} {first}\n")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_tag_that_was_fetched_counts(old: Sandbox) -> None:
    old.git("checkout", "--quiet", "-b", "side")
    old.commit("with")
    old.git("tag", "-a", "v1", "-m", "v1")
    tag = old.git("rev-parse", "v1")
    old.git("checkout", "--quiet", "main")
    old.git("branch", "-D", "side")
    old.git("tag", "-d", "v1")
    old.git("reflog", "expire", "--expire=now", "--all")
    old.write(".git/FETCH_HEAD", f"{tag}\t\ttag 'v1' of elsewhere\n")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_short_name_in_the_list_of_a_cherry_pick_counts(old: Sandbox) -> None:
    old.git("checkout", "--quiet", "-b", "side")
    old.commit("with")
    short = old.git("rev-parse", "--short", "HEAD")
    old.git("checkout", "--quiet", "main")
    old.git("branch", "-D", "side")
    old.git("reflog", "expire", "--expire=now", "--all")
    old.write(".git/sequencer/todo", f"pick {short} with\n")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_worktree_whose_way_back_is_lost_counts(old: Sandbox) -> None:
    old.git("worktree", "add", "--quiet", "--detach", "../other")
    shutil.move(old.root / "data.mlx", old.root.parent / "other" / "data.mlx")
    other = replace(old, root=old.root.parent / "other")
    other.commit()
    (old.root / ".git" / "worktrees" / "other" / "gitdir").unlink()

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_file_that_git_will_add_later_stops_nothing(old: Sandbox) -> None:
    old.git("add", "--intent-to-add", "data.mlx")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_link_of_git_that_leads_nowhere_stops_nothing(old: Sandbox) -> None:
    old.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/gone")
    old.commit()

    gc(old)

    assert held(old, OLD_DIGEST)


def test_an_empty_record_in_history_does_not_excuse_one_in_the_workspace(old: Sandbox) -> None:
    old.write("empty.mlx", "")
    old.commit()
    (old.root / "empty.mlx").unlink()
    old.git("rm", "--quiet", "--cached", "empty.mlx")
    old.write("data.mlx", "")

    with pytest.raises(RecordError, match=r"data\.mlx"):
        gc(old)


def test_a_main_worktree_that_is_elsewhere_and_not_there_stops_it(tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "first"), make_project(tmp_path / "second")
    for box in (first, second):
        box.configure("cache.dir", str(tmp_path / "shared"))
    second.git("init", "--quiet", "--separate-git-dir", tmp_path / "git")
    second.git("config", "core.worktree", second.root)
    add_new(second, "data", OLD)
    second.root.rename(tmp_path / "away")

    with pytest.raises(Inconclusive, match="its files are not"):
        gc(first)


# Other clones -------------------------------------------------------------------------------------------------------


def test_the_clone_that_a_cache_lies_in_counts(tmp_path: Path) -> None:
    owner, guest = make_project(tmp_path / "owner"), make_project(tmp_path / "guest")
    add_new(owner, "data", OLD)
    guest.configure("cache.dir", str(owner.project().cache.root))
    add_new(guest, "data", NEW)

    gc(guest)
    assert held(owner, OLD_DIGEST)
    gc(owner)
    assert held(owner, hash_bytes(NEW.encode()))


def test_clones_whose_caches_are_links_to_one_count(tmp_path: Path) -> None:
    boxes = [make_project(tmp_path / "one"), make_project(tmp_path / "two")]
    (tmp_path / "big").mkdir()
    for box in boxes:
        (box.root / ".git" / "mlx" / "cache").symlink_to(tmp_path / "big")
    add_new(boxes[0], "data", OLD)
    add_new(boxes[1], "data", NEW)

    gc(boxes[0])
    gc(boxes[1])

    assert held(boxes[0], OLD_DIGEST)
    assert held(boxes[0], hash_bytes(NEW.encode()))


def test_the_files_of_another_project_with_a_separate_git_folder_count(tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "first"), make_project(tmp_path / "second")
    for box in (first, second):
        box.configure("cache.dir", str(tmp_path / "shared"))
    second.git("init", "--quiet", "--separate-git-dir", tmp_path / "elsewhere")
    add_new(second, "data", OLD)

    gc(first)

    assert held(second, OLD_DIGEST)


@pytest.mark.parametrize("whose", ["own", "other"])
def test_symlinks_keep_objects_whatever_the_setting_is_now(whose: str, tmp_path: Path) -> None:
    first, second = make_project(tmp_path / "first"), make_project(tmp_path / "second")
    for box in (first, second):
        box.configure("cache.dir", str(tmp_path / "shared"))
    second.configure("cache.link", "symlink")
    second.write("data/a", content("a", LARGE))
    second.add("data")
    (second.root / "data.mlx").unlink()
    if whose == "own":
        second.configure("cache.link", "copy")

    gc(second if whose == "own" else first)

    assert second.read("data/a") == content("a", LARGE)


# Damage --------------------------------------------------------------------------------------------------------------


def damaged_tree(box: Sandbox) -> None:
    for number in range(300):
        box.write(f"data/{number}", content(str(number), 200))
    box.add("data")
    cache = box.project().cache
    place = cache.packs.find(box.snapshot().tracked()[0].digest)
    assert place is not None
    path = Path(cache.packs.path_of(place.pack))
    data = bytearray(path.read_bytes())
    data[place.offset + 80] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_damaged_tree_stops_it_also_once_it_was_put_away(box: Sandbox) -> None:
    damaged_tree(box)
    one = hash_bytes(content("7", 200).encode())

    for _ in range(3):
        with pytest.raises(MlxError, match=r"data\.mlx"):
            gc(box)

    assert held(box, one)


def test_a_damaged_output_of_a_run_cache_entry_stops_nothing(box: Sandbox) -> None:
    """The entry is of no use any more; what other records need of the same tree is another matter."""
    box.pipeline("stages:\n  make:\n    cmd: mkdir out && seq 1000 | split -l 1 - out/\n    outs: [out]\n")
    box.run()
    lock = box.root / "mlx.lock" / "make.yaml"
    digest = box.snapshot().tracked()[0].digest
    cache = box.project().cache
    place = cache.packs.find(digest)
    assert place is not None
    path = Path(cache.packs.path_of(place.pack))
    data = bytearray(path.read_bytes())
    data[place.offset + 80] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    text = lock.read_text()
    lock.unlink()

    for _ in range(3):
        collect(box.project(), now=time.time(), grace=3600)
    lock.write_text(text)
    for _ in range(2):
        with pytest.raises(CorruptObject, match=r"mlx\.lock/make\.yaml"):
            collect(box.project(), now=time.time(), grace=3600)


# The trash -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, LARGE])
def test_what_is_needed_again_comes_back_before_the_trash_is_emptied(size: int, box: Sandbox) -> None:
    text = content("x", size)
    digest = add_new(box, "data", text)
    pointer = box.read("data.mlx")
    (box.root / "data.mlx").unlink()
    now = later()
    gc(box, now=now)
    assert not held(box, digest)
    box.write("data.mlx", pointer)

    gc(box, now=now + 1e7)

    assert held(box, digest)


def test_a_pack_in_the_trash_without_a_good_end_counts(box: Sandbox) -> None:
    digest = add_new(box, "data", OLD)
    pointer = box.read("data.mlx")
    (box.root / "data.mlx").unlink()
    now = later()
    gc(box, now=now)
    (path,) = (path for path in (box.project().cache.root / "trash").rglob("*.pack"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])
    box.write("data.mlx", pointer)

    gc(box, now=now + 1e7)

    box.project().cache.check(digest)


def test_a_file_among_the_run_records_that_is_none_stops_nothing(old: Sandbox) -> None:
    runs = old.project().cache.root / "runs"
    runs.mkdir()
    (runs / "é.yaml").write_text("mine")

    gc(old)

    assert (runs / "é.yaml").exists()
    assert examine(old.project(), Scope()).runs.count == 0


def test_a_trash_that_nobody_may_read_is_told(old: Sandbox) -> None:
    root = old.project().cache.root
    (root / "trash").write_text("in the way")

    for act in (
        lambda: gc(old),
        lambda: restore_trash(old.project(), dry_run=True),
        lambda: restore_trash(old.project()),
        lambda: empty_trash(old.project()),
        lambda: examine(old.project(), Scope(), repair=True),
    ):
        with pytest.raises(OutsideError, match="the cache"):
            act()


def test_coming_back_leaves_the_times_of_a_users_file(box: Sandbox) -> None:
    box.configure("cache.link", "hardlink")
    box.write("data", content("x", LARGE))
    box.settle("data")
    box.add("data")
    (box.root / "data.mlx").unlink()
    before = (box.root / "data").stat()
    gc(box)
    assert before.st_nlink == 2

    restore_trash(box.project())

    assert (box.root / "data").stat().st_mtime_ns == before.st_mtime_ns
    assert not collect(box.project(), now=time.time()).plan.going.objects


def test_emptying_the_trash_leaves_what_is_needed_again(box: Sandbox) -> None:
    digest = add_new(box, "data", OLD)
    pointer = box.read("data.mlx")
    (box.root / "data.mlx").unlink()
    gc(box)
    box.write("data.mlx", pointer)

    empty_trash(box.project())

    assert held(box, digest)
    assert in_trash(box) == []


def test_a_pack_that_comes_back_brings_the_whole_folder(box: Sandbox) -> None:
    """The listing is in one pack, what it names in others and in files of their own: all of it is needed again."""
    for name, size in (("a", 40), ("b/c", LARGE), ("b/d", 50)):
        box.write(f"data/{name}", content(name, size))
    box.add("data")
    pointer = box.read("data.mlx")
    (box.root / "data.mlx").unlink()
    now = later()
    gc(box, now=now)
    assert len(in_trash(box)) >= 2
    box.write("data.mlx", pointer)

    foreseen = gc(box, now=now + 1e7, dry_run=True)
    found = gc(box, now=now + 1e7)

    assert foreseen.returning == found.returning
    assert found.returning.objects == 2
    assert not found.plan.going.objects
    for digest, _ in tree_objects(box.project().cache, box.snapshot().tracked()[0].digest):
        box.project().cache.check(digest)


def test_restoring_does_not_give_a_good_object_for_a_damaged_one(box: Sandbox) -> None:
    text = content("x", LARGE)
    digest = add_new(box, "data", text)
    (box.root / "data.mlx").unlink()
    gc(box)
    add_new(box, "data", text)
    path = Path(box.project().cache.object_path(digest))
    path.chmod(0o644)
    path.write_text(content("y", LARGE))
    path.chmod(0o444)

    restore_trash(box.project())

    box.project().cache.check(digest)
