"""Files are written whole or not at all; locks end with their process; relative paths stay where they belong."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_cli.errors import LockedError, OutsideError
from mlops_cli.files import (
    TEMPORARY_PREFIX,
    check_relative,
    folders_above,
    hold_lock,
    sync_filesystem,
    sync_folder,
    sync_paths,
    translate_os_error,
    write_all,
    write_atomic,
)
from tests.crashing import crashes
from tests.disks import small_disk

steady = settings(deadline=None)  # a busy machine is no reason to fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- write_atomic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_and_its_folders_are_made(tmp_path, durable):
    write_atomic(tmp_path / "a" / "b" / "file", b"bytes", durable=durable)

    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"bytes"
    assert names(tmp_path / "a" / "b") == ["file"]


def test_a_file_is_replaced_and_gets_the_asked_mode(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")

    write_atomic(path, b"new", mode=0o600)

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symlink_is_replaced_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("elsewhere")

    write_atomic(tmp_path / "file", b"new")

    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_a_refusal_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()

    with pytest.raises(OutsideError) as caught:
        write_atomic(tmp_path / "file", b"new")

    assert str(tmp_path / "file") in caught.value.message
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    with small_disk(tmp_path) as disk:
        write_atomic(disk / "file", b"old")

        with pytest.raises(OutsideError, match="the disk is full") as caught:
            write_atomic(disk / "file", os.urandom(2 << 20))

        assert caught.value.hint == "free some space and run the command again"
        assert (disk / "file").read_bytes() == b"old"
        assert names(disk) == ["file"]


def test_a_crash_anywhere_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    seen = set()

    for _ in crashes(lambda: write_atomic(path, b"new" * 1000)):
        seen.add(path.read_bytes()[:3])
        assert path.read_bytes() in (b"old" * 1000, b"new" * 1000)
        left = [name for name in names(tmp_path) if name != "file"]
        assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
        path.write_bytes(b"old" * 1000)

    assert seen == {b"old", b"new"}


def test_every_byte_is_written_however_little_a_call_takes(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))

    write_atomic(tmp_path / "file", b"0123456789")

    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_write_all_takes_an_empty_buffer(tmp_path):
    with (tmp_path / "file").open("wb", buffering=0) as stream:
        write_all(stream.fileno(), b"")

    assert (tmp_path / "file").read_bytes() == b""


# --- durability -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 32, 33])
def test_any_number_of_files_can_be_synced(tmp_path, number):
    paths = [tmp_path / str(index) for index in range(number)]
    for path in paths:
        path.write_bytes(b"x")

    sync_paths([str(path) for path in paths], tmp_path)
    sync_folder(tmp_path)
    sync_filesystem(tmp_path)


def test_few_files_are_synced_one_by_one_and_many_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)

    sync_paths([str(tmp_path / "file")] * 3, tmp_path)
    assert len(synced) == 3
    sync_paths([str(tmp_path / "file")] * 33, tmp_path)
    assert len(synced) == 3


# --- check_relative -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["a", "a/b.txt", "data/été/file name", ".gitignore", ".github/x", "a/.gitmodules", "git", "ab:c/d", "..a/b..", "-"],
)
def test_paths_below_a_folder_are_allowed(path):
    assert check_relative(path) == path


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "empty"),
        ("/etc/passwd", "relative"),
        ("C:/windows", "relative"),
        ("c:x", "relative"),
        ("a\0b", "NUL"),
        (".", "`.`"),
        ("..", "`..`"),
        ("a/../b", "`..`"),
        ("a//b", "empty parts"),
        ("a/", "empty parts"),
        ("./a", "`.`"),
        (".git", "belongs to Git"),
        (".git/config", "belongs to Git"),
        ("a/.GiT/hooks/post-commit", "belongs to Git"),
        (".git /config", "belongs to Git"),
        (".git./config", "belongs to Git"),
        ("git~1/config", "belongs to Git"),
        ("GIT~1", "belongs to Git"),
        (".git::$INDEX_ALLOCATION/config", "belongs to Git"),
        (".g\u200cit/config", "belongs to Git"),
        ("\ufeff.git", "belongs to Git"),
    ],
)
def test_paths_that_reach_elsewhere_are_refused(path, says):
    with pytest.raises(ValueError, match=says):
        check_relative(path)


@steady
@given(st.text(st.sampled_from("a.g/ \\~:1it\0"), max_size=12))
def test_what_is_allowed_stays_inside(path):
    try:
        check_relative(path)
    except ValueError:
        return
    normal = os.path.normpath(path)

    assert not PurePosixPath(path).is_absolute()
    assert normal == path
    assert normal.split("/")[0] != ".."


@pytest.mark.parametrize(
    ("path", "above"), [("", []), ("a", []), ("a/b", ["a"]), ("a/b c/d.e", ["a", "a/b c"]), ("a\udcff/b", ["a\udcff"])]
)
def test_the_folders_above_a_path(path, above):
    assert folders_above(path) == above


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_second_holder_waits_and_is_told_who_has_it(tmp_path):
    with hold_lock(tmp_path / "deep" / "lock", doing="mlx add", timeout=0):
        started = time.monotonic()
        with pytest.raises(LockedError) as caught, hold_lock(tmp_path / "deep" / "lock", doing="mlx run", timeout=0.15):
            pass

    assert time.monotonic() - started >= 0.15
    assert "`mlx add`" in caught.value.message
    assert f"process {os.getpid()}" in caught.value.message
    assert caught.value.hint


def test_a_lock_can_be_taken_again_and_its_file_stays(tmp_path):
    for _ in range(2):
        with hold_lock(tmp_path / "lock", doing="mlx add", timeout=0):
            pass

    assert (tmp_path / "lock").exists()


def test_an_exception_frees_the_lock(tmp_path):
    with pytest.raises(RuntimeError), hold_lock(tmp_path / "lock", doing="mlx add", timeout=0):
        raise RuntimeError

    with hold_lock(tmp_path / "lock", doing="mlx add", timeout=0):
        pass


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"pid": 1}'])
def test_a_lock_whose_holder_left_no_word_is_still_a_lock(tmp_path, content):
    with hold_lock(tmp_path / "lock", doing="mlx add", timeout=0):
        (tmp_path / "lock").write_bytes(content)
        with (
            pytest.raises(LockedError, match="another mlx process"),
            hold_lock(tmp_path / "lock", doing="mlx run", timeout=0),
        ):
            pass


def test_killing_the_holder_frees_the_lock(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mlops_cli.files import hold_lock\n"
        "with hold_lock(Path(sys.argv[1]), doing='mlx run', timeout=5):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(LockedError, match=f"process {holder.pid}"),
            hold_lock(tmp_path / "lock", doing="mlx add", timeout=0),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()

        with hold_lock(tmp_path / "lock", doing="mlx add", timeout=5):
            pass


def test_a_lock_whose_file_was_removed_meanwhile_is_not_mistaken(tmp_path):
    path = tmp_path / "lock"
    with hold_lock(path, doing="mlx add", timeout=0):
        path.unlink()
        with hold_lock(path, doing="mlx run", timeout=0):
            assert path.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutsideError, match="cannot lock"), hold_lock(tmp_path / "file" / "lock", doing="x", timeout=0):
        pass


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "too many open files"),
        (errno.ENOTDIR, "a part of its path is not a folder"),
        (errno.ELOOP, "a symbolic link is in the way"),
        (errno.ESTALE, "the file server no longer knows it"),
        (errno.ENXIO, "no such device or address"),
    ],
)
def test_what_the_system_refuses_becomes_a_sentence_and_a_next_step(code, says):
    error = translate_os_error(OSError(code, os.strerror(code)), "write `x`")

    assert isinstance(error, OutsideError)
    assert error.message.startswith("cannot write `x`: ")
    assert says in error.message
    assert error.hint


def test_paths_that_cannot_be_written_are_told_in_plain_words(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    for path, says in (
        ("file/x", "something else is in its way"),
        ("file/x/y", "a part of its path is not a folder"),
        ("circle/x/y", "links lead in a circle"),
        ("folder", "it is a folder"),
        ("x" * 300 + "/x", "the name is too long"),
    ):
        with pytest.raises(OutsideError, match=says) as caught:
            write_atomic(tmp_path / path, b"")

        assert caught.value.hint


def test_an_error_without_a_number_keeps_its_words():
    assert translate_os_error(OSError("odd"), "read `x`").message == "cannot read `x`: odd"
