"""Links into the cache become writable copies and back, and no byte of the workspace is lost."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MlxError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.relink import Relinked, relink, unprotect, warn_root
from tests.workspace.projects import Notes, Sandbox, listing

LARGE = os.urandom(100_000)
SHARING = ["hardlink", "symlink"]


def fill(box: Sandbox, mode: str) -> Sandbox:
    box.configure("cache.link", mode)
    box.write("data/large.bin", LARGE)
    box.write("data/small.txt", "small")
    box.write("data/tool", LARGE + b"tool", mode=0o755)
    box.write("lone.bin", LARGE[::-1])
    box.add("data", "lone.bin")
    relink(box.project())
    return box


def how(box: Sandbox, path: str) -> str:
    """Return how a file is shared with the cache."""
    place = box.root / path
    if place.is_symlink():
        return "symlink"
    own = Path(box.project().cache.object_path(hash_bytes(place.read_bytes())))
    return "hardlink" if own.exists() and own.samefile(place) else "copy"


@pytest.mark.parametrize("mode", SHARING)
def test_unprotected_files_are_writable_and_their_own(mode: str, box: Sandbox) -> None:
    fill(box, mode)
    before = {path: content for path, (_, content) in listing(box.root / "data").items() if path != b"large.bin"}
    assert how(box, "data/large.bin") == mode

    done = unprotect(box.project(), ["data"])

    assert [(item.path, item.files) for item in done] == [("data", 1)]
    assert how(box, "data/large.bin") == "copy"
    assert how(box, "lone.bin") == mode
    place = box.root / "data/large.bin"
    assert place.stat().st_mode & 0o200
    assert place.read_bytes() == LARGE
    place.write_bytes(b"edited")
    assert box.project().cache.read(hash_bytes(LARGE), limit=None) == LARGE
    assert {path: content for path, (_, content) in listing(box.root / "data").items() if path in before} == before


@pytest.mark.parametrize("mode", SHARING)
def test_a_part_and_a_lone_file_can_be_unprotected(mode: str, box: Sandbox) -> None:
    fill(box, mode)

    assert [item.path for item in unprotect(box.project(), ["data/large.bin", "lone.bin"])] == [
        "data/large.bin",
        "lone.bin",
    ]
    assert unprotect(box.project(), ["data/large.bin", "lone.bin"]) == ()
    assert box.clean()


def test_a_read_only_file_that_is_no_link_becomes_writable(box: Sandbox) -> None:
    fill(box, "copy")
    (box.root / "lone.bin").chmod(0o444)

    assert [item.path for item in unprotect(box.project(), ["lone.bin"])] == ["lone.bin"]
    assert (box.root / "lone.bin").stat().st_mode & 0o777 == 0o644


def test_what_is_not_tracked_is_not_unprotected(box: Sandbox) -> None:
    box.write("mine", "mine").chmod(0o444)

    with pytest.raises(UsageError, match="nothing tracks `mine`"):
        unprotect(box.project(), ["mine"])


def test_a_users_own_link_stays(box: Sandbox) -> None:
    box.write("data/a", "a")
    (box.root / "data/link").symlink_to("a")
    box.add("data")

    assert unprotect(box.project(), ["data"]) == ()
    assert (box.root / "data/link").is_symlink()


def test_bytes_that_were_changed_through_a_hard_link_are_told_and_stay(box: Sandbox) -> None:
    fill(box, "hardlink")
    place = box.root / "lone.bin"
    place.chmod(0o644)
    with place.open("r+b") as stream:
        stream.write(b"edited")
    place.chmod(0o444)

    with pytest.raises(CorruptObject, match=r"`lone\.bin`"):
        unprotect(box.project(), ["lone.bin"])

    assert place.read_bytes().startswith(b"edited")


@pytest.mark.parametrize("before", ["copy", *SHARING])
@pytest.mark.parametrize("after", ["copy", "reflink", *SHARING])
def test_relinking_follows_the_setting(before: str, after: str, box: Sandbox) -> None:
    fill(box, before)
    box.configure("cache.link", after)

    relink(box.project())

    shared = after if after in SHARING else "copy"
    assert [how(box, path) for path in ("data/large.bin", "lone.bin")] == [shared] * 2
    assert [how(box, path) for path in ("data/small.txt", "data/tool")] == ["copy"] * 2
    assert (box.root / "data/large.bin").read_bytes() == LARGE
    assert os.access(box.root / "data/tool", os.X_OK)
    assert box.read("data/small.txt") == "small"
    assert box.clean()
    if after != "reflink":  # whether a file is a clone cannot be seen
        assert relink(box.project()) == ()


@pytest.mark.parametrize("dry_run", [False, True])
def test_relinking_where_nothing_is_cloned_ends(dry_run: bool, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a copy that is there already, nor in one that has replaced a link, is anything left to do."""
    answer_clones(monkeypatch, errno.EOPNOTSUPP)
    fill(box, "copy")
    box.configure("cache.link", "reflink")
    before = files(box)

    assert relink(box.project(), dry_run=dry_run) == ()
    assert files(box) == before

    fill(box, "hardlink")
    box.configure("cache.link", "reflink")
    assert {item.path: item.files for item in relink(box.project())} == {"data": 1, "lone.bin": 1}
    assert relink(box.project(), dry_run=dry_run) == ()


