"""Tracked data moves with its record; nothing is overwritten, and a killed move is completed by the same again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.workspace import move as module
from mlops_cli.workspace import reading as scanning
from mlops_cli.workspace import renaming
from mlops_cli.workspace.move import Moved, move
from mlops_cli.workspace.state import Clock, State
from tests.workspace.projects import Sandbox, listing, wait_for


def run(box: Sandbox, old: str, new: str, *, dry_run: bool = False) -> Moved:
    return move(box.project(), old, new, dry_run=dry_run)


@pytest.fixture
def filled(box: Sandbox) -> Sandbox:
    """Return a project with a lone file and two folders."""
    box.write("a.bin", "lone")
    box.write("data/x.txt", "x")
    box.write("data/sub/y.txt", "y", mode=0o755)
    box.write("other/z.txt", "z")
    box.add("a.bin", "data", "other")
    box.commit()
    return box


def rebuilt(box: Sandbox) -> bool:
    """Say whether adding everything anew changes no record: what was recorded is what a scan finds."""
    box.settle()
    return not any(item.changed for item in box.add(*box.snapshot().pointer_paths).added)


def test_a_file_moves_with_its_pointer(filled: Sandbox) -> None:
    done = run(filled, "a.bin", "models/b.bin")

    assert (done.data, done.written, done.removed) == (True, ("models/b.bin.mlx",), ("a.bin.mlx",))
    assert set(done.gitignores) == {".gitignore", "models/.gitignore"}
    assert filled.read("models/b.bin") == "lone"
    assert not filled.exists("a.bin")
    assert "/a.bin" not in filled.read(".gitignore")
    assert filled.clean()
    assert rebuilt(filled)
    assert filled.changed_in_git() == sorted(["a.bin.mlx", "models/b.bin.mlx", ".gitignore", "models/.gitignore"])


def test_a_folder_moves(filled: Sandbox) -> None:
    before = listing(filled.root / "data")

    run(filled, "data", "images")

    assert listing(filled.root / "images") == before
    assert filled.states() == {"a.bin": "ok", "images": "ok", "other": "ok"}


def test_changes_in_the_workspace_stay_changes(filled: Sandbox) -> None:
    filled.write("data/x.txt", "changed")

    run(filled, "data.mlx", "images")

    assert filled.states()["images"] == "modified"
    assert filled.read("images/x.txt") == "changed"


def test_a_name_like_that_of_a_pointer_is_one_only_beside_one(filled: Sandbox) -> None:
    run(filled, "a.bin.mlx", "b.bin.mlx")
    assert filled.states()["b.bin"] == "ok"

    run(filled, "data/x.txt", "data/x.mlx")

    assert filled.read("data/x.mlx") == "x"
    assert filled.clean()
    with pytest.raises(UsageError, match=r"only pointers end in `\.mlx`"):
        run(filled, "b.bin", "c.mlx")


def test_a_pointer_moves_without_data(filled: Sandbox) -> None:
    shutil.rmtree(filled.root / "data")

    done = run(filled, "data", "images")

    assert not done.data
    assert filled.states()["images"] == "missing"
    filled.checkout()
    assert filled.read("images/x.txt") == "x"


def test_into_a_plain_folder(filled: Sandbox) -> None:
    (filled.root / "models").mkdir()

    assert run(filled, "a.bin", "models").new == "models/a.bin"
    assert filled.clean()


def test_inside_a_tracked_folder(filled: Sandbox) -> None:
    done = run(filled, "data/sub/y.txt", "data/new/w.txt")

    assert (done.written, done.removed, done.gitignores) == (("data.mlx",), (), ())
    assert filled.clean()
    assert not filled.exists("data/sub")
    assert os.access(filled.root / "data/new/w.txt", os.X_OK)
    assert rebuilt(filled)


def test_a_folder_inside_a_tracked_folder(filled: Sandbox) -> None:
    run(filled, "data/sub", "data/renamed")

    assert filled.clean()
    assert filled.read("data/renamed/y.txt") == "y"
    assert rebuilt(filled)


def test_into_a_tracked_folder(filled: Sandbox) -> None:
    done = run(filled, "a.bin", "data")

    assert (done.new, done.written, done.removed) == ("data/a.bin", ("data.mlx",), ("a.bin.mlx",))
    assert filled.states() == {"data": "ok", "other": "ok"}
    assert rebuilt(filled)


def test_out_of_a_tracked_folder(filled: Sandbox) -> None:
    done = run(filled, "data/sub/y.txt", "tool")

    assert done.written == ("tool.mlx", "data.mlx")
    assert filled.states() == {"a.bin": "ok", "data": "ok", "other": "ok", "tool": "ok"}
    assert rebuilt(filled)


def test_between_tracked_folders(filled: Sandbox) -> None:
    run(filled, "data/sub", "other")

    assert filled.clean()
    assert filled.read("other/sub/y.txt") == "y"
    assert rebuilt(filled)


def test_between_tracked_folders_that_are_not_here(filled: Sandbox) -> None:
    shutil.rmtree(filled.root / "data")
    shutil.rmtree(filled.root / "other")

    run(filled, "data/sub", "other")
    filled.checkout()

    assert filled.read("other/sub/y.txt") == "y"
    assert not filled.exists("data/sub")


def test_what_was_renamed_by_hand_is_recorded(filled: Sandbox) -> None:
    (filled.root / "data").rename(filled.root / "images")

    assert run(filled, "data", "images").new == "images/data"  # as `mv`: it is a folder


def test_a_file_that_was_renamed_by_hand_is_recorded(filled: Sandbox) -> None:
    (filled.root / "a.bin").rename(filled.root / "b.bin")

    done = run(filled, "a.bin", "b.bin")

    assert not done.data
    assert filled.clean()


def test_a_dry_run_tells_the_same_and_changes_nothing(filled: Sandbox) -> None:
    before = listing(filled.root)

    planned = run(filled, "data/sub", "other", dry_run=True)

    after = {path: facts for path, facts in listing(filled.root).items() if not path.startswith(b".git/")}
    assert after == {path: facts for path, facts in before.items() if not path.startswith(b".git/")}
    assert planned == run(filled, "data/sub", "other")


def test_a_stage_that_reads_it_is_named(filled: Sandbox) -> None:
    filled.pipeline("stages:\n  use:\n    cmd: cat a.bin\n    deps: [a.bin]\n")

    assert run(filled, "a.bin", "b.bin").stages == ("use",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("absent", "b", "nothing tracks `absent`"),
        ("data/x.txt", "data/.mlx/q", "would make its folder an mlx project"),
        ("data/sub", "data/.mlx", "would make its folder an mlx project"),
        ("data/x.txt", "data/.mlx-tmp-1-x", "is a name for files that mlx is writing"),
        ("a.bin", ".mlx-tmp-1-x", "is a name for files that mlx is writing"),
        ("a.bin", "a.bin", "cannot move"),
        ("data", "data/sub/deep", "cannot move"),
        ("a.bin", "other/z.txt", "is tracked already"),
        ("a.bin", "plain.txt", "exists already"),
        ("a.bin", "plain.txt/below", "is not a folder"),
        ("a.bin", "link/below", "is a symbolic link"),
        ("a.bin", "out/below", "is made by stage"),
        ("out", "elsewhere", "is made by stage"),
        ("a.bin", ".mlx/a.bin", "cannot be tracked"),
        ("a.bin", "data/skipped.log", "left out by a `.mlxignore`"),
        ("a.bin", "mlx.yaml", "exists already"),
    ],
)
def test_what_cannot_move_is_refused_and_nothing_changes(old: str, new: str, message: str, filled: Sandbox) -> None:
    filled.pipeline("stages:\n  make:\n    cmd: mkdir -p out && echo 1 > out/x\n    outs: [out]\n")
    filled.run()
    filled.write("plain.txt", "mine")
    filled.write(".mlxignore", "*.log\n")
    (filled.root / "link").symlink_to("data")
    before = listing(filled.root)

    with pytest.raises(UsageError, match=message):
        run(filled, old, new)

    after = listing(filled.root)
    assert {p: f for p, f in after.items() if not p.startswith(b".git/")} == {
        p: f for p, f in before.items() if not p.startswith(b".git/")
    }


def test_a_part_of_a_folder_whose_listing_is_not_here(filled: Sandbox) -> None:
    shutil.rmtree(filled.project().cache.root)

    with pytest.raises(MissingObject, match="listing of `data`"):
        run(filled, "data/x.txt", "x.txt")


class Killed(BaseException):
    """Stands for a `kill -9`: nothing that mlx does about errors may count."""


@pytest.mark.parametrize("moving", [("a.bin", "b.bin"), ("data", "images"), ("a.bin", "data/a.bin")])
@pytest.mark.parametrize("point", range(8))
@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_move_is_completed_by_the_same_again(
    point: int, moving: tuple[str, str], changed: bool, filled: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changed:
        filled.write("a.bin" if moving[0] == "a.bin" else "data/x.txt", "changed")
    check_killed(filled, monkeypatch, moving, point)


@pytest.mark.parametrize(
    "moving", [("data/x.txt", "data/w.txt"), ("data/sub", "other/sub"), ("data/x.txt", "x.txt"), ("data/sub", "data/s")]
)
@pytest.mark.parametrize("point", range(6))
def test_a_killed_move_of_a_part_is_completed_by_the_same_again(
    point: int, moving: tuple[str, str], filled: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_killed(filled, monkeypatch, moving, point)


def check_killed(box: Sandbox, monkeypatch: pytest.MonkeyPatch, moving: tuple[str, str], point: int) -> None:
    """End a move before its step number `point`, then do it again: it must be done, with every byte."""
    before = {facts for path, facts in listing(box.root).items() if b".git" not in path and facts[0] != "folder"}
    before = {facts for facts in before if not facts[1].startswith(b"mlx: 1")}
    steps = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            nonlocal steps
            steps += 1
            if steps > point:
                raise Killed
            return function(*args, **more)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            *((module, name) for name in ("write_atomic", "hide_from_git", "show_to_git")),
            (renaming, "rename_new"),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        killed = True
        try:
            run(box, *moving)
            killed = False
        except Killed:
            pass
    if killed:
        run(box, *moving)

    after = {facts for path, facts in listing(box.root).items() if b".git" not in path and facts[0] != "folder"}
    assert {facts for facts in after if not facts[1].startswith(b"mlx: 1")} == before
    assert box.exists(moving[1])
    assert not box.exists(moving[0])
    assert not box.exists(f"{moving[0]}.mlx")
    assert set(box.states().values()) <= {"ok", "modified"}


# The state index ------------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that scans read from now on."""
    names: list[str] = []
    real = scanning.hash_file

    def counting(path: str) -> Digest:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(scanning, "hash_file", counting)
    return names


