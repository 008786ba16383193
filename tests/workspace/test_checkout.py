"""Checkout: the workspace becomes what the records say, and no bytes that only the workspace has are ever lost."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError, UsageError
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.cache import Cache
from mlops_cli.workspace.checkout import Restored, foresee
from tests.disks import small_disk
from tests.objects import LARGE, damage, large, lose
from tests.workspace.projects import Sandbox, listing, make_project

pytestmark = pytest.mark.usefixtures("crew")


@pytest.fixture
def tracked(box: Sandbox) -> Sandbox:
    """Return a project whose last commit but one has version 1 of everything, and whose last has version 2."""
    for version in "12":
        for name in ("same", "sub/same"):
            box.write(f"data/{name}", "same")
        box.write("data/changes", version)
        box.write(f"data/only{version}", version)
        box.write(f"data/folder{version}/inner", version)
        box.write("lone", version)
        for other in (f"only{3 - int(version)}", f"folder{3 - int(version)}"):
            place = box.root / "data" / other
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        box.add("data", "lone")
        box.commit(version)
    return box


def back(box: Sandbox, revision: str = "HEAD~1") -> None:
    """Bring the records of another revision, as `git checkout` does."""
    box.git("checkout", "--quiet", revision)


def lost(box: Sandbox, *paths: str) -> str:
    """Return why a checkout is refused, having seen that it touched nothing."""
    before = listing(box.root)
    with pytest.raises(UsageError) as caught:
        box.checkout(*paths)
    after = listing(box.root)
    assert {k: v for k, v in after.items() if not k.startswith(b".git")} == {
        k: v for k, v in before.items() if not k.startswith(b".git")
    }
    return caught.value.message


def test_between_versions(tracked: Sandbox):
    back(tracked)
    result = tracked.checkout()
    assert result.restored == (
        Restored("data", added=2, modified=1, deleted=2),
        Restored("lone", added=0, modified=1, deleted=0),
    )
    assert sorted(listing(tracked.root / "data")) == [
        b"changes", b"folder1", b"folder1/inner", b"only1", b"same", b"sub", b"sub/same",
    ]  # fmt: skip
    assert tracked.clean()
    back(tracked, "main")
    tracked.checkout()
    assert tracked.read("data/changes") == "2"
    assert tracked.clean()


def test_dry_run_touches_nothing(tracked: Sandbox):
    back(tracked)
    before = listing(tracked.root / "data")
    assert len(tracked.checkout(dry_run=True).restored) == 2
    assert listing(tracked.root / "data") == before


def test_only_what_differs_is_written(tracked: Sandbox):
    inode = os.stat(tracked.root / "data/same").st_ino
    back(tracked)
    tracked.checkout()
    assert os.stat(tracked.root / "data/same").st_ino == inode


# Nothing is lost ------------------------------------------------------------------------------------------------------


def test_changed_file(tracked: Sandbox):
    tracked.write("data/changes", "mine")
    message = "`data/changes` would be overwritten or deleted, and no store holds the bytes"
    assert lost(tracked) == message
    assert lost(tracked, "data") == message
    assert lost(tracked, "data/changes") == message
    tracked.checkout("lone")
    assert tracked.checkout(force=True).restored == (Restored("data", 0, 1, 0),)
    assert tracked.read("data/changes") == "2"


def test_new_files_that_would_be_deleted(tracked: Sandbox):
    for number in range(5):
        tracked.write(f"data/new{number}", f"mine {number}")
    tracked.write("lone", "mine")
    assert lost(tracked) == (
        "`data/new0`, `data/new1`, `data/new2` and 3 more would be overwritten or deleted, and no store holds the bytes"
    )


@pytest.mark.parametrize(
    ("paths", "hint"),
    [
        (["lone"], "`mlx add lone` keeps it; `--force` throws it away"),
        (["data/changes"], "`mlx add data/changes` keeps it; `--force` throws it away"),
        (["out"], "`mlx run make` keeps it; `--force` throws it away"),
        (
            ["data/a file", "lone", "out"],
            "`mlx add 'data/a file' lone` and `mlx run make` keep them; `--force` throws them away",
        ),
        (
            ["data/1", "data/2", "data/3", "data/4"],
            "`mlx add data` keeps them; `--force` throws them away",
        ),
    ],
)
def test_hint_of_a_refusal(tracked: Sandbox, paths: list[str], hint: str):
    tracked.pipeline("stages:\n  make: {cmd: echo > out, outs: [out]}\n")
    tracked.run()
    for path in paths:
        tracked.write(path, "mine")
    with pytest.raises(UsageError) as caught:
        tracked.checkout()
    assert caught.value.hint == hint


def test_what_the_hint_says_keeps_it(tracked: Sandbox):
    (tracked.root / "lone").unlink()
    tracked.write("lone/inner", "mine too")
    with pytest.raises(UsageError, match="`lone/inner` would be") as caught:
        tracked.checkout()
    assert str(caught.value.hint).startswith("`mlx add lone` ")
    tracked.add("lone")
    tracked.checkout()
    assert tracked.read("lone/inner") == "mine too"


# What nothing tracks, in the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["data", "data/sub", "data/sub/deep"])
def test_left_out_file_where_a_file_is_to_be(box: Sandbox, place: str, force: bool):
    """The folder `place` became a file in the records; what is left out stays in the folder."""
    box.write(".mlxignore", "*.log\n")
    box.write("data/first", "1")
    box.write(f"{place}/a", "1")
    box.add("data")
    folder = box.commit()
    shutil.rmtree(box.root / place)
    box.write(place, "a file now")
    box.add("data")
    box.commit()
    back(box, folder)
    box.checkout()
    box.write(f"{place}/k.log", "left out")
    back(box, "main")
    before = listing(box.root / "data")
    with pytest.raises(UsageError) as caught:
        box.checkout(force=force)
    assert caught.value.message == f"`{place}/k.log` is in the way of `{place}`, and nothing tracks it"
    assert caught.value.hint == "move it away, or delete it"
    assert listing(box.root / "data") == before
    (box.root / place / "k.log").unlink()
    box.checkout()
    assert box.clean()


@pytest.mark.parametrize("wanted", ["file", "link", "folder", "empty folder"])
def test_left_out_file_in_the_very_place(box: Sandbox, wanted: str):
    box.write("data/old", "1")
    box.add("data")
    old = box.commit()
    (box.root / "data/old").unlink()
    place = box.root / "data/cache"
    if wanted == "link":
        place.symlink_to("nowhere")
    elif wanted == "file":
        place.write_text("wanted")
    else:
        place.mkdir()
        if wanted == "folder":
            (place / "inner").write_text("wanted")
    box.add("data")
    box.commit()
    back(box, old)
    box.checkout()
    box.write(".mlxignore", "/data/cache\n")
    box.write("data/cache", "mine")
    back(box, "main")
    message = lost(box)
    assert message.startswith("`data/cache` is ")
    assert box.read("data/cache") == "mine"
    (box.root / ".mlxignore").unlink()
    (box.root / "data/cache").unlink()
    box.checkout()
    assert box.clean()


def test_left_out_files_beside_are_no_obstacle(tracked: Sandbox):
    tracked.write(".mlxignore", "*.log\n")
    tracked.write("data/k.log", "left out")
    tracked.write("data/folder2/k.log", "left out")
    back(tracked)
    tracked.checkout()
    assert tracked.read("data/folder2/k.log") == "left out"
    assert tracked.clean()


# What a pull would do -------------------------------------------------------------------------------------------------


def test_foreseen_is_what_a_checkout_does(tracked: Sandbox):
    back(tracked)
    assert foresee(tracked.project()) == tracked.checkout(dry_run=True)
    shutil.rmtree(tracked.root / "data")
    assert foresee(tracked.project(), ["data"]).restored == (Restored("data", 5, 0, 0),)
    tracked.write("lone", "mine")
    with pytest.raises(UsageError, match="`lone` would be"):
        foresee(tracked.project())
    assert foresee(tracked.project(), force=True) == tracked.checkout(force=True)
    assert foresee(tracked.project()).restored == ()


def test_foreseen_without_a_cache(tracked: Sandbox):
    shutil.rmtree(tracked.project().cache.root)
    tracked.write("data/changes", "other")
    (tracked.root / "lone").unlink()
    found = foresee(tracked.project(), force=True).restored
    assert found == (Restored("data", 0, 0, 0), Restored("lone", 1, 0, 0))
    shutil.rmtree(tracked.root / "data")
    assert foresee(tracked.project(), ["data"]).restored == (Restored("data", 5, 0, 0),)
    assert foresee(tracked.project(), ["data/sub"]).restored == (Restored("data", 0, 0, 0),)
    assert not tracked.exists("data")


def test_bytes_that_a_store_holds_may_go(tracked: Sandbox):
    tracked.write("data/changes", "1")
    tracked.write("data/copy of 1", "1")
    tracked.checkout()
    assert tracked.read("data/changes") == "2"
    assert not tracked.exists("data/copy of 1")


def test_new_symlink_counts_as_bytes(tracked: Sandbox):
    (tracked.root / "data/link").symlink_to("nowhere at all")
    assert "`data/link` would be" in lost(tracked)


def test_new_empty_folder_goes(tracked: Sandbox):
    (tracked.root / "data/empty/inner").mkdir(parents=True)
    tracked.checkout()
    assert not tracked.exists("data/empty")


def test_lone_file_became_a_link(tracked: Sandbox, tmp_path: Path):
    (tmp_path / "elsewhere").write_text("precious")
    (tracked.root / "lone").unlink()
    (tracked.root / "lone").symlink_to(tmp_path / "elsewhere")
    assert "`lone` would be" in lost(tracked)
    tracked.checkout(force=True)
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert not (tracked.root / "lone").is_symlink()
    assert tracked.read("lone") == "2"


def test_folder_became_a_file_and_the_reverse(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data")
    tracked.write("data", "mine")
    (tracked.root / "lone").unlink()
    tracked.write("lone/inner", "mine too")
    assert "`data`, `lone/inner` would be" in lost(tracked)
    tracked.checkout(force=True)
    assert tracked.clean()


def test_folder_became_an_empty_folder(tracked: Sandbox):
    (tracked.root / "lone").unlink()
    (tracked.root / "lone").mkdir()
    shutil.rmtree(tracked.root / "data")
    (tracked.root / "data").mkdir()
    tracked.checkout()
    assert tracked.clean()


def test_records_that_change_kind(box: Sandbox):
    """`x` is a file, then a folder, then an empty folder, then a link in a folder; every way from one to another works."""
    versions: list[str] = []

    def version(make: Callable[[Path], None]) -> None:
        place = box.root / "data/x"
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
        make(place)
        box.add("data")
        versions.append(box.commit())

    box.write("data/other", "other")
    version(lambda place: box.write("data/x", "file") and None)
    version(lambda place: box.write("data/x/inner/deep", "folder") and None)
    version(lambda place: place.mkdir())
    version(lambda place: place.symlink_to("other"))
    version(lambda place: None)
    version(lambda place: box.write("data/x/inner", "a file where a folder was") and None)
    wanted = {}
    for one in versions:
        for other in versions:
            back(box, one)
            box.checkout()
            back(box, other)
            box.checkout()
            assert box.clean()
            found = listing(box.root / "data")
            assert wanted.setdefault(other, found) == found
    assert len({str(sorted(value.items())) for value in wanted.values()}) == len(versions)


# Where it writes ------------------------------------------------------------------------------------------------------


def test_link_in_a_folder_is_replaced_not_followed(tracked: Sandbox, tmp_path: Path):
    shutil.move(tracked.root / "data/sub", tmp_path / "elsewhere")
    (tracked.root / "data/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/same").write_text("outside")
    assert "`data/sub` would be" in lost(tracked)
    tracked.checkout(force=True)
    assert tracked.clean()
    assert not (tracked.root / "data/sub").is_symlink()
    assert (tmp_path / "elsewhere/same").read_text() == "outside"


@pytest.mark.parametrize("target", ["", "deep/er/data", "deep/er/data/x"])
def test_folder_above_that_is_a_link_is_refused(box: Sandbox, tmp_path: Path, target: str):
    box.write("deep/er/data/x", "1")
    box.add("deep/er/data")
    box.commit()
    shutil.move(box.root / "deep/er", tmp_path / "elsewhere")
    (box.root / "deep/er").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere/data")
    before = listing(tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        box.checkout(*([target] if target else []))
    assert caught.value.message == "`deep/er` is not a folder but a link or a file"
    assert caught.value.hint == "mlx does not write through links: move it away"
    assert listing(tmp_path / "elsewhere") == before


def test_file_in_the_place_of_a_parent(box: Sandbox):
    box.write("a/b/data", "1")
    box.add("a/b/data")
    box.commit()
    pointer = box.read("a/b/data.mlx")
    shutil.rmtree(box.root / "a")
    box.write("a", "mine")
    assert pointer
    assert box.states() == {}
    assert box.checkout().restored == ()
    assert box.read("a") == "mine"


@pytest.mark.parametrize("kind", ["small", "large"])
def test_full_disk_names_the_project_path(tmp_path: Path, kind: str):
    with small_disk(tmp_path) as disk:
        box = make_project(disk / "project")
        box.configure("cache.dir", str(tmp_path / "cache"))
        size = 600_000 if kind == "large" else 3000
        for number in range(1_200_000 // size):
            (tmp_path / "source").mkdir(exist_ok=True)
            (tmp_path / "source" / f"{number:03}").write_bytes(os.urandom(size))
        other = make_project(tmp_path / "other")
        other.configure("cache.dir", str(tmp_path / "cache"))
        shutil.move(tmp_path / "source", other.root / "data")
        other.add("data")
        box.write("data.mlx", other.read("data.mlx"))
        with pytest.raises(OutsideError) as caught:
            box.checkout()
    assert re.fullmatch(r"cannot write `data/\d{3}`: .*", caught.value.message)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_part_of_a_folder(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data")
    tracked.checkout("data/sub/same")
    assert sorted(listing(tracked.root / "data")) == [b"sub", b"sub/same"]
    tracked.checkout("data/folder2", "data/changes")
    assert sorted(listing(tracked.root / "data")) == [b"changes", b"folder2", b"folder2/inner", b"sub", b"sub/same"]
    tracked.checkout("data")
    assert tracked.clean()


def test_parts_inside_one_another(tracked: Sandbox):
    shutil.rmtree(tracked.root / "data")
    tracked.checkout("data/sub", "data/sub/same", "data/sub/same")
    assert sorted(listing(tracked.root / "data")) == [b"sub", b"sub/same"]
    tracked.checkout("data/changes", "data", "data/changes")
    assert tracked.clean()


def test_part_leaves_the_rest_alone(tracked: Sandbox):
    tracked.write("data/changes", "mine")
    (tracked.root / "data/sub/same").unlink()
    tracked.checkout("data/sub")
    assert tracked.read("data/sub/same") == "same"
    assert tracked.read("data/changes") == "mine"


def test_part_that_is_not_there(tracked: Sandbox):
    with pytest.raises(UsageError) as caught:
        tracked.checkout("data/nothing")
    assert caught.value.message == "`data` has no `nothing`"
    assert caught.value.hint == "`mlx ls data` lists what it has"
    with pytest.raises(UsageError) as caught:
        tracked.checkout("dato")
    assert caught.value.message == "nothing tracks `dato`"
    assert caught.value.hint == "did you mean `data`?"


def test_folder_that_holds_tracked_paths(box: Sandbox):
    box.write("a/x", "x")
    box.write("a/b/y", "y")
    box.write("c", "c")
    box.add("a/x", "a/b/y", "c")
    for path in ("a/x", "a/b/y", "c"):
        (box.root / path).unlink()
    box.checkout("a")
    assert box.states() == {"a/b/y": "ok", "a/x": "ok", "c": "missing"}
    box.checkout("c.mlx")
    assert box.clean()


# What is not here -----------------------------------------------------------------------------------------------------


def test_absent_objects_are_told_before_anything_is_touched(tracked: Sandbox):
    back(tracked)
    cache = tracked.project().cache
    pointer = tracked.snapshot().pointer("lone")
    assert pointer is not None
    lose(cache, pointer.digest)
    before = listing(tracked.root / "data")
    with pytest.raises(MissingObject) as caught:
        tracked.checkout()
    assert caught.value.message == "the cache lacks 1 object of `data`"  # `lone` and `data/changes` are one object
    assert caught.value.hint == "`mlx pull data` brings it from a remote"
    assert listing(tracked.root / "data") == before


def test_absent_listing(tracked: Sandbox):
    shutil.rmtree(tracked.project().cache.root)
    shutil.rmtree(tracked.root / "data")
    for path in ("data", "data/sub"):
        with pytest.raises(MissingObject) as caught:
            tracked.checkout(path)
        assert caught.value.message == "the cache lacks 1 object of `data`"
        assert caught.value.hint == "`mlx pull data` brings it from a remote"


def test_unreadable_old_listing_is_no_obstacle(tracked: Sandbox):
    """What is in the workspace is read from there, not from the cache."""
    cache = tracked.project().cache
    pointer = tracked.snapshot().pointer("data")
    assert pointer is not None
    back(tracked)
    lose(cache, pointer.digest)
    tracked.checkout()
    assert tracked.clean()


@pytest.mark.parametrize("size", [7, LARGE])
@pytest.mark.parametrize("link", ["copy", "reflink", "hardlink", "symlink"])
def test_damaged_object_is_not_placed(tracked: Sandbox, link: str, size: int):
    """Copies are verified as they are made; an object is read before it is linked for the first time."""
    tracked.configure("cache.link", link)
    tracked.write("lone", "x" * size)
    tracked.add("lone")
    cache = tracked.project().cache
    pointer = tracked.snapshot().pointer("lone")
    assert pointer is not None
    (tracked.root / "lone").unlink()
    damage(cache, pointer.digest)
    with pytest.raises(CorruptObject) as caught:
        tracked.checkout("lone")
    start = f"`lone`: object `{pointer.digest[:19]}` in the cache is damaged: "
    assert caught.value.message.startswith(start)
    assert caught.value.hint == (
        "it is in `quarantine/` of the cache now; `mlx pull lone` brings a good one from a remote"
    )
    assert tracked.project().cache.missing([pointer.digest]) == {pointer.digest}
    assert not tracked.exists("lone")
    assert len(os.listdir(cache.root / "quarantine")) == 1
    with pytest.raises(MissingObject):
        tracked.checkout("lone")


def cut(cache: Cache, digest: Digest) -> None:
    path = cache.object_path(digest)
    os.chmod(path, 0o644)
    os.truncate(path, 1)
    os.chmod(path, 0o444)


@pytest.mark.parametrize(
    ("spoil", "size"), [(damage, 7), (damage, LARGE), (cut, LARGE)], ids=["packed", "flipped", "cut"]
)
def test_good_copy_of_a_damaged_object_is_not_lost(box: Sandbox, spoil: Callable[[Cache, Digest], None], size: int):
    first, second = "1" * size, "2" * size
    for content in (first, second):
        box.write("lone", content)
        box.add("lone")
        box.commit(content[0])
    cache = box.project().cache
    pointer = box.snapshot().pointer("lone")
    assert pointer is not None
    spoil(cache, pointer.digest)
    back(box)
    assert lost(box, "lone") == "`lone` would be overwritten or deleted, and no store holds the bytes"
    assert box.read("lone") == second
    assert len(os.listdir(cache.root / "quarantine")) == 1
    box.add("lone")
    back(box, "lone.mlx")  # the pointer only: `HEAD` is the first version
    box.checkout("lone")
    assert box.read("lone") == first
    assert cache.read(pointer.digest) == second.encode()


def test_symlinks_to_objects_that_are_gone(tracked: Sandbox):
    tracked.write("lone", large("3"))
    tracked.write("data/large", large("4"))
    tracked.add("lone", "data")
    tracked.configure("cache.link", "symlink")
    for path in ("lone", "data"):
        place = tracked.root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    tracked.checkout()
    cache = tracked.project().cache
    moved = cache.root.rename(cache.root.with_name("moved"))
    assert tracked.states() == {"data": "modified", "lone": "not_cached"}
    with pytest.raises(MissingObject):
        tracked.checkout()
    tracked.configure("cache.dir", str(moved))
    assert tracked.states() == {"data": "modified", "lone": "missing"}
    tracked.checkout()
    assert tracked.clean()
    assert os.readlink(tracked.root / "lone").startswith(str(moved))


# Any tree over any other ----------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
contents = st.sampled_from(["1", "2", "3"])
leaves = st.one_of(
    contents.map(lambda text: ("file", text)),
    contents.map(lambda text: ("executable", text)),
    st.sampled_from([("link", "a"), ("link", "nowhere")]),
)
trees = st.dictionaries(
    names,
    st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=6),
    max_size=3,
)


def make(place: Path, tree: object) -> None:
    if isinstance(tree, dict):
        place.mkdir()
        for name, below in tree.items():
            make(place / name, below)
        return
    assert isinstance(tree, tuple)
    kind, text = tree
    if kind == "link":
        place.symlink_to(text)
    else:
        place.write_text(text)
        place.chmod(0o755 if kind == "executable" else 0o644)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees, trees, trees)
def test_any_tree_over_any_other(tmp_path_factory: pytest.TempPathFactory, old: object, new: object, mine: object):
    box = make_project(tmp_path_factory.mktemp("trees") / "project")
    place = box.root / "data"
    make(place, old)
    box.add("data")
    before = box.read("data.mlx")
    shutil.rmtree(place)
    make(place, new)
    box.add("data")
    wanted = listing(place)
    box.write("data.mlx", before)
    box.checkout()
    assert box.states() == {"data": "ok"}
    shutil.rmtree(place)
    make(place, mine)
    box.checkout(force=True)
    assert box.states() == {"data": "ok"}
    shutil.rmtree(place)
    make(place, new)
    assert listing(place) == wanted


def test_folders_deeper_than_python_recurses(box: Sandbox):
    """Nothing recurses once a folder."""
    deep = "/".join(["data", *["d"] * 350])
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    try:
        subprocess.run(["mkdir", "-p", box.root / deep], check=True)  # Python's own would recurse
        box.write(f"{deep}/file", "1")
        box.add("data")
        pointer = box.read("data.mlx")
        subprocess.run(["rm", "-r", box.root / "data"], check=True)
        box.checkout()
        assert box.read(f"{deep}/file") == "1"
        box.write(f"{deep}/file", "2")
        box.add("data")
        box.write("data.mlx", pointer)
        box.checkout()
        assert box.read(f"{deep}/file") == "1"
    finally:
        sys.setrecursionlimit(usual)


def test_damaged_object_keeps_no_other_file_from_coming_back(tracked: Sandbox):
    tracked.write("data/one", "unlike any other")
    tracked.add("data")
    before = listing(tracked.root / "data")
    damage(tracked.project().cache, hash_bytes(b"unlike any other"))
    shutil.rmtree(tracked.root / "data")
    with pytest.raises(CorruptObject):
        tracked.checkout()
    del before[b"one"]
    assert listing(tracked.root / "data") == before
