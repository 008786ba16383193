"""What `add` refuses, and what it changes when a path lies inside a tracked folder."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, MlxError, UsageError
from tests.objects import large
from tests.workspace.projects import Sandbox, clone, listing, make_project, make_repo

pytestmark = pytest.mark.usefixtures("crew")


def refused(box: Sandbox, *paths: str) -> UsageError:
    """Return why adding is refused, having seen that it changed nothing."""
    before = listing(box.root)
    with pytest.raises(UsageError) as caught:
        box.add(*paths)
    after = listing(box.root)
    skip = (b".git/mlx", b".git/index")  # locks, the state index; Git refreshes its own
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not [path for path in changed if not path.startswith(skip)]
    return caught.value


def cached(box: Sandbox) -> int:
    return len(list(box.project().cache.list()))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_absent_path(box: Sandbox):
    error = refused(box, "nothing")
    assert error.message == "`nothing` does not exist"
    assert error.hint == "check the spelling; paths are relative to where you are"


def test_one_bad_path_of_several_adds_none(box: Sandbox):
    box.write("good", "x")
    assert refused(box, "good", "bad").message == "`bad` does not exist"
    assert cached(box) == 0


def test_path_that_git_tracks(box: Sandbox):
    box.write("data/a b.csv", "x")
    box.commit()
    error = refused(box, "data")
    assert error.message == "Git already tracks `data/a b.csv`"
    assert (
        error.hint == "`git rm -r --cached 'data/a b.csv'` takes it out of Git and leaves the file; then add it again"
    )
    assert refused(box, "data/a b.csv").message == "Git already tracks `data/a b.csv`"


def test_path_that_git_has_staged(box: Sandbox):
    box.write("a.csv", "x")
    box.git("add", "a.csv")
    assert refused(box, "a.csv").message == "Git already tracks `a.csv`"


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_special_files_are_refused_and_never_opened(box: Sandbox, kind: str, monkeypatch: pytest.MonkeyPatch):
    (box.root / "data").mkdir()
    box.write("data/file", "x")
    monkeypatch.chdir(box.root)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "FIFO":
            os.mkfifo("data/special")
        else:
            server.bind("data/special")
        for path in ("data", "data/special"):
            with pytest.raises(UsageError) as caught:
                box.add(path)
            assert caught.value.message == f"`data/special` is a {kind}, which holds no bytes to store"
            assert caught.value.hint == "remove it, or name it in a `.mlxignore`"
    assert not box.exists("data.mlx")
    box.write("data/.mlxignore", "special\n")
    box.add("data")
    assert box.states() == {"data": "ok"}


@pytest.mark.parametrize(
    "path",
    ["", ".git", ".git/config", ".mlx", ".mlx/config.yaml", "mlx.yaml", ".gitignore", ".mlxignore", "mlx.lock",
     "mlx.lock/train.yaml", "sub/.git/x", "sub/mlx.yaml", ".GIT/config"],
)  # fmt: skip
def test_own_files_are_refused(box: Sandbox, path: str):
    if path and not box.exists(path):
        box.write(path, "mlx: 1\n")
    error = refused(box, path)
    assert error.message == f"`{path or '.'}` cannot be tracked as data"


@pytest.mark.parametrize("path", [".mlx-tmp-1-x", "data/.mlx-tmp-1-x", "data/.mlx-tmp-1-x/file"])
def test_name_of_a_file_that_is_being_written_is_refused(box: Sandbox, path: str):
    """Scans pass over such names, and the next command takes the file away."""
    box.write("data/other", "other")
    box.add("data")
    box.write(path, "mine")

    assert "is a name for files that mlx is writing" in refused(box, path).message
    assert box.read(path) == "mine"


def test_data_that_git_was_told_to_show_again_is_hidden(box: Sandbox):
    box.write(".gitignore", "/data\n*.bin\n!/data\n!*.bin\n")
    box.write("data/file", "data")
    box.write("a.bin", "data")

    assert box.add("data", "a.bin").gitignores == (".gitignore",)

    assert box.changed_in_git() == [".gitignore", ".mlx/config.yaml", "a.bin.mlx", "data.mlx"]
    assert box.add("data", "a.bin").gitignores == ()


def test_name_of_a_pointer_is_refused(box: Sandbox):
    box.write("weights.mlx", b"\x93NUMPY")
    error = refused(box, "weights.mlx")
    assert error.message == "`weights.mlx` cannot be tracked: only pointers end in `.mlx`"


def test_name_that_is_not_text(box: Sandbox):
    with open(os.path.join(os.fsencode(box.root), b"caf\xe9"), "wb"):
        pass
    error = refused(box, os.fsdecode(b"caf\xe9"))
    assert error.message == "the name 'caf\\udce9' is not UTF-8, so no pointer can be named after it"


def test_symlinks_are_refused(box: Sandbox, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("x")
    (box.root / "link").symlink_to(tmp_path / "elsewhere")
    (box.root / "lone").symlink_to("link/file")
    assert refused(box, "link").message == "`link` is a symbolic link"
    assert refused(box, "link/file").message == "`link` is a symbolic link"
    assert refused(box, "lone").message == "`lone` is a symbolic link"


def test_overlap_with_tracked_paths(box: Sandbox):
    box.write("data/raw/a", "x")
    box.write("data/other", "x")
    box.add("data/raw")
    error = refused(box, "data")
    assert error.message == "`data` holds `data/raw`, which is tracked on its own"
    assert error.hint == "`mlx remove data/raw` first, or add the other things in `data` by name"


def test_overlap_ends_with_the_pointer(box: Sandbox):
    from mlops_cli.workspace.remove import remove

    box.write("data/raw/a", "x")
    box.add("data/raw")
    box.commit()
    remove(box.project(), ["data/raw"])  # Git's index still lists the pointer
    box.add("data")
    assert box.states() == {"data": "ok"}


def test_file_that_became_a_folder_is_added_as_one(box: Sandbox):
    box.write("data", "x")
    box.add("data")
    (box.root / "data").unlink()
    box.write("data/a", "x")
    error = refused(box, "data/a")
    assert error.message == "`data` is tracked as a file"
    assert error.hint == "`mlx add data` tracks the folder it is now"
    box.add("data")
    assert box.states() == {"data": "ok"}
    assert "tree:" in box.read("data.mlx")


def test_output_of_a_stage_is_refused(box: Sandbox):
    box.pipeline("stages:\n  train:\n    cmd: echo\n    outs: [models/best]\n")
    box.write("models/best/a", "x")
    for path in ("models", "models/best", "models/best/a"):
        error = refused(box, path)
        assert error.message == f"`{path}` is made by stage `train` (its output `models/best`)"
        assert error.hint == "`mlx run train` records it"


def test_ignored_pointer_is_refused(box: Sandbox):
    box.write(".gitignore", "data/\n*.bin.*\n")
    box.write("data/raw/a", "x")
    box.write("x.bin", "x")
    error = refused(box, "data/raw")
    assert error.message == "Git ignores `data/raw.mlx`, so the pointer could not be committed"
    assert error.hint == "`git check-ignore -v data/raw.mlx` names the rule"
    assert refused(box, "x.bin").message == "Git ignores `x.bin.mlx`, so the pointer could not be committed"


def test_data_that_git_ignores_already_may_be_added(box: Sandbox):
    box.write(".gitignore", "*.bin\n")
    box.write("x.bin", "x")
    box.add("x.bin")
    assert box.states() == {"x.bin": "ok"}


def test_repository_inside_is_refused(box: Sandbox):
    make_repo(box.root / "data/clone")
    box.write("data/clone/file", "x")
    error = refused(box, "data")
    assert error.message == "`data/clone` holds a Git repository of its own (`data/clone/.git`)"
    assert error.hint == "`echo .git >> data/clone/.mlxignore` leaves it out"
    box.write("data/clone/.mlxignore", ".git\n")
    box.add("data")
    assert box.states() == {"data": "ok"}


def test_path_in_another_repository_is_refused(box: Sandbox):
    make_repo(box.root / "vendor")
    box.write("vendor/data", "x")
    assert refused(box, "vendor/data").message == "`vendor` is a Git repository of its own"


def test_path_in_another_project_is_refused(box: Sandbox):
    make_project(box.root, "inner")
    box.write("inner/data", "x")
    error = refused(box, "inner/data")
    assert error.message == "`inner` is an mlx project of its own"
    assert error.hint == "run it there: `mlx -C inner add …`"
    assert refused(box, "inner").message == "`inner` is an mlx project of its own"


def test_file_that_cannot_be_read_is_named(box: Sandbox):
    box.write("data/secret", "x", mode=0)
    if os.geteuid() != 0:
        with pytest.raises(MlxError, match="secret"):
            box.add("data")


# Adding again ---------------------------------------------------------------------------------------------------------


def test_again_changes_nothing(box: Sandbox):
    box.write("data/a", "x")
    first = box.add("data")
    assert (first.added[0].changed, first.gitignores) == (True, (".gitignore",))
    box.commit()
    second = box.add("data")
    assert (second.added[0].changed, second.gitignores) == (False, ())
    assert box.changed_in_git() == []


def test_by_the_name_of_the_pointer(box: Sandbox):
    box.write("data/a", "x")
    box.add("data")
    box.write("data/a", "y")
    box.add("data.mlx")
    assert box.states() == {"data": "ok"}


def test_dry_run_writes_nothing(box: Sandbox):
    box.write("data/a", "x")
    result = box.add("data", dry_run=True)
    assert (result.added[0].files, result.added[0].size, result.added[0].changed) == (1, 1, True)
    assert cached(box) == 0
    assert not box.exists("data.mlx")
    assert not box.exists(".gitignore")
    box.add("data")
    box.write("data/b", "y")
    assert box.add("data/b", dry_run=True).added[0].files == 2
    assert box.states() == {"data": "modified"}


def test_names_of_records_inside_the_data_are_data(box: Sandbox):
    box.write("data/mlx.yaml", "not: [a pipeline")
    box.write("data/weights.mlx", b"\x00\xff")
    box.write("data/mlx.lock/x.yaml", "nor a lock")
    box.write("data/.gitignore", "*\n")
    box.add("data")
    assert box.states() == {"data": "ok"}
    assert box.data()["data"].modified == 0
    assert box.changed_in_git() == [".gitignore", ".mlx/config.yaml", "data.mlx"]


# A path inside a tracked folder ---------------------------------------------------------------------------------------


@pytest.fixture
def tracked(box: Sandbox) -> Sandbox:
    """Return a project that tracks `data` with `a`, `sub/b`, `sub/c` and an empty folder."""
    box.write("data/a", "a")
    box.write("data/sub/b", "b")
    box.write("data/sub/c", "c")
    (box.root / "data/empty").mkdir()
    box.add("data")
    return box


def same_as_whole(box: Sandbox) -> None:
    """See that the pointer is the one that adding the whole folder gives."""
    partial = box.read("data.mlx")
    box.add("data")
    assert box.read("data.mlx") == partial
    assert box.states() == {"data": "ok"}


@pytest.mark.parametrize("path", ["data/new", "data/sub/new", "data/fresh/deeper/new", "data/empty/new"])
def test_new_file(tracked: Sandbox, path: str):
    tracked.write(path, "new")
    tracked.add(path)
    same_as_whole(tracked)


def test_changed_file_only(tracked: Sandbox):
    tracked.write("data/a", "changed")
    tracked.write("data/sub/b", "changed too")
    tracked.add("data/a")
    status = tracked.data()["data"]
    assert (status.added, status.modified, status.deleted) == (0, 1, 0)
    tracked.add("data/sub")
    same_as_whole(tracked)


def test_deleted_file(tracked: Sandbox):
    (tracked.root / "data/sub/b").unlink()
    tracked.add("data/sub/b")
    same_as_whole(tracked)


def test_last_file_of_a_folder_that_stays(tracked: Sandbox):
    (tracked.root / "data/sub/b").unlink()
    (tracked.root / "data/sub/c").unlink()
    tracked.add("data/sub/b", "data/sub/c")
    same_as_whole(tracked)


def test_deleted_folder(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data/sub")
    tracked.add("data/sub")
    same_as_whole(tracked)


def test_deleted_files_of_a_deleted_folder(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data/sub")
    tracked.add("data/sub/b", "data/sub/c")
    same_as_whole(tracked)


def test_everything_deleted(tracked: Sandbox):
    for name in ("a", "sub", "empty"):
        place = tracked.root / "data" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    tracked.add("data/a", "data/sub", "data/empty")
    same_as_whole(tracked)
    assert tracked.data()["data"].deleted == 0


def test_file_replaced_by_folder_and_back(tracked: Sandbox):
    (tracked.root / "data/a").unlink()
    tracked.write("data/a/inner", "x")
    tracked.add("data/a/inner")
    same_as_whole(tracked)
    shutil.rmtree(tracked.root / "data/a")
    tracked.write("data/a", "file again")
    tracked.add("data/a")
    same_as_whole(tracked)


def test_new_folder(tracked: Sandbox):
    tracked.write("data/new/x", "x", mode=0o755)
    (tracked.root / "data/new/link").symlink_to("x")
    (tracked.root / "data/new/empty").mkdir()
    tracked.add("data/new")
    same_as_whole(tracked)


def test_symlink_inside(tracked: Sandbox):
    (tracked.root / "data/link").symlink_to("a")
    tracked.add("data/link")
    same_as_whole(tracked)
    shutil.rmtree(tracked.root / "data")
    tracked.checkout()
    assert os.readlink(tracked.root / "data/link") == "a"


def test_part_behind_a_link_inside(tracked: Sandbox, tmp_path: Path):
    """What is behind the link is not in the folder: the link is."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_text("outside")
    (tracked.root / "data/link").symlink_to(elsewhere)
    tracked.add("data")
    pointer = tracked.read("data.mlx")
    with pytest.raises(UsageError, match="`data/link` is a symbolic link"):
        tracked.add("data/link/x")
    assert tracked.read("data.mlx") == pointer