@pytest.fixture
def known(filled: Sandbox) -> Sandbox:
    """Return the project with every file in the state index."""
    wait_for(lambda: settled(filled))
    assert filled.clean()
    return filled


def settled(box: Sandbox) -> bool:
    clock = Clock.read(box.project().local)
    files = [path for path in box.root.rglob("*.*") if ".git" not in path.parts and path.is_file()]
    return all(clock.is_settled(path.stat()) for path in files)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data", "images"),
        ("data/sub", "other/sub"),
        ("data/sub", "sub"),
        ("a.bin", "models/b.bin"),
        ("data/x.txt", "x.txt"),
        ("other/z.txt", "data/sub/z.txt"),
    ],
)
def test_what_moved_is_not_read_again(old: str, new: str, known: Sandbox, read: list[str]) -> None:
    run(known, old, new)

    assert known.clean()
    assert read == []


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
@pytest.mark.parametrize(("old", "new"), [("large.bin", "big.bin"), ("data", "images"), ("data/a", "other/a")])
def test_links_that_moved_are_not_read_again(mode: str, old: str, new: str, filled: Sandbox, read: list[str]) -> None:
    filled.configure("cache.link", mode)
    filled.write("large.bin", os.urandom(100_000))
    filled.write("data/a", os.urandom(100_000))
    wait_for(lambda: settled(filled))
    filled.add("large.bin", "data")
    wait_for(lambda: settled(filled))
    assert filled.clean()
    read.clear()

    run(filled, old, new)

    assert filled.clean()
    assert read == []


