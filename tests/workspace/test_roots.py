"""Whatever names an object keeps it; what cannot be read stops the collection."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, Inconclusive, MlxError, OutsideError, RecordError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline import journal
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.workspace.collect import forget_project
from mlops_cli.workspace.project import find_project
from tests.workspace.collecting import LARGE, add_new, content, gc, held, in_trash
from tests.workspace.projects import Sandbox, clone, make_project

OLD, NEW = content("old"), content("new")
OLD_DIGEST = hash_bytes(OLD.encode())


@pytest.fixture
def old(box: Sandbox) -> Sandbox:
    """Return a project in whose workspace `data` is tracked, and nothing committed but the settings."""
    box.commit("settings")
    add_new(box, "data", OLD)
    return box


def on_branch(box: Sandbox) -> None:
    box.git("checkout", "--quiet", "-b", "side")
    box.commit()
    box.git("checkout", "--quiet", "main")


def on_tag(box: Sandbox) -> None:
    on_branch(box)
    box.git("tag", "-a", "v1", "-m", "v1", "side")
    box.git("branch", "-D", "side")
    box.git("reflog", "expire", "--expire=now", "--all")


def on_hidden_ref(box: Sandbox) -> None:
    on_branch(box)
    box.git("update-ref", "refs/mlx/exp/one", "side")
    box.git("branch", "-D", "side")
    box.git("reflog", "expire", "--expire=now", "--all")


def on_remote_branch(box: Sandbox) -> None:
    on_branch(box)
    box.git("update-ref", "refs/remotes/origin/side", "side")
    box.git("branch", "-D", "side")
    box.git("reflog", "expire", "--expire=now", "--all")


def on_tree_tag(box: Sandbox) -> None:
    on_branch(box)
    box.git("tag", "tree", "side^{tree}")
    box.git("branch", "-D", "side")
    box.git("reflog", "expire", "--expire=now", "--all")


def in_stash(box: Sandbox) -> None:
    box.git("stash", "push", "--quiet", "--include-untracked")


def in_older_stash(box: Sandbox) -> None:
    in_stash(box)
    box.write("other", "x")
    box.git("stash", "push", "--quiet", "--include-untracked")


def in_reflog(box: Sandbox) -> None:
    box.commit()
    box.git("reset", "--quiet", "--hard", "HEAD~1")
    (box.root / ".git" / "ORIG_HEAD").unlink()


def at_detached_head(box: Sandbox) -> None:
    box.git("checkout", "--quiet", "--detach")
    box.commit()
    box.git("reflog", "expire", "--expire=now", "--all")
    (box.root / "data.mlx").unlink()
    box.git("rm", "--quiet", "--cached", "data.mlx")


def in_worktree_head(box: Sandbox) -> None:
    box.git("worktree", "add", "--quiet", "--detach", "../other")
    shutil.move(box.root / "data.mlx", box.root.parent / "other" / "data.mlx")
    other = replace(box, root=box.root.parent / "other")
    other.commit()
    shutil.rmtree(box.root / ".git" / "worktrees" / "other" / "logs")
    other.git("rm", "--quiet", "data.mlx")


def in_worktree_files(box: Sandbox) -> None:
    box.git("worktree", "add", "--quiet", "--detach", "../other")
    shutil.move(box.root / "data.mlx", box.root.parent / "other" / "data.mlx")


def in_worktree_that_is_gone(box: Sandbox) -> None:
    in_worktree_files(box)
    replace(box, root=box.root.parent / "other").git("add", "data.mlx")
    shutil.rmtree(box.root.parent / "other")


def in_index(box: Sandbox) -> None:
    box.git("add", "data.mlx")
    (box.root / "data.mlx").unlink()


def in_merge_of_others(box: Sandbox) -> None:
    """Theirs has the old bytes, ours others; the workspace and its index hold both sides."""
    base = box.git("rev-parse", "HEAD")
    box.commit("theirs")
    theirs = box.git("rev-parse", "HEAD")
    box.git("reset", "--quiet", "--hard", base)
    add_new(box, "data", content("ours"))
    box.commit("ours")
    with pytest.raises(Exception, match="returned non-zero"):
        box.git("merge", theirs)
    box.git("reflog", "expire", "--expire=now", "--all")
    (box.root / ".git" / "MERGE_HEAD").unlink()
    (box.root / ".git" / "ORIG_HEAD").unlink()
    assert b"<<<<<<<" in (box.root / "data.mlx").read_bytes()


def in_merge_head(box: Sandbox) -> None:
    box.commit("theirs")
    theirs = box.git("rev-parse", "HEAD")
    box.git("reset", "--quiet", "--hard", "HEAD~1")
    box.write("x", "x")
    box.commit("ours")
    box.git("merge", "--quiet", "--no-commit", "--no-ff", theirs)
    box.git("rm", "--quiet", "--force", "data.mlx")
    box.git("reflog", "expire", "--expire=now", "--all")
    (box.root / ".git" / "ORIG_HEAD").unlink()


def in_workspace(box: Sandbox) -> None:
    pass


def after_amending_merge(box: Sandbox) -> None:
    """Only a merge, not either of its parents, has the record."""
    box.git("checkout", "--quiet", "-b", "side")
    shutil.move(box.root / "data.mlx", box.root.parent / "kept")
    box.write("x", "x")
    box.commit("side")
    box.git("checkout", "--quiet", "main")
    box.write("y", "y")
    box.commit("main")
    box.git("merge", "--quiet", "--no-commit", "--no-ff", "side")
    shutil.move(box.root.parent / "kept", box.root / "data.mlx")
    box.commit("merge")
    box.git("branch", "merged")
    box.git("reset", "--quiet", "--hard", "HEAD~1")


def on_dropped_side(box: Sandbox) -> None:
    """A merge that kept nothing of a side: what the side had is history all the same."""
    box.git("checkout", "--quiet", "-b", "side")
    box.commit("side")
    box.git("checkout", "--quiet", "main")
    box.write("y", "y")
    box.commit("main")
    box.git("merge", "--quiet", "--strategy=ours", "side")
    box.git("branch", "-D", "side")
    box.git("reflog", "expire", "--expire=now", "--all")


def under_another_name(box: Sandbox) -> None:
    """The first commit has the same bytes in a file that is no record."""
    shutil.move(box.root / "data.mlx", box.root / "a.txt")
    box.commit("copy")
    box.git("mv", "a.txt", "data.mlx")
    box.commit("named")
    box.git("rm", "--quiet", "data.mlx")
    box.commit("gone")


def in_replaced_commit(box: Sandbox) -> None:
    box.commit("with")
    with_it = box.git("rev-parse", "HEAD")
    box.git("rm", "--quiet", "data.mlx")
    box.commit("without")
    box.git("replace", with_it, "HEAD~2")
    box.git("reflog", "expire", "--expire=now", "--all")


def in_journal(box: Sandbox) -> None:
    project = box.project()
    entry = Entry(b"data", Kind.FILE, len(OLD), 1, OLD_DIGEST)
    journal.begin(project, journal.Unfinished("train", {"data": entry, "none": None}, "mlx.lock/train.yaml", None))
    (box.root / "data.mlx").unlink()


def in_nested_project(box: Sandbox) -> None:
    (box.root / "inner" / ".mlx").mkdir(parents=True)
    box.write("inner/.mlx/config.yaml", "mlx: 1\n")
    shutil.move(box.root / "data.mlx", box.root / "inner" / "data.mlx")


ROOTS = [
    in_workspace,
    on_branch,
    on_tag,
    on_hidden_ref,
    on_remote_branch,
    on_tree_tag,
    in_stash,
    in_older_stash,
    in_reflog,
    at_detached_head,
    in_worktree_head,
    in_worktree_files,
    in_worktree_that_is_gone,
    in_index,
    in_merge_of_others,
    in_merge_head,
    after_amending_merge,
    on_dropped_side,
    under_another_name,
    in_replaced_commit,
    in_journal,
    in_nested_project,
]


@pytest.mark.parametrize("put", ROOTS, ids=lambda put: put.__name__)
def test_it_is_kept(put: Callable[[Sandbox], None], old: Sandbox) -> None:
    (old.root / "data").unlink()
    put(old)
    if put not in (in_workspace, in_merge_of_others):
        assert not old.exists("data.mlx")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_what_nothing_names_goes(old: Sandbox) -> None:
    add_new(old, "data", NEW)

    gc(old)

    assert not held(old, OLD_DIGEST)
    assert held(old, hash_bytes(NEW.encode()))


def test_all_of_a_folder_is_kept(box: Sandbox) -> None:
    for name in ("a", "deep/b", "deep/deeper/c"):
        box.write(f"data/{name}", content(name, LARGE if name == "a" else 50))
    (box.root / "data" / "deep" / "link").symlink_to("b")
    box.add("data")
    before = set(box.project().cache.list())

    gc(box)

    assert set(box.project().cache.list()) == before


def test_a_lock_keeps_what_went_in_and_what_came_out(box: Sandbox) -> None:
    box.pipeline("stages: {copy: {cmd: cp data out, deps: [data], outs: [out]}}")
    add_new(box, "data", OLD)
    box.run()
    out = hash_bytes(OLD.encode())
    box.write("data", NEW)
    box.run()  # of a file that nobody added again: the lock alone names it
    (box.root / "data.mlx").unlink()

    gc(box)

    assert held(box, hash_bytes(NEW.encode()))
    assert not held(box, out)


def test_a_young_run_cache_entry_keeps_its_outputs_and_an_old_one_goes(box: Sandbox) -> None:
    box.pipeline("stages: {copy: {cmd: cp params.yaml out, deps: [params.yaml], outs: [out]}}")
    box.write("params.yaml", "a: 1\n")
    box.run()
    box.write("params.yaml", "a: 2\n")
    box.run()
    first = hash_bytes(b"a: 1\n")

    gc(box, grace=2 * 365 * 24 * 3600.0)
    assert held(box, first)
    gc(box)

    assert not held(box, first)
    assert len(list(box.project().cache.list_runs())) == 1  # that of the lock
    assert len(in_trash(box)) == 2


# A cache for several ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Sandbox, Sandbox]:
    """Return two projects that share a cache; only the second needs the old bytes."""
    first, second = make_project(tmp_path / "first"), make_project(tmp_path / "second")
    for box in (first, second):
        box.configure("cache.dir", "../shared")
        box.commit()
    add_new(second, "data", OLD)
    add_new(first, "data", NEW)
    return first, second


def test_a_second_project_keeps_what_it_needs(two: tuple[Sandbox, Sandbox]) -> None:
    first, second = two

    found = gc(first)

    assert held(second, OLD_DIGEST)
    assert found.projects == (str(first.root), str(second.root))
    (second.root / "data.mlx").unlink()
    gc(first)
    assert not held(second, OLD_DIGEST)


def test_a_project_that_is_gone_stops_it_until_it_is_forgotten(two: tuple[Sandbox, Sandbox]) -> None:
    first, second = two
    shutil.rmtree(second.root)

    with pytest.raises(Inconclusive, match=f"`{second.root}` uses this cache, and is gone") as caught:
        gc(first)
    assert f"--forget {second.root}" in (caught.value.hint or "")
    assert held(first, OLD_DIGEST)
    with pytest.raises(UsageError, match="is still there"):
        forget_project(first.project(), first.root)
    with pytest.raises(UsageError, match="no project at"):
        forget_project(first.project(), first.root / "nowhere")
    forget_project(first.project(), second.root, dry_run=True)
    with pytest.raises(Inconclusive):
        gc(first)
    forget_project(first.project(), second.root)
    gc(first)

    assert not held(first, OLD_DIGEST)


def test_a_clone_with_a_cache_of_its_own_notes_nothing(old: Sandbox) -> None:
    assert not (old.project().cache.root / "projects").exists()


# What cannot be read -------------------------------------------------------------------------------------------------


def truncated_in_workspace(box: Sandbox) -> None:
    data = (box.root / "data.mlx").read_bytes()
    (box.root / "data.mlx").write_bytes(data[: len(data) // 2])


def emptied_in_workspace(box: Sandbox) -> None:
    (box.root / "data.mlx").write_bytes(b"")


def truncated_in_history(box: Sandbox) -> None:
    truncated_in_workspace(box)
    box.commit()
    (box.root / "data.mlx").unlink()


def of_a_later_version(box: Sandbox) -> None:
    box.write("data.mlx", (box.root / "data.mlx").read_text().replace("mlx: 1", "mlx: 2"))


def broken_lock(box: Sandbox) -> None:
    box.write("mlx.lock/train.yaml", "mlx: 1\nouts: 7\n")


def broken_journal(box: Sandbox) -> None:
    box.write(".git/mlx/journal/main/train.json", '{"outs"')


def broken_ref(box: Sandbox) -> None:
    box.write(".git/refs/heads/side", "garbage\n")


def corrupt_git_object(box: Sandbox) -> None:
    box.commit()
    blob = box.git("rev-parse", "HEAD:data.mlx")
    path = box.root / ".git" / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-6])


def missing_git_object(box: Sandbox) -> None:
    box.commit()
    blob = box.git("rev-parse", "HEAD:data.mlx")
    (box.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()


def missing_commit(box: Sandbox) -> None:
    first = box.git("rev-parse", "HEAD")
    box.commit()
    (box.root / ".git" / "objects" / first[:2] / first[2:]).unlink()


def broken_note_of_a_project(box: Sandbox) -> None:
    note = box.project().cache.root / "projects" / "x.json"
    note.parent.mkdir()
    note.write_text("{")


def locked_worktree_that_is_gone(box: Sandbox) -> None:
    box.git("worktree", "add", "--quiet", "--detach", "../other")
    box.git("worktree", "lock", "../other")
    shutil.rmtree(box.root.parent / "other")


@pytest.mark.parametrize(
    ("damage", "error", "named"),
    [
        (truncated_in_workspace, RecordError, "data.mlx"),
        (emptied_in_workspace, RecordError, "data.mlx"),
        (truncated_in_history, RecordError, "data.mlx"),
        (of_a_later_version, RecordError, "data.mlx"),
        (broken_lock, RecordError, "mlx.lock/train.yaml"),
        (broken_journal, OutsideError, "train.json"),
        (broken_ref, OutsideError, "refs/heads/side"),
        (corrupt_git_object, OutsideError, ".git"),
        (missing_git_object, OutsideError, "missing or damaged"),
        (missing_commit, OutsideError, ".git"),
        (broken_note_of_a_project, OutsideError, "x.json"),
        (locked_worktree_that_is_gone, Inconclusive, "other"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_read_stops_it(
    damage: Callable[[Sandbox], None], error: type[MlxError], named: str, old: Sandbox
) -> None:
    unneeded = add_new(old, "gone", content("gone"))
    (old.root / "gone.mlx").unlink()
    damage(old)

    with pytest.raises(error) as caught:
        gc(old)

    assert named in caught.value.message
    assert caught.value.hint
    assert held(old, OLD_DIGEST)
    assert held(old, unneeded)


def test_a_damaged_tree_stops_it(box: Sandbox) -> None:
    for number in range(2000):
        box.write(f"data/{content(str(number), 200)}"[:200], "x")
    box.add("data")
    cache = box.project().cache
    digest = box.snapshot().tracked()[0].digest
    place = cache.packs.find(digest)
    assert place is not None
    path = Path(cache.packs.path_of(place.pack))
    data = bytearray(path.read_bytes())
    data[place.offset + 80] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)

    with pytest.raises(CorruptObject, match=r"data\.mlx"):
        gc(box)


def test_salvage_keeps_what_a_broken_record_spells(old: Sandbox) -> None:
    unneeded = add_new(old, "gone", content("gone"))
    (old.root / "gone.mlx").unlink()
    old.write("data.mlx", (old.root / "data.mlx").read_text().replace("size:", "sizes:"))
    old.commit()

    gc(old, salvage=True)

    assert held(old, OLD_DIGEST)
    assert not held(old, unneeded)


def test_another_programs_files_are_no_records(old: Sandbox) -> None:
    old.write("filter.mlx", "<!DOCTYPE FilterScript>\n<FilterScript/>\n")
    old.write("live.mlx", b"PK\x03\x04\x00\x00")
    old.write(".mlx/x.mlx", "anything")
    (old.root / "link.mlx").symlink_to("nowhere")
    old.commit()

    gc(old)

    assert held(old, OLD_DIGEST)


def test_an_absent_tree_is_no_error(old: Sandbox) -> None:
    old.write("far.mlx", f"mlx: 1\npath: far\ntree: blake3:{'0' * 64}\nsize: 0\nfiles: 0\n")

    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_shallow_clone_is_refused_unless_asked_for(old: Sandbox, tmp_path: Path) -> None:
    old.commit()
    origin = f"file://{old.root}"
    shallow = Sandbox(tmp_path / "shallow")
    old.git("clone", "--quiet", "--depth=1", origin, shallow.root)
    add_new(shallow, "data", NEW)
    gone = add_new(shallow, "data", content("newest"))
    add_new(shallow, "data", NEW)

    with pytest.raises(Inconclusive, match="is shallow"):
        gc(shallow)
    gc(shallow, allow_shallow=True)

    assert not held(shallow, gone)


def test_a_partial_clone_is_refused(old: Sandbox, tmp_path: Path) -> None:
    other = clone(old, tmp_path / "clone")
    other.git("config", "remote.origin.promisor", "true")

    with pytest.raises(Inconclusive, match="is partial"):
        gc(other)


def test_symlinks_to_objects_keep_them(box: Sandbox) -> None:
    box.configure("cache.link", "symlink")
    box.write("data/a", content("a", LARGE))
    box.add("data")
    (box.root / "data.mlx").unlink()
    assert (box.root / "data" / "a").is_symlink()

    gc(box)

    assert box.read("data/a") == content("a", LARGE)


def test_symlinks_of_others_keep_objects_too(box: Sandbox, tmp_path: Path) -> None:
    other = make_project(tmp_path / "other")
    for each, link in ((box, "symlink"), (other, "copy")):
        each.configure("cache.dir", str(tmp_path / "cache"))
        each.configure("cache.link", link)
    box.write("data/a", content("a", LARGE))
    box.add("data")
    (box.root / "data.mlx").unlink()
    box.configure("cache.link", "copy")
    gone = add_new(other, "x", OLD)
    (other.root / "x.mlx").unlink()

    gc(other)

    assert box.read("data/a") == content("a", LARGE)
    assert not held(other, gone)


def test_a_record_that_git_is_writing_is_read_when_it_is_there(old: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer, lock = old.root / "data.mlx", old.root / ".git" / "index.lock"
    data = pointer.read_bytes()
    pointer.write_bytes(b"")
    lock.touch()

    def finish(seconds: float) -> None:
        pointer.write_bytes(data)
        lock.unlink()

    monkeypatch.setattr("mlops_cli.workspace.roots.time.sleep", finish)
    gc(old)

    assert held(old, OLD_DIGEST)


def test_a_record_that_git_left_half_written_stops_every_collection(
    old: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old.root / "data.mlx").write_bytes(b"")
    (old.root / ".git" / "index.lock").touch()
    seconds = iter(range(0, 10**6, 2))
    monkeypatch.setattr("mlops_cli.workspace.roots.time.sleep", lambda _: None)
    monkeypatch.setattr("mlops_cli.workspace.roots.time.monotonic", lambda: float(next(seconds)))

    for _ in range(2):
        with pytest.raises(RecordError, match="nobody can tell what a record needs"):
            gc(old)

    assert held(old, OLD_DIGEST)


def test_a_separate_git_folder_is_found(tmp_path: Path) -> None:
    box = make_project(tmp_path / "project")
    box.git("init", "--quiet", "--separate-git-dir", tmp_path / "elsewhere")
    add_new(box, "data", OLD)

    gc(box)

    assert find_project(box.root, os.environ).git.common_dir == tmp_path / "elsewhere"
    assert held(box, OLD_DIGEST)