def test_whole_and_part_at_once(tracked: Sandbox):
    tracked.write("data/a", "changed")
    tracked.write("data/sub/b", "changed")
    tracked.add("data/a", "data", "data/sub", "data/sub/b")
    same_as_whole(tracked)


def test_many_files_leave_no_trees_behind(tracked: Sandbox):
    names = [f"data/sub/{number:03}" for number in range(100)]
    for name in names:
        tracked.write(name, name)
    before = cached(tracked)
    tracked.add(*names)
    assert cached(tracked) == before + 100 + 2  # the files, `data/sub` and `data`
    same_as_whole(tracked)


def test_absent_part(tracked: Sandbox):
    assert refused(tracked, "data/nothing").message == "`data/nothing` does not exist"
    assert refused(tracked, "data/sub/nothing/deeper").message == "`data/sub/nothing/deeper` does not exist"


def test_ignored_part(tracked: Sandbox):
    tracked.write("data/.mlxignore", "*.tmp\nskip/\n")
    tracked.write("data/x.tmp", "x")
    tracked.write("data/skip/x", "x")
    for path in ("data/x.tmp", "data/skip", "data/skip/x"):
        error = refused(tracked, path)
        assert error.message == f"`{path}` is left out by a `.mlxignore`"


def test_part_of_a_folder_that_is_not_here(tracked: Sandbox, tmp_path: Path):
    tracked.commit()
    other = clone(tracked, tmp_path / "clone")
    for path in ("data/a", "data/sub"):
        error = refused(other, path)
        assert error.message == "`data` is not in the workspace"
        assert error.hint == "`mlx pull data` brings it; then add to it"
    other.write("data/new", "x")
    with pytest.raises(MissingObject) as caught:
        other.add("data/new")
    assert caught.value.message == "the listing of `data` is not in the cache, so a part of it cannot be added"
    assert caught.value.hint == "`mlx fetch data` brings it, or add all of `data`"