def test_a_folder_takes_the_place_of_one_that_was_known(known: Sandbox, read: list[str]) -> None:
    """The rows of what was at the new path before say nothing of what is there now."""
    shutil.rmtree(known.root / "other")
    (known.root / "other.mlx").unlink()

    run(known, "data", "other")

    assert known.states()["other"] == "ok"
    assert read == []
    known.write("other/x.txt", "z")
    assert known.states()["other"] == "modified"


def test_an_edit_right_before_is_seen(known: Sandbox, read: list[str]) -> None:
    place = known.root / "a.bin"
    info = place.stat()
    place.write_text("eonl")
    os.utime(place, ns=(info.st_atime_ns, info.st_mtime_ns))

    run(known, "a.bin", "b.bin")

    assert known.states()["b.bin"] == "modified"
    assert read == ["b.bin"]


@pytest.mark.parametrize("restored", [False, True])
def test_an_edit_right_after_is_seen(restored: bool, known: Sandbox) -> None:
    info = (known.root / "a.bin").stat()

    run(known, "a.bin", "b.bin")
    (known.root / "b.bin").write_text("eonl")
    if restored:
        os.utime(known.root / "b.bin", ns=(info.st_atime_ns, info.st_mtime_ns))

    assert known.states()["b.bin"] == "modified"


def test_of_a_file_that_is_being_written_nothing_is_known(known: Sandbox, read: list[str]) -> None:
    with (known.root / "a.bin").open("r+b"):
        run(known, "a.bin", "b.bin")

    known.states()

    assert read == ["b.bin"]


def test_who_writes_waits_until_the_move_is_over(known: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that comes between the rename and the tick of the clock cannot hide what it does."""
    info = (known.root / "a.bin").stat()
    writing = "import os, sys; f = open(sys.argv[1], 'r+b'); f.write(b'eonl'); f.close(); "
    writing += f"os.utime(sys.argv[1], ns=({info.st_atime_ns}, {info.st_mtime_ns}))"
    writers: list[subprocess.Popen[bytes]] = []
    real = renaming.rename_new

    def rename_then_write(source: str, target: str) -> None:
        real(source, target)
        writers.append(subprocess.Popen([sys.executable, "-c", writing, target]))

    monkeypatch.setattr(renaming, "rename_new", rename_then_write)

    run(known, "a.bin", "b.bin")
    assert writers[0].wait() == 0

    assert known.read("b.bin") == "eonl"
    assert known.states()["b.bin"] == "modified"


def test_killed_before_the_state_index_knows_it_is_read_again(
    known: Sandbox, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(State, "move_folder", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(known, "data", "images")

    run(known, "data", "images")

    assert known.clean()
    assert sorted(read) == ["x.txt", "y.txt"]


def test_a_move_without_a_state_index_moves_all_the_same(known: Sandbox) -> None:
    (known.project().local / "state.db").write_bytes(b"garbage")

    run(known, "data", "images")

    assert known.clean()