def test_relinking_clones_anew_where_the_file_system_can(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_clones(monkeypatch, None)
    fill(box, "copy")
    box.configure("cache.link", "reflink")
    before = files(box)

    assert {item.path: item.files for item in relink(box.project())} == {"data": 1, "lone.bin": 1}
    assert not files(box) & before
    assert box.clean()
    assert not [name for name in os.listdir(box.root / "data") if name.startswith(".mlx")]


def files(box: Sandbox) -> set[tuple[int, int]]:
    """Return what tells two files from two others that were made in their place."""
    infos = [(box.root / path).stat() for path in ("data/large.bin", "lone.bin")]
    return {(info.st_ino, info.st_ctime_ns) for info in infos}


def answer_clones(monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    """Stand for a file system that answers a request to clone with `code`, or by doing it."""

    def ioctl(target: int, request: int, source: int) -> None:
        if code is not None:
            raise OSError(code, os.strerror(code))
        os.sendfile(target, source, 0, os.fstat(source).st_size)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


@pytest.mark.parametrize("mode", SHARING)
def test_a_modified_file_is_never_relinked(mode: str, box: Sandbox) -> None:
    fill(box, "copy")
    box.configure("cache.link", mode)
    box.write("data/large.bin", LARGE[1:] + b"x")

    assert [item.path for item in relink(box.project())] == ["lone.bin"]
    assert (box.root / "data/large.bin").read_bytes() == LARGE[1:] + b"x"
    assert how(box, "data/large.bin") == "copy"


def test_a_damaged_object_does_not_replace_a_good_file(box: Sandbox) -> None:
    fill(box, "copy")
    box.configure("cache.link", "hardlink")
    path = Path(box.project().cache.object_path(hash_bytes(LARGE)))
    path.chmod(0o644)
    path.write_bytes(LARGE[::-1])
    path.chmod(0o444)

    with pytest.raises(CorruptObject, match=r"data/large\.bin"):
        relink(box.project(), ["data"])

    assert (box.root / "data/large.bin").read_bytes() == LARGE


@pytest.mark.parametrize("verb", [unprotect, relink])
def test_one_bad_object_does_not_keep_the_others_from_being_done(
    verb: Callable[[Project], tuple[Relinked, ...]], box: Sandbox
) -> None:
    fill(box, "symlink" if verb is unprotect else "copy")
    box.write("zoo.bin", LARGE[1:])
    box.add("zoo.bin")
    box.configure("cache.link", "symlink")
    for content in (LARGE, LARGE[::-1]):
        path = Path(box.project().cache.object_path(hash_bytes(content)))
        path.chmod(0o644)
        path.write_bytes(os.urandom(len(content)))
        path.chmod(0o444)

    with pytest.raises(CorruptObject, match=r"1 more file that could not be done") as caught:
        verb(box.project())

    assert "data/large.bin" in caught.value.message
    assert how(box, "zoo.bin") == ("copy" if verb is unprotect else "symlink")


def test_a_file_that_is_being_written_is_not_relinked(box: Sandbox) -> None:
    fill(box, "copy")
    box.configure("cache.link", "hardlink")

    with (box.root / "data/large.bin").open("r+b") as stream:
        done = relink(box.project())
        stream.write(b"written")

    assert [item.path for item in done] == ["lone.bin"]
    assert (box.root / "data/large.bin").read_bytes() == b"written" + LARGE[7:]


def test_a_file_that_changed_meanwhile_is_not_replaced(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts a file of their own where a link was, after it was looked at."""
    fill(box, "symlink")
    place = box.root / "lone.bin"
    real = os.readlink

    def replace(path: bytes) -> bytes:
        target = real(path)
        if path == os.fsencode(place):
            place.unlink()
            place.write_text("mine")
            monkeypatch.setattr(os, "readlink", lambda _: target)
        return target

    monkeypatch.setattr(os, "readlink", replace)

    unprotect(box.project(), ["lone.bin"])

    assert place.read_text() == "mine"


def test_nothing_outside_becomes_writable(box: Sandbox, tmp_path: Path) -> None:
    """A folder of the data is a link by now, and leads to somebody's read-only files."""
    box.write("data/sub/a", "a")
    box.add("data")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("theirs")
    (outside / "a").chmod(0o400)
    (box.root / "data/sub/a").unlink()
    (box.root / "data/sub").rmdir()
    (box.root / "data/sub").symlink_to(outside)

    with pytest.raises(MlxError):
        unprotect(box.project(), ["data/sub/a"])

    assert (outside / "a").stat().st_mode & 0o777 == 0o400


def test_what_is_not_in_the_cache_stays(box: Sandbox) -> None:
    fill(box, "copy")
    box.configure("cache.link", "hardlink")
    Path(box.project().cache.object_path(hash_bytes(LARGE))).unlink()

    assert [item.path for item in relink(box.project())] == ["lone.bin"]
    assert (box.root / "data/large.bin").read_bytes() == LARGE


def test_a_dry_run_counts_and_changes_nothing(box: Sandbox) -> None:
    fill(box, "hardlink")
    planned = unprotect(box.project(), dry_run=True)

    assert [(item.path, item.files) for item in planned] == [("data", 1), ("lone.bin", 1)]
    assert how(box, "lone.bin") == "hardlink"
    box.configure("cache.link", "copy")
    assert relink(box.project(), dry_run=True) == planned
    assert how(box, "lone.bin") == "hardlink"


def test_root_is_warned_once(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    heard = Notes()
    warn_root(box.project(), heard)
    assert heard.notes == []
    box.configure("cache.link", "hardlink")

    warn_root(box.project(), heard)
    warn_root(box.project(), heard)

    assert len(heard.notes) == 1
    assert "`mlx unprotect`" in heard.notes[0]