def test_new_part_with_the_rest_not_here(tracked: Sandbox, tmp_path: Path):
    """One more file in a large data set: pull the listing by pulling some part of it, add, push."""
    from mlops_cli.workspace.fetching import fetch
    from mlops_cli.workspace.pushing import push

    tracked.remote(url=str(tmp_path / "remote"))
    push(tracked.project())
    tracked.commit()
    other = clone(tracked, tmp_path / "clone")
    fetch(other.project(), ["data/a"])
    other.checkout("data/a")
    other.write("data/new", "new")
    other.add("data/new")
    push(other.project())
    other.commit()
    third = clone(other, tmp_path / "third")
    fetch(third.project())
    third.checkout()
    assert {path: content for path, (kind, content) in listing(third.root / "data").items() if kind == "file"} == {
        b"a": b"a", b"new": b"new", b"sub/b": b"b", b"sub/c": b"c"
    }  # fmt: skip


def test_add_heals_an_object_that_was_cut_short(box: Sandbox):
    box.write("lone", large("content"))
    box.settle()
    box.add("lone")
    box.add("lone")  # the state index knows the file now
    cache = box.project().cache
    (digest,) = cache.list()
    path = cache.object_path(digest)
    os.chmod(path, 0o644)
    os.truncate(path, 1)
    os.chmod(path, 0o444)
    box.add("lone")
    assert cache.read(digest) == large("content").encode()
